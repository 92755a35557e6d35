"""What can be wrong between servers: strangers with the same leases, sentinels, clusters."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

import fencer
from fencer import embedded
from fencer.doctor import Severity, _groups, examine
from fencer.doctor._nodes import Node, pairs
from fencer.doctor._records import Report
from fencer.embedded import Server
from tests.cli.runs import Cli, eventually
from tests.doctor.places import checks, findings, look, only
from tests.doctor.test_servers import AT_ONCE, acknowledged, follow
from tests.fix_cluster import Cluster
from tests.fix_servers import MakeServer

HEIR = AT_ONCE | {"min-replicas-to-write": "1"}
"""For a replica that is to be as good a primary."""

ONCE = Retry(NoBackoff(), 0)
"""No second try: a server that is away stays away."""


def test_instances_on_different_servers(good: str, make_server: MakeServer) -> None:
    """Two leaders would each be right by their own server, and nobody would see both."""
    other = make_server(persistence="aof-always").unix_url
    with fencer.connect(good, holder="a") as one, fencer.connect(other, holder="b") as two:
        one.acquire("orders").release()
        finding = only(look(good, other))
        assert (finding.check, finding.severity) == ("split", Severity.NOTE)
        two.acquire("orders").release()
        finding = only(look(good, other))
        assert (finding.severity, finding.names) == (Severity.WARNING, ("orders",))
        one.acquire("orders", ttl=30)
        two.acquire("orders", ttl=30)
        finding = only(look(good, other))
    assert (finding.severity, finding.names) == (Severity.DANGER, ("orders",))
    assert "'a' (process" in finding.danger
    assert "'b' (process" in finding.danger


def test_two_urls_of_one_server(make_server: MakeServer) -> None:
    """An operator would be told of two servers where there is one."""
    server = make_server(persistence="aof-always")
    with fencer.connect(server.url) as f:
        f.acquire("orders", ttl=30)
    report = look(server.url, server.unix_url)
    assert (findings(report), len(report.machines)) == ([], 1)
    assert (report.names, report.held) == (1, 1)


def test_a_primary_and_its_replica(make_server: MakeServer) -> None:
    """A replica by mistake would be told as another server, or not at all."""
    primary = make_server(persistence="aof-always", settings=AT_ONCE)
    replica = make_server(persistence="aof-always", settings=AT_ONCE)
    follow(replica, primary.port)
    assert eventually(acknowledged(primary), 30)
    assert checks(look(primary.url, replica.url)) == {("role", "danger")}
    assert checks(look(replica.url, primary.url)) == {("role", "danger")}


# Sentinel


@pytest.fixture
def sentinel_program(tmp_path: Path) -> Path:
    """A program that starts a sentinel as `Server` starts a server."""
    program = tmp_path / "sentinel"
    program.write_text(f'#!/bin/sh\nexec "{embedded._find_binary(None)}" "$@" --sentinel\n')
    program.chmod(0o700)
    return program


def watched(server: Server, port: int, quorum: int = 2, down_after: int = 5_000) -> str:
    """Have a sentinel watch a primary; returns where it is."""
    with redis.Redis(port=server.port) as store:
        store.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", port, quorum)
        store.execute_command("SENTINEL", "SET", "main", "down-after-milliseconds", down_after)
    return f"127.0.0.1:{server.port}"


def look_through(*sentinels: Server, service: str = "main") -> Report:
    """Examine what sentinels lead to."""
    manager = Sentinel(
        [("127.0.0.1", each.port) for each in sentinels],
        sentinel_kwargs={"socket_timeout": 2, "retry": ONCE},
    )
    with manager.master_for(service, socket_timeout=2, retry=ONCE) as client:
        try:
            return examine(client)
        finally:
            for each in manager.sentinels:
                each.close()


@pytest.fixture
def primary(make_server: MakeServer) -> Server:
    """A primary with which nothing is wrong."""
    return make_server(persistence="aof-always", settings=AT_ONCE)


@pytest.mark.slow
def test_sentinels(make_server: MakeServer, sentinel_program: Path, primary: Server) -> None:
    """A group that cannot fail over would be taken for one that can."""
    first, second, third = (
        make_server(persistence="none", binary=sentinel_program) for _ in range(3)
    )
    replica = make_server(persistence="aof-always", settings=HEIR)
    follow(replica, primary.port)
    assert eventually(acknowledged(primary), 30)
    watched(first, primary.port)
    assert eventually(knows_heir(first), 30)
    report = look_through(first)
    assert checks(report) == {("sentinels", "warning"), ("quorum", "danger")}
    assert [each.role for each in report.machines] == ["primary", "replica", "sentinel"]

    for each in (second, third):
        watched(each, primary.port)

    def met() -> bool:
        with redis.Redis(port=first.port) as store:
            try:
                store.execute_command("SENTINEL", "CKQUORUM", "main")
            except redis.ResponseError:
                return False
            return len(store.execute_command("SENTINEL", "SENTINELS", "main")) == 2

    assert eventually(met, 60)
    report = look_through(first)
    assert (findings(report), report.unseen) == ([], ()), "the others are found by asking"
    assert len(report.machines) == 5

    second.kill()
    report = look_through(first, second, third)
    assert ("sentinels", "warning") in checks(report)
    assert {each.check for each in report.unseen} == {"sentinels"}


def knows_heir(sentinel: Server) -> Callable[[], bool]:
    """Whether a sentinel knows a replica that it could promote."""

    def known() -> bool:
        with redis.Redis(port=sentinel.port) as store:
            told: Any = store.execute_command("SENTINEL", "REPLICAS", "main")
        return any(pairs(each)["flags"] == "slave" for each in told)

    return known


@pytest.mark.slow
def test_sentinels_without_an_heir(
    make_server: MakeServer, sentinel_program: Path, primary: Server
) -> None:
    """The primary would die, nobody take its place, and the doctor have said that all is well."""
    sentinel = make_server(persistence="none", binary=sentinel_program)
    watched(sentinel, primary.port, quorum=1, down_after=1_000)
    with redis.Redis(port=sentinel.port) as hasty, contextlib.suppress(redis.ResponseError):
        hasty.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", 200)  # not on Redis 6.2

    def heirs() -> str:
        found = [each for each in look_through(sentinel).findings if each.check == "heirs"]
        assert all(each.severity == Severity.DANGER for each in found)
        return found[0].danger if found else ""

    assert "it has none" in heirs()
    replica = make_server(persistence="aof-always", settings=HEIR | {"replica-priority": "0"})
    with redis.Redis.from_url(replica.unix_url) as store:
        follow(replica, primary.port)
        assert eventually(lambda: "it has one, which" in heirs(), 30)
        store.config_set("min-replicas-to-write", 0)
        told = [each.where for each in look_through(sentinel).findings if each.check == "replicas"]
        assert f"127.0.0.1:{replica.port}" not in told, "it is never the primary"
        store.config_set("min-replicas-to-write", 1)
        store.config_set("replica-priority", 100)
        assert eventually(lambda: heirs() == "", 30)

        assert eventually(acknowledged(primary), 30)
        assert ("replicas", "warning") not in checks(look_through(sentinel))
        store.config_set("min-replicas-to-write", 0)
        (found,) = (each for each in look_through(sentinel).findings if each.check == "replicas")
        assert (found.severity, found.where) == (Severity.WARNING, f"127.0.0.1:{replica.port}")
        assert "in its configuration file" in found.cure
    replica.kill()
    assert eventually(lambda: "down" in heirs(), 30)


def test_a_primary_that_is_down(
    make_server: MakeServer, sentinel_program: Path, primary: Server
) -> None:
    """What the sentinels say would not be heard when it is needed most."""
    sentinel = make_server(persistence="none", binary=sentinel_program)
    watched(sentinel, primary.port, quorum=1, down_after=60_000)
    primary.kill()
    for sees_it in (False, True):
        if sees_it:
            watched_by = redis.Redis(port=sentinel.port)
            with watched_by:
                watched_by.execute_command(
                    "SENTINEL", "SET", "main", "down-after-milliseconds", 100
                )
            assert eventually(lambda: "s_down" in told_by(sentinel), 30)
        report = look_through(sentinel)
        assert ("primary", "danger") in checks(report)
        assert ("heirs", "danger") in checks(report)
        assert [each.role for each in report.machines] == ["sentinel"]
        dangers = [each.danger for each in report.findings]
        assert any("s_down" in each for each in dangers) == sees_it
        assert any(f"127.0.0.1:{primary.port}" in each.where for each in report.findings)


def told_by(sentinel: Server) -> str:
    """What a sentinel says of the primary."""
    with redis.Redis(port=sentinel.port) as store:
        return str(store.execute_command("SENTINEL", "MASTER", "main"))


def test_sentinels_that_lead_nowhere(
    make_server: MakeServer, sentinel_program: Path, primary: Server
) -> None:
    """Somebody with a wrong name, or whose sentinels are away, would not be told which it is."""
    sentinel = make_server(persistence="none", binary=sentinel_program)
    watched(sentinel, primary.port)
    with pytest.raises(fencer.StoreUnavailable, match="name no primary of 'nobody'") as raised:
        look_through(sentinel, service="nobody")
    assert f"127.0.0.1:{sentinel.port}" in str(raised.value)
    sentinel.kill()
    with pytest.raises(fencer.StoreUnavailable, match="1 of them did not answer") as raised:
        look_through(sentinel)
    assert f"127.0.0.1:{sentinel.port}" in str(raised.value)


def test_sentinels_that_lose_patience(
    make_server: MakeServer, sentinel_program: Path, primary: Server
) -> None:
    """Each pause of a busy server would lose grants, or each failover end every lease."""
    sentinel = make_server(persistence="none", binary=sentinel_program)
    watched(sentinel, primary.port, down_after=500)
    assert ("failover", "warning") in checks(look_through(sentinel))
    watched_by = redis.Redis(port=sentinel.port)
    with watched_by:
        watched_by.execute_command("SENTINEL", "SET", "main", "down-after-milliseconds", 30_000)
    assert ("failover", "note") in checks(look_through(sentinel))


def test_sentinels_that_do_not_agree(
    make_server: MakeServer, sentinel_program: Path, primary: Server
) -> None:
    """Clients would be led to two primaries, each of which grants."""
    one, other = (make_server(persistence="none", binary=sentinel_program) for _ in range(2))
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        watched(one, primary.port)
        watched(other, taken.getsockname()[1], down_after=1_000)

        def down() -> bool:
            with redis.Redis(port=other.port) as store:
                return "s_down" in str(store.execute_command("SENTINEL", "MASTER", "main"))

        assert eventually(down, 30)
        report = look_through(one, other)
    told = [each.danger for each in report.findings if each.check == "sentinels"]
    assert any("do not agree" in each for each in told)
    assert any("s_down" in each for each in told)


def test_a_sentinel_as_the_server(
    make_server: MakeServer, sentinel_program: Path, primary: Server
) -> None:
    """Somebody who names the sentinel's port would only see unknown commands."""
    sentinel = make_server(persistence="none", binary=sentinel_program)
    watched(sentinel, primary.port)
    report = look(sentinel.url)
    (finding,) = (each for each in report.findings if each.severity == Severity.DANGER)
    assert (finding.check, "redis+sentinel://" in finding.cure) == ("role", True)


