"""Each scenario, on real processes; and the same with planted bugs, which must be seen."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from fencer.drill.judge import judge
from fencer.drill.play import Result, Run, play
from fencer.drill.record import Record
from fencer.drill.scenarios import SCENARIOS
from fencer.drill.stage import NotSeen, Settings, Stage

SETTINGS = Settings(ttl=1.0, retry_interval=0.2, duration=10.0, seed=7)


def told(run: Run) -> str:
    """What a failed run has to say, for the assertion's message."""
    lines = [f"seed {run.seed}; kept in {run.folder}"]
    return "\n".join([*lines, *(f"{each.rule}: {each.text}" for each in run.findings)])


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "chaos"])
def test_scenario(name: str, request: pytest.FixtureRequest) -> None:
    """If this fails, an election broke a promise under this fault, on this machine, just now."""
    scenario = SCENARIOS[name]
    if scenario.shifts_clock:
        request.getfixturevalue("clock_shim")  # skips, or fails in CI, where it cannot be built
    run = play(scenario, SETTINGS)
    assert not run.findings, told(run)
    assert run.folder is None
    assert all(0 <= figure <= SETTINGS.limit + SETTINGS.ttl for figure in run.figures)
    assert len(run.figures) == 1
    assert run.record.terms()
    assert run.record.writes


@pytest.mark.slow
def test_chaos() -> None:
    """If this fails, faults in a random order broke what each of them alone did not."""
    run = play(SCENARIOS["chaos"], SETTINGS)
    assert not run.findings, told(run)
    assert len(run.record.instances) == 5
    assert run.figures


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Run]]:
    """Plays a scenario with instances that have a bug, once for all tests that ask for it."""
    runs: dict[tuple[str, str], Run] = {}

    def make(bug: str, scenario: str) -> Run:
        if (bug, scenario) not in runs:
            program = (sys.executable, "-m", "tests.drill.planted", bug)
            runs[bug, scenario] = play(SCENARIOS[scenario], replace(SETTINGS, program=program))
        return runs[bug, scenario]

    yield make
    for run in runs.values():
        if run.folder is not None:
            shutil.rmtree(run.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "scenario", "rule"),
    [
        ("dense", "data-loss", "tokens rise"),
        ("unguarded", "pause", "no stale write"),
        ("overconfident", "partition", "one believer"),
        ("idle", "graceful", "the job runs on"),
    ],
)
def test_a_planted_bug_is_seen(
    bug: str, scenario: str, rule: str, planted: Callable[[str, str], Run]
) -> None:
    """If this fails, the drill calls a broken election good."""
    run = planted(bug, scenario)
    assert rule in {finding.rule for finding in run.findings}, told(run)
    assert Result(SCENARIOS[scenario], SETTINGS, (run,)).verdict == "BAD"


@pytest.mark.slow
def test_what_is_kept_of_a_failed_run(planted: Callable[[str, str], Run]) -> None:
    """If this fails, nobody can find out afterwards why a drill went wrong."""
    run = planted("dense", "data-loss")
    assert run.folder is not None
    names = {file.name for file in run.folder.iterdir()}
    assert {f"{who}.log" for who in run.record.instances} <= names
    assert {"record.jsonl", "findings.txt", "server"} <= names
    assert (run.folder / "server" / "server.log").read_text()
    record = Record.read(run.folder / "record.jsonl")
    assert (record.events, record.writes) == (run.record.events, run.record.writes)
    assert "tokens rise" in (run.folder / "findings.txt").read_text()


def test_what_does_not_happen_is_told() -> None:
    """If this fails, a scenario that waits in vain hangs, or looks as if it had been played."""
    stage = Stage(SETTINGS)
    with stage:
        with pytest.raises(NotSeen, match=r"waited 0.1 s in vain for a miracle"):
            stage.wait(lambda: False, 0.1, "a miracle")
        assert stage.folder.is_dir()
        record, expected = stage.final()
    assert not stage.folder.exists()
    assert judge(record, expected) == []
