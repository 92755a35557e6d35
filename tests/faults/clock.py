"""Fixtures: a server's wall clock, under the control of a test. See `fencer.drill.clock`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fencer.drill.clock import NoShim, ServerClock, compile_shim

__all__ = ["ServerClock", "clock_shim", "server_clock"]


@pytest.fixture(scope="session")
def clock_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, compiled once per session. Without a C compiler: skip, but fail in CI."""
    try:
        return compile_shim(tmp_path_factory.mktemp("clock"))
    except NoShim as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))


@pytest.fixture
def server_clock(tmp_path: Path, clock_shim: Path) -> ServerClock:
    """A clock that is right until it jumps."""
    return ServerClock(tmp_path, clock_shim)
