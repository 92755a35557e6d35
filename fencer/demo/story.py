"""Plays the story of a paused worker and of a server that forgets. Waits for events, never sleeps.

Two real processes, A and B, work on one lease. A is stopped between its look at the lease and its
write; B takes over; A wakes and writes. Then the server is killed, and comes back empty.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from fencer.client import Fencer, connect
from fencer.demo.judge import Refusal, Seen
from fencer.demo.worker import RESOURCE
from fencer.embedded import Server
from fencer.errors import FencerError

_TTLS = (2.0, 4.0, 8.0)
"""Seconds that A asks for. The longer ones are for a machine too slow for the first."""

_ANSWER_SECONDS = 30.0


class BrokeOff(FencerError):
    """The story could not be played to its end: a process ended or did not answer."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened: seconds since the start, who (A, B, guard, server), and what."""

    at: float
    who: str
    what: str


class Worker:
    """A process that runs `fencer.demo.worker`. A context manager; the end kills it.

    It has a process group of its own: Ctrl-C in a terminal does not reach it, and a stopped worker
    whose parent is killed is ended by the kernel, which hangs up orphaned groups.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._read = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fencer.demo.worker", url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,
        )
        self.pid = self._process.pid

    def ask(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Tell it to do something, and return what came of it."""
        self.tell(action, **arguments)
        return self.hear()

    def tell(self, action: str, **arguments: Any) -> None:
        """Put an order into its pipe, and do not wait."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([action, arguments]).encode() + b"\n")
        except BrokenPipeError:
            raise BrokeOff(f"worker {self.name} has ended") from None

    def hear(self) -> dict[str, Any]:
        """Return its next reply.

        Raises:
            BrokeOff: it ended, failed, or did not answer in time.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + _ANSWER_SECONDS
        while b"\n" not in self._read:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise BrokeOff(f"worker {self.name} did not answer in {_ANSWER_SECONDS:g} s")
            some = self._process.stdout.read(65_536)
            if not some:
                raise BrokeOff(f"worker {self.name} has ended")
            self._read += some
        line, _, self._read = self._read.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BrokeOff(f"worker {self.name} failed: {reply['error']}")
        return reply

    def stop(self) -> None:
        """Stop it, and wait until it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise BrokeOff(f"worker {self.name} ended instead of being stopped")

    def wake(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        """Return the worker, which may not be ready yet: `hear` tells."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        self._process.kill()
        with self._process:  # closes the pipes, and waits
            pass


