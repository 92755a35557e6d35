"""Planted bugs of Sentinel, Cluster and the drivers. See `tests.faults.planted`."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from fencer import _cluster_wakeups, _refusals, _routing, _urls, _wakeups, _wire
from fencer._cluster import Nodes
from fencer._keeper import Keeper
from fencer._protocol import Protocol
from fencer._routing import Address, Route, Routing
from fencer._steps import Steps
from fencer.errors import NotAcquired, StoreUnavailable
from tests.faults.bugs import tries_once

# What a client makes of an outage, or of a refusal.


def outage_is_a_rival(patch: pytest.MonkeyPatch) -> None:
    """Whoever gets no answer at once is told that somebody else has the lease."""
    tries_once(patch)
    plain = Protocol._look

    def look(core: Protocol, ask_for: Any, seen: Any, *rest: Any) -> Steps[Any]:
        try:
            return (yield from plain(core, ask_for, seen, *rest))
        except StoreUnavailable as error:
            raise NotAcquired(ask_for.name, seen.holder, seen.remaining) from error

    patch.setattr(Protocol, "_look", look)


def keeps_while_it_is_answered(patch: pytest.MonkeyPatch) -> None:
    """A renew that is not answered ends the lease, though there is time for another."""
    plain = Keeper.renewed

    def renewed(keeper: Keeper, outcomes: dict[Any, float | None]) -> None:
        for lease, after in outcomes.items():
            if after is not None and after > 0.01:
                lease._lose("a renew was not answered")
        plain(keeper, outcomes)

    patch.setattr(Keeper, "renewed", renewed)


def nothing_passes(patch: pytest.MonkeyPatch) -> None:
    """What servers refuse in the middle of a failover is an error like any other."""
    patch.setattr(_refusals, "_PASSING_CODE", re.compile("(?!)"))


def any_word_passes(patch: pytest.MonkeyPatch) -> None:
    """A refusal is an outage wherever the word for one stands in it."""
    codes = "|".join(_refusals._PASSING)
    patch.setattr(_refusals, "_PASSING_CODE", re.compile(rf"^.*?\b({codes})\b", re.DOTALL))


def wrong_logins_pass(patch: pytest.MonkeyPatch) -> None:
    """A refused login is an outage."""
    patch.setattr(_refusals, "_PASSING_CODE", re.compile(r"^(WRONGPASS)\b"))


def knows_redis_py_alone(patch: pytest.MonkeyPatch) -> None:
    """The other driver's errors are all the same."""
    plain = _refusals._kinds

    def kinds(error: BaseException | None) -> set[str]:
        return plain(error) if type(error).__module__.startswith("redis") else set()

    patch.setattr(_refusals, "_kinds", kinds)


def takes_a_demotion_for_a_broken_line(patch: pytest.MonkeyPatch) -> None:
    """What the drivers make of a replica's refusal is believed, where they make anything of it."""
    nothing_passes(patch)
    patch.setattr(_refusals, "_DEMOTED", "(never said)")


def nothing_was_sent(patch: pytest.MonkeyPatch) -> None:
    """A call without an answer is told as one that was never sent."""
    plain = _refusals.refusal

    def refusal(error: Exception, script: str | None = None, *, sent: bool = True) -> Any:
        return plain(error, script, sent=False)

    patch.setattr(_wire, "refusal", refusal)


def keeps_every_connection(patch: pytest.MonkeyPatch) -> None:
    """After an outage the same connection is used again."""

    class Never(StoreUnavailable):
        pass

    patch.setattr(_wire, "StoreUnavailable", Never)


def tells_a_refused_ping_as_silence(patch: pytest.MonkeyPatch) -> None:
    """A server that refuses PING is taken for one that is gone."""

    def refused(error: Exception) -> dict[str, Any]:
        raise error

    patch.setattr(_wakeups, "_refused", refused)


# How a client gets to a server.


def asks_one_sentinel(patch: pytest.MonkeyPatch) -> None:
    """The first sentinel of a URL is asked, and no other."""
    plain = _urls._by_sentinels

    def by_sentinels(driver: Any, *rest: Any) -> Any:
        client = plain(driver, *rest)
        del client.connection_pool.sentinel_manager.sentinels[1:]
        return client

    patch.setattr(_urls, "_by_sentinels", by_sentinels)


