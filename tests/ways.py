"""A module that imports `way` runs each of its tests twice: on the fast path, and without it."""

from __future__ import annotations

import pytest

from fencer import _kept


@pytest.fixture(autouse=True, params=["fast path", "ordinary way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two the wires of this process take."""
    monkeypatch.setattr(_kept, "ENABLED", request.param == "fast path")
    chosen: str = request.param
    return chosen
