"""Planted bugs of keeping leases alive; see `tests.faults.planted`."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fencer import _clock, _keeper, _keeping, _turns
from fencer._client import BaseFencer
from fencer._keeper import Keeper
from fencer._keeping import TaskKeeping, ThreadKeeping
from fencer._lease import BaseLease
from fencer._steps import Batch, Steps
from fencer._turns import Turns
from fencer._wire import AsyncWire, Wire, _Loan
from fencer.aio import AsyncLease
from fencer.client import Fencer, Lease
from fencer.errors import StoreError, StoreUnavailable

# Renewing.


def keeps_nothing(patch: pytest.MonkeyPatch) -> None:
    """A lease that is to be kept alive is renewed once, and that is all."""
    patch.setattr(Keeper, "renewed", lambda keeper, outcomes: None)


def one_call_for_each(patch: pytest.MonkeyPatch) -> None:
    """Each lease is renewed by a call of its own."""
    patch.setattr(_keeper, "_CALL", 1)


def asks_nobody_alone(patch: pytest.MonkeyPatch) -> None:
    """What refuses a call that renews many is the end of all of them."""
    patch.setattr(_keeper, "_refused", lambda reply: False)


def an_outage_is_a_loss(patch: pytest.MonkeyPatch) -> None:
    """What is not renewed at once is given up, though there is time for another try."""
    plain = _keeper._ask

    def ask(asked: Any, shares: Any, patience: float) -> Steps[Any]:
        begun = _clock.now()
        found = yield from plain(asked, shares, patience)
        failed = any(isinstance(reply, StoreError) for reply in found.values())
        if failed or _clock.now() - begun > 0.25:
            for lease, _, _ in asked:
                lease._lose("the server did not answer at once")
        return found

    patch.setattr(_keeper, "_ask", ask)


def trips_have_no_limit(patch: pytest.MonkeyPatch) -> None:
    """A trip of renewals may take as long as the driver waits."""
    patch.setattr(_keeper, "Batch", lambda calls, timeout: Batch(calls, 60.0))


def renewals_wait_like_all(patch: pytest.MonkeyPatch) -> None:
    """A trip of renewals stands at the end of the line for a connection."""
    plain = Turns.join
    patch.setattr(Turns, "join", lambda turns, turn, urgent: plain(turns, turn, urgent=False))


def renewals_are_calls_like_others(patch: pytest.MonkeyPatch) -> None:
    """On asyncio a trip of renewals waits until fewer calls are under way."""
    plain = AsyncWire.__init__

    def begin(wire: AsyncWire, *args: Any) -> None:
        plain(wire, *args)
        wire._renewing = wire._at_once

    patch.setattr(AsyncWire, "__init__", begin)


def nobody_stands_in_line(patch: pytest.MonkeyPatch) -> None:
    """Whoever finds a free connection takes it, though others have waited for it."""

    def at_once(loan: Any) -> Any:
        try:
            return loan._driver.connection(loan._pool)
        except loan._driver.full:
            return None

    patch.setattr(_Loan, "_at_once", at_once)


def waits_for_who_has_gone(patch: pytest.MonkeyPatch) -> None:
    """Who stands in line for a connection stands there until it leaves."""
    patch.setattr(_turns, "weakref", SimpleNamespace(ref=lambda turn: lambda: turn))


def sends_no_script_again(patch: pytest.MonkeyPatch) -> None:
    """A renewal that the server does not know by its SHA has failed."""
    unknown = StoreUnavailable("the server does not know the script", maybe_applied=False)

    async def again(wire: AsyncWire, *rest: Any) -> Any:
        return unknown

    patch.setattr(Wire, "_again", lambda wire, *rest: unknown)
    patch.setattr(AsyncWire, "_again", again)


def tries_without_a_pause(patch: pytest.MonkeyPatch) -> None:
    """A lease that a caller renews just now is due again at once."""
    plain = _keeper.renewing

    def renewing(*args: Any) -> Steps[Any]:
        again = yield from plain(*args)
        return {lease: 0.0 if after == 0.01 else after for lease, after in again.items()}

    patch.setattr(_keeping, "renewing", renewing)


def keeps_the_old_times(patch: pytest.MonkeyPatch) -> None:
    """Another ttl changes neither the heartbeat nor the time of the loss."""
    patch.setattr(Keeper, "retime", lambda keeper, lease, ttl_ms: None)


def a_late_beat_is_a_loss(patch: pytest.MonkeyPatch) -> None:
    """A lease that is not renewed on time is given up."""
    plain = Keeper.next_renewals

    def next_renewals(keeper: Keeper) -> list[BaseLease]:
        due = plain(keeper)
        for lease in due:
            if lease.remaining() < 0.6 * lease.ttl:
                lease._lose("the keeper is late")
        return [lease for lease in due if lease.valid]

    patch.setattr(Keeper, "next_renewals", next_renewals)


def checks_the_beat_afterwards(patch: pytest.MonkeyPatch) -> None:
    """Whether a lease can be kept is looked at when it has been granted."""
    plain = BaseFencer._acquiring

    def acquiring(
        client: Any, name: str, ttl: float, wait: Any, keep_alive: Any, *rest: Any
    ) -> tuple[Any, None]:
        steps, _ = plain(client, name, ttl, wait, False, *rest)

        def checked() -> Steps[Any]:
            granted = yield from steps
            _keeper.heartbeat(keep_alive, granted.ttl_ms)
            return granted

        return checked(), None

    patch.setattr(BaseFencer, "_acquiring", acquiring)


def events_for_all_loops(patch: pytest.MonkeyPatch) -> None:
    """Every keeper on asyncio is woken by the same events."""
    plain, changed = TaskKeeping.__init__, (asyncio.Event(), asyncio.Event())

    def begin(keeping: TaskKeeping, *args: Any) -> None:
        plain(keeping, *args)
        keeping._changed = changed

    patch.setattr(TaskKeeping, "__init__", begin)


# The end.


def renews_what_has_ended(patch: pytest.MonkeyPatch) -> None:
    """The keeper neither hears of the end of a lease nor looks whether there was one."""
    patch.setattr(Keeper, "drop", lambda keeper, lease: None)
    patch.setattr(Keeper, "_alive", lambda keeper, lease: True)


def releases_nothing_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """What is kept alive stays held when its client, program or event loop ends."""

    def releasing(leases: list[BaseLease], timeout: float) -> Steps[Any]:
        yield from ()

    patch.setattr(_keeping, "releasing", releasing)


def the_first_failure_ends_the_release(patch: pytest.MonkeyPatch) -> None:
    """Leases are released one by one, until one cannot be."""

    def releasing(leases: list[BaseLease], timeout: float) -> Steps[Any]:
        for lease in leases:
            call = lease._release_call()
            if call is not None:
                [reply] = yield Batch((call,), timeout)
                if isinstance(reply, StoreError):
                    return

    patch.setattr(_keeping, "releasing", releasing)


def failures_come_out_of_the_end(patch: pytest.MonkeyPatch) -> None:
    """A release at the end that gets no answer raises."""
    plain = _keeper.releasing

    def releasing(leases: list[BaseLease], timeout: float) -> Steps[Any]:
        steps = plain(leases, timeout)
        replies = None
        try:
            while True:
                replies = yield steps.send(replies)
                for reply in replies:
                    if isinstance(reply, StoreError):
                        raise reply
        except StopIteration:
            return

    patch.setattr(_keeping, "releasing", releasing)


def only_the_keeper_releases(patch: pytest.MonkeyPatch) -> None:
    """A keeper's task that was cancelled before its first turn leaves all held."""

    async def close(keeping: TaskKeeping) -> None:
        tasks, keeping._tasks = keeping._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    patch.setattr(TaskKeeping, "close", close)


