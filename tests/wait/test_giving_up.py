"""Who gives up, in whatever way, leaves neither the lease held nor a place in line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from contextlib import ExitStack

import pytest
import redis

import fencer
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.cli.runs import Cli
from tests.faults import record
from tests.faults.bugs import gives_nothing_back
from tests.faults.history import History
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.wait import bugs
from tests.wait.line import Crowd, await_true, check_nothing_left, grants, in_line


@twin(bugs.stays_in_line)
def test_a_timeout_leaves_the_line(client: fencer.Fencer) -> None:
    """Each waiter that gave up would cost the next one a claim time."""
    with Crowd() as crowd:
        lease = client.acquire("orders", keep_alive=True)
        for _ in range(5):
            crowd.add(client, "orders", wait=0.3)
        for given_up in crowd.waiters:
            with pytest.raises(fencer.AcquireTimeout):
                given_up.result(10)
        assert client.inspect("orders").waiters == 0
        lease.release()
    check_nothing_left(client, "orders")


@twin(bugs.leaves_in_silence)
def test_the_second_becomes_the_head_when_the_first_gives_up(
    connect: Connect, shared_server: Server, redis_client: redis.Redis
) -> None:
    """Nobody would watch for the end of a dead holder's lease any more."""
    client = connect()
    with Worker("tests.wait.waiter", shared_server.unix_url, "orders") as holder, Crowd() as crowd:
        holder.ask(do="hold", ttl=2.0)
        crowd.queue(client, "orders", wait=0.5)
        crowd.queue(client, "orders")
        holder.kill()
        end = time.monotonic() + redis_client.pttl("fencer:{orders}:lock") / 1000
        with pytest.raises(fencer.AcquireTimeout):
            crowd.waiters.pop(0).result(10)
        [second] = crowd.served()
        print(f"the new head: {(second.at - end) * 1000:.1f} ms after the end")
        assert second.at - end < 0.25


