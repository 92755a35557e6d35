"""Planted bugs: what others do in place of what Fencer does. The search must find each."""

from __future__ import annotations

from tests.model.scripts import (
    FOR_EVER,
    Event,
    Grant,
    Hears,
    Scripts,
    Store,
    Told,
)
from tests.model.world import World


class NoRetire(Scripts):
    """A release leaves its token the last one issued."""

    def retired(self, issued: int) -> int:
        return issued


class PlainCounter(Scripts):
    """Tokens are counted: they begin again at 1 when the data are lost."""

    def minted(self, after: int) -> int:
        return after + 1


class NoCompare(Scripts):
    """A renew asks only whose lock it is."""

    def is_last(self, store: Store, mine: int) -> bool:
        return True


class NoGrantId(Scripts):
    """An acquire that is asked again is a new one, and the rival of the first."""

    def asked_again(self, store: Store, grant: Grant) -> bool:
        return False

    def cancel_recorded(self, store: Store, grant: Grant) -> Store:
        return store

    def acquire(self, store, hears, grant, waiting):  # type: ignore[no-untyped-def]
        return super().acquire(store._replace(history=()), hears, grant, waiting)


class CancelsNothing(Scripts):
    """A cancel leaves the line, and does not give back a grant that crossed it."""

    def ends(self, store: Store, grant: Grant, mine: int, ours: bool) -> bool:
        return bool(mine) and store.issued == mine


class ForgetsCancels(Scripts):
    """A cancel of what never came is not remembered."""

    def cancel_recorded(self, store: Store, grant: Grant) -> Store:
        return store


class NewcomersOvertake(Scripts):
    """Whoever asks in the right moment gets it, whoever waits."""

    def serve_first(
        self, store: Store, hears: Hears, after: int, own: Grant, lost: Event | None
    ) -> tuple[Store, tuple[Told, ...]] | None:
        return None


class LastFirst(Scripts):
    """Who comes last stands first in line."""

    def queued(self, store: Store, grant: Grant) -> Store:
        return store._replace(queue=(grant, *store.queue))


class ClaimsForEver(Scripts):
    """A waiter that is handed the name has no time in which it must claim it."""

    claim = FOR_EVER


class DropsTheLine(Scripts):
    """Whoever is not heard at once is passed over, as if none could be."""

    def heard(self, hears: Hears, grant: Grant) -> bool:
        return False


class NeverLooks(World):
    """A waiter relies on its message."""

    looks = False


class BelievesAtOnce(World):
    """A waiter believes in a grant without claiming it."""

    claims = False


class CopiesCount(World):
    """More than release.lua promises: no late copy of a join comes through after its cancel.

    A cancel that finds its grant in line is not on record, for it costs a write: a copy of the join
    that is still on its way then stands in line once more, or holds the name for a ttl.
    """

    places_are_remembered = True


class RemembersPlaces(Scripts):
    """What would make it so."""

    def place_left(self, store: Store, grant: Grant) -> Store:
        return self.cancel_recorded(store, grant)
