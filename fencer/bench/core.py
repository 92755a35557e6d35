"""Measures contenders side by side.

Its rules:

- Absolute times are not stable from one minute to the next, so only ratios within one run count.
- All contenders of all cases take turns, in a new random order each round.
- A turn begins with calls that are not measured; no garbage is collected while it lasts.
- A figure is the median, over the rounds, of that figure within one round; where a round has too
  few calls for a percentile, it is that of all calls together. The noise is how far the rounds' own
  medians lie apart, and a difference smaller than the noise is called into doubt.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter, perf_counter_ns
from typing import Any, TypeAlias

Operation: TypeAlias = Callable[[], object]

FLOOR = "floor"
"""The contender that does as little as a Python program can for the same work of the server."""

OURS = "ours"
"""The contender that uses the public API."""

MIN_ROUNDS = 3
"""With fewer rounds there is no telling how far they lie apart."""

_FULL_ROUND = 100
"""Calls from which on a round has percentiles of its own."""

_TRIAL_CALLS = 40
_TRIAL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do a case's work.

    Attributes:
        name: short and unique within its case.
        label: what it is, for people.
        operation: does the work once, and raises if it was not done.
        tells: whether the operation returns the nanoseconds that count; else it is timed.
    """

    name: str
    label: str
    operation: Operation
    tells: bool = False

    def once(self) -> int:
        """Do the work once, and return the nanoseconds that count."""
        begun = perf_counter_ns()
        told: Any = self.operation()
        return int(told) if self.tells else perf_counter_ns() - begun


