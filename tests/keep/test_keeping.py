"""Leases that are kept alive, on a real server, with threads and on asyncio."""

from __future__ import annotations

import asyncio
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
from fencer._turns import turns_of
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.faults import bugs as common
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.fix_servers import MakeServer
from tests.keep import bugs
from tests.keep.helpers import calls, eventually, run, stays


@pytest.fixture
def proxy(shared_server: Server, redis_client: redis.Redis) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        yield proxy


@pytest.fixture
def other(shared_server: Server, redis_client: redis.Redis) -> Iterator[fencer.Fencer]:
    """Somebody else, with a connection of its own."""
    with fencer.connect(shared_server.unix_url) as client:
        yield client


@twin(bugs.keeps_nothing)
def test_kept_for_many_ttls_under_load(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """A holder that works would lose its lease."""
    lease = client.acquire("orders", ttl=1.0, keep_alive=True)
    until = time.monotonic() + 2.5

    def work(name: str) -> None:
        while time.monotonic() < until and lease.valid:
            with other.acquire(name):
                sum(range(10_000))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, f"busy-{number}") for number in range(3)]:
            done.result()
    assert lease.valid
    assert not lease.lost.is_set()
    assert other.inspect("orders").token == lease.token
    assert lease.release()


@twin(bugs.one_call_for_each)
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


@twin(bugs.asks_nobody_alone)
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
    assert stays(leases[8], 1)
    assert [lease.name for lease in leases if not lease.valid] == ["orders-7"]


@pytest.mark.parametrize("fault", ["refuse", "reset", "silence"])
@twin(bugs.an_outage_is_a_loss)
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
    assert stays(lease, 1.2)
    assert other.inspect("orders").token == lease.token
    lease.renew()


@pytest.mark.parametrize(
    ("connect", "options"),
    [("threads", {"socket_timeout": 0.5}), ("asyncio", {})],
    indirect=["connect"],
    ids=["threads", "asyncio"],
)
@twin(bugs.trips_have_no_limit, of="asyncio")
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
    assert stays(lease, 3.5)
    assert proxy.swallowed == 1, "one new connection was not answered; the next would be"
    assert other.inspect("orders").token == lease.token


@twin(bugs.an_outage_is_a_loss)
def test_the_drivers_own_retries_cost_no_lease(proxy: Proxy) -> None:
    """A client with redis-py's defaults would sleep between its own retries until all is over."""
    with redis.Redis.from_url(proxy.url) as driver, fencer.Fencer(driver) as client:
        leases = [client.acquire(f"orders-{number}", ttl=2, keep_alive=True) for number in range(5)]
        time.sleep(0.4)
        proxy.refuse()
        time.sleep(0.9)
        proxy.heal()
        assert stays(leases[0], 2.2)
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
@twin(common.believes_too_long)
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


@twin(bugs.a_refusal_is_no_loss)
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
@twin(common.believes_too_long)
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


