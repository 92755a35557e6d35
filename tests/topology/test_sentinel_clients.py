"""Clients of the drivers, made by their own ``Sentinel`` or for one server, and valkey-py's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
import valkey
import valkey.asyncio
import valkey.asyncio.sentinel
import valkey.sentinel

import fencer
from fencer import NotAcquired, StoreError, StoreUnavailable
from fencer.embedded import Server
from fencer.guards import AsyncRedisGuard, RedisGuard
from tests.cli.runs import Cli
from tests.faults.planted import twin
from tests.fix_api import Connect
from tests.fix_sentinel import SERVICE, Group, await_true, sentinel_program
from tests.fix_servers import MakeServer
from tests.topology import bugs

Addresses = list[tuple[str, int]]

DRIVERS = [pytest.param(redis, id="redis-py"), pytest.param(valkey, id="valkey-py")]
OPTIONS: list[dict[str, Any]] = [{}, {"decode_responses": True}, {"protocol": 3}]


@contextmanager
def led(driver: Any, addresses: Addresses, **options: Any) -> Iterator[Any]:
    """A client of the driver's own for the primary that these sentinels name."""
    sentinel = driver.sentinel.Sentinel(addresses, socket_timeout=5.0)
    client = sentinel.master_for(SERVICE, **options)
    try:
        yield client
    finally:
        for each in (client, *sentinel.sentinels):
            each.close()


@asynccontextmanager
async def led_async(driver: Any, addresses: Addresses, **options: Any) -> AsyncIterator[Any]:
    """The same for asyncio."""
    sentinel = driver.asyncio.sentinel.Sentinel(addresses, socket_timeout=5.0)
    client = sentinel.master_for(SERVICE, **options)
    try:
        yield client
    finally:
        for each in (client, *sentinel.sentinels):
            await each.aclose()


def use(client: Any) -> None:
    """All that is done by a connection of its own kind: calls, a batch, a wait, a guard."""
    with fencer.Fencer(client) as ours:
        lease = ours.acquire("orders", ttl=30, keep_alive=0.02)
        guard = RedisGuard(client, "orders")
        guard.execute(lease, "SET", "{orders}:balance", "1")
        with pytest.raises(NotAcquired):
            ours.acquire("orders")
        before = client.pttl("fencer:{orders}:lock")
        await_true(lambda: client.pttl("fencer:{orders}:lock") >= before)
        releasing = threading.Timer(0.1, lease.release)
        releasing.start()
        with ours.acquire("orders", wait=30, guards=[guard]) as second:
            assert second.token > lease.token
        releasing.join()
        client.script_flush()
        third = ours.acquire("orders", keep_alive=0.02)
        client.script_flush()
        time.sleep(0.1)
        assert third.valid
        with pytest.raises(fencer.StaleToken):
            guard.execute(lease, "SET", "{orders}:balance", "2")
        assert guard.highest() == second.token
        assert list(ours.names()) == ["orders"]
        assert third.release()
    client.flushall()


async def use_async(client: Any) -> None:
    """The same on asyncio."""
    async with fencer.AsyncFencer(client) as ours:
        lease = await ours.acquire("orders", ttl=30, keep_alive=0.02)
        guard = AsyncRedisGuard(client, "orders")
        await guard.execute(lease, "SET", "{orders}:balance", "1")
        with pytest.raises(NotAcquired):
            await ours.acquire("orders")
        waiting = asyncio.create_task(ours.acquire("orders", wait=30, guards=[guard]))
        await asyncio.sleep(0.1)
        assert await lease.release()
        async with await waiting as second:
            assert second.token > lease.token
        await client.script_flush()
        third = await ours.acquire("orders", keep_alive=0.02)
        await client.script_flush()
        await asyncio.sleep(0.1)
        assert third.valid
        with pytest.raises(fencer.StaleToken):
            await guard.execute(lease, "SET", "{orders}:balance", "2")
        assert await guard.highest() == second.token
        assert await third.release()
    await client.flushall()


