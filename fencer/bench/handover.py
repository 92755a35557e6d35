"""Handing over: how long until a waiter in another process has it, and what that costs the server.

The latency: two processes have it by turns. The one that has it keeps it for a short random time,
so that the other waits by then; what counts is the time from just before the release until the
acquire in the other process has returned, on the monotonic clock that all processes share.

The cost: with so many waiters in line, each of which joins again as soon as it has had its turn, it
is counted on the server how many requests come in per hand-over, and how many commands the scripts
run. Joining is included; so is a connection that anybody would need to make anew.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fencer._steps import text
from fencer.bench.commands import Commands
from fencer.bench.core import Case, Contender, Operation, reason
from fencer.bench.figures import PING, Missing
from fencer.bench.helper import Helper, helper
from fencer.bench.peers import Kind, absent
from fencer.bench.players import KINDS, player
from fencer.bench.ready import Ready, errors_translated
from fencer.errors import StoreError

WAITERS = (1, 10, 100, 1_000)

_SHORTEST = 0.003
"""Seconds that the holder keeps it at least: by then the other is in line."""

_PROCESSES = 3
_JOIN_SECONDS = 60.0
_NEEDED = 4
"""The first of the kinds: the floor, ours, and redis-py's own; the run does not go on without."""

_ALL_EVENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class LineCost:
    """What a hand-over costs the server with so many waiters.

    Attributes:
        waiters: how many stood in line.
        handovers: how many there were.
        requests: requests of the clients, per hand-over.
        inside: commands that the scripts ran, per hand-over.
        commands: all of them by name, per hand-over.
    """

    waiters: int
    handovers: int
    requests: float
    inside: float
    commands: dict[str, float]


def case(ready: Ready) -> Case:
    """The latency of a hand-over, beside peers and beside a PING."""
    missing = [Missing(kind.name, why) for kind in KINDS if (why := absent(kind))]
    away = {each.name for each in missing}
    other = ready.opened.enter_context(helper("handover", url=ready.url, namespace=ready.namespace))
    contenders = []
    for kind in KINDS if ready.all_peers else KINDS[:_NEEDED]:
        if kind.name in away:
            continue
        optional = kind not in KINDS[:_NEEDED]
        try:
            contender = Contender(
                kind.name,
                kind.labels["handover"],
                _to_and_fro(kind, ready, other),
                tells=True,
                optional=optional,
            )
            contender.times(2)
        except Exception as error:
            if not optional:
                raise
            missing.append(Missing(kind.name, reason(error)))
        else:
            contenders.append(contender)
    names = {each.name for each in contenders}
    return Case(
        "handover",
        "hand-over",
        "python-redis-lock" if "python-redis-lock" in names else "lock",
        (
            Contender(PING, "bare socket, PING, after a pause", _paused(ready), tells=True),
            *contenders,
        ),
        tuple(missing),
        transport=ready.transport,
    )


def line_costs(
    url: str,
    waiters: Sequence[int] = WAITERS,
    *,
    seconds: float = 2.0,
    told: Callable[[int, int], None] = lambda done, turns: None,
) -> list[LineCost]:
    """Count what a hand-over costs the server, with several numbers of waiters.

    On a server that others use, what they ask for is counted, too.

    Args:
        url: a server, as `fencer.connect` takes it.
        waiters: how many wait, each 1 or more.
        seconds: how long to count for each of them.
        told: as for `run`.

    Raises:
        StoreError: the server refused or cannot be reached, or the line does not form.
        InvalidArgument: the URL cannot be read.
    """
    costs = []
    for done, count in enumerate(waiters):
        told(done, len(waiters))
        with errors_translated(), contextlib.ExitStack() as opened:
            costs.append(_line_cost(Ready(url, opened), count, seconds))
    told(len(waiters), len(waiters))
    return costs


def _paused(ready: Ready) -> Operation:
    ping = ready.ping()

    def operation() -> int:
        # Every hand-over comes after a pause too, in which the processor turned to other things.
        time.sleep(_pause(0.01))
        return ping.once()

    return operation


def _to_and_fro(kind: type[Kind], ready: Ready, other: Helper) -> Operation:
    """Hand over to the other process, and next time back from it."""
    other.ask(f"open {kind.name}")
    ours = ready.opened.enter_context(player(kind.name, ready.url, ready.namespace, 0))
    ours.take()
    here = True

    def operation() -> int:
        nonlocal here
        pause = _pause(kind.longest)
        if here:
            other.ask(f"take {kind.name}")
            time.sleep(pause)
            begun = time.monotonic_ns()
            ours.hand_over()
            ended = other.hear()
        else:
            other.say(f"hand_over {kind.name} {pause}")
            ours.take()
            ended = time.monotonic_ns()
            begun = other.hear()
        here = not here
        return int(ended - begun)

    return operation


def _pause(longest: float) -> float:
    return _SHORTEST + random.uniform(0, longest)


def _line_cost(ready: Ready, waiters: int, seconds: float) -> LineCost:
    keys = ready.keyspace.of("line")
    players = waiters + 1  # One of them has it.
    processes = min(_PROCESSES, players)
    for number in range(processes):
        ready.opened.enter_context(
            helper(
                "line",
                url=ready.url,
                namespace=ready.namespace,
                history=_ALL_EVENTS,
                threads=(players + number) // processes,
            )
        )
    until = time.monotonic() + _JOIN_SECONDS
    client: Any = ready.peer
    while client.zcard(keys.queue) < waiters:
        if time.monotonic() > until:
            raise StoreError(f"{waiters} waiters were not in line after {_JOIN_SECONDS:g} s")
        time.sleep(0.01)
    before, after_event = _look(client, keys.history)
    time.sleep(seconds)
    after, last_event = _look(client, keys.history)
    events = client.xrange(keys.history, f"({after_event}", last_event)
    handovers = sum(fields[b"event"] == b"grant" for _, fields in events)
    if not handovers:
        raise StoreError(f"nothing was handed over in {seconds:g} s")
    done = after.since(before)
    return LineCost(
        waiters,
        handovers,
        done.requests / handovers,
        done.inside / handovers,
        {command: calls / handovers for command, calls in done.calls.items()},
    )


def _look(client: Any, history: str) -> tuple[Commands, str]:
    """How often each command was run, and the last event: both of the same moment."""
    with client.pipeline(transaction=True) as both:
        both.info("commandstats")
        both.xinfo_stream(history)
        commands, stream = both.execute()
    return Commands.told(commands), text(stream["last-generated-id"])
