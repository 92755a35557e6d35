"""Leases that are kept alive, on a real server, with threads and on asyncio."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

import fencer
from fencer import LeaseLost, StoreError
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.fix_servers import MakeServer
from tests.keep.helpers import calls, eventually, run


@pytest.fixture
def proxy(shared_server: Server, redis_client: redis.Redis) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        yield proxy


@pytest.fixture
def other(shared_server: Server, redis_client: redis.Redis) -> Iterator[fencer.Fencer]:
    """Somebody else, with a connection of its own."""
    with fencer.connect(shared_server.unix_url) as client:
        yield client


def test_kept_for_many_ttls_under_load(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """A holder that works would lose its lease."""
    lease = client.acquire("orders", ttl=1.0, keep_alive=True)
    until = time.monotonic() + 2.5

    def work(name: str) -> None:
        while time.monotonic() < until:
            with other.acquire(name):
                sum(range(10_000))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, f"busy-{number}") for number in range(3)]:
            done.result()
    assert lease.valid
    assert not lease.lost.is_set()
    assert other.inspect("orders").token == lease.token
    assert lease.release()


def test_many_leases_share_trips_and_connections(connect: Connect, make_server: MakeServer) -> None:
    """A thousand leases would cost a thousand trips, or connections, in each third of a ttl."""
    server = make_server(persistence="none")
    client = connect(server.unix_url)
    leases = [client.acquire(f"orders-{number}", ttl=3, keep_alive=True) for number in range(200)]
    with redis.Redis.from_url(server.unix_url) as watcher:
        reads, scripts = int(watcher.info("stats")["total_reads_processed"]), calls(server)
        prolonged = calls(server, "pexpire")
        time.sleep(2.5)
        reads = int(watcher.info("stats")["total_reads_processed"]) - reads
        assert int(watcher.info("clients")["connected_clients"]) <= 5
    assert calls(server, "pexpire") - prolonged >= 3 * 400
    assert calls(server) - scripts < 120
    assert reads < 120
    assert all(lease.valid for lease in leases)


def test_a_broken_key_costs_no_other_lease_anything(
    connect: Connect, make_server: MakeServer
) -> None:
    """A call that renews many leases would fail for all of them, as long as one is broken."""
    server = make_server(persistence="none")
    client = connect(server.unix_url)
    leases = [client.acquire(f"orders-{number}", ttl=2, keep_alive=True) for number in range(30)]
    with redis.Redis.from_url(server.unix_url) as watcher:
        watcher.delete("fencer:{orders-7}:token")
        watcher.hset("fencer:{orders-7}:token", "some", "thing")
    assert eventually(lambda: not leases[7].valid)
    time.sleep(1)
    assert [lease.name for lease in leases if not lease.valid] == ["orders-7"]


@pytest.mark.parametrize("fault", ["refuse", "reset", "silence"])
def test_an_outage_shorter_than_the_ttl_is_survived(
    connect: Connect, proxy: Proxy, other: fencer.Fencer, fault: str
) -> None:
    """A hiccup of the network would cost the lease."""
    client = connect(proxy.url)
    lease = client.acquire("orders", ttl=2.1, keep_alive=True)
    if fault == "refuse":
        proxy.refuse()
    elif fault == "silence":
        proxy.drop()
    else:
        proxy.swallow_reply(3, match=b"EVALSHA")
    until = time.monotonic() + 1.1
    while time.monotonic() < until:
        if fault == "reset":
            proxy.reset()
        time.sleep(0.1)
    proxy.heal()
    time.sleep(1.2)
    assert lease.valid
    assert other.inspect("orders").token == lease.token
    lease.renew()


@pytest.mark.parametrize(
    ("connect", "options"),
    [("threads", {"socket_timeout": 0.5}), ("asyncio", {})],
    indirect=["connect"],
    ids=["threads", "asyncio"],
)
def test_a_connection_that_is_never_answered_is_not_waited_for(
    connect: Connect, options: dict[str, float], proxy: Proxy, other: fencer.Fencer
) -> None:
    """One lost packet of a handshake would cost the lease: the driver waits 5 s for it.

    A thread cannot be called back from a handshake: there only the driver's own ``socket_timeout``
    ends it, which therefore should be a small part of the ttl. On asyncio the keeper ends it.
    """
    client = connect(proxy.url, **options)
    lease = client.acquire("orders", ttl=3, keep_alive=True)
    proxy.swallow_reply(1, then="silence")
    proxy.reset()
    time.sleep(3.5)
    assert proxy.swallowed == 1, "one new connection was not answered; the next would be"
    assert lease.valid
    assert other.inspect("orders").token == lease.token


def test_the_drivers_own_retries_cost_no_lease(proxy: Proxy) -> None:
    """A client with redis-py's defaults would sleep between its own retries until all is over."""
    with redis.Redis.from_url(proxy.url) as driver, fencer.Fencer(driver) as client:
        leases = [client.acquire(f"orders-{number}", ttl=2, keep_alive=True) for number in range(5)]
        time.sleep(0.4)
        proxy.refuse()
        time.sleep(0.9)
        proxy.heal()
        time.sleep(2.2)
        assert [lease.valid for lease in leases] == [True] * 5


