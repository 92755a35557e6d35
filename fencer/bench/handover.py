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

from redis.exceptions import RedisError

from fencer._steps import text
from fencer.bench.core import Case, Contender, Operation
from fencer.bench.helper import Helper, helper
from fencer.bench.players import KINDS, Kind, forget, player
from fencer.bench.ready import Ready, errors_translated
from fencer.errors import StoreError

WAITERS = (1, 10, 100)

_SHORTEST = 0.003
"""Seconds that the holder keeps it at least: by then the other is in line."""

_PROCESSES = 3
_JOIN_SECONDS = 30.0
_ALL_EVENTS = 1_000_000

_ASKED_FOR = (
    "eval",
    "script",
    "subscribe",
    "unsubscribe",
    "ping",
    "hello",
    "client",
    "auth",
    "select",
)
"""How the commands begin that a client sends; our scripts use none of them."""

_OBSERVING = ("info", "multi", "exec", "xinfo")
"""The commands of which a look at the server is made; our scripts use none of them."""


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
    installed = [kind for kind in KINDS if kind.installed]
    other = ready.opened.enter_context(
        helper(
            "handover",
            url=ready.url,
            namespace=ready.namespace,
            kinds=[kind.name for kind in installed],
        )
    )
    ready.opened.callback(_forget, ready)
    other.hear()
    names = {kind.name for kind in installed}
    return Case(
        "handover",
        "hand-over",
        "python-redis-lock" if "python-redis-lock" in names else "lock",
        (
            Contender("ping", "bare socket, PING, after a pause", _paused(ready), tells=True),
            *(
                Contender(kind.name, kind.label, _to_and_fro(kind, ready, other), tells=True)
                for kind in installed
            ),
        ),
        tuple(kind.name for kind in KINDS if not kind.installed),
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


def _to_and_fro(kind: Kind, ready: Ready, other: Helper) -> Operation:
    """Hand over to the other process, and next time back from it."""
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


def _forget(ready: Ready) -> None:
    with contextlib.suppress(RedisError):
        forget(ready.peer, ready.namespace)


def _line_cost(ready: Ready, waiters: int, seconds: float) -> LineCost:
    ready.forget_names_later("line")
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
    counted = {
        command: (calls - before.get(command, 0)) / handovers
        for command, calls in sorted(after.items())
        if calls > before.get(command, 0) and not command.startswith(_OBSERVING)
    }
    requests = sum(calls for command, calls in counted.items() if command.startswith(_ASKED_FOR))
    return LineCost(waiters, handovers, requests, sum(counted.values()) - requests, counted)


def _look(client: Any, history: str) -> tuple[dict[str, int], str]:
    """How often each command was run, and the last event: both of the same moment."""
    with client.pipeline(transaction=True) as both:
        both.info("commandstats")
        both.xinfo_stream(history)
        commands, stream = both.execute()
    return (
        {name.removeprefix("cmdstat_"): each["calls"] for name, each in commands.items()},
        text(stream["last-generated-id"]),
    )
