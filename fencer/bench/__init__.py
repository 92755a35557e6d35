"""Benchmarks side by side: what Fencer costs, beside doing it by hand and beside its peers.

``fencer bench`` prints a short run of them, ``pytest bench/`` a long one. Nothing else imports this
package.
"""

from fencer.bench.cases import CALLS, NAMES, open_cases
from fencer.bench.core import (
    FLOOR,
    OURS,
    Case,
    CaseResult,
    Contender,
    Figures,
    Operation,
    Results,
    run,
)
from fencer.bench.handover import WAITERS, LineCost, line_costs
from fencer.bench.keepalive import LEASES, KeepingCost, keeping_costs
from fencer.bench.place import Place, driver_versions, open_place

__all__ = [
    # What is measured
    "CALLS",
    "LEASES",
    "NAMES",
    "WAITERS",
    "Case",
    "Contender",
    "Operation",
    "open_cases",
    # Where
    "Place",
    "driver_versions",
    "open_place",
    # Measuring
    "FLOOR",
    "OURS",
    "CaseResult",
    "Figures",
    "KeepingCost",
    "LineCost",
    "Results",
    "keeping_costs",
    "line_costs",
    "run",
]