@dataclass(frozen=True, slots=True)
class Case:
    """The same work, done by several contenders.

    Attributes:
        name: short, as on the command line.
        title: what is done, for people.
        reference: the contender that ours is compared with, beside the floor.
        contenders: at least those called `FLOOR`, `OURS` and as ``reference`` says.
        missing: the peers that are left out because they are not installed.
    """

    name: str
    title: str
    reference: str
    contenders: tuple[Contender, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figures:
    """What one contender took.

    Attributes:
        label: what it is, for people.
        p50_us, p90_us, p99_us: microseconds per operation.
        per_second: operations per second.
        noise: the distance between the quartiles of the rounds' medians, as a part of ``p50_us``.
        rounds_p50_us: the median of each round, in order.
    """

    label: str
    p50_us: float
    p90_us: float
    p99_us: float
    per_second: float
    noise: float
    rounds_p50_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What the contenders of one case took; the first attributes are those of the `Case`.

    Attributes:
        name, title, reference, missing: as in the case.
        rounds: how often each contender had its turn.
        calls: operations per contender and round.
        contenders: their figures by name.
    """

    name: str
    title: str
    reference: str
    missing: tuple[str, ...]
    rounds: int
    calls: int
    contenders: dict[str, Figures]

    def ratio(self, contender: str, to: str) -> float:
        """How many times the median of ``to`` the median of ``contender`` is."""
        return self.contenders[contender].p50_us / self.contenders[to].p50_us

    def doubts(self) -> list[str]:
        """The comparisons of ours that the noise could have made, each as a sentence."""
        sentences = []
        for other in (FLOOR, self.reference):
            noise = max(self.contenders[OURS].noise, self.contenders[other].noise)
            shown = abs(self.ratio(OURS, other) - 1)
            if noise >= shown:
                sentences.append(
                    f"{self.name}: the rounds lie {noise:.0%} apart, and {OURS} and {other} only "
                    f"{shown:.0%}: take more rounds, or a quieter machine"
                )
        return sentences


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
        """The same as a plain dict, fit for JSON, with the ratios to floor and reference."""
        return {
            "seed": self.seed,
            "cases": [
                asdict(case)
                | {
                    "contenders": {
                        name: asdict(figures)
                        | {
                            "to_floor": case.ratio(name, FLOOR),
                            "to_reference": case.ratio(name, case.reference),
                        }
                        for name, figures in case.contenders.items()
                    }
                }
                for case in self.cases
            ],
            "doubts": self.doubts(),
        }


def run(
    cases: Sequence[Case],
    *,
    rounds: int = 25,
    seconds: float = 5.0,
    calls: int | None = None,
    seed: int = 1,
    told: Callable[[int, int], None] = lambda done, turns: None,
) -> Results:
    """Measure all contenders of some cases.

    Args:
        cases: what to measure, open and ready.
        rounds: how often each contender has its turn, 3 or more.
        seconds: about how long to take in all.
        calls: operations per contender and round; by default as many as fit into ``seconds``.
        seed: the order of the turns is drawn from it.
        told: called between turns with the number of turns done and the number of all.

    Raises:
        ValueError: too few rounds, or calls below 1.
        others: what an operation raises.
    """
    if rounds < MIN_ROUNDS or (calls is not None and calls < 1):
        raise ValueError(f"at least {MIN_ROUNDS} rounds and 1 call are needed")
    per_turn = {
        case.name: calls or _calls_within(case, seconds / len(cases) / rounds) for case in cases
    }
    turns = [(case, contender) for case in cases for contender in case.contenders]
    measured: dict[tuple[str, str], list[list[int]]] = {
        (case.name, contender.name): [] for case, contender in turns
    }
    order = random.Random(seed)
    for done in range(rounds):
        gc.collect()
        order.shuffle(turns)
        for index, (case, contender) in enumerate(turns):
            told(done * len(turns) + index, rounds * len(turns))
            times = measure(contender, per_turn[case.name])
            measured[case.name, contender.name].append(times)
    told(rounds * len(turns), rounds * len(turns))
    return Results(
        seed,
        tuple(
            CaseResult(
                case.name,
                case.title,
                case.reference,
                case.missing,
                rounds,
                per_turn[case.name],
                {
                    each.name: summed_up(each.label, measured[case.name, each.name])
                    for each in case.contenders
                },
            )
            for case in cases
        ),
    )


def measure(contender: Contender, calls: int) -> list[int]:
    """Return the nanoseconds of each of so many calls, after a tenth as many unmeasured ones."""
    operation: Callable[[], Any] = contender.operation
    times = [0] * calls
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(calls // 10 + 1):
            operation()
        for index in range(calls if contender.tells else 0):
            times[index] = operation()
        for index in range(0 if contender.tells else calls):
            begun = perf_counter_ns()
            operation()
            times[index] = perf_counter_ns() - begun
    finally:
        if collecting:
            gc.enable()
    return times


def summed_up(label: str, rounds: Sequence[Sequence[int]]) -> Figures:
    """Make the figures of one contender from the nanoseconds of its calls, round by round."""
    ranked = [sorted(times) for times in rounds]
    medians = [_at(times, 0.50) for times in ranked]
    p50 = statistics.median(medians)
    everything = sorted(time for times in rounds for time in times)
    whole = ranked if len(everything) >= _FULL_ROUND * len(rounds) else [everything]
    low, _, high = statistics.quantiles(medians, n=4, method="inclusive")
    return Figures(
        label=label,
        p50_us=p50,
        p90_us=statistics.median(_at(times, 0.90) for times in whole),
        p99_us=statistics.median(_at(times, 0.99) for times in whole),
        per_second=statistics.median(len(times) * 1e9 / sum(times) for times in ranked),
        noise=(high - low) / p50,
        rounds_p50_us=tuple(medians),
    )


def _at(ranked: Sequence[int], part: float) -> float:
    """The smallest time, in microseconds, that this part of all did not exceed."""
    return ranked[math.ceil(part * len(ranked)) - 1] / 1000


def _calls_within(case: Case, seconds: float) -> int:
    """How many calls of each contender take about so long together, by a short trial."""
    once = sum(_takes(contender.operation) for contender in case.contenders)
    # Each turn begins with a tenth as many and one more.
    return max(1, int((seconds / once - 1) / 1.1))


def _takes(operation: Operation) -> float:
    """The seconds from one call to the next, whatever part of them counts."""
    operation()
    times: list[float] = []
    until = perf_counter() + _TRIAL_SECONDS
    while len(times) < _TRIAL_CALLS and perf_counter() < until:
        begun = perf_counter()
        operation()
        times.append(perf_counter() - begun)
    return statistics.median(times)
