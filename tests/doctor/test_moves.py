"""A slot of a Cluster that is being moved, and those that take over there."""

from __future__ import annotations

import pytest
import redis
from redis.cluster import ClusterNode

import fencer
from fencer._keys import Keyspace
from fencer.doctor import Severity, _groups, _leases, _survey, examine
from fencer.doctor._nodes import Node as Asked
from fencer.doctor._records import Report
from tests.fix_cluster import Cluster, Move


def look(cluster: Cluster) -> Report:
    """Examine it."""
    nodes = [ClusterNode("127.0.0.1", node.server.port) for node in cluster.nodes]
    with redis.RedisCluster(startup_nodes=nodes, socket_timeout=2) as client:
        return examine(client)


@pytest.mark.slow
def test_a_slot_that_is_half_moved(cluster: Cluster) -> None:
    """One name would hide all others, and nobody be told why it cannot be acquired."""
    with fencer.connect(cluster.url) as f:
        f.acquire("stuck", ttl=60).release()
        move = Move(cluster, "stuck")
        (beside,) = cluster.names_of(move.source, 1)
        (there,) = cluster.names_of(move.target, 1)
        for name, node in ((beside, move.source), (there, move.target)):
            f.acquire(name, ttl=60)
            node.do("PERSIST", f"fencer:{{{name}}}:lock")
        assert "slots" not in {each.check for each in look(cluster).findings}
        move.begin()
        move.move("fencer:{stuck}:token")
        report = look(cluster)
        with pytest.raises(fencer.StoreUnavailable):
            f.acquire("stuck")

        (found,) = (each for each in report.findings if each.check == "slots")
        assert found.severity == Severity.DANGER
        assert f"{move.slot}: " in found.danger
        assert f"{move.source.address} is migrating to {move.target.address}" in found.danger
        assert f"{move.target.address} is importing from {move.source.address}" in found.danger
        dangers = [each for each in report.findings if each.check == "endless-lock"]
        assert {name for each in dangers for name in each.names} == {beside, there}
        missed = [each for each in report.unseen if each.check == "leases"]
        assert {each.where for each in missed} == {move.source.address, move.target.address}
        assert all("'stuck'" in each.why for each in missed)

        asked = [Asked(node.client, node.address) for node in cluster.primaries]

        def pause(_: float) -> None:
            move.move(*move.keys())
            move.end()

        assert list(_groups.open_slots(asked, pause)) == [], "it came to its end meanwhile"
        f.acquire("stuck")
        report = look(cluster)
    assert "slots" not in {each.check for each in report.findings}
    assert report.unseen == ()


def test_a_slot_that_moves_meanwhile(cluster: Cluster) -> None:
    """A line that goes on at another node would be told as one that stands still."""
    move = Move(cluster, "moving")
    move.source.do("ZADD", "fencer:{moving}:queue", 1, "a" * 32)
    keyspace = Keyspace()
    node = Asked(move.source.client, move.source.address)
    found = _survey.survey(node, keyspace)
    assert "moving" in found.names
    _survey.second_look(node, keyspace, found, lambda _: move.all_at_once())
    assert list(_leases.judge(found, node, keyspace)) == []
    (why,) = found.missed()
    assert "'moving'" in why


def test_replicas_that_would_wait_for_nobody(cluster: Cluster) -> None:
    """The cure would last until the next failover."""
    replicas = {node.address for node in cluster.nodes} - {
        node.address for node in cluster.primaries
    }
    try:
        for node in cluster.primaries:
            node.do("CONFIG", "SET", "min-replicas-to-write", 1)
        found = [each for each in look(cluster).findings if each.check == "replicas"]
        assert {each.where for each in found if "on this replica" in each.danger} == replicas
        assert all("in its configuration file" in each.cure for each in found)
        for node in cluster.nodes:
            node.do("CONFIG", "SET", "min-replicas-to-write", 1)
        found = [each for each in look(cluster).findings if each.check == "replicas"]
        assert not any("on this replica" in each.danger for each in found)
    finally:
        for node in cluster.nodes:
            node.do("CONFIG", "SET", "min-replicas-to-write", 0)


def test_dense_tokens_on_a_cluster(cluster: Cluster) -> None:
    """A failover would issue tokens a second time, and nobody have been told."""
    with fencer.connect(cluster.url, tokens="dense") as f:
        f.acquire("small", ttl=30)
        found = [each for each in look(cluster).findings if each.check == "dense-tokens"]
    assert [(each.severity, each.names) for each in found] == [(Severity.DANGER, ("small",))]
    assert "failover" in found[0].danger
