"""Measures contenders side by side; what follows from the times is said in `figures`.

Its rules:

- All contenders of all cases take turns, in a new random order each round, and each has about as
  much time as any other.
- A turn begins with calls that are not measured; no garbage is collected while it lasts.
- A peer that fails is left out from then on, by name and reason. If ours or the floor fails, the
  run does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import Any, TypeAlias

from fencer.bench.figures import CaseResult, Missing, Results, summed_up

Operation: TypeAlias = Callable[[], object]

MIN_ROUNDS = 3
"""With fewer rounds there is no telling how far they lie apart."""

_TRIAL_CALLS = 64
_TRIAL_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do a case's work.

    Attributes:
        name: short and unique within its case.
        label: what it is, for people.
        operation: does the work once, and raises if it was not done.
        tells: whether the operation returns the nanoseconds that count; else it is timed.
        loop: for asyncio, what runs it; the operation returns an awaitable then.
        optional: whether the run goes on without it if it fails.
    """

    name: str
    label: str
    operation: Operation
    tells: bool = False
    loop: asyncio.Runner | None = None
    optional: bool = False

    def once(self) -> int:
        """Do the work once, and return the nanoseconds that count."""
        (took,) = self.times(1)
        return took

    def times(self, calls: int) -> list[int]:
        """Do the work several times, and return the nanoseconds of each."""
        if self.loop is not None:
            return self.loop.run(_awaiting(self.operation, calls))
        operation: Callable[[], Any] = self.operation
        if self.tells:
            return [operation() for _ in range(calls)]
        times = [0] * calls
        for index in range(calls):
            begun = perf_counter_ns()
            operation()
            times[index] = perf_counter_ns() - begun
        return times


@dataclass(frozen=True, slots=True)
class Case:
    """The same work, done by several contenders.

    Attributes:
        name: short, as on the command line.
        title: what is done, for people.
        reference: the contender that ours is compared with, beside the floor.
        contenders: at least those called `FLOOR`, `OURS` and as ``reference`` says.
        missing: the peers that are left out.
        api: ``threads`` or ``asyncio``.
        transport: ``tcp``, ``tls`` or ``unix``.
    """

    name: str
    title: str
    reference: str
    contenders: tuple[Contender, ...]
    missing: tuple[Missing, ...] = ()
    api: str = "threads"
    transport: str = "tcp"

    def contender(self, name: str) -> Contender:
        """The contender of this name."""
        (found,) = (each for each in self.contenders if each.name == name)
        return found


def run(
    cases: Sequence[Case],
    *,
    rounds: int = 25,
    seconds: float = 20.0,
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
        others: what an operation raises that is not optional.
    """
    if rounds < MIN_ROUNDS or (calls is not None and calls < 1):
        raise ValueError(f"at least {MIN_ROUNDS} rounds and 1 call are needed")
    turns = [
        _Turns(number, contender)
        for number, case in enumerate(cases)
        for contender in case.contenders
    ]
    share = seconds / len(turns) / rounds
    for each in turns:
        each.prepare(calls, share)
    order, shuffled = random.Random(seed), list(turns)
    with little_garbage():
        for done in range(rounds):
            gc.collect()
            order.shuffle(shuffled)
            for index, each in enumerate(shuffled):
                told(done * len(turns) + index, rounds * len(turns))
                each.take()
    told(rounds * len(turns), rounds * len(turns))
    return Results(
        seed,
        tuple(
            _result(case, rounds, [each for each in turns if each.case == number])
            for number, case in enumerate(cases)
        ),
    )


def measure(contender: Contender, calls: int) -> list[int]:
    """Return the nanoseconds of each of so many calls, after a tenth as many unmeasured ones."""
    with _no_garbage_collected():
        contender.times(calls // 10 + 1)
        return contender.times(calls)


class _Turns:
    """The turns of one contender."""

    def __init__(self, case: int, contender: Contender) -> None:
        self.case = case
        self.contender = contender
        self.failed: str | None = None
        self.rounds: list[list[int]] = []
        self._calls = 1

    def prepare(self, calls: int | None, seconds: float) -> None:
        """Say how many calls a turn has: as many as are given, or as fit into so many seconds."""
        with self._failing():
            # Each turn begins with a tenth as many and one more.
            self._calls = calls or max(1, int((seconds / _takes(self.contender) - 1) / 1.1))

    def take(self) -> None:
        """Take a turn."""
        if self.failed is None:
            with self._failing():
                self.rounds.append(measure(self.contender, self._calls))

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.contender.optional:
                raise
            self.failed = reason(error)


def reason(error: BaseException) -> str:
    """An error as one line."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _result(case: Case, rounds: int, turns: Sequence[_Turns]) -> CaseResult:
    gone = tuple(Missing(each.contender.name, each.failed) for each in turns if each.failed)
    return CaseResult(
        case.name,
        case.title,
        case.api,
        case.transport,
        case.reference,
        case.missing + gone,
        rounds,
        {
            each.contender.name: summed_up(each.contender.label, each.rounds)
            for each in turns
            if not each.failed
        },
    )


async def _awaiting(operation: Callable[[], Any], calls: int) -> list[int]:
    times = [0] * calls
    for index in range(calls):
        begun = perf_counter_ns()
        await operation()
        times[index] = perf_counter_ns() - begun
    return times


@contextlib.contextmanager
def little_garbage() -> Iterator[None]:
    """Let the collector look only at what is made from now on, so that its passes are short."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _takes(contender: Contender) -> float:
    """The seconds from one call to the next, whatever part of them counts."""
    calls = 1
    while True:
        begun = perf_counter()
        contender.times(calls)
        took = perf_counter() - begun
        if took > _TRIAL_SECONDS or calls >= _TRIAL_CALLS:
            return took / calls
        calls *= 4
