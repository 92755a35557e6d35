"""What the doctor tells: plain, frozen records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from fencer.errors import FencerError


class Severity(StrEnum):
    """How bad it is."""

    DANGER = "danger"
    """A promise of Fencer does not hold here, or leases do not work."""

    WARNING = "warning"
    """A promise will not hold after a fault that can be expected."""

    NOTE = "note"
    """Good to know."""


class Verdict(StrEnum):
    """What a report comes to, the worst first."""

    DANGER = "danger"
    WARNING = "warning"
    UNSURE = "unsure"
    """Nothing bad was found, but not everything could be looked at."""

    NOTE = "note"
    GOOD = "good"


@dataclass(frozen=True, slots=True)
class Finding:
    """One danger.

    Attributes:
        check: which check found it, such as ``eviction``.
        severity: how bad it is.
        where: the server, or ``namespace fencer``.
        danger: what is the case.
        consequence: what it leads to.
        cure: what to do.
        names: the leases concerned, the first ten of them.
    """

    check: str
    severity: Severity
    where: str
    danger: str
    consequence: str
    cure: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unseen:
    """What could not be looked at.

    Attributes:
        check: which check.
        where: the server.
        why: such as a permission that lacks.
    """

    check: str
    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A server that was looked at.

    Attributes:
        address: where it is.
        role: ``primary``, ``replica``, ``sentinel``; ``server`` if it may not be asked.
        product: such as ``Valkey 9.1.2``; ``None`` if it may not be asked.
        round_trip: seconds, as measured now.
        clock: seconds by which its clock is ahead of the first server's (behind: below 0).
    """

    address: str
    role: str
    product: str | None
    round_trip: float | None
    clock: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that the doctor saw.

    Attributes:
        machines: the servers, those that were named first.
        names, held: how many leases are known there, and how many of them are held now.
        shortest_ttl: of those that are held, in seconds; ``None`` if none is.
        findings: the worst first.
        unseen: what could not be looked at.
    """

    machines: tuple[Machine, ...]
    names: int
    held: int
    shortest_ttl: float | None
    findings: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]

    @property
    def verdict(self) -> Verdict:
        """What it comes to."""
        worst = self.findings[0].severity if self.findings else None
        if self.unseen and worst in (None, Severity.NOTE):
            return Verdict.UNSURE
        return Verdict.GOOD if worst is None else Verdict(worst)

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict, fit for JSON."""
        return {"verdict": self.verdict, **asdict(self)}


class NotSeen(FencerError):
    """A check cannot look at what it is about. It becomes an `Unseen`."""
