"""What a run found: figures per contender, and how far they can be trusted.

Its rules:

- Absolute times are not stable from one minute to the next, so contenders are compared by ratios
  within one round. A ratio is the median of those of all rounds; its spread, between the quartiles,
  is the noise, and a difference smaller than its noise is called into doubt.
- A percentile is the median of the rounds' own; where a round has too few calls for it, it is that
  of all calls together; where these are too few as well, there is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PING = "ping"
"""The contender that shows what the round trip alone takes."""

FLOOR = "floor"
"""The contender that does as little as a Python program can for the same work of the server."""

OURS = "ours"
"""The contender that uses the public API."""

CURVE = (*(part / 100 for part in range(1, 100)), 0.995, 0.998, 0.999)
"""The parts of all calls for which `Figures.curve_us` has a time."""

_REMEDY = "take more rounds, or a quieter machine"
_CALLS_IN_A_ROUND = 100
_CALLS_FOR_A_TAIL = 1_000


@dataclass(frozen=True, slots=True)
class Ratio:
    """How one contender's medians compare with another's, round by round.

    Attributes:
        median: of the ratios of all rounds.
        low, high: their quartiles.
    """

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """How far the rounds lie apart."""
        return self.high - self.low

    def __str__(self) -> str:
        """The median, and half the spread."""
        return f"{self.median:.2f} ± {self.spread / 2:.2f}"


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that is left out.

    Attributes:
        name: that of its distribution.
        reason: why.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What one contender took.

    Attributes:
        label: what it is, for people.
        calls: operations in each round.
        p50_us, p90_us, p99_us: microseconds per operation.
        p999_us: the same for 99.9 %, or ``None`` if there were too few calls to tell.
        per_second: operations per second.
        noise: the distance between the quartiles of the rounds' medians, as a part of ``p50_us``.
        rounds_p50_us: the median of each round, in order.
        curve_us: the times that the parts `CURVE` of all calls did not exceed.
    """

    label: str
    calls: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float | None
    per_second: float
    noise: float
    rounds_p50_us: tuple[float, ...]
    curve_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What the contenders of one case took; the first attributes are those of the `Case`.

    Attributes:
        name, title, api, transport, reference: as in the case.
        missing: the peers that were left out, before or while it ran.
        rounds: how often each contender had its turn.
        contenders: their figures by name.
    """

    name: str
    title: str
    api: str
    transport: str
    reference: str
    missing: tuple[Missing, ...]
    rounds: int
    contenders: dict[str, Figures]

    def ratio(self, contender: str, to: str) -> Ratio:
        """How many times the median of ``to`` the median of ``contender`` is."""
        both = (self.contenders[each].rounds_p50_us for each in (contender, to))
        ratios = [upper / lower for upper, lower in zip(*both, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return Ratio(median, low, high)

    def doubts(self) -> list[str]:
        """The comparisons of ours that the noise could have made, if any, in a sentence."""
        unsure = []
        for other in self.contenders:
            ratio = self.ratio(OURS, other)
            if other not in (OURS, PING) and ratio.spread >= abs(ratio.median - 1):
                unsure.append(f"{other} ({ratio})")
        if not unsure:
            return []
        which = f"{self.name} ({self.api}, {self.transport})"
        others = ", ".join(unsure)
        return [f"{which}: the rounds differ by more than ours does from {others}: {_REMEDY}"]

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict, with the ratios to floor and reference."""
        return asdict(self) | {
            "contenders": {
                name: asdict(figures)
                | {
                    "to_floor": asdict(self.ratio(name, FLOOR)),
                    "to_reference": asdict(self.ratio(name, self.reference)),
                }
                for name, figures in self.contenders.items()
            }
        }


@dataclass(frozen=True, slots=True)
class Results:
    """What a run found.

    Attributes:
        seed: what the order of the turns was drawn from.
        cases: one result per case, in the order asked for.
    """

    seed: int
    cases: tuple[CaseResult, ...]

    def doubts(self) -> list[str]:
        """What should not be concluded from this run."""
        return [doubt for case in self.cases for doubt in case.doubts()]

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict, fit for JSON."""
        return {
            "seed": self.seed,
            "curve": CURVE,
            "cases": [case.as_dict() for case in self.cases],
            "doubts": self.doubts(),
        }


def summed_up(label: str, rounds: Sequence[Sequence[int]]) -> Figures:
    """Make the figures of one contender from the nanoseconds of its calls, round by round."""
    ranked = [sorted(times) for times in rounds]
    everything = sorted(time for times in rounds for time in times)

    def percentile(part: float, calls_needed: int) -> float:
        enough = len(everything) >= calls_needed * len(rounds)
        return statistics.median(at(times, part) for times in (ranked if enough else [everything]))

    medians = [at(times, 0.50) for times in ranked]
    p50 = statistics.median(medians)
    low, _, high = statistics.quantiles(medians, n=4, method="inclusive")
    tail = len(everything) >= _CALLS_FOR_A_TAIL
    return Figures(
        label=label,
        calls=len(rounds[0]),
        p50_us=p50,
        p90_us=percentile(0.90, _CALLS_IN_A_ROUND),
        p99_us=percentile(0.99, _CALLS_IN_A_ROUND),
        p999_us=percentile(0.999, _CALLS_FOR_A_TAIL) if tail else None,
        per_second=statistics.median(len(times) * 1e9 / sum(times) for times in ranked),
        noise=(high - low) / p50,
        rounds_p50_us=tuple(medians),
        curve_us=tuple(at(everything, part) for part in CURVE),
    )


def at(ranked: Sequence[int], part: float) -> float:
    """The smallest time, in microseconds, that this part of all did not exceed."""
    return ranked[math.ceil(part * len(ranked)) - 1] / 1000
