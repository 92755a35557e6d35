"""The command ``bench``: what Fencer costs, beside the floor and beside its peers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fencer.cli import show
from fencer.cli.options import AsJson

if TYPE_CHECKING:
    from fencer.bench import CaseResult, KeepingCost, LineCost, Place

_LATENCY = 15.0
_KEEPING = 15.0


class What(StrEnum):
    """What can be measured: the names of `fencer.bench.NAMES`, or all."""

    RENEW = "renew"
    ACQUIRE = "acquire"
    GUARD = "guard"
    HANDOVER = "handover"
    KEEPALIVE = "keepalive"
    ALL = "all"


def bench(
    what: Annotated[
        list[What] | None,
        typer.Argument(metavar="[WHAT]...", help=f"What to measure, of: {', '.join(What)}."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            # FENCER_URL is not read: nobody should load a server in use because of a variable.
            metavar="URL",
            help="The server; by default a private one. FENCER_URL is not used here.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=3, help="How often each contender has its turn.")
    ] = 25,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0.1,
            help="About how long each table takes; by default 5 s together for the first three "
            f"cases, {_LATENCY:g} s for handover, 2 s for each number of waiters, "
            f"{_KEEPING:g} s for leases kept.",
        ),
    ] = None,
    calls: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Calls per turn, in place of --seconds."),
    ] = None,
    waiters: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="handover: how many wait; may be repeated."),
    ] = None,
    leases: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="keepalive: how many are kept; may be repeated."),
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin/--no-pin", help="Stay on one core, the private server too.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Measure what Fencer costs, beside bare sockets and peers; by default renew, acquire, guard.

    All processes share one core unless --no-pin is given: read ratios, not times.
    """
    # Nothing else needs it, and the other commands shall start fast.
    from fencer.bench import (
        CALLS,
        LEASES,
        NAMES,
        WAITERS,
        Results,
        keeping_costs,
        line_costs,
        open_cases,
        open_place,
        run,
    )

    wanted = [each.value for each in what or []] or list(CALLS)
    names = [name for name in NAMES if What.ALL in wanted or name in wanted]
    numbers = leases or LEASES
    lines: list[LineCost] = []
    kept: list[KeepingCost] = []
    found = Results(1, ())
    with open_place(url, pin=pin) as place:
        for group, default in ((CALLS, 5.0), (("handover",), _LATENCY), (("keepalive",), 5.0)):
            some = [name for name in group if name in names]
            if not some:
                continue
            with (
                _progress(" ".join(some)) as told,
                open_cases(place.url, some, batch=max(numbers)) as cases,
            ):
                results = run(
                    cases, rounds=rounds, seconds=seconds or default, calls=calls, told=told
                )
                found = Results(results.seed, found.cases + results.cases)
        if "handover" in names:
            with _progress("line") as told:
                lines = line_costs(place.url, waiters or WAITERS, seconds=seconds or 2.0, told=told)
        if "keepalive" in names:
            with _progress("keeping") as told:
                kept = keeping_costs(place.url, numbers, seconds=seconds or _KEEPING, told=told)
        facts = place.facts()
    if as_json:
        growth = {"line": [asdict(each) for each in lines], "kept": [asdict(each) for each in kept]}
        show.as_json({"place": facts, **found.as_dict(), **growth})
        return
    for case in found.cases:
        _table(case)
        if case.missing:
            show.line(f"Left out, because not installed: {', '.join(case.missing)}.")
        show.line("")
    if lines:
        _line_table(lines)
    if kept:
        _kept_table(kept)
    show.line(_where(place))
    for doubt in found.doubts():
        show.line(f"In doubt: {doubt}.")


def _line_table(costs: Sequence[LineCost]) -> None:
    first = costs[0]
    columns = ("waiters", "hand-overs", "requests each", f"more than {first.waiters}", "inside")
    rows = [
        (
            f"{cost.waiters:,}",
            f"{cost.handovers:,}",
            f"{cost.requests:.2f}",
            f"{cost.requests - first.requests:+.2f}",
            f"{cost.inside:.1f}",
        )
        for cost in costs
    ]
    show.table(columns, rows)
    show.line(
        "Requests of all clients to the server per hand-over, joining the line again included; "
        "inside: commands that the scripts ran."
    )
    show.line("")


def _kept_table(costs: Sequence[KeepingCost]) -> None:
    columns = ("leases kept", "CPU s/min", "requests/min", "trips/min", "requests/trip")
    rows = [
        (
            f"{cost.leases:,}",
            f"{cost.cpu_seconds:.3f}",
            f"{cost.requests:,.0f}",
            f"{cost.trips:,.0f}",
            f"{cost.requests / cost.trips:,.1f}" if cost.trips else "",
        )
        for cost in costs
    ]
    show.table(columns, rows)
    show.line(
        f"Processes that only keep leases with a ttl of {costs[0].ttl:g} s alive, "
        f"watched for {costs[0].seconds:.1f} s."
    )
    show.line("")


def _table(case: CaseResult) -> None:
    from fencer.bench import FLOOR, OURS

    columns = (
        *(case.title, "", "p50 µs", "p90 µs", "p99 µs", "per second", "noise"),
        *(f"× {FLOOR}", f"× {case.reference}"),
    )
    rows = [
        (
            name,
            figures.label,
            f"{figures.p50_us:.1f}",
            f"{figures.p90_us:.1f}",
            f"{figures.p99_us:.1f}",
            f"{figures.per_second:,.0f}",
            f"{figures.noise:.1%}",
            f"{case.ratio(name, FLOOR):.2f}",
            f"{case.ratio(name, case.reference):.2f}",
        )
        for name, figures in case.contenders.items()
    ]
    if not show.on_terminal():
        show.table(columns, rows)
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
        caption=f"{case.rounds} rounds of {case.calls} calls each",
        caption_justify="left",
    )
    for index, column in enumerate(columns):
        drawn.add_column(
            column,
            justify="left" if index < 2 else "right",
            no_wrap=index != 1,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*row, style="bold" if row[0] == OURS else "")
    Console().print(drawn)


def _where(place: Place) -> str:
    facts = place.facts()
    if place.core is None:
        where = "on any core"
    else:
        where = f"{'client and server' if place.embedded else 'client'} on core {place.core}"
    return (
        f"{facts['machine']}, {facts['cores']} cores, load {facts['load']}; "
        f"Python {facts['python']}, redis-py {facts['redis_py']}, hiredis {facts['hiredis']}; "
        f"{place.server}{' without persistence' if place.embedded else ''} over {place.transport}, "
        f"{where}"
    )


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """How a run tells how far it is: with a bar on a terminal, else not at all."""
    if not sys.stderr.isatty():
        yield lambda done, turns: None
        return
    from rich.console import Console
    from rich.progress import Progress

    # It is drawn between two turns only: a thread that draws would be measured too.
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(f"measuring {what}", total=None)

        def told(done: int, turns: int) -> None:
            bar.update(task, completed=done, total=turns, refresh=True)

        yield told
