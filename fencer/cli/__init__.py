"""The ``fencer`` command. Only `main` is public; `fencer.cli.app` lists all commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from fencer.cli.exits import Exit


def main() -> None:
    """Run the command line and exit with a code of `fencer.cli.exits.Exit`."""
    code: int | str | None = Exit.DONE
    # A stream that the caller has closed is None: `fencer status orders >&-`.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # What the terminal cannot show is escaped, and never a crash.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        from fencer.cli.app import app

        app(prog_name="fencer")
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    if not all([_flushed(sys.stdout), _flushed(sys.stderr)]):
        code = Exit.PIPE
    sys.exit(code)


def _flushed(stream: TextIO) -> bool:
    """Whether all was written; if not, nothing is tried again when the interpreter ends."""
    try:
        stream.flush()
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
        return False
    return True
