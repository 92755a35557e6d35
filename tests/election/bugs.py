"""Planted bugs of elections: see `tests.faults.planted`."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

import fencer.aio
import fencer.client
from fencer import _keeper, _keeping
from fencer.election import AsyncElection, Election, _signals, _tasks, _threads
from fencer.election._base import BaseElection
from fencer.election._core import STOPPED, Campaign, GiveUp, LetGo, Steps, Tell, Timings
from fencer.errors import FencerError
from fencer.guards._base import Mark
from tests.faults import bugs
from tests.faults.planted import in_script

How = Callable[[Campaign, Callable[[Any], Steps[bool]], Any], Steps[bool]]


def _told(patch: pytest.MonkeyPatch, which: str, how: How) -> None:
    """Have one of the callbacks told by ``how(campaign, tell, argument)``."""
    plain = Campaign._tell

    def tell(campaign: Campaign, callback: Any, argument: Any) -> Steps[bool]:
        if callback is None or callback is not getattr(campaign.settings, which):
            return (yield from plain(campaign, callback, argument))
        return (yield from how(campaign, lambda said: plain(campaign, callback, said), argument))

    patch.setattr(Campaign, "_tell", tell)


# What the callbacks hear.


def elected_before_it_leads(patch: pytest.MonkeyPatch) -> None:
    """on_elected is called before the election itself knows that it leads."""

    def how(campaign: Campaign, tell: Any, lease: Any) -> Steps[bool]:
        campaign.leading = False
        done = yield from tell(lease)
        campaign.leading = True
        return bool(done)

    _told(patch, "on_elected", how)


def keeps_after_on_elected(patch: pytest.MonkeyPatch) -> None:
    """The lease is renewed only once on_elected has come to its end."""

    def how(campaign: Campaign, tell: Any, lease: Any) -> Steps[bool]:
        yield LetGo(lease)
        done = yield from tell(lease)
        lease._keeping.keep(lease, campaign.settings.timings.heartbeat)
        return bool(done)

    _told(patch, "on_elected", how)


def releases_first(patch: pytest.MonkeyPatch) -> None:
    """The lease is released before on_lost is called, and if that fails it is not called."""

    def how(campaign: Campaign, tell: Any, reason: Any) -> Steps[bool]:
        try:
            yield GiveUp(campaign.lease)
        except FencerError:
            return False
        time.sleep(0.05)  # Time enough for another to be elected.
        return bool((yield from tell(reason)))

    _told(patch, "on_lost", how)


def lets_in_while_it_steps_down(patch: pytest.MonkeyPatch) -> None:
    """A leader counts as one until on_lost has come to its end."""

    def how(campaign: Campaign, tell: Any, reason: Any) -> Steps[bool]:
        campaign.leading = True
        done = yield from tell(reason)
        campaign.leading = False
        return bool(done)

    _told(patch, "on_lost", how)


def keeps_what_on_lost_failed_for(patch: pytest.MonkeyPatch) -> None:
    """The exception of an on_lost skips the release."""
    failed: list[Campaign] = []

    def how(campaign: Campaign, tell: Any, reason: Any) -> Steps[bool]:
        if not (done := (yield from tell(reason))):
            failed.append(campaign)
        return bool(done)

    give_up = Campaign._give_up

    def kept(campaign: Campaign, lease: Any) -> Steps[None]:
        if campaign not in failed:
            yield from give_up(campaign, lease)

    _told(patch, "on_lost", how)
    patch.setattr(Campaign, "_give_up", kept)


def passes_its_turn(patch: pytest.MonkeyPatch) -> None:
    """A follower whose on_leader_change has failed gives the lead away when it gets it."""
    failed: list[Campaign] = []

    def how(campaign: Campaign, tell: Any, leader: Any) -> Steps[bool]:
        if not (done := (yield from tell(leader))):
            failed.append(campaign)
        return bool(done)

    lead = Campaign._lead

    def passes(campaign: Campaign, lease: Any) -> Steps[None]:
        yield from campaign._give_up(lease) if campaign in failed else lead(campaign, lease)

    _told(patch, "on_leader_change", how)
    patch.setattr(Campaign, "_lead", passes)


def tells_of_no_release(patch: pytest.MonkeyPatch) -> None:
    """on_lost is called for a loss and a stop, and not where the lease was released by hand."""

    def how(campaign: Campaign, tell: Any, reason: Any) -> Steps[bool]:
        return reason == "it has been released" or bool((yield from tell(reason)))

    _told(patch, "on_lost", how)


def calls_every_end_a_stop(patch: pytest.MonkeyPatch) -> None:
    """on_lost hears that the election was stopped, whatever it was."""
    _told(patch, "on_lost", lambda campaign, tell, reason: tell(STOPPED))


def tells_at_once(patch: pytest.MonkeyPatch) -> None:
    """on_lost is called by whoever finds the loss, whatever else is under way."""
    lead = Campaign._lead

    def hasty(campaign: Campaign, lease: Any) -> Steps[None]:
        lease.on_lost(campaign.settings.on_lost)
        yield from lead(campaign, lease)

    patch.setattr(Campaign, "_lead", hasty)


def tells_at_each_look(patch: pytest.MonkeyPatch) -> None:
    """A follower does not remember which leader it was told of."""
    seen = Campaign.seen

    def forgetful(campaign: Campaign, holder: str) -> Steps[None]:
        campaign._leader = None
        yield from seen(campaign, holder)

    patch.setattr(Campaign, "seen", forgetful)


def lets_exits_pass(patch: pytest.MonkeyPatch) -> None:
    """Only an ``Exception`` of a callback is caught: a ``SystemExit`` ends the thread."""
    carry_out = _threads._Candidate._carry_out

    def quietly(candidate: Any, steps: Steps[None]) -> None:
        with contextlib.suppress(SystemExit):  # as a thread does, which pytest would complain of
            carry_out(candidate, steps)

    def tell(campaign: Campaign, callback: Any, argument: Any) -> Steps[bool]:
        try:
            if callback is not None:
                yield Tell(callback, argument)
        except Exception:
            return False
        return True

    patch.setattr(Campaign, "_tell", tell)
    patch.setattr(_threads._Candidate, "_carry_out", quietly)


def takes_a_cancelled_callback_for_a_stop(patch: pytest.MonkeyPatch) -> None:
    """A callback that cancels itself cancels the candidate."""
    plain = _tasks._Candidate._tell

    async def tell(candidate: Any, callback: Any, argument: Any) -> None:
        try:
            await plain(candidate, callback, argument)
        except asyncio.CancelledError:
            candidate.ask_to_stop()

    patch.setattr(_tasks._Candidate, "_tell", tell)


def cuts_callbacks_off(patch: pytest.MonkeyPatch) -> None:
    """A callback is awaited as a part of the wait in line, and cancelled with it."""

    async def seen(candidate: Any, holder: str) -> None:
        await candidate._carry_out(candidate.campaign.seen(holder))

    async def tell(candidate: Any, callback: Any, argument: Any) -> None:
        result = callback(argument)
        if inspect.isawaitable(result):
            await result

    patch.setattr(_tasks._Candidate, "seen", seen)
    patch.setattr(_tasks._Candidate, "_tell", tell)


# Who leads.


def shares_the_lead(patch: pytest.MonkeyPatch) -> None:
    """What a candidate knows of its lead is kept on the class, and so by all of the process."""
    plain = BaseElection._leading
    led: dict[str, Any] = {}

    def leading(election: BaseElection[Any]) -> Any:
        lease = plain(election) or led.get(election.name)
        led[election.name] = lease
        return lease if lease is not None and lease.valid else None

    patch.setattr(BaseElection, "_leading", leading)


def leads_unless_told_otherwise(patch: pytest.MonkeyPatch) -> None:
    """A candidate that has not heard of a leader takes itself for it."""
    patch.setattr(BaseElection, "is_leader", property(lambda self: self._campaign._leader is None))


def leads_by_its_id(patch: pytest.MonkeyPatch) -> None:
    """Whose id the store shows is the leader."""

    def is_leader(election: Election) -> bool:
        leader = election.leader()
        return leader is not None and leader.holder == election.instance_id

    patch.setattr(BaseElection, "is_leader", property(is_leader))


def forgets_the_info(patch: pytest.MonkeyPatch) -> None:
    """The candidate's own fields are not shown."""
    plain = BaseElection.__init__

    def init(election: Any, client: Any, settings: Any, info: Any) -> None:
        plain(election, client, settings, None)

    patch.setattr(BaseElection, "__init__", init)


