"""Every contender of every case; ``pytest bench/``. What `fencer bench` measures, at length.

The contenders run one after the other here, so read ratios from `fencer bench`, which lets them
take turns; this is for comparing one commit with another (``--benchmark-compare``).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fencer.bench import FLOOR, OURS, Contender, Operation, Place, open_cases

_CALLS = 5_000
_HANDOVERS = 200
_BATCHES = 50


class _Told:
    """A clock that moves on by what an operation tells, and by nothing else."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        return self._seconds

    def after(self, contender: Contender) -> Operation:
        """The work of a contender, after which the clock has moved on."""

        def operation() -> None:
            self._seconds += contender.once() / 1e9

        return operation


_told = _Told()


@pytest.mark.benchmark(group="renew")
@pytest.mark.parametrize("contender", ["ping", FLOOR, OURS, "lock"])
def test_renew(contender: str, place: Place, benchmark: BenchmarkFixture) -> None:
    """A lease has its full ttl again."""
    _measure("renew", contender, place, benchmark)


@pytest.mark.benchmark(group="acquire + release")
@pytest.mark.parametrize("contender", ["ping", FLOOR, OURS, "lock"])
def test_acquire(contender: str, place: Place, benchmark: BenchmarkFixture) -> None:
    """A lease is granted, and given back."""
    _measure("acquire", contender, place, benchmark)


@pytest.mark.benchmark(group="guard execute")
@pytest.mark.parametrize("contender", ["ping", FLOOR, OURS, "set"])
def test_guard(contender: str, place: Place, benchmark: BenchmarkFixture) -> None:
    """A write goes through a guard that knows its token already."""
    _measure("guard", contender, place, benchmark)


@pytest.mark.benchmark(group="hand-over", timer=_told)
@pytest.mark.parametrize(
    "contender", ["ping", FLOOR, OURS, "lock", "python-redis-lock", "redis-fifo-lock"]
)
def test_handover(contender: str, place: Place, benchmark: BenchmarkFixture) -> None:
    """What one process releases is in another one's hand."""
    _measure("handover", contender, place, benchmark, _HANDOVERS, _told.after)


@pytest.mark.benchmark(group="renew 1,000 at once, each", timer=_told)
@pytest.mark.parametrize("contender", ["one", FLOOR, OURS])
def test_keepalive(contender: str, place: Place, benchmark: BenchmarkFixture) -> None:
    """Many leases have their full ttl again."""
    _measure("keepalive", contender, place, benchmark, _BATCHES, _told.after)


def _timed(contender: Contender) -> Operation:
    return contender.operation


def _measure(
    case: str,
    contender: str,
    place: Place,
    benchmark: BenchmarkFixture,
    calls: int = _CALLS,
    made: Callable[[Contender], Operation] = _timed,
) -> None:
    benchmark.extra_info.update(place.facts())
    with open_cases(place.url, [case]) as (opened,):
        if contender in opened.missing:
            pytest.skip(f"{contender} is not installed")
        (chosen,) = (each for each in opened.contenders if each.name == contender)
        benchmark.extra_info["label"] = chosen.label
        benchmark.pedantic(made(chosen), rounds=calls, warmup_rounds=calls // 10)
