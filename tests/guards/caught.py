"""Runs of the conformance suite that must find fault: they race, and so may need several tries."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fencer.guards.testing import NonConforming


def caught(run: Callable[[], object], tries: int = 6) -> NonConforming:
    """What a run found; a race that is not lost in any of the tries fails the test."""
    for _ in range(tries):
        try:
            run()
        except NonConforming as found:
            return found
    pytest.fail(f"no fault was found in {tries} tries")
