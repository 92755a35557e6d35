"""Another process of a benchmark, which runs `fencer.bench.worker`. Lines go both ways.

The URL goes through the pipe too: it may hold a password, and a command line is for all to read.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

from fencer.errors import StoreError

_END_SECONDS = 5.0


class Helper:
    """The process, as the one that started it sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._to: IO[str] = _there(process.stdin)
        self._from: IO[str] = _there(process.stdout)

    def say(self, word: str) -> None:
        """Tell it what to do."""
        try:
            self._to.write(word + "\n")
            self._to.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def hear(self) -> Any:
        """Return what it says next.

        Raises:
            StoreError: it has ended; why, it said on stderr. Or it failed at what it was told.
        """
        line = self._from.readline()
        if not line:
            raise self._gone()
        said = json.loads(line)
        if isinstance(said, dict) and "failed" in said:
            raise StoreError(f"in another process of the benchmark: {said['failed']}")
        return said

    def ask(self, word: str) -> Any:
        """Tell it what to do, and return what it says next."""
        self.say(word)
        return self.hear()

    def _gone(self) -> StoreError:
        code = self._process.wait()
        return StoreError(f"another process of the benchmark ended by itself, with code {code}")


@contextlib.contextmanager
def helper(role: str, **task: Any) -> Iterator[Helper]:
    """Start a process in one of the roles of `fencer.bench.worker`; it ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "fencer.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C in a terminal is for us, and we end it.
    ) as process:
        try:
            started = Helper(process)
            started.say(json.dumps({"role": role, **task}))
            yield started
            with contextlib.suppress(BrokenPipeError):
                _there(process.stdin).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
        finally:
            process.kill()


def _there(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