# Cluster


@pytest.fixture(scope="module")
def one_node() -> Iterator[Server]:
    """One node that has all slots; a cluster takes two seconds to be ready."""
    with Server(persistence="aof-always", settings={"cluster-enabled": "yes"}) as server:
        with redis.Redis(port=server.port) as store:
            store.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
            assert eventually(lambda: "cluster_state:ok" in _state(store), 30)
        yield server


@pytest.fixture
def cluster(one_node: Server) -> Server:
    """The same, empty and as it was made."""
    with redis.Redis(port=one_node.port) as store:
        store.flushall()
        store.config_set("cluster-require-full-coverage", "yes")
        store.config_set("cluster-node-timeout", 15_000)
    return one_node


def _state(store: redis.Redis) -> str:
    told = store.execute_command("CLUSTER INFO")
    return "\n".join(f"{key}:{value}" for key, value in told.items())


def look_at_cluster(*servers: Server, **options: bool) -> Report:
    """Examine a cluster."""
    nodes = [ClusterNode("127.0.0.1", each.port) for each in servers]
    with redis.RedisCluster(
        startup_nodes=nodes, socket_timeout=2, require_full_coverage=False
    ) as client:
        return examine(client, **options)  # type: ignore[arg-type]


LONELY = {("cluster", "warning"), ("coverage", "warning"), ("failover", "note")}


