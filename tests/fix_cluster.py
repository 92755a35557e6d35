"""Fixtures: a real Cluster of three primaries and three replicas, each a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from fencer.embedded import Server
from fencer.errors import ServerFailed, StoreUnavailable

SLOTS = 16_384
PRIMARIES = 3

_BUS = 10_000
"""A node's port and that of its bus are so far apart, which Redis 6.2 cannot be told otherwise."""

_SECONDS = 30.0
"""How long to wait for the nodes to agree."""

NODE_TIMEOUT_MS = 1_500

_SETTINGS = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    # The tests that kill nodes want those that are left to be promoted, however late they are.
    "cluster-replica-validity-factor": "0",
    "cluster-migration-barrier": "10",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}


def until(condition: Callable[[], object], what: str, seconds: float = _SECONDS) -> Any:
    """Wait for a condition, through outages, and return what it came to."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, StoreUnavailable):
            if result := condition():
                return result
        assert time.monotonic() < deadline, f"after {seconds:g} s: {what}"
        time.sleep(0.02)


class Node:
    """One process of a cluster."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = redis.Redis.from_url(server.unix_url, decode_responses=True)
        self.address = f"127.0.0.1:{server.port}"
        self.id = self.do("CLUSTER", "MYID")

    def do(self, *words: str | int) -> Any:
        """Run a command on this node."""
        return self.client.execute_command(*words)

    def info(self, section: str, entry: str) -> str:
        """One value of ``INFO``."""
        return str(self.client.info(section)[entry])

    def knows(self) -> list[list[str]]:
        """The nodes that this one knows, in the words of ``CLUSTER NODES``."""
        return [line.split() for line in str(self.do("CLUSTER", "NODES")).splitlines()]

    def serves(self, slot: int) -> bool:
        """Whether a slot is this node's."""
        spans = [word.split("-") for word in self._slots() if not word.startswith("[")]
        return any(int(span[0]) <= slot <= int(span[-1]) for span in spans)

    def moving(self) -> list[int]:
        """The slots that are on their way to this node, or away from it."""
        words = (word for word in self._slots() if word.startswith("["))
        return [int(word[1:].partition("-")[0]) for word in words]

    def _slots(self) -> list[str]:
        return next(words for words in self.knows() if "myself" in words[2])[8:]

    def close(self) -> None:
        self.client.close()
        self.server.stop(timeout=0)