def keeps_nothing_after_a_close(patch: pytest.MonkeyPatch) -> None:
    """A client that was closed stays so."""
    closed: set[int] = set()
    close, keep = ThreadKeeping.close, ThreadKeeping.keep
    close_async, keep_async = TaskKeeping.close, TaskKeeping.keep

    def close_it(keeping: ThreadKeeping) -> None:
        close(keeping)
        closed.add(id(keeping))

    async def close_it_async(keeping: TaskKeeping) -> None:
        await close_async(keeping)
        closed.add(id(keeping))

    def unless_closed(keep: Callable[..., None]) -> Callable[..., None]:
        def keep_it(keeping: Any, *args: Any) -> None:
            if id(keeping) not in closed:
                keep(keeping, *args)

        return keep_it

    patch.setattr(ThreadKeeping, "close", close_it)
    patch.setattr(ThreadKeeping, "keep", unless_closed(keep))
    patch.setattr(TaskKeeping, "close", close_it_async)
    patch.setattr(TaskKeeping, "keep", unless_closed(keep_async))


def closing_forgets_who_comes(patch: pytest.MonkeyPatch) -> None:
    """What is acquired while a client is closed is dropped with the rest."""
    plain = ThreadKeeping.close

    def close(keeping: ThreadKeeping) -> None:
        plain(keeping)
        time.sleep(0.03)
        with keeping._changed:
            keeping._keeper = Keeper(keeping._protocol.clock)

    patch.setattr(ThreadKeeping, "close", close)