def test_a_cluster_without_a_reserve(cluster: Server) -> None:
    """The loss of one node would stop every lease, and nobody would have been told."""
    report = look_at_cluster(cluster)
    assert (checks(report), report.unseen) == (LONELY, ())
    said = " ".join(each.danger for each in report.findings)
    assert "no replica" in said
    assert "Only 1 primary" in said
    with redis.Redis(port=cluster.port) as store:
        store.config_set("cluster-require-full-coverage", "no")
        store.config_set("cluster-node-timeout", 500)
        assert checks(look_at_cluster(cluster)) == {
            ("cluster", "warning"),
            ("failover", "warning"),
        }


def test_a_cluster_with_a_hole(cluster: Server) -> None:
    """Some names would be refused, and the doctor say that all is well."""
    with redis.Redis(port=cluster.port) as store:
        store.execute_command("CLUSTER", "DELSLOTS", 7)
        assert eventually(lambda: "cluster_state:fail" in _state(store), 30)
        assert ("cluster", "danger") in checks(look_at_cluster(cluster))
        store.execute_command("CLUSTER", "ADDSLOTS", 7)
        assert eventually(lambda: "cluster_state:ok" in _state(store), 30)


def test_the_leases_of_a_cluster(cluster: Server) -> None:
    """The names on a cluster would not be looked at."""
    with redis.Redis(port=cluster.port) as store:
        for name in ("a", "b"):
            store.set(f"fencer:{{{name}}}:lock", "x")
    report = look_at_cluster(cluster)
    assert ("endless-lock", "danger") in checks(report)
    assert report.names == 2


