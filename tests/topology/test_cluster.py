"""What a Cluster adds: addresses, slots, one connection per node that is listened to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio.cluster
import redis.cluster
from redis.exceptions import AskError, MovedError

import fencer
from fencer import InvalidArgument, StaleToken, StoreUnavailable, _cluster
from fencer._refusals import refusal
from fencer._routing import Address, Routing, Scatter, Send, slot_of
from fencer._scripts import Script
from fencer._steps import Batch, Call, Command, Sleep
from fencer.acl import rules
from fencer.embedded import Server
from fencer.errors import StoreError
from fencer.guards import AsyncRedisGuard, RedisGuard
from tests.cli.runs import Cli
from tests.faults.bugs import newcomers_overtake
from tests.faults.planted import twin
from tests.fix_api import connecting
from tests.fix_cluster import Cluster, Node, until
from tests.topology import bugs

A, B, C = ("a", 1), ("b", 2), ("c", 3)


@pytest.fixture
def driver(cluster: Cluster) -> Iterator[redis.cluster.RedisCluster]:
    """The driver's client of the cluster."""
    with redis.cluster.RedisCluster("127.0.0.1", cluster.nodes[0].server.port) as client:
        yield client


def test_a_client_of_the_driver_is_taken(driver: redis.cluster.RedisCluster) -> None:
    """Who has a cluster client already would have to make another one for Fencer."""
    with fencer.Fencer(driver) as client, client.acquire("orders") as lease:
        assert client.client is driver
        assert driver.get("fencer:{orders}:lock") == lease.holder.encode()


def test_a_client_of_asyncio_is_taken_and_closes_what_was_opened(cluster: Cluster) -> None:
    """Connections would stay open when their owner has closed the client."""

    async def use() -> None:
        async with redis.asyncio.cluster.RedisCluster(
            "127.0.0.1", cluster.nodes[0].server.port
        ) as driver:
            guard = AsyncRedisGuard(driver, "orders")
            async with fencer.AsyncFencer(driver) as client:
                lease = await client.acquire("orders")
                await guard.execute(lease, "SET", "orders", "1")
                assert await driver.get("orders") == b"1"
                await lease.release()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+cluster://127.0.0.1:{port}/3", "database 0 only"),
        ("redis+cluster:///", "HOST:PORT"),
        ("redis+cluster://127.0.0.1:many/", "cannot be used"),
        ("redis+cluster://127.0.0.1:{port}/?no_such_option=1", "cannot be used"),
    ],
)
def test_urls_that_cannot_be_used(cluster: Cluster, url: str, complaint: str) -> None:
    """A slip in a URL would show as an error of the driver, deep below."""
    with pytest.raises(InvalidArgument, match=complaint):
        fencer.connect(url.format(port=cluster.nodes[0].server.port))


def test_a_url_without_a_port_and_one_with_a_login(cluster: Cluster) -> None:
    """The default port, or the login, would be left out."""
    seen: dict[str, Any] = {}

    class Kind:
        ClusterNode = staticmethod(lambda host, port: (host, port))
        RedisCluster = staticmethod(lambda **options: seen.update(options))

    url = "rediss+cluster://me:s%40cret@one,[::1]:7001/0?socket_timeout=2.5"
    _cluster.from_cluster_url(Kind, url, {"socket_timeout": 1.0, "client_name": "x"})
    assert seen == {
        "startup_nodes": [("one", 6379), ("::1", 7001)],
        "username": "me",
        "password": "s@cret",
        "ssl": True,
        "socket_timeout": 2.5,
        "client_name": "x",
    }


def test_nobody_there(cluster: Cluster) -> None:
    """A cluster that is down would be reported by an exception of the driver."""
    with pytest.raises(StoreUnavailable) as caught:
        fencer.connect("redis+cluster://127.0.0.1:1")
    assert not caught.value.maybe_applied

    async def use() -> None:
        async with fencer.connect_async("redis+cluster://127.0.0.1:1") as client:
            await client.acquire("orders")

    with pytest.raises(StoreUnavailable):
        asyncio.run(use())


