"""A check for CI: how many times the floor ours takes, within one run, against a limit.

A busy machine makes calls slower, never faster. So what is compared is the best round of each, by
its 10th percentile: to change the answer, noise must hit all rounds of one contender and spare one
of the other. It ends once the limit is kept, after `MIN_ROUNDS` at least, and goes on otherwise.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fencer.bench.core import Case, Contender, little_garbage, measure
from fencer.bench.figures import FLOOR, OURS, at

LIMITS = {
    ("renew", "threads"): 1.9,
    ("renew", "asyncio"): 2.2,
    ("acquire", "threads"): 3.9,
    ("acquire", "asyncio"): 3.1,
    ("guard", "threads"): 2.6,
    ("keepalive", "threads"): 2.9,
}
"""By case and API: ours may take at most so many times what the floor takes. Each has a third on
top of what repeated runs showed."""

MIN_ROUNDS = 5
MAX_ROUNDS = 150

_LOW = 0.10
_CALLS = 50
"""Few, so that a round may fit between two times that others have the processor."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check found for one case.

    Attributes:
        name, api, transport: which case.
        floor_us, ours_us: the best rounds of both, in microseconds.
        limit: how many times the floor ours may take.
        rounds: how many it took to tell.
    """

    name: str
    api: str
    transport: str
    floor_us: float
    ours_us: float
    limit: float
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times the floor ours takes."""
        return self.ours_us / self.floor_us

    @property
    def kept(self) -> bool:
        """Whether it is within the limit."""
        return self.ratio <= self.limit


def checked(
    cases: Sequence[Case],
    *,
    limit: float | None = None,
    rounds: int = MAX_ROUNDS,
    calls: int = _CALLS,
    told: Callable[[int, int], None] = lambda done, turns: None,
) -> list[Checked]:
    """Compare ours with the floor in each case.

    Args:
        cases: open and ready, of those in `LIMITS`.
        limit: for all of them; by default each its own of `LIMITS`.
        rounds: at most; those that are within the limit need fewer.
        calls: of each in a round; for leases renewed together, a tenth.
        told: as for `run`.
    """
    found = []
    with little_garbage():
        for number, case in enumerate(cases):
            told(number, len(cases))
            allowed = LIMITS[case.name, case.api] if limit is None else limit
            found.append(_checked(case, allowed, rounds, calls))
    told(len(cases), len(cases))
    return found


def _checked(case: Case, limit: float, rounds: int, calls: int) -> Checked:
    best = {FLOOR: float("inf"), OURS: float("inf")}
    pair = [case.contender(name) for name in best]
    order = random.Random(1)
    for done in range(1, max(rounds, MIN_ROUNDS) + 1):
        gc.collect()
        order.shuffle(pair)
        for contender in pair:
            best[contender.name] = min(best[contender.name], _low(contender, calls))
        result = Checked(case.name, case.api, case.transport, best[FLOOR], best[OURS], limit, done)
        if result.kept and done >= MIN_ROUNDS:
            break
    return result


def _low(contender: Contender, calls: int) -> float:
    times = measure(contender, max(3, calls // 10) if contender.tells else calls)
    return at(sorted(times), _LOW)
