"""What is measured: renewing, acquiring and releasing, and writing through a guard.

For threads and for asyncio, each of these cases has (for the others see `handover`, `keepalive`):

- ``ping``: ``PING`` as bare bytes, which shows what the round trip alone takes.
- ``floor``: the bytes that our own client sends, overheard on the server and sent as they are. The
  server does the same work; what ours takes on top is what the client costs.
- ``evalsha``: the same script through the driver's ``evalsha``, as one would call it by hand.
- ``ours``: the public API.
- ``lock``: redis-py's ``Lock``; for the guard ``set``: the same write with nothing to guard it.
- the peers that are installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from fencer.bench import handover, keepalive
from fencer.bench.common import heard_rounds, tried
from fencer.bench.core import Case, Contender, Operation
from fencer.bench.figures import FLOOR, OURS
from fencer.bench.peers import PEERS, Peer
from fencer.bench.ready import Ready, errors_translated, kept
from fencer.bench.requests import packed, replay, replay_rounds, spoken
from fencer.bench.tasks import acquire_in_tasks, renew_in_tasks
from fencer.client import Lease
from fencer.guards import RedisGuard

CALLS = ("renew", "acquire", "guard")
"""The cases of one process that makes calls."""

NAMES = (*CALLS, "handover", "keepalive")
"""The names of all cases."""

APIS = ("threads", "asyncio")

BATCH = 1_000
"""How many leases ``keepalive`` renews in one go."""


@contextlib.contextmanager
def open_cases(
    urls: Sequence[str],
    names: Sequence[str] = NAMES,
    *,
    apis: Sequence[str] = APIS,
    batch: int = BATCH,
    all_peers: bool = True,
) -> Iterator[list[Case]]:
    """Make cases ready; on leaving, their leases are released and their keys deleted.

    Args:
        urls: servers, or ways to one server, as `fencer.connect` takes them.
        names: which cases, some of `NAMES`.
        apis: for which of `APIS`; guard, handover and keepalive are for threads alone.
        batch: how many leases ``keepalive`` renews in one go.
        all_peers: whether others take part than redis-py.

    Raises:
        StoreError: the server refused or cannot be reached, or answered what it should not, also
            inside the block.
        InvalidArgument: the URL cannot be read.
    """
    makers: dict[tuple[str, str], Callable[[Ready], Case]] = {
        ("renew", "threads"): _renew,
        ("renew", "asyncio"): renew_in_tasks,
        ("acquire", "threads"): _acquire,
        ("acquire", "asyncio"): acquire_in_tasks,
        ("guard", "threads"): _guard,
        ("handover", "threads"): handover.case,
        ("keepalive", "threads"): lambda ready: keepalive.case(ready, batch),
    }
    with errors_translated(), contextlib.ExitStack() as opened:
        wanted = [each for each in makers if each[0] in names and each[1] in apis]
        places = [Ready(url, opened, all_peers=all_peers) for url in urls]
        yield [makers[each](ready) for ready in places for each in wanted]


def _renew(ready: Ready) -> Case:
    lease = ready.lease("renew")
    (words,) = ready.sent_by(lease.renew, 1)
    by_hand, evalsha = spoken(words), ready.peer.evalsha

    def plain() -> None:
        kept(b"RENEWED" in evalsha(*by_hand), "renew")

    peers, missing = tried(ready, "renew", PEERS, _renewing)
    return Case(
        "renew",
        "renew",
        "lock",
        (
            ready.ping(),
            Contender(
                FLOOR,
                "bare socket, EVALSHA",
                replay(ready.socket, packed(words), b"RENEWED"),
            ),
            Contender("evalsha", "redis-py evalsha()", plain),
            Contender(OURS, "lease.renew()", lease.renew),
            *peers,
        ),
        missing,
        transport=ready.transport,
    )


def _renewing(kind: type[Peer], ready: Ready, key: str) -> Operation:
    peer = kind(ready.url, key, ready.opened)
    peer.acquire()
    return peer.renew


def _acquire(ready: Ready) -> Case:
    acquire = ready.store.acquire

    def ours() -> Lease:
        lease = acquire("acquire")
        kept(lease.release(), "release")
        return lease

    rounds = heard_rounds(ready, ours)
    by_hand, evalsha = rounds.as_spoken(), ready.peer.evalsha

    def plain() -> None:
        get, give, back = next(by_hand)
        _, token, *_ = evalsha(*get)
        kept(b"RELEASED" in evalsha(*give, token, *back), "release")

    peers, missing = tried(ready, "acquire", PEERS, _acquiring)
    return Case(
        "acquire",
        "acquire + release",
        "lock",
        (
            ready.ping(),
            Contender(FLOOR, "bare socket, two EVALSHA", replay_rounds(ready.socket, rounds)),
            Contender("evalsha", "redis-py evalsha(), twice", plain),
            Contender(OURS, "acquire(), lease.release()", ours),
            *peers,
        ),
        missing,
        transport=ready.transport,
    )


def _acquiring(kind: type[Peer], ready: Ready, key: str) -> Operation:
    peer = kind(ready.url, key, ready.opened)

    def both() -> None:
        peer.acquire()
        peer.release()

    return both


def _guard(ready: Ready) -> Case:
    lease = ready.lease("guard")
    guard = RedisGuard(ready.store.client, "guard", namespace=ready.namespace)
    guarded, unguarded = ready.key("guarded"), ready.key("unguarded")

    def ours() -> None:
        guard.execute(lease, "SET", guarded, "42")

    (words,) = ready.sent_by(ours, 1)
    by_hand, evalsha, peer = spoken(words), ready.peer.evalsha, ready.peer

    def plain() -> None:
        kept(b"ACCEPTED" in evalsha(*by_hand), "write")

    return Case(
        "guard",
        "guard execute, SET",
        "set",
        (
            ready.ping(),
            Contender(
                FLOOR,
                "bare socket, EVALSHA",
                replay(ready.socket, packed(words), b"ACCEPTED"),
            ),
            Contender("evalsha", "redis-py evalsha()", plain),
            Contender(OURS, 'guard.execute(lease, "SET", …)', ours),
            Contender("set", "redis-py set(), unguarded", lambda: peer.set(unguarded, "42")),
        ),
        transport=ready.transport,
    )