def sentinels_are_not_named(patch: pytest.MonkeyPatch) -> None:
    """Where no sentinel names a primary, only the driver's words are told."""

    def unreached(error: Exception, pool: Any) -> Any:
        return _refusals.refusal(error, sent=False)

    patch.setattr(_wire, "unreached", unreached)


def trusts_everybody(patch: pytest.MonkeyPatch) -> None:
    """No certificate is looked at."""
    plain = _urls._by_itself
    blind = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}

    def by_itself(driver: Any, parts: Any, options: dict[str, Any]) -> Any:
        return plain(driver, parts, options | blind)

    patch.setattr(_urls, "_by_itself", by_itself)


# What a Cluster asks for.


def sends_nothing_on(patch: pytest.MonkeyPatch) -> None:
    """A call that a node turns away has failed."""
    patch.setattr(_routing, "_PATIENCE", -1.0)


def waits_where_it_was(patch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a name goes on listening at the node that it has left."""
    patch.setattr(_cluster_wakeups.Board, "place_all", lambda board: [])


def one_trip_after_the_other(patch: pytest.MonkeyPatch) -> None:
    """A node is sent nothing before the one before it has answered."""

    def scatter(nodes: Nodes, batches: Any) -> Any:
        return {where: nodes._wire(where).batch(batch) for where, batch in batches.items()}

    patch.setattr(Nodes, "_scatter", scatter)


def one_errand_per_node(patch: pytest.MonkeyPatch) -> None:
    """While a node has yet to answer a renew, no release is sent to it."""

    class Busy(set[tuple[Address, str]]):
        def __contains__(self, errand: Any) -> bool:
            return any(where == errand[0] for where, _ in list(self))

    patch.setattr(Nodes, "forget", lambda nodes: setattr(nodes, "_under_way", Busy()))


# How a Cluster's map is read.


def asks_without_asking(patch: pytest.MonkeyPatch) -> None:
    """Who is sent to the new owner of a slot in mid-move does not say that it was sent."""
    plain = Routing._directed

    def directed(routing: Routing, *rest: Any) -> Route[Any]:
        there, _ = yield from plain(routing, *rest)
        return there, False

    patch.setattr(Routing, "_directed", directed)


def sends_on_without_pause(patch: pytest.MonkeyPatch) -> None:
    """A call that is sent to and fro is so as fast as the nodes can."""
    patch.setattr(_routing, "_PAUSE", 0.0)


def repeats_by_itself(patch: pytest.MonkeyPatch) -> None:
    """A call without an answer is sent again, whatever it does: so does the driver's routing."""
    plain = Routing.call

    def call(routing: Routing, call: Any) -> Route[Any]:
        try:
            return (yield from plain(routing, call))
        except StoreUnavailable:
            return (yield from plain(routing, call))

    patch.setattr(Routing, "call", call)


def sends_a_batch_once(patch: pytest.MonkeyPatch) -> None:
    """The calls of a batch that a node turns away have failed."""
    patch.setattr(_routing, "_ROUNDS", 1)


def asks_for_no_map(patch: pytest.MonkeyPatch) -> None:
    """A slot whose node is not known is nobody's."""

    def find(routing: Routing, slot: int) -> Route[Any]:
        yield from ()
        return routing._owners[slot]

    patch.setattr(Routing, "find", find)


def takes_every_host(patch: pytest.MonkeyPatch) -> None:
    """A node that tells no host of its own has none."""
    plain = Routing._take_in

    def take_in(routing: Routing, reply: Any, teller: Address) -> None:
        plain(routing, reply, ("", teller[1]))

    patch.setattr(Routing, "_take_in", take_in)


def scans_one_node(patch: pytest.MonkeyPatch) -> None:
    """A scan ends where its first node's ends."""
    plain = Routing.primaries
    patch.setattr(Routing, "primaries", lambda routing: plain(routing)[:1])


def asks_anybody(patch: pytest.MonkeyPatch) -> None:
    """The map is asked for at random, also of nodes that have just failed."""

    def informants(routing: Routing, first: Address | None) -> list[Address]:
        nodes = list(routing._known | set(routing._seeds()))
        return random.sample(nodes, len(nodes))

    patch.setattr(Routing, "_informants", informants)
