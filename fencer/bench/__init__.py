"""Benchmarks side by side: what Fencer costs, beside doing it by hand and beside its peers.

``fencer bench`` prints a short run of them, ``pytest bench/`` a long one. Nothing else imports this
package.
"""

from fencer.bench.cases import APIS, BATCH, CALLS, NAMES, open_cases
from fencer.bench.check import LIMITS, MAX_ROUNDS, Checked, checked
from fencer.bench.core import Case, Contender, Operation, run
from fencer.bench.figures import FLOOR, OURS, PING, CaseResult, Figures, Missing, Ratio, Results
from fencer.bench.growth import Growth
from fencer.bench.handover import WAITERS, LineCost, line_costs
from fencer.bench.keepalive import LEASES, KeepingCost, keeping_costs
from fencer.bench.names import NAMES_IN_STORE, NamesCost, names_costs
from fencer.bench.place import Place, driver_versions, open_place
from fencer.bench.together import AT_ONCE, TogetherCost, together_costs

__all__ = [
    # What is measured
    "APIS",
    "AT_ONCE",
    "BATCH",
    "CALLS",
    "LEASES",
    "NAMES",
    "NAMES_IN_STORE",
    "WAITERS",
    "Case",
    "Contender",
    "Operation",
    "open_cases",
    # Where
    "Place",
    "driver_versions",
    "open_place",
    # Latency
    "FLOOR",
    "OURS",
    "PING",
    "CaseResult",
    "Figures",
    "Missing",
    "Ratio",
    "Results",
    "run",
    # Growth
    "Growth",
    "KeepingCost",
    "LineCost",
    "NamesCost",
    "TogetherCost",
    "keeping_costs",
    "line_costs",
    "names_costs",
    "together_costs",
    # The check
    "LIMITS",
    "MAX_ROUNDS",
    "Checked",
    "checked",
]