class Story:
    """Plays the story once.

    Args:
        tell: is called with each moment as it happens.
        waiting: is called with what the story waits for now; with an empty text when it goes on.
    """

    def __init__(self, tell: Callable[[Moment], None], waiting: Callable[[str], None]) -> None:
        self._tell = tell
        self._waiting = waiting
        self._begun = time.monotonic()

    def play(self) -> Seen:
        """Play it, end every process, and return what was seen.

        Raises:
            BrokeOff: a worker ended or did not answer.
            ServerFailed, StoreError: the embedded server failed.
        """
        with contextlib.ExitStack() as opened:
            self._begun = time.monotonic()
            server = opened.enter_context(Server(persistence="none", port=0))
            client = opened.enter_context(connect(server.unix_url))
            client.acquire("first")
            first_token_seconds = self._now()
            self._say(
                "server",
                f"{_version(client)} runs. The first token came after "
                f"{first_token_seconds * 1000:.0f} ms.",
            )
            a, b = (opened.enter_context(Worker(name, server.unix_url)) for name in "AB")
            self._waiting("Two worker processes are starting.")
            a.hear()
            b.hear()
            token_a, sure_for, stopped_after = self._stop_a_in_its_write(a)
            token_b, counter_before = self._b_takes_over(b)
            late_write = self._a_wakes(a)
            value = self._balance(client)
            keys_left = self._forget_everything(server, client)
            token_after, counter_after = self._a_starts_over(a)
            self._say(
                "server",
                f"A plain INCR counter gives {counter_after}; it gave {counter_before} before.",
            )
            self._write(a, "A again")
            late_write_after = self._write(b, "B late")
            return Seen(
                first_token_seconds=first_token_seconds,
                token_a=token_a,
                sure=sure_for > 0,
                sure_for=sure_for,
                stopped_after=stopped_after,
                token_b=token_b,
                late_write=late_write,
                written_by_b="B",
                value=value,
                keys_left=keys_left,
                token_after=token_after,
                late_write_after=late_write_after,
                written_after="A again",
                value_after=self._balance(client),
                counter_before=counter_before,
                counter_after=counter_after,
            )

    def _stop_a_in_its_write(self, a: Worker) -> tuple[int, float, float]:
        """Return A's token, for how long A was sure of it, and after how long it was stopped."""
        for ttl in _TTLS:
            granted = a.ask("acquire", ttl=ttl, wait=_ANSWER_SECONDS)
            self._say("A", f"Has the lease for {ttl:g} s, with token {granted['token']}.")
            self._write(a, "A")
            looked = self._now()
            remaining = a.ask("check")["remaining"]
            a.stop()
            stopped_after = self._now() - looked
            if stopped_after < remaining or ttl == _TTLS[-1]:
                break
            a.wake()  # Too slow: it was not sure any more.
        self._say("A", f"Looks at its lease, to write again: valid for {remaining:.2f} s more.")
        self._say("A", "Is stopped (SIGSTOP) between this look and its write.")
        return granted["token"], remaining, stopped_after

    def _b_takes_over(self, b: Worker) -> tuple[int, int]:
        """Return B's token, and the number that the plain counter gave."""
        self._say("B", "Asks for the lease, and waits.")
        self._waiting("A is stopped. B waits until A's lease ends.")
        granted = b.ask("acquire", ttl=_TTLS[0], wait=_ANSWER_SECONDS)
        self._say("B", f"Has the lease, with token {granted['token']}.")
        self._write(b, "B")
        return granted["token"], granted["counter"]

    def _a_wakes(self, a: Worker) -> Refusal | None:
        a.tell("write", value="A late")
        a.wake()
        self._say("A", "Wakes (SIGCONT), and goes on with its write.")
        return self._written("A late", a.hear())

    def _forget_everything(self, server: Server, client: Fencer) -> int:
        """Kill the server and start it again; return how many keys it has then."""
        server.kill()
        self._say("server", "Is killed (SIGKILL). It had saved nothing.")
        self._waiting("The server starts again.")
        server.start()
        keys: Any = client.client.dbsize()
        self._say("server", f"Runs again, and has {keys} keys.")
        return int(keys)

    def _a_starts_over(self, a: Worker) -> tuple[int, int]:
        granted = a.ask("acquire", ttl=_TTLS[0], wait=_ANSWER_SECONDS)
        self._say("A", f"Has the lease again, with token {granted['token']}.")
        return granted["token"], granted["counter"]

    def _balance(self, client: Fencer) -> str | None:
        value = client.client.get(RESOURCE)
        told = value.decode(errors="replace") if isinstance(value, bytes) else None
        self._say("server", f"The stored value is {told!r}.")
        return told

    def _write(self, worker: Worker, value: str) -> Refusal | None:
        return self._written(value, worker.ask("write", value=value))

    def _written(self, value: str, reply: dict[str, Any]) -> Refusal | None:
        if reply["refusal"] is None:
            self._say("guard", f"Accepts the write {value!r}.")
            return None
        refusal = Refusal(**reply["refusal"])
        self._say(
            "guard",
            f"Refuses {value!r}: token {refusal.token} < {refusal.highest}.",
        )
        return refusal

    def _say(self, who: str, what: str) -> None:
        self._waiting("")
        self._tell(Moment(self._now(), who, what))

    def _now(self) -> float:
        return time.monotonic() - self._begun


def _version(client: Fencer) -> str:
    about: Any = client.client.info("server")
    if "valkey_version" in about:
        return f"Valkey {about['valkey_version']}"
    return f"Redis {about['redis_version']}"