HOLDER = """
import threading, time
import fencer
from tests.fix_api import Blocking, Loop

url, api, ttl = args
if api == "threads":
    client = fencer.connect(url, holder="holder")
else:
    loop = Loop()
    async def open_it():
        return fencer.connect_async(url, holder="holder")
    client = Blocking(loop.run(open_it()), loop)
losses = []

def handle(do):
    global lease
    if do == "acquire":
        lease = client.acquire("orders", ttl=ttl, keep_alive=True)
        lease.on_lost(lambda reason: losses.append([time.monotonic(), reason]))
        return lease.token
    if do == "look":
        return [lease.valid, lease.lost.is_set()]
    if do == "lost":
        return [losses, lease.lost.is_set()]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("api", "ways"),
    [("threads", (True, True)), ("threads", (False, True)), ("asyncio", (True, True))],
)
def test_a_loss_is_known_before_another_is_granted(
    proxy: Proxy, other: fencer.Fencer, api: str, ways: tuple[bool, bool]
) -> None:
    """Two processes would believe in the same lease, for as long as the loss comes late."""
    with Worker(HOLDER, proxy.url, api, 2.0) as holder:
        token = holder.ask(do="acquire")
        proxy.drop(requests=ways[0], replies=ways[1])
        mine = other.acquire("orders", wait=30)
        granted_at = time.monotonic()
        assert mine.token > token
        eventually(lambda: holder.ask(do="lost")[0], 2)
        losses, known = holder.ask(do="lost")
        assert known
        assert len(losses) == 1
        assert losses[0][0] < granted_at
        assert "ran out" in losses[0][1]
        proxy.heal()
        time.sleep(0.5)
        assert mine.valid
        assert other.inspect("orders").token == mine.token


def test_a_revoke_is_noticed_at_the_next_beat(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """A holder that was sent away would work on until its ttl is over."""
    lease = client.acquire("orders", ttl=3, keep_alive=True)
    reasons: list[str] = []
    lease.on_lost(reasons.append)
    begun = time.monotonic()
    other.revoke("orders")
    assert eventually(lambda: reasons, 2.5)
    assert time.monotonic() - begun < 2.5
    assert "retired" in reasons[0]
    assert lease.lost.is_set()
    with pytest.raises(LeaseLost, match="retired"):
        lease.check()


@pytest.mark.parametrize("api", ["threads", "asyncio"])
def test_a_process_that_was_stopped_knows_it_on_waking(
    shared_server: Server, other: fencer.Fencer, api: str
) -> None:
    """A holder that slept would go on, or its keeper take the lease back."""
    with Worker(HOLDER, shared_server.unix_url, api, 1.0) as holder:
        holder.ask(do="acquire")
        time.sleep(0.5)
        holder.stop()
        mine = other.acquire("orders", ttl=30, wait=10)
        holder.cont()
        assert holder.ask(do="look") == [False, True]
        time.sleep(1.2)
        status = other.inspect("orders")
        assert (status.token, status.holder) == (mine.token, mine.holder)
        assert mine.release()


def test_with_raises_on_leaving(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """A body that ran on without its lease would look like a success."""
    with (  # noqa: PT012
        pytest.raises(LeaseLost, match="retired"),
        client.acquire("orders", ttl=0.9, keep_alive=True) as lease,
    ):
        other.revoke("orders")
        assert eventually(lease.lost.is_set)


def test_a_shorter_ttl_is_kept_too(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """After renew(ttl=shorter) a kept lease would end between two beats of the old ttl."""
    lease = client.acquire("orders", ttl=30, keep_alive=True)
    lease.renew(ttl=1.5)
    time.sleep(2.5)
    assert lease.valid
    assert other.inspect("orders").token == lease.token


def test_after_a_shorter_ttl_the_loss_is_told_in_time(
    client: fencer.Fencer, other: fencer.Fencer
) -> None:
    """The callback would come at the old deadline, long after another was granted the lease."""
    lease = client.acquire("orders", ttl=30)
    reasons: list[str] = []
    lease.on_lost(reasons.append)
    lease.renew(ttl=0.5)
    other.acquire("orders", wait=10)
    assert eventually(lambda: reasons, 3)


RENEWS_AT_THE_BEAT = """
import asyncio, sys, threading, time
import fencer
from fencer.drill.proxy import Proxy

