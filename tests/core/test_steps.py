"""The protocol core, step by step, with a fake clock and no server: what is asked, and when."""

from __future__ import annotations

import math

import pytest
from redis.exceptions import ResponseError

from fencer._lease import State
from fencer._protocol import Granted, Protocol, ask
from fencer._refusals import refusal
from fencer._scripts import load
from fencer._steps import Call, Enter, Leave, Sleep, Wait, Wakeup
from fencer.errors import AcquireTimeout, LeaseLost, NotAcquired, StoreError, StoreUnavailable
from tests.core.driven import Clock, Driven, Told, protocol, told_lease, unavailable

TTL = 10.0
CALL = Call(load("inspect"), (), ())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def core(clock: Clock) -> Protocol:
    return protocol(clock)


def acquiring(core: Protocol, clock: Clock, wait: float = 0.0) -> Driven[Granted]:
    return Driven(core.acquire("orders", "me", round(TTL * 1000), wait, {"holder": "me"}), clock)


def in_line(
    core: Protocol, clock: Clock, wait: float = 60.0, place: int = 0, remaining_ms: int = 5_000
) -> Driven[Granted]:
    """An acquire that stands in line and waits to hear something."""
    steps = acquiring(core, clock, wait)
    steps.answer([b"HELD", b"other", remaining_ms])
    assert isinstance(steps.step, Enter)
    steps.answer("channel")
    assert steps.call("acquire")[7:] == ("join", "channel")
    steps.answer([b"QUEUED", b"other", remaining_ms, place])
    return steps


def waits(steps: Driven[Granted]) -> float:
    """For how long it waits now."""
    assert isinstance(steps.step, Wait), steps.step
    return steps.step.seconds


def listens(steps: Driven[Granted]) -> tuple[str, float]:
    """For which grant it begins to listen, and how long that may take."""
    assert isinstance(steps.step, Enter), steps.step
    return steps.step.grant, steps.step.seconds


def grant_of(steps: Driven[Granted]) -> str:
    """The grant id under which it stands in line."""
    assert isinstance(steps.step, Wait)
    return steps.step.grant


# A call, and its repetition


def test_a_call_is_tried_three_times(clock: Clock) -> None:
    """One lost reply would be an error for the caller, or an outage an endless loop."""
    steps = Driven(ask(CALL), clock)
    pauses: list[float] = []
    for _ in range(2):
        assert steps.step == CALL
        steps.fail(unavailable(False))
        assert isinstance(steps.step, Sleep)
        pauses.append(steps.step.seconds)
        steps.answer()
    steps.fail(unavailable(False))
    assert pauses == sorted(pauses)
    with pytest.raises(StoreUnavailable) as caught:
        print(steps.result)
    assert not caught.value.maybe_applied


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_try_that_may_have_been_applied_counts(clock: Clock, which: int) -> None:
    """The last try alone would say "nothing changed" of a call whose first copy got through."""
    steps = Driven(ask(CALL), clock)
    for number in range(3):
        steps.fail(unavailable(number == which))
        if number < 2:
            steps.answer()
    assert isinstance(steps.error, StoreUnavailable)
    assert steps.error.maybe_applied


def test_the_second_try_may_succeed(clock: Clock) -> None:
    """A repeated call would not return what its answer says."""
    steps = Driven(ask(CALL), clock)
    steps.fail(unavailable())
    steps.answer()
    steps.answer([b"FREE", 1])
    assert steps.result == ["FREE", 1]


def test_what_must_not_be_applied_twice_is_not_repeated(clock: Clock) -> None:
    """A guarded write such as INCR would be done twice."""
    steps = Driven(ask(CALL, repeat=False), clock)
    steps.fail(unavailable(False))
    steps.answer()
    assert steps.step == CALL, "nothing was sent: it may be tried again"
    steps.fail(unavailable(True))
    assert isinstance(steps.error, StoreUnavailable)


def test_a_refusal_is_not_repeated(clock: Clock) -> None:
    """A server that says no would be asked three times."""
    steps = Driven(ask(CALL), clock)
    steps.fail(StoreError("no", code="NOPERM"))
    assert isinstance(steps.error, StoreError)


