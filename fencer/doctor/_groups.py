"""What can be wrong between servers: clocks, sentinels, a cluster, and a split among several."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fencer._steps import text
from fencer.doctor._nodes import Group, Node, pairs
from fencer.doctor._records import Finding, NotSeen, Severity
from fencer.doctor._survey import Survey
from fencer.errors import StoreUnavailable

FRACTION = 0.1
"""The part of the shortest ttl by which clocks may differ."""

_MOVING = 0.5
"""Seconds in which a slot's move may end: then it is not worth telling."""

_OPEN = re.compile(r"\[(\d+)-([<>])-(\w+)\]")
"""How a node tells of a slot of its own that is being moved."""

_FLAPS = 1.0
"""Seconds of silence that a sentinel or node should bear: a busy server may pause."""


def clocks(first: Node, other: Node, ttl: float) -> Iterator[Finding]:
    """TIME of two servers of one group: whether one can take over from the other."""
    ahead = other.clock.ahead - first.clock.ahead
    sure = abs(ahead) - other.clock.unsure - first.clock.unsure
    if sure <= FRACTION * ttl:
        return
    what = (
        "After a failover to it that loses the last grants, tokens may fall: new ones are smaller "
        "than those handed out before, and guards refuse them until its clock has caught up."
        if ahead < 0
        else "After a failover to it leases end early, while their holders still believe in them."
    )
    yield Finding(
        "clocks",
        Severity.DANGER if ahead < 0 and sure > ttl else Severity.WARNING,
        other.address,
        f"Its clock is {_seconds(abs(ahead))} {'behind' if ahead < 0 else 'ahead of'} that of "
        f"{first.address}; a tenth of the shortest ttl is {_seconds(FRACTION * ttl)}.",
        what,
        "Let a time service such as chrony run on every server, and look why it does not.",
    )


def own_clock(first: Node, ttl: float) -> Iterator[Finding]:
    """TIME, and this machine's clock: whether what they say can be compared."""
    ahead = first.clock.ahead
    if abs(ahead) - first.clock.unsure <= max(FRACTION * ttl, 0.5):
        return
    yield Finding(
        "own-clock",
        Severity.NOTE,
        first.address,
        f"Its clock is {_seconds(abs(ahead))} {'behind' if ahead < 0 else 'ahead of'} this "
        "machine's.",
        "No lease is judged by this machine's clock. But one of the two is wrong: times in logs "
        "and histories do not match, and a server whose clock is set back later mints tokens "
        "ahead of its time.",
        "Let a time service such as chrony run on both.",
    )


def silent(primary: Node, service: str, error: StoreUnavailable) -> Iterator[Finding]:
    """The primary that the sentinels name does not answer here."""
    cause = error.__cause__
    # Without one that is up the driver does not even ask: what the sentinels say is told elsewhere.
    asked = cause is not None and type(cause).__name__ != "MasterNotFoundError"
    yield Finding(
        "primary",
        Severity.DANGER,
        primary.address,
        f"This is the primary of {service}, by what the sentinels say, and it does not answer"
        f"{f' here ({cause})' if asked else ''}.",
        "From here no lease can be granted or renewed, until it answers or a failover is done.",
        "See whether it runs, and whether this address can be reached from here: servers behind "
        "NAT and in containers need replica-announce-ip.",
    )


def sentinels(group: Group, known: Sequence[Node], ttl: float) -> Iterator[Finding]:
    """SENTINEL MASTER and CKQUORUM of each sentinel: whether a failover can happen, and to whom."""
    where = f"service {group.service}"
    addresses: dict[str, list[str]] = {}
    heirs: list[tuple[int, int]] = []
    for node in known:
        facts = pairs(node.ask("SENTINEL", "MASTER", group.service))
        addresses.setdefault(f"{facts['ip']}:{facts['port']}", []).append(node.address)
        yield from _sentinel(node, group.service, facts, ttl)
        heirs.append(_heirs(node, group.service))
    if heirs and not any(able for able, _ in heirs):
        unable = max(count for _, count in heirs)
        yield Finding(
            "heirs",
            Severity.DANGER,
            where,
            f"No sentinel knows a replica of it that can be promoted: {_unable(unable)}.",
            "When the primary dies, there is no failover: nobody is granted a lease until it is "
            "back.",
            "Add a replica, or bring one back whose replica-priority is above 0; the sentinels "
            "find it within ten seconds.",
        )
    if len(known) < 3:
        yield Finding(
            "sentinels",
            Severity.WARNING,
            where,
            f"{_count(len(known), 'sentinel')} watch{'es' if len(known) == 1 else ''} it.",
            "When the machine of one is lost, those left are no majority: there is no failover, "
            "and nobody is granted a lease.",
            "Run at least three, on machines of their own.",
        )
    if len(addresses) > 1:
        told = "; ".join(f"{', '.join(who)}: {place}" for place, who in sorted(addresses.items()))
        yield Finding(
            "sentinels",
            Severity.DANGER,
            where,
            f"The sentinels do not agree where the primary is ({told}).",
            "Clients are led to different servers, and each grants the same lease.",
            "Wait for a failover to end and look again; if it stays so, SENTINEL RESET there.",
        )