def shows_no_guard(patch: pytest.MonkeyPatch) -> None:
    """The guards are not shown the new token."""
    for module in (fencer.client, fencer.aio):
        patch.setattr(module, "checked", lambda guards, tasks: ())


def heals_nothing(patch: pytest.MonkeyPatch) -> None:
    """A lease whose lock key is gone is lost."""
    in_script(
        patch,
        "renew",
        "if issued ~= mine then\n    answer",
        "if issued ~= mine or not held_by then\n    answer",
    )


def releases_what_is_lost(patch: pytest.MonkeyPatch) -> None:
    """A release is sent even after the loss, and compares nothing."""
    bugs.releases_without_compare(patch)

    def releasing(lease: Any, durable: bool = False) -> Generator[Any, Any, Any]:
        released, _ = yield from lease._protocol.release(lease._granted, None)
        return released

    patch.setattr("fencer._lease.BaseLease._releasing", releasing)


def keeps_ten_at_most(patch: pytest.MonkeyPatch) -> None:
    """The eleventh lease of a process is not renewed."""
    plain = _keeping.ThreadKeeping.keep
    kept: list[Any] = []

    def keep(keeping: Any, lease: Any, heartbeat: float | None) -> None:
        kept.append(lease)
        plain(keeping, lease, heartbeat if len(kept) <= 10 else None)

    patch.setattr(_keeping.ThreadKeeping, "keep", keep)


