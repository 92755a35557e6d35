"""What is raised in a call is not always the driver's own: it is an outage all the same.

A credential provider raises what it likes, and a connection that another thread closes fails its
user in ways of all kinds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.credentials import CredentialProvider

import fencer
from fencer import NotAcquired, StoreUnavailable, _keeper, _keeping
from fencer.embedded import Server
from tests.faults import bugs_foreign as bugs
from tests.faults.planted import twin
from tests.fix_api import Blocking, Connect


class Vendor(CredentialProvider):
    """A token service that is away now and then."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        if self.away:
            self.asked += 1
            raise RuntimeError("the token service is away")
        return "default", ""


@pytest.fixture
def vendor() -> Vendor:
    return Vendor()


@pytest.fixture
def away(vendor: Vendor, redis_client: redis.Redis) -> Callable[[], None]:
    """Have the service go away, and whoever is connected need it."""

    def go() -> None:
        vendor.away = True
        for kind in ("normal", "pubsub"):
            redis_client.client_kill_filter(_type=kind, skipme=True)

    return go


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


@twin(bugs.translates_the_drivers_own, raises=(RuntimeError,))
@twin(bugs.uses_what_is_half_made)
def test_a_call(
    connect: Connect,
    vendor: Vendor,
    away: Callable[[], None],
    shared_server: Server,
    redis_client: redis.Redis,
) -> None:
    """A caller that is ready for every error of Fencer would meet one of somebody else's.

    And redis-py leaves such a connection as it is, in database 0: whoever used it would be granted
    what another has.
    """
    url = shared_server.url.removesuffix("/0") + "/5"
    client = connect(url, credential_provider=vendor)
    lease = client.acquire("orders", ttl=60)
    away()
    with pytest.raises(StoreUnavailable) as caught:
        lease.renew()
    assert "RuntimeError: the token service is away" in str(caught.value)
    vendor.away = False
    with pytest.raises(NotAcquired):
        client.acquire("orders")
    assert lease.release()
    assert redis_client.keys() == []


@twin(bugs.translates_the_drivers_own)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_keeping(
    connect: Connect, vendor: Vendor, away: Callable[[], None], shared_server: Server
) -> None:
    """One exception would end the renewals of all leases, and on asyncio nobody would be told."""
    client = connect(shared_server.url, credential_provider=vendor)
    lease = client.acquire("orders", ttl=3, keep_alive=0.1)
    away()
    until(lambda: vendor.asked)
    vendor.away = False
    end = time.monotonic() + lease.remaining()
    until(lambda: time.monotonic() + lease.remaining() > end + 0.2 or not lease.valid)
    assert lease.valid
    assert lease.release()


@twin(bugs.trips_end_the_keeper)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_ends_no_keeper(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake about one trip would cost all leases of the client, and those to come."""
    monkeypatch.setattr(_keeping, "_AGAIN", 0.05)
    good, failed = _keeper.renewing, 0

    def renewing(*args: Any) -> Any:
        nonlocal failed
        failed += 1
        if failed < 3:
            raise ZeroDivisionError("a mistake")
        return good(*args)

    monkeypatch.setattr(_keeping, "renewing", renewing)
    client = connect()
    lease = client.acquire("orders", ttl=3, keep_alive=0.1)
    end = time.monotonic() + lease.remaining()
    until(lambda: time.monotonic() + lease.remaining() > end + 0.2 or not lease.valid)
    assert lease.valid
    assert [each.message for each in caplog.records].count(
        "renewing 1 leases failed, and is tried again"
    ) == 2


@twin(bugs.hears_the_drivers_own, of="threads-disconnect")
@pytest.mark.parametrize("how", ["vendor", "disconnect"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_waiting(
    connect: Connect,
    vendor: Vendor,
    away: Callable[[], None],
    shared_server: Server,
    redis_client: redis.Redis,
    how: str,
) -> None:
    """A client would be deaf from then on: each of its waits would take until it looks."""
    holding = connect()
    waiting = connect(shared_server.url, credential_provider=vendor)

    def listens() -> bool:
        return bool(redis_client.pubsub_channels("fencer:wake:*"))

    with ThreadPoolExecutor(1) as pool:
        # Who is not woken looks when a ttl has passed.
        lease = holding.acquire("orders", ttl=2, keep_alive=True)
        future = pool.submit(waiting.acquire, "orders", ttl=10, wait=60)
        try:
            until(lambda: holding.inspect("orders").waiters == 1 and listens())
            if how == "vendor":
                away()
                until(lambda: vendor.asked)
                vendor.away = False
            else:
                disconnect(waiting)
            time.sleep(0.05)
            until(lambda: listens() or not lives("fencer-wakeups"))
            assert listens() or isinstance(waiting, Blocking)
            until(listens)
        finally:
            lease.release()
        assert future.result(60).release()


def lives(name: str) -> bool:
    """Whether there is such a thread."""
    return name in {thread.name for thread in threading.enumerate()}


def disconnect(client: Any) -> None:
    """What an application does with its own client, now and then."""
    done = client.client.connection_pool.disconnect()
    if done is not None:
        client._loop.run(done)


@twin(bugs.translates_the_drivers_own)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_election(vendor: Vendor, away: Callable[[], None], shared_server: Server) -> None:
    """A candidate would never campaign again, and nobody would be told."""
    with (
        fencer.connect(shared_server.url, credential_provider=vendor) as client,
        fencer.Election(client, "lead", ttl=1, retry_interval=0.2) as election,
    ):
        until(lambda: election.is_leader)
        away()
        until(lambda: not election.is_leader)
        asked = vendor.asked
        until(lambda: vendor.asked > asked + 2 or not lives("fencer-election"))
        vendor.away = False
        until(lambda: election.is_leader or not lives("fencer-election"))
        assert election.is_leader
