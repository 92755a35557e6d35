"""The keeper, with a fake clock and no server: when it renews, and when it tells of a loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from fencer._keeper import Keeper, heartbeat, renewing
from fencer._lease import BaseLease
from fencer._protocol import Protocol
from fencer._steps import Batch, Call
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable
from tests.core.driven import Clock, Driven, Told, protocol, told_lease, unavailable


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def core(clock: Clock) -> Protocol:
    return protocol(clock)


@pytest.fixture
def keeper(clock: Clock) -> Keeper:
    return Keeper(clock)


Reply = Callable[[BaseLease], object]


def renewed(lease: BaseLease) -> object:
    return [b"RENEWED", 1]


def answered(call: Call, leases: dict[str | bytes, BaseLease], reply: Reply) -> object:
    """The reply to a call that renews some leases: one after the other, or the first error."""
    flat: list[Any] = []
    for key in call.keys[::3]:
        one = reply(leases[key])
        if not isinstance(one, list):
            return one
        flat += one
    return flat


class Life:
    """Runs a keeper as its owners do, in no time: from one moment with work to the next."""

    def __init__(self, keeper: Keeper, clock: Clock, reply: Reply = renewed, trip: float = 0.0):
        self.keeper = keeper
        self.clock = clock
        self.reply = reply
        self.trip = trip
        self.sent: list[tuple[float, list[str]]] = []

    def run(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            pause = self.keeper.look()
            due = self.keeper.next_renewals()
            if due:
                self._renew(due)
            else:
                pause = min(pause, self.keeper.pause(), until - self.clock.now)
                self.clock.now += max(pause, 1e-6)

    def _renew(self, due: list[BaseLease]) -> None:
        self.sent.append((self.clock.now, [lease.name for lease in due]))
        at_once = sum(1 for at, _ in self.sent[-100:] if at == self.clock.now)
        assert at_once < 100, "it sends again and again without a pause"
        steps = Driven(renewing(due, self.clock), self.clock)
        if not steps.ended:
            by_key = {lease._renew_call().keys[0]: lease for lease in due}
            while not steps.ended and isinstance(steps.step, Batch):
                replies = [answered(call, by_key, self.reply) for call in steps.step.calls]
                steps.answer(replies, after=self.trip)
        while not steps.ended:
            steps.answer([b"RELEASED", 1])
        self.keeper.renewed(steps.result)


def kept(keeper: Keeper, lease: Told, beat: float | None = None) -> Told:
    keeper.watch(lease)
    keeper.keep(lease, lease.ttl / 3 if beat is None else beat)
    return lease


def renew(keeper: Keeper, lease: Told, clock: Clock, ttl: float, reply: object = None) -> None:
    """What the client's ``renew(ttl)`` does; without a reply the server does not answer."""
    keeper.retime(lease, round(ttl * 1000))
    steps = Driven(lease._renewing(ttl), clock)
    while not steps.ended:
        if isinstance(steps.step, Call) and reply is None:
            steps.fail(unavailable())
        else:
            steps.answer(reply)
    keeper.retime(lease, lease._ttl_ms)