# Acquire


def test_belief_counts_from_before_the_first_send(core: Protocol, clock: Clock) -> None:
    """After a slow or repeated call the holder would believe longer than the store."""
    begun = clock.now
    steps = acquiring(core, clock)
    steps.fail(unavailable(), after=1.0)
    steps.answer(after=0.02)
    steps.answer([b"GRANTED", 7, 1], after=2.0)
    assert steps.result.token == 7
    assert steps.result.deadline < begun + TTL
    assert steps.result.deadline == pytest.approx(begun + TTL, abs=0.2)


def test_a_repetition_has_the_same_grant(core: Protocol, clock: Clock) -> None:
    """A retry would look like a rival: it would find its own lease held by somebody else."""
    steps = acquiring(core, clock)
    first = steps.call("acquire")
    steps.fail(unavailable())
    steps.answer()
    assert steps.call("acquire") == first


def test_held_is_told_with_the_holder(core: Protocol, clock: Clock) -> None:
    """The caller would not know who has it, or would be put in line without wanting to wait."""
    steps = acquiring(core, clock)
    assert steps.call("acquire")[7:] == ("no", "")
    steps.answer([b"HELD", b"other", 1_500])
    assert isinstance(steps.error, NotAcquired)
    assert not isinstance(steps.error, AcquireTimeout)
    assert (steps.error.holder, steps.error.remaining) == ("other", 1.5)


def test_a_lock_key_without_end_is_told(core: Protocol, clock: Clock) -> None:
    """A foreign key that never ends would be shown as ending in -1 ms."""
    steps = acquiring(core, clock)
    steps.answer([b"HELD", b"other", -1])
    assert isinstance(steps.error, NotAcquired)
    assert steps.error.remaining is None


def test_an_acquire_without_an_answer_is_given_back(core: Protocol, clock: Clock) -> None:
    """A lease that nobody knows of would be held for its ttl."""
    steps = acquiring(core, clock)
    grant = steps.call("acquire")[1]
    for number in range(3):
        steps.fail(unavailable(number == 0))
        if number < 2:
            steps.answer()
    assert steps.call("release")[1:3] == (grant, 0)
    steps.fail(unavailable())
    assert isinstance(steps.error, StoreUnavailable)
    assert steps.error.maybe_applied


def test_what_was_never_sent_is_not_given_back(core: Protocol, clock: Clock) -> None:
    """Each acquire during an outage would cost one more try."""
    steps = acquiring(core, clock)
    for number in range(3):
        steps.fail(unavailable(False))
        if number < 2:
            steps.answer()
    assert isinstance(steps.error, StoreUnavailable)
    assert not steps.error.maybe_applied


@pytest.mark.parametrize("error", [StoreError("no"), NotAcquired("orders", "other", 1.0)])
def test_a_refused_acquire_ends_at_once(core: Protocol, clock: Clock, error: Exception) -> None:
    """The server's own words would be hidden behind a second call."""
    steps = acquiring(core, clock)
    steps.fail(error)
    if not steps.ended:
        assert steps.call("release")[2] == 0
        steps.answer([b"CANCELLED", 0])
    assert steps.error is error


def test_a_late_grant_is_renewed_at_once(core: Protocol, clock: Clock) -> None:
    """A lease whose reply took longer than its ttl would be over when it is returned."""
    steps = acquiring(core, clock)
    steps.answer([b"GRANTED", 7, 1], after=TTL)
    assert steps.call("renew")[1] == 7
    renewed = clock.now
    steps.answer([b"RENEWED", 1], after=1.0)
    assert clock.now < steps.result.deadline < renewed + TTL


