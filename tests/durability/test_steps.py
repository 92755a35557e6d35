"""What a client with a durability asks the store, step by step, with no server."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

import fencer
from fencer import Fsynced, NotDurable, Replicated
from fencer._protocol import Granted, Protocol, Settings
from fencer._steps import Call, Confirm, Confirmed, Enter, Leave, Sleep, Wait, Wakeup
from fencer.durability import Durability, checked, confirm, judge
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable
from tests.core.driven import Clock, Driven, Told, told_lease, unavailable
from tests.durability import bugs
from tests.faults import bugs as common
from tests.faults.planted import no_twin, twin

TTL_MS = 10_000
GRANTED = [b"GRANTED", 7, 1]
RENEWED = [b"RENEWED", 1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def core_with(clock: Clock, *durability: Durability) -> Protocol:
    return Protocol(Settings(clock=clock, durability=durability))


@pytest.fixture
def core(clock: Clock) -> Protocol:
    """A core that wants two replicas."""
    return core_with(clock, Replicated(2))


def acquiring(
    core: Protocol, clock: Clock, wait: float = 0.0, ttl_ms: int = TTL_MS
) -> Driven[Granted]:
    return Driven(core.acquire("orders", "me", ttl_ms, wait, {"holder": "me"}), clock)


def in_line(core: Protocol, clock: Clock) -> Driven[Granted]:
    """An acquire that stands in line and waits to hear something."""
    steps = acquiring(core, clock, wait=60.0)
    steps.answer(Confirmed([b"HELD", b"other", 5_000], None))
    assert isinstance(steps.step, Enter)
    steps.answer("channel")
    steps.answer([b"QUEUED", b"other", 5_000, 0])
    return steps


def asked(steps: Driven[Any], script: str) -> Confirm | None:
    """What the call that is wanted now asks when the script has answered."""
    steps.call(script)
    assert isinstance(steps.step, Call)
    return steps.step.confirm


def given_back(steps: Driven[Granted], token: int = 7) -> None:
    """Answer the release that must come now."""
    assert steps.call("release")[2] == token
    steps.answer([b"RELEASED", token])
    while not steps.ended:  # One who was in line leaves it, too.
        if not isinstance(steps.step, Leave):
            assert steps.call("release")[2] == 0
        steps.answer([b"RELEASED", token])


def reached(steps: Driven[Any]) -> int:
    assert isinstance(steps.error, NotDurable), steps.error
    return steps.error.reached


# The grant


@twin(bugs.asks_nothing)
def test_the_question_goes_with_the_script(core: Protocol, clock: Clock) -> None:
    """The question would come on another connection, for which the server has nothing to tell."""
    steps = acquiring(core, clock)
    assert asked(steps, "acquire") == Confirm("GRANTED", (("WAIT", 2, 1_000),), 1.0)
    steps.answer(Confirmed(GRANTED, [2]))
    assert steps.result.token == 7


@twin(bugs.asks_everybody)
def test_without_a_durability_nothing_is_asked(clock: Clock) -> None:
    """Everybody would pay for it."""
    steps = acquiring(core_with(clock), clock)
    assert asked(steps, "acquire") is None
    steps.answer(GRANTED)
    assert steps.result.token == 7


@twin(common.gives_nothing_back)
@pytest.mark.parametrize("number", [0, 1])
def test_a_grant_that_reached_too_few_is_given_back(
    core: Protocol, clock: Clock, number: int
) -> None:
    """A token that a failover may take would be handed out; or be held by nobody for its ttl."""
    steps = acquiring(core, clock)
    steps.answer(Confirmed(GRANTED, [number]))
    assert steps.call("release")[2] == 7
    steps.answer([b"RELEASED", 7])
    assert steps.ended, "it is given back twice"
    error = steps.error
    assert isinstance(error, NotDurable)
    assert (error.name, error.token, error.wanted, error.reached) == ("orders", 7, 2, number)
    assert (error.seconds, error.place, error.act) == (1.0, "replicas", "grant")
    assert f"reached {number} of 2 replicas within 1 s" in str(error)
    assert "given back" in str(error)


@twin(bugs.just_as_many_must_follow)
def test_more_than_enough_is_enough(core: Protocol, clock: Clock) -> None:
    """A third replica would stop the service."""
    steps = acquiring(core, clock)
    steps.answer(Confirmed(GRANTED, [3]))
    assert steps.result.token == 7


@twin(bugs.fails_to_give_back)
def test_what_cannot_be_given_back_hides_nothing(core: Protocol, clock: Clock) -> None:
    """The caller would hear of the second failure, not of the first."""
    steps = acquiring(core, clock)
    steps.answer(Confirmed(GRANTED, [1]))
    steps.fail(unavailable())
    assert reached(steps) == 1


@twin(bugs.takes_a_refusal_for_an_answer)
def test_a_question_that_is_refused(core: Protocol, clock: Clock) -> None:
    """A user who may not ask would be told that all is well, or leave the lease held."""
    steps = acquiring(core, clock)
    steps.answer(Confirmed(GRANTED, [StoreError("no", code="NOPERM")]))
    given_back(steps)
    assert isinstance(steps.error, StoreError)
    assert steps.error.code == "NOPERM"


@twin(bugs.wants_an_answer_of_all)
def test_somebody_else_has_it(core: Protocol, clock: Clock) -> None:
    """Every refused acquire would wait for the replicas, or fail for want of an answer."""
    steps = acquiring(core, clock)
    steps.answer(Confirmed([b"HELD", b"other", 1_500], None))
    assert isinstance(steps.error, fencer.NotAcquired)


@twin(bugs.claims_nothing)
def test_asked_again_it_is_renewed_first(core: Protocol, clock: Clock) -> None:
    """An acquire that is asked again may write nothing; what is asked after it says nothing."""
    steps = acquiring(core, clock)
    steps.fail(unavailable())
    assert isinstance(steps.step, Sleep)
    steps.answer()
    steps.answer(Confirmed(GRANTED, [2]))
    assert asked(steps, "renew") == Confirm("RENEWED", (("WAIT", 2, 1_000),), 1.0)
    steps.answer(Confirmed(RENEWED, [1]))
    given_back(steps)
    assert reached(steps) == 1


@twin(bugs.doubts_every_repetition)
def test_what_was_never_sent_is_no_doubt(core: Protocol, clock: Clock) -> None:
    """A connection that had to be made anew would cost a renewal."""
    steps = acquiring(core, clock)
    steps.fail(unavailable(False))
    steps.answer()
    steps.answer(Confirmed(GRANTED, [2]))
    assert steps.result.token == 7


@twin(bugs.waits_out_the_ttl)
def test_a_short_ttl_is_not_waited_out(core: Protocol, clock: Clock) -> None:
    """The lease would be over when its token is handed out."""
    steps = acquiring(core, clock, ttl_ms=100)
    assert asked(steps, "acquire") == Confirm("GRANTED", (("WAIT", 2, 50),), 0.05)
    steps.answer(Confirmed(GRANTED, [1]))
    given_back(steps)
    assert isinstance(steps.error, NotDurable)
    assert steps.error.seconds == 0.05


@twin(bugs.claims_nothing)
def test_a_slow_answer_is_made_up_for(core: Protocol, clock: Clock) -> None:
    """A lease whose ttl has passed meanwhile would be handed out as valid."""
    steps = acquiring(core, clock)
    steps.answer(Confirmed(GRANTED, [2]), after=11.0)
    steps.call("renew")
    steps.answer(Confirmed(RENEWED, [2]))
    assert steps.result.deadline > clock.now + 9


@twin(common.gives_nothing_back)
def test_an_interrupt_gives_it_back(core: Protocol, clock: Clock) -> None:
    """A caller who presses Ctrl-C while the replicas are slow would leave the lease held."""
    steps = acquiring(core, clock)
    steps.fail(KeyboardInterrupt())
    assert steps.call("release")[2] == 0
    steps.answer([b"RELEASED", 7])
    assert isinstance(steps.error, KeyboardInterrupt)


# In line


@twin(bugs.asks_nothing_in_line)
def test_a_lease_that_is_handed_over(core: Protocol, clock: Clock) -> None:
    """Whoever waited would get a token that nobody has asked the replicas about."""
    steps = in_line(core, clock)
    assert isinstance(steps.step, Wait)
    steps.answer(Wakeup("GRANT", (7, 1)))
    assert asked(steps, "renew") == Confirm("RENEWED", (("WAIT", 2, 1_000),), 1.0)
    steps.answer(Confirmed(RENEWED, [2]))
    assert isinstance(steps.step, Leave)
    steps.answer()
    assert steps.result.token == 7


@twin(common.gives_nothing_back)
def test_a_lease_that_is_handed_over_and_reaches_too_few(core: Protocol, clock: Clock) -> None:
    """The next in line would wait for a lease that nobody has."""
    steps = in_line(core, clock)
    steps.answer(Wakeup("GRANT", (7, 1)))
    steps.answer(Confirmed(RENEWED, [1]))
    given_back(steps)
    assert reached(steps) == 1


@twin(bugs.claims_nothing)
def test_a_grant_that_is_found_in_line(core: Protocol, clock: Clock) -> None:
    """A grant whose message was lost was written by another connection: this one knows nothing."""
    steps = in_line(core, clock)
    steps.answer(None)
    assert asked(steps, "acquire") is None
    steps.answer(GRANTED)
    assert asked(steps, "renew") is not None
    steps.answer(Confirmed(RENEWED, [2]))
    assert isinstance(steps.step, Leave)
    steps.answer()
    assert steps.result.token == 7


# Renew and release, where it is asked for


def renewing(core: Protocol, clock: Clock, durable: bool = True) -> tuple[Told, Driven[None]]:
    lease = told_lease(core)
    return lease, Driven(lease._renewing(None, durable), clock)


def releasing(lease: Told, clock: Clock) -> Driven[bool]:
    return Driven(lease._releasing(True), clock)


@twin(bugs.every_renew_is_durable)
def test_a_plain_renew_does_not_pay(core: Protocol, clock: Clock) -> None:
    """Every heartbeat would wait for the replicas."""
    _, steps = renewing(core, clock, durable=False)
    assert asked(steps, "renew") is None


@twin(bugs.ignores_durable)
def test_a_durable_renew(core: Protocol, clock: Clock) -> None:
    """A caller who asks for it would not get it."""
    lease, steps = renewing(core, clock)
    assert asked(steps, "renew") == Confirm("RENEWED", (("WAIT", 2, 1_000),), 1.0)
    steps.answer(Confirmed(RENEWED, [2]), after=0.5)
    assert steps.ended
    assert steps.error is None
    assert lease.valid


@twin(bugs.looks_at_no_answer)
def test_a_durable_renew_that_reaches_too_few(core: Protocol, clock: Clock) -> None:
    """A lease that is renewed would be lost, or be given back under its holder's hands."""
    lease, steps = renewing(core, clock)
    clock.now += 9
    steps.answer(Confirmed(RENEWED, [1]))
    assert reached(steps) == 1
    assert isinstance(steps.error, NotDurable)
    assert steps.error.act == "renewal"
    assert "held all the same" in str(steps.error)
    assert lease.told is None
    assert lease.valid


