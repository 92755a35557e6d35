"""Fixtures: a primary and two replicas, the second of which follows through a proxy.

When the proxy goes silent, the primary grants on, and that replica hears nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from fencer.drill.proxy import Proxy
from fencer.embedded import Server

__all__ = ["Group", "await_true", "group", "shared_group"]

SETTINGS = {
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    # A replica that is cut off is to count as one that follows for as long as a test lasts.
    "repl-timeout": "600",
}


class Group:
    """A primary and two replicas.

    Args:
        opened: closes it.
        primary: the program that the primary runs; by default that of all servers.

    Attributes:
        primary: grants.
        near: a replica that follows it directly.
        far: a replica that follows it through the proxy.
        proxy: stands between the primary and ``far``.
    """

    def __init__(self, opened: ExitStack, primary: Path | None = None) -> None:
        self.primary, self.near, self.far = (
            opened.enter_context(Server(persistence="none", settings=SETTINGS, binary=binary))
            for binary in (primary, None, None)
        )
        self.proxy = opened.enter_context(Proxy(("127.0.0.1", self.primary.port)))
        self._at: dict[Server, redis.Redis] = {
            server: opened.enter_context(redis.Redis.from_url(server.unix_url))
            for server in (self.primary, self.near, self.far)
        }
        self.at(self.near).replicaof("127.0.0.1", self.primary.port)
        self.at(self.far).replicaof(self.proxy.host, self.proxy.port)
        self.caught_up()

    def at(self, server: Server) -> redis.Redis:
        """The driver's client of one server."""
        return self._at[server]

    def cut(self) -> None:
        """From now on, ``far`` hears nothing of the primary."""
        self.proxy.drop()

    def caught_up(self) -> None:
        """Heal the proxy, and wait until both replicas have everything."""
        self.proxy.heal()
        primary = self.at(self.primary)

        def have_all() -> bool:
            primary.incr("catching-up")
            return bool(primary.wait(2, 200) == 2)

        # Twice: of a full copy a replica tells before it follows, and that can take a second more.
        await_true(lambda: have_all() and have_all())

    def promote(self, server: Server) -> None:
        """Kill the primary, and make a replica the primary in its place, by hand."""
        self.primary.kill()
        self.at(server).replicaof("no", "one")


def await_true(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """For what another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(0.005)


@pytest.fixture(scope="package")
def _started_group() -> Iterator[Group]:
    with ExitStack() as opened:
        yield Group(opened)


@pytest.fixture
def shared_group(_started_group: Group) -> Group:
    """A group for tests that do no more harm than a cut; caught up and empty when one begins."""
    _started_group.caught_up()
    _started_group.at(_started_group.primary).flushall()
    _started_group.caught_up()
    return _started_group


@pytest.fixture
def group() -> Iterator[Group]:
    """A group for one test alone, which may kill any of it."""
    with ExitStack() as opened:
        yield Group(opened)
