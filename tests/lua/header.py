"""Reads the header of a script: what it says about keys, arguments, replies, errors and costs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

SECTIONS = ("KEYS", "ARGV", "RETURNS", "ERRORS", "CALLS", "IDEMPOTENT", "SINCE")
KEY_TYPES = {"string", "stream", "hash", "list", "set", "zset", "any"}

_HEADING = re.compile(r"([A-Z]{3,})(?: {2,}(\S.*))?")
_COMMANDS = re.compile(r"((?:[A-Z]+(?:\*\d+)?(?: |$))+)(and the commands.*)?")


class BadHeader(ValueError):
    """A line of the header is not of the form that all headers have."""


@dataclass(frozen=True, slots=True)
class Key:
    """One line of KEYS; ``index`` is 0 for ``...``, any number of further keys."""

    index: int
    name: str
    type: str
    text: str


@dataclass(frozen=True, slots=True)
class Argument:
    """One line of ARGV; ``index`` is 0 for ``...``, any number of further arguments."""

    index: int
    name: str
    text: str

    @property
    def range(self) -> tuple[str, int] | None:
        """The ends of its first range: the lower one may be the name of another argument."""
        found = re.search(r"(\w+) to (\d+)", self.text)
        return (found[1], int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Reply:
    """One line of RETURNS; ``fields`` are what follows the status."""

    status: str
    fields: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Error:
    """One line of ERRORS."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of CALLS; ``caller`` tells that commands of the caller's own come on top."""

    status: str
    order: str
    variant: str
    calls: tuple[tuple[str, int], ...]
    caller: bool

    @property
    def counts(self) -> Counter[str]:
        """How often the script calls each command, by its name in small letters."""
        return Counter({command.lower(): times for command, times in self.calls})


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one script."""

    name: str
    summary: str
    keys: tuple[Key, ...]
    arguments: tuple[Argument, ...]
    replies: tuple[Reply, ...]
    errors: tuple[Error, ...]
    rows: tuple[Row, ...]
    idempotent: str
    since: str


def split(text: str) -> tuple[list[str], list[str]]:
    """Return the lines of the header, without their dashes, and the lines of the body."""
    lines = text.splitlines()
    length = next((n for n, line in enumerate(lines) if not line.startswith("--")), len(lines))
    if length == len(lines) or lines[length]:
        raise BadHeader("a blank line must part header and body")
    return [line.removeprefix("--") for line in lines[:length]], lines[length + 1 :]


def parse(text: str) -> Header:
    """Read the header at the top of a script.

    Raises:
        BadHeader: a section is missing, unknown or out of order, or a line is malformed.
    """
    lines, _ = split(text)
    first = re.fullmatch(r" (\w+): (\S.*)", lines[0])
    if first is None:
        raise BadHeader(f"the first line must be '-- name: what it does', not {lines[0]!r}")
    sections, inline = _sections(lines[1:])
    if any(sections[name] for name in ("IDEMPOTENT", "SINCE")) or set(inline) != set(SECTIONS[-2:]):
        raise BadHeader("IDEMPOTENT and SINCE, and no others, say what they say in one line")
    return Header(
        name=first[1],
        summary=first[2],
        keys=tuple(_key(item) for item in _numbered(sections["KEYS"])),
        arguments=tuple(_argument(item) for item in _numbered(sections["ARGV"])),
        replies=tuple(_reply(item) for item in _some("RETURNS", sections)),
        errors=tuple(_error(item) for item in _some("ERRORS", sections)),
        rows=tuple(_row(item) for item in _some("CALLS", sections)),
        idempotent=inline["IDEMPOTENT"],
        since=inline["SINCE"],
    )


def _sections(lines: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Collect the items of each section, and what stands beside its heading."""
    sections: dict[str, list[str]] = {}
    inline: dict[str, str] = {}
    items: list[str] | None = None
    for line in lines:
        heading = _HEADING.fullmatch(line.removeprefix(" "))
        if heading:
            items = sections.setdefault(heading[1], [])
            if items or list(sections)[-1] != heading[1]:
                raise BadHeader(f"section {heading[1]} is there twice")
            if heading[2]:
                inline[heading[1]] = heading[2]
        elif items is None:
            if line and not re.match(r" \S", line):
                raise BadHeader(f"a line above the sections is malformed: {line!r}")
        elif re.match(r" {3}\S", line):
            items.append(line.strip())
        elif re.match(r" {8,}\S", line) and items:
            items[-1] += " " + line.strip()
        else:
            raise BadHeader(f"a line is neither a heading, an item nor its continuation: {line!r}")
    if tuple(sections) != SECTIONS:
        raise BadHeader(f"the sections are {' '.join(sections)}, not {' '.join(SECTIONS)}")
    return sections, inline


def _some(name: str, sections: dict[str, list[str]]) -> list[str]:
    if not sections[name]:
        raise BadHeader(f"section {name} is empty")
    return sections[name]


def _numbered(items: list[str]) -> list[str]:
    """Check that items count 1, 2, 3, with perhaps one ``...`` at the end; or say ``none``."""
    if items == ["none"]:
        return []
    starts = [item.split()[0] for item in items]
    wanted = [str(number) for number in range(1, len(items) + 1)]
    if not items or starts not in (wanted, [*wanted[:-1], "..."]):
        raise BadHeader(f"the lines of KEYS and ARGV must count 1, 2, 3, not {starts}")
    return items


def _columns(item: str, count: int) -> list[str]:
    columns = re.split(r" {2,}", item, maxsplit=count - 1)
    if len(columns) != count:
        raise BadHeader(f"{count} columns, two blanks apart, are wanted: {item!r}")
    return columns


def _label(label: str) -> tuple[int, str]:
    if label == "...":
        return 0, label
    found = re.fullmatch(r"(\d+) ([a-z_]+)", label)
    if found is None:
        raise BadHeader(f"an index and a name are wanted, not {label!r}")
    return int(found[1]), found[2]


def _key(item: str) -> Key:
    label, kind, text = _columns(item, 3)
    if kind not in KEY_TYPES:
        raise BadHeader(f"{kind!r} is no type of a key: {item!r}")
    return Key(*_label(label), kind, text)


def _argument(item: str) -> Argument:
    label, text = _columns(item, 2)
    return Argument(*_label(label), text)


def _reply(item: str) -> Reply:
    shape, text = _columns(item, 2)
    found = re.fullmatch(r'\{"([A-Z]+)"((?:, [a-z_]+)*)\}', shape)
    if found is None:
        raise BadHeader(f'a reply is like {{"STATUS", field}}, not {shape!r}')
    return Reply(found[1], tuple(found[2].split(", ")[1:]), text)


def _error(item: str) -> Error:
    code, text = _columns(item, 2)
    if not re.fullmatch("[A-Z]+", code):
        raise BadHeader(f"a code of an error is in capitals, not {code!r}")
    return Error(code, text)


def _row(item: str) -> Row:
    status, order, variant, commands = _columns(item, 4)
    found = _COMMANDS.fullmatch(commands)
    if found is None or not re.fullmatch("[A-Z]+", status) or not re.fullmatch(r"O\(.+\)", order):
        raise BadHeader(f"a row of CALLS is like 'STATUS  O(1)  variant  GET*2 SET': {item!r}")
    words = [word.partition("*") for word in found[1].split()]
    if len({word[0] for word in words}) != len(words):
        raise BadHeader(f"a command is there twice: {item!r}")
    calls = tuple((command, int(times or 1)) for command, _, times in words)
    return Row(status, order, variant, calls, bool(found[2]))