@pytest.mark.parametrize(
    ("reply", "after"), [([b"STALE", 9], 0.1), ([b"FOREIGN", b"x"], 0.1), ([b"RENEWED", 1], TTL)]
)
def test_a_grant_that_cannot_be_claimed_is_given_back(
    core: Protocol, clock: Clock, reply: list[object], after: float
) -> None:
    """A server slower than the ttl would be left with a lease that nobody uses."""
    steps = acquiring(core, clock)
    grant = steps.call("acquire")[1]
    steps.answer([b"GRANTED", 7, 1], after=TTL)
    steps.answer(reply, after=after)
    while not steps.ended:
        assert steps.call("release")[1] == grant
        steps.answer([b"RELEASED", 7])
    assert isinstance(steps.error, StoreUnavailable)
    assert "ttl" in str(steps.error)
    assert not steps.error.maybe_applied


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(3), ValueError("bug")])
def test_an_interrupted_acquire_is_given_back(
    core: Protocol, clock: Clock, interruption: BaseException
) -> None:
    """Ctrl-C would leave a lease held for its ttl."""
    steps = acquiring(core, clock)
    grant = steps.call("acquire")[1]
    steps.fail(interruption)
    assert steps.call("release")[1:3] == (grant, 0)
    steps.answer([b"CANCELLED", 0])
    assert steps.error is interruption


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_acquire_can_be_closed(core: Protocol, clock: Clock) -> None:
    """A driver that has gone would be asked for one more step, and Python would complain."""
    for wait in (0.0, 5.0):
        steps = core.acquire("orders", "me", 1_000, wait, {})
        next(steps)
        if wait:
            steps.send([b"HELD", b"other", 5])
            steps.send("channel")
        steps.close()


# The line


def test_joins_the_line_after_listening(core: Protocol, clock: Clock) -> None:
    """A grant that comes right after joining would be missed."""
    steps = acquiring(core, clock, wait=60)
    first = steps.call("acquire")[1]
    steps.answer([b"HELD", b"other", 5_000])
    assert isinstance(steps.step, Enter)
    listened_for = steps.step.grant
    assert listened_for != first, "the place has a grant of its own"
    steps.answer("channel")
    assert steps.call("acquire")[1] == listened_for
    steps.answer([b"QUEUED", b"other", 5_000, 0])
    assert grant_of(steps) == listened_for


def test_a_free_name_needs_no_line(core: Protocol, clock: Clock) -> None:
    """Every acquire with a wait would cost three calls instead of one."""
    steps = acquiring(core, clock, wait=60)
    steps.answer([b"GRANTED", 7, 1])
    assert steps.result.token == 7


def test_the_name_may_be_free_on_joining(core: Protocol, clock: Clock) -> None:
    """A lease that was granted on joining would be forgotten, or listened for for ever."""
    steps = acquiring(core, clock, wait=60)
    steps.answer([b"HELD", b"other", 5_000])
    steps.answer("channel")
    steps.answer([b"GRANTED", 8, 1])
    assert isinstance(steps.step, Leave)
    steps.answer()
    assert steps.result.token == 8


def test_a_grant_is_claimed_by_a_renew(core: Protocol, clock: Clock) -> None:
    """What was handed over would end with the short claim time, or be believed in from too late."""
    steps = in_line(core, clock)
    grant = grant_of(steps)
    steps.answer(Wakeup("GRANT", (9, 1)), after=3.0)
    holder, token, ttl_ms, *_ = steps.call("renew")
    assert (holder, token, ttl_ms) == ("me", 9, 10_000)
    sent = clock.now
    steps.answer([b"RENEWED", 1], after=0.5)
    assert isinstance(steps.step, Leave)
    steps.answer()
    assert (steps.result.token, steps.result.grant) == (9, grant)
    assert sent + 0.98 * TTL < steps.result.deadline < sent + TTL


def test_a_grant_that_came_too_late_is_given_back(core: Protocol, clock: Clock) -> None:
    """A waiter that slept through its claim time would believe that it has the lease."""
    steps = in_line(core, clock)
    grant = grant_of(steps)
    steps.answer(Wakeup("GRANT", (9, 1)), after=3.0)
    steps.answer([b"STALE", 10])
    assert steps.call("release")[1:3] == (grant, 9)
    steps.answer([b"STALE", 10])
    assert isinstance(steps.step, Leave)
    steps.answer()
    assert isinstance(steps.step, Enter), "it queues anew"
    assert steps.step.grant != grant


