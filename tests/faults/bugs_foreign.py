"""Planted bugs about exceptions that are not the driver's. See `tests.faults.planted`."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import RedisError

from fencer import _keeping, _refusals, _wakeups, _wire
from fencer.errors import StoreError


def translates_the_drivers_own(patch: pytest.MonkeyPatch) -> None:
    """What the driver does not raise itself goes through as it is."""
    plain = _refusals.unreached

    def unreached(error: Exception, pool: Any) -> Exception:
        return plain(error, pool) if isinstance(error, RedisError) else error

    patch.setattr(_wire, "unreached", unreached)
    patch.setattr(_wire, "is_foreign", lambda error: isinstance(error, RedisError))
    trips_end_the_keeper(patch)


def trips_end_the_keeper(patch: pytest.MonkeyPatch) -> None:
    """What a trip raises ends the renewals."""

    def failed(leases: Any) -> Any:
        raise sys.exception() or AssertionError

    patch.setattr(_keeping, "_failed", failed)


def hears_the_drivers_own(patch: pytest.MonkeyPatch) -> None:
    """What the driver does not raise itself ends the reader of the wake-ups."""
    plain = _wakeups.ThreadWakeups._broken

    def broken(wakeups: Any, error: Exception) -> None:
        if not isinstance(error, RedisError | StoreError):
            raise error
        plain(wakeups, error)

    patch.setattr(_wakeups.ThreadWakeups, "_broken", broken)


def uses_what_is_half_made(patch: pytest.MonkeyPatch) -> None:
    """A connection that the driver has left in the middle of its login is used by the next call."""
    for pool in (redis.ConnectionPool, redis.asyncio.ConnectionPool):
        plain = pool.disconnect

        def disconnect(pool: Any, inuse_connections: bool = True, plain: Any = plain) -> Any:
            if inuse_connections:
                return plain(pool)
            return None

        patch.setattr(pool, "disconnect", disconnect)