@twin(bugs.waits_out_the_ttl)
def test_a_durable_renew_ends_before_the_lease_does(core: Protocol, clock: Clock) -> None:
    """The holder would lose a lease that is renewed, for it waits for the replicas."""
    lease = told_lease(core)
    clock.now += 9
    steps = Driven(lease._renewing(None, True), clock)
    question = asked(steps, "renew")
    assert question is not None
    assert question.seconds < lease.remaining()


@twin(bugs.wants_an_answer_of_all)
def test_a_durable_renew_that_is_refused(core: Protocol, clock: Clock) -> None:
    """The loss would be hidden by the want of an answer."""
    lease, steps = renewing(core, clock)
    steps.answer(Confirmed([b"STALE", 9], None))
    assert isinstance(steps.error, fencer.LeaseLost)
    assert not lease.valid


@twin(bugs.ignores_durable)
def test_a_durable_release(core: Protocol, clock: Clock) -> None:
    """A caller who asks for it would not get it."""
    lease = told_lease(core)
    steps = releasing(lease, clock)
    assert asked(steps, "release") == Confirm("RELEASED", (("WAIT", 2, 1_000),), 1.0)
    steps.answer(Confirmed([b"RELEASED", 7], [2]))
    assert steps.result is True


@twin(bugs.asks_no_release_again)
def test_a_durable_release_that_reaches_too_few_can_be_asked_again(
    core: Protocol, clock: Clock
) -> None:
    """A release that is asked again writes nothing: what is asked after it says nothing."""
    lease = told_lease(core)
    steps = releasing(lease, clock)
    steps.answer(Confirmed([b"RELEASED", 7], [1]))
    assert reached(steps) == 1
    assert not lease.valid
    again = releasing(lease, clock)
    holder, grant, token, *_ = again.call("release")
    assert (holder, token) == ("me", 0)
    assert grant != lease.grant
    assert asked(again, "release") == Confirm("CANCELLED", (("WAIT", 2, 1_000),), 1.0)
    again.answer(Confirmed([b"CANCELLED", 8], [2]))
    assert again.result is True