def loses_what_is_not_answered(patch: pytest.MonkeyPatch) -> None:
    """A renewal that fails once ends the lease."""
    plain = _keeper.renewing

    def renewing(leases: Any, *rest: Any) -> Generator[Any, Any, Any]:
        outcomes = yield from plain(leases, *rest)
        for lease, again in outcomes.items():
            if again is not None:
                lease._lose("a renewal was not answered")
        return outcomes

    patch.setattr(_keeping, "renewing", renewing)


# Starting and stopping.


def tells_again_at_a_start(patch: pytest.MonkeyPatch) -> None:
    """A second start begins the term once more."""
    plain = Election.start

    def start(election: Election) -> Election:
        if election.lease is not None and election._settings.on_elected is not None:
            election._settings.on_elected(election.lease)
        return plain(election)

    patch.setattr(Election, "start", start)


def takes_a_stop_back(patch: pytest.MonkeyPatch) -> None:
    """A start while a stop is under way has the leader go on."""
    plain = Election.start

    def start(election: Election) -> Election:
        candidate = election._candidate
        if candidate is None or not candidate.is_alive():
            return plain(election)
        candidate.campaign.stopping, candidate.campaign.leading = False, True
        return election

    patch.setattr(Election, "start", start)


def starts_its_thread_again(patch: pytest.MonkeyPatch) -> None:
    """An election has one thread, which no second start can start."""

    def start(election: Election) -> Election:
        if election._candidate is None:
            campaign = election._campaign
            election._candidate = _threads._Candidate(election, election._fencer, campaign, None)
        if election._candidate.over:
            election._candidate.start()
        return election

    patch.setattr(Election, "start", start)


def joins_what_never_ran(patch: pytest.MonkeyPatch) -> None:
    """A stop waits for a thread that was never started."""
    plain = Election.stop

    def stop(election: Election, timeout: float | None = None) -> None:
        if election._candidate is None:
            campaign = election._campaign
            election._candidate = _threads._Candidate(election, election._fencer, campaign, None)
        plain(election, timeout)

    patch.setattr(Election, "stop", stop)


def waits_for_itself(patch: pytest.MonkeyPatch) -> None:
    """A stop from within a callback waits for the end of the callback."""

    def stop(election: Election, timeout: float | None = None) -> None:
        if (candidate := election._candidate) is not None:
            candidate.ask_to_stop()
            candidate.join(timeout)

    patch.setattr(Election, "stop", stop)


def stops_the_work_itself(patch: pytest.MonkeyPatch) -> None:
    """Each stop calls on_lost, and does not wait for its turn."""
    plain = Election.stop

    def stop(election: Election, timeout: float | None = None) -> None:
        if election.lease is not None and election._settings.on_lost is not None:
            election._settings.on_lost(STOPPED)
        plain(election, timeout)

    patch.setattr(Election, "stop", stop)


def never_releases(patch: pytest.MonkeyPatch) -> None:
    """A leader that stops lets its lease run out."""
    patch.setattr(Campaign, "_give_up", lambda campaign, lease: iter(()))


def leads_though_stopped(patch: pytest.MonkeyPatch) -> None:
    """A grant that crosses the stop begins a term, if a short one."""
    plain = Campaign._lead

    def lead(campaign: Campaign, lease: Any) -> Steps[None]:
        if campaign.stopping:
            yield from campaign._tell(campaign.settings.on_elected, lease)
            yield from campaign._tell(campaign.settings.on_lost, STOPPED)
        yield from plain(campaign, lease)

    patch.setattr(Campaign, "_lead", lead)


