"""The command ``doctor``: names each danger on a server, with its consequence and its cure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from fencer.cli import show
from fencer.cli.exits import Exit
from fencer.cli.options import AsJson, HashTag, Namespace, open_store

if TYPE_CHECKING:
    from fencer.doctor import Machine, Report

_STYLES = {"danger": "bold white on red", "warning": "bold black on yellow", "note": "bold cyan"}

_MOST_COLUMNS = 110
"""Sentences are hard to read in longer lines."""


def doctor(
    url: Annotated[
        list[str] | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="The server, as the instances name it; by default FENCER_URL. Repeat it to see "
            "whether several URLs lead to the same place.",
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask whether this user of the server may use leases."),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Look only at leases whose names begin so, as `fencer acl --prefix` allows.",
        ),
    ] = "",
    as_json: AsJson = False,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """Look at a server and at the leases on it, and name each danger. Changes nothing.

    Run it where the clients run: it measures round trips. Exit code 0 if there is nothing worse
    than a note, 5 for a warning or if not everything could be looked at, 6 for a danger.
    """
    # Nothing else needs it, and the other commands shall start fast.
    from fencer.doctor import Verdict, examine

    urls = url or [os.environ.get("FENCER_URL", "")]
    with contextlib.ExitStack() as opened:
        stores = [opened.enter_context(open_store(each, namespace, hash_tag)) for each in urls]
        report = examine(
            *(store.client for store in stores),
            namespace=namespace,
            hash_tag=hash_tag,
            user=user,
            prefix=prefix,
            timeouts=False,  # They are this command's own.
        )
    if as_json:
        show.as_json(report.as_dict())
    elif show.on_terminal():
        _draw(report, namespace)
    else:
        _print(report)
    match report.verdict:
        case Verdict.DANGER:
            raise typer.Exit(Exit.DANGER)
        case Verdict.WARNING | Verdict.UNSURE:
            raise typer.Exit(Exit.WARNING)


def _print(report: Report) -> None:
    rows = [
        (str(each.severity), each.check, each.where, each.danger, each.consequence, each.cure)
        for each in report.findings
    ]
    rows += [("unseen", each.check, each.where, each.why, "", "") for each in report.unseen]
    if rows:
        show.table(("SEVERITY", "CHECK", "WHERE", "DANGER", "CONSEQUENCE", "CURE"), rows)
    show.line(_summary(report))


def _draw(report: Report, namespace: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.width = min(console.width, _MOST_COLUMNS)
    machines = Table.grid(padding=(0, 2, 0, 0))
    machines.add_column(no_wrap=True, style="bold")
    machines.add_column(overflow="fold")
    for number, each in enumerate(report.machines):
        machines.add_row(each.role, Text(" · ".join(_facts(each, first=number == 0))))
    console.print(machines)
    shortest = "" if report.shortest_ttl is None else f"; shortest ttl {report.shortest_ttl:g} s"
    names = f"{_count(report.names, 'lease')} known, {report.held} held{shortest}"
    console.print(Text(f"namespace {show.readable(namespace)}: {names}\n"))

    told = Table.grid(padding=(0, 2, 0, 0))
    told.add_column(no_wrap=True, min_width=9)
    told.add_column(overflow="fold")
    for finding in report.findings:
        style = _STYLES[finding.severity]
        where = Text(f"{finding.check} · {show.readable(finding.where)}", style="dim")
        told.add_row(Text(f" {finding.severity.upper()} ", style=style), where)
        told.add_row("", Text(show.readable(finding.danger), style="bold"))
        told.add_row(Text(" so", style="dim"), Text(show.readable(finding.consequence)))
        told.add_row(Text(" cure", style="green"), Text(show.readable(finding.cure)))
        told.add_row("", "")
    if report.unseen:
        told.add_row(Text(" UNSEEN ", style="bold magenta"), Text("What could not be looked at"))
    reasons = sorted((each.where, each.why, each.check) for each in report.unseen)
    for (where_, why), some in groupby(reasons, key=lambda reason: reason[:2]):
        checks = ", ".join(check for *_, check in some)
        told.add_row("", Text.assemble((checks, "bold"), show.readable(f" · {where_}: {why}")))
    if report.unseen:
        told.add_row("", "")
    if report.findings or report.unseen:
        console.print(told)
    good = not report.findings and not report.unseen
    console.print(Text(_summary(report), style="bold green" if good else "bold"))


def _facts(machine: Machine, *, first: bool) -> Iterator[str]:
    yield show.readable(machine.address)
    if machine.product is not None:
        yield machine.product
    if machine.round_trip is not None:
        yield f"{machine.round_trip * 1000:.1f} ms away"
    if machine.clock is not None and not first:
        yield f"clock {machine.clock * 1000:+,.0f} ms"


def _summary(report: Report) -> str:
    """The last line."""
    looked = f"{_count(len(report.machines), 'server')} and {_count(report.names, 'lease')}"
    if not report.findings and not report.unseen:
        return f"All is well: nothing is wrong with {looked}."
    counts = [
        _count(number, severity)
        for severity in ("danger", "warning", "note")
        if (number := sum(each.severity == severity for each in report.findings))
    ]
    found = ", ".join(counts) if counts else "Nothing bad"
    unseen = _count(len({each.check for each in report.unseen}), "check")
    rest = f"; {unseen} could not look at everything" if report.unseen else ""
    return f"{found} on {looked}{rest}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
