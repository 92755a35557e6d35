"""The scripts in plain Python: what each decides, writes, answers and publishes.

A store is one name. Left out is what no decision depends on: when things end (the search and the
replay end them by hand), texts that only operators read, and what a server may refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Waiting = Literal["no", "join", "stay"]
Reply = tuple[Any, ...]
Hears = frozenset[int]
"""The holders whom a published message reaches."""

TTL, CLAIM, FOR_EVER = "ttl", "claim", "for ever"
NOBODY = -1


class Grant(NamedTuple):
    """The id of one act of asking. Its holder is known from it, and so is its channel."""

    holder: int
    number: int


class Lock(NamedTuple):
    """The lock key: who has it, and what sets its end."""

    holder: int
    lasts: str = TTL


class Info(NamedTuple):
    """The info key."""

    grant: Grant
    token: int

    @property
    def holder(self) -> int:
        return self.grant.holder


class Event(NamedTuple):
    """One entry of the history."""

    event: str
    token: int
    grant: Grant | None


class Store(NamedTuple):
    """All keys of a name. ``issued`` is 0 where there is no token key; newest events stand last."""

    issued: int = 0
    lock: Lock | None = None
    info: Info | None = None
    queue: tuple[Grant, ...] = ()
    history: tuple[Event, ...] = ()


class Told(NamedTuple):
    """A message that reached somebody: GRANT with its token, HEAD with the place."""

    kind: str
    grant: Grant
    number: int


class Done(NamedTuple):
    """What came of a script."""

    store: Store
    reply: Reply
    told: tuple[Told, ...] = ()


class Scripts:
    """The scripts as they are in ``lua/``. A planted bug overrides one method.

    Args:
        clock: what the server's time shows in microseconds; ``None`` for dense tokens.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock

    def acquire(self, store: Store, hears: Hears, grant: Grant, waiting: Waiting) -> Done:
        issued, lock, info, queue, history = store
        mine = lock is None or lock.holder == grant.holder
        again = self.asked_again(store, grant) and mine
        in_line = waiting != "no" and not again and grant in queue
        if waiting == "stay" and not again and not in_line:
            return Done(store, ("GONE", issued))
        looks: tuple[int, ...] = ()
        if again:
            pass
        elif lock is None:
            looks = 4, 100
        elif waiting == "join" and not in_line:
            looks = (10,)
        elif mine and info is None:
            looks = (1,)
        own, last = _recall(history, looks, grant)
        if own:
            again = own.event == "grant" and own.token == issued and mine
            if not again:
                return Done(store, ("ENDED", own.token))
        if again:
            if lock is None:
                store = store._replace(info=Info(grant, issued))
            return Done(store._replace(lock=Lock(grant.holder)), ("GRANTED", issued))
        told: tuple[Told, ...] = ()
        if lock is None:
            lost = last if last and last.event == "grant" and last.token == issued else None
            number = self.minted(issued)
            served = self.serve_first(store, hears, issued, grant, lost)
            if served is None or served[0].lock is None:
                store = served[0] if served else store
                if in_line:
                    store = store._replace(queue=tuple(g for g in store.queue if g != grant))
                store, told = _give(store, hears, number, grant, TTL, lost, in_line)
                return Done(store, ("GRANTED", number), told)
            store, told = served
        held_by = (store.lock or Lock(NOBODY)).holder
        if waiting == "no":
            return Done(store, ("HELD", held_by), told)
        if in_line:
            return Done(store, ("QUEUED", held_by, store.queue.index(grant)), told)
        place = len(store.queue)
        return Done(self.queued(store, grant), ("QUEUED", held_by, place), told)

    def renew(self, store: Store, hears: Hears, grant: Grant, mine: int, describe: bool) -> Done:
        if not self.is_last(store, mine):
            return Done(store, ("STALE", store.issued))
        if store.lock and store.lock.holder != grant.holder:
            return Done(store, ("FOREIGN", store.lock.holder))
        told = describe or store.info is not None
        if describe and (store.info is None or store.info.token == mine):
            store = store._replace(info=Info(grant, mine))
        return Done(store._replace(lock=Lock(grant.holder)), ("RENEWED", int(told)))

    def release(self, store: Store, hears: Hears, grant: Grant, mine: int) -> Done:
        issued, lock, info, _, history = store
        ours = info is not None and info.grant == grant and info.token == issued
        if not self.ends(store, grant, mine, ours):
            for event in reversed(history[-100:]):
                if event.grant == grant and event.event == "release":
                    return Done(store, ("RELEASED", event.token))
            return Done(store, ("STALE", issued)) if mine else self.cancelled(store, hears, grant)
        store = store._replace(issued=self.retired(issued), info=None if ours else info)
        if lock and lock.holder == grant.holder:
            store = store._replace(lock=None)
        store = _record(store, "release", issued, grant)
        told: tuple[Told, ...] = ()
        if (lock is None or lock.holder == grant.holder) and (info is None or ours):
            store, told = self.serve(store, hears, store.issued, None, None)
        return Done(store, ("RELEASED", issued), told)

    def cancelled(self, store: Store, hears: Hears, grant: Grant) -> Done:
        """The part of release that leaves the line."""
        issued, queue = store.issued, store.queue
        told: tuple[Told, ...] = ()
        if grant in queue:
            store = store._replace(queue=tuple(g for g in queue if g != grant))
            store = self.place_left(store, grant)
            told = _tell(store.queue, hears) if queue[0] == grant else ()
        else:
            store = self.cancel_recorded(store, grant)
        return Done(store, ("CANCELLED", issued), told)

    def revoke(self, store: Store, hears: Hears, which: int) -> Done:
        issued, lock, info, queue, history = store
        if issued != which:
            for event in reversed(history[-100:]):
                if event.token == which and event.event == "revoke":
                    return Done(store, ("REVOKED", which))
            return Done(store, ("STALE", issued))
        ours = info is not None and info.token == issued
        holder = info.holder if info and ours else None
        if lock and lock.holder != holder:
            return Done(store, ("FOREIGN", lock.holder))
        store = store._replace(issued=issued + 1, lock=None, info=None if ours else info)
        store = _record(store, "revoke", which, info.grant if info else None)
        return Done(store, ("REVOKED", which), _tell(queue, hears, 1))

    def advance(self, store: Store, hears: Hears, beyond: int) -> Done:
        issued, lock, info, queue, history = store
        if issued == beyond + 1:
            for event in history[-100:]:
                if event.token == beyond and event.event == "advance":
                    return Done(store, ("ADVANCED", beyond))
        if issued >= beyond:
            return Done(store, ("AHEAD", issued))
        if lock and not (info and lock.holder == info.holder):
            return Done(store, ("FOREIGN", lock.holder))
        store = store._replace(issued=beyond + 1, lock=None, info=None)
        store = _record(store, "advance", beyond, info.grant if info else None)
        return Done(store, ("ADVANCED", beyond), _tell(queue, hears, 1))

    # What planted bugs change.

    def minted(self, after: int) -> int:
        """The next token."""
        return max(after + 1, self._clock() if self._clock else 0)

    def retired(self, issued: int) -> int:
        """What is issued after a release, so that nobody matches it."""
        return issued + 1

    def is_last(self, store: Store, mine: int) -> bool:
        """Whether a renew speaks for the last token."""
        return store.issued == mine

    def asked_again(self, store: Store, grant: Grant) -> bool:
        """Whether this grant was made already."""
        info = store.info
        return info is not None and info.grant == grant and info.token == store.issued

    def ends(self, store: Store, grant: Grant, mine: int, ours: bool) -> bool:
        """Whether a release ends the lease that is held."""
        return store.issued == mine if mine else ours

    def cancel_recorded(self, store: Store, grant: Grant) -> Store:
        """Remember the cancel of what never came."""
        return _record(store, "cancel", 0, grant)

    def place_left(self, store: Store, grant: Grant) -> Store:
        """Remember the cancel of a place in line: the script does not."""
        return store

    def queued(self, store: Store, grant: Grant) -> Store:
        """Put somebody in line."""
        return store._replace(queue=(*store.queue, grant))

    def serve_first(
        self, store: Store, hears: Hears, after: int, own: Grant, lost: Event | None
    ) -> tuple[Store, tuple[Told, ...]] | None:
        """Whom an acquire lets go first."""
        return self.serve(store, hears, after, own, lost)

    claim = CLAIM
    """How long a waiter has that was handed the name."""

    def heard(self, hears: Hears, grant: Grant) -> bool:
        """Whether somebody can be handed the name."""
        return grant.holder in hears

    def serve(
        self, store: Store, hears: Hears, after: int, own: Grant | None, lost: Event | None
    ) -> tuple[Store, tuple[Told, ...]]:
        """Hand the free name to the first that hears it; those before it lose their place."""
        number, queue = self.minted(after), store.queue
        while queue and queue[0] != own:
            first, queue = queue[0], queue[1:]
            if self.heard(hears, first):
                store = store._replace(queue=queue)
                granted = Told("GRANT", first, number)
                store, told = _give(store, hears, number, first, self.claim, lost, True)
                return store, (granted, *told)
        return store._replace(queue=queue), ()


