"""The peers for threads: each the same three verbs, as its own documentation has them done.

All have the driver's connections with our options, one object per lock, and one server. A peer that
is not installed is left out, by name and reason.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from fencer.bench.ready import TTL, client, kept


class Kind:
    """What is told of a peer, without its being opened.

    Attributes:
        name: short; but for redis-py's own lock, that of its distribution.
        distribution, module: what must be installed.
        labels: for people: how it renews, acquires and releases, and is waited for.
        longest: how many seconds may lie between two looks of one who waits. A holder keeps it for
            a random time of up to that: when it releases must not depend on when the other looks.
        note: why it cannot be installed as others can.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    module: ClassVar[str]
    labels: ClassVar[dict[str, str]]
    longest: ClassVar[float] = 0.01
    note: ClassVar[str] = ""


class Peer(Kind):
    """One lock of a peer."""

    def __init__(self, url: str, key: str, opened: contextlib.ExitStack) -> None:
        """Make ready; what is to be closed goes into ``opened``."""
        raise NotImplementedError

    def acquire(self, wait: float = 0.0) -> None:
        """Get it, waiting for so many seconds."""
        raise NotImplementedError

    def renew(self) -> None:
        """Have the full ttl again."""
        raise NotImplementedError

    def release(self) -> None:
        """Give it back."""
        raise NotImplementedError


class RedisPy(Peer):
    name = "lock"
    distribution = module = "redis"
    labels: ClassVar = {
        "renew": "redis-py Lock.reacquire()",
        "acquire": "redis-py Lock.acquire(), release()",
        "handover": "redis-py Lock, sleep=0.1 (default)",
    }
    longest = 0.1

    def __init__(self, url: str, key: str, opened: contextlib.ExitStack) -> None:
        self._lock = opened.enter_context(client(url)).lock(key, timeout=TTL)

    def acquire(self, wait: float = 0.0) -> None:
        kept(self._lock.acquire(blocking=wait > 0, blocking_timeout=wait or None), "acquire")

    def renew(self) -> None:
        self._lock.reacquire()

    def release(self) -> None:
        self._lock.release()


class PythonRedisLock(Peer):
    name = distribution = "python-redis-lock"
    module = "redis_lock"
    labels: ClassVar = {
        "renew": "python-redis-lock Lock.extend()",
        "acquire": "python-redis-lock acquire(), release()",
        "handover": "python-redis-lock Lock, BLPOP",
    }

    def __init__(self, url: str, key: str, opened: contextlib.ExitStack) -> None:
        self._lock = imported(self).Lock(opened.enter_context(client(url)), key, expire=int(TTL))

    def acquire(self, wait: float = 0.0) -> None:
        kept(self._lock.acquire(blocking=wait > 0, timeout=wait or None), "acquire")

    def renew(self) -> None:
        self._lock.extend()

    def release(self) -> None:
        self._lock.release()


class Pottery(Peer):
    name = distribution = module = "pottery"
    labels: ClassVar = {
        "renew": "pottery Redlock.extend()",
        "acquire": "pottery Redlock.acquire(), release()",
        "handover": "pottery Redlock, polls",
    }
    longest = 0.2

    def __init__(self, url: str, key: str, opened: contextlib.ExitStack) -> None:
        masters = {opened.enter_context(client(url))}
        self._lock = imported(self).Redlock(
            key=key, masters=masters, auto_release_time=TTL, num_extensions=sys.maxsize
        )

    def acquire(self, wait: float = 0.0) -> None:
        kept(self._lock.acquire(blocking=wait > 0, timeout=wait or -1), "acquire")

    def renew(self) -> None:
        self._lock.extend()

    def release(self) -> None:
        self._lock.release()


