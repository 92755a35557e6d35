"""What all cases need: a namespace of their own, connections, and bare sockets that replay.

All keys are in the namespace, and are deleted at the end.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import redis
from redis.exceptions import RedisError

from fencer._keys import Keyspace
from fencer._refusals import refusal
from fencer.bench.core import Contender, Operation
from fencer.client import Fencer, Lease, connect
from fencer.errors import StoreError, StoreUnavailable

TTL = 600.0
"""Seconds; no turn of others lasts that long, and a run that was killed leaves nothing for long."""

REPLY_BYTES = 1_024

_PING = b"*1\r\n$4\r\nPING\r\n"
_PONG = b"+PONG\r\n"


class Ready:
    """The connections of one run, each contender's own, and what is to be done after it.

    Attributes:
        url: the server.
        namespace, keyspace: where all keys are.
        store: our client.
        peer: a plain client of redis-py.
        socket: a bare socket.
    """

    def __init__(self, url: str, opened: contextlib.ExitStack) -> None:
        self.opened = opened
        self.url = url
        self.namespace = f"fencer-bench-{secrets.token_hex(4)}"
        self.keyspace = Keyspace(self.namespace)
        self.store: Fencer = opened.enter_context(
            connect(url, namespace=self.namespace, keep=2 * TTL)
        )
        self.store.client.ping()
        self.peer = opened.enter_context(redis.Redis.from_url(url))
        self.socket = self.bare_socket()

    def bare_socket(self) -> socket.socket:
        """Another bare socket."""
        return bare_socket(self.opened.enter_context(redis.Redis.from_url(self.url)))

    def key(self, word: str) -> str:
        """A key that is deleted at the end."""
        key = f"{self.namespace}:{word}"
        self.forget_later(key)
        return key

    def lease(self, name: str) -> Lease:
        """A lease that is held until the end."""
        self.forget_names_later(name)
        return self.store.acquire(name, ttl=TTL)

    def forget_names_later(self, *names: str) -> None:
        """Delete what the store knows of some names at the end."""
        self.forget_later(*(key for name in names for key in astuple(self.keyspace.of(name))))

    def forget_later(self, *keys: str) -> None:
        """Delete some keys at the end, whatever else fails."""

        def forget() -> None:
            with contextlib.suppress(RedisError):
                for start in range(0, len(keys), 1_000):
                    self.peer.delete(*keys[start : start + 1_000])

        self.opened.callback(forget)

    def ping(self) -> Contender:
        """The contender ``ping``."""
        return Contender("ping", "bare socket, PING", replay(self.socket, _PING, b"+PONG"))


@contextlib.contextmanager
def errors_translated() -> Iterator[None]:
    """Raise our own errors for what goes wrong between this process and the server."""
    try:
        yield
    except RedisError as error:
        raise refusal(error) from error
    except OSError as error:
        raise StoreUnavailable(
            f"no answer from the server ({error})", maybe_applied=True
        ) from error


def sent_by(client: redis.Redis, operation: Operation, requests: int) -> list[bytes]:
    """Return what the client sends for an operation that the server has done once before."""
    operation()  # The first time a server may not know the script.
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    pool.release(connection)
    send = connection.send_packed_command
    sent: list[bytes] = []

    def noting(command: Sequence[bytes], *rest: Any, **options: Any) -> None:
        sent.append(b"".join(command))
        send(command, *rest, **options)

    connection.send_packed_command = noting
    try:
        operation()
    finally:
        del connection.send_packed_command
    if len(sent) != requests:
        raise AssertionError(f"{len(sent)} requests went by, and {requests} should have")
    return sent


def replay(bare: socket.socket, request: bytes, begins: bytes) -> Operation:
    """Send a request and read its reply, which must be the same each time."""
    send, receive = bare.sendall, bare.recv
    send(request)
    expected = receive(REPLY_BYTES)
    expect(expected, begins)

    def operation() -> None:
        send(request)
        reply = receive(REPLY_BYTES)
        if reply != expected:
            expect(reply, expected)

    return operation


def replay_all(bare: socket.socket, requests: Sequence[bytes], begins: bytes) -> Operation:
    """Send requests that each ask for many things, and read the replies, the same each time."""
    send, receive = bare.sendall, bare.recv

    def replies(request: bytes) -> bytes:
        # The PING tells where the replies end.
        send(request + _PING)
        parts = [receive(1 << 16)]
        while not parts[-1].endswith(_PONG):
            parts.append(receive(1 << 16))
            if len(parts[-1]) < len(_PONG):
                parts[-2:] = [parts[-2] + parts[-1]]
        return b"".join(parts)

    expected = [replies(request) for request in requests]
    for each in expected:
        expect(each, begins)

    def operation() -> None:
        for request, due in zip(requests, expected, strict=True):
            reply = replies(request)
            if reply != due:
                expect(reply, due)

    return operation


def expect(reply: bytes, begins: bytes) -> None:
    """Raise unless a reply is what was due."""
    if not reply.startswith(begins):
        raise StoreError(f"the server answered {reply[:200]!r} where {begins!r} was due")


def bare_socket(client: redis.Redis) -> socket.socket:
    """The socket of a connection that the driver has opened, logged in and selected."""
    pool: Any = client.connection_pool
    bare: socket.socket = pool.get_connection()._sock
    # With a time limit Python would ask the system twice, first whether there is anything to read.
    bare.settimeout(None)
    return bare
