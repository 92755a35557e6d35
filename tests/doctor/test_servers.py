"""What can be wrong with a server: each danger is made on a real one, and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import fencer
from fencer import embedded
from fencer.doctor import Severity, Verdict, examine
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.cli.runs import eventually
from tests.doctor.places import checks, findings, look, only, open_client
from tests.faults.clock import ServerClock
from tests.fix_servers import MakeServer
from tests.topology.relay import Relay

AT_ONCE = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}


def test_nothing_is_wrong_with_a_good_server(good: str) -> None:
    """An operator would be alarmed for nothing, and soon not look any more."""
    with fencer.connect(good, holder="me") as f, fencer.connect(good) as other:
        f.acquire("idle").release()
        lease = f.acquire("orders", ttl=30)
        RedisGuard(f.client, "orders").check(lease)
        RedisGuard(f.client, "till", tag="42", name="orders").check(lease)
        with fencer.Election(other, "leader"), fencer.Election(f, "leader"):
            assert eventually(lambda: f.inspect("leader").waiters == 1)
            report = look(good)
    assert (findings(report), report.unseen) == ([], ())
    assert (report.names, report.held, report.shortest_ttl) == (3, 2, 10.0)
    (machine,) = report.machines
    assert machine.role == "primary"
    assert machine.product is not None
    assert machine.round_trip is not None
    assert machine.round_trip > 0


@pytest.mark.parametrize("options", [{"protocol": 3}, {"protocol": 2}, {"decode_responses": True}])
def test_it_reads_whatever_the_driver_makes_of_replies(
    good: str, store: redis.Redis, options: dict[str, Any]
) -> None:
    """The doctor would fail, or be blind, with some clients."""
    store.config_set("maxmemory-policy", "allkeys-lru")
    store.config_set("appendfsync", "no")
    with fencer.connect(good) as f, open_client(good, **options) as client:
        f.acquire("orders", ttl=30)
        store.persist("fencer:{orders}:lock")
        report = examine(client)
    assert checks(report) == {
        ("eviction", "note"),
        ("persistence", "warning"),
        ("endless-lock", "danger"),
    }
    assert report.unseen == ()


def test_it_changes_nothing(good: str, store: redis.Redis) -> None:
    """Looking would do harm."""
    with fencer.connect(good) as f:
        f.acquire("orders", ttl=30)
        before = {key: store.dump(key) for key in store.scan_iter()}
        look(good)
        assert {key: store.dump(key) for key in store.scan_iter()} == before


def test_an_old_server(good_server: Server, good: str) -> None:
    """Somebody with Redis 6.0 would only see that scripts fail."""
    with redis.Redis.from_url(good) as client:
        facts = told(client, "server")
    name = b"valkey_version" if "valkey_version" in facts else b"redis_version"
    real = facts[name.decode()].encode()
    for number, severity in ((b"6.0", Severity.DANGER), (b"6.2", Severity.NOTE)):
        true = name + b":" + real
        # Of the same length, since the reply says how long it is.
        claimed = name + b":" + (number + b".1111111")[: len(real)]

        def younger(piece: bytes, true: bytes = true, claimed: bytes = claimed) -> bytes:
            return piece.replace(true, claimed)

        with Relay(good.removeprefix("unix://").partition("?")[0], change=younger) as relay:
            report = look(f"redis://127.0.0.1:{relay.port}/0")
        (finding,) = (each for each in report.findings if each.check == "version")
        assert finding.severity == severity
        assert number.decode() in finding.danger


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_eviction(good: str, store: redis.Redis, policy: str) -> None:
    """A cache's server would be taken for one that keeps leases."""
    store.config_set("maxmemory-policy", policy)
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("eviction", Severity.NOTE), "no limit yet"
    store.config_set("maxmemory", "100mb")
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("eviction", Severity.DANGER)
    assert policy in finding.danger
    assert "100 MB" in finding.danger
    assert ("marks" in finding.consequence) == policy.startswith("allkeys")


