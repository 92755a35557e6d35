"""The guard on Redis and its twin for asyncio: one text for both, and scripts of the caller's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeAlias, cast

import pytest
import redis
import redis.asyncio

from fencer.embedded import Server
from fencer.errors import InvalidArgument, ScriptError, StaleToken
from fencer.guards import AsyncGuard, AsyncRedisGuard, Guard, RedisGuard
from fencer.guards._base import Token
from fencer.guards.testing import conform, conform_async
from tests.faults import bugs_guards
from tests.faults.planted import twin
from tests.fix_api import Blocking, Loop

MakeGuard: TypeAlias = Callable[..., RedisGuard]
SET = "return redis.call('SET', KEYS[1], ARGV[1])"


@pytest.fixture(params=["threads", "asyncio"])
def make_guard(
    request: pytest.FixtureRequest, shared_server: Server, redis_client: redis.Redis
) -> Iterator[MakeGuard]:
    """A maker of guards on the shared server, which is empty when the test begins."""
    if request.param == "threads":
        yield lambda resource="stock", **options: RedisGuard(redis_client, resource, **options)
        return
    with ExitStack() as opened:
        loop = Loop()
        opened.callback(loop.close)
        client = redis.asyncio.Redis.from_url(shared_server.unix_url)
        opened.callback(lambda: loop.run(client.aclose()))

        def make(resource: str = "stock", **options: Any) -> RedisGuard:
            return cast(RedisGuard, Blocking(AsyncRedisGuard(client, resource, **options), loop))

        yield make


@pytest.fixture
def guard(make_guard: MakeGuard) -> RedisGuard:
    return make_guard()


class Value:
    """A key behind the guard, written by a script, as the suite wants it."""

    def __init__(self, client: redis.Redis, resource: str) -> None:
        self.client = client
        self.key = f"{resource}:value"
        self.guard = RedisGuard(client, resource)

    def write(self, token: Token, value: str) -> None:
        self.guard.script(token, SET, keys=[self.key], args=[value])

    def read(self) -> str | None:
        found = cast("bytes | None", self.client.get(self.key))
        return None if found is None else found.decode()

    def check(self, token: Token) -> None:
        self.guard.check(token)

    def highest(self) -> int:
        return self.guard.highest()


class AsyncValue:
    """The same on asyncio, written by a command."""

    def __init__(self, client: redis.asyncio.Redis, resource: str) -> None:
        self.client = client
        self.key = f"{resource}:value"
        self.guard = AsyncRedisGuard(client, resource)

    async def write(self, token: Token, value: str) -> None:
        await self.guard.execute(token, "SET", self.key, value)

    async def read(self) -> str | None:
        found = cast("bytes | None", await self.client.get(self.key))
        return None if found is None else found.decode()

    async def check(self, token: Token) -> None:
        await self.guard.check(token)

    async def highest(self) -> int:
        return await self.guard.highest()


@asynccontextmanager
async def client_for(server: Server) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(server.unix_url)
    try:
        yield client
    finally:
        await client.aclose()


def test_scripts_conform(redis_client: redis.Redis) -> None:
    """A rule of the family would be broken where a script of the caller's writes."""
    assert isinstance(RedisGuard(redis_client, "x"), Guard)
    conform(lambda resource: Value(redis_client, resource), rounds=100)


@twin(bugs_guards.guard_in_two_steps)
def test_the_asyncio_twin_conforms(shared_server: Server) -> None:
    """A rule of the family would be broken on asyncio."""

    async def run() -> None:
        async with client_for(shared_server) as client:
            assert isinstance(AsyncRedisGuard(client, "x"), AsyncGuard)
            await conform_async(lambda resource: AsyncValue(client, resource), rounds=100)

    asyncio.run(run())


def test_the_twins_have_the_same_methods() -> None:
    """One of the two would lack what the other has learnt."""
    for name, function in inspect.getmembers(RedisGuard, inspect.isfunction):
        if not name.startswith("_"):
            twin = getattr(AsyncRedisGuard, name)
            assert inspect.signature(twin) == inspect.signature(function), name
            assert inspect.iscoroutinefunction(twin), name
    ours, theirs = (
        {name: p.kind for name, p in inspect.signature(guard).parameters.items()}
        for guard in (RedisGuard, AsyncRedisGuard)
    )
    assert ours == theirs


def test_each_takes_the_client_of_its_kind(redis_client: redis.Redis) -> None:
    """The first write would fail with something that explains nothing."""
    with pytest.raises(InvalidArgument, match=r"redis\.asyncio\.Redis client is wanted"):
        AsyncRedisGuard(cast(Any, redis_client), "stock")


def test_commands_are_run_and_stale_ones_are_not(
    guard: RedisGuard, redis_client: redis.Redis
) -> None:
    """A stale holder would write."""
    assert guard.execute(2, "SET", "balance", "42") == b"OK"
    assert guard.transaction(2, [["INCR", "balance"], ["GET", "balance"]]) == [43, b"43"]
    with pytest.raises(StaleToken) as caught:
        guard.execute(1, "SET", "balance", "0")
    assert (caught.value.token, caught.value.highest) == (1, 2)
    assert redis_client.get("balance") == b"43"
    assert guard.highest() == 2


