"""The command ``watch``: follows a name live."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fencer import _check, _durations
from fencer.cli import show
from fencer.cli.exits import line_of
from fencer.cli.options import HashTag, Name, Namespace, Url, open_store
from fencer.client import Fencer
from fencer.errors import StoreError, StoreUnavailable
from fencer.records import Status

if TYPE_CHECKING:
    from rich.console import Group

_CHANGES_SHOWN = 8
_WAITERS_SHOWN = 8


def watch(
    name: Name,
    interval: Annotated[
        str, typer.Option(metavar="TIME", help="Between two looks: 500ms, 5s or 1m30s.")
    ] = "500ms",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per change.")
    ] = False,
    url: Url = None,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """Follow a name: who leads, until when, who waits, and each change. Ctrl-C ends it."""
    pause = _check.number("--interval", _durations.seconds(interval, "--interval"), 0.05, 3600.0)
    with open_store(url, namespace, hash_tag) as store, _until_stopped(), _shown(as_json) as shown:
        watching = _Watching(name)
        while True:
            begun = time.monotonic()
            shown(watching, watching.look(store))
            time.sleep(max(0.0, begun + pause - time.monotonic()))


@dataclass(frozen=True, slots=True)
class _Change:
    """What is different from the look before."""

    at: float
    what: str
    status: Status | None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        status = None if self.status is None else self.status.as_dict()
        told = {"at": self.at, "change": self.what, "error": self.error}
        return told if status is None else told | status


@dataclass(slots=True)
class _Watching:
    """What has been seen of a name so far."""

    name: str
    status: Status | None = None
    error: str | None = None
    changes: list[_Change] = field(default_factory=list)

    def look(self, store: Fencer) -> list[_Change]:
        """Ask the server, and return what has changed since the last time."""
        before = self.status
        found: list[_Change] = []
        at = time.time()
        try:
            now = store.inspect(self.name)
        except StoreError as error:
            if before is None and not self.changes and not isinstance(error, StoreUnavailable):
                raise
            if self.error is None:
                found.append(_Change(at, "unreachable", None, line_of(error)))
            self.error = line_of(error)
        else:
            if self.error is not None:
                self.error = None
                found.append(_Change(at, "reachable", now))
            what = _difference(before, now)
            if what is not None:
                found.append(_Change(at, what, now))
            self.status = now
        self.changes = [*self.changes, *found][-_CHANGES_SHOWN:]
        return found


def _difference(before: Status | None, now: Status) -> str | None:
    """A word for the change; ``None`` if there is none."""
    if before is None:
        return "first"
    if now.held and _term(before) != _term(now):
        return "leader"
    if before.held and not now.held:
        return "free"
    if [waiter.holder for waiter in before.line] != [waiter.holder for waiter in now.line]:
        return "line"
    return None


def _term(status: Status) -> tuple[str | None, int | None] | None:
    # Without its info key, as after a DEL by hand, it is still the last token.
    return (status.holder, status.token or status.issued) if status.held else None


def _told(change: _Change) -> str:
    """The change as a sentence."""
    status = change.status
    if status is None:
        return f"the server cannot be used: {change.error}"
    waiting = "" if not status.waiters else f", {_count(status.waiters)} in line"
    match change.what:
        case "reachable":
            return "the server answers again"
        case "line":
            names = ", ".join(waiter.holder for waiter in status.line)
            return f"in line: {names}" if names else "nobody is in line any more"
    if not status.held:
        return f"nobody leads; the last token was {status.issued or 'none'}{waiting}"
    token = "unknown" if status.token is None else str(status.token)
    return f"{status.holder} leads with token {token}{waiting}"


def _count(waiters: int) -> str:
    return "one waiter" if waiters == 1 else f"{waiters} waiters"


@contextlib.contextmanager
def _shown(as_json: bool) -> Iterator[Callable[[_Watching, list[_Change]], None]]:
    """How to show what was seen: as lines of JSON, plain lines, or a picture that is kept fresh."""
    if as_json:

        def json_lines(_: _Watching, found: list[_Change]) -> None:
            for change in found:
                show.as_json(change.as_dict())

        yield json_lines
    elif not show.on_terminal():

        def lines(_: _Watching, found: list[_Change]) -> None:
            for change in found:
                show.line(f"{show.moment(change.at)}\t{show.readable(_told(change))}")

        yield lines
    else:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            yield lambda watching, _: live.update(_picture(watching), refresh=True)


def _picture(watching: _Watching) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value, style in _facts(watching):
        facts.add_row(label, Text(show.readable(value), style=style))
    changes = Table.grid(padding=(0, 2, 0, 0))
    changes.add_column(style="dim", no_wrap=True)
    changes.add_column(overflow="fold")
    for change in watching.changes:
        changes.add_row(show.moment(change.at)[11:], Text(show.readable(_told(change))))
    return Group(facts, Text(""), changes)


def _facts(watching: _Watching) -> Iterator[tuple[str, str, str]]:
    """The rows of the picture: label, value, style."""
    status = watching.status
    yield "name", watching.name, ""
    if watching.error is not None:
        yield "server", watching.error, "red"
    if status is None:
        return
    old = "dim" if watching.error is not None else ""
    if status.held:
        yield "leader", status.holder or "-", old or "green"
        yield "token", "unknown" if status.token is None else str(status.token), old
        yield "left", "-" if old else show.left(status.remaining), old
    else:
        yield "leader", "nobody", old or "yellow"
        yield "last token", str(status.issued or "none"), old
    if not status.waiters:
        yield "in line", "nobody", "dim"
    for place, waiter in enumerate(status.line[:_WAITERS_SHOWN], 1):
        yield "in line" if place == 1 else "", f"{place}. {waiter.holder} {_age(waiter.age)}", old
    if status.waiters > _WAITERS_SHOWN:
        yield "", f"and {status.waiters - _WAITERS_SHOWN} more", old


def _age(seconds: float) -> str:
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"for {hours} h {minutes} min"
    return f"for {minutes} min {left} s" if minutes else f"for {left} s"


@contextlib.contextmanager
def _until_stopped() -> Iterator[None]:
    """Ctrl-C is how a person ends it, so that is no failure; nor is SIGTERM."""

    def end(*_: object) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Ended:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ended(BaseException):
    """Ends the command."""