def test_memory_that_is_full(good: str, store: redis.Redis) -> None:
    """Leases would be refused one day, and nobody would have been told."""
    used = told(store, "memory")["used_memory"]
    store.config_set("maxmemory", int(used * 1.06))
    assert checks(look(good)) <= {("memory", "warning"), ("memory", "danger")}
    store.config_set("maxmemory", 1)
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("memory", Severity.DANGER)
    store.config_set("maxmemory", used * 10)
    assert findings(look(good)) == []


@pytest.mark.parametrize(
    ("settings", "severity", "says"),
    [
        ({"appendonly": "no", "save": ""}, Severity.DANGER, "Nothing is kept"),
        ({"appendonly": "no", "save": "60 1"}, Severity.WARNING, "Only snapshots"),
        ({"appendfsync": "everysec"}, Severity.NOTE, "everysec"),
        ({"appendfsync": "no"}, Severity.WARNING, "appendfsync is no"),
    ],
)
def test_persistence(
    good: str, store: redis.Redis, settings: dict[str, str], severity: Severity, says: str
) -> None:
    """A server that forgets everything would be taken for one that does not."""
    for name, value in settings.items():
        store.config_set(name, value)
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("persistence", severity)
    assert says in finding.danger
    assert "in its configuration file" in finding.cure, "else the next start undoes it"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, ""),
        ({"appendonly": "no", "save": ""}, "appendonly is no"),
        ({"appendonly": "no", "save": "60 1"}, "appendonly is no"),
        ({"appendfsync": "everysec"}, "appendfsync is everysec"),
        ({"appendfsync": "no"}, "appendfsync is no"),
        ({"maxmemory": "100mb", "maxmemory-policy": "volatile-lru"}, "evict"),
    ],
)
def test_dense_tokens(good: str, store: redis.Redis, settings: dict[str, str], says: str) -> None:
    """An operator would be told that tokens go on rising, and see them begin at 1 again."""
    for name, value in settings.items():
        store.config_set(name, value)
    with fencer.connect(good) as f, fencer.connect(good, tokens="dense") as dense:
        for name in ("small", "smaller"):
            dense.acquire(name, ttl=30).release()
        f.acquire("orders", ttl=30)
        report = look(good)
        found = [each for each in report.findings if each.check == "dense-tokens"]
        if not settings:
            assert (findings(report), found) == ([], [])
            return
        assert [(each.severity, each.names) for each in found] == [
            (Severity.DANGER, ("small", "smaller"))
        ]
        assert says in found[0].danger
        for each in report.findings:
            assert "okens go on rising" not in each.consequence.replace("Time tokens", "")
        for name in ("small", "smaller"):
            f.acquire(name, ttl=30)
        assert "dense-tokens" not in {each.check for each in look(good).findings}, "the cure"


def test_a_disk_that_cannot_be_written(make_server: MakeServer) -> None:
    """Writes would be refused one day, and nobody would have been told."""
    server = make_server(persistence="rdb")
    (server.folder / "dump.rdb").mkdir()  # no file can take this place
    with redis.Redis.from_url(server.unix_url) as store:
        store.set("x", 1)
        store.bgsave()
        assert eventually(lambda: told(store, "persistence")["rdb_last_bgsave_status"] == "err")
    assert checks(look(server.unix_url)) >= {("disk", "danger"), ("persistence", "warning")}
    (server.folder / "dump.rdb").rmdir()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    with (
        Server(persistence="aof-always", settings=AT_ONCE) as primary,
        Server(persistence="aof-always", settings=AT_ONCE) as replica,
    ):
        follow(replica, primary.port)
        yield primary, replica


def told(store: redis.Redis, section: str) -> Any:
    """What INFO says."""
    return store.info(section)


