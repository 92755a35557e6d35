"""Runs a `Keeper`: with two threads, or with two tasks. They are there while there is work.

When the interpreter ends, or the event loop, the leases that are kept alive are released.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading

from fencer._drive import run, run_async, to_the_end
from fencer._fork import forget_in_child
from fencer._keeper import Keeper, releasing, renewing
from fencer._lease import BaseLease
from fencer._protocol import Protocol
from fencer._wire import AsyncWire, Wire

logger = logging.getLogger("fencer")

_GOODBYE = 1.0
"""Seconds to wait for the server when the leases that are kept alive are released at the end."""

_AGAIN = 0.5
"""Seconds until leases are renewed again after a fault of ours."""

_JOIN = 1.0
"""Seconds to wait for a thread to end."""


class ThreadKeeping:
    """The keeper of a client for threads."""

    def __init__(self, protocol: Protocol, wire: Wire) -> None:
        self._protocol = protocol
        self._wire = wire
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew: a forked child has neither the threads nor a part in its parent's leases."""
        self._keeper = Keeper(self._protocol.clock)
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def keep(self, lease: BaseLease, heartbeat: float | None) -> None:
        """Watch the lease from now on, and renew it if there is a heartbeat."""
        with self._changed:
            self._keeper.watch(lease)
            if heartbeat is not None:
                self._keeper.keep(lease, heartbeat)
            if not self._threads:
                self._start()
                atexit.register(self.close)
            self._changed.notify_all()

    def retime(self, lease: BaseLease, ttl_ms: int) -> None:
        """Fit the times to another ttl."""
        with self._changed:
            self._keeper.retime(lease, ttl_ms)
            self._changed.notify_all()

    def drop(self, lease: BaseLease) -> None:
        """Have no more to do with the lease."""
        if not self._threads:
            return  # Nothing is kept.
        with self._changed:
            self._keeper.drop(lease)
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, and release the leases that are kept alive."""
        with self._changed:
            threads, kept, self._closed = self._threads, self._keeper.kept, True
            known = self._keeper.known
            self._changed.notify_all()
        run(releasing(kept, _GOODBYE), self._wire)
        for thread in threads:
            thread.join(_JOIN)  # It may hang in a connection; it is a daemon.
        with self._changed:
            for lease in known:
                self._keeper.drop(lease)
            self._closed, self._threads = False, []
            if self._keeper.idle:
                atexit.unregister(self.close)
            else:  # Others have come meanwhile.
                with contextlib.suppress(RuntimeError):  # The interpreter is ending.
                    self._start()
            self._changed.notify_all()

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._renew, name="fencer-keeper", daemon=True),
            threading.Thread(target=self._watch, name="fencer-watcher", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _renew(self) -> None:
        while True:
            with self._changed:
                if self._ended():
                    return
                due, patience = self._keeper.next_renewals(), self._keeper.patience()
                if not due:
                    self._changed.wait(self._keeper.pause())
                    continue
            try:
                trip = renewing(due, self._protocol.clock, patience, self._wire.place)
                again = run(trip, self._wire)
            except Exception:
                again = _failed(due)
            with self._changed:
                self._keeper.renewed(again)

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._ended():
                    return
                self._changed.wait(self._keeper.look())

    def _ended(self) -> bool:
        if self._closed or self._keeper.idle:
            if threading.current_thread() in self._threads:
                self._threads = []
                atexit.unregister(self.close)
                self._changed.notify_all()
            return True
        return threading.current_thread() not in self._threads


class TaskKeeping:
    """The keeper of a client for asyncio."""

    def __init__(self, protocol: Protocol, wire: AsyncWire) -> None:
        self._protocol = protocol
        self._wire = wire
        self._keeper = Keeper(protocol.clock)
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event(), asyncio.Event()

    def keep(self, lease: BaseLease, heartbeat: float | None) -> None:
        """Watch the lease from now on, and renew it if there is a heartbeat."""
        self._keeper.watch(lease)
        if heartbeat is not None:
            self._keeper.keep(lease, heartbeat)
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._renew(), name="fencer-keeper"),
                asyncio.create_task(self._watch(), name="fencer-watcher"),
            ]
        self._wake()

    def retime(self, lease: BaseLease, ttl_ms: int) -> None:
        """Fit the times to another ttl."""
        self._keeper.retime(lease, ttl_ms)
        self._wake()

    def drop(self, lease: BaseLease) -> None:
        """Have no more to do with the lease."""
        self._keeper.drop(lease)
        self._wake()

    async def close(self) -> None:
        """End the tasks, and release the leases that are kept alive."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._release_all()

    async def _renew(self) -> None:
        try:
            while self._wanted():
                due = self._keeper.next_renewals()
                if not due:
                    await self._pause(0, self._keeper.pause())
                    continue
                patience = self._keeper.patience()
                try:
                    trip = renewing(due, self._protocol.clock, patience, self._wire.place)
                    again = await run_async(trip, self._wire)
                except Exception:
                    again = _failed(due)
                self._keeper.renewed(again)
        except asyncio.CancelledError:
            await to_the_end(self._release_all())
            raise
        finally:
            self._end()

    async def _watch(self) -> None:
        try:
            while self._wanted():
                await self._pause(1, self._keeper.look())
        finally:
            self._end()

    async def _release_all(self) -> None:
        await run_async(releasing(self._keeper.kept, _GOODBYE), self._wire)

    async def _pause(self, which: int, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed[which].wait()
        self._changed[which].clear()

    def _wake(self) -> None:
        for changed in self._changed:
            changed.set()

    def _wanted(self) -> bool:
        return asyncio.current_task() in self._tasks and not self._keeper.idle

    def _end(self) -> None:
        if asyncio.current_task() in self._tasks:
            self._tasks = []
            self._wake()


def _failed(leases: list[BaseLease]) -> dict[BaseLease, float | None]:
    """A trip has failed as none should: the others must not be lost to it. When to try again."""
    logger.exception("renewing %d leases failed, and is tried again", len(leases))
    return dict.fromkeys(leases, _AGAIN)
