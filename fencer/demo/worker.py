"""A worker of the demo: does what it is told through stdin, one line of JSON each way.

It is told step by step, so that it can be stopped exactly between its look at the lease and its
write, where no program can protect itself.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from fencer.client import Fencer, Lease, connect
from fencer.errors import StaleToken
from fencer.guards import RedisGuard

NAME = "billing"
RESOURCE = "balance"
COUNTER = "counter"


class Worker:
    """Acquires a lease, looks at it, and writes through a guard."""

    def __init__(self, fencer: Fencer) -> None:
        self._fencer = fencer
        self._guard = RedisGuard(fencer.client, RESOURCE, name=NAME)
        self._lease: Lease | None = None

    def acquire(self, ttl: float, wait: float) -> dict[str, Any]:
        """Get the lease, and beside it the number that a plain counter gives."""
        self._lease = self._fencer.acquire(NAME, ttl=ttl, wait=wait)
        return {"token": self._lease.token, "counter": self._fencer.client.incr(COUNTER)}

    def check(self) -> dict[str, Any]:
        """Look whether the lease is valid."""
        remaining = self._held().remaining()
        return {"valid": remaining > 0, "remaining": remaining}

    def write(self, value: str) -> dict[str, Any]:
        """Write, without another look at the lease."""
        try:
            self._guard.execute(self._held(), "SET", RESOURCE, value)
        except StaleToken as error:
            return {
                "refusal": {
                    "token": error.token,
                    "highest": error.highest,
                    "message": str(error),
                }
            }
        return {"refusal": None}

    def _held(self) -> Lease:
        if self._lease is None:
            raise RuntimeError("acquire comes first")
        return self._lease


def main() -> None:
    """Serve until stdin ends: then the demo has ended, and nobody wants what is waited for."""
    url, holder = sys.argv[1:]
    orders: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=serve, args=(url, holder, orders), daemon=True).start()
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)


def serve(url: str, holder: str, orders: SimpleQueue[str]) -> None:
    """Do what the orders say, one after the other."""
    with connect(url, holder=holder) as fencer:
        worker = Worker(fencer)
        actions: dict[str, Callable[..., dict[str, Any]]] = {
            "acquire": worker.acquire,
            "check": worker.check,
            "write": worker.write,
        }
        print(json.dumps({}), flush=True)  # ready
        while True:
            action, arguments = json.loads(orders.get())
            try:
                reply = actions[action](**arguments)
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
