"""The same cases for asyncio: renewing, and acquiring and releasing, awaited in one event loop."""

from __future__ import annotations

import contextlib
from typing import Any

from fencer.aio import AsyncFencer, AsyncLease, connect_async
from fencer.bench.common import heard_rounds, tried
from fencer.bench.core import Case, Contender, Operation
from fencer.bench.figures import FLOOR, OURS, PING
from fencer.bench.peers_async import ASYNC_PEERS, AsyncPeer
from fencer.bench.ready import TTL, Ready, async_client, kept
from fencer.bench.requests import PING as PING_REQUEST
from fencer.bench.requests import BareTransport, packed, spoken


def renew_in_tasks(ready: Ready) -> Case:
    """``await lease.renew()`` beside its peers."""
    loop = ready.loop
    lease = loop.run(_store(ready).acquire("renew-in-tasks", ttl=TTL))
    (words,) = ready.sent_by(lambda: loop.run(lease.renew()), 1)
    by_hand, evalsha = spoken(words), _driver(ready).evalsha
    bare = ready.bare_transport()

    async def plain() -> None:
        kept(b"RENEWED" in await evalsha(*by_hand), "renew")

    peers, missing = tried(ready, "renew", ASYNC_PEERS, _renewing, loop=loop)
    return Case(
        "renew",
        "renew, awaited",
        "lock",
        (
            _ping(ready, bare),
            Contender(
                FLOOR,
                "bare transport, EVALSHA",
                loop.run(bare.replay(packed(words), b"RENEWED")),
                loop=loop,
            ),
            Contender("evalsha", "redis.asyncio evalsha()", plain, loop=loop),
            Contender(OURS, "await lease.renew()", lease.renew, loop=loop),
            *peers,
        ),
        missing,
        "asyncio",
        ready.transport,
    )


def acquire_in_tasks(ready: Ready) -> Case:
    """``await acquire()`` and ``await release()`` beside their peers."""
    loop = ready.loop
    acquire = _store(ready).acquire

    async def ours() -> AsyncLease:
        lease = await acquire("acquire-in-tasks")
        kept(await lease.release(), "release")
        return lease

    rounds = heard_rounds(ready, lambda: loop.run(ours()))
    by_hand, evalsha = rounds.as_spoken(), _driver(ready).evalsha
    bare = ready.bare_transport()

    async def plain() -> None:
        get, give, back = next(by_hand)
        _, token, *_ = await evalsha(*get)
        kept(b"RELEASED" in await evalsha(*give, token, *back), "release")

    peers, missing = tried(ready, "acquire", ASYNC_PEERS, _acquiring, loop=loop)
    return Case(
        "acquire",
        "acquire + release, awaited",
        "lock",
        (
            _ping(ready, bare),
            Contender(FLOOR, "bare transport, two EVALSHA", bare.replay_rounds(rounds), loop=loop),
            Contender("evalsha", "redis.asyncio evalsha(), twice", plain, loop=loop),
            Contender(OURS, "await acquire(), await release()", ours, loop=loop),
            *peers,
        ),
        missing,
        "asyncio",
        ready.transport,
    )


def opened(ready: Ready) -> contextlib.AsyncExitStack:
    """What is closed in the event loop before that ends."""
    stack = contextlib.AsyncExitStack()
    loop = ready.loop
    ready.opened.callback(lambda: loop.run(stack.aclose()))
    return stack


def _store(ready: Ready) -> AsyncFencer:
    store = connect_async(ready.url, namespace=ready.namespace, keep=2 * TTL)
    loop = ready.loop
    ready.opened.callback(lambda: loop.run(store.close()))
    return store


def _driver(ready: Ready) -> Any:
    driver = async_client(ready.url)
    opened(ready).push_async_callback(driver.aclose)
    return driver


def _ping(ready: Ready, bare: BareTransport) -> Contender:
    operation = ready.loop.run(bare.replay(PING_REQUEST, b"+PONG"))
    return Contender(PING, "bare transport, PING", operation, loop=ready.loop)


def _made(kind: type[AsyncPeer], ready: Ready, key: str) -> AsyncPeer:
    return ready.loop.run(kind.made(ready.url, key, opened(ready)))


def _renewing(kind: type[AsyncPeer], ready: Ready, key: str) -> Operation:
    peer = _made(kind, ready, key)
    ready.loop.run(peer.acquire())
    return peer.renew


def _acquiring(kind: type[AsyncPeer], ready: Ready, key: str) -> Operation:
    peer = _made(kind, ready, key)

    async def both() -> None:
        await peer.acquire()
        await peer.release()

    return both
