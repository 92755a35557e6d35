"""What servers say in the middle of a failover or a start: it passes, and nobody gives up."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fencer import StoreError, StoreUnavailable
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults.history import History
from tests.faults.planted import twin
from tests.fix_api import Connect
from tests.fix_servers import MakeServer
from tests.topology import bugs
from tests.wait.line import Crowd, await_true

pytestmark = pytest.mark.usefixtures("history")

State = Callable[[Server, redis.Redis], AbstractContextManager[None]]


@contextmanager
def readonly(server: Server, store: redis.Redis) -> Iterator[None]:
    """It is made a replica, and a primary again."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        store.replicaof("127.0.0.1", nobody.getsockname()[1])
        try:
            yield
        finally:
            store.replicaof("NO", "ONE")


@contextmanager
def masterdown(server: Server, store: redis.Redis) -> Iterator[None]:
    """It is a replica that has lost its primary, and says so rather than serve old data."""
    store.config_set("replica-serve-stale-data", "no")
    with readonly(server, store):
        yield


@contextmanager
def noreplicas(server: Server, store: redis.Redis) -> Iterator[None]:
    """It has been promoted, and the other replicas do not follow it yet."""
    store.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        store.config_set("min-replicas-to-write", 0)


@contextmanager
def loading(server: Server, store: redis.Redis) -> Iterator[None]:
    """It has been started, and reads its data."""
    for number in range(120):  # It looks up from loading every 2 MB.
        store.set(f"other:{number}", os.urandom(500_000))
    store.save()
    server.kill()
    start = threading.Thread(target=server.start)
    start.start()
    try:
        await_true(lambda: is_loading(store))
        yield
    finally:
        start.join()


def is_loading(store: redis.Redis) -> bool:
    """Whether it has said so."""
    try:
        store.ping()
    except redis.exceptions.BusyLoadingError:
        return True
    except redis.ConnectionError:
        pass
    return False


@contextmanager
def clusterdown(server: Server, store: redis.Redis) -> Iterator[None]:
    """Some slots have no server."""
    store.execute_command("CLUSTER", "DELSLOTS", 0)
    try:
        yield
    finally:
        store.execute_command("CLUSTER", "ADDSLOTS", 0)


STATES: dict[str, State] = {
    "READONLY": readonly,
    "MASTERDOWN": masterdown,
    "NOREPLICAS": noreplicas,
    "LOADING": loading,
    "CLUSTERDOWN": clusterdown,
}


def refusals(store: redis.Redis) -> int:
    """How often the server has refused anything: Redis 6.2 does not count a script's by code."""
    told: Any = store.info("errorstats")
    return sum(int(each["count"]) for each in told.values())


SETTINGS = {
    "CLUSTERDOWN": {"cluster-enabled": "yes"},
    "LOADING": {"key-load-delay": "25000"},  # So that its data takes it some seconds.
}


@pytest.fixture
def server(make_server: MakeServer, request: pytest.FixtureRequest) -> Server:
    """A server that can get into the state in question."""
    code = getattr(request.node, "callspec", None) and request.node.callspec.params.get("code")
    return make_server(
        persistence="rdb" if code == "LOADING" else "none", settings=SETTINGS.get(code or "", {})
    )


@pytest.fixture
def store(server: Server) -> Iterator[redis.Redis]:
    """The driver's client there."""
    with redis.Redis.from_url(server.unix_url, retry=Retry(NoBackoff(), 0)) as store:
        if store.info("cluster")["cluster_enabled"]:
            store.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            await_true(lambda: b"cluster_state:ok" in store.execute_command("CLUSTER", "INFO"))
        yield store


@twin(bugs.nothing_passes, of="READONLY", raises=(StoreError,))
@pytest.mark.parametrize("code", STATES)
def test_it_passes(
    connect: Connect, server: Server, store: redis.Redis, history: History, code: str
) -> None:
    """A failover would end every wait that meets it, with an error that wants an operator.

    One keeps a lease, and one waits; the server refuses for a while.
    """
    ours = connect(server.unix_url)
    kept = ours.acquire("kept", ttl=30, keep_alive=0.05)
    with Crowd() as crowd:
        # It ends meanwhile, so that the waiter looks; but not before the data is saved for a start.
        first = ours.acquire("orders", ttl=120 if code == "LOADING" else 0.3)
        crowd.queue(ours, "orders", wait=60)
        with STATES[code](server, store):
            begun = refusals(store)
            with pytest.raises(StoreUnavailable) as caught:
                ours.acquire("invoices")
            assert (caught.value.code, caught.value.maybe_applied) == (code, False)
            await_true(lambda: refusals(store) > begun + 12)
        first.release()
        history.healed(60)
        [served] = crowd.served()
    assert served.token == ours.inspect("orders").issued - 1
    assert kept.valid
    kept.renew()
    assert not ours.inspect("invoices").issued


@twin(bugs.any_word_passes)
@pytest.mark.parametrize(
    "words",
    ["error('READONLY is the account')", "error('READONLY is the account', 0)", "error('LOADING')"],
)
def test_a_caller_s_own_words(redis_client: redis.Redis, words: str) -> None:
    """A script of a caller that says READONLY would be run three times."""
    guard = RedisGuard(redis_client, "orders")
    with pytest.raises(StoreError) as caught:
        guard.script(5, f"redis.call('INCR', KEYS[1]) {words}", keys=["count"])
    assert not isinstance(caught.value, StoreUnavailable)
    assert redis_client.get("count") == b"1"


@twin(bugs.keeps_every_connection)
@pytest.mark.parametrize("keeping", [False, True], ids=["calls", "keeping"])
def test_a_connection_to_a_replica_is_not_used_again(
    connect: Connect, server: Server, store: redis.Redis, keeping: bool
) -> None:
    """Behind a name in the DNS that has moved, all would stay with the server of before."""
    ours = connect(server.unix_url)
    kept = ours.acquire("kept", ttl=30, keep_alive=0.05 if keeping else False)
    kept.renew()  # Now the script is known, and needs no second way.
    before = connections(store)
    with readonly(server, store):
        begun = refusals(store)
        if not keeping:
            with pytest.raises(StoreUnavailable):
                ours.acquire("invoices")
        await_true(lambda: refusals(store) > begun + 2)
        # Beside the test's own, the one that waits for calls is not met by the keeper's.
        assert len(before & connections(store)) <= (2 if keeping else 1)
    kept.renew()


def connections(store: redis.Redis) -> set[str]:
    """The ids of all that there are."""
    return {client["id"] for client in store.client_list()}


@twin(bugs.tells_a_refused_ping_as_silence)
def test_a_user_who_may_not_ping(
    connect: Connect, server: Server, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused sign of life would be taken for none, and the connection be made anew for ever."""
    monkeypatch.setattr("fencer._wakeups._PING", 0.05)
    rules = "on", ">secret", "~*", "&*", "+@all", "-ping"
    store.execute_command("ACL", "SETUSER", "mute", *rules)
    ours = connect(server.url.replace("redis://", "redis://mute:secret@"))
    lease = ours.acquire("orders", ttl=30)
    with Crowd() as crowd:
        crowd.queue(ours, "orders")
        listening, begun = subscribers(store), refusals(store)
        assert len(listening) == 1
        await_true(lambda: refusals(store) > begun + 5)
        assert subscribers(store) == listening
        lease.release()
        crowd.served()


def subscribers(store: redis.Redis) -> list[str]:
    """The ids of the connections that listen."""
    return [client["id"] for client in store.client_list(_type="pubsub")]
