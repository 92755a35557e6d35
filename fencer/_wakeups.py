"""One pub/sub connection per client, which carries the wake-ups of all its waiters.

It is there while somebody waits, and for a moment after. If it breaks, it is made anew, and every
waiter is told to look, since it may have missed something. A forked child starts with none.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import threading
import time
from typing import Any

import redis
import redis.asyncio

from fencer._drivers import driver_of
from fencer._fork import forget_in_child
from fencer._keys import Keyspace
from fencer._refusals import unreached
from fencer._steps import Wakeup, wakeup

_POLL = 0.2
"""Seconds for which the connection is read before the reader looks whether it is still wanted."""

_IDLE = 1.0
"""Seconds for which the connection outlives the last waiter."""

_BROKEN = 0.1
"""Seconds before a broken connection is made anew."""

_CONFIRM = 2.0
"""Seconds within which the server must confirm the subscription."""

_PING = 3.0
"""Seconds without a word after which the server is asked whether it is still there."""

_LOOK = Wakeup("LOOK")

_LOST = "the server is silent, or the sentinels name another primary"


class ThreadWakeups:
    """The connection, read by a thread."""

    def __init__(self, client: redis.Redis, keyspace: Keyspace) -> None:
        self._driver = driver_of(client, tasks=False)
        self._client = client
        self._keyspace = keyspace
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew: in a forked child neither the thread nor the parent's waiters exist."""
        self._channel = self._keyspace.channel(secrets.token_hex(8))
        self._changed = threading.Condition()
        self._inboxes: dict[str, queue.SimpleQueue[Wakeup]] = {}
        self._thread: threading.Thread | None = None
        self._listening = False
        self._failure: Exception | None = None
        self._closed = False

    def enter(self, grant: str, seconds: float) -> str | None:
        """Listen for a grant, and return the channel once it is subscribed to; ``None`` if late."""
        with self._changed:
            self._inboxes[grant] = queue.SimpleQueue()
            self._failure = None
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._read, name="fencer-wakeups", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._listening or self._failure, min(seconds, _CONFIRM))
            if not self._listening and self._failure is not None:
                raise unreached(self._failure, self._client.connection_pool) from self._failure
            return self._channel if self._listening else None

    def wait(self, grant: str, seconds: float) -> Wakeup | None:
        """Return what comes for the grant, or ``None`` if nothing does."""
        try:
            return self._inboxes[grant].get(timeout=seconds)
        except queue.Empty:
            return None

    def leave(self, grant: str) -> None:
        """Listen for the grant no longer."""
        with self._changed:
            self._inboxes.pop(grant, None)
            self._changed.notify_all()

    def nudge(self, grant: str) -> None:
        """End a wait that is under way."""
        with self._changed:
            if grant in self._inboxes:
                self._inboxes[grant].put(_LOOK)

    def close(self) -> None:
        """End the connection and the thread."""
        with self._changed:
            thread, self._closed = self._thread, True
            self._failure = redis.ConnectionError("the client was closed")
            self._changed.notify_all()
        if thread is not None:
            thread.join(_IDLE)  # It may hang in a connection; it is a daemon.
        self._closed = False

    def _read(self) -> None:
        while self._wanted():
            pubsub = self._client.pubsub()
            try:
                pubsub.subscribe(self._channel)
                until = time.monotonic() + _CONFIRM
                pulse = _Pulse()
                while self._wanted() and (self._listening or time.monotonic() < until):
                    self._hear(pulse.heard(self._message(pubsub)))
                    if pulse.ask():
                        pubsub.ping()
                    if pulse.lost() or _moved(pubsub):
                        self._broken(redis.ConnectionError(_LOST))
                        break
            except Exception as error:
                # Not only the driver's own: somebody else may have closed the connection.
                self._broken(error)
            finally:
                with contextlib.suppress(Exception):
                    pubsub.close()

    def _message(self, pubsub: Any) -> Any:
        try:
            return pubsub.get_message(timeout=_POLL)
        except self._driver.response as error:
            if not self._listening:
                raise
            return _refused(error)

    def _wanted(self) -> bool:
        with self._changed:
            if threading.current_thread() is not self._thread:
                return False
            if not self._inboxes and not self._closed:
                self._changed.wait_for(lambda: self._inboxes or self._closed, _IDLE)
            if self._inboxes and not self._closed:
                return True
            self._listening, self._thread = False, None
            return False

    def _hear(self, message: Any) -> None:
        if message is None:
            return
        with self._changed:
            if message["type"] == "subscribe":
                self._listening = True
                self._changed.notify_all()
                for inbox in self._inboxes.values():
                    inbox.put(_LOOK)
            elif message["type"] == "message":
                grant, heard = wakeup(message["data"])
                if grant in self._inboxes:
                    self._inboxes[grant].put(heard)

    def _broken(self, error: Exception) -> None:
        with self._changed:
            self._listening, self._failure = False, error
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, _BROKEN)