def unclaimed(steps: Driven[Granted], *, maybe_applied: bool = False) -> str:
    """Have the claim of a grant fail in an outage; the grant under which it looks again."""
    grant = grant_of(steps)
    steps.answer(Wakeup("GRANT", (9, 1)), after=0.1)
    for _ in range(3):
        steps.call("renew")
        steps.fail(unavailable(maybe_applied))
        assert isinstance(steps.step, Sleep)
        steps.answer(after=steps.step.seconds)
    args = steps.call("acquire")
    assert (args[1], args[7:]) == (grant, ("stay", "channel")), "it keeps its place"
    return grant


@pytest.mark.parametrize("maybe_applied", [False, True])
def test_an_outage_at_the_claim_does_not_end_the_wait(
    core: Protocol, clock: Clock, maybe_applied: bool
) -> None:
    """A waiter would be thrown out by an outage, although it was told that it would not be."""
    steps = in_line(core, clock, wait=600)
    grant = unclaimed(steps, maybe_applied=maybe_applied)
    looked = clock.now
    steps.answer([b"GRANTED", 9, 1], after=0.1)
    assert isinstance(steps.step, Leave)
    steps.answer()
    assert (steps.result.token, steps.result.grant) == (9, grant)
    assert looked + 0.98 * TTL < steps.result.deadline < looked + TTL


def test_a_claim_that_an_outage_made_too_late_queues_anew(core: Protocol, clock: Clock) -> None:
    """A grant that ended unclaimed would end the wait, or be taken for a lease."""
    steps = in_line(core, clock, wait=600)
    grant = unclaimed(steps)
    steps.answer([b"ENDED", 9])
    assert steps.step == Leave(grant)
    steps.answer()
    assert isinstance(steps.step, Enter)
    assert steps.step.grant != grant


def test_an_outage_at_the_claim_ends_with_the_wait(core: Protocol, clock: Clock) -> None:
    """A waiter would hang for as long as the server is away, or keep a grant from the next."""
    steps = in_line(core, clock, wait=5)
    grant = grant_of(steps)
    steps.answer(Wakeup("GRANT", (9, 1)), after=4.9)
    for number in range(3):
        steps.call("renew")
        steps.fail(unavailable(), after=0.1)
        if number < 2:
            steps.answer()
    assert steps.step == Leave(grant)
    steps.answer()
    assert steps.call("release")[1] == grant
    steps.answer([b"RELEASED", 9])
    assert isinstance(steps.error, StoreUnavailable)


def test_the_head_comes_right_after_the_end(core: Protocol, clock: Clock) -> None:
    """A crash of the holder would be noticed late, or the server asked again and again."""
    steps = in_line(core, clock, place=0, remaining_ms=5_000)
    assert 5.0 < waits(steps) < 5.05


def test_others_let_those_before_them_go_first(core: Protocol, clock: Clock) -> None:
    """All waiters would run to the server at the lease's end."""
    assert [waits(in_line(core, clock, place=place)) > 5.2 for place in (1, 2, 9)] == [True] * 3
    waiting = [
        min(waits(in_line(core, clock, place=place)) for _ in range(20)) for place in (1, 20)
    ]
    assert waiting[0] < waiting[1]


def test_everybody_looks_now_and_then(core: Protocol, clock: Clock) -> None:
    """The server would forget a line at which nobody has looked for a minute."""
    for place in (0, 1, 50, 10_000):
        assert waits(in_line(core, clock, wait=math.inf, place=place, remaining_ms=10**9)) < 20


def test_a_lock_without_end_is_looked_at(core: Protocol, clock: Clock) -> None:
    """The head would wait for the end of a key that never ends, and miss that it was deleted."""
    assert 0 < waits(in_line(core, clock, place=0, remaining_ms=-1)) <= 1


def test_head_sets_the_timer_anew(core: Protocol, clock: Clock) -> None:
    """The next in line would not know when the lease ends, and fail over late."""
    steps = in_line(core, clock, place=3)
    steps.answer(Wakeup("HEAD", (700, 0)), after=1.0)
    assert 0.7 < waits(steps) < 0.75
    steps.answer(Wakeup("HEAD", (0, 0)), after=0.1)
    assert waits(steps) < 0.05