port, api = int(sys.argv[1]), sys.argv[2]
proxy = Proxy(("127.0.0.1", port))
spent = []

def threads():
    with fencer.connect(proxy.url) as client:
        lease = client.acquire("orders", ttl=9, keep_alive=True)
        proxy.delay(replies=4.0)
        before = time.process_time()
        lease.renew()
        spent.append(time.process_time() - before)
        proxy.delay()
        assert lease.valid

async def tasks():
    async with fencer.connect_async(proxy.url) as client:
        lease = await client.acquire("orders", ttl=9, keep_alive=True)
        proxy.delay(replies=4.0)
        before = time.process_time()
        await lease.renew()
        spent.append(time.process_time() - before)
        proxy.delay()
        assert lease.valid

if api == "threads":
    threads()
else:
    asyncio.run(tasks())
proxy.close()
print(*spent)
"""


@pytest.mark.parametrize("api", ["threads", "asyncio"])
def test_a_slow_renew_of_the_callers_meets_a_beat(
    shared_server: Server, redis_client: redis.Redis, api: str
) -> None:
    """The keeper would spin until the other renew is done; on asyncio that is for ever."""
    done = run(RENEWS_AT_THE_BEAT, str(shared_server.port), api, timeout=12)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.4, "seconds of CPU for a program that waits"


def test_a_release_during_a_renew_in_flight(
    connect: Connect, proxy: Proxy, other: fencer.Fencer
) -> None:
    """The late renew would bring the released lease back, or the keeper would go on."""
    client = connect(proxy.url)
    lease = client.acquire("orders", ttl=1.8, keep_alive=True)
    proxy.delay(requests=0.3)
    with ThreadPoolExecutor() as pool:
        renewing = pool.submit(lease.renew)
        time.sleep(0.1)
        assert lease.release()
        with pytest.raises(LeaseLost, match="released"):
            renewing.result()
    assert not other.inspect("orders").held
    time.sleep(1.0)  # a beat, and the delay
    assert not other.inspect("orders").held


@pytest.mark.parametrize("how", ["release", "with", "exception", "close"])
def test_what_has_ended_is_renewed_no_more(connect: Connect, server: Server, how: str) -> None:
    """A released lease would be spoken for, for as long as the process lives."""
    client = connect(server.unix_url)
    lease = client.acquire("orders", ttl=0.9, keep_alive=True)
    if how == "release":
        assert lease.release()
    elif how == "close":
        client.close()
    elif how == "with":
        with lease:
            pass
    else:
        with pytest.raises(ZeroDivisionError), lease:
            print(1 / 0)
    before = calls(server)
    time.sleep(0.8)
    assert calls(server) == before
    with fencer.connect(server.unix_url) as other:
        assert not other.inspect("orders").held


def test_close_releases_what_is_kept(connect: Connect, other: fencer.Fencer) -> None:
    """A service that stops in order would keep its successor waiting for a ttl."""
    client = connect()
    for name in ("one", "two", "three"):
        client.acquire(name, keep_alive=True)
    client.acquire("not kept")
    client.close()
    assert [other.inspect(name).held for name in ("one", "two", "three")] == [False] * 3
    assert other.inspect("not kept").held


def test_close_releases_the_rest_though_one_fails(
    connect: Connect, other: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """One corrupt key would keep all other leases held."""
    client = connect()
    for name in ("one", "two", "three"):
        client.acquire(name, keep_alive=True)
    redis_client.set("fencer:{one}:token", "corrupt")
    client.close()
    assert [other.inspect(name).held for name in ("two", "three")] == [False] * 2
    with pytest.raises(StoreError):
        other.inspect("one")


def test_bad_callbacks_delay_nobody(
    client: fencer.Fencer, other: fencer.Fencer, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises or blocks would keep other holders in their belief."""
    blocked = threading.Event()
    heard: list[str] = []

    def block(reason: str) -> None:
        blocked.wait(5)

    def fail(reason: str) -> None:
        raise ZeroDivisionError("in a callback")

    bad = [client.acquire(f"bad-{number}", ttl=1.0, keep_alive=True) for number in range(2)]
    # In an event loop a callback that blocks delays everything; with threads it must not.
    bad[0].on_lost(fail)
    bad[1].on_lost(fail if hasattr(client, "_loop") else block)
    good = client.acquire("good", ttl=1.0, keep_alive=True)
    good.on_lost(lambda reason: heard.append("good"))
    stays = client.acquire("stays", ttl=1.0, keep_alive=True)
    with caplog.at_level(logging.ERROR, "fencer"):
        for name in ("bad-0", "bad-1", "good"):
            other.revoke(name)
        assert eventually(lambda: heard, 3)
        assert eventually(lambda: "in a callback" in caplog.text, 3)
    time.sleep(1.0)
    assert stays.valid
    blocked.set()


