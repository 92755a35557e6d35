"""Whose turn it is where all connections of a bounded pool are in use.

Who gives a connection back would take it again for the next call, and who only looks now and then
would not find one for seconds. So those who wait stand in line, and nobody passes them; but a trip
of renewals goes to the front: all leases of its client depend on it.

Others may use the pool as well, past the line. So the first in line looks by itself, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from typing import Any

from fencer._drivers import Driver
from fencer._fork import forget_in_child

_LOOK = 0.002
"""Seconds after which the first in line looks, even if nobody has said that one is free."""

_NAME = "_fencer_turns"


class Turns:
    """The line of one pool. Who stands in it has an event, set when there is something to see."""

    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew: in a forked child nobody waits."""
        self._changing = threading.Lock()
        # Weak: should an interrupt keep somebody from leaving, the others do not wait for it.
        self.line: list[weakref.ref[Any]] = []
        """Who waits."""

    def join(self, turn: Any, *, urgent: bool) -> None:
        """Stand in line, at its end or, if it is urgent, at its front."""
        with self._changing:
            self.line.insert(0 if urgent else len(self.line), weakref.ref(turn))

    def leave(self, turn: Any) -> None:
        """Stand in line no longer; the next one may look."""
        with self._changing:
            self.line = [one for one in self.line if one() not in (None, turn)]
        self.freed()

    def freed(self) -> None:
        """Have the first in line look."""
        first = self.first()
        if first is not None:
            first.set()

    def first(self) -> Any:
        """The first in line; ``None`` if nobody waits."""
        with self._changing:
            while self.line:
                first = self.line[0]()
                if first is not None:
                    return first
                del self.line[0]
        return None

    def wait(self, pool: Any, driver: Driver, seconds: float, *, urgent: bool) -> Any:
        """Take a connection when the turn has come.

        Raises:
            what the driver raises: also that the pool is full, if it is after so many seconds.
        """
        until = time.monotonic() + seconds
        turn = threading.Event()
        try:
            self.join(turn, urgent=urgent)
            while True:
                turn.clear()
                left, first = until - time.monotonic(), self.first() is turn
                if first or left <= 0:
                    try:
                        return driver.connection(pool)
                    except driver.full:
                        if left <= 0:
                            raise
                turn.wait(min(left, _LOOK) if first else left)
        finally:
            self.leave(turn)

    async def wait_async(self, pool: Any, driver: Driver, seconds: float, *, urgent: bool) -> Any:
        """The same on asyncio."""
        until = time.monotonic() + seconds
        turn = asyncio.Event()
        try:
            self.join(turn, urgent=urgent)
            while True:
                turn.clear()
                left, first = until - time.monotonic(), self.first() is turn
                if first or left <= 0:
                    try:
                        return await driver.connection(pool)
                    except driver.full:
                        if left <= 0:
                            raise
                try:
                    async with asyncio.timeout(min(left, _LOOK) if first else left):
                        await turn.wait()
                except TimeoutError:
                    pass
        finally:
            self.leave(turn)


def turns_of(pool: Any) -> Turns:
    """The line of a pool; it hangs on the pool, as the connection that is kept does."""
    known = vars(pool)
    turns: Turns = known.get(_NAME) or known.setdefault(_NAME, Turns())
    return turns