@twin(bugs.asks_no_release_again)
def test_a_durable_release_whose_reply_was_lost(core: Protocol, clock: Clock) -> None:
    """The same, where the first copy was carried out and the second one answered."""
    steps = releasing(told_lease(core), clock)
    steps.fail(unavailable())
    steps.answer()
    steps.answer(Confirmed([b"RELEASED", 7], [2]))
    assert asked(steps, "release") == Confirm("CANCELLED", (("WAIT", 2, 1_000),), 1.0)
    steps.answer(Confirmed([b"CANCELLED", 8], [1]))
    assert reached(steps) == 1
    assert isinstance(steps.error, NotDurable)
    assert steps.error.act == "release"


@twin(bugs.asks_no_release_again)
def test_a_release_after_one_that_was_not_answered(core: Protocol, clock: Clock) -> None:
    """The same, over two calls of the holder's."""
    lease = told_lease(core)
    first = Driven(lease._releasing(), clock)
    for number in range(3):
        first.fail(unavailable())
        if number < 2:
            first.answer()
    assert isinstance(first.error, StoreUnavailable)
    steps = releasing(lease, clock)
    steps.answer(Confirmed([b"RELEASED", 7], [2]))
    steps.call("release")
    steps.answer(Confirmed([b"CANCELLED", 8], [2]))
    assert steps.result is True


