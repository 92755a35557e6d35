"""A server's wall clock, under control: a shim that is preloaded into its process.

Linux only, and only for a dynamically linked server. `tests/faults/test_tools.py` holds that it
acts on the one we test with; a drill looks whether it does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

from fencer.errors import FencerError

SOURCE = Path(__file__).with_name("clock_shim.c")


class NoShim(FencerError):
    """The clock of a server cannot be shifted on this machine."""


def compile_shim(folder: Path) -> Path:
    """Compile the shim into a folder, and return its path.

    Raises:
        NoShim: this is not Linux, or there is no C compiler ``cc`` that works.
    """
    if sys.platform != "linux":
        raise NoShim("needs Linux: the clock shim is preloaded")
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoShim("needs cc: install gcc or clang")
    shim = folder / "clock_shim.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, "-o", shim, SOURCE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NoShim(f"needs a working cc: {done.stderr.strip().splitlines()[-1:]}")
    return shim


class ServerClock:
    """How far one server's wall clock is off. It can be changed while the server runs.

    Args:
        folder: where the offset's file is written; one clock to a folder.
        shim: the compiled shim.

    Attributes:
        env: what to add to the environment of the server's process, before it starts.
    """

    def __init__(self, folder: Path, shim: Path) -> None:
        self._folder = folder
        self._file = folder / "clock-offset"
        self._file.write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(shim), "FENCER_CLOCK_FILE": str(self._file)}

    @property
    def offset(self) -> float:
        """Seconds by which the server's clock is ahead (behind: below 0)."""
        nanoseconds: int = struct.unpack("=q", self._file.read_bytes())[0]
        return nanoseconds / 1e9

    def jump(self, seconds: float) -> None:
        """Step the clock forward, or back if negative; in force when this returns."""
        nanoseconds = round((self.offset + seconds) * 1e9)
        # In place and in one write: the server has this very file mapped.
        fd = os.open(self._file, os.O_WRONLY)
        try:
            os.pwrite(fd, struct.pack("=q", nanoseconds), 0)
        finally:
            os.close(fd)
        # Valkey 9 reads the wall clock at most once a millisecond, and goes on by the CPU's
        # counter in between (`ustime`).
        time.sleep(0.005)

    def program(self, binary: Path) -> Path:
        """Write a program that is ``binary`` with this clock, for `fencer.embedded.Server`."""
        words = [f"{name}={value}" for name, value in self.env.items()]
        program = self._folder / "server-with-clock"
        program.write_text(f'#!/bin/sh\nexec env {shlex.join([*words, str(binary)])} "$@"\n')
        program.chmod(0o700)
        return program