def _recall(
    history: tuple[Event, ...], looks: tuple[int, ...], grant: Grant
) -> tuple[Event | None, Event | None]:
    own: Event | None = None
    last: Event | Literal[False] | None = None
    for count in looks:
        for event in reversed(history[-count:]):
            own = own or (event if event.grant == grant else None)
            last = last or (event if event.event != "cancel" else False)
        if own or last is not False:
            break
    return own, last or None


def _give(
    store: Store,
    hears: Hears,
    number: int,
    grant: Grant,
    lasts: str,
    lost: Event | None,
    waited: bool,
) -> tuple[Store, tuple[Told, ...]]:
    store = store._replace(issued=number, lock=Lock(grant.holder, lasts), info=Info(grant, number))
    if lost:
        store = _record(store, "loss", lost.token, lost.grant)
    store = _record(store, "grant", number, grant)
    return store, _tell(store.queue, hears) if waited else ()


def _tell(queue: tuple[Grant, ...], hears: Hears, count: int = 2) -> tuple[Told, ...]:
    reached = [grant for grant in queue[:10] if grant.holder in hears][:count]
    return tuple(Told("HEAD", grant, place) for place, grant in enumerate(reached))


def _record(store: Store, event: str, token: int, grant: Grant | None) -> Store:
    return store._replace(history=(*store.history, Event(event, token, grant)))
