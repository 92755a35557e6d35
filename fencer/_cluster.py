"""Leases on a Redis or Valkey Cluster: to which node a call goes, and what happens when slots move.

Everything about the map of the slots lives here. Its rules:

- The driver's cluster client gives the nodes' connections. Its routing is not used: it repeats
  commands by itself, and whether one may be repeated is for `fencer._protocol` to say.
- One map per client, learned by ``CLUSTER SLOTS`` from any node that answers.
- ``MOVED``, ``ASK`` and ``TRYAGAIN`` say that nothing was done. Such a call is sent on, for a short
  while at most.
- Any other fault of a node is a reason to learn the map anew, and is then told to the protocol.
- A node that hangs holds up nobody's calls to another.

`Routing` says where things go and touches no socket; `Nodes` and `AsyncNodes` do what it says.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from redis.crc import key_slot
from redis.exceptions import AskError, RedisClusterException, RedisError

from fencer._drive import run, run_async
from fencer._fork import forget_in_child
from fencer._refusals import refusal
from fencer._steps import Batch, Call, Command, Enter, Sleep, Step, text
from fencer._wire import AsyncWire, Wire, confirmed, confirmed_async
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable

Address: TypeAlias = tuple[str, int]
T = TypeVar("T")

SLOTS = 16_384
SCHEMES = ("redis+cluster", "rediss+cluster")

_PATIENCE = 1.0
"""Seconds for which a call that is sent on from node to node, or told to try again, is sent."""

_PAUSE = 0.02
"""Seconds before a call is sent on for a second time: the nodes do not agree yet."""

_RELEARN = 0.1
"""Seconds at least between two lessons about the map."""

_ROUNDS = 4
"""How often the calls of one batch that were sent on are put together anew."""

_GRACE = 0.1
"""Seconds by which a batch may be later than its own timeout."""

_PASSING = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY"})
"""Refusals that say nothing about the lease, and pass by themselves."""


@dataclass(frozen=True, slots=True)
class Send:
    """Have a node do a step. With ``asking`` it is one to which the slot is being moved."""

    where: Address
    step: Call | Command
    asking: bool = False


@dataclass(frozen=True, slots=True)
class Scatter:
    """Have several nodes do a batch each, at once. Answered with each one's outcomes."""

    batches: Mapping[Address, Batch]


Route: TypeAlias = Generator[Send | Scatter | Sleep, Any, T]


