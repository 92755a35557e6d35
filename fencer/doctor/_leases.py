"""What can be wrong with the leases of a namespace."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fencer import _check
from fencer._keys import Keyspace
from fencer.doctor._nodes import Node
from fencer.doctor._records import Finding, Severity
from fencer.doctor._survey import PATIENCE, Name, Survey, stands, strange

DEFAULT_TTL = 10.0
"""The ttl that clocks are measured against where no lease is held: what acquire takes unasked."""

_AHEAD = 1.0
"""Seconds by which a token may be ahead of the server's clock: releases and retries add to it."""

_FAR = 3_600.0
"""Seconds by which a mark may be ahead of the clock of the server that it is on: its tokens may
come from another server."""


def judge(found: Survey, node: Node, keyspace: Keyspace) -> Iterator[Finding]:
    """All that can be wrong with the leases on one server."""
    where = f"namespace {keyspace.namespace} on {node.address}"
    names = list(found.names.values())
    for names_check in (_types, _broken, _endless, _foreign, _ahead, _line):
        yield from names_check(names, where)
    yield from _marks(found, where)


def _types(names: list[Name], where: str) -> Iterator[Finding]:
    wrong = [each for each in names if each.wrong]
    if wrong:
        keys = ", ".join(sorted({kind for each in wrong for kind in each.wrong}))
        yield _about(
            wrong,
            "key-type",
            Severity.DANGER,
            where,
            "a key of another type than Fencer's",
            keys,
            "Leases on such a name are refused with WRONGTYPE, for ever.",
            "Find out who wrote them; delete them by hand, or use another namespace.",
        )


def _broken(names: list[Name], where: str) -> Iterator[Finding]:
    broken = [each for each in names if each.broken]
    if broken:
        keys = ", ".join(sorted({kind for each in broken for kind in each.broken}))
        yield _about(
            broken,
            "key-value",
            Severity.DANGER,
            where,
            "a key with a value that Fencer did not write",
            keys,
            "Leases on such a name are refused with CORRUPT.",
            "Find out who wrote them; delete them by hand, or use another namespace.",
        )


def _endless(names: list[Name], where: str) -> Iterator[Finding]:
    endless = [each for each in names if each.lock is not None and each.lock_ms == -1]
    if endless:
        yield _about(
            endless,
            "endless-lock",
            Severity.DANGER,
            where,
            "a lock key without a time limit",
            f"for {endless[0].lock!r}",
            "If that holder is gone, nobody is ever granted the lease again. Fencer writes no such "
            "key: it was written, or made to stay (PERSIST), by somebody else.",
            "`fencer revoke NAME` if Fencer's info belongs to it; else delete the lock by hand.",
        )


def _foreign(names: list[Name], where: str) -> Iterator[Finding]:
    foreign = [each for each in names if strange(each)]
    if foreign:
        yield _about(
            foreign,
            "foreign-lock",
            Severity.WARNING,
            where,
            "a lock key that the last holder did not write",
            f"it says {foreign[0].lock!r}",
            "Another program uses the same keys, or the token key was deleted: the holder of the "
            "lease has lost it, and two programs may both think that they have it.",
            "Use another namespace for one of them; `fencer history NAME` tells who was granted.",
        )


def _ahead(names: list[Name], where: str) -> Iterator[Finding]:
    def ahead(each: Name) -> float:
        return int(each.token) / 1e6 - each.now if each.token.isdecimal() else -math.inf

    early = sorted(
        (each for each in names if ahead(each) > _AHEAD and "token" not in each.broken),
        key=ahead,
        reverse=True,
    )
    if early:
        yield _about(
            early,
            "tokens-ahead",
            Severity.WARNING,
            where,
            "a last token ahead of the server's clock",
            f"by {_duration(ahead(early[0]))}",
            "Tokens go on rising by one each. But if the server loses them before its clock has "
            "caught up, new tokens are smaller than those handed out before.",
            "If its clock was set back, or is behind: let a time service such as chrony run. If "
            "the names were advanced by hand: keep the server's data safe, on disk and replicas.",
        )


def _line(names: list[Name], where: str) -> Iterator[Finding]:
    standing = [each for each in names if stands(each)]
    if standing:
        yield _about(
            standing,
            "line",
            Severity.WARNING,
            where,
            "a line of waiters that does not move",
            f"free for {PATIENCE:g} s, and the first in line did not take it",
            "The waiters are stopped, or cut off from the server: nobody has the lease, and others "
            "come first only when they ask, or after a minute.",
            "See the waiters' processes: `fencer status NAME` names them.",
        )


