"""Rules of which a record of any kind can be asked: by the drills' judge, and by the tests.

Each takes events or what was read from them, and yields what breaks the rule.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from itertools import combinations
from typing import Protocol, TypeVar

from fencer.drill.spans import Span, Spans


class Timed(Protocol):
    """What has a token and took some time."""

    @property
    def token(self) -> int | None: ...
    @property
    def begun(self) -> float: ...
    @property
    def ended(self) -> float: ...


T = TypeVar("T", bound=Timed)
K = TypeVar("K", bound=Hashable)
W = TypeVar("W")


def falls(events: Iterable[T]) -> Iterator[tuple[T, T]]:
    """Pairs of which the second began after the first had ended, with a smaller token."""
    begun = sorted(events, key=lambda event: event.begun)
    ended = sorted(begun, key=lambda event: event.ended)
    newest: T | None = None
    number = 0
    for event in begun:
        while number < len(ended) and ended[number].ended < event.begun:
            done = ended[number]
            number += 1
            if newest is None or (done.token or 0) > (newest.token or 0):
                newest = done
        if newest is not None and (event.token or 0) < (newest.token or 0):
            yield newest, event


def shared(owned: Iterable[tuple[K, W]]) -> Iterator[tuple[K, W, W]]:
    """What belongs to two: the thing, its first owner and another one."""
    owners: dict[K, W] = {}
    for thing, owner in owned:
        if owners.setdefault(thing, owner) != owner:
            yield thing, owners[thing], owner


def overlaps(owned: Iterable[tuple[W, Spans]]) -> Iterator[tuple[W, W, Span]]:
    """Two owners, and each span in which both had it."""
    for (one, first), (other, second) in combinations(owned, 2):
        for span in first & second:
            yield one, other, span