class Routing:
    """The map of the slots, and the way of each call. Any thread may use it.

    Args:
        seeds: the nodes that the driver knows to begin with.
        remap: the address at which a client reaches a node that names itself so.
    """

    def __init__(
        self,
        seeds: Callable[[], Iterable[Address]],
        remap: Callable[[str, int], Address],
    ) -> None:
        self._seeds = seeds
        self._remap = remap
        self._owners: list[Address | None] = [None] * SLOTS
        self._known: set[Address] = set()
        self._suspects: set[Address] = set()
        self._learned = -1.0
        self.on_change: list[Callable[[], None]] = []
        """Called when a slot has another owner than before; must not block."""

    def owner(self, slot: int) -> Address | None:
        """The node that serves a slot, as far as is known."""
        return self._owners[slot]

    def primaries(self) -> list[Address]:
        """The nodes that serve slots, in the order of these."""
        return list(dict.fromkeys(owner for owner in self._owners if owner))

    def find(self, slot: int) -> Route[Address]:
        """The node that serves a slot; asks for it if it is not known."""
        if self._owners[slot] is None:
            yield from self.learn(always=True)
        found = self._owners[slot]
        if found is None:
            raise StoreUnavailable(
                f"no node of the cluster serves slot {slot}: see CLUSTER SLOTS there",
                maybe_applied=False,
                code="CLUSTERDOWN",
            )
        return found

    def call(self, call: Call) -> Route[Any]:
        """Run a script on the node that has its keys."""
        return self._sent(slot_of(call.keys), call)

    def command(self, words: tuple[str | int, ...]) -> Route[Any]:
        """Run a command on the node that has its key; a ``SCAN`` on one node after the other."""
        if words[0] == "SCAN":
            return self._scanned(str(words[1]), words[2:])
        return self._sent(slot_of([str(words[1])]), Command(words))

    def _sent(self, slot: int, step: Call | Command) -> Route[Any]:
        where, asking = (yield from self.find(slot)), False
        until, times = time.monotonic() + _PATIENCE, 0
        while True:
            try:
                return (yield Send(where, step, asking))
            except StoreError as error:
                if error.code not in ("MOVED", "ASK", "TRYAGAIN"):
                    yield from self.doubt(where, error)
                    raise passing(error) from error.__cause__
                if time.monotonic() > until:
                    raise passing(error) from error.__cause__
                times += 1
                where, asking = yield from self._directed(where, slot, error)
                if error.code == "TRYAGAIN" or times > 2:
                    yield Sleep(_PAUSE)

    def _directed(
        self, where: Address, slot: int, error: StoreError
    ) -> Route[tuple[Address, bool]]:
        """Where to send a call that a node would not do."""
        if error.code == "TRYAGAIN":  # Half of its keys are elsewhere: the owner knows by then.
            return (yield from self.find(slot)), False
        there = self.pointed(error.__cause__, where)
        if error.code == "ASK":
            return there, True
        self.moved(slot, there)
        yield from self._learn_quietly(there)
        return there, False

    def pointed(self, error: BaseException | None, where: Address) -> Address:
        """The node that a ``MOVED`` or ``ASK`` of the node ``where`` points at."""
        assert isinstance(error, AskError)
        return self._remap(error.host or where[0], error.port)

    def moved(self, slot: int, owner: Address) -> None:
        """Take note that a slot has another owner."""
        self._known.add(owner)
        if self._owners[slot] != owner:
            self._owners[slot] = owner
            self._tell()

    def _scanned(self, cursor: str, rest: tuple[str | int, ...]) -> Route[list[Any]]:
        """A cursor is the current node's, and the nodes that were visited, that one last."""
        at, _, path = cursor.partition("@")
        if not path:
            yield from self.learn(always=True)
            path = _shown(self.primaries()[0])
        where = _address(path.rpartition(",")[2])
        try:
            following, keys = yield Send(where, Command(("SCAN", at, *rest)))
        except StoreError as error:
            yield from self.doubt(where, error)
            raise passing(error) from error.__cause__
        if text(following) != "0":
            return [f"{text(following)}@{path}", keys]
        visited = path.split(",")
        left = [node for node in map(_shown, self.primaries()) if node not in visited]
        return [f"0@{path},{left[0]}" if left else "0", keys]

    def batch(self, batch: Batch) -> Route[list[Any]]:
        """Run scripts, on all nodes at once; for each its reply, or the `StoreError` it met."""
        outcomes: list[Any] = [None] * len(batch.calls)
        left = list(range(len(outcomes)))
        for times in range(_ROUNDS):
            groups: dict[Address, list[int]] = {}
            for place in left:
                try:
                    where = yield from self.find(slot_of(batch.calls[place].keys))
                except StoreError as error:
                    outcomes[place] = error
                else:
                    groups.setdefault(where, []).append(place)
            batches = {
                where: Batch(tuple(batch.calls[place] for place in places), batch.timeout)
                for where, places in groups.items()
            }
            answers = yield Scatter(batches)
            for where, places in groups.items():
                for place, outcome in zip(places, answers[where], strict=True):
                    outcomes[place] = outcome
            left = [place for place in left if _code(outcomes[place]) in ("MOVED", "TRYAGAIN")]
            if not left:
                break
            if times:
                yield Sleep(_PAUSE)
        return [passing(item) if isinstance(item, StoreError) else item for item in outcomes]

    def followed(self, where: Address, batch: Batch, outcomes: list[Any]) -> Route[list[Any]]:
        """What is done at once about the outcomes of one node, while others may still be at it."""
        faults = [error for error in outcomes if isinstance(error, StoreError)]
        if faults:
            yield from self.doubt(where, faults[0])
        for place, outcome in enumerate(outcomes):
            if _code(outcome) == "ASK":
                try:
                    outcomes[place] = yield from self.call(batch.calls[place])
                except StoreError as error:
                    outcomes[place] = error
        return outcomes

    def doubt(self, where: Address, error: StoreError) -> Route[None]:
        """Learn the map anew if the fault may be one of a node that has lost its slots."""
        if isinstance(error, StoreUnavailable) and not error.code:
            self._suspects.add(where)
        if isinstance(error, StoreUnavailable) or error.code in _PASSING:
            yield from self._learn_quietly()

    def _learn_quietly(self, first: Address | None = None) -> Route[None]:
        try:
            yield from self.learn(first)
        except StoreError:
            pass  # The fault that led here is told.

    def learn(self, first: Address | None = None, *, always: bool = False) -> Route[None]:
        """Ask a node for the map, unless that was done just now.

        Raises:
            StoreError: no node has told it.
        """
        now = time.monotonic()
        if not always and now - self._learned < _RELEARN:
            return
        self._learned = now
        failure: StoreError | None = None
        for where in self._informants(first):
            try:
                reply = yield Send(where, Command(("CLUSTER", "SLOTS")))
            except StoreError as error:
                self._suspects.add(where)
                failure = error
            else:
                self._suspects.discard(where)
                return self._take_in(reply, where)
        if failure is not None and not isinstance(failure, StoreUnavailable):
            raise failure
        raise StoreUnavailable("no node of the cluster answers", maybe_applied=False) from failure

    def _informants(self, first: Address | None) -> list[Address]:
        """Whom to ask for the map: at random, but those last who have failed before."""
        nodes = list(self._known | set(self._seeds()))
        random.shuffle(nodes)
        nodes.sort(key=lambda node: (node in self._suspects, node != first))
        return nodes

    def _take_in(self, reply: Sequence[Any], teller: Address) -> None:
        owners: list[Address | None] = [None] * SLOTS
        known = set()
        for begin, end, *nodes in reply:
            # A node that does not know its own host is at the one where it was asked.
            addresses = [
                self._remap(host if host not in ("", "?") else teller[0], port)
                for host, port in ((text(node[0] or ""), int(node[1])) for node in nodes)
            ]
            owners[begin : end + 1] = [addresses[0]] * (end + 1 - begin)
            known.update(addresses)
        changed, self._owners, self._known = owners != self._owners, owners, known
        if changed:
            self._tell()

    def _tell(self) -> None:
        for listener in self.on_change:
            listener()


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
        pool = self.redis(where).connection_pool
        script = step.script.name if isinstance(step, Call) else None
        try:
            connection = pool.get_connection()
        except RedisError as error:
            raise refusal(error, script, sent=False) from error
        try:
            connection.send_command("ASKING")
            connection.read_response()
            connection.send_command(*_words(step))
            reply = connection.read_response()
            if isinstance(step, Call) and step.confirm is not None:
                return confirmed(connection, step.confirm, reply, self._wire(where).driver)
            return reply
        except RedisError as error:
            raise refusal(error, script, sent=script is not None) from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

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
        except RedisError as error:
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
        pool = (await self.redis(where)).connection_pool
        script = step.script.name if isinstance(step, Call) else None
        try:
            connection: Any = await pool.get_connection()
        except RedisError as error:
            raise refusal(error, script, sent=False) from error
        try:
            await connection.send_command("ASKING")
            await connection.read_response()
            await connection.send_command(*_words(step))
            reply = await connection.read_response()
            if isinstance(step, Call) and step.confirm is not None:
                driver = (await self._wire(where)).driver
                return await confirmed_async(connection, step.confirm, reply, driver)
            return reply
        except RedisError as error:
            raise refusal(error, script, sent=script is not None) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

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


