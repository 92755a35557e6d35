"""What the tests of the line share: a resource, a crowd, checks of order."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import fencer

MARGIN = 1.0
"""Seconds by which anything may be late on a busy machine."""


@dataclass(frozen=True, slots=True)
class Served:
    """One grant to one waiter."""

    number: int
    token: int
    at: float


class Resource:
    """What the lease protects. It writes down who comes, and whoever should not be there.

    Args:
        exclusive: whether two at once are a fault; ``False`` where the store loses data, for then
            only the tokens tell the older holder from the newer one.
    """

    def __init__(self, *, exclusive: bool = True) -> None:
        self._exclusive = exclusive
        self._lock = threading.Lock()
        self._inside: list[Any] = []
        self.visits: list[Served] = []
        self.faults: list[str] = []

    def visit(self, number: int, lease: Any, seconds: float) -> None:
        """Be inside for a while, holding the lease."""
        with self._lock:
            if self._exclusive and any(other.valid for other in self._inside):
                self.faults.append(f"waiter {number} came in while another believed in its lease")
            if self.visits and lease.token <= self.visits[-1].token:
                self.faults.append(f"token {lease.token} came after {self.visits[-1].token}")
            self.visits.append(Served(number, lease.token, time.monotonic()))
            self._inside.append(lease)
        try:
            time.sleep(seconds)
        finally:
            with self._lock:
                self._inside.remove(lease)


class Crowd:
    """Waiters, each in a thread of its own, numbered in the order in which they were added.

    Args:
        resource: where each goes once it has the lease.
    """

    def __init__(self, resource: Resource | None = None) -> None:
        self.resource = resource or Resource()
        self._pool = ThreadPoolExecutor(100, thread_name_prefix="crowd")
        self._where: list[tuple[Any, str]] = []
        self.waiters: list[Future[None]] = []

    def add(
        self, client: Any, name: str, *, wait: float = 60.0, ttl: float = 10.0, hold: float = 0.0
    ) -> None:
        """Have one more wait; it may not be in line yet when this returns."""
        number = len(self.waiters)
        if (client, name) not in self._where:
            self._where.append((client, name))

        def one() -> None:
            lease = client.acquire(name, ttl=ttl, wait=wait)
            self.resource.visit(number, lease, hold)
            with contextlib.suppress(fencer.StoreError):
                lease.release()  # Else it ends with its ttl.

        self.waiters.append(self._pool.submit(one))

    def queue(self, client: Any, name: str, **options: Any) -> None:
        """Have one more wait, and return when it is in line."""
        before = client.inspect(name).waiters
        self.add(client, name, **options)
        in_line(client, name, before + 1)

    def served(self, seconds: float = 60.0) -> list[Served]:
        """Wait until all have been served, and return who was, in order; raise what they raised."""
        until = time.monotonic() + seconds
        for waiter in self.waiters:
            waiter.result(max(0.0, until - time.monotonic()))
            assert self.resource.faults == []
        return self.resource.visits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # After a failure nobody releases what they wait for.
        until = time.monotonic() + 10.0
        while error and not all(one.done() for one in self.waiters) and time.monotonic() < until:
            for client, name in self._where:
                with contextlib.suppress(fencer.FencerError):
                    client.revoke(name)
                    client.acquire(name)  # Where it is free, this serves who waits.
            time.sleep(0.01)
        self._pool.shutdown(wait=not error, cancel_futures=True)


def await_true(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return once the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not so after {seconds:g} s"
        time.sleep(0.002)


def in_line(client: Any, name: str, count: int) -> None:
    """Return once so many wait."""
    await_true(lambda: client.inspect(name).waiters == count)


def check_order(served: list[Served], numbers: list[int]) -> None:
    """Each of these was served once, in this order, with tokens that rise."""
    assert [one.number for one in served] == numbers
    tokens = [one.token for one in served]
    assert tokens == sorted(set(tokens))


def check_gaps(served: list[Served], seconds: float) -> None:
    """Nobody waited longer than so many seconds for the one before."""
    gaps = [after.at - before.at for before, after in pairwise(served)]
    assert max(gaps) < seconds, f"a gap of {max(gaps):.2f} s after {gaps.index(max(gaps)) + 1}"


def check_nothing_left(client: Any, name: str) -> None:
    """The name is free, and nobody is in its line."""
    status = client.inspect(name)
    assert (status.held, status.waiters) == (False, 0)


def grants(client: Any, name: str, holder: str | None = None) -> list[int]:
    """The tokens that were granted, oldest first; to one holder, or to all."""
    return [
        event.token
        for event in client.history(name, 1000)
        if event.event == "grant" and holder in (None, event.holder)
    ]
