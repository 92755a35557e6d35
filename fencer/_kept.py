"""The fast path: one connection of a pool that is kept from call to call.

To go through the pool, and through redis-py's connection, costs more than the call itself does. So
the wire keeps the connection that has answered last, and sends and reads on it without the layers
in between. Nothing else is different there:

- One is kept per pool, whoever calls. Who finds it in use takes another one from the pool.
- Before each use it is looked at, as the pool does. A connection that the server has closed, or has
  sent something on (a push of RESP3), or that redis-py wants replaced, goes back to the pool, which
  knows what to do about it.
- After an error it is closed and goes back to the pool: no unread reply meets another request, and
  a repetition goes the ordinary way.
- A forked child forgets it.

Only connections that were tested are kept: the plain ones of redis-py, over TCP and unix sockets,
with hiredis. Not those that look after themselves (health checks, credential providers, caching),
nor those of a small pool.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import hiredis
import redis
import redis.asyncio
from redis.exceptions import ConnectionError as BrokenError
from redis.exceptions import TimeoutError as LateError

from fencer._fork import forget_in_child

try:
    from redis._parsers.hiredis import NOT_ENOUGH_DATA, _AsyncHiredisParser, _HiredisParser
    from redis.connection import HiredisRespSerializer
except ImportError:
    ENABLED = False  # Another redis-py than those that were tested: the ordinary way still works.
else:
    ENABLED = True
    """The tests turn it off, to see that the ordinary way keeps the same promises."""

_ROOM = 8
"""A pool with fewer connections cannot spare one."""

_READ = 4_096
"""Bytes to read at once; the replies of our scripts are much shorter."""

_THREADS = redis.Connection, redis.UnixDomainSocketConnection
_ASYNCIO = redis.asyncio.Connection, redis.asyncio.UnixDomainSocketConnection

_NAME = "_fencer_kept"
_CLOSED = "Connection closed by server."


class Line:
    """A kept connection: what the wire needs of redis-py's, straight on its socket."""

    __slots__ = ("__weakref__", "_feed", "_gets", "_poll", "_reader", "_sock", "connection")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._sock = connection._sock
        self._reader = connection._parser._reader
        self._feed, self._gets = self._reader.feed, self._reader.gets
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        self._poll = poll.poll
        _block(self._sock, connection.socket_timeout)

    def fit(self) -> bool:
        """Whether it is as it was left: connected, with nothing to be read, and this process's."""
        connection = self.connection
        return not (
            connection._sock is not self._sock
            or connection.pid != os.getpid()
            or connection._should_reconnect
            or self._reader.has_data()
            or self._poll(0)
        )

    def restore(self) -> None:
        """Make the socket again what redis-py takes it for."""
        # A fork shares the socket's mode with its parent.
        if self.connection._sock is self._sock and self.connection.pid == os.getpid():
            self._sock.settimeout(self.connection.socket_timeout)

    def ask(self, packed: list[bytes]) -> Any:
        """Send a request and read the reply: the same as the following two, in one go."""
        try:
            self._sock.sendall(packed[0])
            self._feed(self._sock.recv(_READ))
        except OSError as error:
            raise _driver_error(error, self.connection) from error
        reply = self._gets()
        return reply if reply.__class__ is list else self._unusual(reply)

    def pack_command(self, *words: Any) -> list[bytes]:
        """Return the bytes of a request."""
        return [hiredis.pack_command(words)]

    def send_command(self, *words: Any) -> None:
        """Send a request."""
        try:
            self._sock.sendall(hiredis.pack_command(words))
        except OSError as error:
            raise _driver_error(error, self.connection) from error

    def read_response(self) -> Any:
        """Read a reply; one that is an error is raised."""
        return self._unusual(self._gets())

    def _unusual(self, reply: Any) -> Any:
        """Make a reply of what is not one: nothing yet, an error, a push that came before it."""
        while reply is NOT_ENOUGH_DATA:
            try:
                data = self._sock.recv(_READ)
            except OSError as error:
                raise _driver_error(error, self.connection) from error
            if not data:
                raise BrokenError(_CLOSED)
            self._feed(data)
            reply = self._gets()
        if isinstance(reply, hiredis.PushNotification):
            self.connection._parser.handle_push_response(reply)
            return self.read_response()
        if isinstance(reply, Exception):
            raise reply
        return reply