def test_clients_by_sentinel(group: Group) -> None:
    """Who has a client already, say with credentials of its own, could not pass it."""
    for driver in (redis, valkey):
        for options in OPTIONS:
            with led(driver, group.addresses, **options) as client:
                use(client)

    async def on_asyncio() -> None:
        for driver in (redis, valkey):
            for options in OPTIONS:
                async with led_async(driver, group.addresses, **options) as client:
                    await use_async(client)

    asyncio.run(on_asyncio())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_valkey_py(redis_client: redis.Redis, shared_server: Server, options: Any) -> None:
    """Its exceptions would come out as they are, and NOSCRIPT with them."""
    with valkey.Valkey.from_url(shared_server.unix_url, **options) as client:
        use(client)

    async def on_asyncio() -> None:
        client = valkey.asyncio.Valkey.from_url(shared_server.unix_url, **options)
        try:
            await use_async(client)
        finally:
            await client.aclose()

    asyncio.run(on_asyncio())


REFUSALS: dict[str, tuple[tuple[Any, ...], type[StoreError]]] = {
    "OOM": (("CONFIG", "SET", "maxmemory", 1), StoreError),
    "NOREPLICAS": (("CONFIG", "SET", "min-replicas-to-write", 1), StoreUnavailable),
    "READONLY": (("REPLICAOF", "127.0.0.1", 1), StoreUnavailable),
    "WRONGTYPE": (("RPUSH", "fencer:{orders}:token", "theirs"), fencer.ScriptError),
    "NOPERM": (("ACL", "SETUSER", "default", "-set", "-hset"), StoreError),
    "NOAUTH": (("CONFIG", "SET", "requirepass", "secret"), StoreError),
}


@twin(bugs.knows_redis_py_alone, of="valkey-py")
@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("code", REFUSALS)
def test_refusals_in_both_drivers(server: Server, driver: Any, code: str) -> None:
    """The same refusal would mean one thing with one driver, and another with the other."""
    change, expected = REFUSALS[code]
    kind = driver.Redis if driver is redis else driver.Valkey
    with kind.from_url(server.unix_url) as client:
        client.execute_command(*change)
        client.connection_pool.disconnect()
        calls = [lambda: fencer.Fencer(client).acquire("orders")]
        if code != "WRONGTYPE":  # Here the server's word stands alone, and drivers take it off.
            calls.append(lambda: RedisGuard(client, "orders").execute(5, "SET", "balance", "1"))
        for call in calls:
            with pytest.raises(expected) as caught:
                call()
            assert type(caught.value) is expected
            assert caught.value.code == code
            assert not getattr(caught.value, "maybe_applied", False)


@twin(bugs.nothing_was_sent)
@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_goes_away_in_both_drivers(server: Server, driver: Any) -> None:
    """An outage would be an error of the driver's own."""
    kind = driver.Redis if driver is redis else driver.Valkey
    with (
        kind.from_url(server.unix_url, socket_timeout=0.2, retry=None) as client,
        fencer.Fencer(client) as ours,
    ):
        lease = ours.acquire("orders", ttl=30, keep_alive=0.05)
        server.pause()
        with pytest.raises(StoreUnavailable) as caught:
            ours.acquire("invoices")
        assert caught.value.maybe_applied
        server.kill()
        with pytest.raises(StoreUnavailable) as caught:
            ours.acquire("orders")
        assert not caught.value.maybe_applied
        server.start()
        lease.lost.wait(30)
        assert ours.acquire("orders", ttl=30, wait=30).release()


# The sentinels themselves.


@twin(bugs.keeps_every_connection)
@pytest.mark.usefixtures("history")
def test_a_late_reply_is_not_taken_for_the_next(group: Group) -> None:
    """A connection by way of Sentinel is not closed by the driver when a reply is late."""
    with fencer.connect(group.url, socket_timeout=0.4) as ours:
        guard = RedisGuard(ours.client, "orders")
        guard.execute(5, "MSET", "one", "1", "two", "2")
        group.road.delay(replies=0.75)
        with pytest.raises(StoreUnavailable) as caught:
            guard.execute(5, "GET", "one")
        assert caught.value.maybe_applied
        group.road.delay(replies=0.0)
        assert guard.execute(5, "GET", "two") == b"2"


