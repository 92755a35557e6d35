"""What all cases need: a namespace of their own, connections, and an event loop.

Every key has the namespace in it, the peers' too, and is deleted at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from fencer._keys import Keyspace
from fencer._refusals import refusal
from fencer.bench.core import Contender, Operation
from fencer.bench.figures import PING
from fencer.bench.requests import PING as PING_REQUEST
from fencer.bench.requests import BareTransport, Words, replay, sent_by
from fencer.client import Fencer, Lease, connect
from fencer.errors import StoreError, StoreUnavailable

TTL = 600.0
"""Seconds; no turn of others lasts that long, and a run that was killed leaves nothing for long."""


def client(url: str, **options: Any) -> redis.Redis:
    """redis-py's client with our options: the driver's own, but nothing is sent twice."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)


def async_client(url: str) -> redis.asyncio.Redis:
    """The same for asyncio."""
    made: redis.asyncio.Redis = redis.asyncio.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0))
    return made


class Ready:
    """The connections of one run, each contender's own, and what is to be done after it.

    Attributes:
        url: the server.
        namespace, keyspace: where all keys are.
        store: our client.
        peer: a plain client of redis-py.
        socket: a bare socket.
        all_peers: whether others take part than redis-py.
    """

    def __init__(self, url: str, opened: contextlib.ExitStack, *, all_peers: bool = True) -> None:
        self.opened = opened
        self.all_peers = all_peers
        self.url = url
        self.namespace = f"fencer-bench-{secrets.token_hex(4)}"
        self.keyspace = Keyspace(self.namespace)
        self.peer = opened.enter_context(client(url))
        opened.callback(self._forget)
        self.store: Fencer = opened.enter_context(
            connect(url, namespace=self.namespace, keep=2 * TTL)
        )
        self.store.client.ping()
        self.socket = self.bare_socket()
        self._loop: asyncio.Runner | None = None

    @property
    def loop(self) -> asyncio.Runner:
        """The event loop of all contenders in asyncio."""
        if self._loop is None:
            self._loop = self.opened.enter_context(asyncio.Runner())
        return self._loop

    @property
    def transport(self) -> str:
        """``tcp``, ``tls`` or ``unix``."""
        return transport_of(self.url)

    def bare_socket(self) -> socket.socket:
        """Another bare socket."""
        return bare_socket(self.opened.enter_context(client(self.url)))

    def bare_transport(self) -> BareTransport:
        """A bare transport in the event loop."""
        bare = self.loop.run(BareTransport.on(self.bare_socket()))
        self.opened.callback(lambda: self.loop.run(bare.close()))
        return bare

    def key(self, word: str) -> str:
        """A key of this run."""
        return f"{self.namespace}:{word}"

    def lease(self, name: str) -> Lease:
        """A lease that is held until the end."""
        return self.store.acquire(name, ttl=TTL)

    def sent_by(self, operation: Operation, requests: int | None = None) -> list[Words]:
        """The requests that an operation sends; there must be so many."""
        sent = sent_by(self.peer, self.namespace, operation)
        if requests not in (None, len(sent)):
            raise AssertionError(f"{len(sent)} requests went by, and {requests} should have")
        return sent

    def ping(self) -> Contender:
        """The contender ``ping``."""
        return Contender(PING, "bare socket, PING", replay(self.socket, PING_REQUEST, b"+PONG"))

    def _forget(self) -> None:
        with contextlib.suppress(RedisError):
            forget(self.peer, self.namespace)


def forget(peer: redis.Redis, namespace: str) -> None:
    """Delete all keys with a namespace in them."""
    found: list[bytes] = []
    for key in peer.scan_iter(match=f"*{namespace}*", count=1_000):
        found.append(key)
        if len(found) == 1_000:
            peer.unlink(*found)
            found.clear()
    if found:
        peer.unlink(*found)


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


def bare_socket(client: redis.Redis) -> socket.socket:
    """The socket of a connection that the driver has opened, logged in and selected."""
    pool: Any = client.connection_pool
    bare: socket.socket = pool.get_connection()._sock
    # With a time limit Python would ask the system twice, first whether there is anything to read.
    bare.settimeout(None)
    return bare


def transport_of(url: str) -> str:
    """``tcp``, ``tls`` or ``unix``."""
    return {"unix": "unix", "rediss": "tls"}.get(url.partition(":")[0], "tcp")


def kept(held: bool, what: str) -> None:
    """Raise if something was lost, so that nobody is timed for doing nothing."""
    if not held:
        raise StoreError(f"{what} was not done")
