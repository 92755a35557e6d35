"""Names in the store: what memory each of them takes, held and after its release.

They are acquired as our own client acquires them, with its very bytes but for the name and the
grant, many at a time: a million would otherwise take minutes.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from fencer.bench.ready import Ready, errors_translated, forget
from fencer.bench.requests import Words, with_other
from fencer.client import Lease
from fencer.errors import StoreError

NAMES_IN_STORE = (1, 100, 1_000, 10_000)

_MODEL = "name-0000000"
_AT_ONCE = 500
_WHOLE = 1_000
"""Names from which on the server's own sum says more than the noise of its buffers."""
_SAMPLE = 100


@dataclass(frozen=True, slots=True)
class NamesCost:
    """What names take in the store, in bytes each.

    Attributes:
        names: how many there are.
        held: the keys of a name that somebody has, by ``MEMORY USAGE``.
        released: the same once it was released: the last token and the history stay.
        held_whole, released_whole: the growth of ``used_memory`` by each name, or ``None`` where
            there are too few names to tell.
    """

    names: int
    held: float
    released: float
    held_whole: float | None
    released_whole: float | None


def names_costs(
    url: str,
    names: Sequence[int] = NAMES_IN_STORE,
    *,
    told: Callable[[int, int], None] = lambda done, turns: None,
) -> list[NamesCost]:
    """Measure what memory names take, for several numbers of them.

    On a server that others use, what they store meanwhile is counted, too.

    Args:
        url: a server, as `fencer.connect` takes it.
        names: how many, each 1 or more.
        told: as for `run`.

    Raises:
        StoreError: the server refused or cannot be reached, or has not the memory.
        InvalidArgument: the URL cannot be read.
    """
    done, whole = 0, 2 * sum(names)

    def step(some: int) -> None:
        nonlocal done
        done += some
        told(done, whole)

    with errors_translated(), contextlib.ExitStack() as opened:
        ready = Ready(url, opened)
        acquire, release, model = _overheard(ready)
        forget(ready.peer, ready.namespace)
        return [_cost(ready, count, acquire, release, model, step) for count in names]


def _overheard(ready: Ready) -> tuple[Words, Words, Lease]:
    lease: Lease

    def once() -> None:
        nonlocal lease
        lease = ready.store.acquire(_MODEL)
        lease.release()

    acquire, release = ready.sent_by(once, 2)
    return acquire, release, lease


def _cost(
    ready: Ready,
    count: int,
    acquire: Words,
    release: Words,
    model: Lease,
    step: Callable[[int], None],
) -> NamesCost:
    peer: Any = ready.peer
    grants = [secrets.token_hex(len(model.grant) // 2) for _ in range(count)]
    tokens: list[bytes] = []
    before = _used(peer)
    for numbers in _parts(count):
        replies = _sent(peer, [_for(acquire, model, each, grants[each]) for each in numbers])
        for reply in replies:
            if reply[0] != b"GRANTED":
                raise StoreError(f"a new name was not granted, but {reply[0]!r}")
            tokens.append(b"%d" % reply[1])
        step(len(numbers))
    held, held_whole = _sampled(ready, count), (_used(peer) - before) / count
    for numbers in _parts(count):
        old = str(model.token).encode()
        _sent(
            peer,
            [
                with_other(_for(release, model, each, grants[each]), old, tokens[each])
                for each in numbers
            ],
        )
        step(len(numbers))
    released, released_whole = _sampled(ready, count), (_used(peer) - before) / count
    forget(peer, ready.namespace)
    enough = count >= _WHOLE
    return NamesCost(
        count,
        held,
        released,
        held_whole if enough else None,
        released_whole if enough else None,
    )


def _parts(count: int) -> Iterator[range]:
    return (range(at, min(at + _AT_ONCE, count)) for at in range(0, count, _AT_ONCE))


def _name(number: int) -> str:
    return f"name-{number + 1:07}"


def _for(words: Words, model: Lease, number: int, grant: str) -> Words:
    """The request for another name, under another grant."""
    named = with_other(words, _MODEL.encode(), _name(number).encode())
    return with_other(named, model.grant.encode(), grant.encode())


def _sent(peer: Any, requests: Sequence[Words]) -> list[Any]:
    with peer.pipeline(transaction=False) as together:
        for words in requests:
            together.execute_command(*words)
        replies: list[Any] = together.execute()
    return replies


def _sampled(ready: Ready, count: int) -> float:
    """The bytes of all keys of a name, on average over some names."""
    peer: Any = ready.peer
    sample = range(0, count, max(1, count // _SAMPLE))
    with peer.pipeline(transaction=False) as together:
        for number in sample:
            for key in astuple(ready.keyspace.of(_name(number))):
                together.memory_usage(key, samples=0)
        return float(sum(each or 0 for each in together.execute()) / len(sample))


def _used(peer: Any) -> int:
    return int(peer.info("memory")["used_memory"])
