"""A TCP proxy that harms what passes through it: the network faults of the tests and the drills.

Everything runs on one asyncio loop in one thread; the public methods hand their work to that loop
and return when it is done, so a fault is in force when its method returns. The rules:

- Nothing is reordered. A close travels in line with the bytes before it, and waits as they do: a
  request that was delayed still arrives after its sender has given up.
- Where bytes are dropped, a close is dropped too, as in a real partition: the other end goes on
  believing in the connection.
- No network makes a hole in a TCP stream. A connection that lost bytes is never mended: `heal`
  resets it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Self

from fencer.errors import InvalidArgument


class Proxy:
    """Stands between clients and one server, and can delay, drop, swallow, cut, reset and refuse.

    It starts at construction, passes everything, and must be closed (it is a context manager).
    Any thread may call any method. Faults act on live and on new connections, and combine.

    Args:
        target: the server, as ``(host, port)`` or the path of a unix socket.
        host: the IPv4 address to listen on; the port is a free one, and stays the same.

    Attributes:
        host, port: where it listens.
        connections: accepted so far.
        swallowed: replies of which nothing was delivered.
        cut: replies of which only the first bytes were delivered.
        dropped: bytes and closes that went nowhere, either way, replies swallowed or cut aside.
        delayed: pieces held back for a while, either way.
        resets: connections reset.
    """

    def __init__(
        self, target: tuple[str, int] | str | os.PathLike[str], *, host: str = "127.0.0.1"
    ) -> None:
        self.connections = self.swallowed = self.cut = self.dropped = self.delayed = self.resets = 0
        self._target = target if isinstance(target, tuple) else os.fspath(target)
        # Bound for as long as the proxy lives, never listening: while the proxy refuses, nobody
        # else can be given its port.
        self._reservation = _bind(host, 0)
        self.host, self.port = self._reservation.getsockname()
        self._listener: socket.socket | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._trap: _Trap | None = None
        self._delay_requests = self._delay_replies = 0.0
        self._drop_requests = self._drop_replies = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"fencer-proxy-{self.port}", daemon=True
        )
        self._thread.start()
        self._do(self._listen)

    @property
    def url(self) -> str:
        """For `fencer.connect` and ``redis.from_url``."""
        return f"redis://{self.host}:{self.port}/0"

    def delay(self, *, requests: float = 0.0, replies: float = 0.0) -> None:
        """Hold back what is received from now on, for so many seconds each way; 0 is no delay."""
        if not (0 <= requests < float("inf") and 0 <= replies < float("inf")):
            raise InvalidArgument(
                f"delays are finite seconds of 0 or more, not requests={requests!r}, "
                f"replies={replies!r}"
            )

        def act() -> None:
            self._delay_requests, self._delay_replies = requests, replies

        self._do(act)

    def drop(self, *, requests: bool = True, replies: bool = True) -> None:
        """Let nothing through either way, or one way only, without a word: a partition.

        New connections are still accepted, and hear nothing. Lasts until `heal`, which resets
        every connection that lost something.
        """

        def act() -> None:
            self._drop_requests, self._drop_replies = requests, replies

        self._do(act)

    def swallow_reply(
        self,
        count: int = 1,
        *,
        match: bytes | None = None,
        then: Literal["cut", "silence"] = "cut",
    ) -> None:
        """Let the next matching request through, and deliver nothing of its reply.

        The first bytes that the server sends on that connection after the request has passed are
        taken for its reply. Replaces an earlier `swallow_reply` or `cut_reply` that still waits.

        Args:
            count: how many requests in all, over all connections, meet this fate; 1 or more.
            match: bytes in the request, such as ``b"EVALSHA"``, case as sent; ``None`` is any
                request, a new connection's ``HELLO`` included.
            then: ``cut`` closes the connection; ``silence`` keeps it open, and delivers no reply
                on it any more, while its requests still go through.
        """
        if then not in ("cut", "silence"):
            raise InvalidArgument(f"then is 'cut' or 'silence', not {then!r}")
        self._set_trap(_Trap(match, count, 0, then == "silence"))

    def cut_reply(self, after: int, *, match: bytes | None = None) -> None:
        """Deliver the first ``after`` bytes of the reply to the next matching request, then close.

        ``match`` and what counts as the reply are as in `swallow_reply`.
        """
        self._set_trap(_Trap(match, 1, after, False))

    def reset(self) -> None:
        """Send an RST on all live connections, to the client and to the server."""
        self._do(self._reset)

    def refuse(self) -> None:
        """Stop listening, so that connections are refused, and reset the live ones."""
        self._do(self._refuse)

    def heal(self) -> None:
        """End every fault, and listen again on the same port if that had stopped.

        Connections that lost bytes are reset; what is delayed already arrives when it is due.
        """
        self._do(self._heal)

    def close(self) -> None:
        """Reset all connections, and leave no thread and no socket. A second call does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reservation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # All that follows runs on the loop, `_do` and `_set_trap` aside.

    def _do(self, act: Callable[[], None]) -> None:
        done: Future[None] = Future()

        def run() -> None:
            try:
                act()
            except BaseException as error:
                done.set_exception(error)
            else:
                # A turn later: the loop has then closed the sockets of connections it aborts now.
                self._loop.call_soon(done.set_result, None)

        self._loop.call_soon_threadsafe(run)
        done.result(10)

    def _set_trap(self, trap: _Trap) -> None:
        if trap.count < 1 or trap.after < 0 or trap.match == b"":
            raise InvalidArgument(
                f"count is 1 or more, after 0 or more, match not empty: not {trap.count!r}, "
                f"{trap.after!r}, {trap.match!r}"
            )

        def act() -> None:
            self._trap = trap

        self._do(act)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bind(self.host, self.port)
            self._listener.listen(1024)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # the client has gone already
            return
        sock.setblocking(False)
        self.connections += 1
        link = _Link(self)
        self._links.add(link)
        link.opening = self._loop.create_task(self._open(link, sock))
        self._tasks.add(link.opening)
        link.opening.add_done_callback(self._tasks.discard)

    async def _open(self, link: _Link, sock: socket.socket) -> None:
        await self._loop.connect_accepted_socket(lambda: link.client, sock)
        try:
            if link.aborted:
                return
            if isinstance(self._target, str):
                await self._loop.create_unix_connection(lambda: link.server, self._target)
            else:
                await self._loop.create_connection(lambda: link.server, *self._target)
            link.client.transport.resume_reading()
        except OSError:  # no server there: the client's connection ends as well
            link.abort()

    def _reset(self) -> None:
        for link in list(self._links):
            link.abort()

    def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self._reset()

    def _heal(self) -> None:
        self._trap = None
        self._delay_requests = self._delay_replies = 0.0
        self._drop_requests = self._drop_replies = False
        for link in [link for link in self._links if link.torn]:
            link.abort()
        self._listen()

    async def _shut(self) -> None:
        self._refuse()
        while self._tasks or self._links:
            await asyncio.sleep(0)