def _heirs(node: Node, service: str) -> tuple[int, int]:
    """How many replicas a sentinel could promote, and how many not."""
    able = unable = 0
    for each in node.ask("SENTINEL", "REPLICAS", service):
        facts = pairs(each)
        flags = set(facts.get("flags", "").split(","))
        if flags & {"s_down", "o_down", "disconnected"} or facts.get("slave-priority") == "0":
            unable += 1
        else:
            able += 1
    return able, unable


def _unable(replicas: int) -> str:
    match replicas:
        case 0:
            return "it has none"
        case 1:
            return "it has one, which is down or has replica-priority 0"
        case _:
            return f"it has {replicas}, each of which is down or has replica-priority 0"


def _sentinel(node: Node, service: str, facts: dict[str, str], ttl: float) -> Iterator[Finding]:
    down = [flag for flag in facts.get("flags", "").split(",") if flag.endswith("_down")]
    if down:
        yield Finding(
            "sentinels",
            Severity.DANGER,
            node.address,
            f"This sentinel sees the primary of {service} as {' and '.join(down)}.",
            "No lease can be granted or renewed until it answers, or a failover is done.",
            "See the primary, and the network between them.",
        )
    try:
        node.ask("SENTINEL", "CKQUORUM", service)
    except NotSeen as refused:
        if "NOQUORUM" not in str(refused):
            raise
        quorum = facts.get("quorum", "?")
        others = int(facts.get("num-other-sentinels", 0))
        yield Finding(
            "quorum",
            Severity.DANGER,
            node.address,
            f"The quorum of {service} is {quorum}, and this sentinel knows "
            f"{_count(others, 'other')}, as far as they can be reached.",
            "There will be no failover: when the primary dies, nobody is granted a lease.",
            "Start the sentinels that lack, or SENTINEL SET the quorum to a majority.",
        )
    after = int(facts.get("down-after-milliseconds", 0)) / 1000
    yield from _patience(node, "down-after-milliseconds", after, ttl)


def _patience(node: Node, setting: str, after: float, ttl: float) -> Iterator[Finding]:
    if after < _FLAPS:
        yield Finding(
            "failover",
            Severity.WARNING,
            node.address,
            f"{setting} is {after * 1000:.0f}.",
            "A short pause of the primary counts as its death, and each failover may lose grants.",
            f"Set {setting} to 1000 or more; 5000 suits most.",
        )
    elif after >= ttl:
        yield Finding(
            "failover",
            Severity.NOTE,
            node.address,
            f"{setting} is {after:g} s, and the shortest ttl {ttl:g} s.",
            "Leases as short as that end during every failover: their holders must stop, and are "
            "granted anew afterwards.",
            "Choose a ttl longer than that and a failover together, if work must go on.",
        )


def cluster(first: Node, ttl: float, *, hash_tag: bool) -> Iterator[Finding]:
    """CLUSTER INFO and NODES, and settings: whether each name has a server, and one in reserve."""
    facts = dict(
        line.split(":", 1) for line in text(first.ask("CLUSTER", "INFO")).split() if ":" in line
    )
    members = _members(text(first.ask("CLUSTER", "NODES")))
    primaries = [each for each in members if "master" in each.flags and each.slots]
    failed = [each.address for each in members if {"fail", "fail?"} & each.flags]
    lonely = [
        each.address
        for each in primaries
        if not any(other.follows == each.id and not other.failed for other in members)
    ]
    if not hash_tag:
        yield Finding(
            "cluster",
            Severity.DANGER,
            first.address,
            "The keys have no braces (--no-hash-tag), and this is a cluster.",
            "The keys of one name belong to different nodes: every call is refused with CROSSSLOT.",
            "Leave --no-hash-tag (hash_tag=False) out.",
        )
    if facts.get("cluster_state") != "ok":
        assigned = facts.get("cluster_slots_assigned", "?")
        yield Finding(
            "cluster",
            Severity.DANGER,
            first.address,
            f"The cluster's state is {facts.get('cluster_state')}; {assigned} of 16384 slots have "
            "a primary.",
            "Leases whose slot is not served are refused with CLUSTERDOWN.",
            "Bring the lost nodes back, or give their slots to others.",
        )
    if failed:
        yield Finding(
            "cluster",
            Severity.WARNING,
            first.address,
            f"It sees these nodes as lost: {', '.join(failed)}.",
            "One more loss may leave slots without a primary.",
            "Bring them back, or CLUSTER FORGET what is gone for good.",
        )
    if len(primaries) < 3:
        yield Finding(
            "cluster",
            Severity.WARNING,
            first.address,
            f"Only {_count(len(primaries), 'primary')} {_has(primaries)} slots.",
            "When one of them is lost, the others are no majority: no replica is promoted.",
            "Give slots to at least three primaries.",
        )
    if lonely:
        yield Finding(
            "cluster",
            Severity.WARNING,
            first.address,
            f"These primaries have no replica: {', '.join(lonely)}.",
            "When one is lost, nobody is granted the leases whose slots it has, until it is back.",
            "Add a replica for each.",
        )
    if lonely and first.config("cluster-require-full-coverage") == "yes":
        yield Finding(
            "coverage",
            Severity.WARNING,
            first.address,
            "cluster-require-full-coverage is yes.",
            "When one slot is lost, all leases of the whole cluster are refused with CLUSTERDOWN.",
            "CONFIG SET cluster-require-full-coverage no on every node, and in its configuration "
            "file; or add the replicas.",
        )
    timeout = int(first.config("cluster-node-timeout") or 0) / 1000
    yield from _patience(first, "cluster-node-timeout", timeout, ttl)


