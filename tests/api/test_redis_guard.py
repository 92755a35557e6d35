"""The guard in front of keys: what it takes, what it returns, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

import fencer
from fencer import InvalidArgument, ScriptError, StaleToken
from fencer.guards import RedisGuard
from tests.fix_api import Connect, plain


@pytest.fixture
def connect(connect_threads: Connect) -> Connect:
    """Threads alone: the guard is the same for every client."""
    return connect_threads


@pytest.fixture
def guard(redis_client: redis.Redis) -> RedisGuard:
    """A guard of ``orders``."""
    return RedisGuard(redis_client, "orders")


def test_nothing_accepted_yet(guard: RedisGuard) -> None:
    """A new resource would refuse its first writer."""
    assert guard.highest() == 0
    guard.check(1)
    assert guard.highest() == 1


def test_check_accepts_and_refuses(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """Older tokens would go on to write."""
    guard.check(5)
    guard.check(5)
    guard.check(7)
    with pytest.raises(StaleToken):
        guard.check(6)
    assert guard.highest() == 7
    assert redis_client.ttl("fencer:{orders}:guard") == -1, "it never forgets"


def test_stale_token_names_everything(guard: RedisGuard) -> None:
    """A log line would not tell which write was refused, and by whom."""
    guard.check(7)
    with pytest.raises(StaleToken) as caught:
        guard.execute(6, "SET", "balance", "1")
    error = caught.value
    assert (error.resource, error.token, error.highest) == ("orders", 6, 7)
    assert str(error) == (
        "'orders' refused token 6: the guard has accepted token 7 since. "
        "This holder has been replaced: stop, and acquire anew"
    )


def test_a_refused_write_changes_nothing(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """A stale write would land."""
    guard.execute(7, "SET", "balance", "7")
    for _ in range(2):
        with pytest.raises(StaleToken):
            guard.execute(6, "SET", "balance", "6")
        with pytest.raises(StaleToken):
            guard.transaction(6, [["SET", "balance", "6"], ["SET", "other", "6"]])
    assert redis_client.get("balance") == b"7"
    assert not redis_client.exists("other")


@pytest.mark.parametrize("token", [1, 2**53 - 1, 1_763_870_400_123_457, 10**15 + 1])
def test_large_tokens_are_exact(guard: RedisGuard, token: int) -> None:
    """Lua would round a token, and let its neighbour in."""
    guard.check(token)
    assert guard.highest() == token
    if token > 1:
        with pytest.raises(StaleToken) as caught:
            guard.check(token - 1)
        assert caught.value.highest == token


SHOWN: dict[str, Callable[[fencer.Lease], Any]] = {
    "int": lambda lease: lease.token,
    "lease": lambda lease: lease,
    "sequencer": lambda lease: lease.sequencer(),
    "unpacked": lambda lease: fencer.Sequencer.unpack(lease.sequencer().pack()),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_takes_every_kind_of_token(guard: RedisGuard, client: fencer.Fencer, shown: str) -> None:
    """A token that has travelled would be worth less than the lease itself."""
    lease = client.acquire("orders")
    guard.check(SHOWN[shown](lease))
    assert guard.execute(SHOWN[shown](lease), "SET", "balance", "1") == b"OK"
    assert guard.highest() == lease.token


def test_takes_a_lease_of_asyncio(guard: RedisGuard, connect_asyncio: Connect) -> None:
    """A service on asyncio could not show its lease to a guard that blocks."""
    lease = connect_asyncio().acquire("orders")
    guard.check(plain(lease))
    assert guard.highest() == lease.token


@pytest.mark.parametrize("shown", ["lease", "sequencer", "unpacked"])
def test_tokens_of_another_name(
    client: fencer.Fencer, redis_client: redis.Redis, shown: str
) -> None:
    """Tokens of different names would be compared, and the real holder be locked out."""
    lease = client.acquire("invoices")
    guard = RedisGuard(redis_client, "orders")
    with pytest.raises(InvalidArgument, match="'orders', not of 'invoices'"):
        guard.check(SHOWN[shown](lease))
    assert guard.highest() == 0
    named = RedisGuard(redis_client, "orders", name="invoices")
    named.check(SHOWN[shown](lease))
    assert guard.highest() == lease.token, "guards of one resource share one mark"


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (["SET", "key", "value"], b"OK"),
        (["GET", "nothing"], None),
        (["GET", "text"], b"words"),
        (["INCRBY", "number", 5], 47),
        (["INCRBYFLOAT", "number", 0.5], b"42.5"),
        (["EXISTS", "text", "nothing"], 1),
        (["LRANGE", "list", 0, -1], [b"a", b"b"]),
        (["LRANGE", "nothing", 0, -1], []),
        (["MGET", "text", "nothing", "number"], [b"words", None, b"42"]),
        (["SET", "binary", b"\x00\xff\r\n"], b"OK"),
        (["GETSET", "text", "ü"], b"words"),
        (["PING"], b"PONG"),
        (["SETNX", "text", ""], 0),
    ],
)
def test_replies_as_they_come(
    guard: RedisGuard, redis_client: redis.Redis, command: list[Any], reply: object
) -> None:
    """A reply would be lost or changed on its way through the script."""
    version = redis_client.info("server")["redis_version"]
    if command[0] == "INCRBYFLOAT" and version.startswith("6."):
        pytest.skip("an INCRBYFLOAT in any script corrupts the memory of Redis 6.2")
    redis_client.set("text", "words")
    redis_client.set("number", 42)
    redis_client.rpush("list", "a", "b")
    assert guard.execute(5, *command) == reply
    assert guard.transaction(5, [["GET", "nothing"], ["PING"]]) == [None, b"PONG"]


def test_bytes_arrive_as_they_are(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """Values would be read as text on the way."""
    every = bytes(range(256))
    guard.execute(5, "SET", every, every)
    assert redis_client.get(every) == every
    assert guard.execute(5, "GET", every) == every


def test_a_transaction_returns_every_reply(guard: RedisGuard) -> None:
    """The caller could not tell which reply is whose."""
    replies = guard.transaction(
        5, [["SET", "a", "1"], ["GET", "a"], ["GET", "none"], ["INCR", "a"], ["RPUSH", "l", 1, 2]]
    )
    assert replies == [b"OK", b"1", None, 2, 2]
    assert guard.transaction(6, []) == []
    assert guard.highest() == 6


def test_a_command_that_fails(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """A refused command would look like a stale token, or like success."""
    redis_client.rpush("list", "a")
    with pytest.raises(ScriptError, match=r"command 1 of 1 failed: .*WRONGTYPE") as caught:
        guard.execute(5, "INCR", "list")
    assert "Nothing was written" in str(caught.value)
    assert caught.value.script == "guard"
    assert guard.highest() == 5, "the token itself was good"


def test_a_command_that_fails_in_the_middle(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """Nobody would know which of the writes stand."""
    redis_client.rpush("list", "a")
    with pytest.raises(ScriptError, match=r"command 3 of 4 failed") as caught:
        guard.transaction(
            5, [["SET", "a", "1"], ["SET", "b", "1"], ["INCR", "list"], ["SET", "c", "1"]]
        )
    assert "The first 2 of 4 commands stand" in str(caught.value)
    assert redis_client.mget("a", "b", "c") == [b"1", b"1", None]


@pytest.mark.parametrize("command", [["NOSUCH", "a"], ["GET"], ["SET", "a"], ["SUBSCRIBE", "a"]])
def test_commands_that_there_are_not(guard: RedisGuard, command: list[str]) -> None:
    """A typing error would end in something else than an error that shows it."""
    with pytest.raises(ScriptError, match="command 1 of 1 failed"):
        guard.execute(5, *command)
    assert guard.execute(5, "PING") == b"PONG", "the connection is good"


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param([[]], id="no words"),
        pytest.param(["SET a 1"], id="a str"),
        pytest.param([b"SET"], id="bytes"),
        pytest.param("SET", id="no list"),
        pytest.param([["SET", "a", None]], id="None"),
        pytest.param([["SET", "a", True]], id="bool"),
        pytest.param([["SET", "a", ["b"]]], id="list"),
        pytest.param([["PING"]] * 1001, id="too many commands"),
        pytest.param([["DEL", *["a"] * 7000]], id="too many words"),
        pytest.param([["SET", "a", "\ud800"]], id="lone surrogate"),
        pytest.param([["SET", "\ud800", "a"]], id="lone surrogate in a key"),
    ],
)
def test_what_is_no_command(guard: RedisGuard, redis_client: redis.Redis, commands: Any) -> None:
    """A slip would be sent, or end in an error of the driver."""
    with pytest.raises(InvalidArgument):
        guard.transaction(5, commands)
    assert not redis_client.keys("*"), "nothing was sent"


def test_as_many_as_allowed(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """The documented bounds would not be the real ones."""
    assert guard.transaction(5, [["INCR", "n"]] * 1000)[-1] == 1000
    assert guard.execute(5, "RPUSH", "list", *["x"] * 6998) == 6998


@pytest.mark.parametrize(
    "token", [0, -1, 1.5, 2**53, pytest.param(10**400, id="huge"), True, None, "5", b"5", 5.0]
)
def test_what_is_no_token(guard: RedisGuard, token: Any) -> None:
    """A token that nobody issued would lock the real holders out."""
    with pytest.raises(InvalidArgument):
        guard.check(token)
    with pytest.raises(InvalidArgument):
        guard.execute(token, "SET", "balance", "1")
    assert guard.highest() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"resource": ""},
        {"resource": "a{b"},
        pytest.param({"resource": "a" * 513}, id="long resource"),
        {"resource": 5},
        {"resource": "a\n"},
        {"name": ""},
        {"name": "a}"},
        {"tag": ""},
        {"tag": "{42}"},
        {"namespace": ""},
        {"namespace": "a{b}"},
    ],
    ids=str,
)
def test_what_is_no_guard(redis_client: redis.Redis, options: Any) -> None:
    """The mark would be a key in another slot, or no key at all."""
    with pytest.raises(InvalidArgument):
        RedisGuard(redis_client, **{"resource": "orders", **options})


def test_a_guard_wants_a_client() -> None:
    """A URL in the place of a client would fail much later."""
    with pytest.raises(InvalidArgument, match=r"redis\.Redis"):
        RedisGuard("redis://localhost", "orders")  # type: ignore[arg-type]


def test_where_the_mark_is(redis_client: redis.Redis) -> None:
    """On a Cluster the mark would be in another slot than the keys that it protects."""
    RedisGuard(redis_client, "orders").check(1)
    RedisGuard(redis_client, "orders", tag="42").check(2)
    RedisGuard(redis_client, "orders", namespace="other", tag="42").check(3)
    assert sorted(redis_client.keys("*")) == [
        b"fencer:{42}:guard:orders",
        b"fencer:{orders}:guard",
        b"other:{42}:guard:orders",
    ]


def test_keys_are_told_to_the_server(redis_client: redis.Redis) -> None:
    """A Cluster, or a user with few rights, would refuse keys that are not declared."""
    redis_client.execute_command(
        "ACL", "SETUSER", "writer", "on", ">secret", "+@all", "~fencer:*", "~{42}:*"
    )
    url = redis_client.connection_pool.connection_kwargs["path"]
    with redis.Redis(unix_socket_path=url, username="writer", password="secret") as poor:
        guard = RedisGuard(poor, "orders", tag="42")
        assert guard.execute(5, "SET", "{42}:balance", "1") == b"OK"
        assert guard.execute(5, "MGET", "{42}:balance", keys=["{42}:balance"]) == [b"1"]
        with pytest.raises(fencer.StoreError):
            guard.execute(5, "PING", keys=["theirs"])
    redis_client.execute_command("ACL", "DELUSER", "writer")


def test_guards_of_different_resources(redis_client: redis.Redis) -> None:
    """A busy resource would shut the writers of another one out."""
    RedisGuard(redis_client, "orders").check(9)
    RedisGuard(redis_client, "invoices").check(5)
    assert RedisGuard(redis_client, "orders").highest() == 9


def test_lua_numbers_are_not_floats(guard: RedisGuard, redis_client: redis.Redis) -> None:
    """Words that are numbers would be rounded on the way."""
    guard.execute(5, "SET", "n", 2**63 - 1)
    assert redis_client.get("n") == b"9223372036854775807"
    guard.execute(5, "SET", 12, 0.1)
    assert redis_client.get("12") == b"0.1"