class TaskWakeups:
    """The connection, read by a task."""

    def __init__(self, client: redis.asyncio.Redis, keyspace: Keyspace) -> None:
        self._driver = driver_of(client, tasks=True)
        self._client = client
        self._channel = keyspace.channel(secrets.token_hex(8))
        self._inboxes: dict[str, asyncio.Queue[Wakeup]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._changed = asyncio.Condition()
        self._listening = False
        self._failure: Exception | None = None

    async def enter(self, grant: str, seconds: float) -> str | None:
        """Listen for a grant, and return the channel once it is subscribed to; ``None`` if late."""
        self._inboxes[grant] = asyncio.Queue()
        self._failure = None
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="fencer-wakeups")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _CONFIRM)), self._changed:
                await self._changed.wait_for(lambda: self._listening or self._failure)
        if not self._listening and self._failure is not None:
            raise unreached(self._failure, self._client.connection_pool) from self._failure
        return self._channel if self._listening else None

    async def wait(self, grant: str, seconds: float) -> Wakeup | None:
        """Return what comes for the grant, or ``None`` if nothing does."""
        try:
            async with asyncio.timeout(seconds):
                return await self._inboxes[grant].get()
        except TimeoutError:
            return None

    def leave(self, grant: str) -> None:
        """Listen for the grant no longer."""
        self._inboxes.pop(grant, None)

    async def close(self) -> None:
        """End the connection and the task."""
        if self._task is not None:
            self._closing = True  # for the driver can swallow a cancellation
            self._task.cancel()
            await asyncio.wait([self._task])
            self._closing = False
            await self._tell(
                listening=False, failure=redis.ConnectionError("the client was closed")
            )

    async def _read(self) -> None:
        try:
            while self._inboxes and not self._closing:
                pubsub = self._client.pubsub()
                try:
                    await pubsub.subscribe(self._channel)
                    pulse = _Pulse()
                    idle, until = 0.0, time.monotonic() + _CONFIRM
                    while (self._inboxes or idle < _IDLE) and not self._closing:
                        await self._hear(pulse.heard(await self._message(pubsub)))
                        if pulse.ask():
                            await pubsub.ping()
                        if pulse.lost() or _moved(pubsub):
                            lost = redis.ConnectionError(_LOST)
                            await self._tell(listening=False, failure=lost)
                            break
                        idle = 0.0 if self._inboxes else idle + _POLL
                        if not self._listening and time.monotonic() > until:
                            break
                except Exception as error:
                    await self._tell(listening=False, failure=error)
                    await asyncio.sleep(_BROKEN)
                finally:
                    with contextlib.suppress(Exception):
                        await pubsub.aclose()
        finally:
            self._task, self._listening = None, False

    async def _message(self, pubsub: Any) -> Any:
        try:
            return await pubsub.get_message(timeout=_POLL)
        except self._driver.response as error:
            if not self._listening:
                raise
            return _refused(error)

    async def _hear(self, message: Any) -> None:
        if message is None:
            return
        if message["type"] == "subscribe":
            await self._tell(listening=True)
            for inbox in self._inboxes.values():
                inbox.put_nowait(_LOOK)
        elif message["type"] == "message":
            grant, heard = wakeup(message["data"])
            if grant in self._inboxes:
                self._inboxes[grant].put_nowait(heard)

    async def _tell(self, *, listening: bool, failure: Exception | None = None) -> None:
        async with self._changed:
            self._listening, self._failure = listening, failure
            self._changed.notify_all()


class _Pulse:
    """Tells a connection on which there is no news from one that is dead without a word."""

    def __init__(self) -> None:
        self._heard = self._asked = time.monotonic()

    def heard(self, message: Any) -> Any:
        """Take in what was heard, if anything was, and return it."""
        if message is not None:
            self._heard = time.monotonic()
        return message

    def ask(self) -> bool:
        """Whether the server is to be asked now for a sign of life."""
        if time.monotonic() - max(self._heard, self._asked) < _PING:
            return False
        self._asked = time.monotonic()
        return True

    def lost(self) -> bool:
        """Whether it has been asked, and gave none."""
        return self._asked > self._heard and time.monotonic() - self._asked > _CONFIRM


def _refused(error: Exception) -> dict[str, Any]:
    # To a user who may not send PING: that is an answer as well.
    return {"type": "pong", "data": str(error)}


def _moved(pubsub: Any) -> bool:
    """Whether another connection has been led to another primary since this one was made.

    The one before may be cut off, or a replica now: it is not heard when a lease is handed on.
    """
    primary = getattr(pubsub.connection_pool, "master_address", None)
    connection = pubsub.connection
    return bool(primary and connection and (connection.host, connection.port) != primary)
