"""Power cuts: a server whose files are cut to what it has synced, when it is killed.

A process that dies by SIGKILL loses nothing that it has written: the kernel has it. Only a power
cut takes what was not synced. The shim notes the length of each file at its last sync, and `cut`
shortens the files to that. Linux only, and only for a dynamically linked server.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from fencer.embedded import Persistence, Server, _find_binary

SOURCE = Path(__file__).with_name("fsync_shim.c")
DATA = ("*.rdb", "*.aof", "appendonlydir/*")
"""The files that a server reads when it starts."""


class Power:
    """A server, and the switch of its power.

    Attributes:
        server: the server, started.
    """

    def __init__(
        self, folder: Path, shim: Path, persistence: Persistence, slow_ms: int | None
    ) -> None:
        self._notes = folder / "synced"
        self._notes.mkdir()
        words = [f"LD_PRELOAD={shim}", f"FENCER_FSYNC_FOLDER={self._notes}"]
        if slow_ms is not None:
            words.append(f"FENCER_FSYNC_DELAY={slow_ms}")
        program = folder / "server-with-power"
        binary = str(_find_binary(None))
        program.write_text(f'#!/bin/sh\nexec env {shlex.join([*words, binary])} "$@"\n')
        program.chmod(0o700)
        self.server = Server(folder / "data", persistence=persistence, binary=program)

    def cut(self) -> int:
        """Cut the power; return how many bytes of its files the server has lost by it."""
        self.server.kill()
        assert (self._notes / "loaded").exists(), "the shim was not loaded"
        lost = 0
        for pattern in DATA:
            for file in self.server.folder.glob(pattern):
                lost += self._shorten(file)
        return lost

    def _shorten(self, file: Path) -> int:
        status = file.stat()
        note = self._notes / f"{status.st_dev}-{status.st_ino}"
        synced = int(note.read_text()) if note.exists() else 0
        if file.suffix == ".manifest" or synced >= status.st_size:
            return 0  # Made in one piece, and renamed when it was complete.
        os.truncate(file, synced)
        return status.st_size - synced


class MakePower(Protocol):
    """Starts a server with a switch: ``make_power(persistence, slow_ms=...)``."""

    def __call__(self, persistence: Persistence, slow_ms: int | None = None) -> Power: ...


@pytest.fixture(scope="session")
def fsync_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, compiled once per session. Without a C compiler: skip, but fail in CI."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        reason = "needs Linux and cc: the shim is compiled, and preloaded"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    shim = tmp_path_factory.mktemp("fsync") / "fsync_shim.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", shim, SOURCE], check=True)
    return shim


@pytest.fixture
def make_power(fsync_shim: Path, tmp_path: Path) -> Iterator[MakePower]:
    """A maker of servers whose power can be cut; they are stopped when the test ends."""
    made: list[Power] = []

    def make(persistence: Persistence, slow_ms: int | None = None) -> Power:
        folder = tmp_path / f"power-{len(made)}"
        folder.mkdir()
        made.append(Power(folder, fsync_shim, persistence, slow_ms))
        made[-1].server.start()
        return made[-1]

    yield make
    for power in made:
        power.server.stop(timeout=0)