@dataclass(slots=True)
class _Trap:
    """Waits for ``count`` requests that contain ``match``, to harm their replies."""

    match: bytes | None
    count: int
    after: int
    silence: bool


class _Link:
    """One client's connection, and the connection to the server that goes with it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client = _End(self, self._request, self._client_gone)
        self.server = _End(self, self._reply, self._server_gone)
        self.opening: asyncio.Task[None] | None = None
        self.aborted = False
        self.torn = False  # it has lost bytes or a close
        self.mute = False  # no reply is delivered any more
        self.trap: _Trap | None = None  # a matching request has passed: what is to happen
        self.left = 0  # bytes of the reply still to be delivered before that happens
        self.tail = b""  # the end of the last piece, for a match that is split over two

    def abort(self) -> None:
        """Reset both ends."""
        if not self.aborted:
            self.aborted = True
            self.proxy.resets += 1
        for end in (self.client, self.server):
            end.reset()
        if self.opening is not None and self.client.open:
            self.opening.cancel()
        self._forget()

    def _request(self, data: bytes) -> None:
        if self.proxy._drop_requests:
            self._lose(len(data))
            return
        self._spring(data)
        self._pass(self.client, lambda: self.server.write(data))

    def _spring(self, data: bytes) -> None:
        trap = self.proxy._trap
        if trap is None or self.trap is not None:
            return
        if trap.match is not None:
            seen = self.tail + data
            self.tail = seen[max(0, len(seen) - len(trap.match) + 1) :]
            if trap.match not in seen:
                return
        self.trap, self.left = trap, trap.after
        trap.count -= 1
        if trap.count == 0:
            self.proxy._trap = None

    def _reply(self, data: bytes) -> None:
        if self.proxy._drop_replies or self.mute:
            self._lose(len(data))
        elif self.trap is None or len(data) < self.left:
            self.left = max(0, self.left - len(data))
            self._pass(self.server, lambda: self.client.write(data))
        else:
            self._harm(self.trap, data[: self.left])

    def _harm(self, trap: _Trap, first: bytes) -> None:
        self.mute = self.torn = True
        if trap.after:
            self.proxy.cut += 1
            self._pass(self.server, lambda: self.client.write(first))
        else:
            self.proxy.swallowed += 1
        if not trap.silence:
            self._pass(self.server, self.client.close)

    def _client_gone(self) -> None:
        if self.proxy._drop_requests and not self.aborted:
            self._lose(1)
        else:
            self._pass(self.client, self.server.close)
        self._forget()

    def _server_gone(self) -> None:
        if (self.proxy._drop_replies or self.mute) and not self.aborted:
            self._lose(1)
        else:
            self._pass(self.server, self.client.close)
        self._forget()

    def _lose(self, amount: int) -> None:
        self.torn = True
        self.proxy.dropped += amount

    def _pass(self, source: _End, act: Callable[[], None]) -> None:
        proxy = self.proxy
        delay = proxy._delay_requests if source is self.client else proxy._delay_replies
        if delay:
            proxy.delayed += 1
        source.enqueue(delay, act)

    def _forget(self) -> None:
        if self.client.gone and (self.server.gone or (self.aborted and not self.server.open)):
            self.proxy._links.discard(self)


class _End(asyncio.Protocol):
    """One socket of a link, and the line of what it has received and not yet passed on."""

    transport: asyncio.Transport

    def __init__(
        self, link: _Link, receive: Callable[[bytes], None], lost: Callable[[], None]
    ) -> None:
        self.link = link
        self.receive = receive
        self.lost = lost
        self.open = self.gone = False
        self.line: deque[tuple[float, Callable[[], None]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.open = transport, True
        if self is self.link.client:
            transport.pause_reading()  # until the server's end is open
        if self.link.aborted:
            self.reset()

    def data_received(self, data: bytes) -> None:
        self.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open, self.gone = False, True
        self.lost()

    def write(self, data: bytes) -> None:
        if self.open and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        if self.open:
            self.transport.close()

    def reset(self) -> None:
        self.line.clear()
        if self.open:
            _linger_not(self.transport.get_extra_info("socket"))
            self.transport.abort()

    def enqueue(self, delay: float, act: Callable[[], None]) -> None:
        self.line.append((self.link.proxy._loop.time() + delay, act))
        if len(self.line) == 1:
            self._advance()

    def _advance(self) -> None:
        loop = self.link.proxy._loop
        while self.line and self.line[0][0] <= loop.time():
            self.line.popleft()[1]()
        if self.line:
            loop.call_at(self.line[0][0], self._advance)


def _bind(host: str, port: int) -> socket.socket:
    # Only where a socket says that it is TCP does asyncio turn Nagle's algorithm off. With it, a
    # second small piece waits for the other end's delayed acknowledgement, some 40 ms.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _linger_not(sock: socket.socket) -> None:
    """Make the next close send an RST and forget what was not sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