@twin(bugs.leaves_in_silence)
def test_with_raises_on_leaving(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """A body that ran on without its lease would look like a success."""
    with (  # noqa: PT012
        pytest.raises(LeaseLost, match="retired"),
        client.acquire("orders", ttl=0.9, keep_alive=True) as lease,
    ):
        other.revoke("orders")
        assert eventually(lease.lost.is_set)


@twin(bugs.keeps_the_old_times)
def test_a_shorter_ttl_is_kept_too(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """After renew(ttl=shorter) a kept lease would end between two beats of the old ttl."""
    lease = client.acquire("orders", ttl=30, keep_alive=True)
    lease.renew(ttl=1.5)
    assert stays(lease, 2.5)
    assert other.inspect("orders").token == lease.token


@twin(bugs.keeps_the_old_times)
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
import asyncio, sys
import fencer
from fencer.drill.proxy import Proxy

port, api = int(sys.argv[1]), sys.argv[2]
proxy = Proxy(("127.0.0.1", port))
tries = []

def watch(lease):
    plain = lease._begin_renewal
    lease._begin_renewal = lambda: tries.append(1) or plain()
    proxy.delay(replies=2.4)

def threads():
    with fencer.connect(proxy.url) as client:
        lease = client.acquire("orders", ttl=4.5, keep_alive=True)
        lease.renew()  # Now the server knows the script.
        watch(lease)
        lease.renew()
        proxy.delay()
        assert lease.valid

async def tasks():
    async with fencer.connect_async(proxy.url) as client:
        lease = await client.acquire("orders", ttl=4.5, keep_alive=True)
        await lease.renew()
        watch(lease)
        await lease.renew()
        proxy.delay()
        assert lease.valid

if api == "threads":
    threads()
else:
    asyncio.run(tasks())
proxy.close()
print(len(tries))
"""


@pytest.mark.parametrize("api", ["threads", "asyncio"])
@twin(bugs.tries_without_a_pause)
def test_a_slow_renew_of_the_callers_meets_a_beat(
    shared_server: Server, redis_client: redis.Redis, api: str
) -> None:
    """The keeper would spin until the other renew is done; on asyncio that is for ever."""
    done = run(RENEWS_AT_THE_BEAT, str(shared_server.port), api, timeout=40)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 300, "tries of a keeper that waits for a second"


@twin(common.a_renewal_brings_back)
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
@twin(bugs.renews_what_has_ended)
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


@twin(bugs.releases_nothing_at_the_end)
def test_close_releases_what_is_kept(connect: Connect, other: fencer.Fencer) -> None:
    """A service that stops in order would keep its successor waiting for a ttl."""
    client = connect()
    for name in ("one", "two", "three"):
        client.acquire(name, keep_alive=True)
    client.acquire("not kept")
    client.close()
    assert [other.inspect(name).held for name in ("one", "two", "three")] == [False] * 3
    assert other.inspect("not kept").held


@twin(bugs.the_first_failure_ends_the_release)
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


@twin(bugs.calls_where_it_stands)
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
    another = client.acquire("another", ttl=1.0, keep_alive=True)
    try:
        with caplog.at_level(logging.ERROR, "fencer"):
            for name in ("bad-0", "bad-1", "good"):
                other.revoke(name)
            assert eventually(lambda: heard or not another.valid, 3)
            assert heard
            assert eventually(lambda: "in a callback" in caplog.text, 3)
        assert stays(another, 1.0)
    finally:
        blocked.set()


@twin(bugs.no_callback_after_the_loss)
def test_a_callback_hears_of_a_loss_that_has_been(client: fencer.Fencer) -> None:
    """A callback that is set a moment too late would never be called."""
    lease = client.acquire("orders", ttl=0.05)
    time.sleep(0.1)
    assert not lease.valid
    reasons: list[str] = []
    lease.on_lost(reasons.append)
    assert eventually(lambda: reasons, 3)


@twin(bugs.a_release_is_told_as_a_loss)
def test_a_released_lease_calls_nobody(client: fencer.Fencer) -> None:
    """An orderly end would be reported as a loss."""
    lease = client.acquire("orders", ttl=0.3)
    reasons: list[str] = []
    lease.on_lost(reasons.append)
    lease.release()
    time.sleep(0.5)
    assert not reasons
    assert not lease.lost.is_set()


@twin(bugs.a_late_beat_is_a_loss)
def test_a_thread_that_holds_the_interpreter(client: fencer.Fencer, other: fencer.Fencer) -> None:
    """A second in a C function would cost a lease of three."""
    lease = client.acquire("orders", ttl=3, keep_alive=True)
    time.sleep(0.3)
    ctypes.PyDLL(None).usleep(999_999)  # PyDLL keeps the interpreter's lock
    assert eventually(lambda: lease.remaining() > 2 or not lease.valid)
    assert lease.valid
    assert other.inspect("orders").token == lease.token


@twin(bugs.checks_the_beat_afterwards)
def test_keep_alive_is_checked_before_anything_is_sent(
    client: fencer.Fencer, other: fencer.Fencer
) -> None:
    """A lease that cannot be kept would be granted first, and refused then."""
    with pytest.raises(fencer.InvalidArgument, match="second try"):
        client.acquire("orders", ttl=3, keep_alive=2.0)
    assert other.inspect("orders").issued == 0


@twin(bugs.sends_no_script_again)
def test_the_server_forgets_the_scripts(
    client: fencer.Fencer, other: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """SCRIPT FLUSH would cost every lease."""
    leases = [client.acquire(f"orders-{n}", ttl=1.5, keep_alive=True) for n in range(10)]
    for _ in range(5):
        assert stays(leases[0], 0.5)
        redis_client.script_flush()
    assert all(lease.valid for lease in leases)


@twin(bugs.renewals_wait_like_all)
def test_a_pool_that_is_used_up_does_not_stop_the_keeper(
    connect: Connect, proxy: Proxy, other: fencer.Fencer
) -> None:
    """Threads that wait for replies would take the connection that keeps the leases."""
    client = connect(proxy.url, max_connections=3)
    lease = client.acquire("orders", ttl=2.4, keep_alive=True)
    proxy.delay(replies=0.2)  # A turn of all takes longer than the time between two renewals.
    until = time.monotonic() + 2.6

    def work(_: int) -> None:
        while time.monotonic() < until and lease.valid:
            client.inspect("orders")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    assert lease.valid
    assert other.inspect("orders").token == lease.token


@twin(bugs.renewals_are_calls_like_others)
def test_many_calls_at_once_do_not_stop_the_keeper(proxy: Proxy) -> None:
    """On asyncio, where so many are under way at once, a renewal would wait for all the others."""

    async def main() -> bool:
        async def work() -> None:
            while True:
                await client.inspect("orders")

        async with fencer.connect_async(proxy.url) as client:
            lease = await client.acquire("orders", ttl=2.4, keep_alive=True)
            proxy.delay(replies=0.1)
            tasks = [asyncio.create_task(work()) for _ in range(200)]
            until = time.monotonic() + 2.6
            while time.monotonic() < until and lease.valid:
                await asyncio.sleep(0.02)
            valid = lease.valid
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return valid

    assert asyncio.run(main())


@twin(bugs.nobody_stands_in_line)
def test_who_waits_for_a_connection_gets_it_in_turn(connect: Connect, proxy: Proxy) -> None:
    """Who gives a connection back would take it again at once, and the others get none."""
    client = connect(proxy.url, max_connections=1)
    client.inspect("orders")
    proxy.delay(replies=0.02)
    calls = [0] * 4

    def work(number: int) -> None:
        while sum(calls) < 40:
            client.inspect("orders")
            calls[number] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert min(calls) >= 5, calls


@twin(bugs.waits_for_who_has_gone)
def test_nobody_waits_for_who_was_interrupted_in_line(
    connect_threads: Connect, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that could not leave the line would block a client for good."""
    monkeypatch.setattr("fencer._wire._FREE_SECONDS", 0.5)
    client = connect_threads(max_connections=1)
    turns = turns_of(client.client.connection_pool)
    turns.join(threading.Event(), urgent=False)  # It is gone.
    client.inspect("orders")
    assert not turns.line
