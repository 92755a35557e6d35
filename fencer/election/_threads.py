"""The election for threads."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from fencer import _check
from fencer._fork import forget_in_child
from fencer._steps import Call, Enter, Seen, Sleep, Wait
from fencer._steps import Step as ProtocolStep
from fencer.client import Fencer, Lease
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
from fencer.election._signals import asked_to_stop
from fencer.errors import StoreError
from fencer.guards import Guard
from fencer.records import Leader


class Election(BaseElection[Lease]):
    """One candidate for the lead on a name. It campaigns for ever, in a thread of its own.

    Args:
        fencer: the client; its holder id is this candidate's id, so give each candidate its own.
        name: what is led. Who holds the lease on it is the leader.
        ttl: seconds after which a leader that is heard of no more is replaced.
        heartbeat: seconds between two renewals, at most ``ttl/2``; by default ``ttl/3``.
        retry_interval: seconds between two looks at the leader; wake-ups make a follower the leader
            sooner. At most ``ttl``.
        info: fields of your own that others see of the leader.
        guards: are shown the new token before ``on_elected`` runs, so that from then on the leader
            before can write nothing there.
        on_elected: called with the lease. It should start the work and return.
        on_lost: called with the reason, once after each ``on_elected``. It should stop the work;
            the lease is released only when it has returned.
        on_leader_change: called in followers with the new `Leader`.

    The callbacks run one after the other in the candidate's thread. What they raise is logged; an
    ``on_elected`` that raises gives the lead up.

    Raises:
        InvalidArgument: an argument is not allowed, or the times do not fit each other.

    Guarantees:
        ``on_lost`` is called before another candidate can be elected, as long as this process runs
        and no callback blocks. A process that was stopped meanwhile can still write: guards refuse
        that.
    """

    def __init__(
        self,
        fencer: Fencer,
        name: str,
        *,
        ttl: float = 10.0,
        heartbeat: float | None = None,
        retry_interval: float = 2.0,
        info: Mapping[str, Any] | None = None,
        guards: Sequence[Guard] = (),
        on_elected: Callable[[Lease], object] | None = None,
        on_lost: Callable[[str], object] | None = None,
        on_leader_change: Callable[[Leader], object] | None = None,
    ) -> None:
        timings = Timings.checked(ttl, heartbeat, retry_interval)
        settings = Settings(_check.name(name), timings, on_elected, on_lost, on_leader_change)
        super().__init__(fencer, settings, info)
        self._fencer = fencer
        self._guards = guards
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew: a forked child has neither the thread nor a part in its parent's lead."""
        self._changing = threading.Lock()
        self._candidate: _Candidate | None = None
        self._campaign = Campaign(self._settings, self._fencer.holder)

    def leader(self) -> Leader | None:
        """Ask the store who leads; ``None`` if nobody does.

        Raises:
            StoreError: the server refused or did not answer.
        """
        return self._fencer.inspect(self.name).leader

    def start(self) -> Self:
        """Begin to campaign; harmless if it does so already.

        After a `stop` that has not come to its end yet, it begins when that has.
        """
        with self._changing:
            if self._candidate is None or self._candidate.over:
                self._campaign = Campaign(self._settings, self._fencer.holder)
                self._candidate = _Candidate(self, self._fencer, self._campaign, self._candidate)
                self._candidate.start()
        return self

    def stop(self, timeout: float | None = None) -> None:
        """Stop campaigning; as the leader, run ``on_lost`` to its end and then release.

        Harmless if it does not run. From within a callback it only asks for the stop. It is called
        when the interpreter ends, too, and then waits for one ttl at most.

        Args:
            timeout: seconds to wait for that; ``None`` is for ever. What takes longer goes on, and
                the lease, renewed no more, ends with its ttl.
        """
        with self._changing:
            candidate = self._candidate
            if candidate is not None:
                candidate.ask_to_stop()
        this = threading.current_thread()
        if candidate is not None and not (isinstance(this, _Candidate) and this.election is self):
            candidate.join(timeout)

    def run(self) -> None:
        """Campaign until SIGTERM or SIGINT, then stop. Only in the main thread.

        A second signal acts as it would have without this.
        """
        with asked_to_stop() as wait:
            try:
                self.start()
                wait(None)
            finally:
                self.stop()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _at_exit(self) -> None:
        self.stop(timeout=self._settings.timings.ttl)


