"""The client for asyncio: `connect_async`, `AsyncFencer` and `AsyncLease`.

Twins of `fencer.connect`, `fencer.Fencer` and `fencer.Lease`: the same names, arguments, errors,
guarantees and costs, which are told there. What differs is told here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import redis.asyncio
import redis.asyncio.cluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fencer import _check
from fencer._announce import checked
from fencer._client import BaseFencer, Tokens
from fencer._drive import AsyncDoer, run_async, to_the_end
from fencer._keeping import TaskKeeping
from fencer._lease import BaseLease, State
from fencer._protocol import Granted, Protocol
from fencer._steps import Steps
from fencer._urls import from_url, sentinels_of, server_url
from fencer._wire import AsyncWire
from fencer._wires import AsyncClient, async_wakeups_for, async_wire_for
from fencer.durability import Durability
from fencer.errors import StoreUnavailable
from fencer.guards._base import AsyncGuard, Guard
from fencer.records import Event, Status

logger = logging.getLogger("fencer")


class AsyncLease(BaseLease):
    """The right to be the only one on a name, for a limited time: see `fencer.Lease`.

    In an ``async with`` block a loss cancels the body, and `LeaseLost` comes out of the block in
    place of that cancellation; a cancellation from outside comes out as it is. It belongs to the
    event loop in which it was acquired.
    """

    lost: asyncio.Event

    def __init__(
        self, protocol: Protocol, granted: Granted, wire: AsyncWire, keeping: TaskKeeping
    ) -> None:
        super().__init__(protocol, granted)
        self._wire = wire
        self._keeping = keeping
        self._loop = asyncio.get_running_loop()
        self._body: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._interrupted = False
        self._calls: set[asyncio.Task[Any]] = set()
        self.lost = asyncio.Event()
        """Set once the loss is known: as in `fencer.Lease`, and in an ``async with`` block as soon
        as it happens."""

    async def renew(self, ttl: float | None = None, *, durable: bool = False) -> None:
        """Have the full ttl again, counted from now: see `fencer.Lease.renew`."""
        if ttl is None:
            if durable:
                return await run_async(self._renewing(None, durable), self._wire)
            return await self._renew()
        ttl_ms = _check.ttl_ms(ttl)
        self._keeping.retime(self, ttl_ms)  # A shorter one is believed in from now on.
        try:
            await run_async(self._renewing(ttl, durable), self._wire)
        finally:
            self._keeping.retime(self, self._ttl_ms)

    async def _renew(self) -> None:
        """Try it at once, without steps: as a rule that is all, and takes half as long."""
        started = self._set_out()
        if started is None:
            steps = self._renewing(None)
        else:
            try:
                first = await self._wire.call(self._renew_call())
                if self._renewed(first, started):
                    return
            except StoreUnavailable as error:
                first = error
            except BaseException:
                self._end_renewal()
                raise
            steps = self._carrying_on(self._ttl_ms, started, first)
        await run_async(steps, self._wire)

    async def release(self, *, durable: bool = False) -> bool:
        """End the lease and retire its token: see `fencer.Lease.release`.

        It is carried out even if the task is cancelled meanwhile.
        """
        try:
            return await to_the_end(run_async(self._releasing(durable), self._wire))
        finally:
            self._keeping.drop(self)

    def on_lost(self, callback: Callable[[str], object]) -> None:
        """Have ``callback(reason)`` called once the lease is lost: see `fencer.Lease.on_lost`.

        It runs in the event loop; what it returns is awaited if it can be.
        """
        with self._changing:
            if self._state is State.LIVE:
                self._callbacks.append(callback)
            elif self._state is State.LOST:
                self._loop.call_soon_threadsafe(self._call, callback, self._reason)
        if self.valid:
            self._keeping.keep(self, None)

    async def __aenter__(self) -> Self:
        """Raise `LeaseLost` if the lease has ended already."""
        self.check()
        self._body = asyncio.current_task()
        self._cancelling = self._body.cancelling() if self._body else 0
        self._keeping.keep(self, None)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release; see the class."""
        body, self._body = self._body, None
        if self._interrupted and body is not None:
            others = body.uncancel() > self._cancelling
            if isinstance(error, asyncio.CancelledError) and not others:
                raise self._ended() from error
        try:
            await to_the_end(run_async(self._leaving(error), self._wire))
        finally:
            self._keeping.drop(self)

    def _announce(self, reason: str) -> None:
        # Whoever found out may be another thread, or the body itself, which must not be cancelled
        # before it waits for something.
        with contextlib.suppress(RuntimeError):  # The loop has ended: nobody waits any more.
            self._loop.call_soon_threadsafe(self._told, reason)
        if self._loop.is_closed() or asyncio._get_running_loop() is self._loop:
            self.lost.set()

    def _told(self, reason: str) -> None:
        self.lost.set()
        if self._body is not None and not self._interrupted:
            self._interrupted = True
            self._body.cancel()
        for callback in self._callbacks:
            self._call(callback, reason)

    def _call(self, callback: Callable[[str], object], reason: str) -> None:
        task = self._loop.create_task(self._report(callback, reason), name="fencer-on-lost")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _report(self, callback: Callable[[str], object], reason: str) -> None:
        try:
            result = callback(reason)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("a callback for the loss of %r failed", self.name)