@twin(bugs.takes_a_demotion_for_a_broken_line, raises=(StoreError,))
@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_primary_that_is_none_any_more(
    make_server: MakeServer, tmp_path: Path, driver: Any
) -> None:
    """What a replica has refused would be told as something that may have happened.

    The drivers make a broken connection of it, so that the sentinels are asked anew.
    """
    primary = make_server(persistence="none")
    program = sentinel_program(tmp_path, primary.port, quorum=1)
    sentinel = make_server(persistence="none", binary=program)
    addresses = [("127.0.0.1", sentinel.port)]

    async def on_asyncio() -> None:
        async with led_async(driver, addresses) as client:
            ours = fencer.AsyncFencer(client)
            lease = await ours.acquire("invoices", ttl=30)
            make_replica(primary)
            with refused_by_a_replica():
                await lease.renew()
            with refused_by_a_replica():
                await AsyncRedisGuard(client, "invoices").execute(lease, "SET", "balance", "1")

    with led(driver, addresses) as client:
        lease = fencer.Fencer(client).acquire("orders", ttl=30)
        asyncio.run(on_asyncio())
        with refused_by_a_replica():
            lease.renew()
        with refused_by_a_replica():
            RedisGuard(client, "orders").execute(lease, "SET", "balance", "1")
        with refused_by_a_replica():
            fencer.Fencer(client).acquire("receipts")


def make_replica(server: Server) -> None:
    """Behind the sentinels' back."""
    with redis.Redis.from_url(server.unix_url) as client:
        client.replicaof("127.0.0.1", 1)


@contextmanager
def refused_by_a_replica() -> Iterator[None]:
    """The check: it is an outage, in which nothing was applied."""
    with pytest.raises(StoreUnavailable) as caught:
        yield
    assert (caught.value.code, caught.value.maybe_applied) == ("READONLY", False)


@twin(bugs.sentinels_are_not_named)
@pytest.mark.usefixtures("history")
def test_no_sentinel_can_name_a_primary(make_server: MakeServer, tmp_path: Path) -> None:
    """An operator would not be told whether it is the address, the name or the sentinel."""
    primary = make_server(persistence="none")
    program = sentinel_program(tmp_path, primary.port, quorum=1)
    sentinel = make_server(persistence="none", binary=program)
    place = f"127.0.0.1:{sentinel.port}"

    def outcome(url: str) -> StoreError:
        with fencer.connect(url) as ours, pytest.raises(StoreError) as caught:
            ours.acquire("orders")
        return caught.value

    unknown = outcome(f"redis+sentinel://{place}/secondary")
    assert isinstance(unknown, StoreUnavailable)
    assert not unknown.maybe_applied
    assert f"{place} name no primary of 'secondary' (is this its name" in str(unknown)
    stranger = outcome(f"redis+sentinel://127.0.0.1:{primary.port}/{SERVICE}")
    assert not isinstance(stranger, StoreUnavailable)
    assert f"127.0.0.1:{primary.port} refused" in str(stranger)
    sentinel.kill()
    away = outcome(f"redis+sentinel://{place}/{SERVICE}")
    assert isinstance(away, StoreUnavailable)
    assert not away.maybe_applied
    assert f"{place} name no primary of '{SERVICE}' (1 of them did not answer)" in str(away)


def test_logins(connect: Connect, make_server: MakeServer, tmp_path: Path) -> None:
    """A sentinel's password would be sent to the primary, or a wrong one look like an outage."""
    primary = make_server(persistence="none", settings={"requirepass": "first"})
    more = [f"auth-pass {SERVICE} first"]
    program = sentinel_program(tmp_path, primary.port, quorum=1, more=more)
    sentinel = make_server(persistence="none", binary=program, settings={"requirepass": "second"})
    place = f"127.0.0.1:{sentinel.port}/{SERVICE}"
    right = f"redis+sentinel://:first@{place}?sentinel_password=second"
    assert connect(right).acquire("orders").release()
    for wrong in (f"redis+sentinel://:first@{place}", right.replace("=second", "=first")):
        with pytest.raises(StoreError, match="sentinel_password") as caught:
            connect(wrong).acquire("orders")
        assert caught.value.code == "WRONGPASS"
        assert not isinstance(caught.value, StoreUnavailable)
    with pytest.raises(StoreError, match="check the URL") as caught:
        connect(right.replace("first", "wrong")).acquire("orders")
    assert caught.value.code == "WRONGPASS"


@twin(bugs.asks_one_sentinel)
@pytest.mark.usefixtures("history")
def test_some_sentinels_are_away(group: Group, connect_threads: Connect) -> None:
    """One dead sentinel, the first in the URL, would stop everybody, and operators too."""
    group.sentinels[0].kill()
    lease = connect_threads(group.url).acquire("orders", ttl=30)
    shown = Cli(group.url)("status", "orders", "--json")
    assert shown.code == 0
    assert shown.json["token"] == lease.token
