"""A Cluster that loses nodes and moves slots: tokens rise, one holder at a time, nobody is left.

The twins at the end of each part do what others do; they must fail.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import redis
import redis.cluster

import fencer
from fencer import StaleToken, StoreUnavailable, _cluster, _cluster_wakeups
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults import twins
from tests.fix_api import Connect, connecting, on_threads
from tests.fix_cluster import NODE_TIMEOUT_MS, Cluster, Move, Node, errors, until


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


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as its holder saw it, in seconds of the machine's monotonic clock."""

    name: str
    token: int
    grant: str
    begun: float
    had: float
    until: float = float("inf")
    """When its holder ceased to believe in it, or began to release it."""


def check(grants: list[Grant]) -> None:
    """S1, S2, S4 as holders see it, and S7 of the project's list of invariants."""
    for name in {each.name for each in grants}:
        mine = sorted((each for each in grants if each.name == name), key=lambda each: each.token)
        tokens = [each.token for each in mine]
        assert len(set(tokens)) == len(tokens), f"S1: {name} {tokens}"
        for one, other in itertools.permutations(mine, 2):
            if one.had < other.begun:
                assert one.token < other.token, f"S2: {name}: {one} came before {other}"
        for one, other in itertools.pairwise(mine):
            assert one.until <= other.had, f"S4: {name}: {other} began while {one} believed"
    ids = {(each.grant, each.token) for each in grants}
    assert len({grant for grant, _ in ids}) == len(ids), "S7: a grant with two tokens"


def grant_of(lease: Any, begun: float, ended: float = float("inf")) -> Grant:
    """The record of a lease."""
    return Grant(lease.name, lease.token, lease.grant, begun, time.monotonic(), ended)


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


@pytest.mark.slow
def test_a_primary_dies_while_fifty_are_held_and_waited_for(
    cluster: Cluster, connect: Connect
) -> None:
    """Whoever waits at a node that dies would wait for ever, or be granted what another has."""
    holding, waiting = connect(holder="holding"), connect(holder="waiting")
    victim = cluster.primaries[0]
    names = cluster.names_of(victim, 25) + cluster.names_of(cluster.primaries[1], 25, "other")
    node = cluster.nodes[4].server
    record: list[Grant] = []
    with (
        redis.cluster.RedisCluster("127.0.0.1", node.port) as data,
        ThreadPoolExecutor(50) as pool,
    ):
        guards = {name: RedisGuard(data, name) for name in names}
        held, begins = [], {}
        for name in names:
            begun = time.monotonic()
            lease = holding.acquire(name, ttl=60.0)
            begins[name] = begun, time.monotonic()
            guards[name].execute(lease.token, "SET", f"{{{name}}}:data", "first")
            held.append(lease)

        def wait(name: str) -> Any:
            begun = time.monotonic()
            lease = waiting.acquire(name, ttl=60.0, wait=60.0)
            record.append(grant_of(lease, begun))
            return lease

        futures = [pool.submit(wait, name) for name in names]
        for name in names:
            until(partial(waits, holding, name), "nobody waits")
        heir = cluster.replica_of(victim)
        until(lambda: _offset(heir) == _offset(victim), "the replica lags")
        heir = cluster.fail_over(victim)
        for lease in held:
            ended = time.monotonic()
            until(partial(released, lease), "no release")
            record.append(Grant(lease.name, lease.token, lease.grant, *begins[lease.name], ended))
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
    check(record)


def lost_writes(cluster: Cluster, mint: Callable[[], int], name: str) -> list[int]:
    """Tokens, some of them minted on a primary that dies before its replica hears of them."""
    primary = cluster.owner(name)
    heir = cluster.replica_of(primary)
    tokens = [mint() for _ in range(3)]
    until(lambda: _offset(heir) == _offset(primary), "the replica lags")
    cluster.cut_off(heir, primary)
    tokens += [mint() for _ in range(3)]
    primary.server.kill()
    heir.do("CLUSTER", "FAILOVER", "TAKEOVER")

    def after() -> int:
        with contextlib.suppress(fencer.StoreError, redis.RedisError):
            return mint()
        return 0

    tokens += [until(after, "nothing is minted") for _ in range(3)]
    return tokens


def _offset(node: Node) -> int:
    info = node.client.info("replication")
    return int(info["master_repl_offset"])


def test_tokens_rise_past_grants_that_no_replica_heard_of(
    cluster: Cluster, client: fencer.Fencer
) -> None:
    """After a fail-over a token that was handed out already would be handed out again."""

    def mint() -> int:
        with client.acquire("orders", ttl=5.0) as lease:
            return lease.token

    tokens = lost_writes(cluster, mint, "orders")
    assert tokens == sorted(set(tokens))


