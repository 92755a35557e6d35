"""Plays scenarios, and tells what came of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fencer.drill.clock import NoShim
from fencer.drill.judge import Finding, judge
from fencer.drill.record import Record, as_dict
from fencer.drill.scenarios import SCENARIOS, Scenario
from fencer.drill.stage import FINDINGS, NotSeen, Settings, Stage

Verdict = Literal["good", "slow", "BAD", "skipped"]


@dataclass(frozen=True, slots=True)
class Run:
    """One play of a scenario.

    Attributes:
        number: which run of the scenario, from 1.
        seed: of what was random in it.
        figures: what was measured, in seconds.
        record: all that happened.
        findings: what should not be.
        folder: where the logs and the record were kept, because of a finding.
    """

    number: int
    seed: int
    figures: tuple[float, ...]
    record: Record
    findings: tuple[Finding, ...]
    folder: Path | None

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; times in seconds since the run began."""
        begin = self.record.begin
        return {
            "run": self.number,
            "seed": self.seed,
            "seconds": [round(figure, 4) for figure in self.figures],
            "findings": [
                {"rule": finding.rule, "at": round(finding.at - begin, 4), "text": finding.text}
                for finding in self.findings
            ],
            "kept_in": None if self.folder is None else str(self.folder),
            "begin": begin,
            "end": self.record.end,
            "events": [as_dict(event) for event in self.record.events],
            "writes": [[write.who, write.token] for write in self.record.writes],
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a scenario: its runs, or why it was skipped."""

    scenario: Scenario
    settings: Settings
    runs: tuple[Run, ...] = ()
    skipped: str = ""

    @property
    def figures(self) -> list[float]:
        """Of all runs, in seconds."""
        return [figure for run in self.runs for figure in run.figures]

    @property
    def spread(self) -> tuple[float, float, float] | None:
        """The smallest, the median and the largest figure."""
        figures = self.figures
        return (min(figures), statistics.median(figures), max(figures)) if figures else None

    @property
    def findings(self) -> list[Finding]:
        """Of all runs."""
        return [finding for run in self.runs for finding in run.findings]

    @property
    def verdict(self) -> Verdict:
        """``slow``: all held, but a figure is worse than expected."""
        if self.skipped:
            return "skipped"
        if self.findings:
            return "BAD"
        return "slow" if max(self.figures, default=0) > self.expected[1] else "good"

    @property
    def expected(self) -> tuple[float, float]:
        """Between what the figures were expected."""
        return self.scenario.ours(self.settings)

    @property
    def old_ttl(self) -> float:
        """The nearer of the two ttls at which the old system was measured."""
        return OLD_TTLS[0] if self.settings.ttl < OLD_TTLS[1] else OLD_TTLS[1]

    @property
    def old(self) -> tuple[float, float] | None:
        """What the old system took then."""
        return self.scenario.old[OLD_TTLS.index(self.old_ttl)]

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "scenario": self.scenario.name,
            "about": self.scenario.about,
            "measured": self.scenario.measured,
            "verdict": self.verdict,
            "skipped": self.skipped or None,
            "seconds": self.spread and [round(figure, 4) for figure in self.spread],
            "expected": [round(bound, 4) for bound in self.expected],
            "old": self.old,
            "runs": [run.as_dict() for run in self.runs],
        }


OLD_TTLS = (5.0, 10.0)
"""The ttls at which the old system was measured; its retry intervals were 1 and 2 s."""


def chosen(names: Sequence[str]) -> list[Scenario]:
    """The scenarios with these names, or all but chaos, in their order."""
    wanted = set(names) or SCENARIOS.keys() - {"chaos"}
    return [scenario for name, scenario in SCENARIOS.items() if name in wanted]


def perform(
    scenarios: Sequence[Scenario],
    settings: Settings,
    runs: int,
    told: Callable[[Scenario, int, str], None] = lambda scenario, run, what: None,
) -> Iterator[Result]:
    """Play each scenario so many times; one result each, as soon as it is there.

    Args:
        scenarios: which.
        settings: how; run ``n`` of a scenario has the seed ``settings.seed + n - 1``.
        runs: how often.
        told: is called with what is waited for now.

    Raises:
        StoreError, ServerFailed: the server cannot be used at all.
        InvalidArgument: its URL cannot be used.
    """
    for scenario in scenarios:
        if scenario.harms_server and settings.url is not None:
            why = "it would harm the server that --url names"
            yield Result(scenario, settings, skipped=why)
            continue
        try:
            played = []
            for number in range(1, runs + 1):
                one = replace(settings, seed=settings.seed + number - 1)

                def tell(what: str, scenario: Scenario = scenario, number: int = number) -> None:
                    told(scenario, number, what)

                played.append(play(scenario, one, tell, number=number))
            yield Result(scenario, settings, tuple(played))
        except NoShim as reason:
            yield Result(scenario, settings, skipped=str(reason))


def play(
    scenario: Scenario,
    settings: Settings,
    told: Callable[[str], None] = lambda what: None,
    *,
    number: int = 1,
) -> Run:
    """Play a scenario once, end its faults, and judge what happened.

    Raises:
        NoShim: the server's clock cannot be shifted.
        StoreError, ServerFailed: the server cannot be used at all.
    """
    told("the processes to start")
    stage = Stage(
        settings,
        told,
        persistence=scenario.persistence,
        shifts_clock=scenario.shifts_clock,
        work=scenario.work * settings.every,
    )
    findings: list[Finding] = []
    try:
        for rule, act in (("the scenario", scenario.play), ("liveness", Stage.heal)):
            try:
                act(stage)
            except NotSeen as reason:
                findings.append(Finding(rule, str(reason), time.monotonic()))
        record, expected = stage.final()
        findings += judge(record, expected)
        if findings:
            _keep(stage.folder, record, findings, scenario, settings)
        return Run(
            number,
            settings.seed,
            tuple(stage.figures),
            record,
            tuple(sorted(findings, key=lambda finding: finding.at)),
            stage.folder if findings else None,
        )
    finally:
        stage.close()


def _keep(
    folder: Path, record: Record, findings: list[Finding], scenario: Scenario, settings: Settings
) -> None:
    """Put beside the logs what happened and what should not have."""
    (folder / "record.jsonl").write_text("\n".join(record.lines()) + "\n")
    told = [
        f"{finding.at - record.begin:8.3f} s  {finding.rule}: {finding.text}"
        for finding in findings
    ]
    about = json.dumps({"scenario": scenario.name, "seed": settings.seed, "ttl": settings.ttl})
    (folder / FINDINGS).write_text("\n".join([about, *told]) + "\n")
