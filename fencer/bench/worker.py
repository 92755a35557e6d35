"""What the other processes of a benchmark do: hand over, stand in line, or keep leases alive.

The first line on stdin is the task; each further one is a word. The end of stdin is the end.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fencer.bench.core import reason
from fencer.bench.players import Player, player
from fencer.bench.ready import TTL
from fencer.client import connect
from fencer.errors import FencerError

_LINE_TTL = 10.0
_HELD_SECONDS = 0.002
"""How long each in line keeps it: the one before it joins again meanwhile."""


def handover(url: str, namespace: str) -> None:
    """Be side 1 of players: ``open KIND``, ``take KIND`` and ``hand_over KIND SECONDS``."""
    gc.disable()
    players: dict[str, Player] = {}
    with contextlib.ExitStack() as opened:
        for verb, kind, *rest in _words():
            try:
                if verb == "open":
                    players[kind] = opened.enter_context(player(kind, url, namespace, 1))
                    _say("ready")
                elif verb == "take":
                    _say("waiting")
                    players[kind].take()
                    _say(time.monotonic_ns())
                else:
                    time.sleep(float(rest[0]))
                    begun = time.monotonic_ns()
                    players[kind].hand_over()
                    _say(begun)
            except Exception as error:  # It is for the other side to go on without a peer.
                _say({"failed": reason(error)})


def line(url: str, namespace: str, history: int, threads: int) -> None:
    """Have several threads acquire, hold for a moment, release, and join the line again."""
    store = connect(url, namespace=namespace, keep=2 * TTL, history=history)

    def again_and_again() -> None:
        while True:
            lease = store.acquire("line", ttl=_LINE_TTL, wait=None)
            time.sleep(_HELD_SECONDS)
            lease.release()

    for _ in range(threads):
        threading.Thread(target=_or_end(again_and_again), daemon=True).start()
    for _ in _words():
        pass
    os._exit(0)  # They are in the middle of something, and nobody will ever wait for it.


def keep(url: str, namespace: str, names: int, ttl: float) -> None:
    """Keep leases alive, and tell at each word what that has cost since the start."""
    with connect(url, namespace=namespace, keep=2 * TTL) as store:
        leases = [
            store.acquire(f"kept-{number}", ttl=ttl, keep_alive=True) for number in range(names)
        ]
        _say("ready")
        for _ in _words():
            _say(
                {
                    "at": time.monotonic(),
                    "cpu": time.process_time(),
                    "valid": sum(lease.valid for lease in leases),
                }
            )


def _or_end(work: Callable[[], None]) -> Callable[[], None]:
    def guarded() -> None:
        try:
            work()
        except FencerError as error:
            print(f"fencer bench: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    return guarded


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def _words() -> Iterator[list[str]]:
    return (each.split() for each in iter(sys.stdin.readline, ""))


def main() -> None:
    """Do the task that stdin tells."""
    task = json.loads(sys.stdin.readline())
    roles: dict[str, Callable[..., None]] = {"handover": handover, "line": line, "keep": keep}
    roles[task.pop("role")](**task)


if __name__ == "__main__":
    main()
