"""A planted bug that needs no Fencer: what others do in its place."""

from __future__ import annotations

from collections.abc import Callable

import redis

COUNTER = "twin:token"


def plain_counter(store: redis.Redis) -> Callable[[], int]:
    """A token from ``INCR``: starts again at 1 where the server has lost its data."""
    return lambda: int(store.incr(COUNTER))
