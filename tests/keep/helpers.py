"""What the tests of keeping share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import redis

import fencer
from fencer._lease import BaseLease
from fencer.embedded import Server
from tests.faults.record import BEGIN


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> bool:
    """Whether the condition came true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def stays(lease: fencer.Lease, seconds: float) -> bool:
    """Whether a lease is valid for so long."""
    return not eventually(lambda: not lease.valid, seconds)


def is_renewed(lease: BaseLease) -> bool:
    """Whether somebody renews the lease before it ends."""
    before = lease._deadline
    return eventually(lambda: lease._deadline > before or not lease.valid) and lease.valid


def calls(server: Server, command: str = "eval") -> int:
    """How many scripts the server has run, or other commands."""
    with redis.Redis.from_url(server.unix_url) as client:
        shown: Any = client.info("commandstats")
    return sum(stats["calls"] for name, stats in shown.items() if command in name)


def run(
    script: str, *args: str, timeout: float = 30.0, strict: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; with ``strict`` Python complains of whatever it can."""
    options = ["-X", "dev", "-W", "error"] if strict else []
    return subprocess.run(
        [sys.executable, *options, "-c", BEGIN + script, *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
