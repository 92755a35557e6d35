"""How cost grows with numbers, all kinds of it that a run may have found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fencer.bench.handover import LineCost
from fencer.bench.keepalive import KeepingCost
from fencer.bench.names import NamesCost
from fencer.bench.together import TogetherCost


@dataclass(frozen=True, slots=True)
class Growth:
    """What a run found about growth; what was not asked for is empty.

    Attributes:
        line: by the number of waiters.
        kept: by the number of leases that a process keeps alive.
        names: by the number of names in the store.
        together: by the number of threads or tasks.
    """

    line: tuple[LineCost, ...] = ()
    kept: tuple[KeepingCost, ...] = ()
    names: tuple[NamesCost, ...] = ()
    together: tuple[TogetherCost, ...] = ()

    def with_(self, **more: Any) -> Growth:
        """The same, and more."""
        return replace(self, **more)

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict, fit for JSON."""
        return asdict(self)