@twin(bugs.wants_an_answer_of_all)
def test_a_durable_release_of_a_lease_that_had_ended(core: Protocol, clock: Clock) -> None:
    """There is nothing to be made safe: it would wait, or fail for want of an answer."""
    steps = releasing(told_lease(core), clock)
    steps.answer(Confirmed([b"STALE", 9], None))
    assert steps.result is False


@twin(bugs.ignores_durable)
@pytest.mark.parametrize(
    "act", [lambda lease: lease._renewing(None, True), lambda lease: lease._releasing(True)]
)
def test_durable_takes_a_durability(clock: Clock, act: Callable[[Told], Any]) -> None:
    """Whoever asks for a safe renewal would get a plain one."""
    lease = told_lease(core_with(clock))
    steps = Driven(act(lease), clock)
    assert isinstance(steps.error, InvalidArgument)
    assert "durability" in str(steps.error)
    assert lease.valid


# What can be wanted


@no_twin("it looks at arguments that are refused")
@pytest.mark.parametrize("replicas", [0, -1, True, 1.5, "2", None, 1_001])
def test_replicas_are_checked(replicas: Any) -> None:
    """``Replicated(0)`` would be a promise of nothing."""
    with pytest.raises(InvalidArgument):
        Replicated(replicas)


@no_twin("it looks at arguments that are refused")
@pytest.mark.parametrize("timeout", [0, -1, 0.0001, float("nan"), float("inf"), "1", None, True])
def test_timeouts_are_checked(timeout: Any) -> None:
    """0 is for ever on the server."""
    with pytest.raises(InvalidArgument):
        Replicated(1, timeout=timeout)
    with pytest.raises(InvalidArgument):
        Fsynced(timeout=timeout)


@no_twin("it looks at arguments that are refused")
@pytest.mark.parametrize("durability", [1, "all", (), [Replicated(1)], (Replicated(1), 2), Fsynced])
def test_the_durability_is_checked(durability: Any) -> None:
    """A typo would leave every grant unsafe."""
    with pytest.raises(InvalidArgument, match="durability"):
        fencer.connect("redis://127.0.0.1:1", durability=durability)


