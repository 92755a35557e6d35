"""The command ``drill``: failovers on real processes, timed, judged, and compared."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fencer import _durations
from fencer.cli import show
from fencer.cli.demo import _ended_by_signals as ended_by_signals
from fencer.cli.exits import Exit
from fencer.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fencer.drill.play import Result
    from fencer.drill.scenarios import Scenario
    from fencer.drill.stage import Settings

_LEAST_TTL = 0.5
_COLUMNS = ("scenario", "runs", "min", "typical", "max", "expected", "old system", "verdict")
_STYLES = {"good": "green", "slow": "yellow", "BAD": "bold red", "skipped": "dim"}
_TIMES = "Times, as 500ms, 5s or 1m30s"


class Name(StrEnum):
    """The names of `fencer.drill.scenarios.SCENARIOS`."""

    GRACEFUL = "graceful"
    CRASH = "crash"
    CASCADE = "cascade"
    REJOIN = "rejoin"
    PARTITION = "partition"
    PARTITION_REFUSED = "partition-refused"
    LAST_STANDING = "last-standing"
    SERVER_DOWN = "server-down"
    PAUSE = "pause"
    SKEW = "skew"
    DATA_LOSS = "data-loss"
    CHAOS = "chaos"


def drill(
    scenario: Annotated[
        list[Name] | None,
        typer.Argument(metavar="[SCENARIO]...", help="Which; by default all but chaos."),
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="How often each is played.")] = 1,
    instances: Annotated[
        int,
        typer.Option(
            metavar="N", min=2, max=50, help="How many; cascade takes 4, chaos at least 5."
        ),
    ] = 3,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of the chaos; by default a random one.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            # FENCER_URL is not read: nobody should drill on a server in use because of a variable.
            metavar="URL",
            help="The server; by default private ones. What would harm it is skipped.",
        ),
    ] = None,
    ttl: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="After this a silent leader is replaced.",
            rich_help_panel=_TIMES,
        ),
    ] = "5s",
    retry_interval: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Between two looks at the leader; by default ttl/5.",
            rich_help_panel=_TIMES,
        ),
    ] = None,
    duration: Annotated[
        str,
        typer.Option(metavar="TIME", help="How long chaos lasts.", rich_help_panel=_TIMES),
    ] = "5m",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all that was seen, as JSON."),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write a page of HTML with timelines."),
    ] = None,
) -> None:
    """Rehearse failovers with real processes: harm them, time what follows, and judge it.

    With --ttl 1s it takes half a minute, with the default ttl about a minute and a half. The
    scenarios: graceful, crash, cascade, rejoin, partition, partition-refused, last-standing,
    server-down, pause, skew, data-loss, chaos.
    """
    # Nothing else needs it, and the other commands shall start fast.
    from fencer.drill.play import chosen, perform

    settings = _settings(ttl, retry_interval, duration, instances, seed, url)
    for file in (json_file, report_file):
        _check_writable(file)
    scenarios = chosen([name.value for name in scenario or ()])
    begun = time.monotonic()
    seconds = runs * sum(each.lasts(settings) for each in scenarios)
    facts = _facts(settings, runs)
    told = ", ".join(f"{label} {value}" for label, value in facts.items() if label != "Python")
    _say(f"{told}. This takes about {_minutes(seconds)}.")
    results: list[Result] = []
    with ended_by_signals(), _progress(results, runs, seconds) as tell:
        for result in perform(scenarios, settings, runs, tell):
            results.append(result)
    _print(results, time.monotonic() - begun)
    if json_file is not None:
        _write_json(json_file, results, facts)
    if report_file is not None:
        from fencer.drill.report import page

        report_file.write_text(page(results, facts), encoding="utf-8")
        show.line(f"The report is in {report_file}.")
    if any(result.verdict == "BAD" for result in results):
        raise typer.Exit(Exit.BROKEN)


def _settings(
    ttl: str,
    retry_interval: str | None,
    duration: str,
    instances: int,
    seed: int | None,
    url: str | None,
) -> Settings:
    from fencer.drill.stage import Settings
    from fencer.election import Timings

    seconds = _durations.seconds(ttl, "--ttl")
    if seconds < _LEAST_TTL:
        raise InvalidArgument(
            f"--ttl {ttl} is too short for a drill: at less than {_LEAST_TTL:g} s it would measure "
            "how late this machine runs its processes"
        )
    retry = seconds / 5
    if retry_interval is not None:
        retry = _durations.seconds(retry_interval, "--retry-interval")
    checked = Timings.checked(seconds, None, retry)
    return Settings(
        ttl=checked.ttl,
        retry_interval=checked.retry_interval,
        instances=instances,
        duration=_durations.seconds(duration, "--duration"),
        seed=random.randrange(1_000_000) if seed is None else seed,
        url=url,
    )


def _check_writable(file: Path | None) -> None:
    """Fail now rather than after minutes."""
    if file is not None:
        try:
            file.open("a").close()
        except OSError as error:
            raise InvalidArgument(f"{file} cannot be written: {error.strerror}") from error


def _facts(settings: Settings, runs: int) -> dict[str, Any]:
    return {
        "ttl": f"{settings.ttl:g} s",
        "retry interval": f"{settings.retry_interval:g} s",
        "runs": runs,
        "seed": settings.seed,
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _minutes(seconds: float) -> str:
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def _print(results: list[Result], seconds: float) -> None:
    from fencer.drill.report import about_old, verdict_in_words

    show.line("")
    if show.on_terminal():
        from rich.console import Console

        console = Console()
        console.print(_table(results, console.width))
    else:
        show.table(_COLUMNS, [_row(result) for result in results])
    show.line("")
    for result in results:
        for run in result.runs:
            for finding in run.findings:
                at = finding.at - run.record.begin
                where = f"{result.scenario.name}, run {run.number}, at {at:.2f} s"
                _say(f"{where}: {finding.rule}: {finding.text}", "red")
            if run.folder is not None:
                show.line(f"Its logs and record.jsonl are in {run.folder}")
                show.line("")
    _say(f"{verdict_in_words(results)} It took {_minutes(seconds)}.", "bold")
    _say(about_old(results), "dim")


def _say(text: str, style: str = "") -> None:
    """Print a sentence, broken between words on a terminal."""
    if not show.on_terminal():
        show.line(text)
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(text, style), soft_wrap=False)


def _row(result: Result) -> tuple[str, ...]:
    from fencer.drill.figures import as_range, as_seconds

    spread = [as_seconds(figure) for figure in result.spread or ()] or ["–"] * 3
    verdict = f"{result.verdict}: {result.skipped}" if result.skipped else result.verdict
    return (
        result.scenario.name,
        str(len(result.runs)),
        *spread,
        as_range(result.expected),
        as_range(result.old),
        verdict,
    )


def _table(results: list[Result], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    gap = 1 if width < 100 else 3
    drawn = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column in _COLUMNS:
        left = column in ("scenario", "verdict")
        drawn.add_column(
            column,
            justify="left" if left else "right",
            # Wide enough from the start: the table must not jump when a row is added.
            min_width={"scenario": 17, "min": 6, "typical": 7, "max": 6}.get(column),
            no_wrap=column not in ("verdict", "old system"),
            overflow="fold",
        )
    for result in results:
        *cells, verdict = _row(result)
        drawn.add_row(*map(Text, cells), Text(verdict, _STYLES[result.verdict]))
    return drawn


@contextlib.contextmanager
def _progress(
    results: list[Result], runs: int, seconds: float
) -> Iterator[Callable[[Scenario, int, str], None]]:
    """How a drill tells how far it is: on a terminal by the table as it grows, else not at all."""
    if not sys.stderr.isatty():
        yield lambda scenario, run, what: None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    console = Console(stderr=True)
    begun = time.monotonic()
    spinner = Spinner("dots")
    shown = {"text": ""}

    def drawn() -> RenderableType:
        elapsed = time.monotonic() - begun
        left = f"about {_minutes(seconds - elapsed)} left" if elapsed < seconds else "soon done"
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(shown["text"])
        line.append(f"  {left}", "dim")
        spinner.update(text=line)
        return Group(_table(results, console.width), spinner) if results else spinner

    with Live(get_renderable=drawn, console=console, transient=True, refresh_per_second=8):

        def told(scenario: Scenario, run: int, what: str) -> None:
            which = f"{scenario.name} {run}/{runs}" if runs > 1 else scenario.name
            shown["text"] = f"{which}: waiting for {what}"

        yield told


def _write_json(file: Path, results: list[Result], facts: dict[str, Any]) -> None:
    told = {
        "held": all(result.verdict != "BAD" for result in results),
        **{label.replace(" ", "_"): value for label, value in facts.items()},
        "scenarios": [result.as_dict() for result in results],
    }
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    show.line(f"All that was seen is in {file}.")
