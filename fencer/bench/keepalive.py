"""Keeping leases alive: what renewing many in one go takes, and what a process pays per minute."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fencer._drive import run
from fencer._keeper import _TRIP, renewing
from fencer._lease import BaseLease
from fencer._wire import Wire
from fencer.bench.commands import Commands
from fencer.bench.core import Case, Contender, Operation
from fencer.bench.figures import FLOOR, OURS
from fencer.bench.helper import helper
from fencer.bench.ready import TTL, Ready, errors_translated, kept
from fencer.bench.requests import packed, replay_all
from fencer.errors import StoreError

LEASES = (1, 100, 1_000, 10_000)

KEPT_TTL = 6.0
"""Seconds; short, so that a short run sees several renewals."""


@dataclass(frozen=True, slots=True)
class KeepingCost:
    """What a process pays that does nothing but keep leases alive, and what the server does.

    Attributes:
        leases: how many it keeps.
        ttl: their ttl in seconds; each is renewed about three times as often.
        seconds: how long it was watched.
        cpu_seconds: processor time of the process, per minute.
        server_cpu_seconds: processor time of the server, per minute.
        requests: requests to the server, per minute.
        inside: commands that the scripts ran, per minute.
    """

    leases: int
    ttl: float
    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float
    requests: float
    inside: float


def case(ready: Ready, batch: int) -> Case:
    """Renewing many leases in one go, per lease, beside renewing one."""
    alone = ready.lease("alone")
    all_at_once = _renewing_all(ready, batch)
    requests = [packed(words) for words in ready.sent_by(all_at_once)]
    floor = replay_all(ready.bare_socket(), requests, b"RENEWED")
    return Case(
        "keepalive",
        f"renew {batch:,} at once, each",
        "one",
        (
            Contender("one", "lease.renew() of one lease", alone.renew),
            Contender(FLOOR, "bare socket, the same bytes", _each(floor, batch), tells=True),
            Contender(OURS, "what keep_alive=True does", _each(all_at_once, batch), tells=True),
        ),
        transport=ready.transport,
    )


def _renewing_all(ready: Ready, batch: int) -> Operation:
    """What the keeper does when so many leases are due; nothing else here knows how it does it."""
    leases: list[BaseLease] = [
        ready.store.acquire(f"kept-{number}", ttl=TTL) for number in range(batch)
    ]
    wire = Wire(ready.store.client)
    clock = ready.store._protocol.clock

    def all_at_once() -> None:
        for start in range(0, batch, _TRIP):
            again = run(renewing(leases[start : start + _TRIP], clock), wire)
            kept(all(after is None for after in again.values()), "renewing all leases")

    return all_at_once


def keeping_costs(
    url: str,
    leases: Sequence[int] = LEASES,
    *,
    seconds: float = 12.0,
    ttl: float = KEPT_TTL,
    told: Callable[[int, int], None] = lambda done, turns: None,
) -> list[KeepingCost]:
    """Watch a process that keeps leases alive, for several numbers of them, one after the other.

    On a server that others use, what they ask for is counted, too.

    Args:
        url: a server, as `fencer.connect` takes it.
        leases: how many the process keeps, each 1 or more.
        seconds: how long to watch each; several times a third of the ttl, or it tells little.
        ttl: of the leases, in seconds.
        told: as for `run`.

    Raises:
        StoreError: the server refused or cannot be reached, or a lease was lost.
        InvalidArgument: the URL cannot be read.
    """
    costs = []
    for number, count in enumerate(leases):
        with errors_translated(), contextlib.ExitStack() as opened:
            ready = Ready(url, opened)
            keeper = opened.enter_context(
                helper("keep", url=url, namespace=ready.namespace, names=count, ttl=ttl)
            )
            told(10 * number, 10 * len(leases))
            keeper.hear()
            begun, before, spent = keeper.ask("look"), Commands.of(ready.peer), _cpu(ready.peer)
            for tenth in range(10):
                told(10 * number + tenth, 10 * len(leases))
                time.sleep(seconds / 10)
            ended, done, total = keeper.ask("look"), Commands.of(ready.peer), _cpu(ready.peer)
        if ended["valid"] != count:
            raise StoreError(f"{count - ended['valid']} of {count} leases were lost")
        took = ended["at"] - begun["at"]
        since = done.since(before)
        sums = (ended["cpu"] - begun["cpu"], total - spent, since.requests, since.inside)
        costs.append(KeepingCost(count, ttl, took, *(each * 60 / took for each in sums)))
    told(10 * len(leases), 10 * len(leases))
    return costs


def _cpu(peer: Any) -> float:
    """The seconds of processor time that a server has used."""
    info = peer.info("cpu")
    return float(info["used_cpu_sys"] + info["used_cpu_user"])


def _each(operation: Operation, number: int) -> Operation:
    """The same, telling the nanoseconds for each of so many."""

    def told() -> int:
        begun = time.perf_counter_ns()
        operation()
        return (time.perf_counter_ns() - begun) // number

    return told