def follow(replica: Server, port: int) -> None:
    """Make a server a replica, and wait until it hears its primary."""
    with redis.Redis.from_url(replica.unix_url) as store:
        store.replicaof("127.0.0.1", port)
        assert eventually(lambda: told(store, "replication")["master_link_status"] == "up", 30)


def acknowledged(primary: Server) -> Callable[[], bool]:
    """Whether the replica has answered lately, which a primary asks of a good one."""

    def answered() -> bool:
        with redis.Redis.from_url(primary.unix_url) as store:
            store.config_set("min-replicas-to-write", 1)
            facts: Any = store.info("replication")
        return bool(facts.get("min_slaves_good_slaves") == 1)

    return answered


def test_replicas_that_nobody_waits_for(pair: tuple[Server, Server]) -> None:
    """A primary that is cut off would go on granting, and the operator believe in its replicas."""
    primary, replica = pair
    with redis.Redis.from_url(primary.unix_url) as store:
        assert eventually(acknowledged(primary), 30)
        report = look(primary.url)
        assert (findings(report), report.unseen) == ([], ())
        assert [each.role for each in report.machines] == ["primary", "replica"]
        assert report.machines[1].address == f"127.0.0.1:{replica.port}"
        store.config_set("min-replicas-to-write", 2)
        finding = only(look(primary.url))
        assert (finding.check, finding.severity) == ("replicas", Severity.DANGER)
        store.config_set("min-replicas-to-write", 0)
        finding = only(look(primary.url))
        assert (finding.check, finding.severity) == ("replicas", Severity.WARNING)
        assert "in its configuration file" in finding.cure
        assert "on every server" in finding.cure


def test_dense_tokens_and_a_replica(pair: tuple[Server, Server]) -> None:
    """A failover would issue tokens a second time, and nobody have been told."""
    primary, _ = pair
    assert eventually(acknowledged(primary), 30)
    with fencer.connect(primary.unix_url, tokens="dense") as f:
        f.acquire("small", ttl=30).release()
        finding = only(look(primary.url))
        f.client.flushall()
    assert (finding.check, finding.severity) == ("dense-tokens", Severity.DANGER)
    assert "failover" in finding.danger


def test_the_replica_is_examined_too(pair: tuple[Server, Server]) -> None:
    """A failover would lead to a server that nobody has looked at."""
    primary, replica = pair
    with redis.Redis.from_url(replica.unix_url) as store:
        assert eventually(acknowledged(primary), 30)
        store.config_set("maxmemory-policy", "allkeys-lru")
        store.config_set("maxmemory", "100mb")
        try:
            finding = only(look(primary.url))
        finally:
            store.config_set("maxmemory", 0)
            store.config_set("maxmemory-policy", "noeviction")
    assert (finding.check, finding.where) == ("eviction", f"127.0.0.1:{replica.port}")


def test_a_replica_as_the_server(pair: tuple[Server, Server]) -> None:
    """Every call would be refused, and the doctor say that all is well."""
    primary, replica = pair
    finding = only(look(replica.url))
    assert (finding.check, finding.severity) == ("role", Severity.DANGER)
    assert f"127.0.0.1:{primary.port}" in finding.cure


def test_a_replica_that_hears_nothing(make_server: MakeServer) -> None:
    """A failover would go back to the day when the link broke."""
    primary = make_server(persistence="aof-always", settings=AT_ONCE)
    replica = make_server(persistence="aof-always", settings=AT_ONCE)
    follow(replica, primary.port)
    primary.stop()
    with redis.Redis.from_url(replica.unix_url) as store:
        assert eventually(lambda: told(store, "replication")["master_link_status"] == "down")
    assert checks(look(replica.url)) == {("role", "danger"), ("link", "warning")}


