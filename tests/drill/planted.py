"""``fencer instance`` with a planted bug, which a drill must see.

python -m tests.drill.planted BUG OPTIONS-OF-INSTANCE...
"""

from __future__ import annotations

import sys
from typing import Any

from fencer._instance import Writes
from fencer._protocol import Protocol
from fencer.cli.app import app
from fencer.client import Fencer, Lease
from fencer.election import Election


def dense() -> None:
    """Tokens of a plain counter, which begins at 1 again on a server that has lost its data."""
    init = Fencer.__init__

    def counting(self: Fencer, *args: Any, **options: Any) -> None:
        init(self, *args, **(options | {"tokens": "dense"}))

    acquire = Fencer._acquire

    def unannounced(self: Fencer, *args: Any, **options: Any) -> Lease:
        return acquire(self, *args, **(options | {"guards": ()}))  # they would lift the counter

    Fencer.__init__ = counting  # type: ignore[method-assign]
    Fencer._acquire = unannounced  # type: ignore[method-assign]


def unguarded() -> None:
    """Writes that no guard looks at."""

    def add(self: Writes, lease: Lease, instance_id: str) -> None:
        self.guard._wire.client.xadd(self.stream, {"instance": instance_id, "token": lease.token})

    Writes.add = add  # type: ignore[method-assign]


def overconfident() -> None:
    """A leader that counts on twice its ttl."""
    belief = Protocol.belief

    def doubled(self: Protocol, ttl_ms: int) -> float:
        return 2 * belief(self, ttl_ms)

    Protocol.belief = doubled  # type: ignore[method-assign]


def idle() -> None:
    """A leader that does nothing."""
    Election.leader_only = lambda self, task, *, name=None: lambda: None  # type: ignore[method-assign]


if __name__ == "__main__":
    bug, *options = sys.argv[1:]
    {bug.__name__: bug for bug in (dense, unguarded, overconfident, idle)}[bug]()
    app(["instance", *options], prog_name="fencer")
