"""A Cluster that loses nodes and moves slots: tokens rise, one holder at a time, nobody is left."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import redis
import redis.cluster

import fencer
from fencer import StaleToken, StoreUnavailable
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults.bugs import plain_counter
from tests.faults.history import History
from tests.faults.planted import twin
from tests.fix_api import Connect, connecting, on_threads
from tests.fix_cluster import NODE_TIMEOUT_MS, Cluster, Move, Node, errors, until
from tests.topology import bugs

pytestmark = pytest.mark.usefixtures("history")


@pytest.fixture(params=["threads", "asyncio"])
def connect(
    request: pytest.FixtureRequest, shared_server: Server, cluster: Cluster
) -> Iterator[Connect]:
    """A maker of clients of the cluster, of each API in turn."""
    with connecting(request.param, shared_server) as make:

        def make_here(url: str | None = None, **options: Any) -> fencer.Fencer:
            return make(url or cluster.url, **options)

        yield make_here


@pytest.fixture
def client(connect: Connect) -> fencer.Fencer:
    """A client of the cluster."""
    return connect()


def waits(client: Any, name: str) -> bool:
    """Whether one is in line for a name."""
    return bool(client.inspect(name).waiters == 1)


def released(lease: Any) -> bool:
    """Whether the lease has been released; an outage meanwhile is a reason to ask again."""
    try:
        assert lease.release(), "it had been lost"
    except StoreUnavailable:
        return False
    return True


@twin(bugs.outage_is_a_rival)
@pytest.mark.slow
def test_a_primary_dies_while_fifty_are_held_and_waited_for(
    cluster: Cluster, connect: Connect, history: History
) -> None:
    """Whoever waits at a node that dies would wait for ever, or be granted what another has."""
    holding, waiting = connect(holder="holding"), connect(holder="waiting")
    victim = cluster.primaries[0]
    names = cluster.names_of(victim, 25) + cluster.names_of(cluster.primaries[1], 25, "other")
    node = cluster.nodes[4].server
    with (
        redis.cluster.RedisCluster("127.0.0.1", node.port) as data,
        ThreadPoolExecutor(50) as pool,
    ):
        guards = {name: RedisGuard(data, name) for name in names}
        held = [holding.acquire(name, ttl=60.0) for name in names]
        for lease in held:
            guards[lease.name].execute(lease.token, "SET", f"{{{lease.name}}}:data", "first")
        futures = [pool.submit(waiting.acquire, name, ttl=60.0, wait=60.0) for name in names]
        for name in names:
            until(partial(waits, holding, name), "nobody waits")
        heir = cluster.replica_of(victim)
        until(lambda: _offset(heir) == _offset(victim), "the replica lags")
        heir = cluster.fail_over(victim)
        history.healed(90.0)
        for lease in held:
            until(partial(released, lease), "no release")
        later = {lease.name: lease for lease in (future.result(90) for future in futures)}
        assert errors(heir, "NOSCRIPT") > 0, "it knew the scripts: nothing was tried"
        for old in held:
            new = later[old.name]
            assert new.token > old.token
            guard, key = guards[old.name], f"{{{old.name}}}:data"
            until(partial(guard.execute, new.token, "SET", key, "second"), "no write")
            with pytest.raises(StaleToken):
                guard.execute(old.token, "SET", key, "stale")
            assert data.get(key) == b"second"
            until(partial(released, new), "no release")


def _offset(node: Node) -> int:
    info = node.client.info("replication")
    return int(info["master_repl_offset"])


@twin(plain_counter)
def test_tokens_rise_past_grants_that_no_replica_heard_of(
    cluster: Cluster, client: fencer.Fencer
) -> None:
    """After a fail-over a token that was handed out already would be handed out again."""

    def mint() -> int:
        with client.acquire("orders", ttl=5.0) as lease:
            return lease.token

    def mint_now() -> int:
        with contextlib.suppress(fencer.StoreError, redis.RedisError):
            return mint()
        return 0

    primary = cluster.owner("orders")
    heir = cluster.replica_of(primary)
    tokens = [mint() for _ in range(3)]
    until(lambda: _offset(heir) == _offset(primary), "the replica lags")
    cluster.cut_off(heir, primary)
    tokens += [mint() for _ in range(3)]
    primary.server.kill()
    heir.do("CLUSTER", "FAILOVER", "TAKEOVER")
    tokens += [until(mint_now, "nothing is minted") for _ in range(3)]
    assert tokens == sorted(set(tokens))


@twin(bugs.sends_nothing_on)
def test_a_name_is_renewed_and_read_while_its_slot_moves(
    cluster: Cluster, client: fencer.Fencer
) -> None:
    """A lease would be lost, or its history hidden, for as long as the move of its slot takes."""
    lease = client.acquire("orders", ttl=30.0)
    move = Move(cluster, "orders")
    asked, told, again = (errors(move.source, "ASK"), errors(move.source, "MOVED"), tried(move))
    move.begin()
    lease.renew()
    lock, *others = sorted(move.keys(), key=lambda key: not key.endswith(":lock"))
    move.move(lock)
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(lease.renew)
        until(lambda: tried(move) > again, "nobody was told to try again")
        time.sleep(0.5)  # longer than the three tries of the protocol
        move.move(*others)
        renewing.result(30)
    assert [event.event for event in client.history("orders")] == ["grant"]
    assert errors(move.source, "ASK") > asked, "nobody was sent to the new node"
    move.end()
    lease.renew()
    assert errors(move.source, "MOVED") > told, "nobody was told that the slot has moved"
    assert lease.release()
    move = Move(cluster, "orders", move.source)
    move.all_at_once()
    assert client.acquire("orders").token > lease.token


def tried(move: Move) -> int:
    """How often either node of a move has said ``TRYAGAIN``."""
    return errors(move.source, "TRYAGAIN") + errors(move.target, "TRYAGAIN")


@twin(bugs.sends_nothing_on)
def test_slots_move_under_load(cluster: Cluster, connect: Connect) -> None:
    """A call that meets a moving slot would be lost, or be carried out twice."""
    clients = [connect(holder=f"c{number}") for number in range(3)]
    names = ["orders", "bills"]
    tokens: list[int] = []
    failed: list[str] = []
    over = threading.Event()

    def work(client: Any, name: str) -> None:
        while not over.is_set():
            try:
                lease = client.acquire(name, ttl=2.0, wait=20.0)
            except fencer.NotAcquired:
                continue
            with contextlib.suppress(StoreUnavailable):  # It ends with its ttl.
                lease.release()
            tokens.append(lease.token)

    def watched(client: Any, name: str) -> None:
        try:
            work(client, name)
        except Exception as error:
            failed.append(repr(error))

    threads = [
        threading.Thread(target=watched, args=(client, name))
        for client in clients
        for name in names
    ]
    before = sum(errors(node, code) for node in cluster.nodes for code in ("ASK", "TRYAGAIN"))
    for thread in threads:
        thread.start()
    moves = 0
    try:
        for name in names * 6:
            Move(cluster, name).all_at_once()
            moves += 1
            enough = len(tokens) + 3
            until(lambda: failed or len(tokens) > enough, "nobody is granted any more")  # noqa: B023
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert failed == []
    after = sum(errors(node, code) for node in cluster.nodes for code in ("ASK", "TRYAGAIN"))
    print(f"{len(tokens)} grants, {moves} moves, {after - before} ASK and TRYAGAIN")
    assert after > before, "no call met a moving slot"


def listens(node: Node) -> bool:
    """Whether anybody is subscribed to a channel of this node's shard."""
    return bool(node.do("PUBSUB", "SHARDCHANNELS"))


