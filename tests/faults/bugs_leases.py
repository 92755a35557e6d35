"""Planted bugs of the tests of leases in this folder. See `tests.faults.planted`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from fencer import StoreUnavailable, _clock, _protocol, _refusals, _wire
from fencer._lease import BaseLease
from fencer._protocol import Protocol, Settings
from fencer._steps import Call, Steps
from tests.faults import bugs
from tests.faults.planted import in_script

# Tokens.


def counter_in_the_lock(patch: pytest.MonkeyPatch) -> None:
    """The last token is gone as soon as the lock key is."""
    bugs.plain_counter(patch)
    in_script(
        patch,
        "acquire",
        "local issued = redis.call('GET', token)",
        "local issued = redis.call('EXISTS', lock) == 1 and redis.call('GET', token)",
    )


def hands_on_its_own_token(patch: pytest.MonkeyPatch) -> None:
    """Whoever is handed a lease gets the token of the one who has released it."""
    in_script(patch, "release", "serve(mint(issued + 1))", "serve(issued + 0, select(2, mint(0)))")


def dense_tokens_are_times(patch: pytest.MonkeyPatch) -> None:
    """The option for small numbers does nothing."""
    for script in ("acquire", "release"):
        in_script(patch, script, bugs.MINT, "math.max(after + 1, now_us)")


def by_sha_alone(patch: pytest.MonkeyPatch) -> None:
    """A script is sent by its body once, and from then on by its SHA."""
    by_body = _wire._by_body
    sent = set()

    def by_sha(call: Call) -> tuple[Any, ...]:
        known = call.script.sha in sent
        sent.add(call.script.sha)
        return _wire._by_sha(call) if known else by_body(call)

    patch.setattr(_wire, "_by_body", by_sha)


# Calls that come late, or again.


def renews_what_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A holder whose token the store has lost is believed."""
    in_script(
        patch,
        "renew",
        "issued = issued or redis.call('GET', token)",
        "issued = issued or redis.call('GET', token) or mine",
    )


def renews_what_is_there_alone(patch: pytest.MonkeyPatch) -> None:
    """A lease whose lock key has gone early counts as lost."""
    in_script(
        patch,
        "renew",
        "if issued ~= mine then\n    answer",
        "if issued ~= mine or not held_by then\n    answer",
    )


def releases_what_is_there_alone(patch: pytest.MonkeyPatch) -> None:
    """The same for a release."""
    in_script(
        patch,
        "release",
        "mine ~= '0' and issued ~= mine then",
        "mine ~= '0' and (issued ~= mine or not held_by) then",
    )


def releases_what_is_on_record_alone(patch: pytest.MonkeyPatch) -> None:
    """A release looks for its grant in the history."""
    in_script(
        patch,
        "release",
        "mine ~= '0' and issued ~= mine then",
        "mine ~= '0' and (issued ~= mine or redis.call('EXISTS', history) == 0) then",
    )


def orders_without_compare(patch: pytest.MonkeyPatch) -> None:
    """A revoke and an advance end the lease that is held, whichever they were to end."""
    in_script(patch, "revoke", "if issued ~= which then", "if false then")
    in_script(patch, "advance", "if tonumber(issued or 0) >= tonumber(beyond)", "if false")


def advances_to_a_token(patch: pytest.MonkeyPatch) -> None:
    """An advance issues the very number that it was given, which may be somebody's token."""
    in_script(patch, "advance", "string.format('%.0f', beyond + 1)", "beyond")


def knows_no_end_again(patch: pytest.MonkeyPatch) -> None:
    """What ends a lease finds, when it is asked again, that it has ended."""
    in_script(patch, "release", "if fields[8] == grant and fields[2] == 'release'", "if false")
    in_script(patch, "revoke", "if entry.token == which and entry.event == 'revoke'", "if false")
    in_script(patch, "advance", "if entry.event == 'advance' and entry.token == beyond", "if false")


def records_no_cancel(patch: pytest.MonkeyPatch) -> None:
    """The cancel of an acquire that has not arrived yet leaves nothing behind."""
    in_script(
        patch,
        "release",
        "redis.call('XADD', history, 'MAXLEN', '~', length, '*',\n      'event', 'cancel', "
        "'token', '0', 'holder', holder, 'grant', grant)",
        "",
    )


def guards_take_a_token_once(patch: pytest.MonkeyPatch) -> None:
    """A guard refuses a token that it has accepted before."""
    in_script(
        patch,
        "guard",
        "if offered < highest or (offered == highest and rival) then",
        "if offered <= highest then",
    )


# What a client makes of a fault.


def tells_of_the_last_try_alone(patch: pytest.MonkeyPatch) -> None:
    """A call may have been applied if its last try may."""
    patch.setattr(StoreUnavailable, "told", lambda error, **_: error)


def repeats_every_call(patch: pytest.MonkeyPatch) -> None:
    """A call without an answer is tried again, whatever it does."""
    plain = _protocol._again

    def again(step: Any, failed: StoreUnavailable, repeat: bool = True, **rest: Any) -> Any:
        return plain(step, failed, **rest)

    patch.setattr(_protocol, "_again", again)


