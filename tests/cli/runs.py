"""Runs the command line: in this process where that is enough, else as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from fencer.cli.app import app

PROGRAM = [sys.executable, "-m", "fencer"]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which must be one line of JSON."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the lines that it printed."""
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line on stderr, after nothing at all on stdout."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("fencer: ")
        return line


class Cli:
    """Runs commands on the server at a URL, in this process."""

    def __init__(self, url: str | None) -> None:
        self.url = url

    def __call__(self, *arguments: str) -> Ran:
        result = CliRunner().invoke(
            app, list(arguments), env={"FENCER_URL": self.url}, prog_name="fencer"
        )
        return Ran(result.exit_code, result.stdout, result.stderr)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command as a program, with pipes."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **options.pop("env", {})}
    environment.pop("FENCER_URL", None)
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def run(*arguments: str, **options: Any) -> Ran:
    """Run the command as a program until it ends."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)


def children(pid: int) -> set[int]:
    """The living child processes of a process."""
    return {child for child, parent in _processes().items() if parent == pid}


def alive(pids: set[int]) -> set[int]:
    """Those of the processes that have not ended."""
    return pids & _processes().keys()


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition comes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _processes() -> dict[int, int]:
    shown = subprocess.run(
        ["ps", "-A", "-o", "stat=,pid=,ppid="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in shown.stdout.splitlines()]
    return {int(pid): int(parent) for state, pid, parent in rows if not state.startswith("Z")}
