"""Nothing may fail in a task or a thread that nobody waits for."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.faults.history import History


@pytest.fixture(autouse=True)
def nothing_fails_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A task that died would only be told of in the log."""
    yield
    gc.collect()  # asyncio complains when it forgets the task
    records = caplog.get_records("call") + caplog.get_records("teardown")
    assert [one.getMessage() for one in records if one.name == "asyncio"] == []


@pytest.fixture(autouse=True)
def judged(history: History) -> None:
    """The record of this test must keep every rule: see `tests.faults.history`."""
