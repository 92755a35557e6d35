"""The protocol core: what to ask the store, in which order, and what its answers mean.

Nothing here touches a socket. Each operation is a generator that yields steps (`fencer._steps`), is
sent what each comes to, and returns its result; a driver (`fencer._drive`) has them carried out. A
fault is thrown into the generator, so that the rules for retries and for giving back stand here,
once:

- A call is repeated only if that is the same as asking once; all scripts but the guard's are.
- An acquire that fails in a way that may have been applied, or is interrupted, is given back.
- Time is counted from before a request is first sent.
- Where a durability is wanted (`fencer.durability`), no grant gets out of here without it.

How a wait works: the waiter listens, and then joins the line on the server. Whoever frees the name
hands it to the first in line and tells it (GRANT); it has a short time to claim it by a renew. The
first in line watches for the end of the lease, and the second a moment later, lest the first stands
still (HEAD tells them); the others look now and then. Each loss of a message is healed by a look.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fencer import _check, _clock, durability
from fencer._keys import Keyspace
from fencer._scripts import load
from fencer._steps import (
    Call,
    Command,
    Confirm,
    Confirmed,
    Enter,
    Leave,
    Seen,
    Sleep,
    Steps,
    Wait,
    Wakeup,
    text,
)
from fencer.durability import Durability
from fencer.errors import (
    AcquireTimeout,
    FencerError,
    InvalidArgument,
    NotAcquired,
    NotDurable,
    StoreError,
    StoreUnavailable,
)
from fencer.records import Event, Status, Waiter

_PAUSES = (0.02, 0.1)
"""Seconds to wait before a second and a third try of a call that got no answer."""

_OUTAGE = (0.05, 0.3)
"""Seconds between two tries of a waiter while the server cannot be reached, drawn evenly."""

_LOOK = 15.0
"""Seconds after which every waiter looks at the lease, even if it has heard nothing.

The server forgets a line at which nobody has looked for four times as long.
"""

_BEHIND = 0.25
"""Seconds by which each waiter lets the one before it go first when a lease ends."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease as the store granted it."""

    name: str
    token: int
    grant: str
    holder: str
    ttl_ms: int
    about: dict[str, Any]
    since_ms: int
    deadline: float


@dataclass(frozen=True, slots=True)
class _Request:
    """What an acquire asks for. Each place in line has a grant id of its own."""

    name: str
    holder: str
    ttl_ms: int
    about: dict[str, Any]
    grant: str

    def granted(self, token: int, since_ms: int, deadline: float = -math.inf) -> Granted:
        """The lease that was granted; without a deadline it has yet to be claimed."""
        return Granted(
            self.name, token, self.grant, self.holder, self.ttl_ms, self.about, since_ms, deadline
        )