@pytest.mark.slow
@twin(gives_nothing_back)
def test_an_interrupt_leaves_the_line(
    shared_server: Server, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a waiting script would leave the lease held, or a place in line."""
    # A worker that keeps a record is interrupted while it writes, where nothing would be otherwise.
    monkeypatch.delenv(record.VARIABLE)
    print(f"seed of random: {random.getstate()[1][:2]}")
    ends = {"interrupted": 0, "served": 0, "crashed": 0}
    with fencer.connect(shared_server.unix_url) as client, ExitStack() as opened:

        def start() -> Worker:
            url = shared_server.unix_url
            return opened.enter_context(Worker("tests.wait.waiter", url, "orders", "worker"))

        worker = start()
        for _ in range(40):
            lease = client.acquire("orders", ttl=30)
            worker.tell(do="use", ttl=30.0, wait=30.0)
            in_line(client, "orders", 1)
            striking = threading.Timer(
                random.uniform(0, 0.02), os.kill, (worker.pid, signal.SIGINT)
            )
            striking.start()
            time.sleep(random.uniform(0, 0.004))
            lease.release()
            striking.join()
            try:
                ends[worker.hear()] += 1
            except EOFError:
                # Seen once in thousands: the interpreter itself ends, by SIGSEGV, in this storm.
                ends["crashed"] += 1
                worker = start()
                client.revoke("orders")
                continue
            status = client.inspect("orders")
            assert not status.held, f"the lease is left with {status.holder}"
            assert status.waiters == 0
    print(ends)
    assert ends["crashed"] <= 1


@pytest.mark.slow
@twin(bugs.masks_interrupts, raises=(TimeoutError,))
def test_an_interrupt_in_the_line_is_heard_at_once(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """Ctrl-C would do nothing until the wait is over."""
    with (
        fencer.connect(shared_server.unix_url) as client,
        Worker("tests.wait.waiter", shared_server.unix_url, "orders") as worker,
    ):
        lease = client.acquire("orders", keep_alive=True)
        worker.tell(do="use", ttl=10.0, wait=60.0)
        in_line(client, "orders", 1)
        os.kill(worker.pid, signal.SIGINT)
        assert worker.hear(timeout=3) == "interrupted"
        assert client.inspect("orders").waiters == 0
        lease.release()


@pytest.mark.slow
@twin(gives_nothing_back)
def test_cancelled_tasks_leave_nothing(shared_server: Server, redis_client: redis.Redis) -> None:
    """A task that is cancelled at a bad moment would keep the lease, or its place in line."""
    print(f"seed of random: {random.getstate()[1][:2]}")

    async def one(client: fencer.AsyncFencer) -> None:
        lease = await client.acquire("orders", ttl=30, wait=30)
        await lease.release()

    async def storm() -> int:
        async with fencer.connect_async(shared_server.unix_url) as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(400)]
            victims = random.sample(tasks, 300)
            for task in victims:
                await asyncio.sleep(random.expovariate(1 / 0.002))
                task.cancel()
            await asyncio.wait(victims)
            left = sum(not task.done() for task in tasks)
            assert (await client.inspect("orders")).waiters <= left
            async with asyncio.timeout(30):
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            errors = [one for one in outcomes if one is not None]
            assert all(isinstance(error, asyncio.CancelledError) for error in errors), errors
            assert not (await client.inspect("orders")).held
            assert (await client.inspect("orders")).waiters == 0
            return len(errors)

    print(f"{asyncio.run(storm())} were cancelled in time")


@pytest.mark.slow
@twin(gives_nothing_back)
def test_a_timeout_of_asyncio_leaves_nothing(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """A deadline around an acquire would leave the lease held when it strikes with the grant."""

    async def rounds() -> None:
        async with fencer.connect_async(shared_server.unix_url) as client:
            for _ in range(100):
                lease = await client.acquire("orders", ttl=30)
                waiting = asyncio.create_task(client.acquire("orders", ttl=30, wait=30))
                while not (await client.inspect("orders")).waiters:
                    pass
                releasing = asyncio.create_task(lease.release())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(0, 0.002)):
                        await (await waiting).release()
                await releasing
                if waiting.done() and not waiting.cancelled():
                    await waiting.result().release()
                status = await client.inspect("orders")
                assert (status.held, status.waiters) == (False, 0)

    asyncio.run(rounds())


@twin(bugs.dead_are_served)
def test_a_killed_waiter_is_passed_over(
    shared_server: Server, connect: Connect, redis_client: redis.Redis
) -> None:
    """The lease would be handed to a process that is gone."""
    client = connect()
    with Worker("tests.wait.waiter", shared_server.unix_url, "orders") as gone:
        lease = client.acquire("orders", keep_alive=True)
        gone.tell(do="use", ttl=30.0, wait=60.0)
        in_line(client, "orders", 1)
        gone.kill()
        await_true(lambda: not redis_client.pubsub_channels())
        lease.release()
    check_nothing_left(client, "orders")


@twin(gives_nothing_back)
def test_a_grant_that_crosses_a_timeout_goes_to_the_next(
    connect: Connect, shared_server: Server, redis_client: redis.Redis
) -> None:
    """A grant that nobody takes any more would have to run out before the next is served."""
    client = connect(holder="next")
    with Proxy(("127.0.0.1", shared_server.port)) as proxy, Crowd() as crowd:
        slow = connect(proxy.url, holder="slow", socket_timeout=10)
        lease = client.acquire("orders", keep_alive=True)
        crowd.queue(slow, "orders", wait=1.5)
        crowd.queue(client, "orders")
        proxy.delay(replies=2.0)
        time.sleep(0.8)
        lease.release()
        assert client.inspect("orders").holder == "slow", "the grant is on the wire"
        with pytest.raises(fencer.AcquireTimeout):
            crowd.waiters.pop(0).result(20)
        crowd.served()
        proxy.heal()
        told = [(one.event, one.holder) for one in client.history("orders")]
        assert told[2:] == [
            ("grant", "slow"),
            ("release", "slow"),
            ("grant", "next"),
            ("release", "next"),
        ]
    check_nothing_left(client, "orders")


@twin(bugs.handed_for_the_full_ttl)
def test_a_waiter_that_could_not_say_goodbye_is_passed_over(
    connect: Connect, shared_server: Server, redis_client: redis.Redis, history: History
) -> None:
    """A cancel that never arrived would leave a place in line that hears and does not answer."""
    client = connect(holder="next")
    with Proxy(("127.0.0.1", shared_server.port)) as proxy, Crowd() as crowd:
        cut_off = connect(proxy.url, holder="cut off", socket_timeout=0.3)
        lease = client.acquire("orders", keep_alive=True)
        crowd.queue(cut_off, "orders", wait=1.0)
        crowd.queue(client, "orders")
        proxy.drop()
        with pytest.raises(fencer.NotAcquired):
            crowd.waiters.pop(0).result(20)
        proxy.heal()
        history.healed(30.0)
        started = time.monotonic()
        lease.release()
        status = client.inspect("orders")
        assert status.holder != "cut off" or (status.remaining or 0) <= 1.0
        [served] = crowd.served()
        print(f"past one who left without a word: {(served.at - started) * 1000:.0f} ms")
        assert served.at - started < 3.0
        assert len(grants(client, "orders", "next")) == 2
    await_true(lambda: not client.inspect("orders").held)
    check_nothing_left(client, "orders")


@twin(bugs.hides_who_waits)
def test_status_shows_the_line(
    connect: Connect, shared_server: Server, redis_client: redis.Redis
) -> None:
    """An operator could not see in the shell who waits."""
    holder, waiter = connect(holder="the one who has it"), connect(holder="the one who waits")
    with Crowd() as crowd:
        lease = holder.acquire("orders", keep_alive=True)
        crowd.queue(waiter, "orders")
        cli = Cli(shared_server.unix_url)
        assert cli("status", "orders").code == 0
        [line] = cli("status", "orders", "--json").json["line"]
        assert line["holder"] == "the one who waits"
        assert 0 <= line["age"] < 10
        assert "the one who waits" in cli("status", "orders").out
        lease.release()
        crowd.served()