def test_head_tells_the_second_too(core: Protocol, clock: Clock) -> None:
    """If the first in line stands still, the second would notice only at its next look."""
    steps = in_line(core, clock, wait=math.inf, place=3, remaining_ms=10**9)
    steps.answer(Wakeup("HEAD", (700, 1)), after=1.0)
    assert 0.9 < waits(steps) < 1.2, "after the first, and soon"
    steps.answer(Wakeup("HEAD", (0, 1)), after=0.1)
    assert 0.5 < waits(steps) < 1.0, "not at once: the first is to claim it"
    steps.answer(Wakeup("HEAD", (2_000, 0)), after=0.1)
    assert 2.0 < waits(steps) < 2.05, "it has moved up"


def test_after_the_timer_it_looks_and_keeps_its_place(core: Protocol, clock: Clock) -> None:
    """Each look would put the waiter at the end of the line."""
    steps = in_line(core, clock)
    grant = grant_of(steps)
    steps.answer(None, after=5.01)
    args = steps.call("acquire")
    assert (args[1], args[7:]) == (grant, ("stay", "channel"))
    steps.answer([b"QUEUED", b"other", 3_000, 0])
    assert 3.0 < waits(steps) < 3.05
    steps.answer(Wakeup("LOOK"))
    assert steps.call("acquire")[7] == "stay"


def test_a_look_may_find_the_grant(core: Protocol, clock: Clock) -> None:
    """A waiter whose GRANT message was lost would wait for ever."""
    steps = in_line(core, clock)
    steps.answer(None, after=5.01)
    steps.answer([b"GRANTED", 12, 1])
    assert isinstance(steps.step, Leave)
    steps.answer()
    assert steps.result.token == 12


@pytest.mark.parametrize("reply", [[b"GONE", 5], [b"ENDED", 5]])
def test_who_lost_its_place_joins_with_a_new_grant(
    core: Protocol, clock: Clock, reply: list[object]
) -> None:
    """The old grant may have been made and given back: it would never be granted again."""
    steps = in_line(core, clock)
    first = grant_of(steps)
    steps.answer(None, after=5.01)
    steps.answer(reply)
    assert steps.step == Leave(first)
    steps.answer()
    assert isinstance(steps.step, Enter)
    second = steps.step.grant
    assert second != first
    steps.answer("channel")
    assert steps.call("acquire")[1] == second
    assert steps.call("acquire")[7] == "join"


def test_the_wait_counts_from_the_beginning(core: Protocol, clock: Clock) -> None:
    """A waiter that joined anew would wait for longer than it was asked to."""
    steps = in_line(core, clock, wait=6)
    steps.answer(None, after=5.01)
    steps.answer([b"GONE", 5])
    steps.answer()
    steps.answer("channel")
    steps.answer([b"QUEUED", b"other", 9_000, 0])
    assert waits(steps) <= 1.0


def test_a_wait_that_is_over_leaves_the_line(core: Protocol, clock: Clock) -> None:
    """A waiter that gave up would be granted the lease, or block those behind it."""
    steps = in_line(core, clock, wait=2)
    grant = grant_of(steps)
    assert waits(steps) == pytest.approx(2)
    steps.answer(None, after=2.0)
    assert steps.step == Leave(grant)
    steps.answer()
    assert steps.call("release")[1:3] == (grant, 0)
    steps.answer([b"CANCELLED", 0])
    assert isinstance(steps.error, AcquireTimeout)
    assert steps.error.waited == pytest.approx(2)
    assert steps.error.holder == "other"


def test_a_grant_at_the_last_moment_is_taken(core: Protocol, clock: Clock) -> None:
    """A grant that crosses the timeout would be lost to everybody for the claim time."""
    steps = in_line(core, clock, wait=2)
    steps.answer(Wakeup("GRANT", (9, 1)), after=2.5)
    steps.answer([b"RENEWED", 1])
    steps.answer()
    assert steps.result.token == 9


def test_an_outage_does_not_end_the_wait(core: Protocol, clock: Clock) -> None:
    """A restart of the server would throw everybody out of the line."""
    steps = in_line(core, clock, wait=60)
    grant = grant_of(steps)
    steps.answer(Wakeup("LOOK"), after=1)
    for _ in range(3):
        for _ in range(3):
            assert steps.call("acquire")[1] == grant
            steps.fail(unavailable())
            assert isinstance(steps.step, Sleep)
            steps.answer(after=steps.step.seconds)
    steps.answer([b"QUEUED", b"other", 3_000, 0])
    assert waits(steps) > 0


