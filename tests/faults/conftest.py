"""Every test here keeps a record, which is judged in the end: see `tests.faults.history`."""

from __future__ import annotations

import pytest

from tests.faults.history import History


@pytest.fixture(autouse=True)
def judged(history: History) -> None:
    """The record of this test must keep every rule."""
