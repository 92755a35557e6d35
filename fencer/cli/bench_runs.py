"""What the command ``bench`` runs: the parts that are asked for, one after the other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from fencer.cli.exits import Exit
from fencer.errors import InvalidArgument

if TYPE_CHECKING:
    from fencer.bench import Checked, Growth, Place, Results

CALLS_SECONDS = 20.0
HANDOVER_SECONDS = 30.0
LINE_SECONDS = 2.0
KEEPING_SECONDS = 12.0
TOGETHER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for on the command line."""

    what: tuple[str, ...]
    apis: tuple[str, ...]
    rounds: int
    seconds: float | None
    calls: int | None
    waiters: tuple[int, ...]
    leases: tuple[int, ...]
    names: tuple[int, ...]
    workers: tuple[int, ...]


def cases(place: Place, wanted: Wanted) -> Results:
    """The latency of all cases that are asked for, in groups that take turns."""
    from fencer.bench import CALLS, Results, open_cases, run

    found = Results(1, ())
    groups: tuple[tuple[Sequence[str], float], ...] = (
        ((*CALLS, "keepalive"), CALLS_SECONDS),
        (("handover",), HANDOVER_SECONDS),
    )
    for group, default in groups:
        some = [name for name in group if name in wanted.what]
        if not some:
            continue
        with (
            _progress(" ".join(some)) as told,
            open_cases(place.urls, some, apis=_apis(some, wanted), batch=_batch(wanted)) as opened,
        ):
            results = run(
                opened,
                rounds=wanted.rounds,
                seconds=wanted.seconds or default,
                calls=wanted.calls,
                told=told,
            )
        found = Results(results.seed, found.cases + results.cases)
    return found


def growth(place: Place, wanted: Wanted) -> Growth:
    """How cost grows with whatever is asked for."""
    from fencer.bench import Growth, keeping_costs, line_costs, names_costs, together_costs

    url, seconds, what = place.url, wanted.seconds, wanted.what
    found = Growth()
    if "handover" in what:
        with _progress("line") as told:
            line = line_costs(url, wanted.waiters, seconds=seconds or LINE_SECONDS, told=told)
            found = found.with_(line=tuple(line))
    if "keepalive" in what:
        with _progress("keeping") as told:
            kept = keeping_costs(url, wanted.leases, seconds=seconds or KEEPING_SECONDS, told=told)
            found = found.with_(kept=tuple(kept))
    if "names" in what:
        with _progress("names") as told:
            found = found.with_(names=tuple(names_costs(url, wanted.names, told=told)))
    if "together" in what:
        with _progress("together") as told:
            together = together_costs(
                url, wanted.workers, seconds=seconds or TOGETHER_SECONDS, told=told
            )
            found = found.with_(together=tuple(together))
    return found


def check(place: Place, wanted: Wanted, limit: float | None, as_json: bool) -> None:
    """Print what the check finds, and end with its exit code."""
    from fencer.bench import LIMITS, checked, open_cases
    from fencer.cli.bench_tables import check_table

    known = dict.fromkeys(name for name, _ in LIMITS)
    some = [name for name in known if name in wanted.what]
    if "all" not in wanted.what and len(some) < len(wanted.what):
        raise InvalidArgument(f"--check is for {', '.join(known)}")
    found: list[Checked]
    with (
        _progress("check") as told,
        open_cases(
            place.urls,
            some,
            apis=_apis(some, wanted),
            batch=_batch(wanted),
            all_peers=False,
        ) as opened,
    ):
        options = {} if wanted.calls is None else {"calls": wanted.calls}
        found = checked(opened, limit=limit, rounds=wanted.rounds, told=told, **options)
    check_table(found, place, as_json)
    if not all(each.kept for each in found):
        raise typer.Exit(Exit.NO)


def _apis(names: Sequence[str], wanted: Wanted) -> tuple[str, ...]:
    """The APIs that are wanted; what has but one is measured with that."""
    only = not {"renew", "acquire"} & set(names)
    return ("threads",) if only else wanted.apis


def _batch(wanted: Wanted) -> int:
    from fencer.bench import BATCH

    return min(BATCH, max(wanted.leases))


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """How a run tells how far it is: with a bar on a terminal, else not at all."""
    if not sys.stderr.isatty():
        yield lambda done, turns: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # It is drawn between two turns only: a thread that draws would be measured too.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(f"measuring {what}", total=None)

        def told(done: int, turns: int) -> None:
            bar.update(task, completed=done, total=turns, refresh=True)

        yield told