def test_what_a_cluster_excludes(cluster: Cluster, driver: redis.cluster.RedisCluster) -> None:
    """Keys in several slots, or a replica's old news, would be found out in mid-work."""
    with pytest.raises(InvalidArgument, match="hash_tag"):
        fencer.Fencer(driver, hash_tag=False)
    port = cluster.nodes[0].server.port
    strategy = redis.cluster.LoadBalancingStrategy.ROUND_ROBIN
    with (
        redis.cluster.RedisCluster(
            "127.0.0.1", port, load_balancing_strategy=strategy
        ) as reads_anywhere,
        pytest.raises(InvalidArgument, match="replicas"),
    ):
        fencer.Fencer(reads_anywhere)


def test_a_plain_client_is_told_that_there_is_a_cluster(cluster: Cluster) -> None:
    """A URL for one node would fail with a word that few know: MOVED."""
    name = cluster.names_of(cluster.primaries[1], 1)[0]
    with (
        fencer.connect(cluster.primaries[0].server.url) as client,
        pytest.raises(StoreError, match=r"redis\+cluster://") as caught,
    ):
        client.acquire(name)
    assert caught.value.code == "MOVED"


def test_a_guard_on_a_cluster(driver: redis.cluster.RedisCluster) -> None:
    """A guard's mark would be in another slot than its data, or not guard it."""
    guard = RedisGuard(driver, "ledger", tag="42")
    guard.transaction(7, [["SET", "{42}:balance", "1"], ["INCR", "{42}:version"]])
    with pytest.raises(StaleToken):
        guard.execute(6, "SET", "{42}:balance", "2")
    assert (driver.get("{42}:balance"), guard.highest()) == (b"1", 7)
    assert guard.script(7, "return redis.call('GET', KEYS[1])", keys=["{42}:balance"]) == b"1"
    with pytest.raises(InvalidArgument, match="tag="):
        guard.execute(7, "SET", "elsewhere", "2")
    assert driver.get("elsewhere") is None


def test_the_command_line(cluster: Cluster) -> None:
    """An operator could not look at the leases of a cluster."""
    cli = Cli(cluster.url)
    with fencer.connect(cluster.url, holder="me") as client:
        names = [cluster.names_of(node, 1)[0] for node in cluster.primaries]
        for name in names:
            client.acquire(name, ttl=60)
        assert dict(cli("status", names[0]).rows)["holder"] == "me"
        assert {row[0] for row in cli("ls").rows} >= set(names)
        assert cli("revoke", names[1]).code == 0
        assert not client.inspect(names[1]).held


def waits(client: Any, name: str) -> bool:
    """Whether one is in line for a name."""
    return bool(client.inspect(name).waiters == 1)


@pytest.mark.parametrize("end", ["revoke", "advance"])
def test_whoever_waits_hears_of_an_end_by_another(cluster: Cluster, end: str) -> None:
    """A waiter would find out by its own look only, 15 seconds later."""
    with fencer.connect(cluster.url) as client, ThreadPoolExecutor(1) as pool:
        lease = client.acquire("orders", ttl=300)
        waiting = pool.submit(client.acquire, "orders", wait=8)
        until(partial(waits, client, "orders"), "nobody waits")
        if end == "revoke":
            client.revoke("orders")
        else:
            client.advance("orders", lease.token + 10**9)
        assert waiting.result(60).token > lease.token


@twin(newcomers_overtake)
@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
@pytest.mark.usefixtures("history")
def test_a_newcomer_serves_who_waits(cluster: Cluster, driver: redis.cluster.RedisCluster) -> None:
    """A name that is free would go to a newcomer, past the line."""
    with fencer.connect(cluster.url, holder="first") as client, ThreadPoolExecutor(1) as pool:
        client.acquire("orders", ttl=300)
        waiting = pool.submit(client.acquire, "orders", wait=8)
        until(partial(waits, client, "orders"), "nobody waits")
        driver.delete("fencer:{orders}:lock")
        with fencer.Fencer(driver, holder="newcomer") as other:
            with pytest.raises(fencer.NotAcquired) as caught:
                other.acquire("orders").release()
            assert caught.value.holder == "first"
        assert waiting.result(60).valid