@twin(bugs.waits_where_it_was)
def test_a_waiter_follows_its_slot(cluster: Cluster, connect: Connect) -> None:
    """Whoever waits while a slot moves would be passed over, and not know it for 15 seconds."""
    if not cluster.sharded:
        pytest.skip("before Redis 7 the nodes pass every message on to each other")
    holding, waiting = connect(), connect()
    lease = holding.acquire("orders", ttl=300.0)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(waiting.acquire, "orders", ttl=5.0, wait=5.0)
        until(partial(waits, holding, "orders"), "nobody waits")
        move = Move(cluster, "orders")
        move.all_at_once()
        until(lambda: future.done() or listens(move.target), "nobody listens")
        time.sleep(0.5)  # It has looked by then, and will not look again by itself.
        lease.release()
        future.result(60).release()


@contextmanager
def standing_still(cluster: Cluster, node: Node) -> Iterator[None]:
    """A node is stopped for a while, and not taken for dead."""
    for each in cluster.nodes:  # A fail-over takes the whole cluster down for a second or two.
        each.do("CONFIG", "SET", "cluster-node-timeout", 60_000)
    node.server.pause()
    try:
        yield
    finally:
        node.server.resume()
        for each in cluster.nodes:
            each.do("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT_MS)
        cluster.settle()


@twin(bugs.one_trip_after_the_other)
@pytest.mark.slow
def test_a_node_that_hangs_costs_no_lease_elsewhere(
    cluster: Cluster, client: fencer.Fencer
) -> None:
    """One node that stands still would take the leases of all others with it."""
    frozen, *others = cluster.primaries
    names = [name for node in others for name in cluster.names_of(node, 3)]
    leases = [client.acquire(name, ttl=1.5, keep_alive=0.2) for name in names]
    stuck = [client.acquire(name, ttl=30.0, keep_alive=0.2) for name in cluster.names_of(frozen, 3)]
    with standing_still(cluster, frozen):
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            assert all(lease.valid for lease in leases)
            time.sleep(0.02)
    for lease in (*leases, *stuck):
        with contextlib.suppress(fencer.StoreError):
            lease.release()


@twin(bugs.one_errand_per_node)
@on_threads
def test_close_releases_what_is_just_being_renewed(cluster: Cluster, connect: Connect) -> None:
    """A service that stops while a node is slow would leave its leases held for all their ttl."""
    closing, other = connect(), connect()
    wire: Any = closing._wire
    lease = closing.acquire("orders", ttl=300.0, keep_alive=1.0)
    under_way = wire._nodes._under_way
    with ThreadPoolExecutor(1) as pool:
        with standing_still(cluster, cluster.owner("orders")):
            until(lambda: under_way, "no renew")
            closed = pool.submit(closing.close)
            until(lambda: closed.done() or len(under_way) > 1, "no release is sent")
        closed.result(30)
    assert not lease.valid
    until(lambda: not other.inspect("orders").held, "it is still held", 2.0)


@twin(bugs.outage_is_a_rival)
@pytest.mark.may_break("S4", why="the data is lost while a holder believes")
@pytest.mark.slow
@on_threads
def test_a_shard_that_is_gone_is_told_and_heals(cluster: Cluster, client: fencer.Fencer) -> None:
    """An operator would be told that somebody has the lease, or nothing at all."""
    victim = cluster.owner("orders")
    replica = cluster.replica_of(victim)
    elsewhere = next(node for node in cluster.primaries if node is not victim)
    [other] = cluster.names_of(elsewhere, 1)
    before = client.acquire("orders").token
    replica.server.kill()
    victim.server.kill()
    with pytest.raises(StoreUnavailable) as caught:
        client.acquire("orders")
    assert "no answer" in str(caught.value) or caught.value.code == "CLUSTERDOWN"
    until(lambda: "cluster_state:fail" in elsewhere.do("CLUSTER", "INFO"), "nobody notices")
    with pytest.raises(StoreUnavailable) as caught:
        client.acquire(other)
    assert (caught.value.code, caught.value.maybe_applied) == ("CLUSTERDOWN", False)
    assert "see CLUSTER INFO" in str(caught.value)
    victim.server.start()  # empty: nothing was saved

    def after() -> int:
        # Redis 6.2 has saved an older state for its replica, and may have loaded that.
        with contextlib.suppress(StoreUnavailable, fencer.NotAcquired):
            return client.acquire("orders").token
        return 0

    assert until(after, "nobody is granted") > before
