"""What the cases for threads and for asyncio have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fencer._lease import BaseLease
from fencer.bench.core import Contender, Operation, reason
from fencer.bench.figures import Missing
from fencer.bench.peers import Kind, absent
from fencer.bench.ready import Ready
from fencer.bench.requests import Rounds

K = TypeVar("K", bound=type[Kind])


def tried(
    ready: Ready,
    case: str,
    kinds: Sequence[K],
    doing: Callable[[K, Ready, str], Operation],
    **options: Any,
) -> tuple[list[Contender], tuple[Missing, ...]]:
    """The peers as contenders of a case, each tried once, and those that are left out.

    The first of the kinds is the reference, without which there is nothing to measure.
    """
    contenders, missing = [], []
    api = "asyncio" if "loop" in options else "threads"
    for kind in kinds if ready.all_peers else kinds[:1]:
        optional = kind is not kinds[0]
        why = absent(kind)
        if why is None and case not in kind.labels:
            why = "it cannot do that in asyncio"
        if why:
            missing.append(Missing(kind.name, why))
            continue
        try:
            operation = doing(kind, ready, ready.key(f"{case}-{kind.name}-{api}"))
            contender = Contender(
                kind.name, kind.labels[case], operation, optional=optional, **options
            )
            contender.once()
        except Exception as error:
            if not optional:
                raise
            missing.append(Missing(kind.name, reason(error)))
        else:
            contenders.append(contender)
    return contenders, tuple(missing)


def heard_rounds(ready: Ready, both: Callable[[], BaseLease]) -> Rounds:
    """What our client sends for an acquire and its release, the lease of which is returned."""
    lease: BaseLease

    def once() -> None:
        nonlocal lease
        lease = both()

    get, give_back = ready.sent_by(once, 2)
    return Rounds(get, give_back, lease.grant, lease.token)