def test_a_callback_hears_of_a_loss_that_has_been(client: fencer.Fencer) -> None:
    """A callback that is set a moment too late would never be called."""
    lease = client.acquire("orders", ttl=0.05)
    time.sleep(0.1)
    assert not lease.valid
    reasons: list[str] = []
    lease.on_lost(reasons.append)
    assert eventually(lambda: reasons, 3)


def test_a_released_lease_calls_nobody(client: fencer.Fencer) -> None:
    """An orderly end would be reported as a loss."""
    lease = client.acquire("orders", ttl=0.3)
    reasons: list[str] = []
    lease.on_lost(reasons.append)
    lease.release()
    time.sleep(0.5)
    assert not reasons
    assert not lease.lost.is_set()


def test_a_thread_that_holds_the_interpreter(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """A second in a C function would cost a lease of three."""
    lease = client.acquire("orders", ttl=3, keep_alive=True)
    time.sleep(0.6)
    ctypes.PyDLL(None).usleep(999_999)  # PyDLL keeps the interpreter's lock
    time.sleep(1.2)
    assert lease.valid
    assert other.inspect("orders").token == lease.token


def test_keep_alive_is_checked_before_anything_is_sent(
    client: fencer.Fencer, other: fencer.Fencer
) -> None:
    """A lease that cannot be kept would be granted first, and refused then."""
    with pytest.raises(fencer.InvalidArgument, match="second try"):
        client.acquire("orders", ttl=3, keep_alive=2.0)
    assert other.inspect("orders").issued == 0


def test_the_server_forgets_the_scripts(
    client: fencer.Fencer, other: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """SCRIPT FLUSH would cost every lease."""
    leases = [client.acquire(f"orders-{n}", ttl=1.5, keep_alive=True) for n in range(10)]
    for _ in range(4):
        time.sleep(0.5)
        redis_client.script_flush()
    assert all(lease.valid for lease in leases)


def test_a_pool_that_is_used_up_does_not_stop_the_keeper(
    proxy: Proxy, other: fencer.Fencer
) -> None:
    """Threads that wait for replies would take the connection that keeps the leases."""
    with fencer.connect(proxy.url, max_connections=3) as client:
        lease = client.acquire("orders", ttl=3, keep_alive=True)
        until = time.monotonic() + 3.2

        def work(number: int) -> None:
            while time.monotonic() < until:
                with client.acquire(f"busy-{number}"):
                    pass

        with ThreadPoolExecutor(20) as pool:
            for done in [pool.submit(work, number) for number in range(20)]:
                done.result()
        assert lease.valid
        assert other.inspect("orders").token == lease.token
