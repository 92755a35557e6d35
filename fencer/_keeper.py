"""Keeping leases alive: which is to be renewed when, and what follows from each reply.

One keeper serves all leases of a client. It has two parts, for renewing may block and telling must
not: `Keeper.renewing` sends, several leases in one trip; `Keeper.watching` only looks at the clock,
and declares a lease lost when its time has run out, whatever the sending does. The rules:

- A lease is renewed every ``heartbeat`` seconds (ttl/3 unless asked otherwise), up to a tenth
  earlier, so that the replicas of a service do not march in step.
- A renew without an answer is tried again while there is time.
- One call renews many leases. If it is refused, perhaps for the sake of one of them, each is asked
  alone: what is wrong with one costs no other its lease.
- A lease that has ended, in whatever way, is kept no longer.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from fencer import _check
from fencer._lease import BaseLease
from fencer._protocol import Protocol
from fencer._steps import Batch, Call, Steps, text
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable

_IDLE = 60.0
_IDLE_LOOK = 1.0
_TRIP = 500
"""Leases at most in one trip."""

_CALL = 100
"""Leases at most in one call, as the script has it; the server does nothing else meanwhile."""


def heartbeat(keep_alive: bool | float, ttl_ms: int) -> float | None:
    """Seconds between two renewals; ``None`` for none.

    Raises:
        InvalidArgument: a renewal that fails once would leave no time for another.
    """
    if keep_alive is False:
        return None
    ttl = ttl_ms / 1000
    seconds = ttl / 3 if keep_alive is True else _check.number("keep_alive", keep_alive, 0.001, ttl)
    if seconds > ttl / 2:
        raise InvalidArgument(
            f"keep_alive={seconds:g} leaves no time for a second try within a ttl of {ttl:g} s: "
            "renew at least twice per ttl"
        )
    return seconds


class _Timetable:
    """Leases in the order of their times. A lease has one time at most."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, BaseLease]] = []
        self._at: dict[BaseLease, float] = {}
        self._order = itertools.count()

    def put(self, lease: BaseLease, at: float) -> None:
        self._at[lease] = at
        heapq.heappush(self._heap, (at, next(self._order), lease))

    def drop(self, lease: BaseLease) -> None:
        self._at.pop(lease, None)
        if not self._at:
            self._heap.clear()  # A lease knows its keeper: that would be a cycle.
        elif len(self._heap) > 2 * len(self._at) + 64:
            self._heap = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def __contains__(self, lease: BaseLease) -> bool:
        return lease in self._at

    def __iter__(self) -> Iterator[BaseLease]:
        return iter(self._at)

    def due(self, until: float) -> Iterator[BaseLease]:
        """Take out all leases whose time is not after ``until``."""
        while self._next() <= until:
            _, _, lease = heapq.heappop(self._heap)
            del self._at[lease]
            yield lease

    def pause(self, now: float) -> float:
        return min(_IDLE, max(0.0, self._next() - now))

    def _next(self) -> float:
        while self._heap:
            at, _, lease = self._heap[0]
            if self._at.get(lease) == at:
                return at
            heapq.heappop(self._heap)  # dropped, or put anew since
        return float("inf")

    def __len__(self) -> int:
        return len(self._at)


