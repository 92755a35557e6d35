"""The clock by which a holder counts its lease.

It must run on while the machine sleeps, and nobody must be able to set it: ``CLOCK_BOOTTIME`` on
Linux, ``CLOCK_MONOTONIC`` on macOS, where that one counts sleep too. No wall clock is used for any
decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


now: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Seconds since some fixed point, suspend included."""


def margin(ttl: float) -> float:
    """Seconds by which a holder stops believing before the store does.

    One per cent of the ttl for clocks that run at different rates, and two milliseconds for the
    server's granularity: the drift that Redlock assumes (redis.io, "Distributed Locks with Redis").
    """
    return ttl * 0.01 + 0.002
