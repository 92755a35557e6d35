"""Faults of the server and of the network while twenty wait: all are served, no two at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio

import fencer
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.faults.bugs import plain_counter
from tests.faults.history import History
from tests.faults.planted import twin
from tests.fix_api import Connect
from tests.fix_servers import MakeServer
from tests.wait import bugs
from tests.wait.line import Crowd, Resource, await_true, check_nothing_left, in_line

Fault = Callable[[Server, Proxy, redis.Redis], None]


def cut(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    proxy.reset()


def refuse(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    proxy.refuse()
    time.sleep(0.4)
    proxy.heal()


def partition(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    proxy.drop()
    time.sleep(0.9)
    proxy.heal()


def kill_pubsub(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    direct.client_kill_filter(_type="pubsub")


def kill_all(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    direct.client_kill_filter(_type="pubsub")
    direct.client_kill_filter(_type="normal", skipme=True)


def flush_scripts(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    direct.script_flush()


def pause(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    server.pause()
    time.sleep(0.9)
    server.resume()


def restart(server: Server, proxy: Proxy, direct: redis.Redis) -> None:
    server.kill()
    time.sleep(0.2)
    server.start()


FAULTS: list[Fault] = [cut, refuse, partition, kill_pubsub, kill_all, flush_scripts, pause, restart]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@twin(bugs.outage_ends_the_wait, of="partition")
def test_everybody_is_served_in_the_end(
    connect: Connect, make_server: MakeServer, history: History, fault: Fault
) -> None:
    """Somebody would wait for ever, or two would write at once."""
    server = make_server(persistence="aof-always")
    run(connect, server, history, fault, Resource())


@pytest.mark.may_break("S4", why="the server forgets the lease while its holder believes")
@twin(plain_counter)
def test_everybody_is_served_by_a_server_that_forgot_them(
    connect: Connect, make_server: MakeServer, history: History
) -> None:
    """Those who waited would not come back to a line that is gone, or tokens would fall."""
    server = make_server(persistence="none")
    run(connect, server, history, restart, Resource(exclusive=False))


def run(
    connect: Connect, server: Server, history: History, fault: Fault, resource: Resource
) -> None:
    with (
        Proxy(("127.0.0.1", server.port)) as proxy,
        redis.Redis.from_url(server.unix_url) as direct,
        Crowd(resource) as crowd,
    ):
        clients = [connect(proxy.url, socket_timeout=0.6) for _ in range(2)]
        lease = clients[0].acquire("orders", ttl=0.6, keep_alive=True)
        for number in range(20):
            crowd.queue(clients[number % 2], "orders", ttl=0.6, hold=0.01, wait=90)
        fault(server, proxy, direct)
        with contextlib.suppress(fencer.StoreError):
            lease.release()
        time.sleep(0.1)
        fault(server, proxy, direct)  # this time in the midst of it
        healed = time.monotonic()
        history.healed(10.0)
        try:
            served = crowd.served(60)
        finally:
            visits = [(one.number, round(one.at - healed, 2)) for one in resource.visits]
            print(f"served, seconds after the end of the fault: {visits}")
        assert sorted(one.number for one in served) == list(range(20))
        assert served[-1].at - healed < 20.0
        with connect(server.unix_url) as observer:
            until = time.monotonic() + 3
            while observer.inspect("orders").held and time.monotonic() < until:
                time.sleep(0.05)
            check_nothing_left(observer, "orders")


@pytest.mark.slow
@twin(bugs.gives_up_unheard)
def test_a_wait_survives_with_the_driver_s_own_retries(
    make_server: MakeServer, history: History
) -> None:
    """A client of one's own, with redis-py's retries, would sleep through the server's return."""
    server = make_server(persistence="none")
    with (
        redis.Redis("127.0.0.1", server.port) as own,
        fencer.Fencer(own) as mine,
        Crowd(Resource(exclusive=False)) as crowd,
    ):
        mine.acquire("orders", ttl=1, keep_alive=True)
        for _ in range(5):
            crowd.queue(mine, "orders", ttl=1)
        server.kill()
        time.sleep(2.0)
        server.start()
        back = time.monotonic()
        history.healed(30.0)
        served = crowd.served()
        print(f"served {served[0].at - back:.2f} to {served[-1].at - back:.2f} s after the return")
        assert served[-1].at - back < 8.0
        server.kill()
        started = time.monotonic()
    print(f"closed in {time.monotonic() - started:.2f} s")


