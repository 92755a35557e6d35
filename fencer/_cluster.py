"""Leases on a Redis or Valkey Cluster: sends each step to the node that `fencer._routing` names.

- The driver's cluster client gives the nodes' connections. Its routing is not used: it repeats
  commands by itself, and whether one may be repeated is for `fencer._protocol` to say.
- A node that hangs holds up nobody's calls to another.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from redis.exceptions import RedisClusterException, RedisError

from fencer._drive import run, run_async
from fencer._fork import forget_in_child
from fencer._refusals import refusal
from fencer._routing import Address, Route, Routing, Scatter, Send, slot_of
from fencer._steps import Batch, Call, Command, Enter, Sleep, Step
from fencer._url_parts import Unreadable, reading
from fencer._wire import AsyncWire, Wire, confirmed, confirmed_async
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable

T = TypeVar("T")

SCHEMES = ("redis+cluster", "rediss+cluster")

_PORT = 6379

_IN_VAIN = "cannot be connected", "not covered", "could not agree"
"""What the driver says if it has asked nodes for the map. It says all else about its options."""

_NO_CLUSTER = "cluster support disabled", "unknown command"
"""What servers and sentinels answer to CLUSTER SLOTS that are no nodes of a Cluster."""

_GRACE = 0.1
"""Seconds by which a batch may be later than its own timeout."""


class Nodes:
    """The nodes of a ``redis.cluster.RedisCluster``: does what a `Routing` says, and blocks."""

    def __init__(self, client: redis.cluster.RedisCluster) -> None:
        _never_replicas(client)
        self._client = client
        self._wires: dict[Address, tuple[redis.Redis, Wire]] = {}
        self.routing = Routing(
            lambda: _addresses(client.nodes_manager.startup_nodes),
            lambda host, port: client.nodes_manager.remap_host_port(host, port),
        )
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """A forked child has none of its parent's threads."""
        self._under_way: set[tuple[Address, str]] = set()

    def run(self, route: Route[T]) -> T:
        """Go the way, and return what it comes to."""
        return run(route, self)

    def redis(self, where: Address) -> redis.Redis:
        """The driver's client for one node."""
        manager = self._client.nodes_manager
        node = self._client.get_node(*where)
        if node is None:  # as the driver itself does for a node that it only hears of
            node = redis.cluster.ClusterNode(*where, "primary")
            node = manager.nodes_cache.setdefault(node.name, node)
        return self._client.get_redis_connection(node)

    def do(self, step: Any) -> Any:
        """Do one step of the way."""
        match step:
            case Send(where, wanted, True):
                return self._ask(where, wanted)
            case Send(where, Call() as call):
                return self._wire(where).call(call)
            case Send(where, Command(words)):
                return self._wire(where).command(words)
            case Scatter(batches):
                return self._scatter(batches)
            case Sleep(seconds):
                return time.sleep(seconds)
        raise AssertionError(step)

    def _wire(self, where: Address) -> Wire:
        client = self.redis(where)
        known = self._wires.get(where)
        if known is None or known[0] is not client:
            known = self._wires[where] = client, Wire(client)
        return known[1]

    def _ask(self, where: Address, step: Call | Command) -> Any:
        wire = self._wire(where)
        with wire.lent(step.script.name if isinstance(step, Call) else None) as connection:
            connection.send_command("ASKING")
            connection.read_response()
            connection.send_command(*_words(step))
            reply = connection.read_response()
            if isinstance(step, Call) and step.confirm is not None:
                return confirmed(connection, step.confirm, reply, wire.driver)
            return reply

    def _scatter(self, batches: Mapping[Address, Batch]) -> dict[Address, list[Any]]:
        """A thread for each node: one that hangs, even in a connect, must not hold up the rest."""
        done: queue.SimpleQueue[tuple[Address, list[Any]]] = queue.SimpleQueue()
        answers: dict[Address, list[Any]] = {}
        waited_for = set()
        for where, batch in batches.items():
            errand = where, batch.calls[0].script.name  # A renew does not hold up a release.
            if errand in self._under_way:
                answers[where] = [_late(sent=False)] * len(batch.calls)
                continue
            self._under_way.add(errand)
            waited_for.add(where)
            work = threading.Thread(
                target=self._trip, args=(where, batch, done), name="fencer-trip", daemon=True
            )
            try:
                work.start()
            except RuntimeError:  # The interpreter is ending.
                self._trip(where, batch, done)
        until = time.monotonic() + max((b.timeout for b in batches.values()), default=0) + _GRACE
        while waited_for:
            try:
                where, outcomes = done.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            answers[where] = outcomes
            waited_for.discard(where)
        late = {where: [_late(sent=True)] * len(batches[where].calls) for where in waited_for}
        return answers | late

    def _trip(self, where: Address, batch: Batch, done: queue.SimpleQueue[Any]) -> None:
        try:
            try:
                outcomes = self._wire(where).batch(batch)
            except StoreError as error:
                outcomes = [error] * len(batch.calls)
            outcomes = self.run(self.routing.followed(where, batch, outcomes))
        finally:
            self._under_way.discard((where, batch.calls[0].script.name))
        done.put((where, outcomes))


