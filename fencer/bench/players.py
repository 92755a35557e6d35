"""The contenders of a hand-over: each the same two verbs, for two processes on two sides.

A player takes what it waits for, blocking, and passes it on to whoever waits. Which peers there
are, is asked of the installed packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import secrets
import socket
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import redis
import redis.asyncio

from fencer._keys import Keyspace
from fencer.bench.core import FLOOR, OURS
from fencer.bench.ready import REPLY_BYTES, TTL, bare_socket, expect
from fencer.client import Lease, connect
from fencer.errors import StoreError

_WAIT = 30.0
"""Seconds to wait at most; a hand-over never takes that long."""


class Player(Protocol):
    """One side of a hand-over."""

    def take(self) -> None:
        """Wait until it is handed over."""

    def hand_over(self) -> None:
        """Give it to whoever waits; called by the one who has it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A contender of a hand-over.

    Attributes:
        name: short; for a peer, that of its distribution.
        label: what it is, for people.
        module: the module that must be there.
        longest: the holder keeps it for a random time of up to so many seconds. A peer that looks
            again and again needs as much as lies between two looks: the time of a release must
            not depend on that of a look.
    """

    name: str
    label: str
    module: str = "redis"
    longest: float = 0.01

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return importlib.util.find_spec(self.module) is not None


KINDS = (
    Kind(FLOOR, "bare sockets, PUBLISH to a subscriber"),
    Kind(OURS, "lease.release() to acquire(wait=…)"),
    Kind("lock", "redis-py Lock, sleep=0.1 (default)", longest=0.1),
    Kind("python-redis-lock", "python-redis-lock Lock, BLPOP", "redis_lock"),
    Kind("redis-fifo-lock", "redis-fifo-lock FifoLock, asyncio", "redis_fifo_lock"),
)


@contextlib.contextmanager
def player(kind: str, url: str, namespace: str, side: int) -> Iterator[Player]:
    """One side, 0 or 1, of a kind; side 0 can take first."""
    with contextlib.ExitStack() as opened:
        if kind == OURS:
            yield _Ours(url, namespace, opened)
        elif kind == FLOOR:
            yield _Floor(url, namespace, side, opened)
        elif kind == "lock":
            yield _Lock(url, namespace, opened)
        elif kind == "python-redis-lock":
            yield _PythonRedisLock(url, namespace, opened)
        else:
            yield _RedisFifoLock(url, namespace, opened)


def forget(client: redis.Redis, namespace: str) -> None:
    """Delete the keys of all kinds."""
    fifo = f"{{{_fifo(namespace)}}}:"
    fences: Any = client.get(f"{fifo}fence")
    leavings = [f"{fifo}rel:{fence + 1}" for fence in range(int(fences or 0))]
    client.delete(
        *astuple(Keyspace(namespace).of("handover")),
        _lock(namespace),
        f"lock:{_lock(namespace)}",
        f"lock-signal:{_lock(namespace)}",
        *(fifo + last for last in ("q", "h", "seq", "fence")),
        *leavings,
    )


def _lock(namespace: str) -> str:
    return f"{namespace}:handover-lock"


def _fifo(namespace: str) -> str:
    return f"{namespace}:handover-fifo"


class _Ours:
    def __init__(self, url: str, namespace: str, opened: contextlib.ExitStack) -> None:
        self._store = opened.enter_context(connect(url, namespace=namespace, keep=2 * TTL))
        self._lease: Lease | None = None

    def take(self) -> None:
        self._lease = self._store.acquire("handover", ttl=TTL, wait=_WAIT)

    def hand_over(self) -> None:
        if self._lease is None or not self._lease.release():
            raise StoreError("the lease was gone before it was released")


class _Floor:
    """As little as can wake a program in another process by way of the server."""

    def __init__(self, url: str, namespace: str, side: int, opened: contextlib.ExitStack) -> None:
        client = opened.enter_context(redis.Redis.from_url(url))
        pool: Any = client.connection_pool
        own, other = (f"{namespace}:{number}".encode() for number in (side, 1 - side))
        self._publish = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$1\r\n1\r\n" % (len(other), other)
        self._in, self._out = bare_socket(client), bare_socket(client)
        self._in.settimeout(_WAIT)
        self._in.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(own), own))
        _receive(self._in)
        self._first = side == 0
        opened.callback(pool.disconnect)

    def take(self) -> None:
        if self._first:
            self._first = False
            return
        _receive(self._in)

    def hand_over(self) -> None:
        self._out.sendall(self._publish)
        expect(_receive(self._out), b":1")


def _receive(bare: socket.socket) -> bytes:
    return bare.recv(REPLY_BYTES)


class _Lock:
    def __init__(self, url: str, namespace: str, opened: contextlib.ExitStack) -> None:
        client = opened.enter_context(redis.Redis.from_url(url))
        self._lock = client.lock(_lock(namespace), timeout=TTL, blocking_timeout=_WAIT)

    def take(self) -> None:
        if not self._lock.acquire():
            raise StoreError("redis-py's lock was not handed over")

    def hand_over(self) -> None:
        self._lock.release()


class _PythonRedisLock:
    def __init__(self, url: str, namespace: str, opened: contextlib.ExitStack) -> None:
        client = opened.enter_context(redis.Redis.from_url(url))
        module: Any = importlib.import_module("redis_lock")
        self._lock = module.Lock(client, _lock(namespace), expire=int(TTL), id=secrets.token_hex(8))

    def take(self) -> None:
        if not self._lock.acquire(timeout=_WAIT):
            raise StoreError("python-redis-lock's lock was not handed over")

    def hand_over(self) -> None:
        self._lock.release()


class _RedisFifoLock:
    def __init__(self, url: str, namespace: str, opened: contextlib.ExitStack) -> None:
        self._loop = opened.enter_context(asyncio.Runner())
        client = redis.asyncio.Redis.from_url(url)
        opened.callback(lambda: self._loop.run(client.aclose()))
        module: Any = importlib.import_module("redis_fifo_lock")
        self._lock = module.FifoLock(
            client,
            _fifo(namespace),
            lease_ms=int(TTL * 1_000),
            max_hold_ms=int(TTL * 2_000),
        )
        self._lease: Any = None

    def take(self) -> None:
        self._lease = self._loop.run(self._lock.acquire(timeout=_WAIT))

    def hand_over(self) -> None:
        self._loop.run(self._lock.release(self._lease))
