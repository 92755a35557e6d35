"""Pub/sub on a Cluster: one connection to each node that serves names which are waited for.

``PUBLISH`` in a script counts the listeners of its own node, so a waiter listens at the node that
serves its name. Where the server has sharded pub/sub (Redis 7, Valkey) it does so on a channel in
the name's slot; on Redis 6.2 on the client's plain channel.

`Board` has the rules; `ThreadClusterWakeups` and `TaskClusterWakeups` do what it says:

- A name is listened to at the node that serves it, and nowhere else; when the map of the slots
  changes, its waiters move.
- Whoever begins to listen somewhere, or ceases to, is told to look: it may have missed something.
- Only a connection's own reader makes it and reads it; others may write a subscription to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from redis.exceptions import AskError, RedisError, ResponseError

from fencer._cluster import AsyncNodes, Nodes
from fencer._fork import forget_in_child
from fencer._keys import Keyspace
from fencer._refusals import refusal
from fencer._routing import Address, Routing, passing, slot_of
from fencer._steps import Wakeup, text, wakeup
from fencer.errors import InvalidArgument, StoreError

_POLL = 0.2
"""Seconds for which a connection is read before its reader looks whether it is still wanted."""

_IDLE = 1.0
"""Seconds for which a connection outlives the last waiter."""

_BROKEN = 0.2
"""Seconds before a broken connection is made anew."""

_CONFIRM = 2.0
"""Seconds within which a node must confirm a subscription."""

_AGAIN = 1.0
"""Seconds after which a subscription that was not confirmed is asked for again."""

_LOOK = Wakeup("LOOK")


class _Inbox(Protocol):
    def put_nowait(self, item: Wakeup, /) -> object: ...


I = TypeVar("I", bound=_Inbox)  # noqa: E741
P = TypeVar("P", redis.client.PubSub, redis.asyncio.client.PubSub)


@dataclass(slots=True, eq=False)
class Waited(Generic[I]):
    """A name that is waited for."""

    name: str
    slot: int
    channel: str
    sharded: bool
    inboxes: dict[str, I] = field(default_factory=dict)
    at: Address | None = None
    asked: float = 0.0
    heard: bool = False
    """Whether the node ``at`` has confirmed the subscription."""

    def look(self) -> None:
        """Tell its waiters that they may have missed something."""
        for inbox in self.inboxes.values():
            inbox.put_nowait(_LOOK)


@dataclass(frozen=True, slots=True)
class Order:
    """What to say to a node: listen to a channel, or cease to."""

    where: Address
    channel: str
    sharded: bool
    begin: bool

    @property
    def words(self) -> tuple[str, str]:
        """The command."""
        verb = "SUBSCRIBE" if self.begin else "UNSUBSCRIBE"
        return ("S" if self.sharded else "") + verb, self.channel


class Board(Generic[I]):
    """Who waits for what, and where that is listened to. Its owner holds a lock around each method.

    Every connection is subscribed to ``home``, the client's plain channel: it is the first word on
    a new one, and all that a node without sharded pub/sub needs.

    Args:
        keyspace: the keys of the client.
        routing: the map of the slots.
    """

    def __init__(self, keyspace: Keyspace, routing: Routing) -> None:
        if not keyspace.hash_tag:
            raise InvalidArgument(
                "hash_tag=False excludes a Cluster: without the braces the keys of one name are "
                "in several slots"
            )
        self._keyspace = keyspace
        self._routing = routing
        self._id = secrets.token_hex(8)
        self.home = keyspace.channel(self._id)
        self.inboxes: dict[str, I] = {}
        self._grants: dict[str, Waited[I]] = {}
        self._names: dict[str, Waited[I]] = {}
        self._plain: set[Address] = set()
        """The nodes without sharded pub/sub."""

    def slot(self, name: str) -> int:
        """The slot of a name."""
        return slot_of([self._keyspace.of(name).lock])

    def enter(self, grant: str, name: str, inbox: I) -> Waited[I]:
        """Have a grant wait for a name."""
        waited = self._names.get(name)
        if waited is None:
            slot = self.slot(name)
            sharded = self._routing.owner(slot) not in self._plain
            channel = self._keyspace.channel(self._id, name) if sharded else self.home
            waited = self._names[name] = Waited(name, slot, channel, sharded)
        self.inboxes[grant] = waited.inboxes[grant] = inbox
        self._grants[grant] = waited
        return waited

    def leave(self, grant: str) -> list[Order]:
        """Have a grant wait no longer."""
        waited = self._grants.pop(grant, None)
        if waited is None:
            return []
        del self.inboxes[grant], waited.inboxes[grant]
        if waited.inboxes:
            return []
        del self._names[waited.name]
        return self._away(waited)

    def at(self, where: Address) -> list[Waited[I]]:
        """What is listened to at a node, or should be."""
        return [waited for waited in self._names.values() if waited.at == where]

    def place(self, waited: Waited[I]) -> list[Order]:
        """Listen to a name where it is served, unless that has been asked for just now."""
        owner, now = self._routing.owner(waited.slot), time.monotonic()
        if owner is None or (waited.at == owner and (waited.heard or now < waited.asked + _AGAIN)):
            return []
        orders = self._away(waited) if waited.at != owner else []
        waited.at, waited.heard, waited.asked = owner, False, now
        return [*orders, Order(owner, waited.channel, waited.sharded, begin=True)]

    def place_all(self) -> list[Order]:
        """Listen to every name where it is served by now."""
        return [order for waited in self._names.values() for order in self.place(waited)]

    def broken(self, where: Address) -> None:
        """A connection broke: whatever was to be heard there may have been missed."""
        for waited in self.at(where):
            waited.heard, waited.asked = False, 0.0
            waited.look()

    def is_plain(self, where: Address) -> None:
        """A node has no sharded pub/sub; its connection hears the plain channel already."""
        self._plain.add(where)
        for waited in self.at(where):
            waited.sharded, waited.channel, waited.heard = False, self.home, True
            waited.look()

    def hear(self, where: Address, message: Any) -> list[Order]:
        """Pass on what a node said; what to say to it in return."""
        kind, channel = message["type"], text(message["channel"])
        if kind in ("message", "smessage"):
            grant, heard = wakeup(message["data"])
            if grant in self.inboxes:
                self.inboxes[grant].put_nowait(heard)
            return []
        if kind == "subscribe" and channel == self.home:
            return [order for waited in self.at(where) for order in self._connected(waited, where)]
        for waited in self.at(where):
            if waited.channel == channel and waited.sharded:
                waited.look()
                if kind == "ssubscribe":
                    waited.heard = True
                elif kind == "sunsubscribe":
                    # The slot has moved, or this answers an order that has been reversed since. The
                    # node knows: it subscribes us again, or says where the slot is.
                    return self._connected(waited, where)
        return []

    def _connected(self, waited: Waited[I], where: Address) -> list[Order]:
        """Listen to a name on a connection that is new, or new to it."""
        waited.heard, waited.asked = not waited.sharded, time.monotonic()
        if waited.heard:
            waited.look()
            return []
        return [Order(where, waited.channel, sharded=True, begin=True)]

    def _away(self, waited: Waited[I]) -> list[Order]:
        if waited.at is None or not waited.sharded:
            return []
        return [Order(waited.at, waited.channel, sharded=True, begin=False)]


class _Listener(Generic[P]):
    """The connection to one node, and who reads it."""

    def __init__(self) -> None:
        self.reader: Any = None
        self.pubsub: P | None = None
        """Set while it is connected."""
        self.failure: RedisError | StoreError | None = None

    @property
    def connection(self) -> Any:
        """What orders are sent on; ``None`` while it is not connected.

        Not by way of the driver's pub/sub object, which would make the connection anew, and meet
        its reader at that.
        """
        connection = self.pubsub.connection if self.pubsub is not None else None
        return connection if connection is not None and connection.is_connected else None


class ThreadClusterWakeups:
    """The connections, each read by a thread.

    Args:
        client: the cluster's client.
        keyspace: the keys of the client.
    """

    def __init__(self, client: redis.cluster.RedisCluster, keyspace: Keyspace) -> None:
        self.nodes = Nodes(client)
        self.nodes.routing.on_change.append(self._move)
        self._keyspace = keyspace
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew: in a forked child neither the threads nor the parent's waiters exist."""
        self._board: Board[queue.SimpleQueue[Wakeup]] = Board(self._keyspace, self.nodes.routing)
        # Whoever gives orders may learn of another map meanwhile, and give orders for that.
        self._changed = threading.Condition(threading.RLock())
        self._listeners: dict[Address, _Listener[redis.client.PubSub]] = {}
        self._closed = False

    def enter(self, grant: str, seconds: float, name: str) -> str | None:
        """Listen for a grant, and return the channel once it is subscribed to; ``None`` if late."""
        self.nodes.run(self.nodes.routing.find(self._board.slot(name)))
        with self._changed:
            waited = self._board.enter(grant, name, queue.SimpleQueue())
            self._give(self._board.place(waited))
            self._changed.wait_for(
                lambda: waited.heard or _failure(self._listeners, waited), min(seconds, _CONFIRM)
            )
            return _entered(waited, _failure(self._listeners, waited))

    def wait(self, grant: str, seconds: float) -> Wakeup | None:
        """Return what comes for the grant, or ``None`` if nothing does."""
        try:
            return self._board.inboxes[grant].get(timeout=seconds)
        except queue.Empty:
            return None

    def leave(self, grant: str) -> None:
        """Listen for the grant no longer."""
        with self._changed:
            self._give(self._board.leave(grant))
            self._changed.notify_all()

    def nudge(self, grant: str) -> None:
        """End a wait that is under way."""
        with self._changed:
            if grant in self._board.inboxes:
                self._board.inboxes[grant].put(_LOOK)

    def close(self) -> None:
        """End the connections and the threads."""
        with self._changed:
            threads = [listener.reader for listener in self._listeners.values()]
            self._closed = True
            for listener in self._listeners.values():
                listener.failure = redis.ConnectionError("the client was closed")
            self._changed.notify_all()
        for thread in threads:
            thread.join(_IDLE)  # It may hang in a connection; it is a daemon.
        self._closed = False

    def _move(self) -> None:
        with self._changed:
            self._give(self._board.place_all())

    def _give(self, orders: list[Order]) -> None:
        """Say to nodes what is to be said; one that is not connected is told when it is."""
        for order in orders:
            listener = self._listeners.get(order.where)
            if listener is None:
                if order.begin:
                    self._listeners[order.where] = listener = _Listener()
                    listener.reader = threading.Thread(
                        target=self._read, args=(order.where,), name="fencer-wakeups", daemon=True
                    )
                    listener.reader.start()
            elif listener.connection is not None:
                with contextlib.suppress(Exception):  # Its reader fails, too.
                    listener.connection.send_command(*order.words, check_health=False)
        if orders:
            self._changed.notify_all()

    def _read(self, where: Address) -> None:
        while listener := self._wanted(where):
            pubsub = self.nodes.redis(where).pubsub()
            try:
                pubsub.subscribe(self._board.home)
                with self._changed:
                    listener.pubsub, listener.failure = pubsub, None
                while self._wanted(where):
                    self._hear(where, pubsub)
            except Exception as error:
                # A connection that breaks under a writer fails its reader in ways of all kinds.
                self._broken(where, listener, error)
            finally:
                with self._changed:
                    listener.pubsub = None
                with contextlib.suppress(Exception):
                    pubsub.close()

    def _hear(self, where: Address, pubsub: redis.client.PubSub) -> None:
        try:
            message = pubsub.get_message(timeout=_POLL)
        except AskError as error:  # MOVED is one, too
            self.nodes.routing.moved(error.slot_id, self.nodes.routing.pointed(error, where))
            return
        except ResponseError as error:
            if not _unknown(error):
                raise
            with self._changed:
                self._board.is_plain(where)
                self._changed.notify_all()
            return
        with self._changed:
            self._give(self._board.hear(where, message) if message else self._board.place_all())
            self._changed.notify_all()

    def _wanted(self, where: Address) -> _Listener[redis.client.PubSub] | None:
        with self._changed:
            listener = self._listeners.get(where)
            if listener is None or listener.reader is not threading.current_thread():
                return None
            if not self._board.at(where) and not self._closed:
                self._changed.wait_for(lambda: self._board.at(where) or self._closed, _IDLE)
            if self._board.at(where) and not self._closed:
                return listener
            del self._listeners[where]
            return None

    def _broken(
        self, where: Address, listener: _Listener[redis.client.PubSub], error: Exception
    ) -> None:
        with self._changed:
            listener.pubsub, listener.failure = None, _told(error)
            self._board.broken(where)
            self._changed.notify_all()
        with contextlib.suppress(StoreError):
            self.nodes.run(self.nodes.routing.learn())
        with self._changed:
            self._give(self._board.place_all())
            self._changed.wait_for(lambda: self._closed, _BROKEN)


