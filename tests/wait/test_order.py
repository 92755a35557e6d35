"""First come, first served: over processes, and past those of them that die."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import pytest
import redis

import fencer
from fencer.embedded import Server
from tests.faults.history import History
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.wait import bugs
from tests.wait.line import (
    MARGIN,
    Crowd,
    Served,
    await_true,
    check_gaps,
    check_nothing_left,
    check_order,
    grants,
    in_line,
)

CLAIM = 1.0
"""Seconds in which who was handed the lease must claim it."""


@contextmanager
def processes(server: Server, count: int) -> Iterator[list[Worker]]:
    with ExitStack() as opened:
        yield [
            opened.enter_context(Worker("tests.wait.waiter", server.unix_url, "orders"))
            for _ in range(count)
        ]


def line_up(
    client: fencer.Fencer, workers: list[Worker], ttl: float, hold: float
) -> dict[Worker, list[int]]:
    """Have 50 wait, five in each process, in a random order; tells who is where."""
    places = [worker for worker in workers for _ in range(50 // len(workers))]
    random.shuffle(places)
    who: dict[Worker, list[int]] = {worker: [] for worker in workers}
    for number, worker in enumerate(places):
        worker.ask(do="join", number=number, ttl=ttl, wait=60.0, hold=hold)
        in_line(client, "orders", number + 1)
        who[worker].append(number)
    return who


def results(workers: list[Worker]) -> list[Served]:
    """Who was served in these processes, in order."""
    served: list[Served] = []
    for worker in workers:
        found, trouble = worker.ask(do="results")
        assert trouble == []
        served += [Served(*one) for one in found]
    return sorted(served, key=lambda one: one.at)


@pytest.mark.slow
@twin(bugs.last_come_first_served)
def test_fifty_waiters_in_ten_processes_are_served_in_order(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """Somebody would overtake, be served twice, or never."""
    with fencer.connect(shared_server.unix_url) as client, processes(shared_server, 10) as workers:
        lease = client.acquire("orders", keep_alive=True)
        line_up(client, workers, ttl=10.0, hold=0.0)
        started = time.monotonic()
        lease.release()
        await_true(lambda: len(grants(client, "orders")) == 51)
        await_true(lambda: not client.inspect("orders").held)
        served = results(workers)
        print(f"50 hand-overs between processes: {(served[-1].at - started) * 20:.2f} ms each")
        check_order(served, list(range(50)))
        assert [one.token for one in served] == grants(client, "orders")[1:]


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["kill", "stop"])
@twin(bugs.last_come_first_served)
def test_the_rest_get_through_in_order_when_a_third_is_gone(
    shared_server: Server, redis_client: redis.Redis, history: History, harm: str
) -> None:
    """Who is killed or stopped in line, or as the holder, would block those behind."""
    print(f"seed of random: {random.getstate()[1][:2]}")
    with fencer.connect(shared_server.unix_url) as client, processes(shared_server, 10) as workers:
        lease = client.acquire("orders", ttl=1.0, keep_alive=True)
        who = line_up(client, workers, ttl=1.0, hold=0.03)
        victims = random.sample(workers, 3)
        rest = [worker for worker in workers if worker not in victims]
        lease.release()
        for victim in victims:
            time.sleep(random.uniform(0.0, 0.3))
            getattr(victim, harm)()
        expected = sorted(number for worker in rest for number in who[worker])
        try:
            await_true(lambda: len(results(rest)) == len(expected), 45)
        finally:
            served = results(rest)
            print([(one.number, round(one.at - served[0].at, 2)) for one in served])
        check_order(served, expected)
        for before, after in pairwise(served):
            between = after.number - before.number - 1
            allowed = between * (CLAIM + 0.25) + MARGIN
            assert after.at - before.at < allowed, f"{before.number} to {after.number}"
        if harm == "stop":
            for victim in victims:
                victim.cont()
            history.healed(30.0)
            await_true(lambda: len(results(workers)) == 50)
        await_true(lambda: not client.inspect("orders").held)
        check_nothing_left(client, "orders")


@pytest.mark.slow
@twin(bugs.gives_up_unheard)
def test_two_that_stand_still_delay_the_last_by_two_claim_times(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """Who joined a long line would go on looking rarely after it has become short."""
    with fencer.connect(shared_server.unix_url) as client, ExitStack() as opened:
        stopped, last = (
            opened.enter_context(Worker("tests.wait.waiter", shared_server.unix_url, "orders"))
            for _ in range(2)
        )
        crowd = opened.enter_context(Crowd())
        lease = client.acquire("orders", keep_alive=True)
        for _ in range(20):
            crowd.queue(client, "orders")
        for number, worker in enumerate((stopped, stopped, last)):
            worker.ask(do="join", number=number, ttl=1.0, wait=60.0, hold=0.0)
            in_line(client, "orders", 21 + number)
        stopped.stop()
        lease.release()
        crowd.served()
        started = time.monotonic()
        await_true(lambda: results([last]), 30)
        took = results([last])[0].at - started
        print(f"past two that stand still: {took:.2f} s")
        assert took < 2 * CLAIM + 2 * MARGIN


@twin(bugs.mixes_up_waiters)
def test_a_line_in_one_process_keeps_its_order(client: fencer.Fencer) -> None:
    """The one connection of a client would mix up its waiters."""
    with Crowd() as crowd:
        lease = client.acquire("orders", keep_alive=True)
        for _ in range(30):
            crowd.queue(client, "orders")
        lease.release()
        served = crowd.served()
        check_order(served, list(range(30)))
        check_gaps(served, 1.0)
    check_nothing_left(client, "orders")


@twin(bugs.tells_ages_in_seconds)
def test_the_line_is_told_with_ages(client: fencer.Fencer) -> None:
    """An operator could not see who waits, and for how long."""
    with Crowd() as crowd:
        lease = client.acquire("orders", keep_alive=True)
        crowd.queue(client, "orders")
        time.sleep(0.3)
        crowd.queue(client, "orders")
        first, second = client.inspect("orders").line
        assert first.holder == second.holder == client.holder
        assert 0.3 <= first.age - second.age < 0.3 + MARGIN
        assert second.age < MARGIN
        lease.release()
        crowd.served()
    assert client.inspect("orders").line == ()


@pytest.mark.parametrize("end", ["release", "expiry"])
@twin(bugs.overtaken_by_newcomers, of="expiry")
def test_newcomers_never_overtake(connect: Connect, redis_client: redis.Redis, end: str) -> None:
    """Who asks in the instant in which a lease ends would be served before those who wait."""
    clients = [connect(holder=f"w{number:02}") for number in range(15)]
    rival = connect(holder="newcomer")
    over = False
    with Crowd() as crowd, Crowd() as rivals:

        def hammer(wait: float) -> None:
            while not over:
                try:
                    rival.acquire("orders", ttl=5, wait=wait).release()
                except fencer.NotAcquired:
                    pass

        lease = clients[0].acquire("orders", ttl=1, keep_alive=end == "release")
        for client in clients:
            crowd.queue(client, "orders", hold=0.01)
            lease.renew()
        pushing = [rivals._pool.submit(hammer, wait) for wait in (0.0, 0.0, 0.01, 0.05)]
        try:
            if end == "release":
                lease.release()
            crowd.served()
        finally:
            over = True
        for push in pushing:
            push.result(30)
        events = [one for one in rival.history("orders", 1000) if one.event == "grant"]
        assert [one.holder for one in events][1:16] == [client.holder for client in clients]
    check_nothing_left(rival, "orders")
