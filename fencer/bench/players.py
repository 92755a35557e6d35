"""The contenders of a hand-over: each the same two verbs, for two processes on two sides.

A player takes what it waits for, blocking, and passes it on to whoever waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from fencer.aio import AsyncLease, connect_async
from fencer.bench.figures import FLOOR, OURS
from fencer.bench.peers import PEERS, Kind, Peer
from fencer.bench.peers_async import ASYNC_PEERS, AsyncPeer
from fencer.bench.ready import TTL, bare_socket, client, kept
from fencer.bench.requests import REPLY_BYTES, expect
from fencer.client import Lease, connect

WAIT = 30.0
"""Seconds to wait at most; a hand-over never takes that long."""


class Player(Protocol):
    """One side of a hand-over."""

    def take(self) -> None:
        """Wait until it is handed over."""

    def hand_over(self) -> None:
        """Give it to whoever waits; called by the one who has it."""


class _Own(Kind):
    distribution = module = "redis"


class Floor(_Own):
    """As little as can wake a program in another process by way of the server."""

    name = FLOOR
    labels: ClassVar = {"handover": "bare sockets, PUBLISH to a subscriber"}

    def __init__(self, url: str, namespace: str, side: int, opened: contextlib.ExitStack) -> None:
        driver = opened.enter_context(client(url))
        own, other = (f"{namespace}:{number}".encode() for number in (side, 1 - side))
        self._publish = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$1\r\n1\r\n" % (len(other), other)
        self._in, self._out = bare_socket(driver), bare_socket(driver)
        self._in.settimeout(WAIT)
        self._in.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(own), own))
        _receive(self._in)
        self._first = side == 0

    def take(self) -> None:
        if self._first:
            self._first = False
            return
        _receive(self._in)

    def hand_over(self) -> None:
        self._out.sendall(self._publish)
        expect(_receive(self._out), b":1")


class Ours(_Own):
    """Our client for threads."""

    name = OURS
    labels: ClassVar = {"handover": "lease.release() to acquire(wait=…)"}

    def __init__(self, url: str, namespace: str, side: int, opened: contextlib.ExitStack) -> None:
        self._store = opened.enter_context(connect(url, namespace=namespace, keep=2 * TTL))
        self._lease: Lease | None = None

    def take(self) -> None:
        self._lease = self._store.acquire("handover", ttl=TTL, wait=WAIT)

    def hand_over(self) -> None:
        assert self._lease is not None
        kept(self._lease.release(), "release")


class OursAwaited(_Own):
    """Our client for asyncio."""

    name = "ours-asyncio"
    labels: ClassVar = {"handover": "await release() to await acquire(wait=…)"}

    def __init__(self, url: str, namespace: str, side: int, opened: contextlib.ExitStack) -> None:
        self._loop = opened.enter_context(asyncio.Runner())
        self._lease: AsyncLease | None = None

        async def store() -> Any:
            return connect_async(url, namespace=namespace, keep=2 * TTL)

        self._store = self._loop.run(store())
        opened.callback(lambda: self._loop.run(self._store.close()))

    def take(self) -> None:
        waiting = self._store.acquire("handover-in-tasks", ttl=TTL, wait=WAIT)
        self._lease = self._loop.run(waiting)

    def hand_over(self) -> None:
        assert self._lease is not None
        kept(self._loop.run(self._lease.release()), "release")


class _PeerPlays:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def take(self) -> None:
        self._peer.acquire(WAIT)

    def hand_over(self) -> None:
        self._peer.release()


class _AsyncPeerPlays:
    def __init__(
        self, kind: type[AsyncPeer], url: str, key: str, opened: contextlib.ExitStack
    ) -> None:
        self._loop = opened.enter_context(asyncio.Runner())
        inside = contextlib.AsyncExitStack()
        self._peer = self._loop.run(kind.made(url, key, inside))
        opened.callback(lambda: self._loop.run(inside.aclose()))

    def take(self) -> None:
        self._loop.run(self._peer.acquire(WAIT))

    def hand_over(self) -> None:
        self._loop.run(self._peer.release())


_OWN = (Floor, Ours, OursAwaited)
_AWAITING = tuple(kind for kind in ASYNC_PEERS if "handover" in kind.labels)

KINDS: tuple[type[Kind], ...] = (*_OWN, *PEERS, *_AWAITING)
"""All contenders; of a peer that has a class for threads, that one."""


@contextlib.contextmanager
def player(name: str, url: str, namespace: str, side: int) -> Iterator[Player]:
    """One side, 0 or 1, of a kind; side 0 can take first."""
    key = f"{namespace}:handover-{name}"
    with contextlib.ExitStack() as opened:
        for own in _OWN:
            if own.name == name:
                yield own(url, namespace, side, opened)
                return
        for kind in PEERS:
            if kind.name == name:
                yield _PeerPlays(kind(url, key, opened))
                return
        for awaiting in _AWAITING:
            if awaiting.name == name:
                yield _AsyncPeerPlays(awaiting, url, key, opened)
                return
        raise ValueError(f"nobody is called {name}")


def _receive(bare: socket.socket) -> bytes:
    return bare.recv(REPLY_BYTES)