class AsyncNodes:
    """The same for a ``redis.asyncio.cluster.RedisCluster``."""

    def __init__(self, client: redis.asyncio.cluster.RedisCluster) -> None:
        _never_replicas(client)
        self._client = client
        self._wires: dict[Address, tuple[_NodePool, AsyncWire]] = {}
        self.routing = Routing(
            lambda: _addresses(client.nodes_manager.startup_nodes),
            lambda host, port: client.nodes_manager.remap_host_port(host, port),
        )

    async def run(self, route: Route[T]) -> T:
        """Go the way, and return what it comes to."""
        return await run_async(route, self)

    async def redis(self, where: Address) -> redis.asyncio.Redis:
        """A client for one node; the cluster's client closes its connections."""
        return (await self._wire(where)).client

    async def do(self, step: Any) -> Any:
        """Do one step of the way."""
        match step:
            case Send(where, wanted, True):
                return await self._ask(where, wanted)
            case Send(where, Call() as call):
                return await (await self._wire(where)).call(call)
            case Send(where, Command(words)):
                return await (await self._wire(where)).command(words)
            case Scatter(batches):
                trips = (self._trip(where, batch) for where, batch in batches.items())
                return dict(zip(batches, await asyncio.gather(*trips), strict=True))
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
        raise AssertionError(step)

    async def _wire(self, where: Address) -> AsyncWire:
        try:
            await self._client.initialize()  # or its aclose() would close nothing
        except RedisClusterException as error:
            raise _unreachable(error) from error
        except Exception as error:
            raise refusal(error, sent=False) from error
        manager = self._client.nodes_manager
        node = self._client.get_node(*where)
        if node is None:
            node = redis.asyncio.cluster.ClusterNode(*where, "primary", **manager.connection_kwargs)
            node = manager.nodes_cache.setdefault(node.name, node)
        known = self._wires.get(where)
        if known is None or known[0].node is not node:
            pool = _NodePool(node)
            known = pool, AsyncWire(redis.asyncio.Redis(connection_pool=pool))
            self._wires[where] = known
        return known[1]

    async def _ask(self, where: Address, step: Call | Command) -> Any:
        wire = await self._wire(where)
        async with wire.lent(step.script.name if isinstance(step, Call) else None) as connection:
            await connection.send_command("ASKING")
            await connection.read_response()
            await connection.send_command(*_words(step))
            reply = await connection.read_response()
            if isinstance(step, Call) and step.confirm is not None:
                return await confirmed_async(connection, step.confirm, reply, wire.driver)
            return reply

    async def _trip(self, where: Address, batch: Batch) -> list[Any]:
        try:
            async with asyncio.timeout(batch.timeout + _GRACE):
                outcomes = await (await self._wire(where)).batch(batch)
                return await self.run(self.routing.followed(where, batch, outcomes))
        except TimeoutError:
            return [_late(sent=True)] * len(batch.calls)
        except StoreError as error:
            return [error] * len(batch.calls)


class _NodePool(redis.asyncio.ConnectionPool):
    """A pool of connections that belong to a node of the driver, which closes them."""

    def __init__(self, node: redis.asyncio.cluster.ClusterNode) -> None:
        super().__init__(node.connection_class, **node.connection_kwargs)
        self.node = node

    def make_connection(self) -> Any:
        return self.node.acquire_connection()


class ClusterWire(Wire):
    """Sends scripts to the nodes of a cluster, and blocks meanwhile."""

    def __init__(
        self, client: redis.cluster.RedisCluster, wakeups: Any = None, nodes: Nodes | None = None
    ) -> None:
        self.client: Any = client
        self._wakeups = wakeups
        self._nodes = nodes or Nodes(client)

    def do(self, step: Step) -> Any:
        """Carry out one step."""
        match step:
            case Enter(grant, seconds, name):
                wakeups: Any = self._wakeups
                return wakeups.enter(grant, seconds, name)
        return super().do(step)

    def place(self, key: str | bytes) -> Hashable:
        """The slot of a key."""
        return slot_of([key])

    def close(self) -> None:
        """Nothing is kept: the nodes' connections are the driver's."""

    def call(self, call: Call) -> Any:
        """Run a script and return its reply."""
        return self._nodes.run(self._nodes.routing.call(call))

    def command(self, words: tuple[str | int, ...]) -> Any:
        """Run a command that only reads, and return its reply as it came."""
        return self._nodes.run(self._nodes.routing.command(words))

    def batch(self, batch: Batch) -> list[Any]:
        """Run several scripts at once; for each its reply, or the error that it met."""
        return self._nodes.run(self._nodes.routing.batch(batch))