@twin(bugs.says_goodbye)
def test_closing_while_the_server_is_gone(connect: Connect, make_server: MakeServer) -> None:
    """A program could not end while its server is away."""
    server = make_server(persistence="none")
    with Crowd() as crowd:
        client = connect(server.url)
        client.acquire("orders", ttl=1)
        crowd.queue(client, "orders", ttl=1, wait=2.0)
        server.kill()
        with pytest.raises(fencer.StoreUnavailable):
            crowd.waiters[0].result(10)
        started = time.monotonic()
        client.close()
        assert time.monotonic() - started < 3.0


@pytest.mark.parametrize("others", [False, True])
@twin(bugs.gives_up_unheard)
def test_every_message_is_lost(
    connect: Connect, shared_server: Server, redis_client: redis.Redis, others: bool
) -> None:
    """A subscription that went silent would stop the line, for its own waiters or for others."""
    with Proxy(("127.0.0.1", shared_server.port)) as proxy, Crowd() as crowd:
        deaf = connect()
        divert_news(deaf, proxy)
        holder = connect()
        lease = holder.acquire("orders", ttl=1, keep_alive=True)
        for number in range(5):
            crowd.queue(holder if others and number % 2 else deaf, "orders", ttl=1)
        proxy.drop(requests=False)
        started = time.monotonic()
        lease.release()
        served = crowd.served(60)
        print([(one.number, round(one.at - started, 2)) for one in served])
        assert sorted(one.number for one in served) == list(range(5))
        assert served[-1].at - started < 5 * 2.5
        proxy.heal()
    check_nothing_left(holder, "orders")


def divert_news(client: fencer.Fencer, proxy: Proxy) -> None:
    """Have a client's subscription alone go through a proxy."""
    driver: Any = client.client
    kind = redis if isinstance(driver, redis.Redis) else redis.asyncio
    pool: Any = kind.ConnectionPool.from_url(proxy.url)
    driver.pubsub = partial(kind.client.PubSub, pool)


@pytest.mark.may_break("L2", why="nobody can be told, and so the lease goes to whoever asks")
@twin(bugs.gives_up_unheard)
def test_nobody_may_publish(connect: Connect, server: Server) -> None:
    """An ACL without PUBLISH would stop the line."""
    with redis.Redis.from_url(server.unix_url) as admin, Crowd() as crowd:
        admin.acl_setuser(
            "mute",
            enabled=True,
            passwords=["+secret"],
            categories=["+@all"],
            commands=["-publish"],
            keys=["*"],
            channels=["*"],
        )
        client = connect(server.url.replace("redis://", "redis://mute:secret@"))
        lease = client.acquire("orders", ttl=1, keep_alive=True)
        for _ in range(5):
            crowd.queue(client, "orders", ttl=1)
        started = time.monotonic()
        lease.release()
        served = crowd.served(60)
        print([(one.number, round(one.at - started, 2)) for one in served])
        assert served[-1].at - started < 5 * 2.5
        in_line(client, "orders", 0)
    check_nothing_left(client, "orders")


@twin(bugs.silence_is_a_refusal)
def test_a_pause_shorter_than_the_ttl_does_not_end_the_holder(
    connect: Connect, server: Server, history: History
) -> None:
    """A renew that got no answer in time would be the last one, though there was time for more."""
    client = connect(server.url)
    lease = client.acquire("orders", ttl=3, keep_alive=0.3)
    # From then on the keeper has a connection, on which it waits no longer than for a heartbeat.
    await_true(lambda: any(event.what == "renewed" for event in history.events()))
    server.pause()
    time.sleep(1.8)
    server.resume()
    assert lease.valid
    time.sleep(1.5)
    assert lease.valid
    assert lease.release()


@twin(bugs.passes_on_the_driver_s_errors, raises=(redis.ConnectionError,))
def test_closing_while_somebody_begins_to_wait(
    connect: Connect, shared_server: Server, redis_client: redis.Redis
) -> None:
    """A thread that had not yet been heard by the server would hang for ever."""
    with Proxy(("127.0.0.1", shared_server.port)) as proxy, Crowd() as crowd:
        holder = connect()
        lease = holder.acquire("orders", ttl=30)
        client = connect()
        divert_news(client, proxy)
        proxy.delay(replies=1.0)
        before = len(redis_client.client_list())
        crowd.add(client, "orders", wait=2.0)
        await_true(lambda: len(redis_client.client_list()) == before + 2)
        client.close()
        proxy.heal()
        with pytest.raises(fencer.FencerError):
            crowd.waiters.pop().result(6)
        lease.release()
        # The wait went on, and opened connections anew.
        driver: Any = client.client
        if isinstance(driver, redis.Redis):
            driver.close()
        else:
            client._loop.run(driver.aclose())  # type: ignore[attr-defined]
