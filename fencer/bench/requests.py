"""The floor's requests: what our own client sends, overheard on the server, and sent again.

They are overheard by ``MONITOR``, whatever way they come; they go again as prebuilt bytes, through
a bare socket or, in asyncio, through a bare transport.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import redis

from fencer.bench.core import Operation
from fencer.errors import StoreError

Words: TypeAlias = tuple[bytes, ...]
Spoken: TypeAlias = tuple[str, ...]
Awaited: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

REPLY_BYTES = 1_024
PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"

_GRANTS = 500
"""So many acquires are prepared, each with a grant of its own. The scripts compare a grant with the
last events of its name only, so that it can be used again after that."""

_GRANTED = b"GRANTED\r\n:"
_RELEASED = b"RELEASED\r\n"
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


def sent_by(client: redis.Redis, namespace: str, operation: Operation) -> list[Words]:
    """Return the requests about a namespace that an operation sends, which was done once before.

    Args:
        client: a client that looks on; not the one that sends.
        namespace: what does not occur in it is somebody else's.
        operation: is done twice; its second time counts.
    """
    operation()  # The first time a server may not know the script.
    mark = f"{namespace}:{secrets.token_hex(8)}".encode()
    with client.monitor() as monitor:  # type: ignore[no-untyped-call]
        operation()
        client.echo(mark)
        sent = []
        while mark not in (line := monitor.connection.read_response()):
            client_at, _, words = line.partition(b"] ")
            if namespace.encode() in words and not client_at.endswith(b" lua"):
                sent.append(tuple(map(_unescaped, _QUOTED.findall(words))))
    return sent


def packed(words: Words) -> bytes:
    """A request as it goes over the wire."""
    sized = (b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return b"*%d\r\n%b" % (len(words), b"".join(sized))


def spoken(words: Words) -> Spoken:
    """The arguments of an EVALSHA, for a driver to send."""
    verb, *rest = (word.decode() for word in words)
    if verb.upper() != "EVALSHA":
        raise AssertionError(f"{verb} was sent where an EVALSHA was due")
    return tuple(rest)


def replay(bare: socket.socket, request: bytes, contains: bytes) -> Operation:
    """Send a request and read its reply, which must be the same each time."""
    send, receive = bare.sendall, bare.recv
    # The PING tells where the reply ends.
    send(request + PING)
    expected = b""
    while not expected.endswith(PONG):
        expected += receive(REPLY_BYTES)
    expected = expected.removesuffix(PONG)
    expect(expected, contains)

    def operation() -> None:
        send(request)
        reply = receive(REPLY_BYTES)
        while len(reply) < len(expected):  # Some servers send it in parts.
            reply += receive(REPLY_BYTES)
        if reply != expected:
            expect(reply, expected)

    return operation


def replay_all(bare: socket.socket, requests: Sequence[bytes], contains: bytes) -> Operation:
    """Send many requests at once, and read the replies, which must be the same each time."""
    # The PING tells where the replies end.
    everything = b"".join(requests) + PING

    def replies() -> bytes:
        bare.sendall(everything)
        got = bytearray()
        while not got.endswith(PONG):
            got += bare.recv(1 << 16)
        return bytes(got)

    expected = replies()
    expect(expected, contains)

    def operation() -> None:
        if (reply := replies()) != expected:
            expect(reply, expected)

    return operation


class Rounds:
    """Acquire and release, in requests that have a grant of their own each time."""

    def __init__(self, acquire: Words, release: Words, grant: str, token: int) -> None:
        old, self._token = grant.encode(), b"%d" % token
        if not any(old in word for word in acquire) or release.count(self._token) != 1:
            raise AssertionError("the grant is in each acquire, and the token once in each release")
        fresh = [secrets.token_hex(len(old) // 2).encode() for _ in range(_GRANTS)]
        self._words = [[with_other(each, old, new) for each in (acquire, release)] for new in fresh]

    def as_bytes(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """For ever: an acquire, and what comes before and after the token in its release."""
        prepared = []
        for acquire, release in self._words:
            give, _, back = packed(release).partition(self._token)
            prepared.append((packed(acquire), give, back))
        return cycle(prepared)

    def as_spoken(self) -> Iterator[tuple[Spoken, Spoken, Spoken]]:
        """The same as arguments for a driver."""
        at = self._words[0][1].index(self._token) - 1  # without the verb
        prepared = []
        for acquire, release in self._words:
            words = spoken(release)
            prepared.append((spoken(acquire), words[:at], words[at + 1 :]))
        return cycle(prepared)

    def token_in(self, reply: bytes) -> bytes:
        """The token of the reply to an acquire."""
        begin = reply.find(_GRANTED) + len(_GRANTED)
        if begin < len(_GRANTED):
            expect(reply, _GRANTED)
        return reply[begin : begin + len(self._token)]

    @staticmethod
    def released(reply: bytes) -> None:
        """Raise unless this is the reply to a release."""
        if _RELEASED not in reply:
            expect(reply, _RELEASED)


def replay_rounds(bare: socket.socket, rounds: Rounds) -> Operation:
    """Acquire and release on a bare socket."""
    send, receive, prepared = bare.sendall, bare.recv, rounds.as_bytes()

    def operation() -> None:
        get, give, back = next(prepared)
        send(get)
        send(give + rounds.token_in(receive(REPLY_BYTES)) + back)
        rounds.released(receive(REPLY_BYTES))

    return operation


class BareTransport(asyncio.Protocol):
    """As little as can send a request and await its reply in asyncio. Replies must be short."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._reply: asyncio.Future[bytes]

    @classmethod
    async def on(cls, bare: socket.socket) -> BareTransport:
        """One on a socket that is connected."""
        bare.setblocking(False)
        _, made = await asyncio.get_running_loop().create_connection(cls, sock=bare)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Wake the one who asked."""
        self._reply.set_result(data)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """Send a request, and await the reply."""
        self._reply = reply = self._loop.create_future()
        self._transport.write(request)
        return reply

    async def close(self) -> None:
        """Close the socket."""
        self._transport.close()
        await asyncio.sleep(0)  # It is closed in the next turn of the loop.

    async def replay(self, request: bytes, contains: bytes) -> Awaited:
        """As the function `replay`."""
        ask = self.ask
        expected = await ask(request)
        expect(expected, contains)

        async def operation() -> None:
            reply = await ask(request)
            if reply != expected:
                expect(reply, expected)

        return operation

    def replay_rounds(self, rounds: Rounds) -> Awaited:
        """As the function `replay_rounds`."""
        ask, prepared = self.ask, rounds.as_bytes()

        async def operation() -> None:
            get, give, back = next(prepared)
            token = rounds.token_in(await ask(get))
            rounds.released(await ask(give + token + back))

        return operation


def expect(reply: bytes, contains: bytes) -> None:
    """Raise unless a reply is what was due."""
    if contains not in reply:
        raise StoreError(f"the server answered {reply[:200]!r} where {contains!r} was due")


def with_other(words: Words, old: bytes, new: bytes) -> Words:
    """The request with another grant, or for another name."""
    return tuple(word.replace(old, new) for word in words)


def _unescaped(word: bytes) -> bytes:
    def meant(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes([int(escape[1:], 16)]) if escape[1:] else _ESCAPED.get(escape, escape)

    return _ESCAPE.sub(meant, word) if b"\\" in word else word