class AsyncClusterWire(AsyncWire):
    """The same on asyncio."""

    def __init__(
        self,
        client: redis.asyncio.cluster.RedisCluster,
        wakeups: Any = None,
        nodes: AsyncNodes | None = None,
    ) -> None:
        self.client: Any = client
        self._wakeups = wakeups
        self._nodes = nodes or AsyncNodes(client)

    async def do(self, step: Step) -> Any:
        """Carry out one step."""
        match step:
            case Enter(grant, seconds, name):
                wakeups: Any = self._wakeups
                return await wakeups.enter(grant, seconds, name)
        return await super().do(step)

    def place(self, key: str | bytes) -> Hashable:
        """The slot of a key."""
        return slot_of([key])

    async def close(self) -> None:
        """Nothing is kept: the nodes' connections are the driver's."""

    async def call(self, call: Call) -> Any:
        """Run a script and return its reply."""
        return await self._nodes.run(self._nodes.routing.call(call))

    async def command(self, words: tuple[str | int, ...]) -> Any:
        """Run a command that only reads."""
        return await self._nodes.run(self._nodes.routing.command(words))

    async def batch(self, batch: Batch) -> list[Any]:
        """Run several scripts at once."""
        return await self._nodes.run(self._nodes.routing.batch(batch))


def is_cluster_url(url: str) -> bool:
    """Whether a URL names a Cluster."""
    return url.strip().partition("://")[0].lower() in SCHEMES


def from_cluster_url(kind: Any, url: str, options: Mapping[str, Any]) -> Any:
    """Make the driver's client of a ``redis+cluster://user:password@host:port,host:port`` URL.

    Args:
        kind: ``redis.cluster`` or ``redis.asyncio.cluster``.
        url: with ``rediss+cluster`` the connections are encrypted.
        options: for the driver; those in the URL go before them.

    Raises:
        InvalidArgument: the URL or an option cannot be used.
        StoreUnavailable: no node answers. The driver for threads asks at once.
        StoreError: a node has refused, or is none of a Cluster.
    """
    with reading(url) as parts:
        if parts.path.strip("/") not in ("", "0"):
            raise Unreadable("a Cluster has database 0 only")
        nodes = parts.addresses("node", _PORT)
        given = redis.connection.parse_url(parts.for_driver("node"))
        if given.pop("connection_class", None) is not None:
            given["ssl"] = True
        for decided in ("host", "port"):
            given.pop(decided, None)
        if given.pop("db", 0) != 0:
            raise Unreadable("a Cluster has database 0 only")
        asked = {**options, **given}
        if kind is redis.cluster:  # It leaves out what it does not know.
            own = inspect.signature(redis.cluster.RedisCluster).parameters
            for option in asked.keys() - own.keys() - set(redis.cluster.REDIS_ALLOWED_KEYS):
                raise TypeError(f"unknown option {option!r}")
        seeds = [kind.ClusterNode(host, port) for host, port in nodes]
        try:
            return kind.RedisCluster(startup_nodes=seeds, **asked)
        except RedisClusterException as error:
            if not any(words in str(error) for words in _IN_VAIN):
                raise ValueError(str(error)) from error
            raise _unreachable(error) from error
        except RedisError as error:
            raise refusal(error, sent=False) from error


def _never_replicas(client: Any) -> None:
    if client.read_from_replicas or client.load_balancing_strategy is not None:
        raise InvalidArgument(
            "this cluster client reads from replicas, which may not know yet who has a lease: "
            "make one without read_from_replicas and load_balancing_strategy"
        )


def _addresses(nodes: Mapping[str, Any]) -> list[Address]:
    return [(node.host, int(node.port)) for node in list(nodes.values())]


def _words(step: Call | Command) -> tuple[Any, ...]:
    """The body, not the SHA: a refusal for want of the script would use up the ASKING."""
    if isinstance(step, Command):
        return step.words
    return ("EVAL", step.script.body, len(step.keys), *step.keys, *step.args)


def _late(*, sent: bool) -> StoreUnavailable:
    return StoreUnavailable("the node did not answer in time", maybe_applied=sent)


def _unreachable(error: RedisClusterException) -> StoreError:
    """What it means that the driver has found no cluster: each node's fault, for it, is an outage.

    It tells of the node that it has tried last.
    """
    fault = error.__cause__
    if isinstance(fault, RedisClusterException):  # So the driver calls any refusal of a node.
        fault = fault.__context__
    if isinstance(fault, RedisError):
        met = refusal(fault, sent=False)
        if not met.code and any(words in str(fault) for words in _NO_CLUSTER):
            return StoreError(
                f"the server is no node of a Cluster ({fault}): connect by redis://host:port, or "
                "to sentinels by redis+sentinel://host:port/service"
            )
        if met.code or not isinstance(met, StoreUnavailable):
            return met
    return StoreUnavailable(f"the cluster cannot be reached ({error})", maybe_applied=False)
