"""Fixtures: candidates in both APIs, and a diary of what their callbacks heard."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import redis

import fencer
from fencer import _clock
from fencer.drill.record import Event
from tests.faults.history import History
from tests.fix_api import Blocking, Connect


@dataclass
class Entry:
    """One call of a callback; its end is missing while it runs."""

    who: str
    callback: str
    argument: Any
    begun: float
    ended: float | None = None


class Diary:
    """All calls of all callbacks of a test, in the order in which they began."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def of(self, callback: str, who: str | None = None) -> list[Entry]:
        return [
            entry
            for entry in list(self.entries)
            if entry.callback == callback and who in (None, entry.who)
        ]

    def check(self) -> None:
        """Each term is told of once when it begins and once when it ends, and none overlap."""
        for who in {entry.who for entry in self.entries}:
            mine = [entry for entry in self.entries if entry.who == who]
            for before, after in itertools.pairwise(mine):
                assert before.ended is not None, before
                assert before.ended <= after.begun, (before, after)
            terms = [entry.callback for entry in mine if entry.callback != "on_leader_change"]
            assert terms == ["on_elected", "on_lost"] * (len(terms) // 2), terms
        elected, lost = self.of("on_elected"), self.of("on_lost")
        tokens = [entry.argument.token for entry in elected]
        assert tokens == sorted(set(tokens))
        for entry in elected:
            end = next(each for each in lost if each.who == entry.who and each.begun > entry.begun)
            later = [other for other in elected if other.begun > entry.begun]
            for other in later:
                assert end.begun < other.begun, f"{entry.who} heard of its end after {other.who}"


class Candidate:
    """One candidate with a client of its own.

    Attributes:
        election: it, with blocking methods in both APIs.
        twin: the object itself; in callbacks, return what its methods return.
    """

    def __init__(
        self,
        client: Any,
        diary: Diary,
        during: dict[str, Any],
        history: History | None = None,
        **options: Any,
    ) -> None:
        self.client = client
        self._history = history
        self.name = options.pop("name", "lead")
        self.who = client.holder
        self.asyncio = isinstance(client, Blocking)
        self._awaits: list[threading.Event] = []
        self._diary = diary
        callbacks = {
            each: self._recorded(each, during.get(each))
            for each in ("on_elected", "on_lost", "on_leader_change")
        }
        if isinstance(client, Blocking):
            self.twin: Any = fencer.AsyncElection(client._twin, self.name, **options, **callbacks)
            self.election: Any = Blocking(self.twin, client._loop)
        else:
            self.twin = self.election = fencer.Election(client, self.name, **options, **callbacks)

    @property
    def lease(self) -> Any:
        """Its lease, with blocking methods."""
        lease = self.twin.lease
        return Blocking(lease, self.client._loop) if self.asyncio else lease

    def sleep(self, seconds: float) -> Any:
        """What a callback returns that lasts so long."""
        return asyncio.sleep(seconds) if self.asyncio else time.sleep(seconds)

    def until(self, event: threading.Event) -> Any:
        """What a callback returns that lasts until the event is set, or the test ends."""
        self._awaits.append(event)
        if not self.asyncio:
            return event.wait()

        async def wait() -> None:
            while not event.is_set():
                await asyncio.sleep(0.01)

        return wait()

    def let_go(self) -> None:
        """Have every callback come to its end."""
        for event in self._awaits:
            event.set()

    def _recorded(self, name: str, inner: Callable[[Candidate, Any], Any] | None) -> Any:
        def call(argument: Any) -> Any:
            entry = Entry(self.who, name, argument, time.monotonic())
            self._diary.entries.append(entry)
            self._tell(name, argument)
            result = None
            try:
                result = inner(self, argument) if inner is not None else None
            finally:
                if not inspect.isawaitable(result):
                    entry.ended = time.monotonic()
            return self._awaited(entry, result) if inspect.isawaitable(result) else result

        return call

    def _tell(self, callback: str, argument: Any) -> None:
        """Have the record tell of a term's begin, and of its end."""
        now = _clock.now()
        token = getattr(argument, "token", None)
        what = {"on_elected": "elected", "on_lost": "stopped"}.get(callback)
        if what and self._history:
            name = f"the election {self.name!r}"
            self._history.tell(Event(self.who, what, now, now, "ok", token, "", name))

    async def _awaited(self, entry: Entry, result: Any) -> None:
        try:
            await result
        finally:
            entry.ended = time.monotonic()


class Elect(Protocol):
    """Starts a candidate: ``elect("a", on_lost=lambda candidate, reason: ..., ttl=1.0)``.

    It is stopped when the test ends.
    """

    def __call__(self, who: str, url: str | None = None, **options: Any) -> Candidate: ...


@pytest.fixture
def diary() -> Diary:
    """What the callbacks of the test's candidates heard."""
    return Diary()


@pytest.fixture
def elect(
    connect: Connect, redis_client: redis.Redis, diary: Diary, history: History
) -> Iterator[Elect]:
    """A maker of candidates; without a URL, on the shared server, which is empty at first."""
    with ExitStack() as opened:

        def make(
            who: str, url: str | None = None, *, start: bool = True, **options: Any
        ) -> Candidate:
            client = connect(url, holder=who, socket_timeout=2.0)
            during = {key: options.pop(key) for key in list(options) if key.startswith("on_")}
            options = {"ttl": 1.0, "retry_interval": 0.25, **options}
            candidate = Candidate(client, diary, during, history, **options)
            opened.callback(candidate.election.stop, timeout=10)
            opened.callback(candidate.let_go)
            if start:
                candidate.election.start()
            return candidate

        yield make


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until a condition is true, and return what it came to."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)
    return found


def leader_of(*candidates: Candidate) -> Candidate:
    """Wait until one of the candidates leads."""
    found: Candidate = eventually(
        lambda: next((each for each in candidates if each.election.is_leader), None)
    )
    return found


def waiting(candidate: Candidate, count: int) -> None:
    """Wait until so many are in line."""
    eventually(lambda: candidate.client.inspect(candidate.name).waiters == count)


@pytest.fixture(autouse=True)
def judged(history: History) -> None:
    """The record of this test must keep every rule: see `tests.faults.history`."""