class AsyncLine:
    """The same on asyncio's streams. It belongs to one event loop."""

    __slots__ = (
        "__weakref__",
        "_feed",
        "_gets",
        "_loop",
        "_reader",
        "_stream",
        "_transport",
        "connection",
    )

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._loop = asyncio.get_running_loop()
        self._stream = connection._reader
        self._transport = connection._writer.transport
        self._reader = connection._parser._reader
        self._feed, self._gets = self._reader.feed, self._reader.gets

    def fit(self) -> bool:
        """Whether it is as it was left: connected, with nothing to be read, and this loop's."""
        connection, stream = self.connection, self._stream
        return not (
            connection._reader is not stream
            or connection._should_reconnect
            or self._reader.has_data()
            or stream._buffer
            or stream.at_eof()
            or stream.exception()
            or self._transport.is_closing()
            or asyncio.get_running_loop() is not self._loop
        )

    def restore(self) -> None:
        """Nothing was changed."""

    def pack_command(self, *words: Any) -> list[bytes]:
        """Return the bytes of a request."""
        return [hiredis.pack_command(words)]

    async def ask(self, packed: list[bytes]) -> Any:
        """Send a request and read the reply: the same as the following two, in one go."""
        await self._send(packed[0])
        return await self.read_response()

    async def send_command(self, *words: Any) -> None:
        """Send a request."""
        await self._send(hiredis.pack_command(words))

    async def _send(self, packed: bytes) -> None:
        self._transport.write(packed)
        if self._transport.get_write_buffer_size():  # The system takes no more for now.
            try:
                async with asyncio.timeout(self.connection.socket_timeout):
                    await self.connection._writer.drain()
            except OSError as error:
                raise _driver_error(error, self.connection) from error

    async def read_response(self) -> Any:
        """Read a reply; one that is an error is raised."""
        reply = self._gets()
        while reply is NOT_ENOUGH_DATA:
            try:
                async with asyncio.timeout(self.connection.socket_timeout):
                    data = await self._stream.read(_READ)
            except OSError as error:
                raise _driver_error(error, self.connection) from error
            if not data:
                raise BrokenError(_CLOSED)
            self._feed(data)
            reply = self._gets()
        if reply.__class__ is list:
            return reply
        if isinstance(reply, hiredis.PushNotification):
            await self.connection._parser.handle_push_response(reply)
            return await self.read_response()
        if isinstance(reply, Exception):
            raise reply
        return reply


L = TypeVar("L", Line, AsyncLine)


class Kept(Generic[L]):
    """The place of the kept connection of one pool.

    Args:
        pool: the pool.
        make: what a connection becomes when it is kept.
    """

    def __init__(self, pool: Any, make: type[L]) -> None:
        self.pool = pool
        self._make: Any = make
        self.wanted = _has_room(pool)
        """Whether one is to be kept at all."""
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew: in a forked child it is the parent's connection."""
        self._changing = threading.Lock()
        self._free: list[L] = []
        self.take: Callable[[], L] = self._free.pop
        """Take it out; ``IndexError`` if it is not there. What is taken out, nobody else has."""
        self.put: Callable[[L], None] = self._free.append
        """Put it back; it must have answered all that it was asked."""
        # Weak: should an interrupt lose it between two statements, another one can be kept.
        self._line: weakref.ref[L] | None = None

    def keep(self, connection: Any) -> bool:
        """Keep a connection that has just answered; whether that is done."""
        if not (self.wanted and ENABLED):
            return False
        with self._changing:
            if self._line is not None and self._line() is not None:
                return False
            try:
                if not connection.is_connected:
                    return False
                self.wanted = _is_tested(connection)
                if not self.wanted:
                    return False
                line = self._make(connection)
                if not line.fit():
                    line.restore()
                    return False
            except AttributeError:
                self.wanted = False  # not a redis-py that was tested
                return False
            self._line = weakref.ref(line)
            self.put(line)
        return True

    def end(self, line: L) -> Any:
        """Keep it no longer; return the connection, which is to go back to the pool."""
        with self._changing:
            if self._line is not None and self._line() is line:
                self._line = None
        line.restore()
        return line.connection


def kept_of(pool: Any, make: type[L]) -> Kept[L]:
    """The place of a pool.

    It hangs on the pool, to end with it. A table of ours would keep its pools alive, even a weak
    one, for connections know their pool.
    """
    known = vars(pool)
    kept: Kept[L] = known.get(_NAME) or known.setdefault(_NAME, Kept(pool, make))
    return kept


def _has_room(pool: Any) -> bool:
    plain = type(pool) in (redis.ConnectionPool, redis.asyncio.ConnectionPool)
    return plain and pool.max_connections >= _ROOM and getattr(pool, "cache", None) is None


def _is_tested(connection: Any) -> bool:
    """Whether it is of a kind on which redis-py does nothing that is left out here."""
    kind, parser = type(connection), type(connection._parser)
    if kind in _THREADS:
        known = (
            parser is _HiredisParser and type(connection._command_packer) is HiredisRespSerializer
        )
    else:
        known = kind in _ASYNCIO and parser is _AsyncHiredisParser
    return (
        known
        and not connection.health_check_interval
        and connection.credential_provider is None
        and connection.redis_connect_func is None
        and connection.encoder.encoding.lower() in ("utf-8", "utf8")
        and connection.socket_timeout != 0
    )


def _block(sock: socket.socket, seconds: float | None) -> None:
    """Have the system keep the timeout: Python's own costs a poll for each send and each read."""
    if seconds is not None:
        whole, part = divmod(max(1, round(seconds * 1_000_000)), 1_000_000)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, part))
            except OSError:
                return
    sock.settimeout(None)


def _driver_error(error: OSError, connection: Any) -> Exception:
    """What redis-py would have raised."""
    where = connection._host_error()
    if isinstance(error, TimeoutError | BlockingIOError):
        return LateError(f"Timeout of the connection to {where}")
    return BrokenError(f"Error on the connection to {where}: {error}")
