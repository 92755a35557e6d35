"""The panels of a plot that show how cost grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fencer.bench.figures import OURS
from fencer.bench.growth import Growth
from fencer.bench.handover import LineCost
from fencer.bench.keepalive import KeepingCost
from fencer.bench.names import NamesCost
from fencer.bench.style import ACCENT, FAINT, GRID, INK, SECOND, beside
from fencer.bench.together import TogetherCost

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS: dict[str, Any] = {"color": ACCENT, "linewidth": 2.4, "marker": "o", "markersize": 5}
_OTHER: dict[str, Any] = {"color": SECOND, "linewidth": 1.8, "marker": "s", "markersize": 4.5}


def panels(growth: Growth) -> list[Callable[[Axes], None]]:
    """A panel for each kind of growth that was measured."""
    drawings: list[Callable[[Axes], None]] = []
    if growth.line:
        drawings.append(lambda axes: _line(axes, growth.line))
    if growth.kept:
        drawings.append(lambda axes: _kept(axes, growth.kept))
    if growth.names:
        drawings.append(lambda axes: _names(axes, growth.names))
    if growth.together:
        drawings.append(lambda axes: _together(axes, growth.together))
    return drawings


def _line(axes: Axes, costs: Sequence[LineCost]) -> None:
    waiters = [cost.waiters for cost in costs]
    axes.plot(waiters, [cost.requests for cost in costs], label="requests of clients", **_OURS)
    axes.plot(waiters, [cost.inside for cost in costs], label="commands in scripts", **_OTHER)
    _finish(axes, "what a hand-over costs the server", "waiters for the name", waiters)
    axes.set_ylabel("per hand-over")
    axes.set_ylim(0, 1.15 * max(max(cost.inside, cost.requests) for cost in costs))
    beside(axes)


def _kept(axes: Axes, costs: Sequence[KeepingCost]) -> None:
    leases = [cost.leases for cost in costs]
    axes.plot(leases, [cost.cpu_seconds for cost in costs], label="the client process", **_OURS)
    axes.plot(leases, [cost.server_cpu_seconds for cost in costs], label="the server", **_OTHER)
    title = f"keeping leases alive, ttl {costs[0].ttl:g} s"
    _finish(axes, title, "leases kept by one process", leases)
    axes.set_ylabel("processor seconds per minute")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    asked = [f"{cost.leases:,}\n{cost.requests:,.0f}" for cost in costs]
    axes.set_xticks(leases, asked, minor=False)
    axes.set_xlabel("leases kept by one process\nand its requests to the server per minute")
    beside(axes)


def _names(axes: Axes, costs: Sequence[NamesCost]) -> None:
    names = [cost.names for cost in costs]
    axes.plot(names, [cost.held for cost in costs], label="somebody has it", **_OURS)
    axes.plot(names, [cost.released for cost in costs], label="released", **_OTHER)
    _finish(axes, "memory of a name", "names in the store", names)
    axes.set_ylabel("bytes per name")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    axes.set_ylim(0, 1.1 * max(cost.held for cost in costs))
    beside(axes)


def _together(axes: Axes, costs: Sequence[TogetherCost]) -> None:
    workers = sorted({cost.workers for cost in costs})
    for api, line in (("threads", "-"), ("asyncio", "--")):
        for contender, look in ((OURS, _OURS), ("lock", _OTHER)):
            some = [cost for cost in costs if (cost.api, cost.contender) == (api, contender)]
            what = "lease.renew()" if contender == OURS else "Lock.reacquire()"
            axes.plot(
                [cost.workers for cost in some],
                [cost.per_second for cost in some],
                label=f"{what}, {'threads' if api == 'threads' else 'tasks'}",
                linestyle=line,
                **look,
            )
    _finish(axes, "renewing at once", "threads or tasks of one process", workers)
    axes.set_ylabel("renewals per second, all together")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    axes.set_ylim(0, 1.1 * max(cost.per_second for cost in costs))
    beside(axes)


def _finish(axes: Axes, title: str, unit: str, numbers: Sequence[int]) -> None:
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_xscale("log")
    axes.set_xticks(list(numbers), [f"{number:,}" for number in numbers], minor=False)
    axes.set_xticks([], minor=True)
    axes.margins(x=0.08)
    axes.grid(True, color=GRID)
    axes.tick_params(colors=FAINT, labelcolor=INK)