def subscribers(node: Node) -> int:
    """How many connections of a node are subscribed to something."""
    return len([each for each in node.client.client_list() if "P" in str(each["flags"])])


@pytest.mark.parametrize("api", ["threads", "asyncio"])
def test_one_connection_per_node_that_is_waited_at(
    cluster: Cluster, shared_server: Server, api: str
) -> None:
    """A thousand waiters would cost the cluster a thousand connections, or stay connected."""
    first, second, third = cluster.primaries
    names = [*cluster.names_of(first, 10), *cluster.names_of(second, 10)]
    with (
        connecting(api, shared_server) as make,
        ThreadPoolExecutor(len(names)) as pool,
        fencer.connect(cluster.url) as holding,
    ):
        client = make(cluster.url)
        held = [holding.acquire(name, ttl=60) for name in names]
        waiting = [pool.submit(client.acquire, name, wait=10) for name in names]
        for name in names:
            until(partial(waits, holding, name), "nobody waits")
        assert [subscribers(node) for node in (first, second, third)] == [1, 1, 0]
        for lease in held:
            lease.release()
        for future in waiting:
            future.result(60).release()
        until(lambda: subscribers(first) + subscribers(second) == 0, "somebody still listens")


# What `Routing` says, without a server: each step is answered by hand. There is no client here that
# could leave a record.


class Played:
    """A cluster of three that answers as it is told; times are real, pauses are not."""

    def __init__(self, *answers: Any) -> None:
        self.routing = Routing(lambda: [A], lambda host, port: (host, port))
        self.routing._take_in([[0, 8191, ["a", 1]], [8192, 16383, ["b", 2]]], A)
        self.answers = list(answers)
        self.sent: list[Any] = []
        self.lessons = 0

    def run(self, route: Any) -> Any:
        outcome: Any = None
        while True:
            try:
                if isinstance(outcome, StoreError):
                    step = route.throw(outcome)
                else:
                    step = route.send(outcome)
            except StopIteration as stop:
                return stop.value
            outcome = self.answer(step)

    def answer(self, step: Any) -> Any:
        match step:
            case Sleep(seconds):
                time.sleep(seconds)
                return None
            case Send(_, Command(("CLUSTER", "SLOTS"))):
                self.lessons += 1
                return [[0, 8191, ["a", 1]], [8192, 16383, ["b", 2]]]
            case Scatter(batches):
                self.sent.append({where: len(each.calls) for where, each in batches.items()})
                return {where: self.answers.pop(0) for where in batches}
        self.sent.append((step.where, step.asking))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def told(kind: Any, words: str, code: str) -> StoreError:
    """What a node's refusal becomes."""
    cause = kind(words, status_code=code)
    error = refusal(cause, "renew")
    error.__cause__ = cause
    return error


