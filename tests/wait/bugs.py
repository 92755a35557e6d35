"""Planted bugs of those who wait, and of those who serve them. See `tests.faults.planted`."""

from __future__ import annotations

import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fencer import _keeper, _lease, _protocol, _wakeups, _wire
from fencer._protocol import Protocol
from fencer._steps import Call, Enter, Steps, wakeup
from fencer._wakeups import ThreadWakeups
from fencer._wire import Wire
from fencer.errors import AcquireTimeout, StoreUnavailable
from tests.faults.bugs import newcomers_overtake
from tests.faults.planted import in_script

# What the scripts do with the line.


def last_come_first_served(patch: pytest.MonkeyPatch) -> None:
    """A release serves who joined last."""
    serve = "local id, ticket = unpack(redis.call('{}', queue, 0, 0, 'WITHSCORES'))"
    in_script(patch, "release", serve.format("ZRANGE"), serve.format("ZREVRANGE"))


def dead_are_served(patch: pytest.MonkeyPatch) -> None:
    """The first in line is handed the lease, whether it hears of it or not."""
    for script in ("acquire", "release"):
        in_script(patch, script, "elseif reached and reached > 0 then", "elseif reached then")


def handed_for_the_full_ttl(patch: pytest.MonkeyPatch) -> None:
    """Who is handed the lease need not claim it: it has its full ttl at once."""
    for script in ("acquire", "release"):
        claim = "local claim_ms = math.min(CLAIM_MS, full_ms)"
        in_script(patch, script, claim, "local claim_ms = tonumber(full_ms)")


def stays_in_line(patch: pytest.MonkeyPatch) -> None:
    """Who gives up keeps its place."""
    in_script(patch, "release", "if redis.call('ZREM', queue, grant) == 1 then", "if false then")


def leaves_in_silence(patch: pytest.MonkeyPatch) -> None:
    """A head that gives up leaves nobody to watch for the end of the lease."""
    in_script(patch, "release", "tell(math.max(0, remaining_ms))", "")


def hides_who_waits(patch: pytest.MonkeyPatch) -> None:
    """A place in line tells where to be reached, and not who is there."""
    place = "cmsgpack.pack({channel, %s, ttl_ms, about})"
    in_script(patch, "acquire", place % "holder", place % "channel")


def tells_ages_in_seconds(patch: pytest.MonkeyPatch) -> None:
    """The ages of the line are told in seconds, and read as milliseconds."""
    in_script(patch, "inspect", "places[2 * i]) / 1000", "places[2 * i]) / 1000000")


# What waiters do.


def gives_up_unheard(patch: pytest.MonkeyPatch) -> None:
    """Who hears nothing until it is time to look gives up, as if its wait were over."""
    plain = Protocol._hear

    def hear(core: Protocol, grant: str, seen: Any, until: float) -> Steps[Any]:
        heard = yield from plain(core, grant, seen, until)
        if heard is None:
            raise AcquireTimeout("that is waited for", seen.holder, seen.remaining, 0.0)
        return heard

    patch.setattr(Protocol, "_hear", hear)


def outage_ends_the_wait(patch: pytest.MonkeyPatch) -> None:
    """Who is in line when the server does not answer is thrown out."""
    plain = Protocol._stand_in_line

    def stand(*args: Any) -> Steps[Any]:
        steps = plain(*args)
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                return stop.value
            outcome = yield step  # What is thrown in here does not get to the steps.

    patch.setattr(Protocol, "_stand_in_line", stand)


def gives_up_unsubscribed(patch: pytest.MonkeyPatch) -> None:
    """Who cannot listen at the first try does not wait."""

    def enter(core: Protocol, ask_for: Any, until: float) -> Steps[Any]:
        left = max(0.0, until - core.clock())
        return (yield Enter(ask_for.grant, left, ask_for.name))

    patch.setattr(Protocol, "_enter", enter)
    patch.setattr(_wakeups, "_BROKEN", 1.0)  # Else a slow thread may find it mended.


def overtaken_by_newcomers(patch: pytest.MonkeyPatch) -> None:
    """Whoever asks when the lease has ended gets it, and the head looks half a second later."""
    newcomers_overtake(patch)
    plain = _protocol._Seen.patience
    patch.setattr(_protocol._Seen, "patience", lambda seen: plain(seen) + 0.5)