@pytest.mark.parametrize(
    ("lua", "reply"),
    [
        (
            "return {KEYS[1], KEYS[2], ARGV[1], ARGV[2], #KEYS, #ARGV}",
            [b"a", b"b", b"1", b"x", 2, 2],
        ),
        ("return redis.call('SET', KEYS[1], ARGV[1])", b"OK"),
        ("local function two() return KEYS[2] end\nreturn two()", b"b"),
        ("return 7 -- a comment", 7),
        ("-- only a comment", None),
        ("return nil", None),
        ("return false", None),
        ("return {}", []),
        ("return '%s %d 100%'", b"%s %d 100%"),
        ("return 'größe'", "größe".encode()),
    ],
)
def test_a_script_is_run_as_if_it_were_alone(guard: RedisGuard, lua: str, reply: Any) -> None:
    """Its KEYS and ARGV would be the guard's, or its reply would change on the way."""
    for _ in range(2):
        assert guard.script(5, lua, keys=["a", "b"], args=[1, "x"]) == reply
    assert guard.highest() == 5


def test_a_stale_script_is_not_run(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """A stale holder would write by way of a script."""
    guard.script(5, SET, keys=["a"], args=["new"])
    with pytest.raises(StaleToken):
        guard.script(4, SET, keys=["a"], args=["old"])
    assert redis_client.get("a") == b"new"


def test_a_script_is_sent_once(make_guard: MakeGuard, redis_client: redis.Redis) -> None:
    """Every call would carry the whole script, or a server that has forgotten it would refuse."""
    guard = make_guard()
    guard.script(1, SET, keys=["a"], args=[1])
    redis_client.config_resetstat()
    guard.script(1, SET, keys=["a"], args=[2])
    assert "cmdstat_eval" not in redis_client.info("commandstats")
    redis_client.script_flush()
    guard.script(1, SET, keys=["a"], args=[3])
    assert redis_client.get("a") == b"3"


@pytest.mark.parametrize(
    ("lua", "line", "words"),
    [
        ("\n\nredis.call('INCR', KEYS[1])", 3, "not an integer"),
        ("\nredis.call('LPUSH', KEYS[1], 1)", 2, "WRONGTYPE"),
        ("\n\nerror('boom')", 3, "boom"),
        ("local x = nil + 1", 1, "arithmetic"),
        ("\nx = 5", 2, ""),
        ("\nredis.call('NOSUCH')", 2, "nknown"),
    ],
)
def test_an_error_of_a_script_tells_its_line(
    guard: RedisGuard, redis_client: redis.Redis, lua: str, line: int, words: str
) -> None:
    """The caller would look for it in a script that was never seen."""
    redis_client.set("a", "text")
    with pytest.raises(ScriptError, match=f"token was accepted.* line {line} .*{words}") as caught:
        guard.script(5, lua, keys=["a"])
    assert caught.value.line == line
    assert guard.highest() == 5


@pytest.mark.parametrize(
    "lua", ["\nif x then", "\nend", "\nreturn ]", "end redis.call('SET', 'a', 1)"]
)
def test_what_is_no_lua_is_told(guard: RedisGuard, redis_client: redis.Redis, lua: str) -> None:
    """Half of a script would be run, or what is wrong with it would not be said."""
    with pytest.raises(ScriptError, match="cannot be compiled") as caught:
        guard.script(5, lua)
    assert caught.value.line in (None, 1, 2)
    assert redis_client.dbsize() == 0


def test_an_error_that_a_script_returns_is_one(guard: RedisGuard) -> None:
    """It would pass for a reply."""
    with pytest.raises(ScriptError, match="MINE no stock"):
        guard.script(5, "return redis.error_reply('MINE no stock')")


def test_an_error_of_the_guard_is_not_the_scripts(
    guard: RedisGuard, redis_client: redis.Redis
) -> None:
    """The caller would look for a mark of the wrong type in the wrong place."""
    redis_client.set("fencer:{stock}:guard", "x")
    with pytest.raises(ScriptError, match=r"lua/guard\.lua.*WRONGTYPE") as plain:
        guard.check(5)
    with pytest.raises(ScriptError, match=r"lua/guard\.lua.*WRONGTYPE") as composed:
        guard.script(5, "\n\nreturn 1")
    assert composed.value.line == plain.value.line


@pytest.mark.parametrize(
    "wrong",
    [
        {"lua": ""},
        {"lua": " \n"},
        {"lua": "return\0 1"},
        {"lua": b"return 1"},
        {"keys": "balance"},
        {"args": "42"},
        {"args": [True]},
        {"args": [None]},
    ],
    ids=str,
)
def test_what_is_no_script_is_not_sent(guard: RedisGuard, wrong: dict[str, Any]) -> None:
    """The server would say so, in words that mean nothing to the caller."""
    with pytest.raises(InvalidArgument):
        guard.script(5, **{"lua": "return 1", **wrong})
    assert guard.highest() == 0
