"""Renewing from many threads and tasks at once, and the check against the floor, under pytest."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fencer.bench import AT_ONCE, LIMITS, Place, checked, open_cases, together_costs


@pytest.mark.benchmark(group="renewing at once")
@pytest.mark.parametrize("workers", AT_ONCE)
def test_together(workers: int, place: Place, benchmark: BenchmarkFixture) -> None:
    """Threads and tasks of one process, each with a lease of its own."""
    costs = benchmark.pedantic(together_costs, (place.url, [workers]), {"seconds": 0.5}, rounds=1)
    for cost in costs:
        benchmark.extra_info[f"{cost.contender}, {cost.api}, per second"] = cost.per_second


@pytest.mark.parametrize(("name", "api"), LIMITS)
def test_ours_is_not_far_above_the_floor(name: str, api: str, place: Place) -> None:
    """Would fail if a change made our client much slower than the bytes that it sends."""
    with open_cases(place.urls, [name], apis=[api], all_peers=False) as cases:
        (found,) = checked(cases)
    assert found.kept, f"{found.ratio:.2f} times the floor, and {found.limit:.2f} are allowed"