@dataclass(slots=True)
class _Seen:
    """What an acquire has seen last: who holds the lease, and the own place in line.

    And whether a join of this wait has found no answer, so that it may yet arrive.
    """

    holder: str
    look: float
    report: bool
    remaining: float | None = 0.0
    place: int | None = None
    doubtful: bool = False

    def patience(self) -> float:
        """Seconds after which to look at the lease if nothing is heard."""
        if self.place:
            soon = max(0.5, self.remaining or 0.0) + _BEHIND * min(self.place, 8)
            return min(self.look, soon) * random.uniform(1.0, 1.2)
        # The first in line comes right after the end, and the server counts in milliseconds.
        return min(self.look, 1.0 if self.remaining is None else self.remaining + 0.002)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all leases of one client."""

    keyspace: Keyspace = field(default_factory=Keyspace)
    minting: str = "time"
    keep_ms: int = 30 * 86_400_000
    history_length: int = 1_000
    durability: tuple[Durability, ...] = ()
    clock: Callable[[], float] = _clock.now


def ask(call: Call, *, repeat: bool = True) -> Steps[list[Any]]:
    """Make a call; where no answer comes, try it again, unless it must not be applied twice."""
    try:
        reply = yield call
    except StoreUnavailable as error:
        reply, _ = yield from _again(call, error, repeat)
    return [text(reply[0]), *reply[1:]]


def _ask(
    call: Call,
    first: list[Any] | StoreUnavailable | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> Steps[tuple[list[Any], list[Any] | None, bool]]:
    """As `ask`; with the answers to what was to be asked next, and the doubt of `_again`.

    It is not tried again when it is not ``wanted`` any more.
    """
    try:
        if isinstance(first, StoreUnavailable):
            raise first
        outcome, doubtful = (yield call) if first is None else first, False
    except StoreUnavailable as error:
        outcome, doubtful = yield from _again(call, error, wanted=wanted)
    reply, answers = outcome, None
    if isinstance(outcome, Confirmed):
        reply, answers = outcome.reply, outcome.answers
    return [text(reply[0]), *reply[1:]], answers, doubtful


def _again(
    step: Call | Command,
    failed: StoreUnavailable,
    repeat: bool = True,
    wanted: Callable[[], bool] = lambda: True,
) -> Steps[tuple[Any, bool]]:
    """Try again after a first try that failed. The reply, and whether one may yet arrive."""
    maybe_applied = failed.maybe_applied
    try:
        for pause in _PAUSES:
            if maybe_applied and not repeat:
                break
            yield Sleep(pause)
            if not wanted():
                break
            try:
                return (yield step), maybe_applied
            except StoreUnavailable as error:
                failed, maybe_applied = error, maybe_applied or error.maybe_applied
        raise failed.told(maybe_applied=maybe_applied) from failed.__cause__
    finally:
        del failed  # A frame that holds its own exception is a cycle.


class Protocol:
    """The operations on leases."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.clock = settings.clock

    def acquire(
        self,
        name: str,
        holder: str,
        ttl_ms: int,
        wait: float,
        about: dict[str, Any],
        look: float | None = None,
    ) -> Steps[Granted]:
        """Get the lease, waiting at most ``wait`` seconds in line for it.

        An election's candidate looks at the lease each ``look`` seconds, and reports whom it saw.
        """
        begun = self.clock()
        seen = _Seen(holder, look or _LOOK, report=look is not None)
        ask_for = _Request(name, holder, ttl_ms, about, _new_grant())
        try:
            granted = yield from self._look(ask_for, seen)
        except BaseException as error:
            if _may_have_been_granted(error):
                yield from self._cancel(self.release_call(ask_for))
            raise
        while granted is None:
            if wait == 0:
                raise NotAcquired(name, seen.holder, seen.remaining)
            ask_for = replace(ask_for, grant=_new_grant())
            granted = yield from self._wait_in_line(ask_for, seen, begun, begun + wait)
        return granted

    def _wait_in_line(
        self, ask_for: _Request, seen: _Seen, begun: float, until: float
    ) -> Steps[Granted | None]:
        """Stay in line until the lease is granted; ``None`` if the place was lost."""
        seen.doubtful = False
        try:
            try:
                return (yield from self._stand_in_line(ask_for, seen, begun, until))
            finally:
                if not isinstance(sys.exception(), GeneratorExit):
                    yield Leave(ask_for.grant)
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                cancel = self.release_call(ask_for)
                yield from self._cancel(cancel)
                if seen.doubtful:
                    # A join without an answer may yet arrive. A cancel of who is in line only takes
                    # it out; the second one is put on record, and so the late join is refused.
                    yield from self._cancel(cancel)
            raise

    def _stand_in_line(
        self, ask_for: _Request, seen: _Seen, begun: float, until: float
    ) -> Steps[Granted | None]:
        channel = yield from self._enter(ask_for, until)
        if channel is None:
            raise self._too_late(ask_for, seen, begun)
        place = "join"
        while True:
            try:
                granted = yield from self._look(ask_for, seen, place, channel)
                if granted or seen.place is None:
                    return granted
                place = "stay"
                heard = yield from self._hear(ask_for.grant, seen, until)
                if heard is not None and heard.kind == "GRANT":
                    handed = ask_for.granted(*heard.numbers)
                    claimed = yield from self._claim(handed)
                    if claimed is None:
                        yield from self.give_back(handed)
                    return claimed
            except StoreUnavailable:
                if self.clock() >= until:
                    raise
                yield Sleep(random.uniform(*_OUTAGE))
                continue
            if self.clock() >= until:
                raise self._too_late(ask_for, seen, begun)

    def _too_late(self, ask_for: _Request, seen: _Seen, begun: float) -> AcquireTimeout:
        return AcquireTimeout(ask_for.name, seen.holder, seen.remaining, self.clock() - begun)

    def _enter(self, ask_for: _Request, until: float) -> Steps[str | None]:
        while True:
            try:
                left = max(0.0, until - self.clock())
                channel: str | None = yield Enter(ask_for.grant, left, ask_for.name)
            except StoreUnavailable:
                if self.clock() >= until:
                    raise
                yield Sleep(random.uniform(*_OUTAGE))
                continue
            if channel is not None or self.clock() >= until:
                return channel

    def _hear(self, grant: str, seen: _Seen, until: float) -> Steps[Wakeup | None]:
        """Wait for a grant, for the time to look at the lease again, or for the end of patience."""
        pause = seen.patience()
        while True:
            heard: Wakeup | None = yield Wait(grant, max(0.0, min(pause, until - self.clock())))
            if heard is None or heard.kind != "HEAD":
                return heard
            remaining_ms, seen.place = heard.numbers
            seen.remaining = remaining_ms / 1000
            pause = seen.patience()

    def _look(
        self, ask_for: _Request, seen: _Seen, waiting: str = "no", channel: str = ""
    ) -> Steps[Granted | None]:
        """Ask for the lease once. If somebody has it, ``seen`` tells who, and the place in line."""
        started = self.clock()
        call = self._acquire_call(ask_for, waiting, channel)
        # In line, and where it is asked again, the grant may have been made before: such a call
        # writes nothing as a rule, and a question after it would be answered for nothing.
        sure = self._confirm("GRANTED", ask_for.ttl_ms / 2000) if waiting == "no" else None
        try:
            reply, answers, doubtful = yield from _ask(_with(call, sure))
        except StoreUnavailable as error:
            seen.doubtful = seen.doubtful or (waiting == "join" and error.maybe_applied)
            raise
        seen.doubtful = seen.doubtful or (waiting == "join" and doubtful)
        seen.place = None
        match reply:
            case ["GRANTED", token, since_ms]:
                granted = ask_for.granted(token, since_ms, started + self.belief(ask_for.ttl_ms))
                if sure is not None and not doubtful:
                    yield from self._judge(granted, sure, answers)
                elif self._settings.durability:
                    return (yield from self._claimed(granted))
                if granted.deadline > self.clock():
                    return granted
                return (yield from self._claimed(granted))
            case ["HELD" | "QUEUED", other, remaining_ms, *place]:
                seen.holder = text(other)
                seen.remaining = None if remaining_ms == -1 else remaining_ms / 1000
                seen.place = place[0] if place else None
                if doubtful and seen.place is None:
                    # A first try that is still on its way must not be granted behind our back.
                    yield from self._cancel(self.release_call(ask_for))
                if seen.report:
                    yield Seen(seen.holder)
        return None

    def _claimed(self, granted: Granted) -> Steps[Granted]:
        """Claim what was granted, and give it back if that is too late."""
        claimed = yield from self._claim(granted)
        if claimed is None:
            yield from self.give_back(granted)
            raise StoreUnavailable(
                f"the grant of {granted.name!r} was over before it could be claimed: the server "
                "has lost it, or takes so long to answer that nothing is left of a ttl of "
                f"{granted.ttl_ms / 1000:g} s, and then choose a longer one",
                maybe_applied=False,
            )
        return claimed

    def _claim(self, granted: Granted) -> Steps[Granted | None]:
        """Renew what was granted, and count from now on; ``None`` if it is too late.

        Where a durability is wanted, it is asked for here. The grant itself was written earlier, by
        whoever handed it over; but what a server sends to replicas and to its file is one stream,
        so that whoever has the renew has the grant. After a failover in between, a server that
        lacks the grant refuses the renew.
        """
        started = self.clock()
        confirm = self._confirm("RENEWED", granted.ttl_ms / 2000)
        reply, answers = yield from self.renewal(granted, granted.ttl_ms, confirm)
        if confirm is not None and reply[0] == "RENEWED":
            yield from self._judge(granted, confirm, answers)
        deadline = started + self.belief(granted.ttl_ms)
        if reply[0] != "RENEWED" or deadline <= self.clock():
            return None
        return replace(granted, deadline=deadline)

    def _confirm(self, status: str, at_most: float) -> Confirm | None:
        return durability.confirm(self._settings.durability, status, at_most)

    def _judge(self, granted: Granted, asked: Confirm, answers: list[Any] | None) -> Steps[None]:
        """Give back a grant that is not as durable as is wanted, and raise."""
        try:
            self.judge(granted, asked, answers, "grant")
        except FencerError:
            yield from self.give_back(granted)
            raise

    def judge(self, lease: Granted, asked: Confirm, answers: list[Any] | None, act: str) -> None:
        """Raise unless what was done is as durable as is wanted."""
        assert answers is not None
        wanted = self._settings.durability
        durability.judge(wanted, answers, asked, (act, lease.name, lease.token))

    def give_back(self, lease: Granted) -> Steps[None]:
        """Release a lease that nobody uses. What cannot be sent now ends with its ttl."""
        yield from self._cancel(self.release_call(lease, lease.token))

    def _cancel(self, release: Call) -> Steps[None]:
        try:
            yield release
        except (StoreError, GeneratorExit):
            pass
        except BaseException:
            with contextlib.suppress(StoreError):
                yield release  # Interrupted while giving back: it may not have been sent.
            raise

    def renewal(
        self, lease: Granted, ttl_ms: int, confirm: Confirm | None = None
    ) -> Steps[tuple[list[Any], list[Any] | None]]:
        """Renew; if the info key was missing, write it anew. As `renewed`."""
        outcome = yield from self.renewed(self.renew_call(lease, ttl_ms, describe=False), confirm)
        if outcome[0] == ["RENEWED", 0]:
            call = self.renew_call(lease, ttl_ms, describe=True)
            outcome = yield from self.renewed(call, confirm)
        return outcome

    def renewed(
        self,
        call: Call,
        confirm: Confirm | None,
        first: list[Any] | StoreUnavailable | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Steps[tuple[list[Any], list[Any] | None]]:
        """The reply to a renew, and what ``confirm`` came to; a first try may have been made.

        A repetition needs no care: a renew always writes.
        """
        reply, answers, _ = yield from _ask(_with(call, confirm), first, wanted)
        return reply, answers

    def asked_for(self, status: str, at_most: float = math.inf) -> Confirm:
        """What to ask after a renew or a release for which the caller wants a durability.

        Raises:
            InvalidArgument: no durability was chosen.
        """
        confirm = self._confirm(status, at_most)
        if confirm is None:
            raise InvalidArgument(
                "durable=True means as durable as the grants of this client, and it was made "
                "without: pass durability=Replicated(...) or Fsynced(...) to it"
            )
        return confirm

    def confirm_release(self, lease: Granted) -> Steps[None]:
        """Raise unless a release that has been carried out is as durable as is wanted."""
        # A release that is asked again writes nothing. The cancel of a grant that nobody has asked
        # for does, later in the same stream, and is of no consequence.
        call = self.release_call(replace(lease, grant=_new_grant()))
        confirm = self.asked_for("CANCELLED")
        _, answers, _ = yield from _ask(_with(call, confirm))
        self.judge(lease, confirm, answers, "release")

    def release(
        self, lease: Granted, confirm: Confirm | None = None
    ) -> Steps[tuple[bool, list[Any] | None]]:
        """Release; whether the lease was still the last one, and what ``confirm`` came to.

        That is ``None`` if it was not asked, or says nothing.
        """
        call = self.release_call(lease, lease.token)
        try:
            reply, answers, doubtful = yield from _ask(_with(call, confirm))
        except (StoreError, GeneratorExit):
            raise
        except BaseException:
            yield from self._cancel(call)  # Interrupted: it may not have been sent.
            raise
        return bool(reply[0] == "RELEASED"), None if doubtful else answers

    def inspect(self, name: str) -> Steps[Status]:
        """Tell who has the lease."""
        keys = self._settings.keyspace.of(name)
        five = keys.lock, keys.token, keys.info, keys.queue, keys.waiters
        status, issued, count, flat, *held = yield from ask(Call(load("inspect"), five, ()))
        line = tuple(
            Waiter(text(holder), age_ms / 1000)
            for holder, age_ms in zip(flat[::2], flat[1::2], strict=True)
        )
        if status == "FREE":
            return Status(name, False, None, None, None, issued, count, line)
        holder, remaining_ms, info = held
        described = json.loads(info) if info else {}
        return Status(
            name=name,
            held=True,
            holder=text(holder),
            token=described.get("token"),
            remaining=None if remaining_ms == -1 else remaining_ms / 1000,
            issued=issued,
            waiters=count,
            line=line,
            info=described,
        )

    def revoke(self, name: str, token: int | None) -> Steps[int | None]:
        """End the lease with this token, or the one that is held now; its token if one ended."""
        if token is None:
            status = yield from self.inspect(name)
            if not status.held:
                return None
            token = status.token
            if token is None:
                raise self._foreign(name, status.holder or "")
        reply = yield from ask(
            Call(
                load("revoke"),
                self._all(name),
                (token, self._settings.keep_ms, self._settings.history_length),
            )
        )
        if reply[0] == "FOREIGN":
            raise self._foreign(name, text(reply[1]))
        return token if reply[0] == "REVOKED" else None

    def advance(self, name: str, beyond: int) -> Steps[bool]:
        """Make the next token larger than ``beyond``; whether anything had to change."""
        reply = yield from ask(
            Call(
                load("advance"),
                self._all(name),
                (beyond, self._settings.keep_ms, self._settings.history_length),
            )
        )
        if reply[0] == "FOREIGN":
            raise self._foreign(name, text(reply[1]))
        return bool(reply[0] == "ADVANCED")

    def history(self, name: str, count: int) -> Steps[list[Event]]:
        """Read the latest events, oldest first."""
        key = self._settings.keyspace.of(name).history
        entries = yield from read("XREVRANGE", key, "+", "-", "COUNT", count)
        return [_event(text(entry_id), fields) for entry_id, fields in reversed(entries)]

    def names(self, cursor: str) -> Steps[tuple[str, list[str]]]:
        """Read some of the names, and where to go on; from "0" to "0"."""
        keyspace = self._settings.keyspace
        command = "SCAN", cursor, "MATCH", keyspace.pattern(), "COUNT", 1_000
        following, keys = yield from read(*command)
        names = []
        for key in keys:
            with contextlib.suppress(UnicodeDecodeError):  # no key of ours
                names.append(keyspace.name_in(text(key)))
        return text(following), names

    def belief(self, ttl_ms: int) -> float:
        """For how many seconds a holder may believe in a ttl."""
        return ttl_ms / 1000 - _clock.margin(ttl_ms / 1000)

    def _foreign(self, name: str, value: str) -> StoreError:
        key = self._settings.keyspace.of(name).lock
        return StoreError(
            f"the key {key!r} holds {value!r}, which is not the lease that Fencer granted last. "
            "Nothing was changed: find out who wrote it, and delete it by hand if it is left over",
            code="FOREIGN",
        )

    def _all(self, name: str) -> tuple[str, ...]:
        keys = self._settings.keyspace.of(name)
        return keys.lock, keys.token, keys.info, keys.history, keys.queue, keys.waiters

    def _acquire_call(self, ask_for: _Request, waiting: str, channel: str) -> Call:
        settings = self._settings
        return Call(
            load("acquire"),
            self._all(ask_for.name),
            (
                ask_for.holder,
                ask_for.grant,
                ask_for.ttl_ms,
                self._keep_ms(ask_for.ttl_ms),
                _check.json_text(ask_for.about),
                settings.minting,
                settings.history_length,
                waiting,
                channel,
            ),
        )

    def renew_call(self, lease: Granted, ttl_ms: int, *, describe: bool) -> Call:
        """The call that renews; with ``describe`` it writes the info key anew."""
        info = ""
        if describe:
            fields = {**lease.about, "grant": lease.grant}
            head = _check.json_text(fields)[:-1]
            # As acquire.lua writes it: the other scripts read this tail.
            info = (
                f'{head},"ttl":{ttl_ms / 1000:.14g},"token":{lease.token},'
                f'"since":{lease.since_ms / 1000:.3f}}}'
            )
        keys = self._settings.keyspace.of(lease.name)
        return Call(
            load("renew"),
            (keys.lock, keys.token, keys.info),
            (lease.holder, lease.token, ttl_ms, self._keep_ms(ttl_ms), info),
        )

    @staticmethod
    def renew_together(calls: Sequence[Call]) -> Call:
        """One call that renews what several do; ask `same_renewal` whether they may share one."""
        first = calls[0]
        if len(calls) == 1:
            return first
        keys = [key for call in calls for key in call.keys]
        more = [each for call in calls[1:] for each in (call.args[1], call.args[4])]
        return Call(first.script, tuple(keys), (*first.args, *more))

    @staticmethod
    def same_renewal(call: Call) -> Hashable:
        """What the calls have in common that one call may renew: holder, ttl and keeping time."""
        return call.args[0], call.args[2], call.args[3]

    def release_call(self, lease: _Request | Granted, token: int = 0) -> Call:
        """The call that releases; without a token, the one that cancels an acquire."""
        settings = self._settings
        return Call(
            load("release"),
            self._all(lease.name),
            (
                lease.holder,
                lease.grant,
                token,
                settings.keep_ms,
                settings.minting,
                settings.history_length,
            ),
        )

    def _keep_ms(self, ttl_ms: int) -> int:
        return max(self._settings.keep_ms, ttl_ms)


def read(*words: str | int) -> Steps[Any]:
    """Run a command that only reads, and so can always be repeated."""
    command = Command(words)
    try:
        return (yield command)
    except StoreUnavailable as error:
        reply, _ = yield from _again(command, error)
        return reply


def _event(entry_id: str, raw: list[Any]) -> Event:
    fields = {text(key): text(value) for key, value in zip(raw[::2], raw[1::2], strict=True)}
    return Event(
        at=int(entry_id.partition("-")[0]) / 1000,
        event=fields.get("event", ""),
        token=int(fields.get("token", 0)),
        holder=fields.get("holder", ""),
        grant=fields.get("grant", ""),
    )


def _with(call: Call, confirm: Confirm | None) -> Call:
    return call if confirm is None else replace(call, confirm=confirm)


def _new_grant() -> str:
    return os.urandom(16).hex()


def _may_have_been_granted(error: BaseException) -> bool:
    if isinstance(error, GeneratorExit):
        return False  # The driver has gone: nothing can be sent any more.
    if isinstance(error, StoreUnavailable):
        return error.maybe_applied
    return not isinstance(error, StoreError | NotDurable)


def about(holder: str, host: str, info: dict[str, Any]) -> dict[str, Any]:
    """What the info key says beside the lease itself: the caller's own fields come first."""
    return {**info, "holder": holder, "host": host, "pid": os.getpid()}