class TaskClusterWakeups:
    """The connections, each read by a task."""

    def __init__(self, client: redis.asyncio.cluster.RedisCluster, keyspace: Keyspace) -> None:
        self.nodes = AsyncNodes(client)
        self.nodes.routing.on_change.append(self._move)
        self._board: Board[asyncio.Queue[Wakeup]] = Board(keyspace, self.nodes.routing)
        self._listeners: dict[Address, _Listener[redis.asyncio.client.PubSub]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._changes = asyncio.Event()
        self._closing = False

    async def enter(self, grant: str, seconds: float, name: str) -> str | None:
        """Listen for a grant, and return the channel once it is subscribed to; ``None`` if late."""
        await self.nodes.run(self.nodes.routing.find(self._board.slot(name)))
        waited = self._board.enter(grant, name, asyncio.Queue())
        self._give(self._board.place(waited))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _CONFIRM)):
                while not (waited.heard or _failure(self._listeners, waited)):
                    await self._changes.wait()
        return _entered(waited, _failure(self._listeners, waited))

    async def wait(self, grant: str, seconds: float) -> Wakeup | None:
        """Return what comes for the grant, or ``None`` if nothing does."""
        try:
            async with asyncio.timeout(seconds):
                return await self._board.inboxes[grant].get()
        except TimeoutError:
            return None

    def leave(self, grant: str) -> None:
        """Listen for the grant no longer."""
        self._give(self._board.leave(grant))

    async def close(self) -> None:
        """End the connections and the tasks."""
        self._closing = True  # for the driver can swallow a cancellation
        for listener in self._listeners.values():
            listener.failure = redis.ConnectionError("the client was closed")
            listener.reader.cancel()
        self._tell()
        left = [listener.reader for listener in self._listeners.values()] + [*self._sending]
        if left:
            await asyncio.wait(left)
        self._closing = False

    def _tell(self) -> None:
        self._changes.set()
        self._changes = asyncio.Event()

    def _move(self) -> None:
        self._give(self._board.place_all())

    def _give(self, orders: list[Order]) -> None:
        for order in orders:
            listener = self._listeners.get(order.where)
            if listener is None:
                if order.begin and not self._closing:
                    self._listeners[order.where] = listener = _Listener()
                    listener.reader = asyncio.create_task(
                        self._read(order.where, listener), name="fencer-wakeups"
                    )
            elif listener.connection is not None:
                task = asyncio.create_task(self._say(listener.connection, order))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _say(self, connection: Any, order: Order) -> None:
        with contextlib.suppress(Exception):  # Its reader fails, too.
            await connection.send_command(*order.words, check_health=False)

    async def _read(self, where: Address, listener: _Listener[redis.asyncio.client.PubSub]) -> None:
        try:
            while self._board.at(where) and not self._closing:
                try:
                    await self._listen(where, listener)
                except Exception as error:
                    await self._broken(where, listener, error)
        finally:
            del self._listeners[where]
            self._tell()

    async def _listen(
        self, where: Address, listener: _Listener[redis.asyncio.client.PubSub]
    ) -> None:
        pubsub = (await self.nodes.redis(where)).pubsub()
        try:
            await pubsub.subscribe(self._board.home)
            listener.pubsub, listener.failure = pubsub, None
            idle = 0.0
            while (self._board.at(where) or idle < _IDLE) and not self._closing:
                await self._hear(where, pubsub)
                idle = 0.0 if self._board.at(where) else idle + _POLL
        finally:
            listener.pubsub = None
            with contextlib.suppress(Exception):
                await pubsub.aclose()

    async def _hear(self, where: Address, pubsub: redis.asyncio.client.PubSub) -> None:
        try:
            message = await pubsub.get_message(timeout=_POLL)
        except AskError as error:
            self.nodes.routing.moved(error.slot_id, self.nodes.routing.pointed(error, where))
            return
        except ResponseError as error:
            if not _unknown(error):
                raise
            self._board.is_plain(where)
        else:
            self._give(self._board.hear(where, message) if message else self._board.place_all())
        self._tell()

    async def _broken(
        self, where: Address, listener: _Listener[redis.asyncio.client.PubSub], error: Exception
    ) -> None:
        listener.failure = _told(error)
        self._board.broken(where)
        self._tell()
        with contextlib.suppress(StoreError):
            await self.nodes.run(self.nodes.routing.learn())
        self._give(self._board.place_all())
        await asyncio.sleep(_BROKEN)


def _failure(
    listeners: dict[Address, _Listener[Any]], waited: Waited[Any]
) -> RedisError | StoreError | None:
    """Why a name cannot be listened to."""
    listener = listeners.get(waited.at) if waited.at is not None else None
    return listener.failure if listener is not None else None


def _entered(waited: Waited[Any], failure: RedisError | StoreError | None) -> str | None:
    if waited.heard:
        return waited.channel
    if isinstance(failure, RedisError):
        raise passing(refusal(failure, sent=False)) from failure
    if failure is not None:
        raise failure
    return None


def _told(error: Exception) -> RedisError | StoreError:
    if isinstance(error, RedisError | StoreError):
        return error
    return redis.ConnectionError(f"the connection broke ({type(error).__name__}: {error})")


def _unknown(error: ResponseError) -> bool:
    """Whether the node has no sharded pub/sub."""
    return "unknown command" in str(error).lower()
