"""Guards with keys: what is not sealed does not count, so that nobody can forge a token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

import fencer
from fencer.embedded import Server
from fencer.errors import InvalidArgument, StaleToken
from fencer.guards import AsyncRedisGuard, FileGuard, MemoryGuard, RedisGuard
from fencer.guards.s3 import S3Guard
from fencer.sequencer import Sequencer
from tests.fix_api import Blocking, Loop
from tests.fix_s3 import BUCKET

OLD, NEW, FOREIGN = b"the old key 0123", b"the new key 0123", b"no key of ours 0"
GRANT, RIVAL = "ab" * 16, "cd" * 16
GUARDS = ["memory", "file", "redis", "asyncio redis", "s3"]


class Guarded:
    """A guard, and the write that is its own."""

    def __init__(self, guard: Any, write: Callable[[Any], object]) -> None:
        self.guard = guard
        self.write = write


@pytest.fixture(params=GUARDS)
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each guard, with two keys: the new one, and the old one until nobody uses it."""
    options: dict[str, Any] = {"name": "orders", "keys": [NEW, OLD]}
    if request.param == "memory":
        guard: Any = MemoryGuard("orders", **options)
        yield Guarded(guard, lambda token: _enter(guard.begin(token)))
    elif request.param == "file":
        guard = FileGuard(tmp_path / "orders", **options)
        yield Guarded(guard, lambda token: guard.write(token, "x"))
    elif request.param == "s3":
        key = f"sealed-{tmp_path.name}"
        guard = S3Guard(request.getfixturevalue("s3"), BUCKET, key, **options)
        yield Guarded(guard, lambda token: guard.put(token, "x"))
    else:
        client: redis.Redis = request.getfixturevalue("redis_client")
        server: Server = request.getfixturevalue("shared_server")
        if request.param == "redis":
            guard = RedisGuard(client, "orders", **options)
            yield Guarded(guard, lambda token: guard.execute(token, "SET", "a", 1))
            return
        loop = Loop()
        tasks = redis.asyncio.Redis.from_url(server.unix_url)
        guard = Blocking(AsyncRedisGuard(tasks, "orders", **options), loop)
        yield Guarded(guard, lambda token: guard.script(token, "return 1"))
        loop.run(tasks.aclose())
        loop.close()


def _enter(block: AbstractContextManager[object]) -> None:
    with block:
        pass


def test_what_is_not_sealed_is_refused(guarded: Guarded) -> None:
    """Whoever can send bytes could invent a huge token, and lock the real holder out."""
    huge = Sequencer("orders", 2**52, GRANT, "forger")
    sealed = huge.pack(NEW)
    for forged in (
        2**52,
        huge,
        huge.pack(),
        huge.pack(FOREIGN),
        sealed[:-1] + bytes([sealed[-1] ^ 1]),
        sealed.replace(b"orders", b"Orders"),
        sealed.replace(b"forger", b"leader"),
        sealed + b"\0",
        sealed[:-10],
        b"",
    ):
        for show in (guarded.guard.check, guarded.write):
            with pytest.raises(InvalidArgument):
                show(forged)
    assert guarded.guard.highest() == 0


def test_what_is_sealed_with_either_key_counts(guarded: Guarded) -> None:
    """Keys could not be changed while holders are at work."""
    guarded.write(Sequencer("orders", 5, GRANT, "host").pack(OLD))
    guarded.guard.check(Sequencer("orders", 6, GRANT, "host").pack(NEW))
    assert guarded.guard.highest() == 6
    with pytest.raises(StaleToken):
        guarded.write(Sequencer("orders", 5, GRANT, "host").pack(NEW))
    with pytest.raises(StaleToken):
        guarded.write(Sequencer("orders", 6, RIVAL, "host").pack(NEW))


def test_a_seal_does_not_cover_another_name(guarded: Guarded) -> None:
    """A holder of some other name could speak for this one."""
    with pytest.raises(InvalidArgument, match="tokens of 'orders'"):
        guarded.write(Sequencer("stock", 5, GRANT, "host").pack(NEW))


def test_a_lease_needs_no_seal(guarded: Guarded, redis_client: redis.Redis) -> None:
    """A holder in this process, which nobody can forge, would have to seal its own lease."""
    lease = fencer.Fencer(redis_client).acquire("orders")
    guarded.write(lease)
    assert guarded.guard.highest() == lease.token


@pytest.mark.parametrize(
    "keys", [[], b"0123456789abcdef", "0123456789abcdef", [b"short"], ["x" * 16]]
)
def test_keys_that_are_none_are_refused(keys: Any) -> None:
    """A guard would be open, or closed to everybody, and nobody would know."""
    with pytest.raises(InvalidArgument, match="key"):
        MemoryGuard("orders", keys=keys)
