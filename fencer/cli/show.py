"""Output: tables for people on a terminal, plain lines in a pipe, JSON where it is asked for.

In a pipe nothing is coloured, wrapped or cut: one row is one line, with tabs between its cells,
which no name can contain.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def on_terminal() -> bool:
    """Whether a person looks at the output."""
    return sys.stdout.isatty()


def line(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print a line about a failure to stderr."""
    print(f"fencer: {text}", file=sys.stderr, flush=True)


def as_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    line(json.dumps(value, ensure_ascii=False))


def readable(text: str) -> str:
    """The text with control characters escaped: what the store holds must not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with one header line. Columns called ``TOKEN`` are never broken."""
    shown = [[readable(cell) for cell in row] for row in rows]
    if not on_terminal():
        for row in (columns, *shown):
            line("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, no_wrap=column in ("TOKEN", "LEFT", "STATE"), overflow="fold")
    for row in shown:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print labels and values, one pair a line."""
    if not on_terminal():
        for label, value in rows:
            line(f"{readable(label)}\t{readable(value)}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for label, value in rows:
        drawn.add_row(Text(readable(label)), Text(readable(value)))
    Console().print(drawn)


def moment(unix_seconds: float) -> str:
    """A time as people read it, in the zone of this machine."""
    return datetime.fromtimestamp(unix_seconds).isoformat(" ", "milliseconds")


def left(remaining: float | None) -> str:
    """How long a lease that is held still lasts."""
    return "no end" if remaining is None else f"{remaining:.1f} s"