def test_an_outage_ends_with_the_wait(core: Protocol, clock: Clock) -> None:
    """A waiter would hang for as long as the server is away."""
    steps = in_line(core, clock, wait=5)
    steps.answer(Wakeup("LOOK"), after=4.9)
    for number in range(3):
        steps.fail(unavailable(), after=0.1)
        if number < 2:
            steps.answer()
    assert isinstance(steps.step, Leave)
    steps.answer()
    steps.call("release")
    steps.fail(unavailable())
    assert isinstance(steps.error, StoreUnavailable)


def test_listening_is_tried_again_until_the_wait_is_over(core: Protocol, clock: Clock) -> None:
    """A broken subscription would end the wait at once, or never."""
    steps = acquiring(core, clock, wait=5)
    steps.answer([b"HELD", b"other", 5_000])
    for _ in range(3):
        assert isinstance(steps.step, Enter)
        steps.fail(unavailable(False))
        assert isinstance(steps.step, Sleep)
        steps.answer(after=steps.step.seconds)
    steps.fail(unavailable(False), after=5)
    while not steps.ended:
        steps.answer([b"CANCELLED", 0])
    assert isinstance(steps.error, StoreUnavailable)


def test_the_driver_is_told_how_long_to_listen_for(core: Protocol, clock: Clock) -> None:
    """A server that does not confirm the subscription would keep a waiter beyond its wait."""
    steps = acquiring(core, clock, wait=5)
    steps.answer([b"HELD", b"other", 5_000], after=1)
    grant, seconds = listens(steps)
    assert seconds == pytest.approx(4)
    steps.answer(None, after=2)
    again, seconds = listens(steps)
    assert again == grant, "the wait is not over"
    assert seconds == pytest.approx(2)
    steps.answer(None, after=2)
    assert steps.step == Leave(grant)
    steps.answer()
    assert steps.call("release")[1:3] == (grant, 0)
    steps.answer([b"CANCELLED", 0])
    assert isinstance(steps.error, AcquireTimeout)
    assert steps.error.waited == pytest.approx(5)


def test_a_subscription_that_is_confirmed_late_is_used(core: Protocol, clock: Clock) -> None:
    """One slow handshake would end the wait."""
    steps = acquiring(core, clock, wait=60)
    steps.answer([b"HELD", b"other", 5_000])
    steps.answer(None, after=2)
    steps.answer("channel", after=0.1)
    assert steps.call("acquire")[7:] == ("join", "channel")


def test_an_interrupted_waiter_leaves_the_line(core: Protocol, clock: Clock) -> None:
    """Ctrl-C in a wait would leave a dead place in line."""
    steps = in_line(core, clock)
    grant = grant_of(steps)
    steps.fail(KeyboardInterrupt())
    assert steps.step == Leave(grant)
    steps.answer()
    assert steps.call("release")[1:3] == (grant, 0)
    steps.answer([b"CANCELLED", 0])
    assert isinstance(steps.error, KeyboardInterrupt)


def test_an_interrupted_claim_is_given_back(core: Protocol, clock: Clock) -> None:
    """A waiter interrupted between its grant and its claim would keep the lease from the next."""
    steps = in_line(core, clock)
    grant = grant_of(steps)
    steps.answer(Wakeup("GRANT", (9, 1)))
    steps.call("renew")
    steps.fail(KeyboardInterrupt())
    assert steps.step == Leave(grant)
    steps.answer()
    assert steps.call("release")[1] == grant
    steps.answer([b"RELEASED", 9])
    assert isinstance(steps.error, KeyboardInterrupt)


def test_a_waiter_interrupted_while_leaving_is_given_back(core: Protocol, clock: Clock) -> None:
    """A second Ctrl-C, in the clean-up of the first, would leave a dead place in line."""
    steps = in_line(core, clock)
    grant = grant_of(steps)
    steps.fail(KeyboardInterrupt())
    assert steps.step == Leave(grant)
    steps.fail(KeyboardInterrupt())
    assert steps.call("release")[1:3] == (grant, 0)
    steps.answer([b"CANCELLED", 0])
    assert isinstance(steps.error, KeyboardInterrupt)