def leaves_its_sockets_open(patch: pytest.MonkeyPatch) -> None:
    """A client that is closed ends its keeper, and no more."""
    patch.setattr(Fencer, "close", lambda client: client._keeping.close())


def threads_begin_once(patch: pytest.MonkeyPatch) -> None:
    """Threads that have ended for want of work are taken for running."""

    def ended(keeping: ThreadKeeping) -> bool:
        return keeping._closed or keeping._keeper.idle

    patch.setattr(ThreadKeeping, "_ended", ended)


def clients_are_known_for_ever(patch: pytest.MonkeyPatch) -> None:
    """All clients are on a list, that something may be done with them at the end."""
    plain, clients = Fencer.__init__, []

    def begin(client: Fencer, *args: Any, **options: Any) -> None:
        plain(client, *args, **options)
        clients.append(client)

    patch.setattr(Fencer, "__init__", begin)


def remembers_what_it_dropped(patch: pytest.MonkeyPatch) -> None:
    """A lease that is kept no longer stands in the timetable until its time has come."""
    patch.setattr(_keeper._Timetable, "drop", lambda table, lease: table._at.pop(lease, None))


# Forks.


def a_child_takes_itself_for_its_parent(patch: pytest.MonkeyPatch) -> None:
    """A lease belongs to whoever has the object."""
    mine = property(lambda lease: os.getpid(), lambda lease, pid: None)
    patch.setattr(BaseLease, "_pid", mine, raising=False)


def a_child_keeps_for_its_parent(patch: pytest.MonkeyPatch) -> None:
    """The threads of a keeper are started anew in a forked child, with all that it had."""
    a_child_takes_itself_for_its_parent(patch)
    plain = ThreadKeeping.forget

    def forget(keeping: ThreadKeeping) -> None:
        keeper = vars(keeping).get("_keeper")
        plain(keeping)
        if keeper is not None and keeper.kept:
            time.sleep(0.4)
            keeping._keeper = keeper
            keeping._start()

    patch.setattr(ThreadKeeping, "forget", forget)


def locks_before_it_looks_at_the_pid(patch: pytest.MonkeyPatch) -> None:
    """A renew in a forked child waits for a lock that nobody there will give back."""
    plain = BaseLease._set_out

    def set_out(lease: BaseLease) -> float | None:
        with lease._changing:
            return plain(lease)

    patch.setattr(BaseLease, "_set_out", set_out)


# The loss.


def a_refusal_is_no_loss(patch: pytest.MonkeyPatch) -> None:
    """What the server says of a renewal is heard only if it is a success."""
    plain = BaseLease._settle

    def settle(lease: BaseLease, reply: list[Any], started: float, ttl_ms: int) -> bool:
        return reply[0] == "RENEWED" and plain(lease, reply, started, ttl_ms)

    patch.setattr(BaseLease, "_settle", settle)


def leaves_in_silence(patch: pytest.MonkeyPatch) -> None:
    """A block whose lease was lost inside is left as if nothing were."""

    def leaving(lease: BaseLease, error: BaseException | None) -> Steps[Any]:
        yield from lease._releasing()

    patch.setattr(BaseLease, "_leaving", leaving)