def _marks(found: Survey, where: str) -> Iterator[Finding]:
    ending = [mark for mark, each in found.marks.items() if each.left_ms != -1]
    if ending:
        yield Finding(
            "mark-ends",
            Severity.DANGER,
            where,
            f"{_marks_have(ending)} a time limit, such as {ending[0]!r}.",
            "When it is gone, that guard has forgotten which tokens it has seen, and takes stale "
            "writes.",
            f"PERSIST {ending[0]}, and find out who set the limit.",
            tuple(ending[:10]),
        )
    broken = [mark for mark, each in found.marks.items() if not each.token]
    if broken:
        yield Finding(
            "mark-value",
            Severity.DANGER,
            where,
            f"{_marks_have(broken)} a value that no guard wrote, such as {broken[0]!r}.",
            "That guard refuses every write.",
            "Find out who wrote it; if you delete it, advance the name past the largest token that "
            "the data may have seen.",
            tuple(broken[:10]),
        )


def marks_ahead(found: Survey, node: Node, keyspace: Keyspace, largest: int) -> Iterator[Finding]:
    """Whether a guard has accepted a number that no holder will reach; ``largest`` of all names."""

    def ahead(mark: str) -> float:
        return found.marks[mark].token / 1e6 - found.marks[mark].now

    early = sorted(
        (mark for mark, each in found.marks.items() if ahead(mark) > _FAR and each.token > largest),
        key=ahead,
        reverse=True,
    )
    if not early:
        return
    token = found.marks[early[0]].token
    cure = (
        f"`fencer advance NAME {token}` for the name of its leases ends the lease that is held and "
        "makes the next token larger; from then on its tokens are ahead of the clock, and rise "
        "only while the server keeps its data."
        if token <= _check.MAX_BEYOND
        else f"No name can be advanced past it. When no earlier holder can write any more: DEL "
        f"{early[0]}; the guard then takes whatever token comes first."
    )
    yield Finding(
        "mark-ahead",
        Severity.DANGER,
        f"namespace {keyspace.namespace} on {node.address}",
        f"{_marks_have(early)} a token ahead of the clock, such as {early[0]!r} "
        f"({token}, by {_duration(ahead(early[0]))}), and no name that was looked at has one as "
        "large.",
        "That guard refuses with StaleToken every holder whose token is smaller, as all are that "
        "the clock mints until then.",
        f"{cure} And find out who showed it that number: sealed sequencers (keys=...) are not to "
        "be forged.",
        tuple(early[:10]),
    )


def _marks_have(marks: list[str]) -> str:
    return "A guard's mark has" if len(marks) == 1 else f"{len(marks)} guards' marks have"


def short_ttl(found: Survey, node: Node, keyspace: Keyspace) -> Iterator[Finding]:
    """Whether leases last long enough to be renewed, by three round trips measured now."""
    trips = 3 * node.clock.round_trip
    held = (each for each in found.names.values() if each.ttl is not None)
    short = sorted((each for each in held if (each.ttl or 0.0) < trips), key=lambda e: e.ttl or 0.0)
    if short:
        yield _about(
            short,
            "short-ttl",
            Severity.WARNING,
            f"namespace {keyspace.namespace} on {node.address}",
            f"a lease with a ttl shorter than three round trips from here, {_duration(trips)}",
            _duration(short[0].ttl or 0.0),
            "Holders as far away as this machine lose it again and again: a renewal and one retry "
            "take longer than it lasts.",
            "Choose a ttl of many round trips (5 to 30 s suits most), or move closer.",
        )


def client_timeout(node: Node, ttl: float) -> Iterator[Finding]:
    """Whether a call of this very client can hang for longer than a lease lasts."""
    timeout = node.client.connection_pool.connection_kwargs.get("socket_timeout")
    if timeout is not None and timeout <= ttl:
        return
    shown = "none" if timeout is None else f"{timeout:g} s"
    yield Finding(
        "timeout",
        Severity.NOTE,
        node.address,
        f"This client's socket_timeout is {shown}, and the shortest ttl {ttl:g} s.",
        "When the server hangs, a call hangs for longer than a lease lasts. The lease says that it "
        "is lost all the same; its renewals cannot be tried again in time.",
        "Pass a socket_timeout of about a third of the ttl.",
    )


def _about(
    names: list[Name],
    check: str,
    severity: Severity,
    where: str,
    what: str,
    detail: str,
    consequence: str,
    cure: str,
) -> Finding:
    """A finding about several names; ``detail`` is about the first of them."""
    first = repr(names[0].name)
    danger = (
        f"{first} has {what} ({detail})."
        if len(names) == 1
        else f"{len(names):,} names have {what}, such as {first} ({detail})."
    )
    some = tuple(each.name for each in names[:10])
    return Finding(check, severity, where, danger, consequence, cure, some)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