class Keeper:
    """The leases that one client keeps. Not thread-safe: its owner holds a lock around each method.

    Args:
        clock: as in the protocol.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._renewals = _Timetable()
        self._deadlines = _Timetable()
        self._heartbeats: dict[BaseLease, float] = {}
        self._slack = _IDLE

    @property
    def kept(self) -> list[BaseLease]:
        """The leases that are kept alive."""
        return list(self._heartbeats)

    @property
    def known(self) -> set[BaseLease]:
        """The leases that are kept alive or watched."""
        return {*self._heartbeats, *self._deadlines, *self._renewals}

    def keep(self, lease: BaseLease, heartbeat: float) -> None:
        """Renew the lease from now on."""
        self._heartbeats[lease] = heartbeat
        self._slack = min(self._slack, heartbeat * 0.05)
        # A grant whose reply came late has less left than a heartbeat.
        first = min(heartbeat, lease.remaining() / 2) * random.uniform(0.9, 1.0)
        self._renewals.put(lease, self._clock() + first)

    def watch(self, lease: BaseLease) -> None:
        """Tell of the loss of the lease from now on."""
        self._deadlines.put(lease, self._clock() + lease.remaining())

    def retime(self, lease: BaseLease, ttl_ms: int) -> None:
        """Fit the times to another ttl, which the lease is about to have, or has got."""
        now, ttl = self._clock(), ttl_ms / 1000
        if lease in self._heartbeats:
            if self._heartbeats[lease] > ttl / 2:
                self._heartbeats[lease] = ttl / 3
            self._slack = min(self._slack, self._heartbeats[lease] * 0.05)
            self._renewals.put(lease, now + min(self._heartbeats[lease], lease.remaining() / 2))
        if lease in self._deadlines:
            belief = lease._protocol.belief(ttl_ms)
            self._deadlines.put(lease, now + min(belief, lease.remaining()))

    def drop(self, lease: BaseLease) -> None:
        """Have no more to do with the lease."""
        self._heartbeats.pop(lease, None)
        self._renewals.drop(lease)
        self._deadlines.drop(lease)

    def next_renewals(self) -> list[BaseLease]:
        """Take out what is to be renewed now, and with it what soon would be anyway."""
        if self.pause() > 0:
            return []
        taken = itertools.islice(self._renewals.due(self._clock() + self._slack), _TRIP)
        return [lease for lease in taken if self._alive(lease)]

    def patience(self) -> float:
        """Seconds that a trip may take: longer, and leases that were not in it would suffer."""
        return min(self._heartbeats.values(), default=_IDLE)

    def renewed(self, outcomes: dict[BaseLease, float | None]) -> None:
        """Put leases back after a trip: for the next beat, or after so many seconds.

        All of them are as early as each other, so that who travels together stays together.
        """
        now, part = self._clock(), random.uniform(0.9, 1.0)
        for lease, after in outcomes.items():
            if lease in self._heartbeats and self._alive(lease):
                beat = self._heartbeats[lease] * part
                self._renewals.put(lease, now + (beat if after is None else after))

    def _alive(self, lease: BaseLease) -> bool:
        if lease.valid:
            return True
        self.drop(lease)
        return False

    def look(self) -> float:
        """Declare lost what has run out; return the seconds until the next look."""
        for lease in list(self._deadlines.due(self._clock())):
            if lease.valid:
                self.watch(lease)
            else:
                self.drop(lease)
        # Often enough to notice soon that the machine was asleep.
        return min(_IDLE_LOOK, self._deadlines.pause(self._clock()))

    def pause(self) -> float:
        """Seconds until the next renewal is due."""
        return self._renewals.pause(self._clock())

    @property
    def idle(self) -> bool:
        """Whether there is nothing to renew and nothing to watch."""
        return not self._renewals and not self._deadlines and not self._heartbeats


def renewing(
    leases: list[BaseLease],
    clock: Callable[[], float],
    patience: float = _IDLE,
    place: Callable[[str | bytes], Hashable] = lambda key: None,
) -> Steps[dict[BaseLease, float | None]]:
    """Renew leases in one trip; for each that failed, the seconds until it is to be tried again.

    Args:
        leases: which.
        clock: as in the protocol.
        patience: seconds that it may take at most; nor more than half of what is left to the first
            of them to end.
        place: where a key is: one call renews only leases of one place, a slot of a Cluster. One
            server is one place.
    """
    mine = [lease for lease in leases if lease._begin_renewal()]
    again: dict[BaseLease, float | None] = dict.fromkeys(leases, 0.01)
    try:
        if not mine:
            return again
        started = clock()
        asked = [(lease, lease._ttl_ms, lease._renew_call()) for lease in mine]
        replies = yield from _ask_together(asked, patience, place)
        for (lease, ttl_ms, _), reply in zip(asked, replies, strict=True):
            if isinstance(reply, StoreError):
                again[lease] = min(0.5, max(0.01, lease.remaining() / 10))
                continue
            lost = lease._settle(reply, started, ttl_ms)
            again[lease] = 0.0 if lease._describe else None
            if lost and reply[0] == "RENEWED":
                yield from lease._protocol.give_back(lease._granted)
    finally:
        for lease in mine:
            lease._end_renewal()
    return again


_Asked = tuple[BaseLease, int, Call]
_Reply = list[Any] | StoreError


def _ask_together(
    asked: list[_Asked], patience: float, place: Callable[[str | bytes], Hashable]
) -> Steps[list[_Reply]]:
    """The reply for each lease, or the error that it met."""
    groups: dict[Hashable, list[int]] = {}
    for index, (_, _, call) in enumerate(asked):
        groups.setdefault((place(call.keys[0]), Protocol.same_renewal(call)), []).append(index)
    shares = [
        group[at : at + _CALL] for group in groups.values() for at in range(0, len(group), _CALL)
    ]
    found = yield from _ask(asked, shares, patience)
    alone = [
        [index]
        for share in shares
        if len(share) > 1 and _refused(found[share[0]])
        for index in share
        if asked[index][0].valid
    ]
    if alone:
        found |= yield from _ask(asked, alone, patience)
    return [found[index] for index in range(len(asked))]


def _refused(reply: _Reply) -> bool:
    # TRYAGAIN: the names of one slot are on two nodes, and one name alone is not.
    return isinstance(reply, StoreError) and (
        not isinstance(reply, StoreUnavailable) or reply.code == "TRYAGAIN"
    )


def _ask(asked: list[_Asked], shares: list[list[int]], patience: float) -> Steps[dict[int, _Reply]]:
    """One trip with one call for each share."""
    left = min(lease.remaining() for lease, _, _ in asked)
    timeout = max(0.02, min(left / 2, patience))
    calls = [Protocol.renew_together([asked[index][2] for index in share]) for share in shares]
    replies = yield Batch(tuple(calls), timeout)
    found: dict[int, _Reply] = {}
    for share, reply in zip(shares, replies, strict=True):
        if isinstance(reply, StoreError):
            found |= dict.fromkeys(share, reply)
        else:
            for index, status, value in zip(share, reply[::2], reply[1::2], strict=True):
                found[index] = [text(status), value]
    return found


def releasing(leases: list[BaseLease], timeout: float) -> Steps[None]:
    """Release leases in one trip. What does not answer in time ends with its ttl."""
    calls = [call for lease in leases if (call := lease._release_call()) is not None]
    for at in range(0, len(calls), _TRIP):
        yield Batch(tuple(calls[at : at + _TRIP]), timeout)