def test_a_replica_that_cannot_be_reached(make_server: MakeServer) -> None:
    """What was not looked at would count as good."""
    primary = make_server(persistence="aof-always", settings=AT_ONCE)
    replica = make_server(
        persistence="aof-always", settings=AT_ONCE | {"replica-announce-port": "1"}
    )
    follow(replica, primary.port)
    assert eventually(acknowledged(primary), 30)
    report = look(primary.url)
    assert findings(report) == []
    assert report.verdict == Verdict.UNSURE
    (missed,) = report.unseen
    assert (missed.check, missed.where) == ("replicas", "127.0.0.1:1")


@pytest.fixture
def clocked_pair(
    make_server: MakeServer, server_clock: ServerClock, tmp_path: Path
) -> tuple[Server, Server]:
    """A primary, and a replica whose clock can be set."""
    program = server_clock.program(embedded._find_binary(None))
    primary = make_server(persistence="aof-always", settings=AT_ONCE)
    replica = make_server(persistence="aof-always", settings=AT_ONCE, binary=program)
    follow(replica, primary.port)
    assert eventually(acknowledged(primary), 30)
    return primary, replica


def test_clocks_of_servers(clocked_pair: tuple[Server, Server], server_clock: ServerClock) -> None:
    """The one assumption of the first promise would be broken, and nobody have been told."""
    primary, replica = clocked_pair
    assert checks(look(primary.url)) == set()
    for jump, severity, says in (
        (-4, Severity.WARNING, "behind"),
        (-30, Severity.DANGER, "behind"),
        (+60, Severity.WARNING, "ahead"),
    ):
        server_clock.jump(jump)
        finding = only(look(primary.url))
        assert (finding.check, finding.severity) == ("clocks", severity)
        assert says in finding.danger
        assert finding.where == f"127.0.0.1:{replica.port}"


def test_clocks_count_by_the_shortest_ttl(
    clocked_pair: tuple[Server, Server], server_clock: ServerClock
) -> None:
    """Half a second would be called harmless where leases last for one, or bad for an hour's."""
    primary, _ = clocked_pair
    server_clock.jump(-4)
    with fencer.connect(primary.unix_url) as f:
        f.acquire("long", ttl=3600)
        assert checks(look(primary.url)) == set()
        f.acquire("short", ttl=30)
        assert checks(look(primary.url)) == {("clocks", "warning")}


def test_clocks_that_are_wrong_alike(make_server: MakeServer, server_clock: ServerClock) -> None:
    """Servers that agree with each other would be called apart, since this machine does not."""
    program = server_clock.program(embedded._find_binary(None))
    primary, replica = (
        make_server(persistence="aof-always", settings=AT_ONCE, binary=program) for _ in range(2)
    )
    follow(replica, primary.port)
    assert eventually(acknowledged(primary), 30)
    server_clock.jump(-100)
    assert checks(look(primary.url)) == {("own-clock", "note")}


def test_this_machines_clock(make_server: MakeServer, server_clock: ServerClock) -> None:
    """A wrong clock would be noticed when it is set right, with leases held."""
    program = server_clock.program(embedded._find_binary(None))
    server = make_server(persistence="aof-always", binary=program)
    server_clock.jump(3_600)
    finding = only(look(server.unix_url))
    assert (finding.check, finding.severity) == ("own-clock", Severity.NOTE)
    assert "ahead" in finding.danger


def test_a_server_that_is_down(make_server: MakeServer) -> None:
    """A server that does not answer would be reported as healthy."""
    server = make_server()
    server.kill()
    begun = time.monotonic()
    with pytest.raises(fencer.StoreUnavailable):
        look(server.url)
    assert time.monotonic() - begun < 60
    with pytest.raises(fencer.InvalidArgument):
        examine()


def test_a_client_that_may_hang(good: str) -> None:
    """An application would hang for longer than its lease lasts."""
    with fencer.connect(good) as f, redis.Redis.from_url(good, socket_timeout=None) as client:
        f.acquire("orders", ttl=30)
        assert checks(examine(client)) == {("timeout", "note")}
        assert checks(examine(client, timeouts=False)) == set()
        assert checks(look(good)) == set()
