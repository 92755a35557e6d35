"""Every test here keeps a record, which is judged in the end: see `tests.faults.history`.

And the fixtures that are used in this folder alone are listed.
"""

from __future__ import annotations

import pytest

from tests.durability.power import Power, fsync_shim, make_power
from tests.faults.history import History
from tests.fix_replicas import _started_group, group, shared_group

__all__ = ["Power", "_started_group", "fsync_shim", "group", "make_power", "shared_group"]


@pytest.fixture(autouse=True)
def judged(history: History) -> None:
    """The record of this test must keep every rule."""