def hides_the_error_of_the_body(patch: pytest.MonkeyPatch) -> None:
    """A block whose lease was lost tells of that alone, whatever went wrong inside."""
    plain = BaseLease._leaving
    patch.setattr(BaseLease, "_leaving", lambda lease, error: plain(lease, None))


def cancels_no_body(patch: pytest.MonkeyPatch) -> None:
    """A loss is told by the flag and the callbacks, and the body works on."""
    plain = AsyncLease._told

    def told(lease: AsyncLease, reason: str) -> None:
        lease._body = None
        plain(lease, reason)

    patch.setattr(AsyncLease, "_told", told)


def the_cancellation_comes_out(patch: pytest.MonkeyPatch) -> None:
    """The body is cancelled, and nobody remembers who did it."""
    plain = AsyncLease._told

    def told(lease: AsyncLease, reason: str) -> None:
        plain(lease, reason)
        lease._interrupted = False

    patch.setattr(AsyncLease, "_told", told)


def any_cancellation_is_the_loss(patch: pytest.MonkeyPatch) -> None:
    """Who leaves the block by a cancellation is told of a loss."""
    plain = AsyncLease.__aexit__

    async def leave(lease: AsyncLease, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, asyncio.CancelledError) and lease._body is not None:
            lease._body.uncancel()
            raise lease._ended() from error
        await plain(lease, kind, error, trace)

    patch.setattr(AsyncLease, "__aexit__", leave)


def counts_no_cancellations(patch: pytest.MonkeyPatch) -> None:
    """A body that the loss has cancelled was cancelled by nobody else."""
    patch.setattr(
        AsyncLease,
        "_cancelling",
        property(lambda lease: 99, lambda lease, count: None),
        raising=False,
    )


def cancels_who_has_left(patch: pytest.MonkeyPatch) -> None:
    """A lease knows who entered the block, and not that it was left."""

    def change(lease: AsyncLease, body: Any) -> None:
        vars(lease)["_body"] = body or vars(lease).get("_body")

    body = property(lambda lease: vars(lease)["_body"], change)
    patch.setattr(AsyncLease, "_body", body, raising=False)


def tells_the_loop_that_runs_here(patch: pytest.MonkeyPatch) -> None:
    """Who finds out about a loss is taken to be in the event loop."""

    def announce(lease: AsyncLease, reason: str) -> None:
        asyncio.get_running_loop().call_soon(lease._told, reason)

    patch.setattr(AsyncLease, "_announce", announce)


def tells_the_loop_alone(patch: pytest.MonkeyPatch) -> None:
    """A loss is told to the event loop, though it may have ended."""

    def announce(lease: AsyncLease, reason: str) -> None:
        lease._loop.call_soon_threadsafe(lease._told, reason)

    patch.setattr(AsyncLease, "_announce", announce)


def awaits_no_callback(patch: pytest.MonkeyPatch) -> None:
    """Only plain functions are called."""

    async def report(lease: AsyncLease, callback: Callable[[str], object], reason: str) -> None:
        if not inspect.iscoroutinefunction(callback):
            callback(reason)

    patch.setattr(AsyncLease, "_report", report)


def calls_where_it_stands(patch: pytest.MonkeyPatch) -> None:
    """Callbacks run in the thread that found out, which is the keeper's as a rule."""

    def call(lease: Lease, callbacks: list[Callable[[str], object]], reason: str) -> None:
        for callback in callbacks:
            try:
                callback(reason)
            except Exception:
                pass

    patch.setattr(Lease, "_call", call)


def no_callback_after_the_loss(patch: pytest.MonkeyPatch) -> None:
    """A callback can be set on a valid lease only."""
    plain = Lease.on_lost

    def on_lost(lease: Lease, callback: Callable[[str], object]) -> None:
        lease.check()
        plain(lease, callback)

    patch.setattr(Lease, "on_lost", on_lost)


def a_release_is_told_as_a_loss(patch: pytest.MonkeyPatch) -> None:
    """Whatever ends a lease is told to the callbacks."""
    plain = BaseLease._releasing

    def releasing(lease: BaseLease, *rest: Any) -> Steps[Any]:
        released = yield from plain(lease, *rest)
        lease._announce("it has been released")
        return released

    patch.setattr(BaseLease, "_releasing", releasing)
