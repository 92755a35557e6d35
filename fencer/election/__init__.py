"""Leader election with failover, on leases."""

from fencer.election._core import Timings
from fencer.election._tasks import AsyncElection
from fencer.election._threads import Election

__all__ = ["AsyncElection", "Election", "Timings"]
