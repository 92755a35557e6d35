"""Planted bugs: what others do in place of what Fencer does. Each must fail the check it faces.

A fault test that a broken twin passes as well proves nothing. These are those twins; none of them
is used anywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from fencer import StaleToken

COUNTER = "twin:token"


def plain_counter(store: redis.Redis) -> Callable[[], int]:
    """A token from ``INCR``: starts again at 1 where the server has lost its data."""
    return lambda: int(store.incr(COUNTER))


class TwoStepGuard:
    """Looks at the mark, and writes afterwards: a newer holder can write in between."""

    def __init__(self, store: redis.Redis, resource: str) -> None:
        self._store = store
        self._resource = resource
        self._mark = f"twin:{resource}:guard"

    def execute(self, token: int, *command: str) -> None:
        """Check, then write."""
        highest = int(self._store.get(self._mark) or 0)
        if token < highest:
            raise StaleToken(self._resource, token, highest)
        self.pause()
        self._store.set(self._mark, token)
        self._store.execute_command(*command)

    def pause(self) -> None:
        """Where the process stops for a while."""
        time.sleep(0.01)
