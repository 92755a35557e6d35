"""The tables of ``fencer bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from fencer.bench import (
    FLOOR,
    OURS,
    CaseResult,
    Checked,
    Growth,
    KeepingCost,
    LineCost,
    Missing,
    NamesCost,
    Place,
    Results,
    TogetherCost,
)
from fencer.cli import show


def tables(found: Results, growth: Growth) -> None:
    """All tables of a run."""
    for case in found.cases:
        _case(case)
    if growth.line:
        _line(growth.line)
    if growth.kept:
        _kept(growth.kept)
    if growth.names:
        _names(growth.names)
    if growth.together:
        _together(growth.together)


def check_table(found: Sequence[Checked], place: Place, as_json: bool) -> None:
    """What a check found."""
    if as_json:
        checks = [asdict(each) | {"ratio": each.ratio, "kept": each.kept} for each in found]
        show.as_json({"place": place.facts(), "checks": checks})
        return
    columns = ("case", "api", "over", "floor µs", "ours µs", f"× {FLOOR}", "limit", "rounds", "")
    rows = [
        (
            *(each.name, each.api, each.transport),
            *(f"{each.floor_us:.1f}", f"{each.ours_us:.1f}"),
            *(f"{each.ratio:.2f}", f"{each.limit:.2f}", f"{each.rounds}"),
            "kept" if each.kept else "EXCEEDED",
        )
        for each in found
    ]
    _draw(columns, rows, left=3)
    show.line(place.sentence())


def _case(case: CaseResult) -> None:
    columns = (
        f"{case.title}, {case.transport}",
        *("", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "per second", "noise"),
        *(f"× {FLOOR}", f"× {case.reference}"),
    )
    ranked = sorted(case.contenders.items(), key=lambda each: each[1].p50_us)
    rows = [
        (
            *(name, figures.label),
            *(_us(figures.p50_us), _us(figures.p90_us), _us(figures.p99_us)),
            "" if figures.p999_us is None else _us(figures.p999_us),
            *(f"{figures.per_second:,.0f}", f"{figures.noise:.1%}"),
            *(str(case.ratio(name, FLOOR)), str(case.ratio(name, case.reference))),
        )
        for name, figures in ranked
    ]
    calls = {figures.calls for figures in case.contenders.values()}
    few, many = min(calls), max(calls)
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    _draw(columns, rows, left=2, marked=OURS)
    show.line(
        f"{case.rounds} rounds of {each} calls; ratios are medians over the rounds ± half the "
        "distance between their quartiles."
    )
    for why, some in groupby(sorted(case.missing, key=_why), key=_why):
        show.line(f"Left out, because {why}: {', '.join(one.name for one in some)}.")
    show.line("")


def _why(missing: Missing) -> str:
    return missing.reason


def _us(microseconds: float) -> str:
    return f"{microseconds:,.1f}" if microseconds < 1_000 else f"{microseconds:,.0f}"


def _line(costs: Sequence[LineCost]) -> None:
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
    _draw(columns, rows)
    show.line(
        "Requests of all clients to the server per hand-over, joining the line again included; "
        "inside: commands that the scripts ran."
    )
    show.line("")


def _kept(costs: Sequence[KeepingCost]) -> None:
    columns = ("leases kept", "CPU s/min", "server CPU s/min", "requests/min", "inside/min")
    rows = [
        (
            f"{cost.leases:,}",
            f"{cost.cpu_seconds:.3f}",
            f"{cost.server_cpu_seconds:.3f}",
            f"{cost.requests:,.0f}",
            f"{cost.inside:,.0f}",
        )
        for cost in costs
    ]
    _draw(columns, rows)
    show.line(
        f"Processes that only keep leases with a ttl of {costs[0].ttl:g} s alive, each watched "
        f"for {costs[0].seconds:.1f} s; inside: commands that the scripts ran."
    )
    show.line("")


def _names(costs: Sequence[NamesCost]) -> None:
    columns = ("names in the store", "B held", "B released", "B held, whole", "B released, whole")
    rows = [
        (
            *(f"{cost.names:,}", f"{cost.held:,.0f}", f"{cost.released:,.0f}"),
            "" if cost.held_whole is None else f"{cost.held_whole:,.0f}",
            "" if cost.released_whole is None else f"{cost.released_whole:,.0f}",
        )
        for cost in costs
    ]
    _draw(columns, rows)
    show.line(
        "Bytes for each name: its keys by MEMORY USAGE; whole: what the server's used_memory grew "
        "by. A released name keeps its last token and its history until they have been idle long."
    )
    show.line("")


def _together(costs: Sequence[TogetherCost]) -> None:
    columns = ("at once", "", "", "per second", "p50 µs", "p99 µs")
    ranked = sorted(costs, key=lambda cost: (cost.api != "threads", cost.contender != OURS))
    rows = [
        (
            f"{cost.workers}",
            "threads" if cost.api == "threads" else "tasks",
            "lease.renew()" if cost.contender == OURS else "redis-py Lock.reacquire()",
            f"{cost.per_second:,.0f}",
            *(_us(cost.p50_us), _us(cost.p99_us)),
        )
        for cost in ranked
    ]
    _draw(columns, rows)
    show.line("Threads and tasks of one process, each renewing a lease of its own again and again.")
    show.line("")


def _draw(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 0,
    marked: str | None = None,
) -> None:
    """A table of figures: so many columns are aligned left, and the row of one name is marked."""
    if not show.on_terminal():
        show.table(columns, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        words = index < left or not column
        drawn.add_column(
            column,
            justify="left" if words else "right",
            no_wrap=index != 1 or not left,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*map(Text, row), style="bold green" if row[0] == marked else "")
    Console().print(drawn)