def call_in(half: int) -> Call:
    """A call whose slot is in the first half or the second."""
    key = next(f"k{n}" for n in range(100) if slot_of([f"k{n}"]) // 8192 == half)
    return Call(Script("renew", b"", ""), (key,), ())


@twin(bugs.asks_without_asking)
def test_a_call_is_sent_on() -> None:
    """A call would go to the wrong node for ever, or without the word that lets it in."""
    played = Played(
        told(MovedError, "5 b:2", "MOVED"), told(AskError, "5 c:3", "ASK"), ["RENEWED", 1]
    )
    assert played.run(played.routing.call(call_in(0))) == ["RENEWED", 1]
    assert played.sent == [(A, False), (B, False), (C, True)]


@twin(bugs.sends_on_without_pause)
def test_nodes_that_point_at_each_other() -> None:
    """A call would be sent to and fro for ever."""
    played = Played(told(MovedError, "5 b:2", "MOVED"))
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        played.run(played.routing.call(call_in(0)))
    assert (caught.value.code, caught.value.maybe_applied) == ("MOVED", False)
    assert time.monotonic() - started < 10
    assert len(played.sent) < 60, "and without a pause"


@twin(bugs.repeats_by_itself)
def test_a_lost_reply_is_not_asked_for_again() -> None:
    """A guard's commands, which may not be repeated, would be repeated."""
    lost = StoreUnavailable("no answer", maybe_applied=True)
    played = Played(lost)
    with pytest.raises(StoreUnavailable) as caught:
        played.run(played.routing.call(call_in(0)))
    assert caught.value.maybe_applied
    assert (played.sent, played.lessons) == ([(A, False)], 1)


@twin(bugs.sends_a_batch_once)
def test_a_batch_is_parted_by_node_and_put_together_again() -> None:
    """A renewal would be taken for that of another lease, or one fault for that of all."""
    calls = tuple(call_in(half) for half in (1, 0, 1, 0))
    moved, down = told(MovedError, "9000 a:1", "MOVED"), StoreUnavailable("x", maybe_applied=True)
    played = Played([moved, "third"], [down, "fourth"], ["first"])
    answers = played.run(played.routing.batch(Batch(calls, 1.0)))
    assert answers == ["first", down, "third", "fourth"]
    assert played.sent == [{B: 2, A: 2}, {B: 1}]


@twin(bugs.asks_for_no_map)
def test_a_slot_that_nobody_serves() -> None:
    """A call without a place to go would fail by an accident."""
    routing = Routing(lambda: [A], lambda host, port: (host, port))
    route = routing.call(call_in(0))
    assert route.send(None) == Send(A, Command(("CLUSTER", "SLOTS")))
    with pytest.raises(StoreUnavailable) as caught:
        route.send([[8192, 16383, ["b", 2]]])
    assert caught.value.code == "CLUSTERDOWN"


@twin(bugs.takes_every_host)
def test_a_node_that_does_not_know_its_own_host() -> None:
    """A cluster without announced addresses could not be used from another machine."""
    routing = Routing(lambda: [A], lambda host, port: (f"{host}.local", port))
    routing._take_in([[0, 16383, ["", 7], [None, 8]]], ("far", 7))
    assert routing.owner(0) == ("far.local", 7)


@twin(bugs.scans_one_node)
def test_a_scan_goes_from_node_to_node() -> None:
    """Names on one node would be left out, or told for ever."""
    played = Played(["5", ["k1"]], ["0", ["k2"]], ["0", ["k3"]])
    cursor, found = "0", []
    while True:
        cursor, keys = played.run(played.routing.command(("SCAN", cursor, "COUNT", 9)))
        found += keys
        if cursor == "0":
            break
    assert found == ["k1", "k2", "k3"]
    assert [where for where, _ in played.sent] == [A, A, B]


@twin(bugs.asks_anybody)
def test_who_failed_is_asked_last() -> None:
    """A node that hangs would be asked for the map again and again."""
    nodes: list[Address] = [A, B, C]
    routing = Routing(lambda: nodes, lambda host, port: (host, port))
    routing._suspects.add(B)
    assert all(routing._informants(None)[-1] == B for _ in range(20))
    assert routing._informants(C)[0] == C


def test_a_user_of_the_printed_rules(cluster: Cluster) -> None:
    """Who follows `fencer acl --cluster` would be denied something in the middle of a wait."""
    if not cluster.sharded:
        pytest.skip("Redis 6.2 knows no sharded channels, and refuses rules about them")
    for node in cluster.nodes:
        node.do("ACL", "SETUSER", "app", ">secret", *rules(cluster=True).words())
        node.do("ACL", "LOG", "RESET")
    try:
        url = cluster.url.replace("://", "://app:secret@")
        with fencer.connect(url) as first, fencer.connect(url) as second:
            lease = first.acquire("orders", ttl=30)
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(second.acquire, "orders", ttl=30, wait=60, keep_alive=True)
                until(lambda: first.inspect("orders").waiters, "it waits")
                lease.release()
                handed = waiting.result(60)
            assert handed.token > lease.token
            assert list(first.names()) == ["orders"]
        denied = {
            entry["object"] for node in cluster.nodes for entry in node.client.acl_log() or ()
        }
        assert denied <= {"client", "client|setinfo", "client|maint_notifications", "command"}
    finally:
        for node in cluster.nodes:
            node.do("ACL", "DELUSER", "app")
