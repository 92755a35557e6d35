"""What is measured: renewing, acquiring and releasing, and writing through a guard.

Each of these cases has four contenders (for the others see `handover` and `keepalive`):

- ``floor``: a bare socket sends the bytes that our own client sends, taken from it in passing, and
  reads the reply. The server does the same work; what ours takes on top is what the client costs.
- ``ours``: the public API.
- ``lock``: redis-py's ``Lock``; for the guard ``set``: the same write with nothing to guard it.
- ``ping``: a bare socket sends ``PING``, which shows what the round trip alone takes.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

from fencer.bench import handover, keepalive
from fencer.bench.core import FLOOR, OURS, Case, Contender, Operation
from fencer.bench.ready import REPLY_BYTES, TTL, Ready, errors_translated, expect, replay, sent_by
from fencer.errors import StoreError
from fencer.guards import RedisGuard

CALLS = ("renew", "acquire", "guard")
"""The cases of one process that makes calls."""

NAMES = (*CALLS, "handover", "keepalive")
"""The names of all cases."""

_GRANTS = 500
"""So many acquires are prepared, each with a grant of its own. The scripts compare a grant with the
last events of its name only, so that it can be used again after that."""


@contextlib.contextmanager
def open_cases(
    url: str, names: Sequence[str] = NAMES, *, batch: int = 1_000
) -> Iterator[list[Case]]:
    """Make cases ready on a server; on leaving, their leases are released and their keys deleted.

    Args:
        url: a server, as `fencer.connect` takes it.
        names: which cases, some of `NAMES`.
        batch: how many leases ``keepalive`` renews in one go.

    Raises:
        StoreError: the server refused or cannot be reached, or answered what it should not, also
            inside the block.
        InvalidArgument: the URL cannot be read.
    """
    with errors_translated(), contextlib.ExitStack() as opened:
        ready = Ready(url, opened)
        makers: dict[str, Callable[[Ready], Case]] = {
            "renew": _renew,
            "acquire": _acquire,
            "guard": _guard,
            "handover": handover.case,
            "keepalive": lambda ready: keepalive.case(ready, batch),
        }
        yield [makers[name](ready) for name in names]


def _renew(ready: Ready) -> Case:
    lease = ready.lease("renew")
    (request,) = sent_by(ready.store.client, lease.renew, 1)
    lock = ready.peer.lock(ready.key("renew-lock"), timeout=TTL)
    lock.acquire(blocking=False)
    return Case(
        "renew",
        "renew",
        "lock",
        (
            ready.ping(),
            Contender(
                FLOOR,
                "bare socket, EVALSHA",
                replay(ready.socket, request, b"*2\r\n$7\r\nRENEWED"),
            ),
            Contender(OURS, "lease.renew()", lease.renew),
            Contender("lock", "redis-py Lock.reacquire()", lock.reacquire),
        ),
    )


def _acquire(ready: Ready) -> Case:
    acquire = ready.store.acquire
    lease = ready.lease("acquire")
    lease.release()

    def once() -> None:
        nonlocal lease
        lease = acquire("acquire")
        lease.release()

    get, give_back = sent_by(ready.store.client, once, 2)
    lock = ready.peer.lock(ready.key("acquire-lock"), timeout=lease.ttl)

    def ours() -> None:
        if not acquire("acquire").release():
            raise StoreError("the lease was gone before it was released")

    def theirs() -> None:
        if not lock.acquire(blocking=False):
            raise StoreError("redis-py's lock was not free")
        lock.release()

    return Case(
        "acquire",
        "acquire + release",
        "lock",
        (
            ready.ping(),
            Contender(
                FLOOR,
                "bare socket, two EVALSHA",
                _replay_acquire(ready.socket, get, give_back, lease.grant, lease.token),
            ),
            Contender(OURS, "acquire(), lease.release()", ours),
            Contender("lock", "redis-py Lock.acquire(), release()", theirs),
        ),
    )


def _guard(ready: Ready) -> Case:
    lease = ready.lease("guard")
    guard = RedisGuard(ready.store.client, "guard", namespace=ready.namespace)
    ready.forget_later(ready.keyspace.mark("guard", None))
    guarded, unguarded = ready.key("guarded"), ready.key("unguarded")

    def ours() -> None:
        guard.execute(lease, "SET", guarded, "42")

    (request,) = sent_by(ready.store.client, ours, 1)
    peer = ready.peer
    return Case(
        "guard",
        "guard execute, SET",
        "set",
        (
            ready.ping(),
            Contender(
                FLOOR,
                "bare socket, EVALSHA",
                replay(ready.socket, request, b"*3\r\n$8\r\nACCEPTED"),
            ),
            Contender(OURS, 'guard.execute(lease, "SET", …)', ours),
            Contender("set", "redis-py set(), unguarded", lambda: peer.set(unguarded, "42")),
        ),
    )


def _replay_acquire(
    bare: socket.socket, acquire: bytes, release: bytes, grant: str, token: int
) -> Operation:
    """Send the two requests, with a grant of their own each time and the token of the reply."""
    send, receive = bare.sendall, bare.recv
    granted, released = b"*3\r\n$7\r\nGRANTED\r\n:", b"*2\r\n$8\r\nRELEASED\r\n:"
    begin, end = len(granted), len(granted) + len(str(token))
    ending = len(released)
    prepared = cycle(_with_grants(acquire, release, grant.encode(), str(token).encode()))

    def operation() -> None:
        get, give, back = next(prepared)
        send(get)
        reply = receive(REPLY_BYTES)
        if reply[:begin] != granted:
            expect(reply, granted)
        send(give + reply[begin:end] + back)
        reply = receive(REPLY_BYTES)
        if reply[:ending] != released:
            expect(reply, released)

    return operation


def _with_grants(
    acquire: bytes, release: bytes, grant: bytes, token: bytes
) -> list[tuple[bytes, bytes, bytes]]:
    """The acquire, and what comes before and after the token in the release, for new grants."""
    if (acquire.count(grant), release.count(grant), release.count(token)) != (1, 1, 1):
        raise AssertionError("grant and token must be in each request once")
    prepared = []
    for _ in range(_GRANTS):
        fresh = secrets.token_hex(len(grant) // 2).encode()
        give, _, back = release.replace(grant, fresh).partition(token)
        prepared.append((acquire.replace(grant, fresh), give, back))
    return prepared
