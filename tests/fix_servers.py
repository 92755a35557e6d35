"""Fixtures: real servers, each on its own socket, port and temporary folder.

`FENCER_SERVER_BINARY` runs the whole suite on another server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import redis

from fencer.embedded import Server


class MakeServer(Protocol):
    """Starts a server with the options of `Server`; it is stopped when the test ends."""

    def __call__(self, *args: Any, **options: Any) -> Server: ...


@pytest.fixture(scope="session")
def lasting_server() -> Iterator[Server]:
    """One server for all tests that do it no harm; it keeps its scripts from test to test."""
    with Server(persistence="none") as server:
        yield server


@pytest.fixture
def shared_server(lasting_server: Server) -> Server:
    """The same server, which is empty when the test begins."""
    with redis.Redis.from_url(lasting_server.unix_url) as client:
        client.flushall()
    return lasting_server


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """A maker of servers that this test alone uses, and may kill, pause and restart."""
    servers: list[Server] = []

    def make(*args: Any, **options: Any) -> Server:
        servers.append(Server(*args, **options))
        return servers[-1].start()

    yield make
    for server in servers:
        server.stop(timeout=0)  # a graceful one takes the server a tenth of a second


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    """A fresh server without persistence for this test alone."""
    return make_server(persistence="none")


@pytest.fixture
def redis_client(shared_server: Server) -> Iterator[redis.Redis]:
    """The driver's client on the shared server."""
    with redis.Redis.from_url(shared_server.unix_url) as client:
        yield client
