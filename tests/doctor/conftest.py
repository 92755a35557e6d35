"""Fixtures: a server with which nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from fencer.embedded import Server

_HEALTHY = {
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "min-replicas-to-write": "0",
}


@pytest.fixture(scope="session")
def good_server() -> Iterator[Server]:
    """A server set up as we recommend; tests may change its settings."""
    with Server(persistence="aof-always") as server:
        yield server


@pytest.fixture
def good(good_server: Server) -> str:
    """Its URL; it is empty and in order when the test begins."""
    with redis.Redis.from_url(good_server.unix_url) as store:
        for name, value in _HEALTHY.items():
            store.config_set(name, value)
        store.flushall()
    return good_server.unix_url


@pytest.fixture
def store(good: str) -> Iterator[redis.Redis]:
    """Who may do everything there."""
    with redis.Redis.from_url(good, decode_responses=True) as store:
        yield store
