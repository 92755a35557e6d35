"""The holder dies, alone or with the next in line: how soon the line moves on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

import fencer
from fencer.embedded import Server
from tests.faults.bugs import nobody_is_served
from tests.faults.history import History
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.wait import bugs
from tests.wait.line import MARGIN, Crowd, await_true, check_order, grants, in_line


@pytest.fixture
def holder(shared_server: Server, redis_client: redis.Redis) -> Iterator[Worker]:
    """A process that can hold the lease, and die."""
    with Worker("tests.wait.waiter", shared_server.unix_url, "orders") as worker:
        yield worker


def end_of_lease(client: redis.Redis) -> float:
    left = client.pttl("fencer:{orders}:lock")
    assert isinstance(left, int)
    assert left > 0
    return time.monotonic() + left / 1000


@pytest.mark.parametrize("keep_alive", [False, True])
@twin(bugs.gives_up_unheard)
def test_the_head_follows_a_dead_holder_at_once(
    connect: Connect, holder: Worker, redis_client: redis.Redis, keep_alive: bool
) -> None:
    """A crash would stop the service for longer than the ttl that was chosen for it."""
    client = connect()
    with Crowd() as crowd:
        holder.ask(do="hold", ttl=0.7, keep_alive=keep_alive)
        for _ in range(3):
            crowd.queue(client, "orders")
        if keep_alive:
            time.sleep(0.9)
        holder.kill()
        end = end_of_lease(redis_client)
        served = crowd.served()
        late = served[0].at - end
        print(f"crash take-over: {late * 1000:.1f} ms after the lease's end")
        check_order(served, [0, 1, 2])
        assert -0.01 < late < MARGIN


@twin(bugs.gives_up_unheard)
def test_the_next_follows_when_holder_and_head_die_together(
    connect: Connect, holder: Worker, shared_server: Server, redis_client: redis.Redis
) -> None:
    """Only the head watches the lease's end: with it the whole line would be blind."""
    client = connect()
    with Worker("tests.wait.waiter", shared_server.unix_url, "orders") as head, Crowd() as crowd:
        holder.ask(do="hold", ttl=0.7, keep_alive=True)
        head.ask(do="join", number=99, ttl=0.7, wait=60.0, hold=0.0)
        in_line(client, "orders", 1)
        for _ in range(3):
            crowd.queue(client, "orders")
        holder.kill()
        head.kill()
        end = end_of_lease(redis_client)
        served = crowd.served()
        print(f"take-over past a dead head: {(served[0].at - end) * 1000:.0f} ms after the end")
        check_order(served, [0, 1, 2])
        assert served[0].at - end < 1.5 + MARGIN


@twin(bugs.handed_for_the_full_ttl)
def test_the_next_follows_when_the_head_stands_still(
    connect: Connect,
    holder: Worker,
    shared_server: Server,
    redis_client: redis.Redis,
    history: History,
) -> None:
    """A head that hears and does nothing would block the line for longer than its claim time."""
    client = connect()
    url = shared_server.unix_url
    with Worker("tests.wait.waiter", url, "orders", "head") as head, Crowd() as crowd:
        holder.ask(do="hold", ttl=0.7, keep_alive=True)
        head.ask(do="join", number=99, ttl=30.0, wait=60.0, hold=0.0)
        in_line(client, "orders", 1)
        for _ in range(3):
            crowd.queue(client, "orders")
        head.stop()
        holder.kill()
        end = end_of_lease(redis_client)
        await_true(lambda: len(grants(client, "orders")) >= 2)
        status = client.inspect("orders")
        assert status.holder != "head" or (status.remaining or 0) <= 1.0
        served = crowd.served()
        print(f"take-over past a stopped head: {(served[0].at - end) * 1000:.0f} ms after the end")
        check_order(served, [0, 1, 2])
        assert served[0].at - end < 2.5 + MARGIN
        head.cont()
        history.healed(30.0)
        await_true(lambda: any(head.ask(do="results")))
        [back], trouble = head.ask(do="results")
        assert (back[0], trouble) == (99, [])


@pytest.mark.slow
@twin(bugs.dead_are_served)
def test_a_long_line_behind_dead_ones_moves_on(
    connect: Connect, holder: Worker, shared_server: Server, redis_client: redis.Redis
) -> None:
    """The tenth in line would look only long after the nine before it have died."""
    client = connect()
    with Worker("tests.wait.waiter", shared_server.unix_url, "orders") as dead, Crowd() as crowd:
        holder.ask(do="hold", ttl=0.7, keep_alive=True)
        for number in range(10):
            dead.ask(do="join", number=number, ttl=0.7, wait=60.0, hold=0.0)
            in_line(client, "orders", number + 1)
        crowd.queue(client, "orders")
        dead.kill()
        holder.kill()
        end = end_of_lease(redis_client)
        await_true(lambda: len(grants(client, "orders")) >= 2)
        assert len(grants(client, "orders", client.holder)) == 1
        served = crowd.served()
        print(f"take-over past ten dead: {(served[0].at - end) * 1000:.0f} ms after the end")
        assert served[0].at - end < 5.0


@twin(bugs.dead_are_served)
@twin(nobody_is_served)
def test_a_release_passes_over_the_dead(
    connect: Connect, shared_server: Server, redis_client: redis.Redis
) -> None:
    """Each dead waiter would cost those behind it a claim time."""
    client: fencer.Fencer = connect()
    with Worker("tests.wait.waiter", shared_server.unix_url, "orders") as dead, Crowd() as crowd:
        lease = client.acquire("orders", keep_alive=True)
        for number in range(5):
            dead.ask(do="join", number=number, ttl=0.7, wait=60.0, hold=0.0)
            in_line(client, "orders", number + 1)
        crowd.queue(client, "orders")
        dead.kill()
        await_true(lambda: len(redis_client.pubsub_channels()) == 1)
        started = time.monotonic()
        lease.release()
        assert len(grants(client, "orders", client.holder)) == 2
        served = crowd.served()
        print(f"hand-over past five dead: {(served[0].at - started) * 1000:.1f} ms")
        assert served[0].at - started < 0.9
