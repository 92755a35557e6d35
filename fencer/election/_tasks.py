"""The election for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from fencer import _check
from fencer._drive import to_the_end
from fencer._steps import Call, Seen, Sleep, Wait
from fencer._steps import Step as ProtocolStep
from fencer.aio import AsyncFencer, AsyncLease
from fencer.election._base import BaseElection
from fencer.election._core import (
    Campaign,
    GiveUp,
    Hold,
    LetGo,
    Look,
    Obtain,
    Rest,
    Settings,
    Step,
    Steps,
    Stopped,
    Tell,
    Timings,
)
from fencer.errors import StoreError
from fencer.guards import AsyncGuard, Guard
from fencer.records import Leader

T = TypeVar("T")


class AsyncElection(BaseElection[AsyncLease]):
    """One candidate for the lead on a name, in a task of its own: see `fencer.Election`.

    Callbacks may be coroutine functions. A task that is cancelled from outside, as by the end of
    the event loop, steps down as `stop` does.
    """

    def __init__(
        self,
        fencer: AsyncFencer,
        name: str,
        *,
        ttl: float = 10.0,
        heartbeat: float | None = None,
        retry_interval: float = 2.0,
        info: Mapping[str, Any] | None = None,
        guards: Sequence[Guard | AsyncGuard] = (),
        on_elected: Callable[[AsyncLease], object] | None = None,
        on_lost: Callable[[str], object] | None = None,
        on_leader_change: Callable[[Leader], object] | None = None,
    ) -> None:
        timings = Timings.checked(ttl, heartbeat, retry_interval)
        settings = Settings(_check.name(name), timings, on_elected, on_lost, on_leader_change)
        super().__init__(fencer, settings, info)
        self._fencer = fencer
        self._guards = guards
        self._candidate: _Candidate | None = None

    async def leader(self) -> Leader | None:
        """Ask the store who leads; ``None`` if nobody does: see `fencer.Election.leader`."""
        return (await self._fencer.inspect(self.name)).leader

    async def start(self) -> Self:
        """Begin to campaign; harmless if it does so already: see `fencer.Election.start`."""
        if self._candidate is None or self._candidate.over:
            self._campaign = Campaign(self._settings, self._fencer.holder)
            self._candidate = _Candidate(self, self._fencer, self._campaign, self._candidate)
        return self

    async def stop(self, timeout: float | None = None) -> None:
        """Stop campaigning; as the leader, run ``on_lost`` to its end and then release.

        Harmless if it does not run. From within a callback it only asks for the stop. It happens
        when the event loop ends, too.

        Args:
            timeout: seconds to wait for that; ``None`` is for ever. What takes longer goes on, and
                the lease, renewed no more, ends with its ttl.
        """
        candidate = self._candidate
        if candidate is not None:
            candidate.ask_to_stop()
            if not candidate.calls_us():
                await asyncio.wait([candidate.task], timeout=timeout)

    async def run(self) -> None:
        """Campaign until SIGTERM or SIGINT, then stop: see `fencer.Election.run`."""
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        try:
            await self.start()
            await asked.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            await self.stop()

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()


class _Candidate:
    """The task of one candidate, from a start to the end of the stop after it.

    No cancellation interrupts it: one from outside, as by the end of the event loop, is taken for a
    request to stop, and goes on its way when that is done.
    """

    def __init__(
        self,
        election: AsyncElection,
        fencer: AsyncFencer,
        campaign: Campaign,
        before: _Candidate | None,
    ) -> None:
        self.campaign = campaign
        self._election = election
        self._fencer = fencer
        self._before = before
        self._callback: asyncio.Task[Any] | None = None
        self._stopped = asyncio.Event()
        self._cancelled: asyncio.CancelledError | None = None
        self._wire = _CandidateWire(fencer, self)
        self.task = asyncio.create_task(self._run(), name="fencer-election")

    @property
    def over(self) -> bool:
        """Whether it has stopped, or is about to."""
        return self.campaign.stopping or self.task.done()

    def ask_to_stop(self) -> None:
        """Have the campaign end, and end the step that is under way."""
        self.campaign.stopping = True
        self._stopped.set()

    def calls_us(self) -> bool:
        """Whether the task that asks is a callback's."""
        before = self._before
        this = asyncio.current_task()
        return this is self._callback or (before is not None and before.calls_us())

    async def seen(self, holder: str) -> None:
        """Take in that another leads."""
        await to_the_end(self._carry_out(self.campaign.seen(holder)))

    async def _run(self) -> None:
        try:
            if self._before is not None:
                await self._finish(self._before.task)
                self._before = None
            await self._carry_out(self.campaign.run())
        except Exception:
            self.campaign.log(logging.CRITICAL, "The election broke", exc_info=True)
            raise
        finally:
            if self.campaign.lease is not None:  # A dead leader must not be renewed.
                self._fencer._keeping.drop(self.campaign.lease)
        if self._cancelled is not None:
            raise self._cancelled

    async def _carry_out(self, steps: Steps[None]) -> None:
        outcome: Any = None
        fault: BaseException | None = None
        while True:
            try:
                step = steps.send(outcome) if fault is None else steps.throw(fault)
            except StopIteration:
                return
            finally:
                fault = None
            try:
                outcome = await self._do(step)
            except (Exception, asyncio.CancelledError) as error:
                fault = error

    async def _do(self, step: Step) -> Any:
        match step:
            case Obtain():
                return await self._unless_stopped(self._obtain())
            case Look():
                return await self._election.leader()
            case Tell(callback, argument):
                return await self._tell(callback, argument)
            case Hold(lease):
                return await self._unless_stopped(self._hold(lease))
            case LetGo(lease):
                return self._fencer._keeping.drop(lease)
            case GiveUp(lease):
                return await self._finish(asyncio.ensure_future(lease.release()))
            case Rest(seconds):
                return await self._unless_stopped(asyncio.sleep(seconds))

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do the work, or cancel it when the candidate must stop, and return ``None``."""
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            self._cancel(error)
        stopped.cancel()
        working.cancel()  # No effect on what is done.
        return await self._finish(working)

    async def _finish(self, task: asyncio.Task[T]) -> T | None:
        """Wait for a task; ``None`` if it was cancelled."""
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                self._cancel(error)
        return None if task.cancelled() else task.result()

    def _cancel(self, error: asyncio.CancelledError) -> None:
        """Stop because this task was cancelled."""
        self._cancelled = error
        self.ask_to_stop()
        if self.campaign.lease is not None:
            # At the end of the loop the keeper releases what is still there, and we have yet to
            # call on_lost.
            self._fencer._keeping.drop(self.campaign.lease)

    async def _tell(self, callback: Callable[..., Any], argument: Any) -> None:
        async def call() -> None:
            result = callback(argument)
            if inspect.isawaitable(result):
                await result

        self._callback = asyncio.create_task(call(), name="fencer-election-callback")
        await self._finish(self._callback)
        if self._callback.cancelled() and not self.campaign.stopping:
            raise asyncio.CancelledError("the callback cancelled itself")

    async def _obtain(self) -> AsyncLease | None:
        timings = self.campaign.settings.timings
        if self.campaign.stopping:
            return None
        try:
            return await self._fencer._acquire(
                self._election.name,
                ttl=timings.ttl,
                wait=None,
                keep_alive=timings.heartbeat,
                info=self._election._info,
                guards=self._election._guards,
                wire=self._wire,
                look=timings.retry_interval,
            )
        except Stopped:
            return None

    async def _hold(self, lease: AsyncLease) -> None:
        while lease.valid:
            # Nobody tells of a lease that somebody released by hand.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.campaign.settings.timings.heartbeat):
                    await lease.lost.wait()


class _CandidateWire:
    """The client's wire, which tells the candidate whom it waits for, and how the store answers."""

    def __init__(self, fencer: AsyncFencer, candidate: _Candidate) -> None:
        self._fencer = fencer
        self._candidate = candidate

    async def do(self, step: ProtocolStep) -> Any:
        """Carry out one step."""
        match step:
            case Call():
                return await self._call(step)
            case Seen(holder):
                return await self._candidate.seen(holder)
            case Wait() | Sleep():
                # Something below may have swallowed the cancellation that tells of it.
                if self._candidate.campaign.stopping:
                    raise Stopped
        return await self._fencer._wire.do(step)

    async def _call(self, call: Call) -> Any:
        try:
            answer = await self._fencer._wire.call(call)
        except StoreError as error:
            self._candidate.campaign.heard(error)
            raise
        self._candidate.campaign.heard(None)
        return answer