# Renew and release


@pytest.fixture
def lease(core: Protocol) -> Told:
    return told_lease(core, ttl=TTL)


def test_a_renew_counts_from_before_its_first_try(lease: Told, clock: Clock) -> None:
    """A renew that was repeated would be believed in for longer than the store has it."""
    begun = clock.now
    steps = Driven(lease._renewing(None), clock)
    steps.fail(unavailable(), after=2.0)
    steps.answer()
    steps.answer([b"RENEWED", 1], after=2.0)
    assert steps.result is None
    assert begun + TTL - clock.now - 0.2 < lease.remaining() < begun + TTL - clock.now


def test_a_renew_without_an_answer_keeps_what_there_was(lease: Told, clock: Clock) -> None:
    """A lease would be thought lost, or renewed, when nothing is known."""
    before = lease.remaining()
    steps = Driven(lease._renewing(None), clock)
    for number in range(3):
        steps.fail(unavailable(), after=0.5)
        if number < 2:
            steps.answer()
    assert isinstance(steps.error, StoreUnavailable)
    assert lease.remaining() == pytest.approx(before - 1.5)
    assert lease._begin_renewal(), "the next renew may begin"


@pytest.mark.parametrize("reply", [[b"STALE", 8], [b"STALE", 0], [b"FOREIGN", b"x"]])
def test_a_refused_renew_is_a_loss(lease: Told, clock: Clock, reply: list[object]) -> None:
    """The holder would go on under a lease that another has."""
    steps = Driven(lease._renewing(None), clock)
    steps.answer(reply)
    assert isinstance(steps.error, LeaseLost)
    assert lease.told is not None
    assert not lease.valid


def test_a_renew_that_comes_too_late_is_given_back(lease: Told, clock: Clock) -> None:
    """A lease whose holder was told of its loss would come back to life."""
    steps = Driven(lease._renewing(None), clock)
    steps.answer([b"RENEWED", 1], after=TTL + 1)
    assert steps.call("release")[2] == lease.token
    steps.answer([b"RELEASED", lease.token])
    assert isinstance(steps.error, LeaseLost)
    assert lease.told is not None


def test_a_lost_lease_sends_nothing(lease: Told, clock: Clock) -> None:
    """A holder that was told of its loss would speak for its token again."""
    clock.now += TTL
    assert isinstance(Driven(lease._renewing(None), clock).error, LeaseLost)
    assert Driven(lease._releasing(), clock).result is False


def test_a_shorter_ttl_counts_from_the_request(lease: Told, clock: Clock) -> None:
    """If the reply is lost, the store may have the shorter ttl already."""
    steps = Driven(lease._renewing(1.0), clock)
    assert lease.remaining() < 1.0
    for number in range(3):
        steps.fail(unavailable())
        if number < 2:
            steps.answer()
    assert lease.remaining() < 1.0


def test_a_longer_ttl_counts_from_the_reply(lease: Told, clock: Clock) -> None:
    """If the request is lost, the store still has the shorter ttl."""
    steps = Driven(lease._renewing(60.0), clock)
    assert lease.remaining() < TTL
    steps.answer([b"RENEWED", 1])
    assert lease.remaining() > 59


def test_one_renew_at_a_time(lease: Told, clock: Clock) -> None:
    """Two renews with different ttls could overtake each other."""
    first = Driven(lease._renewing(60.0), clock)
    second = Driven(lease._renewing(2.0), clock)
    assert isinstance(second.step, Sleep)
    first.answer([b"RENEWED", 1])
    second.answer()
    assert second.call("renew")[2] == 2_000
    second.answer([b"RENEWED", 1])
    assert lease.ttl == 2


def test_a_plain_renew_keeps_the_ttl_of_the_one_before(lease: Told, clock: Clock) -> None:
    """A longer ttl would be undone by a renew that waited for it."""
    first = Driven(lease._renewing(60.0), clock)
    second = Driven(lease._renewing(None), clock)
    assert isinstance(second.step, Sleep)
    first.answer([b"RENEWED", 1])
    second.answer()
    assert second.call("renew")[2] == 60_000