class Cluster:
    """Three primaries that share the slots, and a replica of each."""

    def __init__(self, replicas: bool = True) -> None:
        self.nodes = [_start() for _ in range(PRIMARIES * (2 if replicas else 1))]
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.do("CLUSTER", "MEET", "127.0.0.1", first.server.port)
        for number, node in enumerate(self.nodes[:PRIMARIES]):
            begin, end = (SLOTS * at // PRIMARIES for at in (number, number + 1))
            node.do("CLUSTER", "ADDSLOTS", *range(begin, end))
        until(self._all_meet, "not all nodes know each other")
        for number, node in enumerate(self.nodes[PRIMARIES:]):
            node.do("CLUSTER", "REPLICATE", self.nodes[number].id)
        self.settle()

    def _all_meet(self) -> bool:
        return all(len(node.knows()) == len(self.nodes) for node in self.nodes)

    @property
    def url(self) -> str:
        """For ``fencer.connect``: two of the nodes."""
        return "redis+cluster://" + ",".join(node.address for node in self.nodes[1:3])

    @property
    def sharded(self) -> bool:
        """Whether the nodes have sharded pub/sub: Redis 7 and Valkey do."""
        return int(self.nodes[0].info("server", "redis_version").partition(".")[0]) >= 7

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.server.running]

    @property
    def primaries(self) -> list[Node]:
        return [node for node in self.living if node.info("replication", "role") == "master"]

    def owner(self, name: str) -> Node:
        """The primary that serves a name."""
        slot = key_slot(name.encode())
        found = [node for node in self.living if node.serves(slot)]
        assert found, f"nobody serves {name!r}"
        return found[0]

    def replica_of(self, primary: Node) -> Node:
        """A replica that follows a primary."""

        def find() -> Node | None:
            for node in self.living:
                info = node.client.info("replication")
                follows = info["role"] == "slave" and info["master_port"] == primary.server.port
                if follows and info["master_link_status"] == "up":
                    return node
            return None

        return until(find, "no replica follows")  # type: ignore[no-any-return]

    def names_of(self, node: Node, count: int, prefix: str = "n") -> list[str]:
        """Names that this node serves."""
        names = (f"{prefix}{number}" for number in itertools.count())
        own = (name for name in names if node.serves(key_slot(name.encode())))
        return list(itertools.islice(own, count))

    def settle(self) -> None:
        """Wait until all slots are served, all living nodes agree on that, and replicas follow."""
        until(
            lambda: all("cluster_state:ok" in node.do("CLUSTER", "INFO") for node in self.living),
            "the cluster is not ok",
        )
        until(self._following, "the replicas do not follow")
        until(lambda: len({self._map(node) for node in self.living}) == 1, "the nodes disagree")

    def _following(self) -> bool:
        found = [node.client.info("replication") for node in self.living]
        return all(info["role"] == "master" or info["master_link_status"] == "up" for info in found)

    def _map(self, node: Node) -> str:
        found = node.do("CLUSTER", "SLOTS")
        return str(sorted((begin, end, primary[1]) for begin, end, primary, *_ in found))

    def fail_over(self, primary: Node) -> Node:
        """Kill a primary, and promote its replica without a vote. Returns the new primary."""
        heir = self.replica_of(primary)
        primary.server.kill()
        heir.do("CLUSTER", "FAILOVER", "TAKEOVER")
        until(lambda: heir.info("replication", "role") == "master", "the replica is not promoted")
        return heir

    def revive(self) -> None:
        """Start the nodes that were killed; each follows who has taken its place."""
        dead = [node for node in self.nodes if not node.server.running]
        for node in dead:
            node.server.start()
        if dead:
            self.settle()

    def cut_off(self, replica: Node, primary: Node) -> None:
        """Have a replica hear nothing more of its primary: it may not log in there any more."""
        replica.do("CONFIG", "SET", "masteruser", "nobody")
        replica.do("CONFIG", "SET", "masterauth", "nothing")
        primary.do("CLIENT", "KILL", "TYPE", "replica")
        until(
            lambda: replica.client.info("replication")["master_link_status"] == "down",
            "the replica still follows",
        )

    def mend(self) -> None:
        """Undo `cut_off`, and end the moves that a failed test has left in the middle."""
        for node in self.living:
            node.do("CONFIG", "SET", "masteruser", "")
            node.do("CONFIG", "SET", "masterauth", "")
        for node in self.primaries:
            for slot in node.moving():
                node.do("CLUSTER", "SETSLOT", slot, "STABLE")

    def flush(self) -> None:
        """Empty all nodes."""
        for node in self.primaries:
            node.do("FLUSHALL")
        until(lambda: not any(node.do("DBSIZE") for node in self.living), "replicas keep something")

    def renew(self) -> None:
        """Make it whole and empty again, whatever a test has done to it."""
        self.mend()
        self.revive()
        self.flush()

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class Move:
    """The move of one slot from a node to another, in steps, as ``redis-cli --cluster`` does it."""

    def __init__(self, cluster: Cluster, name: str, target: Node | None = None) -> None:
        self.cluster = cluster
        self.slot = key_slot(name.encode())
        self.source = cluster.owner(name)
        others = [node for node in cluster.primaries if node is not self.source]
        self.target = target or others[0]

    def begin(self) -> None:
        self.target.do("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.source.id)
        self.source.do("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.target.id)

    def keys(self) -> list[str]:
        found: list[str] = self.source.do("CLUSTER", "GETKEYSINSLOT", self.slot, 1_000)
        return found

    def move(self, *keys: str) -> None:
        for key in keys:
            self.source.do(
                "MIGRATE", "127.0.0.1", self.target.server.port, key, 0, 5_000, "REPLACE"
            )

    def end(self) -> None:
        for node in (self.target, self.source, *self.cluster.primaries):
            node.do("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.id)

    def all_at_once(self) -> None:
        """The whole move; keys that are written meanwhile go, too."""
        self.begin()
        while keys := self.keys():
            self.move(*keys)
        self.end()


def errors(node: Node, code: str) -> int:
    """How often a node has answered with an error; 0 on Redis 6.0 and older."""
    stats: Any = node.client.info("errorstats")
    return int(stats.get(f"errorstat_{code}", {"count": 0})["count"])


def _start() -> Node:
    for _ in range(20):
        port = random.randint(20_000, 22_700)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
        server = Server(persistence="none", port=port, settings=_SETTINGS)
        try:
            server.start()
        except ServerFailed:
            server.stop(timeout=0)
            continue
        return Node(server)
    raise AssertionError("no free port for a node and its bus")


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """One cluster for all tests that do it no harm, or mend what they break."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared cluster, whole and empty when the test begins."""
    shared_cluster.renew()
    return shared_cluster
