"""Every contender of every case; ``pytest bench/``. What `fencer bench` measures, at length.

The contenders run one after the other here, so read ratios from `fencer bench`, which lets them
take turns; this is for comparing one commit with another (``--benchmark-compare``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fencer.bench import FLOOR, OURS, PING, Case, Contender, Operation, Place, open_cases
from fencer.bench.peers import PEERS
from fencer.bench.peers_async import ASYNC_PEERS
from fencer.bench.players import KINDS

_ROUNDS = 200
_CALLS = 20
"""In a round: a call of its own would find the loop, or the processor's caches, cold."""
_LONG = 50
"""Rounds of one call each, where a call is long."""


class _Told:
    """A clock that moves on by what an operation tells, and by nothing else."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        return self._seconds

    def after(self, contender: Contender, calls: int) -> Operation:
        """Some calls of a contender, after which the clock has moved on by the mean of them."""

        def operation() -> None:
            self._seconds += sum(contender.times(calls)) / calls / 1e9

        return operation


_told = _Told()
_USUAL = (PING, FLOOR, "evalsha", OURS)


@pytest.fixture(scope="module")
def cases(place: Place) -> Iterator[_Cases]:
    """The cases, each opened when first asked for."""
    with contextlib.ExitStack() as opened:
        yield _Cases(place, opened)


class _Cases:
    def __init__(self, place: Place, opened: contextlib.ExitStack) -> None:
        self.place = place
        self._opened = opened
        self.of = cache(self._open)

    def _open(self, name: str, api: str) -> Case:
        (case,) = self._opened.enter_context(open_cases(self.place.urls, [name], apis=[api]))
        return case


@pytest.mark.benchmark(group="renew", timer=_told)
@pytest.mark.parametrize("contender", [*_USUAL, *(kind.name for kind in PEERS)])
def test_renew(contender: str, cases: _Cases, benchmark: BenchmarkFixture) -> None:
    """A lease has its full ttl again."""
    _measure("renew", "threads", contender, cases, benchmark)


@pytest.mark.benchmark(group="renew, awaited", timer=_told)
@pytest.mark.parametrize("contender", [*_USUAL, *(kind.name for kind in ASYNC_PEERS)])
def test_renew_in_tasks(contender: str, cases: _Cases, benchmark: BenchmarkFixture) -> None:
    """The same in asyncio."""
    _measure("renew", "asyncio", contender, cases, benchmark)


@pytest.mark.benchmark(group="acquire + release", timer=_told)
@pytest.mark.parametrize("contender", [*_USUAL, *(kind.name for kind in PEERS)])
def test_acquire(contender: str, cases: _Cases, benchmark: BenchmarkFixture) -> None:
    """A lease is granted, and given back."""
    _measure("acquire", "threads", contender, cases, benchmark)


@pytest.mark.benchmark(group="acquire + release, awaited", timer=_told)
@pytest.mark.parametrize("contender", [*_USUAL, *(kind.name for kind in ASYNC_PEERS)])
def test_acquire_in_tasks(contender: str, cases: _Cases, benchmark: BenchmarkFixture) -> None:
    """The same in asyncio."""
    _measure("acquire", "asyncio", contender, cases, benchmark)


@pytest.mark.benchmark(group="guard execute", timer=_told)
@pytest.mark.parametrize("contender", [*_USUAL, "set"])
def test_guard(contender: str, cases: _Cases, benchmark: BenchmarkFixture) -> None:
    """A write goes through a guard that knows its token already."""
    _measure("guard", "threads", contender, cases, benchmark)


@pytest.mark.benchmark(group="hand-over", timer=_told)
@pytest.mark.parametrize("contender", [PING, *(kind.name for kind in KINDS)])
def test_handover(contender: str, cases: _Cases, benchmark: BenchmarkFixture) -> None:
    """What one process releases is in another one's hand."""
    _measure("handover", "threads", contender, cases, benchmark, _LONG, 1)


@pytest.mark.benchmark(group="renew 1,000 at once, each", timer=_told)
@pytest.mark.parametrize("contender", ["one", FLOOR, OURS])
def test_keepalive(contender: str, cases: _Cases, benchmark: BenchmarkFixture) -> None:
    """Many leases have their full ttl again."""
    _measure("keepalive", "threads", contender, cases, benchmark, _LONG, 1)


def _measure(
    name: str,
    api: str,
    contender: str,
    cases: _Cases,
    benchmark: BenchmarkFixture,
    rounds: int = _ROUNDS,
    calls: int = _CALLS,
) -> None:
    benchmark.extra_info.update(cases.place.facts())
    case = cases.of(name, api)
    for gone in case.missing:
        if gone.name == contender:
            pytest.skip(f"{contender} is left out: {gone.reason}")
    chosen = case.contender(contender)
    benchmark.extra_info["label"] = chosen.label
    benchmark.pedantic(_told.after(chosen, calls), rounds=rounds, warmup_rounds=rounds // 10)
