"""The client for threads: `connect`, `Fencer` and `Lease`."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import redis
import redis.cluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from fencer import _check
from fencer._announce import checked
from fencer._client import BaseFencer, Tokens
from fencer._drive import Doer, run
from fencer._keeping import ThreadKeeping
from fencer._lease import BaseLease, State
from fencer._protocol import Granted, Protocol
from fencer._steps import Steps
from fencer._urls import from_url, sentinels_of, server_url
from fencer._wire import Wire
from fencer._wires import Client, wakeups_for, wire_for
from fencer.durability import Durability
from fencer.errors import StoreUnavailable
from fencer.guards._base import Guard
from fencer.records import Event, Status

logger = logging.getLogger("fencer")


class Lease(BaseLease):
    """The right to be the only one on a name, for a limited time. Any thread may use it.

    `Fencer.acquire` returns it. As a context manager it releases itself on leaving the block, and
    raises `LeaseLost` there if it was lost inside (unless another exception is under way).
    """

    lost: threading.Event

    def __init__(
        self, protocol: Protocol, granted: Granted, wire: Wire, keeping: ThreadKeeping
    ) -> None:
        super().__init__(protocol, granted)
        self._wire = wire
        self._keeping = keeping
        self.lost = threading.Event()
        """Set once the loss is known: with ``keep_alive`` or a callback as soon as it happens, else
        when somebody looks at the lease."""

    def renew(self, ttl: float | None = None, *, durable: bool = False) -> None:
        """Have the full ttl again, counted from now.

        It also heals a lease whose lock key vanished before its time (the server's clock jumped,
        eviction, a hand-typed ``DEL``), as long as nobody else has been granted it since.

        Args:
            ttl: a new ttl in seconds, 0.01 to 604,800; by default the one it has.
            durable: wait until this renewal is as safe as the client's ``durability`` wants grants
                to be, for at most half of what is left of the lease.

        Raises:
            LeaseLost: it has ended; this object will not speak for its token again.
            NotDurable: it was renewed, and is not as safe as that. The lease stays valid.
            StoreUnavailable: no answer came. The lease stays valid as long as it was.
            StoreError: the server refused; nothing changed.
            InvalidArgument: the ttl is out of its range, or ``durable`` was asked of a client
                without a durability; nothing was sent.

        Cost:
            One script call of constant time. ``durable`` takes one more trip.
        """
        if ttl is None:
            if durable:
                return run(self._renewing(None, durable), self._wire)
            return self._renew()
        ttl_ms = _check.ttl_ms(ttl)
        self._keeping.retime(self, ttl_ms)  # A shorter one is believed in from now on.
        try:
            run(self._renewing(ttl, durable), self._wire)
        finally:
            self._keeping.retime(self, self._ttl_ms)

    def _renew(self) -> None:
        """Try it at once, without steps: as a rule that is all, and takes half as long."""
        started = self._set_out()
        if started is None:
            steps = self._renewing(None)
        else:
            try:
                first = self._wire.call(self._renew_call())
                if self._renewed(first, started):
                    return
            except StoreUnavailable as error:
                first = error
            except BaseException:
                self._end_renewal()
                raise
            steps = self._carrying_on(self._ttl_ms, started, first)
        run(steps, self._wire)

    def release(self, *, durable: bool = False) -> bool:
        """End the lease and retire its token, so that no late renew can bring it back.

        Args:
            durable: wait until that is as safe as the client's ``durability`` wants grants to be.
                Without, a failover may bring the lease back for what is left of its ttl; tokens
                rise either way.

        Returns:
            Whether this lease was the last one granted until now, so that it ended by this call (or
            by an earlier copy of it whose reply was lost). ``False``: it had ended by itself.

        Raises:
            StoreUnavailable: no answer came. It is not valid here any more; ask again, or let its
                ttl pass.
            NotDurable: it has ended, and that is not as safe as ``durable`` wants; ask again.
            StoreError: the server refused; the store still has it until its ttl has passed.
            InvalidArgument: ``durable`` was asked of a client without a durability.

        Cost:
            One script call of constant time; none if it is known to have ended. ``durable`` takes
            one more trip.
        """
        try:
            return run(self._releasing(durable), self._wire)
        finally:
            self._keeping.drop(self)

    def on_lost(self, callback: Callable[[str], object]) -> None:
        """Have ``callback(reason)`` called once the lease is lost, before another can have it.

        It runs in a thread of its own, at once if the lease is lost already, and not at all if the
        lease is released. What it raises is logged.
        """
        if self._pid != os.getpid():
            return  # A forked child has no part in it.
        with self._changing:
            if self._state is State.LIVE:
                self._callbacks.append(callback)
            elif self._state is State.LOST:
                self._call([callback], self._reason)
        if self.valid:
            self._keeping.keep(self, None)

    def __enter__(self) -> Self:
        """Raise `LeaseLost` if the lease has ended already."""
        self.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release; see the class."""
        try:
            run(self._leaving(error), self._wire)
        finally:
            self._keeping.drop(self)

    def _announce(self, reason: str) -> None:
        self.lost.set()
        if self._callbacks:
            self._call(self._callbacks, reason)

    def _call(self, callbacks: list[Callable[[str], object]], reason: str) -> None:
        def call() -> None:
            for callback in callbacks:
                try:
                    callback(reason)
                except Exception:
                    logger.exception("a callback for the loss of %r failed", self.name)

        threading.Thread(target=call, name="fencer-on-lost", daemon=True).start()