def may_always_be_applied(patch: pytest.MonkeyPatch) -> None:
    """What was never sent may have been applied as well."""
    plain = _refusals.refusal

    def refusal(error: Exception, script: str | None = None, *, sent: bool = True) -> Any:
        return plain(error, script)

    patch.setattr(_refusals, "refusal", refusal)


def any_error_within_a_demotion(patch: pytest.MonkeyPatch) -> None:
    """An error that comes up while a ReadOnlyError is handled counts as one."""
    plain = _refusals.refusal

    def refusal(error: Exception, script: str | None = None, *, sent: bool = True) -> Any:
        before: BaseException | None = error
        while before is not None:
            if isinstance(before, redis.ReadOnlyError):
                return plain(before, script)
            before = before.__context__
        return plain(error, script, sent=sent)

    patch.setattr(_wire, "refusal", refusal)


def sends_on_when_it_is_closed(patch: pytest.MonkeyPatch) -> None:
    """An acquire wants to give back when its driver has gone."""
    patch.setattr(_protocol, "_may_have_been_granted", lambda error: True)


# What a holder believes.


def no_margin(patch: pytest.MonkeyPatch) -> None:
    """A holder believes for as long as the server keeps its lease, if its clock is right."""
    patch.setattr(_clock, "margin", lambda ttl: 0.0)


def counts_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """A holder counts its time from when it is answered, on whatever clock the core has."""
    look, settle = Protocol._look, BaseLease._settle

    def late_look(core: Protocol, ask_for: Any, *rest: Any) -> Steps[Any]:
        granted = yield from look(core, ask_for, *rest)
        deadline = core.clock() + core.belief(ask_for.ttl_ms)
        return granted and replace(granted, deadline=deadline)

    def late_settle(lease: BaseLease, reply: list[Any], started: float, ttl_ms: int) -> bool:
        return settle(lease, reply, lease._protocol.clock(), ttl_ms)

    patch.setattr(Protocol, "_look", late_look)
    patch.setattr(BaseLease, "_settle", late_settle)


def time_stands_still_in_a_pause(patch: pytest.MonkeyPatch) -> None:
    """A holder counts the time for which its process has run."""
    plain = Protocol.__init__
    begun = _clock.now() - time.process_time()

    def init(core: Protocol, settings: Settings) -> None:
        plain(core, replace(settings, clock=lambda: begun + time.process_time()))

    patch.setattr(Protocol, "__init__", init)


def believes_in_what_it_sends(patch: pytest.MonkeyPatch) -> None:
    """A renew counts as soon as it is sent."""
    plain = BaseLease._set_out

    def set_out(lease: BaseLease) -> float | None:
        started = plain(lease)
        if started is not None:
            lease._deadline = started + lease._protocol.belief(lease._ttl_ms)
        return started

    patch.setattr(BaseLease, "_set_out", set_out)


def takes_a_ttl_as_granted(patch: pytest.MonkeyPatch) -> None:
    """A new ttl counts as the lease's own as soon as it is asked for."""
    plain = BaseLease._carrying_on

    def carrying_on(lease: BaseLease, ttl_ms: int, *rest: Any, **options: Any) -> Iterator[Any]:
        lease._ttl_ms = ttl_ms
        return plain(lease, ttl_ms, *rest, **options)

    patch.setattr(BaseLease, "_carrying_on", carrying_on)


def an_outage_ends_the_lease(patch: pytest.MonkeyPatch) -> None:
    """A renew that was not answered counts as a refusal."""
    plain = BaseLease._carrying_on

    def carrying_on(lease: BaseLease, *rest: Any, **options: Any) -> Iterator[Any]:
        try:
            yield from plain(lease, *rest, **options)
        except StoreUnavailable:
            lease._lose("no answer came")
            raise

    patch.setattr(BaseLease, "_carrying_on", carrying_on)


def the_deadline_is_the_end(patch: pytest.MonkeyPatch) -> None:
    """A renewal that is confirmed after the deadline does not count."""
    plain = BaseLease._settle

    def settle(lease: BaseLease, reply: list[Any], started: float, ttl_ms: int) -> bool:
        lease.remaining()
        return plain(lease, reply, started, ttl_ms)

    patch.setattr(BaseLease, "_settle", settle)


# A server's clock.


def trusts_the_servers_clock(patch: pytest.MonkeyPatch) -> None:
    """A lease has left what the server says, be it more than was given."""
    in_script(
        patch, "acquire", "if last_ttl and remaining_ms > last_ttl * 1000 and", "if false and"
    )
    in_script(patch, "inspect", "remaining_ms = math.min(remaining_ms, ttl * 1000)", "")


def ends_what_is_too_long(patch: pytest.MonkeyPatch) -> None:
    """A lease of which more is left than was given counts as that of a dead holder."""
    in_script(
        patch,
        "acquire",
        "local remaining_ms\nif held_by then",
        "local remaining_ms\n"
        "if held_by and last_ttl and redis.call('PTTL', lock) > last_ttl * 1000 then\n"
        "  held_by = false\n"
        "end\n"
        "if held_by then",
    )
