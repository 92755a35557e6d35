"""Where a benchmark runs: the server, the core that it shares with us, and what to call them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

import fencer
from fencer._refusals import refusal
from fencer.bench.peers import PEERS, peer_versions
from fencer.bench.peers_async import ASYNC_PEERS
from fencer.bench.ready import transport_of
from fencer.client import connect
from fencer.embedded import Server


@dataclass(frozen=True, slots=True)
class Place:
    """A server, and where it and this process run.

    Attributes:
        urls: the server's URL, or two if both transports were asked for.
        server: its kind and version, such as ``valkey 9.1.2``.
        embedded: whether it is a private server, without persistence.
        core: the core that this thread, and an embedded server, are kept on; ``None`` if any.
    """

    urls: tuple[str, ...]
    server: str
    embedded: bool
    core: int | None

    @property
    def url(self) -> str:
        """The server's URL, the first if there are two."""
        return self.urls[0]

    @property
    def transports(self) -> tuple[str, ...]:
        """Of each URL, ``tcp``, ``tls`` or ``unix``."""
        return tuple(map(transport_of, self.urls))

    def facts(self) -> dict[str, Any]:
        """What a reader of the figures must know, without the URL, which may hold a password."""
        return {
            "server": self.server,
            "transports": self.transports,
            "embedded": self.embedded,
            "core": self.core,
            "machine": machine(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "fencer": fencer.__version__,
            **driver_versions(),
            "peers": peer_versions(*PEERS[1:], *ASYNC_PEERS[1:]),
        }

    def sentence(self) -> str:
        """The same as a sentence."""
        facts = self.facts()
        if self.core is None:
            where = "on any core"
        else:
            where = f"{'client and server' if self.embedded else 'client'} on core {self.core}"
        persistence = " without persistence" if self.embedded else ""
        peers = "".join(f", {name} {version}" for name, version in facts["peers"].items())
        return (
            f"{facts['machine']}, {facts['cores']} cores, load {facts['load']}; "
            f"{self.server}{persistence} over {' and '.join(self.transports)}, {where}; "
            f"Python {facts['python']}, fencer {facts['fencer']}, redis-py {facts['redis_py']}, "
            f"hiredis {facts['hiredis']}{peers}"
        )


@contextlib.contextmanager
def open_place(
    url: str | None = None, *, pin: bool = True, transports: Sequence[str] = ("tcp",)
) -> Iterator[Place]:
    """Start a private server, or look at the one that is named; on leaving, all is as before.

    Args:
        url: as `fencer.connect` takes it; by default a private server on a free TCP port.
        pin: keep this thread and a private server on one core, where the system can do that. Two
            processes that hand work to and fro then do not depend on where the scheduler puts them.
        transports: of a private server, ``tcp`` or ``unix`` or both; a URL says it itself.

    Raises:
        StoreError: the server at ``url`` refused or cannot be reached.
        ServerFailed: the private server did not start.
        InvalidArgument: the URL cannot be read.
    """
    with contextlib.ExitStack() as opened:
        pids = [0]
        embedded = url is None or url == "embedded:"
        if url is None or embedded:
            server = opened.enter_context(Server(persistence="none"))
            ways = {"tcp": server.url, "unix": server.unix_url}
            urls = tuple(ways[each] for each in transports)
            pids.append(server.pid)
        else:
            urls = (url,)
        core = opened.enter_context(_on_one_core(pids)) if pin else None
        yield Place(urls, _server_at(urls[0]), embedded, core)


def driver_versions() -> dict[str, str]:
    """The versions of the driver and of its parser."""
    return {"redis_py": version("redis"), "hiredis": version("hiredis")}


def machine() -> str:
    """System, architecture and processor, as far as the system tells."""
    parts = [platform.system(), platform.machine()]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name"))
        parts.append(model.partition(":")[2].strip())
    return " ".join(filter(None, parts))


@contextlib.contextmanager
def _on_one_core(pids: list[int]) -> Iterator[int | None]:
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    core = max(allowed)  # Core 0 is where most systems handle their interrupts.
    try:
        for pid in pids:
            os.sched_setaffinity(pid, {core})
        yield core
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(pid, allowed)


def _server_at(url: str) -> str:
    try:
        with connect(url) as store:
            info: Any = store.client.info("server")
    except RedisError as error:
        raise refusal(error) from error
    if "valkey_version" in info:
        return f"valkey {info['valkey_version']}"
    return f"redis {info['redis_version']}"