class Fencer(BaseFencer):
    """Leases with fencing tokens on a Redis or Valkey server or Cluster. Any thread may use it.

    Args:
        client: a ``redis.Redis``, also one of ``Sentinel.master_for(...)``, or valkey-py's
            equivalent, or a ``redis.cluster.RedisCluster``; its connections are shared, and it
            stays yours to close.
        namespace: how the keys begin: ``fencer:{orders}:lock``.
        hash_tag: ``False`` leaves the braces out of the keys. This excludes Cluster.
        holder: the readable id shown to operators, at most 255 bytes; by default host, process and
            a random part, so that it is unique per process and changes after a fork.
        tokens: ``"time"`` mints ``max(last + 1, server time in microseconds)``, which rises even
            when the store loses data; ``"dense"`` mints small numbers, which is safe only where
            the store never loses an acknowledged write, and for names that are used at least once
            in the time that ``keep`` says: after that they begin at 1 again.
        keep: for how many seconds an idle name's last token and history are kept.
        history: about how many events are kept per name.
        durability: how safe a grant must be before its token is handed out, however it comes:
            `Replicated`, `Fsynced`, or a tuple of both; ``None``: as safe as the server is.

    Raises:
        InvalidArgument: an argument is out of its range.
    """

    def __init__(
        self,
        client: Client,
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
        self._wakeups = wakeups_for(client, self._keyspace)
        self._wire = wire_for(client, self._wakeups)
        self._keeping = ThreadKeeping(self._protocol, self._wire)
        self._opened = contextlib.ExitStack()

    @property
    def client(self) -> Any:
        """The redis-py client that it works on."""
        return self._wire.client

    def acquire(
        self,
        name: str,
        *,
        ttl: float = 10.0,
        wait: float | None = 0.0,
        keep_alive: bool | float = False,
        info: Mapping[str, Any] | None = None,
        guards: Iterable[Guard] = (),
    ) -> Lease:
        """Get the lease on a name, and with it a token larger than every earlier one.

        Args:
            name: what to be the only one on: printable text without braces, 1 to 512 bytes.
            ttl: seconds until the lease ends unless it is renewed, 0.01 to 604,800. It should be
                many times a round trip to the server, and longer than the pauses you expect.
            wait: seconds to wait in line while somebody else has it; ``None`` is for ever. First
                come, first served. An outage of the server meanwhile does not end the wait.
            keep_alive: renew it in the background until it is released: every ``ttl/3`` seconds, or
                every so many, at most ``ttl/2``.
            info: fields of your own for operators to see, JSON of at most 8,192 bytes.
            guards: have these accept the token before you get the lease, so that what you read
                there cannot be changed by the holder before you any more. If one has accepted a
                larger token than the store has issued, the name is advanced past it, and the lease
                granted anew, once, within what is left of the wait.

        Raises:
            NotAcquired: somebody else has it (``AcquireTimeout`` after a wait). Nothing is held.
            StaleToken: a guard has accepted a larger token even after that. Nothing is held, and
                some of the guards may have accepted this lease's token, which nobody else will get.
            LeaseLost: the guards took longer than the ttl; see ``keep_alive``.
            others: what a guard raises. Nothing is held, as with `StaleToken`.
            NotDurable: what ``durability`` wants was not reached in time. It was given back.
            StoreUnavailable: no answer came, or too late. What was asked for has been given back
                if the server could be reached, and ends with its ttl if not.
            StoreError: the server refused; nothing changed.
            InvalidArgument: an argument is out of its range; nothing was sent.

        Cost:
            One script call of constant time. A wait costs three more, and one every 15 s or so.
            With guards, a check of each. With a ``durability``, one more trip; a grant that was
            waited for, or whose reply was lost, takes a renewal before it.

        Source:
            Fencing tokens: Kleppmann 2016, "How to do distributed locking".
        """
        return self._acquire(name, ttl, wait, keep_alive, info, guards, self._wire)

    def _acquire(
        self,
        name: str,
        ttl: float,
        wait: float | None,
        keep_alive: bool | float,
        info: Mapping[str, Any] | None,
        guards: Iterable[Guard],
        wire: Doer,
        look: float | None = None,
    ) -> Lease:
        """As `acquire`; the wait goes over ``wire``, and an election looks now and then."""
        shown = checked(guards, tasks=False)

        def grant(wait: float | None) -> Steps[Lease]:
            steps, beat = self._acquiring(name, ttl, wait, keep_alive, info, look)
            granted = yield from steps
            try:
                lease = Lease(self._protocol, granted, self._wire, self._keeping)
                if beat is not None:
                    self._keeping.keep(lease, beat)
                return lease
            except BaseException:  # Interrupted, before anybody could release it.
                yield from self._protocol.give_back(granted)
                raise

        if not shown:
            return run(grant(wait), wire)
        steps = self._announcing(name, wait, shown).steps(grant, self._keeping.drop)
        return run(steps, wire)

    def inspect(self, name: str) -> Status:
        """Tell who has the lease on a name, and for how long. Changes nothing.

        Raises:
            StoreError: the server refused or did not answer.
            InvalidArgument: the name is not allowed; nothing was sent.

        Cost:
            One script call of constant time.
        """
        return run(self._inspecting(name), self._wire)

    def revoke(self, name: str, token: int | None = None) -> int | None:
        """End somebody's lease and retire its token. The holder hears of it when it renews.

        Args:
            name: the name.
            token: end the lease with this token only; by default the one that is held now.

        Returns:
            The token of the lease that ended; ``None`` if there was none (any more).

        Raises:
            StoreError: the server refused or did not answer, or the lock key holds something that
                Fencer did not write; nothing changed (but see ``maybe_applied``).
            InvalidArgument: an argument is not allowed; nothing was sent.

        Cost:
            One or two script calls of constant time.
        """
        return run(self._revoking(name, token), self._wire)

    def advance(self, name: str, beyond: int) -> bool:
        """Make the next token larger than a number that a resource has seen already.

        A lease that is held with a smaller token ends, as by `revoke`: the resource refuses it
        anyway.

        Args:
            name: the name.
            beyond: the number, 1 to 2^53 - 2^32.

        Returns:
            Whether anything had to change.

        Raises:
            StoreError: as for `revoke`.
            InvalidArgument: an argument is not allowed; nothing was sent.

        Cost:
            One script call of constant time.
        """
        return run(self._advancing(name, beyond), self._wire)

    def history(self, name: str, count: int = 100) -> list[Event]:
        """Return the latest events of a name, oldest first.

        Args:
            name: the name.
            count: at most so many, 1 to 1,000,000.

        Raises:
            StoreError: the server refused or did not answer.
            InvalidArgument: an argument is not allowed; nothing was sent.

        Cost:
            One ``XREVRANGE``.
        """
        return run(self._recalling(name, count), self._wire)

    def names(self) -> Iterator[str]:
        """Go through all names that the store knows, held or free, in no order.

        Raises:
            StoreError: the server refused or did not answer.

        Cost:
            A ``SCAN`` of the whole database in steps of 1,000 keys.
        """
        seen: set[str] = set()
        cursor = "0"
        while True:
            cursor, names = run(self._protocol.names(cursor), self._wire)
            yield from self._unseen(names, seen)
            if cursor == "0":
                return

    def close(self) -> None:
        """Release the leases that are kept alive, and close what `connect` opened.

        Other leases stay held until their ttl has passed. The client can be used again unless
        `connect` made it. A wait that is under way goes on, with connections of its own.
        """
        self._keeping.close()
        self._wakeups.close()
        self._wire.close()
        self._opened.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def connect(
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
) -> Fencer:
    """Return a client for the server at a URL. Nothing is sent before it is used.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` as redis-py reads them; some sentinels and a
            service, ``redis+sentinel://host:26379,host2:26379/service``; or some nodes of a
            Cluster, ``redis+cluster://host:port,host:port``; the latter two over TLS as
            ``rediss+...``. By default what the environment variable ``FENCER_URL`` says.
            ``"embedded:"`` starts a private server that ends with the client, for demos, tests and
            development.
        namespace: as for `Fencer`, like all that follow.
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
        StoreUnavailable: no node of the Cluster answers; any other server is first asked when it is
            needed.
        StoreError: a node of the Cluster refused the login, or is none.
        ServerFailed: the embedded server did not start.
    """
    with contextlib.ExitStack() as opened:
        address = server_url(url, opened)
        # Scripts are repeated by fencer._protocol, and so by nobody else.
        options = {"retry": Retry(NoBackoff(), 0), **driver}
        client = from_url(redis, address, options)
        for each in (client, *sentinels_of(client)):
            opened.callback(each.close)
        fencer = Fencer(
            client,
            namespace=namespace,
            hash_tag=hash_tag,
            holder=holder,
            tokens=tokens,
            keep=keep,
            history=history,
            durability=durability,
        )
        fencer._opened = opened.pop_all()
    return fencer
