"""A reply is lost at each step of a wait: one place in line, one grant, nothing left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import redis

import fencer
from fencer import _wire
from fencer._scripts import load
from fencer._steps import Call
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.faults.bugs import gives_nothing_back, knows_no_grant_again
from tests.faults.planted import twin
from tests.fix_api import Connect
from tests.wait import bugs
from tests.wait.line import Crowd, await_true, check_nothing_left, grants
from tests.ways import way  # noqa: F401

Fate = Literal["cut", "silence"]


class Losing:
    """Has the proxy swallow the reply to the n-th script call of the holder ``waiter``."""

    def __init__(self, proxy: Proxy, nth: int, fate: Fate) -> None:
        self.calls: list[str] = []
        self._proxy = proxy
        self._nth = nth
        self._fate = fate
        self._lock = threading.Lock()

    def __call__(self, connection: Any, call: Call) -> list[bytes]:
        """Pack a call, each time that it is sent."""
        with self._lock:
            if call.args and call.args[0] == "waiter":
                self.calls.append(call.script.name)
                if len(self.calls) == self._nth:
                    self._proxy.swallow_reply(match=b"EVALSHA", then=self._fate)
        packed: list[bytes] = connection.pack_command(*_wire._by_sha(call))
        return packed


Lose = Callable[[int, Fate], Losing]


@pytest.fixture
def proxy(shared_server: Server, redis_client: redis.Redis) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        yield proxy


@pytest.fixture
def lose(proxy: Proxy, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Lose:
    """Chooses the reply that is to be lost."""
    for script in ("acquire", "renew", "release"):
        redis_client.script_load(load(script).body)  # Else it would be a NOSCRIPT that is lost.

    def choose(nth: int, fate: Fate) -> Losing:
        losing = Losing(proxy, nth, fate)
        monkeypatch.setattr(_wire, "_pack", losing)
        return losing

    return choose


@contextmanager
def one_place(client: fencer.Fencer) -> Iterator[None]:
    """The line is never longer than one while this lasts."""
    over = threading.Event()
    longest = 0

    def watch() -> None:
        nonlocal longest
        while not over.wait(0.001):
            longest = max(longest, client.inspect("orders").waiters)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
    assert longest <= 1


@pytest.mark.parametrize("fate", ["cut", "silence"])
@pytest.mark.parametrize("nth", range(1, 6))
@twin(bugs.asks_anew, of="2-cut")
def test_a_reply_lost_on_the_way_to_a_grant(
    connect: Connect, proxy: Proxy, lose: Lose, nth: int, fate: Fate
) -> None:
    """The waiter would queue twice, be granted twice, or hold what it does not know of."""
    direct = connect()
    waiter = connect(proxy.url, holder="waiter", socket_timeout=0.25)
    with Crowd() as crowd, one_place(direct):
        lease = direct.acquire("orders", keep_alive=True)
        losing = lose(nth, fate)
        crowd.queue(waiter, "orders", ttl=5, wait=20)
        await_true(lambda: len(losing.calls) > min(nth, 2))
        if nth > 3:
            time.sleep(0.3)  # A look that crosses the release finds the grant, and saves a call.
        lease.release()
        crowd.served()
        assert len(losing.calls) >= nth
        assert proxy.swallowed == 1
        print(losing.calls)
    assert len(grants(direct, "orders", "waiter")) == 1
    check_nothing_left(direct, "orders")


@pytest.mark.parametrize("fate", ["cut", "silence"])
@pytest.mark.parametrize("nth", range(1, 4))
@twin(gives_nothing_back)
def test_a_reply_lost_on_the_way_out_of_the_line(
    connect: Connect, proxy: Proxy, lose: Lose, nth: int, fate: Fate
) -> None:
    """A waiter that gave up would stay in line, or get the lease later."""
    direct = connect()
    waiter = connect(proxy.url, holder="waiter", socket_timeout=0.25)
    with Crowd() as crowd, one_place(direct):
        lease = direct.acquire("orders", keep_alive=True)
        losing = lose(nth, fate)
        crowd.add(waiter, "orders", wait=0.6)
        with pytest.raises(fencer.AcquireTimeout):
            crowd.waiters[0].result(20)
        print(losing.calls)
        assert direct.inspect("orders").waiters == 0
        assert proxy.swallowed == 1
        lease.release()
    assert grants(direct, "orders", "waiter") == []
    check_nothing_left(direct, "orders")


@pytest.mark.parametrize("fate", ["cut", "silence"])
@pytest.mark.parametrize("nth", [1, 2])
@twin(knows_no_grant_again)
def test_a_reply_lost_where_nobody_else_is(
    connect: Connect, proxy: Proxy, lose: Lose, nth: int, fate: Fate
) -> None:
    """A free name would be granted twice, or stay held after its release."""
    waiter = connect(proxy.url, holder="waiter", socket_timeout=0.25)
    lose(nth, fate)
    waiter.acquire("orders", wait=10).release()
    assert proxy.swallowed == 1
    assert len(grants(waiter, "orders")) == 1
    check_nothing_left(waiter, "orders")


@pytest.mark.parametrize("fate", ["cut", "silence"])
@twin(bugs.gives_up_unsubscribed, of="cut")
def test_a_subscription_that_is_not_confirmed(connect: Connect, proxy: Proxy, fate: Fate) -> None:
    """The waiter would hang for ever before it is even in line."""
    direct = connect()
    waiter = connect(proxy.url, holder="waiter", socket_timeout=0.5)
    with Crowd() as crowd:
        lease = direct.acquire("orders", keep_alive=True)
        proxy.swallow_reply(match=b"SUBSCRIBE", then=fate)
        crowd.add(waiter, "orders", wait=5.0)
        crowd.add(waiter, "orders", wait=1.0)
        try:
            with pytest.raises((fencer.AcquireTimeout, fencer.StoreUnavailable)):
                crowd.waiters.pop().result(4)
            lease.release()
            crowd.served(8)
        finally:
            proxy.heal()
    check_nothing_left(direct, "orders")