class AsyncFencer(BaseFencer):
    """Leases with fencing tokens on a server or Cluster, for asyncio: see `fencer.Fencer`.

    It belongs to one event loop.

    Args:
        client: a ``redis.asyncio.Redis`` or ``redis.asyncio.cluster.RedisCluster``; it stays yours
            to close.
        namespace: as for `fencer.Fencer`, like all that follow.
        hash_tag: whether keys have braces.
        holder: the readable id shown to operators.
        tokens: how tokens are minted.
        keep: for how many seconds an idle name's last token and history are kept.
        history: about how many events are kept per name.
        durability: how safe a grant must be before its token is handed out.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        namespace: str = "fencer",
        hash_tag: bool = True,
        holder: str | None = None,
        tokens: Tokens = "time",
        keep: float = 30 * 86_400.0,
        history: int = 1_000,
        durability: Durability | tuple[Durability, ...] | None = None,
    ) -> None:
        super().__init__(namespace, hash_tag, holder, tokens, keep, history, durability)
        self._wakeups = async_wakeups_for(client, self._keyspace)
        self._wire = async_wire_for(client, self._wakeups)
        self._keeping = TaskKeeping(self._protocol, self._wire)
        self._opened = contextlib.AsyncExitStack()

    @property
    def client(self) -> Any:
        """The redis-py client that it works on."""
        return self._wire.client

    async def acquire(
        self,
        name: str,
        *,
        ttl: float = 10.0,
        wait: float | None = 0.0,
        keep_alive: bool | float = False,
        info: Mapping[str, Any] | None = None,
        guards: Iterable[Guard | AsyncGuard] = (),
    ) -> AsyncLease:
        """Get the lease on a name, and with it a token: see `fencer.Fencer.acquire`.

        A task that is cancelled meanwhile leaves nothing held, and no place in line. Guards for
        threads are asked in a thread, which a cancellation does not wait for.
        """
        return await self._acquire(name, ttl, wait, keep_alive, info, guards, self._wire)

    async def _acquire(
        self,
        name: str,
        ttl: float,
        wait: float | None,
        keep_alive: bool | float,
        info: Mapping[str, Any] | None,
        guards: Iterable[Guard | AsyncGuard],
        wire: AsyncDoer,
        look: float | None = None,
    ) -> AsyncLease:
        """As `acquire`; the wait goes over ``wire``, and an election looks now and then."""
        shown = checked(guards, tasks=True)

        def grant(wait: float | None) -> Steps[AsyncLease]:
            steps, beat = self._acquiring(name, ttl, wait, keep_alive, info, look)
            granted = yield from steps
            try:
                lease = AsyncLease(self._protocol, granted, self._wire, self._keeping)
                if beat is not None:
                    self._keeping.keep(lease, beat)
                return lease
            except BaseException:  # Interrupted, before anybody could release it.
                yield from self._protocol.give_back(granted)
                raise

        if not shown:
            return await run_async(grant(wait), wire)
        steps = self._announcing(name, wait, shown).steps(grant, self._keeping.drop)
        return await run_async(steps, wire)

    async def inspect(self, name: str) -> Status:
        """Tell who has the lease on a name: see `fencer.Fencer.inspect`."""
        return await run_async(self._inspecting(name), self._wire)

    async def revoke(self, name: str, token: int | None = None) -> int | None:
        """End somebody's lease and retire its token: see `fencer.Fencer.revoke`."""
        return await run_async(self._revoking(name, token), self._wire)

    async def advance(self, name: str, beyond: int) -> bool:
        """Make the next token larger than a number: see `fencer.Fencer.advance`."""
        return await run_async(self._advancing(name, beyond), self._wire)

    async def history(self, name: str, count: int = 100) -> list[Event]:
        """Return the latest events of a name, oldest first: see `fencer.Fencer.history`."""
        return await run_async(self._recalling(name, count), self._wire)

    async def names(self) -> AsyncIterator[str]:
        """Go through all names that the store knows: see `fencer.Fencer.names`."""
        seen: set[str] = set()
        cursor = "0"
        while True:
            cursor, names = await run_async(self._protocol.names(cursor), self._wire)
            for name in self._unseen(names, seen):
                yield name
            if cursor == "0":
                return

    async def close(self) -> None:
        """Release the leases that are kept alive, and close what `connect_async` opened.

        A wait that is under way goes on, with connections of its own: cancel it first.
        """
        await self._keeping.close()
        await self._wakeups.close()
        await self._wire.close()
        await self._opened.aclose()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await to_the_end(self.close())


def connect_async(
    url: str | None = None,
    *,
    namespace: str = "fencer",
    hash_tag: bool = True,
    holder: str | None = None,
    tokens: Tokens = "time",
    keep: float = 30 * 86_400.0,
    history: int = 1_000,
    durability: Durability | tuple[Durability, ...] | None = None,
    **driver: Any,
) -> AsyncFencer:
    """Return a client for asyncio: see `fencer.connect`. Nothing is sent before it is used.

    Args:
        url: as for `fencer.connect`.
        namespace: as for `fencer.Fencer`, like all that follow.
        hash_tag: whether keys have braces.
        holder: the readable id shown to operators.
        tokens: how tokens are minted.
        keep: for how many seconds an idle name's last token and history are kept.
        history: about how many events are kept per name.
        durability: how safe a grant must be before its token is handed out.
        driver: options for redis-py, such as ``socket_timeout`` in seconds (5 by default). Those in
            the URL go before them, as redis-py has it.

    Raises:
        InvalidArgument: there is no URL, or it cannot be read.
        ServerFailed: the embedded server did not start.
    """
    with contextlib.ExitStack() as opened:
        address = server_url(url, opened)
        options = {"retry": Retry(NoBackoff(), 0), **driver}
        client = from_url(redis.asyncio, address, options)
        fencer = AsyncFencer(
            client,
            namespace=namespace,
            hash_tag=hash_tag,
            holder=holder,
            tokens=tokens,
            keep=keep,
            history=history,
            durability=durability,
        )
        fencer._opened.callback(opened.pop_all().close)
        for each in (client, *sentinels_of(client)):
            fencer._opened.push_async_callback(each.aclose)
    return fencer
