"""What redis-py does with timeouts, retries, pools and forks does not reach those who wait."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import redis.asyncio

import fencer
from fencer.embedded import Server
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.wait import bugs
from tests.wait.line import Crowd, await_true, check_nothing_left, in_line


@pytest.mark.slow
@twin(bugs.waits_as_long_as_a_call)
def test_a_wait_outlasts_the_driver_s_timeout(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """With a client of one's own, its socket_timeout of 5 s or its retries would end the wait."""

    def with_threads(wait: float) -> float:
        with redis.Redis("127.0.0.1", shared_server.port) as own, fencer.Fencer(own) as mine:
            mine.acquire("orders", wait=wait).release()
            return time.monotonic()

    async def with_tasks(wait: float) -> float:
        async with redis.asyncio.Redis(host="127.0.0.1", port=shared_server.port) as own:
            async with fencer.AsyncFencer(own) as mine:
                await (await mine.acquire("orders", wait=wait)).release()
            return time.monotonic()

    with (
        fencer.connect(shared_server.unix_url) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        lease = client.acquire("orders", keep_alive=True)
        started = time.monotonic()
        waits = []
        for wait in (12.0, 30.0):
            waits.append(pool.submit(with_threads, wait))
            in_line(client, "orders", len(waits))
            waits.append(pool.submit(asyncio.run, with_tasks(wait)))
            in_line(client, "orders", len(waits))
        for given_up in waits[:2]:
            with pytest.raises(fencer.AcquireTimeout) as caught:
                given_up.result(20)
            assert 12 <= caught.value.waited < 13
        released = time.monotonic()
        assert released - started >= 12
        lease.release()
        for served in waits[2:]:
            assert served.result(10) - released < 1.0
        check_nothing_left(client, "orders")


@pytest.mark.slow
@twin(bugs.waits_for_no_connection)
def test_a_small_pool_serves_many_waiters_and_the_holder(
    connect: Connect, redis_client: redis.Redis
) -> None:
    """Waiters would take the connections that the holder needs to renew."""
    client = connect(max_connections=4)
    with Crowd() as crowd:
        lease = client.acquire("orders", ttl=1, keep_alive=True)
        for _ in range(50):
            crowd.add(client, "orders")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert lease.valid
            assert not any(waiter.done() for waiter in crowd.waiters)
            time.sleep(0.02)
        in_line(client, "orders", 50)
        lease.release()
        assert len(crowd.served()) == 50
    check_nothing_left(client, "orders")


@pytest.mark.parametrize("leave", ["exit", "_exit"])
@twin(bugs.shared_with_children)
def test_a_child_changes_nothing_of_its_parent_s(
    shared_server: Server, redis_client: redis.Redis, leave: str
) -> None:
    """A child's end would release its parent's lease, leave its line, or break its connections."""
    with (
        fencer.connect(shared_server.unix_url) as client,
        Worker("tests.wait.waiter", shared_server.unix_url, "orders") as parent,
    ):
        parent.ask(do="hold", ttl=1.0, keep_alive=True)
        holder = client.inspect("orders").holder
        parent.ask(do="join", number=0, ttl=1.0, wait=30.0, hold=0.0)
        in_line(client, "orders", 1)
        for _ in range(3):
            assert parent.ask(do="fork", leave=leave) == 3
            status = client.inspect("orders")
            assert (status.holder, status.waiters) == (holder, 1)
        time.sleep(1.2)
        assert parent.ask(do="valid"), "the parent's keeper went on"
        started = time.monotonic()
        assert parent.ask(do="release")
        await_true(lambda: parent.ask(do="results")[0])
        [[_, _, at]], trouble = parent.ask(do="results")
        assert trouble == []
        assert at - started < 0.9, "the parent's wake-ups went on"


@twin(bugs.a_connection_each)
def test_one_connection_carries_all_wake_ups(connect: Connect, redis_client: redis.Redis) -> None:
    """A client would need a connection for each of its waiters."""
    client = connect()
    names = [f"name {number}" for number in range(10)]
    with Crowd() as crowd:
        leases = [client.acquire(name, keep_alive=True) for name in names]
        for name in names * 3:
            crowd.queue(client, name)
        assert len(redis_client.pubsub_channels()) == 1
        listening = [one for one in redis_client.client_list() if one["sub"] != "0"]
        assert len(listening) == 1
        for lease in leases:
            lease.release()
        for waiter in crowd.waiters:
            waiter.result(20)
    await_true(lambda: not redis_client.pubsub_channels())


@twin(bugs.a_crowd_of_connections)
def test_two_thousand_tasks_wait_on_two_hundred_names(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """Many tasks would need as many connections, or the memory of the process."""
    tokens: dict[str, list[int]] = {}
    most = 0
    over = threading.Event()

    def count_connections() -> None:
        nonlocal most
        with redis.Redis.from_url(shared_server.unix_url) as own:
            while not over.wait(0.02):
                most = max(most, int(own.info("clients")["connected_clients"]))

    async def one(client: fencer.AsyncFencer, name: str) -> None:
        async with await client.acquire(name, ttl=60, wait=60) as lease:
            tokens.setdefault(name, []).append(lease.token)

    async def all_of_them() -> None:
        async with fencer.connect_async(shared_server.unix_url) as client:
            names = [f"name {number % 200}" for number in range(2000)]
            await asyncio.gather(*(one(client, name) for name in names))

    before = resident()
    counting = threading.Thread(target=count_connections)
    counting.start()
    started = time.monotonic()
    try:
        asyncio.run(all_of_them())
    finally:
        over.set()
        counting.join()
    grown = resident() - before
    print(
        f"2,000 tasks: {time.monotonic() - started:.1f} s, {most} connections, "
        f"{grown / 2**20:.0f} MiB more"
    )
    assert [len(each) for each in tokens.values()] == [10] * 200
    assert all(each == sorted(set(each)) for each in tokens.values())
    assert most < 40
    assert grown < 200 * 2**20
    assert redis_client.keys("*:queue") == redis_client.keys("*:waiters") == []


def resident() -> int:
    """Bytes of memory that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