def slot_of(keys: Sequence[str | bytes]) -> int:
    """The slot of all these keys.

    Raises:
        InvalidArgument: they are in several; nothing was sent.
    """
    slots = {key_slot(key.encode() if isinstance(key, str) else key): key for key in keys}
    if len(slots) > 1:
        one, other, *_ = slots.values()
        raise InvalidArgument(
            f"the keys {one!r} and {other!r} are in different slots of the cluster, so no script "
            "can use both: give them the same {hash tag}, and name it to the guard as tag="
        )
    return next(iter(slots))


def passing(error: StoreError) -> StoreError:
    """What an error comes to: a refusal that passes by itself is an outage, and undid nothing."""
    if error.code not in _PASSING or isinstance(error, StoreUnavailable):
        return error
    outage = StoreUnavailable(str(error), maybe_applied=False, code=error.code)
    outage.__cause__ = error.__cause__
    return outage


def is_cluster_url(url: str) -> bool:
    """Whether a URL names a Cluster."""
    return url.partition("://")[0] in SCHEMES


def from_cluster_url(kind: Any, url: str, options: Mapping[str, Any]) -> Any:
    """Make the driver's client of a ``redis+cluster://user:password@host:port,host:port`` URL.

    Args:
        kind: ``redis.cluster`` or ``redis.asyncio.cluster``.
        url: with ``rediss+cluster`` the connections are encrypted.
        options: for the driver.

    Raises:
        InvalidArgument: the URL or an option cannot be used.
        StoreUnavailable: no node answers. The driver for threads asks at once.
    """
    try:
        parts = urlsplit(url)
        login, _, hosts = parts.netloc.rpartition("@")
        if parts.path.strip("/") not in ("", "0"):
            raise ValueError("a Cluster has database 0 only")
        nodes = [_host_and_port(item) for item in hosts.split(",")]
        plain = (
            f"{parts.scheme.partition('+')[0]}://{login}{'@' if login else ''}{_netloc(nodes[0])}"
        )
        given = redis.connection.parse_url(f"{plain}?{parts.query}" if parts.query else plain)
        if given.pop("connection_class", None) is not None:
            given["ssl"] = True
        for known in ("host", "port"):
            given.pop(known)
        asked = {**options, **given}
        if kind is redis.cluster:  # It leaves out what it does not know.
            own = inspect.signature(redis.cluster.RedisCluster).parameters
            for option in asked.keys() - own.keys() - set(redis.cluster.REDIS_ALLOWED_KEYS):
                raise TypeError(f"unknown option {option!r}")
        seeds = [kind.ClusterNode(host, port) for host, port in nodes]
        return kind.RedisCluster(startup_nodes=seeds, **asked)
    except RedisClusterException as error:
        if "cannot be connected" in str(error) or "not covered" in str(error):
            raise _unreachable(error) from error
        raise InvalidArgument(f"the URL or a driver option cannot be used: {error}") from error
    except (ValueError, TypeError, OSError) as error:
        raise InvalidArgument(f"the URL or a driver option cannot be used: {error}") from error


