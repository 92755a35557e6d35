"""Stores for the tests of the scripts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from fencer.embedded import Server
from tests.lua.scenarios import CHANNEL, Store


@pytest.fixture(scope="session")
def decoding_client(lasting_server: Server) -> Iterator[redis.Redis]:
    """One connection to the shared server, which answers in text."""
    with redis.Redis.from_url(lasting_server.unix_url, decode_responses=True) as client:
        yield client


def listening(client: redis.Redis) -> Iterator[redis.client.PubSub]:
    with client.pubsub() as listener:
        listener.subscribe(CHANNEL)
        assert listener.get_message(timeout=5)
        yield listener


@pytest.fixture(scope="module")
def listener(decoding_client: redis.Redis) -> Iterator[redis.client.PubSub]:
    """A connection to the shared server on which all waiters of `CHANNEL` are reached."""
    yield from listening(decoding_client)


@pytest.fixture
def store(decoding_client: redis.Redis, listener: redis.client.PubSub) -> Store:
    """The shared server, empty."""
    decoding_client.flushall()
    store = Store(decoding_client, listener=listener)
    store.load()  # other tests flush the scripts
    store.heard()
    return store


@pytest.fixture(scope="module")
def own_client() -> Iterator[redis.Redis]:
    """One connection to a server whose limits and role a test may change."""
    with (
        Server(persistence="none") as server,
        redis.Redis.from_url(server.unix_url, decode_responses=True) as client,
    ):
        Store(client).load()
        yield client


@pytest.fixture(scope="module")
def own_listener(own_client: redis.Redis) -> Iterator[redis.client.PubSub]:
    """A connection to the module's server on which all waiters of `CHANNEL` are reached."""
    yield from listening(own_client)


@pytest.fixture
def own_store(own_client: redis.Redis, own_listener: redis.client.PubSub) -> Iterator[Store]:
    """A server of the module's own, empty, with its limits and its role set back afterwards."""
    own_client.flushall()
    store = Store(own_client, listener=own_listener)
    store.heard()
    yield store
    own_client.execute_command("CONFIG", "SET", "maxmemory", "0")
    own_client.execute_command("REPLICAOF", "NO", "ONE")
