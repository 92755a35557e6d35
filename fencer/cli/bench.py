"""The command ``bench``: what Fencer costs, beside the floor and beside its peers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fencer.cli import show
from fencer.cli.bench_runs import (
    CALLS_SECONDS,
    HANDOVER_SECONDS,
    KEEPING_SECONDS,
    LINE_SECONDS,
    TOGETHER_SECONDS,
    Wanted,
    cases,
    growth,
)
from fencer.cli.bench_runs import check as check_now
from fencer.cli.options import AsJson
from fencer.errors import InvalidArgument


class What(StrEnum):
    """What can be measured: the names of `fencer.bench.NAMES`, two kinds of growth, or all."""

    RENEW = "renew"
    ACQUIRE = "acquire"
    GUARD = "guard"
    HANDOVER = "handover"
    KEEPALIVE = "keepalive"
    NAMES = "names"
    TOGETHER = "together"
    ALL = "all"


class Transport(StrEnum):
    """How to reach a private server."""

    TCP = "tcp"
    UNIX = "unix"
    BOTH = "both"


class Api(StrEnum):
    """Which of the two APIs to measure."""

    THREADS = "threads"
    ASYNCIO = "asyncio"
    BOTH = "both"


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
    transport: Annotated[
        Transport | None,
        typer.Option(help="How to reach the private server; tcp unless asked for.", metavar="T"),
    ] = None,
    api: Annotated[
        Api, typer.Option(help="Which API, where a case has both: threads, asyncio or both.")
    ] = Api.BOTH,
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=3,
            help="How often each contender has its turn, 25 by default; with --check at most, 150.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0.1,
            help=f"About how long each part takes; by default {CALLS_SECONDS:g} s together for "
            f"renew, acquire, guard and keepalive, {HANDOVER_SECONDS:g} s for handover; for each "
            f"number of waiters {LINE_SECONDS:g} s, of leases {KEEPING_SECONDS:g} s, of workers "
            f"{TOGETHER_SECONDS:g} s.",
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
    names: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1_000_000,
            help="names: how many are in the store, up to 1000000; may be repeated.",
        ),
    ] = None,
    workers: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", min=1, help="together: how many threads or tasks; may be repeated."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw what was found: FILE.svg, FILE.png or FILE.html. Needs matplotlib.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare ours with the floor only, best round with best round; exit code 1 if "
            "a ratio is above its limit. By default of renew.",
        ),
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(metavar="R", min=1.0, help="--check: how many times the floor at most."),
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
    from fencer import bench as b

    both = transport is Transport.BOTH
    if url is not None and transport is not None:
        raise InvalidArgument("--transport is for the private server; a URL has its own")
    if limit is not None and not check:
        raise InvalidArgument("--limit is for --check")
    if check and plot is not None:
        raise InvalidArgument("--check has nothing to plot")
    if plot is not None:
        from fencer.bench.plot import can_draw

        can_draw(plot)
    default = ["renew"] if check else list(b.CALLS)
    asked = [each.value for each in what or []] or default
    wanted = Wanted(
        what=tuple(each for each in What if What.ALL in asked or each in asked),
        apis=b.APIS if api is Api.BOTH else (api.value,),
        rounds=rounds or (b.MAX_ROUNDS if check else 25),
        seconds=seconds,
        calls=calls,
        waiters=tuple(waiters or b.WAITERS),
        leases=tuple(leases or b.LEASES),
        names=tuple(names or b.NAMES_IN_STORE),
        workers=tuple(workers or b.AT_ONCE),
    )
    transports = ("tcp", "unix") if both else ((transport or Transport.TCP).value,)
    with b.open_place(url, pin=pin, transports=transports) as place:
        if check:
            check_now(place, wanted, limit, as_json)
            return
        found = cases(place, wanted)
        grown = growth(place, wanted)
        facts, sentence = place.facts(), place.sentence()
    if plot is not None:
        from fencer.bench.plot import draw

        draw(plot, found, grown, sentence)
    if as_json:
        show.as_json({"place": facts, **found.as_dict(), **grown.as_dict()})
        return
    from fencer.cli.bench_tables import tables

    tables(found, grown)
    show.line(sentence)
    for doubt in found.doubts():
        show.line(f"In doubt: {doubt}.")
    if plot is not None:
        show.line(f"Drawn: {plot}")