def _host_and_port(item: str) -> Address:
    parts = urlsplit(f"//{item}")
    if not parts.hostname:
        raise ValueError("a Cluster's URL is redis+cluster://HOST:PORT,HOST:PORT")
    return unquote(parts.hostname), 6379 if parts.port is None else parts.port


def _netloc(node: Address) -> str:
    return f"[{node[0]}]:{node[1]}" if ":" in node[0] else f"{node[0]}:{node[1]}"


def _never_replicas(client: Any) -> None:
    if client.read_from_replicas or client.load_balancing_strategy is not None:
        raise InvalidArgument(
            "this cluster client reads from replicas, which may not know yet who has a lease: "
            "make one without read_from_replicas and load_balancing_strategy"
        )


def _addresses(nodes: Mapping[str, Any]) -> list[Address]:
    return [(node.host, int(node.port)) for node in list(nodes.values())]


def _shown(where: Address) -> str:
    return f"{where[0]}:{where[1]}"


def _address(shown: str) -> Address:
    host, _, port = shown.rpartition(":")
    return host, int(port)


def _words(step: Call | Command) -> tuple[Any, ...]:
    """The body, not the SHA: a refusal for want of the script would use up the ASKING."""
    if isinstance(step, Command):
        return step.words
    return ("EVAL", step.script.body, len(step.keys), *step.keys, *step.args)


def _code(outcome: Any) -> str:
    return outcome.code if isinstance(outcome, StoreError) else ""


def _late(*, sent: bool) -> StoreUnavailable:
    return StoreUnavailable("the node did not answer in time", maybe_applied=sent)


def _unreachable(error: RedisClusterException) -> StoreUnavailable:
    return StoreUnavailable(f"the cluster cannot be reached ({error})", maybe_applied=False)
