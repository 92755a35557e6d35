"""Fixtures: the record of a test, and the verdict on it when the test has ended.

Every test in the folders of fault tests keeps a record (their ``conftest`` asks for it). What its
own faults bring about, such as two that believe at once after the lock was deleted by hand, is
told by a mark: ``@pytest.mark.may_break("S4", why="the lock is deleted by hand")``. A test with a
planted bug says what the checker must find: ``@pytest.mark.must_break("S2")``.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from fencer import _clock
from fencer.drill.judge import Finding
from fencer.drill.record import Event
from tests.faults.checker import RULES, check
from tests.faults.planted import TWIN
from tests.faults.record import VARIABLE, Recorder, read, recording

RECORD = pytest.StashKey[Path]()


class History:
    """What a test can tell beside what its clients do."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def tell(self, event: Event) -> None:
        """Something that no client of ours did."""
        self._recorder.tell(event)

    def healed(self, seconds: float) -> None:
        """The fault is over: somebody must be granted within so many seconds."""
        now = _clock.now()
        self.tell(Event("", "healed", now, now, note=f"{seconds:g}"))

    def events(self) -> list[Event]:
        """All so far."""
        return read(self._recorder.path)


@pytest.fixture
def history(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """The record of this test, in a file; judged when the test has ended."""
    path = tmp_path / "record.jsonl"
    request.node.stash[RECORD] = path
    monkeypatch.setenv(VARIABLE, str(path))
    recorder = Recorder(path)
    try:
        with recording(recorder):
            yield History(recorder)
    finally:
        recorder.close()
    verdict(request.node, check(read(path)))


def verdict(test: pytest.Item, findings: list[Finding]) -> None:
    """Fail the test if a rule is broken that it does not mean to break, or the other way round."""
    may = {rule for mark in test.iter_markers("may_break") for rule in mark.args}
    must = {rule for mark in test.iter_markers("must_break") for rule in mark.args}
    assert may | must <= set(RULES), f"no such rules: {may | must}"
    broken = {finding.rule for finding in findings}
    wrong = [f for f in findings if f.rule not in may | must]
    if wrong:
        lines = "\n".join(f"{each.rule} at {each.at:.3f}: {each.text}" for each in wrong[:20])
        pytest.fail(f"the record breaks rules:\n{lines}\n{where(test)}", pytrace=False)
    if must - broken and TWIN not in test.stash:
        pytest.fail(f"the checker does not find {must - broken}\n{where(test)}", pytrace=False)


def where(test: pytest.Item) -> str:
    """Where the record of a failed test is kept, and the seed of its random numbers."""
    seed = test.config.getoption("randomly_seed", None)
    kept = Path(tempfile.gettempdir()) / "fencer-records"
    kept.mkdir(exist_ok=True)
    path = kept / (re.sub(r"\W+", "-", test.nodeid) + f"-{os.getpid()}.jsonl")
    if test.stash[RECORD].exists():
        shutil.copyfile(test.stash[RECORD], path)
    return f"the record: {path}, the random seed: {seed}"


def pytest_configure(config: pytest.Config) -> None:
    """The marks; see the module."""
    config.addinivalue_line("markers", "may_break(*rules, why): the test's own faults break these")
    config.addinivalue_line("markers", "must_break(*rules): the bug that is planted breaks these")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell where the record of a failed test is."""
    report = yield
    if report.failed and RECORD in item.stash:
        report.sections.append(("record", where(item)))
    return report