class _Candidate(threading.Thread):
    """The thread of one candidate, from a start to the end of the stop after it."""

    def __init__(
        self, election: Election, fencer: Fencer, campaign: Campaign, before: _Candidate | None
    ) -> None:
        super().__init__(name="fencer-election", daemon=True)
        self.election = election
        self._fencer = fencer
        self.campaign = campaign
        self._before = before
        self._changed = threading.Event()
        self._wire = _CandidateWire(fencer, self)

    @property
    def over(self) -> bool:
        """Whether it has stopped, or is about to."""
        return self.campaign.stopping or not self.is_alive()

    def ask_to_stop(self) -> None:
        """Have the campaign end, and end the step that is under way."""
        self.campaign.stopping = True
        self._changed.set()
        self._wire.wake()

    def run(self) -> None:
        """Campaign."""
        if self._before is not None:
            self._before.join()
            self._before = None
        try:
            self._carry_out(self.campaign.run())
        finally:
            atexit.unregister(self.election._at_exit)
            if self.campaign.lease is not None:  # It broke: a dead leader must not be renewed.
                self._fencer._keeping.drop(self.campaign.lease)

    def seen(self, holder: str) -> None:
        """Take in that another leads."""
        self._carry_out(self.campaign.seen(holder))

    def _carry_out(self, steps: Steps[None]) -> None:
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
                outcome = self._do(step)
            except BaseException as error:
                fault = error

    def _do(self, step: Step) -> Any:
        match step:
            case Obtain():
                return self._obtain()
            case Look():
                return self.election.leader()
            case Tell(callback, argument):
                return callback(argument)
            case Hold(lease):
                return self._hold(lease)
            case LetGo(lease):
                return self._fencer._keeping.drop(lease)
            case GiveUp(lease):
                return lease.release()
            case Rest(seconds):
                return self._changed.wait(seconds)

    def _obtain(self) -> Lease | None:
        timings = self.campaign.settings.timings
        self._changed.clear()
        if self.campaign.stopping:
            return None
        try:
            lease = self._fencer._acquire(
                self.election.name,
                ttl=timings.ttl,
                wait=None,
                keep_alive=timings.heartbeat,
                info=self.election._info,
                guards=self.election._guards,
                wire=self._wire,
                look=timings.retry_interval,
            )
        except Stopped:
            return None
        # What is registered last is called first: on_lost comes before the keeper's release.
        atexit.unregister(self.election._at_exit)
        atexit.register(self.election._at_exit)
        return lease

    def _hold(self, lease: Lease) -> None:
        lease.on_lost(lambda reason: self._changed.set())
        while lease.valid and not self.campaign.stopping:
            # Nobody tells of a lease that somebody released by hand.
            self._changed.wait(self.campaign.settings.timings.heartbeat)
            self._changed.clear()


class _CandidateWire:
    """The client's wire; its waits end when the candidate must stop, and it tells what it meets."""

    def __init__(self, fencer: Fencer, candidate: _Candidate) -> None:
        self._fencer = fencer
        self._candidate = candidate
        self._entered: str | None = None

    def do(self, step: ProtocolStep) -> Any:
        """Carry out one step."""
        match step:
            case Call():
                return self._call(step)
            case Seen(holder):
                return self._candidate.seen(holder)
            case Enter(grant):
                self._entered = grant
            case Wait() | Sleep():
                if self._candidate.campaign.stopping:
                    raise Stopped
        return self._fencer._wire.do(step)

    def _call(self, call: Call) -> Any:
        try:
            answer = self._fencer._wire.call(call)
        except StoreError as error:
            self._candidate.campaign.heard(error)
            raise
        self._candidate.campaign.heard(None)
        return answer

    def wake(self) -> None:
        """End a wait that is under way."""
        if self._entered is not None:
            self._fencer._wakeups.nudge(self._entered)
