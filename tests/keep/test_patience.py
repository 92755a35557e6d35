"""A trip of renewals that gets no answer must not take the time of leases that were not in it."""

from __future__ import annotations

import time
from typing import Any

import redis

from fencer._steps import Batch
from fencer._wire import Wire
from tests.faults.planted import twin
from tests.fix_api import Connect
from tests.keep import bugs


class Watched(Wire):
    """A wire that writes down how long each trip may take."""

    patience: list[float]

    def batch(self, batch: Batch) -> list[Any]:
        self.patience.append(batch.timeout)
        return super().batch(batch)


@twin(bugs.trips_have_no_limit)
def test_a_long_lease_takes_no_time_of_a_short_one(
    connect_threads: Connect, redis_client: redis.Redis
) -> None:
    """One lost reply to the renewal of a long lease would cost all short ones."""
    client = connect_threads()
    wire = Watched(client.client)
    wire.patience = []
    client._keeping._wire = wire
    long = client.acquire("long", ttl=60, keep_alive=0.3)
    short = client.acquire("short", ttl=1, keep_alive=0.25)
    until = time.monotonic() + 20
    while len(wire.patience) < 6 and time.monotonic() < until:
        time.sleep(0.05)
    assert long.valid
    assert short.valid
    assert wire.patience[-1] > 0
    assert max(wire.patience[1:]) <= 0.25
