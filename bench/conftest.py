"""A server for all benchmarks, pinned beside this process, and its version in the JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fencer.bench import Place, driver_versions, open_place

_PLACE = pytest.StashKey[Place]()


@pytest.fixture(scope="session")
def place(pytestconfig: pytest.Config) -> Iterator[Place]:
    """A private server on the core of this process; `FENCER_SERVER_BINARY` chooses which."""
    with open_place() as place:
        pytestconfig.stash[_PLACE] = place
        yield place


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Tell in the JSON which server was measured, and through which driver."""
    place = config.stash.get(_PLACE, None)
    machine_info["fencer"] = driver_versions() if place is None else place.facts()