def test_a_renew_is_not_tried_again_after_the_loss(lease: Told, clock: Clock) -> None:
    """A lease that is known to be lost would speak for its token again."""
    steps = Driven(lease._renewing(None), clock)
    steps.fail(unavailable(), after=TTL + 1)
    assert not lease.valid
    steps.answer()
    assert isinstance(steps.error, StoreUnavailable)


def test_a_demotion_while_a_durability_is_asked_for_is_an_outage() -> None:
    """A failover would look like a refusal that changed nothing."""
    for words in (
        "UNBLOCKED force unblock from blocking operation",
        "WAIT cannot be used with replica instances",
    ):
        error = refusal(ResponseError(words))
        assert isinstance(error, StoreUnavailable)
        assert error.maybe_applied


def test_a_missing_info_key_is_written_anew(lease: Told, clock: Clock) -> None:
    """An operator would not see who holds a lease that was healed."""
    steps = Driven(lease._renewing(None), clock)
    assert steps.call("renew")[4] == ""
    steps.answer([b"RENEWED", 0])
    assert f'"token":{lease.token}' in steps.call("renew")[4]
    steps.answer([b"RENEWED", 1])
    assert steps.result is None


def test_a_release_ends_the_belief_before_it_is_sent(lease: Told, clock: Clock) -> None:
    """A holder would still believe in a lease whose release is on the wire."""
    steps = Driven(lease._releasing(), clock)
    assert steps.call("release")[2] == lease.token
    assert not lease.valid
    steps.answer([b"RELEASED", lease.token])
    assert steps.result is True
    assert lease.told is None, "a release is no loss"


def test_a_release_without_an_answer_may_be_asked_again(lease: Told, clock: Clock) -> None:
    """The name would stay taken for the ttl after one cut connection."""
    steps = Driven(lease._releasing(), clock)
    for number in range(3):
        steps.fail(unavailable())
        if number < 2:
            steps.answer()
    assert isinstance(steps.error, StoreUnavailable)
    again = Driven(lease._releasing(), clock)
    again.answer([b"RELEASED", lease.token])
    assert again.result is True
    assert Driven(lease._releasing(), clock).result is True, "known by now"


def test_a_release_during_a_renew_in_flight_wins(lease: Told, clock: Clock) -> None:
    """A late success of the renew would bring the released lease back."""
    renewing = Driven(lease._renewing(None), clock)
    releasing = Driven(lease._releasing(), clock)
    releasing.answer([b"RELEASED", lease.token])
    renewing.answer([b"RENEWED", 1])
    assert isinstance(renewing.error, LeaseLost)
    assert "released" in str(renewing.error)
    assert lease._state is State.RELEASED
    assert not lease.valid


def test_an_interrupted_renew_frees_the_way(lease: Told, clock: Clock) -> None:
    """After one Ctrl-C no later renew would ever begin."""
    steps = Driven(lease._renewing(None), clock)
    steps.fail(KeyboardInterrupt())
    assert isinstance(steps.error, KeyboardInterrupt)
    again = Driven(lease._renewing(None), clock)
    again.answer([b"RENEWED", 1])
    assert again.result is None


# Revoke


def test_revoke_asks_who_has_it_and_names_the_token(core: Protocol, clock: Clock) -> None:
    """An operator's revoke would end the lease of whoever comes next."""
    steps = Driven(core.revoke("orders", None), clock)
    steps.call("inspect")
    steps.answer([b"HELD", 7, 0, [], b"other", 500, b'{"token":7}'])
    assert steps.call("revoke")[0] == 7
    steps.answer([b"REVOKED", 7])
    assert steps.result == 7


def test_a_foreign_lock_is_not_revoked(core: Protocol, clock: Clock) -> None:
    """A key that somebody else wrote would be deleted, or passed over in silence."""
    steps = Driven(core.revoke("orders", None), clock)
    steps.answer([b"HELD", 0, 0, [], b"other", -1, b""])
    assert isinstance(steps.error, StoreError)
    assert steps.error.code == "FOREIGN"
