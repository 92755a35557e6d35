"""How the command ends: its exit codes, and the one line that tells of an error."""

from __future__ import annotations

from enum import IntEnum

from fencer.cli.show import readable
from fencer.errors import FencerError, InvalidArgument, ServerFailed, StoreError


class Exit(IntEnum):
    """The exit codes of all commands."""

    DONE = 0
    NO = 1
    USAGE = 2
    SERVER = 3
    BROKEN = 4
    WARNING = 5
    DANGER = 6
    INTERRUPTED = 130
    PIPE = 141


MEANING = {
    Exit.DONE: "done; for status: somebody has the lease",
    Exit.NO: "the answer is no: nobody has the lease, there was nothing to revoke, or a benchmark "
    "is above its limit",
    Exit.USAGE: "wrong usage, or an argument that is not allowed; nothing was sent",
    Exit.SERVER: "the server cannot be reached, refused, or did not start",
    Exit.BROKEN: "something that Fencer promises did not hold, or could not be shown",
    Exit.WARNING: "doctor: a warning, or something that could not be looked at",
    Exit.DANGER: "doctor: a danger",
    Exit.INTERRUPTED: "ended by Ctrl-C",
    Exit.PIPE: "nobody reads the output any more, as in `fencer ls | head -1`",
}
"""What each exit code means, as ``fencer --help`` shows it."""


class NotShown(FencerError):
    """A demonstration broke off before it could show what it is for."""


def code_of(error: FencerError) -> Exit:
    """The exit code for an error that ended a command."""
    match error:
        case InvalidArgument():
            return Exit.USAGE
        case StoreError() | ServerFailed():
            return Exit.SERVER
        case NotShown():
            return Exit.BROKEN
        case _:
            return Exit.NO


def line_of(error: FencerError) -> str:
    """The error as one line. Of a server's log it has the last line only."""
    first, *log = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, ServerFailed):
        return readable(": ".join([first, *log[-1:]]))
    return readable(" ".join([first, *log]))