@twin(bugs.takes_replicas_for_the_disk)
def test_both(clock: Clock) -> None:
    """The second would not be asked for, or its answer be taken for that of the first."""
    core = core_with(clock, Replicated(2, timeout=1.0), Fsynced(timeout=2.0))
    steps = acquiring(core, clock)
    question = asked(steps, "acquire")
    assert question is not None
    assert question.questions[0] == ("WAIT", 2, 1_000)
    assert question.questions[-1] == ("WAITAOF", 1, 0, 2_000)
    assert question.seconds == 3.0
    steps.answer(Confirmed(GRANTED, [2, REDIS_8, EVERYSEC, [0, 2]]))
    given_back(steps)
    error = steps.error
    assert isinstance(error, NotDurable)
    assert (error.place, error.wanted, error.reached, error.seconds) == ("disk", 1, 0, 2.0)
    assert "disk" in str(error)


@twin(bugs.waits_out_the_ttl)
def test_both_share_the_time(clock: Clock) -> None:
    """Two waits one after the other would outlast the lease."""
    core = core_with(clock, Replicated(1, timeout=5.0), Fsynced(timeout=15.0))
    question = asked(acquiring(core, clock), "acquire")
    assert question is not None
    assert question.questions[0] == ("WAIT", 1, 1_250)
    assert question.questions[-1] == ("WAITAOF", 1, 0, 3_750)


@no_twin("it looks at an error alone")
def test_the_error_can_be_pickled() -> None:
    """It could not come back from a worker process."""
    error = NotDurable("orders", 7, 2, 1, 1.0, act="release")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reached, again.act) == (str(error), 1, "release")


# Whether WAITAOF can be relied upon

VALKEY_9 = b"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n"
REDIS_8 = b"# Server\r\nredis_version:8.2.3\r\nredis_mode:standalone\r\n"
REDIS_7 = b"# Server\r\nredis_version:7.4.1\r\nredis_mode:standalone\r\n"
ALWAYS = [b"appendfsync", b"always"]
EVERYSEC = [b"appendfsync", b"everysec"]
NO = StoreError("the server refused (NOPERM)", code="NOPERM")


def fsynced(info: Any, setting: Any, answer: Any = (1, 0)) -> None:
    wanted = checked(Fsynced())
    question = confirm(wanted, "GRANTED", 5.0)
    assert question is not None
    judge(wanted, [info, setting, answer], question, ("grant", "orders", 7))


@twin(bugs.relies_on_no_everysec, of="everysec", raises=(StoreError,))
@pytest.mark.parametrize(
    ("info", "setting"),
    [
        (VALKEY_9, ALWAYS),
        (VALKEY_9.decode(), ["appendfsync", "always"]),
        (VALKEY_9, {b"appendfsync": b"always"}),
        (REDIS_7, ALWAYS),
        (REDIS_8, ALWAYS),
        pytest.param(REDIS_8, EVERYSEC, id="everysec"),
        (REDIS_8, NO),
        (NO, ALWAYS),
    ],
)
def test_answers_that_hold(info: Any, setting: Any) -> None:
    """A server that keeps its word would be refused."""
    fsynced(info, setting)


@twin(bugs.relies_on_every_server)
@pytest.mark.parametrize(
    ("info", "setting", "said"),
    [
        (VALKEY_9, EVERYSEC, r"Valkey 9\.1\.2.*everysec.*appendfsync always"),
        (VALKEY_9, {"appendfsync": "no"}, "appendfsync no"),
        (REDIS_7, EVERYSEC, r"Redis 7\.4\.1.*everysec"),
        (NO, EVERYSEC, "this server has appendfsync everysec"),
        (VALKEY_9, NO, r"NOPERM.*\+config\|get"),
        (VALKEY_9, [], "appendfsync nothing"),
        (VALKEY_9, {}, "appendfsync nothing"),
    ],
)
def test_answers_that_come_too_early(info: Any, setting: Any, said: str) -> None:
    """A token would be handed out as safe that a power cut takes."""
    with pytest.raises(StoreError, match=said) as caught:
        fsynced(info, setting)
    assert caught.value.code == "NOFSYNC"


@twin(bugs.says_it_in_the_servers_words)
@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("ERR unknown command 'WAITAOF', with args", r"Redis 8\.2\.3\) has no WAITAOF"),
        ("WAITAOF cannot be used when numlocal is set but appendonly is disabled.", "appendonly"),
        ("NOPERM no permission", "NOPERM"),
    ],
)
def test_servers_that_cannot(message: str, said: str) -> None:
    """The caller would not know what to do about it."""
    with pytest.raises(StoreError, match=said):
        fsynced(REDIS_8, ALWAYS, StoreError(message))