def waits_as_long_as_a_call(patch: pytest.MonkeyPatch) -> None:
    """A wait ends with what a driver gives a call."""
    plain = Protocol.acquire

    def acquire(
        core: Protocol, name: str, holder: str, ttl_ms: int, wait: float, *rest: Any
    ) -> Steps[Any]:
        return (yield from plain(core, name, holder, ttl_ms, min(wait, 2.0), *rest))

    patch.setattr(Protocol, "acquire", acquire)


def asks_anew(patch: pytest.MonkeyPatch) -> None:
    """A second try of an acquire has a grant id of its own."""
    plain = _protocol._again

    def again(step: Any, *rest: Any, **options: Any) -> Steps[Any]:
        if isinstance(step, Call) and step.script.name == "acquire":
            step = replace(step, args=(step.args[0], _protocol._new_grant(), *step.args[2:]))
        return (yield from plain(step, *rest, **options))

    patch.setattr(_protocol, "_again", again)


def masks_interrupts(patch: pytest.MonkeyPatch) -> None:
    """Interrupts are put off while a thread is in line."""
    enter, leave = ThreadWakeups.enter, ThreadWakeups.leave

    def enter_masked(wakeups: ThreadWakeups, grant: str, seconds: float) -> Any:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return enter(wakeups, grant, seconds)

    def leave_unmasked(wakeups: ThreadWakeups, grant: str) -> None:
        leave(wakeups, grant)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    patch.setattr(ThreadWakeups, "enter", enter_masked)
    patch.setattr(ThreadWakeups, "leave", leave_unmasked)


# What clients do.


def mixes_up_waiters(patch: pytest.MonkeyPatch) -> None:
    """All waiters of a client hear what is for one of them."""

    def hear(wakeups: ThreadWakeups, message: Any) -> None:
        plain(wakeups, message)
        if message is not None and message["type"] == "message":
            _, heard = wakeup(message["data"])
            for inbox in list(wakeups._inboxes.values()):
                inbox.put(heard)

    plain = ThreadWakeups._hear
    patch.setattr(ThreadWakeups, "_hear", hear)


def a_connection_each(patch: pytest.MonkeyPatch) -> None:
    """Each waiter listens on a connection of its own."""
    own: dict[str, ThreadWakeups] = {}
    enter, wait, leave = ThreadWakeups.enter, ThreadWakeups.wait, ThreadWakeups.leave

    def enter_alone(wakeups: ThreadWakeups, grant: str, seconds: float) -> Any:
        own[grant] = ThreadWakeups(wakeups._client, wakeups._keyspace)
        return enter(own[grant], grant, seconds)

    def leave_alone(wakeups: ThreadWakeups, grant: str) -> None:
        leave(own[grant], grant)
        own[grant].close()

    patch.setattr(ThreadWakeups, "enter", enter_alone)
    patch.setattr(ThreadWakeups, "wait", lambda _, grant, seconds: wait(own[grant], grant, seconds))
    patch.setattr(ThreadWakeups, "leave", leave_alone)


def a_crowd_of_connections(patch: pytest.MonkeyPatch) -> None:
    """The tasks of a client take as many connections as they like, here a hundred."""
    patch.setattr(_wire, "_AT_ONCE", 100)


def waits_for_no_connection(patch: pytest.MonkeyPatch) -> None:
    """A call that finds all connections of the pool in use fails."""
    patch.setattr(_wire, "_FREE_SECONDS", -1.0)
    patch.setattr(_protocol, "_PAUSES", ())


def shared_with_children(patch: pytest.MonkeyPatch) -> None:
    """A lease is as good in a forked child as in its parent."""
    patch.setattr(_lease, "os", SimpleNamespace(getpid=lambda: 0))


def says_goodbye(patch: pytest.MonkeyPatch) -> None:
    """A client that is closed wants to be heard by the server once more."""
    plain = Wire.close

    def close(wire: Wire) -> None:
        wire.command(("PING",))
        plain(wire)

    patch.setattr(Wire, "close", close)


def passes_on_the_driver_s_errors(patch: pytest.MonkeyPatch) -> None:
    """What the driver says of a subscription reaches who wanted to wait."""
    patch.setattr(_wakeups, "unreached", lambda error, pool: error)


def silence_is_a_refusal(patch: pytest.MonkeyPatch) -> None:
    """A keeper's renew that got no answer ends the lease."""
    plain = _keeper._ask_together

    def ask(*args: Any) -> Steps[Any]:
        replies = yield from plain(*args)
        return [["STALE", 0] if isinstance(each, StoreUnavailable) else each for each in replies]

    patch.setattr(_keeper, "_ask_together", ask)