def test_a_lease_is_renewed_every_heartbeat(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A kept lease would end, or be renewed all the time."""
    lease = kept(keeper, told_lease(core, ttl=9))
    life = Life(keeper, clock)
    life.run(300)
    assert lease.valid
    gaps = [after - before for (before, _), (after, _) in pairwise(life.sent)]
    assert len(life.sent) >= 100
    assert max(gaps) <= 3.0 + 1e-6
    assert min(gaps) >= 3.0 * 0.85 - 1e-6, "a tenth earlier, and a twentieth to share a trip"


def test_beats_are_jittered(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """The replicas of a service that started together would march in step."""
    kept(keeper, told_lease(core, ttl=9))
    life = Life(keeper, clock)
    life.run(60)
    gaps = [after - before for (before, _), (after, _) in pairwise(life.sent)]
    assert max(gaps) - min(gaps) > 0.02


def test_several_leases_share_a_trip(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """Each lease would cost a trip of its own."""
    for number in range(100):
        kept(keeper, told_lease(core, f"orders-{number}", ttl=9))
    life = Life(keeper, clock)
    life.run(90)
    renewals = sum(len(names) for _, names in life.sent)
    assert renewals >= 3_000
    assert len(life.sent) <= renewals / 5


@pytest.mark.parametrize("seconds", [6.0, 60.0])
def test_a_failed_renew_is_tried_again_while_there_is_time(
    keeper: Keeper, core: Protocol, clock: Clock, seconds: float
) -> None:
    """One lost reply would cost the lease, or a dead server would be asked without a pause."""
    lease = kept(keeper, told_lease(core, ttl=9))
    outage = clock.now + 4.0, clock.now + 4.0 + seconds  # between the first beat and the second
    life = Life(
        keeper,
        clock,
        lambda one: unavailable() if outage[0] < clock.now < outage[1] else renewed(one),
    )
    life.run(4.0)
    (first, _), *more = life.sent
    assert not more
    life.run(70)
    tries = [at for at, _ in life.sent if outage[0] < at < outage[1]]
    assert 3 < len(tries) < 60
    assert min(after - before for before, after in pairwise(tries)) >= 0.01 - 1e-6
    assert max(after - before for before, after in pairwise(tries)) <= 0.5 + 1e-6
    if seconds == 6.0:
        assert lease.valid, "it had a second and a half to go"
    else:
        assert lease.told is not None
        assert first + 8.8 < lease.told[0] < first + 9, "the last success decides"
        assert first + 8.8 - tries[-1] < 0.2, "it was tried to the end"


def test_retries_leave_time_to_the_end(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A server that comes back shortly before the lease's end would be asked too late."""
    lease = kept(keeper, told_lease(core, ttl=9))
    back = clock.now + 8.5
    life = Life(keeper, clock, lambda one: renewed(one) if clock.now >= back else unavailable())
    life.run(30)
    assert lease.valid
    assert lease.told is None


def test_a_loss_is_told_at_the_deadline(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """The holder would hear of the loss after another was granted the lease, or too early."""
    begun = clock.now
    lease = kept(keeper, told_lease(core, ttl=9))
    life = Life(keeper, clock, lambda one: unavailable())
    life.run(20)
    assert lease.told is not None
    assert begun + 8.8 < lease.told[0] < begun + 9, "a margin before the store's end"
    assert all(at < begun + 9 for at, _ in life.sent), "and nothing is sent any more"
    assert keeper.idle


def test_a_watch_without_heartbeat_tells_too(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A callback on a lease that is not kept alive would never be called."""
    begun = clock.now
    lease = told_lease(core, ttl=5)
    keeper.watch(lease)
    Life(keeper, clock).run(6)
    assert lease.told is not None
    assert begun + 4.8 < lease.told[0] < begun + 5
    assert keeper.idle


def test_the_watch_follows_the_renewals(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A renewed lease would be declared lost at its first deadline."""
    lease = told_lease(core, ttl=5)
    keeper.watch(lease)
    clock.now += 4
    lease._settle(["RENEWED", 1], clock.now, 5_000)
    begun = clock.now
    Life(keeper, clock).run(10)
    assert lease.told is not None
    assert begun + 4.8 < lease.told[0] < begun + 5


@pytest.mark.parametrize("reply", [[b"RENEWED", 1], None])
def test_a_shorter_ttl_is_watched_from_then_on(
    keeper: Keeper, core: Protocol, clock: Clock, reply: object
) -> None:
    """After renew(ttl=shorter) a loss would be told at the old deadline, when another has it."""
    lease = told_lease(core, ttl=60)
    keeper.watch(lease)
    begun = clock.now
    renew(keeper, lease, clock, 2.0, reply)
    Life(keeper, clock).run(70)
    assert lease.told is not None
    assert lease.told[0] < begun + 2


def test_a_shorter_ttl_is_watched_while_it_is_asked_for(
    keeper: Keeper, core: Protocol, clock: Clock
) -> None:
    """The store may have it already: a slow reply would put off the news of the loss."""
    lease = told_lease(core, ttl=60)
    keeper.watch(lease)
    begun = clock.now
    keeper.retime(lease, 2_000)
    steps = Driven(lease._renewing(2.0), clock)
    assert isinstance(steps.step, Call)
    Life(keeper, clock).run(5)
    assert lease.told is not None
    assert lease.told[0] < begun + 2


@pytest.mark.parametrize("reply", [[b"RENEWED", 1], None])
def test_a_shorter_ttl_is_renewed_in_time(
    keeper: Keeper, core: Protocol, clock: Clock, reply: object
) -> None:
    """After renew(ttl=shorter) a kept lease would end between two beats of the old ttl."""
    lease = kept(keeper, told_lease(core, ttl=60))
    renew(keeper, lease, clock, 2.0, reply)
    Life(keeper, clock).run(30)
    assert lease.told is None
    assert lease.valid


def test_a_longer_ttl_is_watched_to_its_end(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A lease that was prolonged would be declared lost at its first deadline."""
    lease = told_lease(core, ttl=2)
    keeper.watch(lease)
    begun = clock.now
    renew(keeper, lease, clock, 60.0, [b"RENEWED", 1])
    Life(keeper, clock).run(70)
    assert lease.told is not None
    assert begun + 59 < lease.told[0] < begun + 60


def test_another_ttl_makes_nobody_kept(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """renew(ttl) would keep alive, or watch for ever, what nobody asked to be kept."""
    lease = told_lease(core, ttl=60)
    renew(keeper, lease, clock, 2.0, [b"RENEWED", 1])
    assert keeper.idle


def test_a_failed_renew_of_the_callers_does_not_put_off_the_next_try(
    keeper: Keeper, core: Protocol, clock: Clock
) -> None:
    """A call that failed in an outage would cost the lease: the keeper would come after its end."""
    lease = kept(keeper, told_lease(core, ttl=9))
    back = clock.now + 7.5
    life = Life(keeper, clock, lambda one: renewed(one) if clock.now >= back else unavailable())
    life.run(6.5)
    renew(keeper, lease, clock, 9.0)
    life.run(30)
    assert lease.told is None
    assert lease.valid


def test_a_late_grant_is_renewed_soon(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A grant whose reply was slow would end before its first beat."""
    lease = told_lease(core, ttl=9)
    clock.now += 8
    begun = clock.now
    kept(keeper, lease)
    life = Life(keeper, clock)
    life.run(30)
    assert lease.valid
    assert life.sent[0][0] <= begun + 0.5, "half of what is left leaves time for a second try"


def test_the_watcher_looks_each_second(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A pause that slept with the machine would tell of the loss long after waking."""
    assert keeper.look() <= 1
    keeper.watch(told_lease(core, ttl=600))
    assert 0 < keeper.look() <= 1


def test_who_travels_together_stays_together(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """Each lease would be put off by a part of its own: trips would fall apart again."""
    for number in range(100):
        kept(keeper, told_lease(core, f"orders-{number}", ttl=9))
    life = Life(keeper, clock)
    life.run(60)
    merged = len(life.sent)
    life.run(60)
    assert len(life.sent) - merged <= 60, "twenty-odd beats, in one trip or two"


def test_a_refusal_ends_the_keeping(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A revoked lease would be renewed again and again."""
    lease = kept(keeper, told_lease(core, ttl=9))
    life = Life(keeper, clock, lambda one: [b"STALE", 8])
    life.run(30)
    assert lease.told is not None
    assert len(life.sent) == 1
    assert keeper.idle


def test_one_bad_lease_does_not_take_the_others_along(
    keeper: Keeper, core: Protocol, clock: Clock
) -> None:
    """A corrupt key of one name would cost every lease of the client."""
    bad = kept(keeper, told_lease(core, "bad", ttl=9))
    good = kept(keeper, told_lease(core, "good", ttl=9))
    life = Life(
        keeper, clock, lambda one: StoreError("CORRUPT") if one.name == "bad" else renewed(one)
    )
    life.run(60)
    assert bad.told is not None
    assert good.told is None
    assert good.valid


def test_a_dropped_lease_is_renewed_no_more(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A released lease would still be spoken for."""
    lease = kept(keeper, told_lease(core, ttl=9))
    life = Life(keeper, clock)
    life.run(10)
    keeper.drop(lease)
    assert keeper.idle
    before = len(life.sent)
    life.run(30)
    assert len(life.sent) == before
    assert lease.told is None


def test_a_lease_dropped_during_its_trip_does_not_come_back(
    keeper: Keeper, core: Protocol, clock: Clock
) -> None:
    """A release while the keeper's renew is in flight would be followed by more renewals."""
    lease = kept(keeper, told_lease(core, ttl=9))
    clock.now += 3
    (due,) = keeper.next_renewals()
    keeper.drop(lease)
    keeper.renewed({due: None})
    assert keeper.idle


def test_a_trip_waits_no_longer_than_there_is_time(core: Protocol, clock: Clock) -> None:
    """A reply that never comes would use up the time for a second try."""
    leases: list[BaseLease] = [told_lease(core, "long", ttl=60), told_lease(core, "short", ttl=3)]
    clock.now += 1
    steps = Driven(renewing(leases, clock), clock)
    assert isinstance(steps.step, Batch)
    assert 0 < steps.step.timeout < 1.5


def test_a_lease_that_somebody_renews_is_left_alone(core: Protocol, clock: Clock) -> None:
    """Two renews with different ttls could overtake each other."""
    mine, other = told_lease(core, "mine"), told_lease(core, "other")
    assert other._begin_renewal()
    steps = Driven(renewing([mine, other], clock), clock)
    assert isinstance(steps.step, Batch)
    assert [call.keys for call in steps.step.calls] == [mine._renew_call().keys]
    steps.answer([[b"RENEWED", 1]])
    assert steps.result[mine] is None
    assert (steps.result[other] or 0) > 0, "it comes again soon"
    assert not other._begin_renewal(), "the other's renew is still under way"


def test_a_renew_that_comes_too_late_is_given_back(core: Protocol, clock: Clock) -> None:
    """A lease that was declared lost would live on in the store."""
    lease = told_lease(core, ttl=3)
    steps = Driven(renewing([lease], clock), clock)
    steps.answer([[b"RENEWED", 1]], after=4)
    assert isinstance(steps.step, Call)
    assert steps.call("release")[2] == lease.token
    steps.answer([b"RELEASED", lease.token])
    assert steps.ended
    assert lease.told is not None


def test_an_interrupted_trip_frees_the_way(core: Protocol, clock: Clock) -> None:
    """After a cancelled trip nobody could ever renew again."""
    lease = told_lease(core)
    steps = Driven(renewing([lease], clock), clock)
    steps.fail(KeyboardInterrupt())
    assert isinstance(steps.error, KeyboardInterrupt)
    assert lease._begin_renewal()


def test_a_missing_info_key_is_written_with_the_next_beat(
    keeper: Keeper, core: Protocol, clock: Clock
) -> None:
    """An operator would not see who holds a lease that was healed."""
    lease = kept(keeper, told_lease(core, ttl=9))
    described: list[bool] = []

    def reply(one: BaseLease) -> object:
        described.append(one._describe)
        return [b"RENEWED", 1 if one._describe else 0]

    Life(keeper, clock, reply).run(4)
    assert described[:2] == [False, True]
    assert lease.valid


def test_many_leases_cost_no_square() -> None:
    """A service with many leases would spend its time in the keeper."""

    def cost(count: int) -> float:
        clock = Clock()
        keeper, core = Keeper(clock), protocol(clock)
        begun = time.process_time()
        leases = [kept(keeper, told_lease(core, f"{n}", ttl=60)) for n in range(count)]
        while due := keeper.next_renewals():
            keeper.renewed(dict.fromkeys(due))
        for _ in range(3):
            clock.now += 20
            while due := keeper.next_renewals():
                for lease in due:
                    lease._settle(["RENEWED", 1], clock.now, 60_000)
                keeper.renewed(dict.fromkeys(due))
            keeper.look()
        for lease in leases:
            assert lease.valid
            keeper.drop(lease)
        assert keeper.idle
        return time.process_time() - begun

    few = min(cost(400) for _ in range(3))
    # Ten times as many, and four times that for noise; a square would take a hundred times.
    assert any(cost(4_000) < 40 * few for _ in range(10))


def test_the_heap_does_not_grow(keeper: Keeper, core: Protocol, clock: Clock) -> None:
    """A client that acquires and releases for days would fill the memory."""
    stays = kept(keeper, told_lease(core, "stays", ttl=3_600))
    life = Life(keeper, clock)
    for number in range(2_000):
        lease = kept(keeper, told_lease(core, f"{number}", ttl=3_600))
        keeper.drop(lease)
        life.run(0.01)
    assert stays.valid
    assert len(keeper._deadlines._heap) < 1_000
    assert len(keeper._renewals._heap) < 1_000


@pytest.mark.parametrize(
    ("keep_alive", "expected"), [(False, None), (True, 3.0), (1, 1.0), (2.5, 2.5), (4.5, 4.5)]
)
def test_heartbeat(keep_alive: bool | float, expected: float | None) -> None:
    """A keep_alive that is allowed would be refused, or mean another time."""
    assert heartbeat(keep_alive, 9_000) == expected


@pytest.mark.parametrize("keep_alive", [4.6, 9.0, 100, 0, -1.0, float("nan"), "3", None])
def test_a_heartbeat_without_a_second_try_is_refused(keep_alive: object) -> None:
    """One lost reply would cost the lease."""
    with pytest.raises(InvalidArgument):
        heartbeat(keep_alive, 9_000)  # type: ignore[arg-type]


def test_the_refusal_names_the_range() -> None:
    """The message would say that no number is allowed."""
    with pytest.raises(InvalidArgument, match=r"0\.3\b"):
        heartbeat(5.0, 300)


# One call for many leases.


def keys_of(steps: Driven[Any]) -> list[list[str | bytes]]:
    """The lock keys in each call of the trip."""
    assert isinstance(steps.step, Batch)
    return [list(call.keys[::3]) for call in steps.step.calls]


def locks(leases: list[BaseLease]) -> list[str | bytes]:
    return [lease._renew_call().keys[0] for lease in leases]


def held(core: Protocol, count: int, ttl: float = 9.0) -> list[BaseLease]:
    return [told_lease(core, f"orders-{number}", ttl=ttl) for number in range(count)]


def test_a_trip_is_a_call_per_hundred(core: Protocol, clock: Clock) -> None:
    """Each lease would cost a call, or one call would hold up the server."""
    leases = held(core, 250)
    steps = Driven(renewing(leases, clock), clock)
    assert [len(keys) for keys in keys_of(steps)] == [100, 100, 50]
    assert [key for keys in keys_of(steps) for key in keys] == locks(leases)
    steps.answer([[b"RENEWED", 1] * 100, [b"RENEWED", 1] * 100, [b"RENEWED", 1] * 50])
    assert steps.result == dict.fromkeys(leases)


def test_the_call_of_many_says_it_all(core: Protocol, clock: Clock) -> None:
    """A lease would be renewed with the token or the info of another."""
    first, second = told_lease(core, "first", token=7), told_lease(core, "second", token=8)
    second._describe = True
    steps = Driven(renewing([first, second], clock), clock)
    assert isinstance(steps.step, Batch)
    (call,) = steps.step.calls
    one, other = first._renew_call(), second._renew_call()
    assert call.keys == one.keys + other.keys
    assert call.args == (*one.args, other.args[1], other.args[4])
    assert '"token":8' in str(call.args[-1])


def test_each_reply_goes_to_its_lease(core: Protocol, clock: Clock) -> None:
    """A lease would be lost because another one was."""
    leases = held(core, 3)
    steps = Driven(renewing(leases, clock), clock)
    steps.answer([[b"RENEWED", 1, b"STALE", 8, b"RENEWED", 0]])
    assert steps.ended
    assert [lease.valid for lease in leases] == [True, False, True]
    assert [lease._describe for lease in leases] == [False, False, True]


def test_leases_of_another_kind_have_calls_of_their_own(core: Protocol, clock: Clock) -> None:
    """A lease would be given the ttl of another."""
    short, long = held(core, 2, ttl=3.0), held(core, 2, ttl=30.0)
    mixed = [short[0], long[0], short[1], long[1]]
    steps = Driven(renewing(mixed, clock), clock)
    assert keys_of(steps) == [locks(short), locks(long)]
    steps.answer([[b"RENEWED", 1] * 2, [b"RENEWED", 1, b"STALE", 8]])
    assert steps.ended
    assert [lease.valid for lease in mixed] == [True, True, True, False]


def test_each_place_has_calls_of_its_own(core: Protocol, clock: Clock) -> None:
    """A Cluster would refuse a call with keys of several slots."""
    leases = held(core, 10)
    odd = [lease for lease in leases if int(lease.name[-1]) % 2]
    even = [lease for lease in leases if lease not in odd]

    def parity(key: str | bytes) -> object:
        return int(str(key).partition("}")[0][-1]) % 2

    steps = Driven(renewing(leases, clock, place=parity), clock)
    assert keys_of(steps) == [locks(even), locks(odd)]
    steps.answer([[b"RENEWED", 1] * 5] * 2)
    assert steps.result == dict.fromkeys(leases)


def test_after_a_refusal_each_is_asked_alone(core: Protocol, clock: Clock) -> None:
    """What is wrong with one lease would cost the others theirs."""
    leases = held(core, 102)
    steps = Driven(renewing(leases, clock), clock)
    steps.answer([StoreError("CORRUPT"), [b"RENEWED", 1] * 2])
    assert keys_of(steps) == [[lock] for lock in locks(leases[:100])]
    replies: list[object] = [[b"RENEWED", 1]] * 100
    replies[7] = StoreError("CORRUPT")
    steps.answer(replies)
    assert [lease for lease, after in steps.result.items() if after is not None] == [leases[7]]


def test_names_on_two_nodes_are_asked_alone(core: Protocol, clock: Clock) -> None:
    """While their slot moves, all leases of it would end that are renewed together."""
    leases = held(core, 2)
    steps = Driven(renewing(leases, clock), clock)
    steps.answer([StoreUnavailable("it moves", maybe_applied=False, code="TRYAGAIN")])
    assert keys_of(steps) == [[lock] for lock in locks(leases)]


def test_who_has_ended_meanwhile_is_not_asked_alone(core: Protocol, clock: Clock) -> None:
    """A lease that was declared lost would be brought back to life."""
    short, long = told_lease(core, "short", ttl=9), told_lease(core, "long", ttl=9)
    clock.now += 5
    long._settle(["RENEWED", 1], clock.now, 9_000)
    steps = Driven(renewing([short, long], clock), clock)
    steps.answer([StoreError("CORRUPT")], after=6)
    assert keys_of(steps) == [locks([long])]
    steps.answer([[b"RENEWED", 1]])
    assert short.told is not None
    assert steps.result[long] is None


def test_without_an_answer_nobody_is_asked_alone(core: Protocol, clock: Clock) -> None:
    """A server that is down would be asked a hundred times at once."""
    leases = held(core, 3)
    steps = Driven(renewing(leases, clock), clock)
    steps.answer([unavailable()])
    assert all((after or 0) > 0 for after in steps.result.values())


def test_a_refused_lease_alone_is_asked_once(core: Protocol, clock: Clock) -> None:
    """Each refusal would be asked for twice."""
    leases = held(core, 1)
    steps = Driven(renewing(leases, clock), clock)
    steps.answer([StoreError("CORRUPT")])
    assert (steps.result[leases[0]] or 0) > 0


def test_the_next_renewal_has_the_new_ttl(core: Protocol, clock: Clock) -> None:
    """A lease with another ttl would be renewed with the old one, and end sooner than believed."""
    lease = told_lease(core, ttl=60)
    assert lease._renew_call().args[2] == 60_000
    lease._settle(["RENEWED", 1], clock.now, 5_000)
    assert lease._renew_call().args[2] == 5_000
