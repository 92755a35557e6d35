"""Keeping leases alive: what renewing many in one go takes, and what a process pays per minute."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fencer._drive import run
from fencer._keeper import _CALL, _TRIP, renewing
from fencer._lease import BaseLease
from fencer._wire import Wire
from fencer.bench.core import FLOOR, OURS, Case, Contender, Operation
from fencer.bench.helper import helper
from fencer.bench.ready import TTL, Ready, errors_translated, replay_all, sent_by
from fencer.errors import StoreError

LEASES = (1, 100, 1_000)


@dataclass(frozen=True, slots=True)
class KeepingCost:
    """What a process pays that does nothing but keep leases alive.

    Attributes:
        leases: how many it keeps.
        ttl: their ttl in seconds; each is renewed about three times as often.
        seconds: how long it was watched.
        cpu_seconds: processor time of the process, per minute.
        requests: requests to the server, per minute.
        trips: trips to the server and back, per minute.
    """

    leases: int
    ttl: float
    seconds: float
    cpu_seconds: float
    requests: float
    trips: float


def case(ready: Ready, batch: int) -> Case:
    """Renewing many leases in one go, per lease, beside renewing one."""
    names = [f"kept-{number}" for number in range(batch)]
    ready.forget_names_later(*names)
    leases: list[BaseLease] = [ready.store.acquire(name, ttl=TTL) for name in names]
    alone = ready.lease("alone")
    wire = Wire(ready.store.client)
    clock = ready.store._protocol.clock

    def all_at_once() -> None:
        for start in range(0, batch, _TRIP):
            again = run(renewing(leases[start : start + _TRIP], clock), wire)
            if any(after is not None for after in again.values()):
                raise StoreError("a lease was not renewed")

    trips = -(-batch // _TRIP)
    requests = sent_by(ready.store.client, all_at_once, trips)
    begins = b"*%d\r\n$7\r\nRENEWED" % (2 * min(batch, _CALL))
    floor = replay_all(ready.bare_socket(), requests, begins)
    return Case(
        "keepalive",
        f"renew {batch:,} at once, each",
        "one",
        (
            Contender("one", "lease.renew() of one lease", alone.renew),
            Contender(FLOOR, "bare socket, the same bytes", _each(floor, batch), tells=True),
            Contender(OURS, "what keep_alive=True does", _each(all_at_once, batch), tells=True),
        ),
    )


def keeping_costs(
    url: str,
    leases: Sequence[int] = LEASES,
    *,
    seconds: float = 15.0,
    ttl: float = 10.0,
    told: Callable[[int, int], None] = lambda done, turns: None,
) -> list[KeepingCost]:
    """Watch processes that keep leases alive, all of them at the same time.

    Args:
        url: a server, as `fencer.connect` takes it.
        leases: how many each process keeps, 1 or more.
        seconds: how long to watch; several times a third of the ttl, or it tells little.
        ttl: of the leases, in seconds.
        told: as for `run`.

    Raises:
        StoreError: the server refused or cannot be reached, or a lease was lost.
        InvalidArgument: the URL cannot be read.
    """
    with errors_translated(), contextlib.ExitStack() as opened:
        ready = Ready(url, opened)
        keepers = []
        for number, count in enumerate(leases):
            names = [f"{number}-{each}" for each in range(count)]
            ready.forget_names_later(*names)
            keepers.append(
                opened.enter_context(
                    helper("keep", url=url, namespace=ready.namespace, names=names, ttl=ttl)
                )
            )
        for keeper in keepers:
            keeper.hear()
        before = [keeper.ask("look") for keeper in keepers]
        for tenth in range(10):
            told(tenth, 10)
            time.sleep(seconds / 10)
        after = [keeper.ask("look") for keeper in keepers]
    told(10, 10)
    costs = []
    for count, begun, ended in zip(leases, before, after, strict=True):
        if ended["valid"] != count:
            raise StoreError(f"{count - ended['valid']} of {count} leases were lost")
        took = ended["at"] - begun["at"]
        per_minute = [(ended[key] - begun[key]) * 60 / took for key in ("cpu", "requests", "trips")]
        costs.append(KeepingCost(count, ttl, took, *per_minute))
    return costs


def _each(operation: Operation, number: int) -> Operation:
    """The same, telling the nanoseconds for each of so many."""

    def told() -> int:
        begun = time.perf_counter_ns()
        operation()
        return (time.perf_counter_ns() - begun) // number

    return told
