"""Looks at servers and at the leases on them, and names each danger with its consequence and cure.

`examine` is what ``fencer doctor`` runs.
"""

from fencer.doctor._examine import examine
from fencer.doctor._records import Finding, Machine, Report, Severity, Unseen, Verdict

__all__ = ["Finding", "Machine", "Report", "Severity", "Unseen", "Verdict", "examine"]