def test_a_cluster_and_keys_without_braces(cluster: Server) -> None:
    """Every call would be refused with CROSSSLOT."""
    report = look_at_cluster(cluster, hash_tag=False)
    assert any("no braces" in each.danger for each in report.findings)


def test_a_node_that_only_imports(cluster: Server, make_server: MakeServer) -> None:
    """A node that has no slots yet would count as one of the majority."""
    newcomer = make_server(persistence="none", settings={"cluster-enabled": "yes"})
    with redis.Redis(port=cluster.port) as store, redis.Redis(port=newcomer.port) as other:
        other.execute_command("CLUSTER", "MEET", "127.0.0.1", cluster.port)
        first, second = (each.execute_command("CLUSTER", "MYID") for each in (store, other))
        assert eventually(lambda: "16383" in str(other.execute_command("CLUSTER NODES")), 30)
        other.execute_command("CLUSTER", "SETSLOT", 7, "IMPORTING", first)
        found = list(_groups.cluster(Node(other, "newcomer"), 10.0, hash_tag=True))
        other.execute_command("CLUSTER", "SETSLOT", 7, "STABLE")
        newcomer.kill()
        store.execute_command("CLUSTER", "FORGET", second)
    assert any("Only 1 primary has slots" in each.danger for each in found)


def test_a_cluster_node_as_the_server(cluster: Server) -> None:
    """Most names would be refused with MOVED."""
    finding = only(look(cluster.url))
    assert (finding.check, finding.severity) == ("role", Severity.DANGER)
    assert "redis+cluster://" in finding.cure


def test_a_good_cluster(shared_cluster: Cluster) -> None:
    """Operators of a good cluster would be alarmed, and cease to listen."""
    shared_cluster.renew()

    def told() -> Any:
        return Cli(shared_cluster.url)("doctor", "--json").json

    # A primary does not tell of a replica before that has told how far it is.
    assert eventually(lambda: len(told()["machines"]) == 6, 30)
    report = told()
    assert sorted(each["role"] for each in report["machines"]) == ["primary"] * 3 + ["replica"] * 3
    found = {(each["check"], each["severity"]) for each in report["findings"]}
    # True of our test's cluster: it keeps nothing on disks, and its primaries grant alone.
    ours = {("persistence", "danger"), ("persistence", "warning"), ("replicas", "warning")}
    assert found - {("version", "note")} == ours
    assert report["unseen"] == []


@pytest.mark.slow
def test_a_cluster_with_a_lost_node(make_server: MakeServer) -> None:
    """A cluster that has lost its reserve would look as good as new."""
    settings = {"cluster-enabled": "yes"} | AT_ONCE
    cluster, replica = (make_server(persistence="aof-always", settings=settings) for _ in range(2))
    with redis.Redis(port=cluster.port) as store, redis.Redis(port=replica.port) as other:
        store.config_set("cluster-node-timeout", 1_000)
        store.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        store.execute_command("CLUSTER", "MEET", "127.0.0.1", replica.port)
        first = store.execute_command("CLUSTER", "MYID")
        assert eventually(lambda: first.decode() in str(other.execute_command("CLUSTER NODES")), 30)
        assert eventually(lambda: _becomes_replica(other, first), 30)
        assert eventually(lambda: "slave" in str(store.execute_command("CLUSTER NODES")), 30)

        def whole() -> bool:
            report = look_at_cluster(cluster, replica)
            lonely = any("no replica" in each.danger for each in report.findings)
            return not lonely and {each.role for each in report.machines} == {"primary", "replica"}

        assert eventually(whole, 30)
        replica.kill()
        assert eventually(lambda: "fail" in str(store.execute_command("CLUSTER NODES")), 30)
        report = look_at_cluster(cluster)
    said = " ".join(each.danger for each in report.findings)
    assert "lost" in said
    assert "no replica" in said


def _becomes_replica(node: redis.Redis, primary: bytes) -> bool:
    try:
        node.execute_command("CLUSTER", "REPLICATE", primary)
    except redis.ResponseError:
        return False
    return True
