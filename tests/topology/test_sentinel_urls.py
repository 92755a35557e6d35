"""URLs that name sentinels: what is read out of them, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

import fencer
from fencer import InvalidArgument
from fencer.guards import AsyncRedisGuard, RedisGuard

FULL = (
    "{scheme}+sentinel://me:p%40ss@one:1,[::1]:2,three/my%2Fservice/7"
    "?sentinel_username=guest&sentinel_password=s%26cret&socket_timeout=3.5&client_name=x"
)


def opened(api: str, url: str, **options: Any) -> Any:
    """The driver's client that comes of a URL; nothing is sent."""
    if api == "threads":
        with fencer.connect(url, **options) as client:
            return client.client

    async def open_it() -> Any:
        async with fencer.connect_async(url, **options) as client:
            return client.client

    return asyncio.run(open_it())


@pytest.mark.parametrize("api", ["threads", "asyncio"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_all_parts_of_a_url(api: str, scheme: str) -> None:
    """A part would be lost: the wrong database, a login sent to the wrong server, or no TLS."""
    client = opened(api, FULL.format(scheme=scheme), health_check_interval=9)
    pool = client.connection_pool
    assert pool.service_name == "my/service"
    assert pool.is_master
    told = pool.connection_kwargs
    expected = {
        "username": "me",
        "password": "p@ss",
        "db": 7,
        "socket_timeout": 3.5,
        "client_name": "x",
        "health_check_interval": 9,
    }
    assert {key: told[key] for key in expected} == expected
    sentinels = [each.connection_pool for each in pool.sentinel_manager.sentinels]
    addresses = [
        (each.connection_kwargs["host"], each.connection_kwargs["port"]) for each in sentinels
    ]
    assert addresses == [("one", 1), ("::1", 2), ("three", 26379)]
    for each in sentinels:
        asked = each.connection_kwargs
        assert (asked["username"], asked["password"]) == ("guest", "s&cret")
        assert (asked["socket_timeout"], asked["socket_connect_timeout"]) == (3.5, 1.0)
        assert asked["retry"].get_retries() == 0, "the next one is asked instead"
        assert asked["client_name"] is None, "what is for the primary is not for the sentinels"
    for each in (pool, *sentinels):
        assert ("SSL" in each.connection_class.__name__) is (scheme == "rediss")


def test_the_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service configured by FENCER_URL could not be moved to Sentinel."""
    monkeypatch.setenv("FENCER_URL", "redis+sentinel://one/primary")
    with fencer.connect() as client:
        pool: Any = client.client.connection_pool
        assert pool.service_name == "primary"


MALFORMED = {
    "redis+sentinel://one": "names no service",
    "redis+sentinel://one:26379/": "names no service",
    "redis+sentinel:///primary": "sentinel 1",
    "redis+sentinel://one,,three/primary": "sentinel 2",
    "redis+sentinel://one:x/primary": "sentinel 1",
    "redis+sentinel://one,two:65536/primary": "sentinel 2",
    "redis+sentinel://one:0/primary": "sentinel 1",
    "redis+sentinel://[::1/primary": "sentinel 1",
    "redis+sentinel://one/primary/x": "number of a database",
    "redis+sentinel://one/primary?db=x": "'db'",
    "redis+sentinel://one/primary?socket_timeout=x": "'socket_timeout'",
    "redis+sentinel://one/primary?color=red": "color",
    "redis+sentinel://one/primary?sentinel_color=red": "sentinel_color",
    "redis+centinel://one/primary": "schemes",
}


@pytest.mark.parametrize("api", ["threads", "asyncio"])
@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_url(api: str, url: str) -> None:
    """A typing error would come out as something else, later, or as a traceback."""
    with pytest.raises(InvalidArgument, match=MALFORMED[url]):
        opened(api, url)


def test_a_password_with_a_slash() -> None:
    """Half of a password would stand in the error, and so in a log."""
    with pytest.raises(InvalidArgument) as caught:
        opened("threads", "redis+sentinel://me:hush/hush@one/primary")
    assert "hush" not in str(caught.value)


def test_clients_that_are_none_for_a_primary() -> None:
    """Who passes the object next to the right one would not be told which one that is."""
    sentinel = redis.sentinel.Sentinel([("one", 1)])
    tasks = redis.asyncio.sentinel.Sentinel([("one", 1)])
    wrong: list[tuple[Any, Any]] = [
        (sentinel, sentinel.slave_for("x")),
        (tasks, tasks.slave_for("x")),
    ]
    kinds: list[list[Any]] = [
        [fencer.Fencer, lambda client: RedisGuard(client, "orders")],
        [fencer.AsyncFencer, lambda client: AsyncRedisGuard(client, "orders")],
    ]
    for clients, makers in zip(wrong, kinds, strict=True):
        for client in clients:
            for make in makers:
                with pytest.raises(InvalidArgument, match="master_for"):
                    make(client)