def open_slots(
    nodes: Sequence[Node], pause: Callable[[float], None] = time.sleep
) -> Iterator[Finding]:
    """CLUSTER NODES of each node, which tells of its own slots alone: which are being moved.

    A slot that is closed soon after is none to speak of.
    """
    seen = _open(nodes)
    if not seen:
        return
    pause(_MOVING)
    still = {slot: told for slot, told in _open(nodes).items() if slot in seen}
    if not still:
        return
    slot = min(still)
    yield Finding(
        "slots",
        Severity.DANGER,
        still[slot][0][0],
        f"{_count(len(still), 'slot')} {'is' if len(still) == 1 else 'are'} being moved, or left "
        f"half moved, such as {slot}: {' and '.join(how for _, how in still[slot])}.",
        "Leases whose slot it is are neither granted nor released until the move ends, and not "
        "renewed, either, while their keys are on two nodes.",
        "Let the move come to its end. If nobody is moving it: redis-cli --cluster fix "
        f"{still[slot][0][0]}",
    )


def _open(nodes: Sequence[Node]) -> dict[int, list[tuple[str, str]]]:
    """Of each slot that is open: which nodes say so, and what they say."""
    found: dict[int, list[tuple[str, str]]] = {}
    for node in nodes:
        members = _members(text(node.ask("CLUSTER", "NODES")))
        places = {each.id: each.address for each in members}
        for each in members:
            for slot, sign, other in each.open if "myself" in each.flags else ():
                how = "migrating to" if sign == ">" else "importing from"
                told = f"{node.address} is {how} {places.get(other, other)}"
                found.setdefault(int(slot), []).append((node.address, told))
    return found


@dataclass(frozen=True, slots=True)
class _Member:
    id: str
    address: str
    flags: frozenset[str]
    follows: str
    slots: bool
    open: tuple[tuple[str, str, str], ...]

    @property
    def failed(self) -> bool:
        return bool({"fail", "fail?", "noaddr"} & self.flags)


def _members(told: str) -> list[_Member]:
    rows = (line.split() for line in told.splitlines() if line)
    return [
        _Member(
            id=row[0],
            address=row[1].partition("@")[0],
            flags=frozenset(row[2].split(",")),
            follows=row[3],
            slots=any(not word.startswith("[") for word in row[8:]),
            open=tuple(_OPEN.findall(" ".join(row[8:]))),
        )
        for row in rows
    ]


def same(one: Node, other: Node) -> bool:
    """INFO server and replication: whether two are one server, or follow the same primary."""
    if one.info("server")["run_id"] == other.info("server")["run_id"]:
        return True
    ids = [node.info("replication").get("master_replid") for node in (one, other)]
    return ids[0] is not None and ids[0] == ids[1]


def apart(one: Node, other: Node, here: Survey, there: Survey) -> Iterator[Finding]:
    """The names on two servers that know nothing of each other: whether instances share them."""
    where = f"{one.address} and {other.address}"
    common = sorted(here.names.keys() & there.names.keys())
    both = [name for name in common if here.names[name].lock and there.names[name].lock]
    cure = "Give every instance the same URL, and delete the keys on the server that is not it."
    if both:
        name = both[0]
        yield Finding(
            "split",
            Severity.DANGER,
            where,
            f"These are different servers, and {_count(len(both), 'name')} "
            f"{'is' if len(both) == 1 else 'are'} held on both: {name!r} by "
            f"{here.names[name].owner()} on the first, and by {there.names[name].owner()} on the "
            "second.",
            "Instances talk to different servers: each name has two holders, who know nothing of "
            "each other, and their tokens cannot be compared.",
            cure,
            tuple(both[:10]),
        )
    elif common:
        yield Finding(
            "split",
            Severity.WARNING,
            where,
            f"These are different servers, and both know {_count(len(common), 'name')}, such as "
            f"{common[0]!r}.",
            "Instances talk, or have talked, to different servers: both can grant the same lease.",
            cure,
            tuple(common[:10]),
        )
    else:
        yield Finding(
            "split",
            Severity.NOTE,
            where,
            "These are different servers, without a name in common.",
            "A lease on one says nothing on the other.",
            "Nothing, if they serve different services.",
        )


def _count(number: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("ry") else what + "s"
    return f"{number} {what if number == 1 else plural}"


def _has(what: Sequence[object]) -> str:
    return "has" if len(what) == 1 else "have"


def _seconds(number: float) -> str:
    return f"{number * 1000:.0f} ms" if number < 1 else f"{number:.1f} s"
