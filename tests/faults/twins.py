"""Planted bugs: what others do in place of what Fencer does. Each must fail the check it faces.

A fault test that a broken twin passes as well proves nothing. These are those twins; none of them
is used anywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from fencer import StaleToken

LOCK = "twin:lock"
COUNTER = "twin:token"


def plain_counter(store: redis.Redis) -> Callable[[], int]:
    """A token from ``INCR``: starts again at 1 where the server has lost its data."""
    return lambda: int(store.incr(COUNTER))


def counter_in_the_lock(store: redis.Redis) -> Callable[[], int]:
    """A token that is kept in the lock's own key: it is gone as soon as the lease ends."""

    def mint() -> int:
        token = int(store.hincrby(LOCK, "token", 1))
        store.pexpire(LOCK, 50)
        return token

    return mint


def read_then_write(store: redis.Redis) -> Callable[[], int]:
    """A counter in two steps, read and written: two callers read the same number."""

    def mint() -> int:
        token = int(store.get(COUNTER) or 0) + 1
        time.sleep(0.001)
        store.set(COUNTER, token)
        return token

    return mint


def by_sha_only(store: redis.Redis) -> Callable[[], int]:
    """A script that is loaded once and then called by its SHA for ever."""
    sha = str(store.script_load(f"return redis.call('INCR', '{COUNTER}')"))
    return lambda: int(str(store.evalsha(sha, 0)))


def time_alone(store: redis.Redis) -> Callable[[], int]:
    """The server's time in microseconds, without a look at the last token."""

    def mint() -> int:
        seconds, microseconds = store.time()
        return int(seconds) * 1_000_000 + int(microseconds)

    return mint


class TwoStepGuard:
    """Looks at the mark, and writes afterwards: a newer holder can write in between."""

    def __init__(self, store: redis.Redis, resource: str) -> None:
        self._store = store
        self._resource = resource
        self._mark = f"twin:{resource}:guard"

    def execute(self, token: int, *command: str) -> None:
        """Check, then write."""
        highest = int(self._store.get(self._mark) or 0)
        if token < highest:
            raise StaleToken(self._resource, token, highest)
        self.pause()
        self._store.set(self._mark, token)
        self._store.execute_command(*command)

    def pause(self) -> None:
        """Where the process stops for a while."""
        time.sleep(0.01)


class NoGrantId:
    """A lock whose acquire is retried as a new one, and whose release deletes without a look."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._asked = 0

    def acquire(self, name: str, ttl: float) -> bool:
        """Take the lock, and try again where no answer came."""
        for _ in range(3):
            self._asked += 1
            try:
                return bool(
                    self._client.set(f"twin:{name}", self._asked, nx=True, px=int(ttl * 1000))
                )
            except redis.ConnectionError:
                continue
        return False

    def release(self, name: str) -> None:
        """Delete the key, whoever's it is by now."""
        self._client.delete(f"twin:{name}")

    def held(self, name: str) -> bool:
        """Whether anybody has it."""
        return bool(self._client.exists(f"twin:{name}"))


class BelievesFromTheReply:
    """A lock whose holder counts its time from when the reply came in."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._until = 0.0

    def acquire(self, name: str, ttl: float) -> None:
        """Take the lock."""
        self._client.set(f"twin:{name}", "me", px=int(ttl * 1000))
        self._until = time.monotonic() + ttl

    @property
    def valid(self) -> bool:
        """What the holder believes."""
        return time.monotonic() < self._until
