"""The servers that the doctor looks at: how each is asked, and which there are.

A node is asked by plain commands through a client of its own. What it refuses becomes `NotSeen`;
what it does not answer stays `StoreUnavailable`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from fencer._refusals import refusal, unreached
from fencer._steps import text
from fencer._wire import Wire
from fencer.doctor._records import Machine, NotSeen
from fencer.errors import StoreError, StoreUnavailable

_SAMPLES = 9
"""Round trips that are measured."""

_SECONDS = 2.0
"""How long a server that was only found may take to connect and to answer."""

_KEPT = ("username", "password", "credential_provider", "protocol")
"""What a client for a server that was only found takes from the client that led there."""


@dataclass(frozen=True, slots=True)
class Clock:
    """A server's clock, as seen from here; all in seconds.

    Attributes:
        ahead: by how much it is ahead of this machine's.
        unsure: by how much that may be wrong.
        round_trip: how long an answer takes.
    """

    ahead: float
    unsure: float
    round_trip: float


@dataclass
class Node:
    """One server.

    Attributes:
        client: how it is asked.
        address: how people call it.
        part: ``data`` or ``sentinel``.
    """

    client: redis.Redis
    address: str
    part: str = "data"
    _info: dict[str, dict[str, str]] = field(default_factory=dict)

    def ask(self, *words: str | int) -> Any:
        """Send a command that changes nothing; the reply as it came.

        Raises:
            NotSeen: the server refuses to answer.
            StoreUnavailable: there is no answer.
        """
        try:
            return Wire(self.client).command(words)
        except StoreError as error:
            # With a code it is a refusal, if one that passes; but what loads answers nothing.
            if isinstance(error, StoreUnavailable) and error.code in ("", "LOADING"):
                raise
            raise not_seen(str(words[0]), error) from error

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        if section not in self._info:
            lines = text(self.ask("INFO", section)).splitlines()
            parts = (line.partition(":") for line in lines if not line.startswith("#"))
            self._info[section] = {name: value for name, colon, value in parts if colon}
        return self._info[section]

    def config(self, name: str) -> str:
        """A setting; "" if the server does not know it."""
        return pairs(self.ask("CONFIG", "GET", name)).get(name, "")

    @property
    def replica(self) -> bool:
        """Whether it follows another server."""
        return self.info("replication").get("role") == "slave"

    @property
    def version(self) -> tuple[str, tuple[int, ...]]:
        """Its name and version, such as ``("Valkey", (9, 1, 2))``."""
        found = self.info("server")
        valkey = found.get("valkey_version")
        numbers = valkey or found.get("redis_version", "0")
        name = "Valkey" if valkey or found.get("server_name") == "valkey" else "Redis"
        return name, tuple(int(part) for part in numbers.split(".") if part.isdigit())

    @cached_property
    def clock(self) -> Clock:
        """Its clock. A sentinel has no TIME, but INFO tells it."""
        samples = [self._sample() for _ in range(_SAMPLES)]
        best = min(samples, key=lambda sample: sample.unsure)
        trips = statistics.median(sample.round_trip for sample in samples)
        return Clock(best.ahead, best.unsure, trips)

    def _sample(self) -> Clock:
        begun, wall = time.monotonic(), time.time()
        if self.part == "sentinel":
            self._info.pop("server", None)
            there = int(self.info("server").get("server_time_usec", "0")) / 1e6
        else:
            seconds, micros = self.ask("TIME")
            there = int(seconds) + int(micros) / 1e6
        took = time.monotonic() - begun
        # A server may look at its clock once a millisecond only.
        return Clock(there - (wall + took / 2), took / 2 + 0.001, took)

    def machine(self, first: Node) -> Machine:
        """What to show of it."""
        role, product, clock, trip = "server", None, None, None
        try:
            trip = self.clock.round_trip
            clock = self.clock.ahead - first.clock.ahead
        except (NotSeen, StoreUnavailable):
            pass
        try:
            name, numbers = self.version
            product = f"{name} {'.'.join(map(str, numbers))}"
            if self.part == "sentinel":
                role = "sentinel"
            else:
                role = "replica" if self.replica else "primary"
        except (NotSeen, StoreUnavailable):
            pass
        return Machine(self.address, role, product, trip, clock)


def not_seen(what: str, error: StoreError) -> NotSeen:
    """Why a command was refused."""
    if error.code == "NOPERM":
        return NotSeen(f"this user has no permission for {what}")
    return NotSeen(f"{what}: {error}")


def pairs(reply: Any) -> dict[str, str]:
    """A reply of names and values: a list in RESP2, a dict in RESP3."""
    if isinstance(reply, dict):
        return {text(name): text(value) for name, value in reply.items()}
    return {text(name): text(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}


@dataclass(frozen=True, slots=True)
class Group:
    """The servers behind one client.

    Attributes:
        kind: ``server``, ``sentinel`` or ``cluster``.
        nodes: those that hold data and were named, or are the cluster's own list.
        service: the name of the primary for its sentinels.
        sentinels: those that the client knows.
    """

    kind: str
    nodes: tuple[Node, ...]
    service: str = ""
    sentinels: tuple[Node, ...] = ()


def group_of(client: Any) -> Group:
    """The servers that a client speaks to.

    Raises:
        StoreUnavailable: a cluster, or all sentinels, cannot be reached; or no sentinel knows the
            service.
        StoreError: the sentinels refuse to answer.
    """
    if isinstance(client, RedisCluster):
        return Group("cluster", tuple(_cluster_nodes(client)))
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        asked = pool.sentinel_manager.sentinels
        sentinels = tuple(Node(each, address_of(each), part="sentinel") for each in asked)
        try:
            host, port = pool.sentinel_manager.discover_master(pool.service_name)
            where = address(text(host), int(port))
        except redis.RedisError as error:
            # The driver passes over a primary that is down; what the sentinels say of it counts.
            # It tells of those that were silent: of nobody else can more be heard.
            silent = str(error).count(")> - ") >= len(asked)
            named = None if silent else _named(sentinels, pool.service_name)
            if named is None:
                raise unreached(error, pool) from error
            where = named
        return Group("sentinel", (Node(client, where),), pool.service_name, sentinels)
    return Group("server", (Node(client, address_of(client)),))


def _named(sentinels: tuple[Node, ...], service: str) -> str | None:
    """Where the first sentinel that knows a service has its primary, up or down."""
    for node in sentinels:
        try:
            facts = pairs(node.ask("SENTINEL", "MASTER", service))
        except (NotSeen, StoreUnavailable):
            continue
        return address(facts["ip"], int(facts["port"]))
    return None


def _cluster_nodes(client: Any) -> Iterator[Node]:
    try:
        for each in client.get_nodes():
            own = client.get_redis_connection(each)
            yield Node(own, address(each.host, int(each.port)))
    except redis.RedisError as error:
        raise refusal(error, sent=False) from error


def replicas_of(node: Node, opened: Callable[[redis.Redis], object]) -> Iterator[Node]:
    """The replicas that a primary knows, each with a client that is passed to ``opened``."""
    for name, value in node.info("replication").items():
        if name.startswith("slave") and name[5:].isdigit():
            facts = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
            yield found_by(node, facts["ip"], int(facts["port"]), opened)


def found_by(
    node: Node, host: str, port: int, opened: Callable[[redis.Redis], object], part: str = "data"
) -> Node:
    """A server to which another one led; it is asked with the same name and password."""
    pool = node.client.connection_pool
    options = {key: pool.connection_kwargs[key] for key in _KEPT if key in pool.connection_kwargs}
    options |= {
        key: pool.connection_kwargs[key] for key in pool.connection_kwargs if key[:4] == "ssl_"
    }
    client = redis.Redis(
        host=host,
        port=port,
        ssl=issubclass(pool.connection_class, redis.SSLConnection),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=_SECONDS,
        socket_connect_timeout=_SECONDS,
        **options,
    )
    opened(client)
    return Node(client, address(host, port), part=part)


def address_of(client: redis.Redis) -> str:
    """Where a client connects to, without user and password."""
    known = client.connection_pool.connection_kwargs
    if known.get("path"):
        return f"unix:{known['path']}"
    return address(known.get("host", "localhost"), int(known.get("port", 6379)))


def address(host: str, port: int) -> str:
    """A host and a port as people write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