class RedlockNg(Peer):
    name = distribution = "redlock-ng"
    module = "redlock"
    labels: ClassVar = {
        "renew": "redlock-ng Redlock.extend()",
        "acquire": "redlock-ng acquire(), release()",
        "handover": "redlock-ng Redlock, polls",
    }
    longest = 0.3
    note = "it wants redis-py below 6"

    def __init__(self, url: str, key: str, opened: contextlib.ExitStack) -> None:
        self._locks = imported(self).Redlock([url])
        for instance in self._locks.client.instances:
            opened.callback(instance.close)
        self._key, self._lock = key, None

    def acquire(self, wait: float = 0.0) -> None:
        self._lock = self._locks.acquire(self._key, ttl=int(TTL * 1_000), blocking=wait > 0)
        kept(self._lock is not None, "acquire")

    def renew(self) -> None:
        kept(self._locks.extend(self._lock, int(TTL * 1_000)), "extend")

    def release(self) -> None:
        self._locks.release(self._lock)


class Fencekit(Peer):
    name = distribution = module = "fencekit"
    labels: ClassVar = {
        "renew": "fencekit DistributedLock.extend()",
        "acquire": "fencekit acquire(), release()",
        "handover": "fencekit DistributedLock, polls",
    }
    longest = 0.05

    def __init__(self, url: str, key: str, opened: contextlib.ExitStack) -> None:
        own = opened.enter_context(client(url, decode_responses=True))
        self._locks = imported(self).DistributedLock(own)
        self._key, self._ttl, self._handle = key, timedelta(seconds=TTL), None

    def acquire(self, wait: float = 0.0) -> None:
        waiting = {"blocking": True, "wait": timedelta(seconds=wait)} if wait else {}
        self._handle = self._locks.acquire(self._key, ttl=self._ttl, **waiting)

    def renew(self) -> None:
        self._locks.extend(self._handle, ttl=self._ttl)

    def release(self) -> None:
        self._locks.release(self._handle)


class Mithril(Peer):
    name = distribution = "mithril-locks"
    module = "mithril"
    labels: ClassVar = {
        "renew": "mithril-locks Lock.renew()",
        "acquire": "mithril-locks Lock.acquire(), release()",
        "handover": "mithril-locks Lock, BLPOP",
    }
    note = "it wants redis-py below 8"

    def __init__(self, url: str, key: str, opened: contextlib.ExitStack) -> None:
        self._module = quiet_mithril(self)
        backends = importlib.import_module("mithril.backends")
        self._backend = backends.RedisBackend(opened.enter_context(client(url)))
        self._key = key
        self._lock: Any = None

    def acquire(self, wait: float = 0.0) -> None:
        # Each lock is for one use.
        lock = self._module.Lock(self._key, backend=self._backend, ttl=TTL, timeout=wait)
        lock.acquire(blocking=wait > 0)
        self._lock = lock

    def renew(self) -> None:
        self._lock.renew()

    def release(self) -> None:
        self._lock.release()


PEERS: tuple[type[Peer], ...] = (RedisPy, PythonRedisLock, Pottery, RedlockNg, Fencekit, Mithril)


def absent(kind: type[Kind]) -> str | None:
    """Why a peer cannot be measured here, if it cannot."""
    try:
        version(kind.distribution)
    except PackageNotFoundError:
        return f"not installed ({kind.note})" if kind.note else "not installed"
    found = importlib.util.find_spec(kind.module.partition(".")[0])
    return None if found else f"there is no module {kind.module}"


def peer_versions(*kinds: type[Kind]) -> dict[str, str]:
    """The versions of those that are installed."""
    return {kind.distribution: version(kind.distribution) for kind in kinds if not absent(kind)}


def imported(kind: Kind) -> Any:
    """The module of a peer."""
    with _undisturbed():
        return importlib.import_module(kind.module)


def quiet_mithril(kind: Kind) -> Any:
    """The module of mithril-locks, which otherwise writes a line to stdout for each renew."""
    module = imported(kind)
    structlog: Any = importlib.import_module("structlog")
    module.configure_logging(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=True,
    )
    return module


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo what an import does to others: pottery puts a slower json.dumps in everybody's way."""
    dumps = json.dumps
    try:
        yield
    finally:
        json.dumps = dumps