def test_a_plain_counter_falls_where_the_test_above_holds(cluster: Cluster) -> None:
    """The test above would pass whatever the tokens are."""
    node = cluster.nodes[3].server
    with redis.cluster.RedisCluster("127.0.0.1", node.port) as data:
        tokens = lost_writes(cluster, twins.plain_counter(data), twins.COUNTER)
    assert tokens != sorted(set(tokens))


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


def test_slots_move_under_load(cluster: Cluster, connect: Connect) -> None:
    """A call that meets a moving slot would be lost, or be carried out twice."""
    clients = [connect(holder=f"c{number}") for number in range(3)]
    names = ["orders", "bills"]
    record: list[Grant] = []
    failed: list[str] = []
    over = threading.Event()

    def work(client: Any, name: str) -> None:
        while not over.is_set():
            begun = time.monotonic()
            try:
                lease = client.acquire(name, ttl=5.0, wait=20.0)
            except fencer.NotAcquired:
                continue
            had = time.monotonic()
            ended = time.monotonic()
            with contextlib.suppress(StoreUnavailable):  # It ends with its ttl.
                lease.release()
            record.append(Grant(name, lease.token, lease.grant, begun, had, ended))

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
    for _ in range(6):
        for name in names:
            Move(cluster, name).all_at_once()
            moves += 1
            enough = len(record) + 3
            until(lambda: len(record) > enough, "nobody is granted any more")  # noqa: B023
    over.set()
    for thread in threads:
        thread.join(60)
    assert failed == []
    check(record)
    after = sum(errors(node, code) for node in cluster.nodes for code in ("ASK", "TRYAGAIN"))
    print(f"{len(record)} grants, {moves} moves, {after - before} ASK and TRYAGAIN")
    assert after > before, "no call met a moving slot"


def woken(cluster: Cluster, holding: Any, waiting: Any) -> None:
    """One waits while the slot moves, and is to be served by a release after that."""
    lease = holding.acquire("orders", ttl=300.0)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(waiting.acquire, "orders", ttl=5.0, wait=5.0)
        until(partial(waits, holding, "orders"), "nobody waits")
        move = Move(cluster, "orders")
        move.all_at_once()
        with contextlib.suppress(AssertionError):  # The twin never listens there.
            until(lambda: not cluster.sharded or listens(move.target), "nobody listens", 1.0)
        time.sleep(0.5)  # It has looked by then, and will not look again by itself.
        lease.release()
        future.result(60).release()


def listens(node: Node) -> bool:
    """Whether anybody is subscribed to a channel of this node's shard."""
    return bool(node.do("PUBSUB", "SHARDCHANNELS"))


def test_a_waiter_follows_its_slot(cluster: Cluster, connect: Connect) -> None:
    """Whoever waits while a slot moves would be passed over, and not know it for 15 seconds."""
    woken(cluster, connect(), connect())


@pytest.mark.slow
@on_threads
def test_a_waiter_that_stays_where_it_was_is_not_woken(
    cluster: Cluster, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would pass though nobody moves."""
    if not cluster.sharded:
        pytest.skip("before Redis 7 the nodes pass every message on to each other")
    monkeypatch.setattr(_cluster_wakeups.Board, "place_all", lambda board: [])
    with pytest.raises(fencer.AcquireTimeout):
        woken(cluster, connect(), connect())


def kept_elsewhere(cluster: Cluster, client: Any) -> list[bool]:
    """Whether leases on two nodes are still valid after the third has stood still for a while."""
    frozen, *others = cluster.primaries
    names = [name for node in others for name in cluster.names_of(node, 3)]
    leases = [client.acquire(name, ttl=1.5, keep_alive=0.2) for name in names]
    stuck = [client.acquire(name, ttl=30.0, keep_alive=0.2) for name in cluster.names_of(frozen, 3)]
    for node in cluster.nodes:  # A fail-over takes the whole cluster down for a second or two.
        node.do("CONFIG", "SET", "cluster-node-timeout", 60_000)
    frozen.server.pause()
    try:
        time.sleep(3.5)
        return [lease.valid for lease in leases]
    finally:
        frozen.server.resume()
        for node in cluster.nodes:
            node.do("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT_MS)
        cluster.settle()
        for lease in (*leases, *stuck):
            with contextlib.suppress(fencer.StoreError):
                lease.release()


@pytest.mark.slow
def test_a_node_that_hangs_costs_no_lease_elsewhere(
    cluster: Cluster, client: fencer.Fencer
) -> None:
    """One node that stands still would take the leases of all others with it."""
    assert all(kept_elsewhere(cluster, client))


@pytest.mark.slow
def test_one_trip_after_the_other_loses_what_the_test_above_keeps(
    cluster: Cluster, shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would pass though every trip waits for the one before."""

    def scatter(nodes: Any, batches: Any) -> Any:
        return {where: nodes._wire(where).batch(batch) for where, batch in batches.items()}

    monkeypatch.setattr(_cluster.Nodes, "_scatter", scatter)
    with connecting("threads", shared_server) as make:
        assert not all(kept_elsewhere(cluster, make(cluster.url)))


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