def runs_on_after_its_block(patch: pytest.MonkeyPatch) -> None:
    """The end of the block does not stop the election."""

    async def leave(*_: Any) -> None: ...

    patch.setattr(Election, "__exit__", lambda *_: None)
    patch.setattr(AsyncElection, "__aexit__", leave)


def closes_without_a_release(patch: pytest.MonkeyPatch) -> None:
    """A client that is closed leaves its leases to themselves."""

    def releasing(leases: Any, timeout: float) -> Iterator[Any]:
        yield from ()

    patch.setattr(_keeping, "releasing", releasing)


# The process.


def ends_without_a_stop(patch: pytest.MonkeyPatch) -> None:
    """The end of the interpreter does not stop the election."""
    patch.setattr(Election, "_at_exit", lambda election: None)


def ends_as_a_leader(patch: pytest.MonkeyPatch) -> None:
    """What is to be done at the end takes every candidate for the leader."""
    plain = Election.start

    def start(election: Any) -> Any:
        atexit.register(lambda: election.lease.release())
        return plain(election)

    patch.setattr(Election, "start", start)


def hears_no_sigterm(patch: pytest.MonkeyPatch) -> None:
    """Only SIGINT is a signal to stop."""
    patch.setattr(_signals, "_NUMBERS", (signal.SIGINT,))


def hides_a_second_signal(patch: pytest.MonkeyPatch) -> None:
    """A second signal ends the process as if the stop had come to its end."""
    plain = _signals.asked_to_stop

    @contextlib.contextmanager
    def asked_to_stop() -> Iterator[Any]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with plain() as wait:
            yield wait

    def join(candidate: threading.Thread, timeout: float | None = None) -> None:
        while candidate.is_alive():
            threading.Thread.join(candidate, 0.05)  # The handler runs when the main thread does.

    patch.setattr(_threads, "asked_to_stop", asked_to_stop)
    patch.setattr(_threads._Candidate, "join", join)


def remembers_in_a_child(patch: pytest.MonkeyPatch) -> None:
    """A forked child takes its parent's lead for its own."""
    patch.setattr(_threads, "forget_in_child", lambda election: None)


# The store.


def complains_each_time(patch: pytest.MonkeyPatch) -> None:
    """Each try that fails is told, not only the first."""
    plain = Campaign.trouble

    def trouble(campaign: Campaign, error: FencerError) -> None:
        campaign._in_trouble = False
        plain(campaign, error)

    patch.setattr(Campaign, "trouble", trouble)


def complains_at_once(patch: pytest.MonkeyPatch) -> None:
    """One try that fails is trouble."""
    plain = Campaign.heard

    def heard(campaign: Campaign, error: Any) -> None:
        plain(campaign, error)
        if error is not None:
            campaign.trouble(error)

    patch.setattr(Campaign, "heard", heard)


# What only the leader does.


def lets_nobody_in(patch: pytest.MonkeyPatch) -> None:
    """No task is let in, not on the leader either."""
    plain = BaseElection._leading
    patch.setattr(BaseElection, "is_leader", property(lambda self: plain(self) is not None))
    patch.setattr(BaseElection, "_leading", lambda self: None)


def ignores_the_name(patch: pytest.MonkeyPatch) -> None:
    """A task always goes by the name of its function."""
    plain = BaseElection.leader_only
    patch.setattr(BaseElection, "leader_only", lambda self, task, *, name=None: plain(self, task))


def wraps_no_coroutines(patch: pytest.MonkeyPatch) -> None:
    """A coroutine function becomes a function that returns a coroutine."""
    plain = BaseElection.leader_only

    def leader_only(election: Any, task: Any, *, name: str | None = None) -> Any:
        return lambda *args: plain(election, task, name=name)(*args)

    patch.setattr(BaseElection, "leader_only", leader_only)


def accepts_every_token(patch: pytest.MonkeyPatch) -> None:
    """The guards in Python accept every token."""
    patch.setattr(Mark, "accept", lambda mark, claim, resource: Mark(*claim))


def checks_no_times(patch: pytest.MonkeyPatch) -> None:
    """The times are taken as they come."""

    def checked(ttl: float, heartbeat: float | None, retry_interval: float) -> Timings:
        return Timings(ttl, ttl / 3 if heartbeat is None else heartbeat, retry_interval)

    patch.setattr(Timings, "checked", checked)
