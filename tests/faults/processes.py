"""Real processes that a test leads step by step, through pipes, one line of JSON each way."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any, Self

# What the script prints goes to stderr: stdout is for replies.
BOOT = """
import importlib, json, os, sys
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
if not {"FENCER_TEST_RECORD", "FENCER_TEST_BUG"}.isdisjoint(os.environ):
    importlib.import_module("tests.faults.record").begin()
script, *args = json.loads(sys.argv[1])
if script.replace(".", "").isidentifier():
    module = importlib.import_module(script)
    handle = module.start(*args) if hasattr(module, "start") else module.handle
else:
    names = {"__name__": "worker", "args": args}
    exec(compile(script, "<worker>", "exec"), names)
    handle = names["handle"]
for line in sys.stdin:
    number, message = json.loads(line)
    try:
        reply = [number, handle(**message), None]
    except Exception as error:
        reply = [number, None, [type(error).__name__, str(error)]]
    print(json.dumps(reply), file=replies, flush=True)
"""


class WorkerError(Exception):
    """The worker's script raised: ``kind`` is the name of its exception, ``message`` its text."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(f"{kind}: {message}")


class Worker:
    """A process that runs a script and answers questions. A context manager; the end kills it.

    Args:
        script: Python source that defines ``handle(**message)``, which returns what JSON can hold,
            and finds its arguments in ``args``; or the dotted name of a module with such a
            function, or with ``start(*args)`` that returns one.
        args: for the script; what JSON can hold.
    """

    def __init__(self, script: str, *args: Any) -> None:
        self._asked = 0
        self._received = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps([script, *args])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.pid = self._process.pid

    def ask(self, *, timeout: float = 45.0, **message: Any) -> Any:
        """Send a message and return what ``handle`` returned; `tell` and `hear` in one."""
        self.tell(**message)
        return self.hear(timeout=timeout)

    def tell(self, **message: Any) -> None:
        """Send a message and do not wait."""
        assert self._process.stdin is not None
        self._asked += 1
        self._process.stdin.write(json.dumps([self._asked, message]).encode() + b"\n")

    def hear(self, *, timeout: float = 45.0) -> Any:
        """Return the reply to the last message; replies to earlier ones are passed over.

        Raises:
            WorkerError: the script raised.
            TimeoutError: no reply within ``timeout`` seconds; it can be asked for again.
            EOFError: the worker has ended; its stderr says why.
        """
        deadline = time.monotonic() + timeout
        while True:
            number, result, error = json.loads(self._line(deadline))
            if number == self._asked:
                if error is not None:
                    raise WorkerError(*error)
                return result

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"worker {self.pid} has not answered message {self._asked}")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                raise EOFError(f"worker {self.pid} ended with {self._process.wait(10)}")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line

    def stop(self) -> None:
        """SIGSTOP; returns when the process stands still."""
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"worker {self.pid} had ended: status {status}"

    def cont(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, also for a stopped process; returns when it is gone."""
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        """Kill it and close the pipes. A second call does nothing."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
