"""The command ``demo``: a stale writer is stopped, and a server that forgets everything as well."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import FrameType
from typing import NoReturn

import typer

from fencer.cli import show
from fencer.cli.exits import Exit, NotShown
from fencer.cli.options import AsJson
from fencer.demo.judge import Check, Seen, judge
from fencer.demo.story import BrokeOff, Moment, Story

_INTRODUCTION = (
    "Two processes, A and B, want the lease on 'billing', to write 'balance'.",
    "A guard in front of that key looks at the token of each write.",
)

_STYLES = {"A": "cyan", "B": "magenta", "guard": "bold yellow", "server": "blue"}


def demo(as_json: AsJson = False) -> None:
    """Show on a private server that a stale writer is refused. Takes a few seconds."""
    begun = time.monotonic()
    moments: list[Moment] = []
    if not as_json:
        for sentence in (*_INTRODUCTION, ""):
            show.line(sentence)
    with _ended_by_signals(), _shown(as_json) as (tell, waiting):

        def hear(moment: Moment) -> None:
            moments.append(moment)
            tell(moment)

        try:
            seen = Story(hear, waiting).play()
        except BrokeOff as error:
            raise NotShown(f"the demo broke off: {error}") from error
    report(moments, seen, time.monotonic() - begun, as_json)


def report(moments: list[Moment], seen: Seen, seconds: float, as_json: bool) -> None:
    """Print what held, and exit with 4 if something did not."""
    checks = judge(seen)
    held = all(check.held for check in checks)
    if as_json:
        show.as_json(
            {
                "held": held,
                "seconds": round(seconds, 3),
                "first_token_seconds": round(seen.first_token_seconds, 3),
                "events": [asdict(moment) | {"at": round(moment.at, 3)} for moment in moments],
                "checks": [asdict(check) for check in checks],
            }
        )
    else:
        _print(checks, seen, seconds)
    if not held:
        raise typer.Exit(Exit.BROKEN)


def _print(checks: list[Check], seen: Seen, seconds: float) -> None:
    show.line("")
    show.table(
        ("", "PROMISE", "WHAT WAS SEEN"),
        [("✓" if check.held else "✗", check.promise, check.evidence) for check in checks],
    )
    show.line("")
    failed = sum(not check.held for check in checks)
    verdict = f"{failed} of {len(checks)} did NOT hold" if failed else f"All {len(checks)} held"
    show.line(
        f"{verdict}. First token {seen.first_token_seconds * 1000:.0f} ms after the server was "
        f"started; {seconds:.1f} s in all."
    )


@contextlib.contextmanager
def _shown(as_json: bool) -> Iterator[tuple[Callable[[Moment], None], Callable[[str], None]]]:
    """How moments are told, and what is waited for: not at all, as lines, or with a spinner."""
    if as_json:
        yield lambda moment: None, lambda text: None
    elif not show.on_terminal():
        yield (
            lambda moment: show.line(f"{moment.at:6.2f} s  {moment.who:6}  {moment.what}"),
            lambda text: None,
        )
    else:
        with _live() as telling:
            yield telling


@contextlib.contextmanager
def _live() -> Iterator[tuple[Callable[[Moment], None], Callable[[str], None]]]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    spinner = console.status("")

    def tell(moment: Moment) -> None:
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(width=8, justify="right", style="dim")
        row.add_column(width=6, style=_STYLES.get(moment.who, ""))
        row.add_column(overflow="fold")
        row.add_row(f"{moment.at:.2f} s", Text(moment.who), Text(moment.what))
        console.print(row)

    def waiting(text: str) -> None:
        if text:
            spinner.update(Text(text, style="dim"))
            spinner.start()
        else:
            spinner.stop()

    try:
        yield tell, waiting
    finally:
        spinner.stop()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal that ends the program unwind it first, so that no process is left behind."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
