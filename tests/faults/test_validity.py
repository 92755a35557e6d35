"""Promise 4: a holder never believes longer than the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

import fencer
from fencer import LeaseLost, StoreUnavailable, _check, _scripts
from fencer._lease import BaseLease
from fencer._protocol import Granted, Protocol, Settings
from fencer._steps import Call, Sleep, Steps
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.faults import bugs, bugs_leases
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect, on_threads, plain


@pytest.fixture
def proxy(shared_server: Server) -> Iterator[Proxy]:
    """Stands before the shared server."""
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        yield proxy


@pytest.fixture
def far(
    client: fencer.Fencer, redis_client: redis.Redis, proxy: Proxy, connect: Connect
) -> fencer.Fencer:
    """A client through the proxy, already connected; the server knows the scripts."""
    with client.acquire("warm") as lease:
        lease.renew()
    redis_client.flushall()
    far = connect(proxy.url)
    far.inspect("orders")
    return far


def belief_ends_first(held: Callable[[], bool], valid: Callable[[], bool]) -> None:
    """The check: once the store can grant to another, the holder does not believe any more."""
    deadline = time.monotonic() + 10
    while held():
        assert time.monotonic() < deadline, "the lease does not end"
        time.sleep(0.001)
    assert not valid(), "the holder believes, and another can be granted"


def lose_renews(proxy: Proxy) -> None:
    """No renew is answered, though each is carried out."""
    proxy.swallow_reply(3, match=_scripts.load("renew").sha.encode())


# Slow replies.


@twin(bugs.believes_from_the_reply)
@pytest.mark.parametrize("way", ["requests", "replies"])
def test_a_slow_acquire(far: fencer.Fencer, client: fencer.Fencer, proxy: Proxy, way: str) -> None:
    """A holder would count its time from when it heard, not from when the store began."""
    proxy.delay(**{way: 0.5})
    lease = far.acquire("orders", ttl=1)
    assert lease.remaining() < 0.5
    belief_ends_first(lambda: client.inspect("orders").held, lambda: lease.valid)


@twin(bugs.believes_from_the_reply)
def test_a_slow_renew(far: fencer.Fencer, client: fencer.Fencer, proxy: Proxy) -> None:
    """The same for each renewal."""
    lease = far.acquire("orders", ttl=1)
    proxy.delay(replies=0.5)
    lease.renew()
    assert lease.remaining() < 0.5
    belief_ends_first(lambda: client.inspect("orders").held, lambda: lease.valid)


@twin(bugs.believes_from_the_reply)
def test_a_reply_slower_than_the_ttl(
    far: fencer.Fencer, client: fencer.Fencer, proxy: Proxy
) -> None:
    """A lease would be handed out that has ended already, or be left held by nobody."""
    proxy.delay(replies=0.3)
    with pytest.raises(StoreUnavailable, match="choose a longer one"):
        far.acquire("orders", ttl=0.2)
    assert not client.inspect("orders").held


# A paused process.

PAUSED = """
import time, fencer
client = fencer.connect(args[0])
lease = None
def handle(do):
    global lease
    if do == "acquire":
        lease = client.acquire("orders", ttl=1)
        return lease.token
    if do == "look and renew":
        try:
            looks = [lease.valid, lease.lost.is_set(), lease.remaining()]
            lease.renew()
            return [*looks, "renewed"]
        except fencer.LeaseLost:
            return [*looks, "lost"]
    try:
        lease.renew()
        return "renewed"
    except fencer.LeaseLost:
        return "lost"
"""


@twin(bugs_leases.time_stands_still_in_a_pause, of="looks")
@on_threads
@pytest.mark.parametrize(
    ("do", "says"),
    [
        pytest.param("look and renew", [False, True, 0, "lost"], id="looks"),
        pytest.param("renew", "lost", id="renews"),
    ],
)
def test_after_a_pause(client: fencer.Fencer, shared_server: Server, do: str, says: object) -> None:
    """A process that wakes up after its lease has ended would go on to write."""
    with Worker(PAUSED, shared_server.unix_url) as worker:
        first = worker.ask(do="acquire")
        worker.stop()
        second = client.acquire("orders", wait=10)
        assert second.token > first
        worker.cont()
        assert worker.ask(do=do) == says
    second.check()
    second.renew()


# Lost replies.


@twin(bugs_leases.believes_in_what_it_sends)
def test_a_renew_whose_reply_is_lost(
    far: fencer.Fencer, client: fencer.Fencer, proxy: Proxy
) -> None:
    """The holder would believe in a renewal that it never heard of."""
    lease = far.acquire("orders", ttl=1)
    deadline = plain(lease)._deadline
    lose_renews(proxy)
    with pytest.raises(StoreUnavailable):
        lease.renew()
    assert plain(lease)._deadline == deadline
    belief_ends_first(lambda: client.inspect("orders").held, lambda: lease.valid)


@twin(bugs_leases.takes_a_ttl_as_granted)
def test_a_renew_to_a_shorter_ttl_whose_reply_is_lost(
    far: fencer.Fencer, client: fencer.Fencer, proxy: Proxy
) -> None:
    """The store would have the shorter ttl, and the holder believe in the longer one."""
    lease = far.acquire("orders", ttl=30)
    lose_renews(proxy)
    with pytest.raises(StoreUnavailable):
        lease.renew(ttl=0.5)
    assert lease.remaining() < 0.5
    belief_ends_first(lambda: client.inspect("orders").held, lambda: lease.valid)


@twin(bugs_leases.takes_a_ttl_as_granted)
@pytest.mark.parametrize("unheard", [5.0, 60.0])
def test_a_changed_ttl_that_was_not_heard_of(
    far: fencer.Fencer, client: fencer.Fencer, proxy: Proxy, unheard: float
) -> None:
    """The store would show, and cut the lease to, a ttl that its holder does not keep."""
    lease = far.acquire("orders", ttl=30)
    lose_renews(proxy)
    with pytest.raises(StoreUnavailable):
        lease.renew(ttl=unheard)
    assert lease.ttl == 30
    assert lease.remaining() <= min(30, unheard)
    with pytest.raises(fencer.NotAcquired):
        client.acquire("orders")
    lease.renew()
    status = client.inspect("orders")
    assert (status.info["ttl"], lease.ttl) == (30, 30)
    assert 25 < lease.remaining() < (status.remaining or 0) <= 30
    assert lease.release()


# The core alone, with a clock that stands still unless it is told.


class Clock:
    """A clock by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class Steered:
    """Carries out steps by hand: each call is answered as the test says, and takes some time.

    Args:
        steps: the steps.
        clock: runs on with each call and each pause.
        answers: for each call: seconds that it takes, and its reply or the fault.
    """

    def __init__(self, clock: Clock, *answers: tuple[float, object]) -> None:
        self.calls: list[Call] = []
        self._clock = clock
        self._answers = list(answers)

    def run(self, steps: Steps[Any]) -> Any:
        """Run the steps, and return what they come to; all answers must be used."""
        reply: object = None
        while True:
            try:
                fault = reply if isinstance(reply, BaseException) else None
                step = steps.throw(fault) if fault else steps.send(reply)
            except StopIteration as stop:
                assert not self._answers
                return stop.value
            if isinstance(step, Sleep):
                self._clock.now += step.seconds
                reply = None
            else:
                assert isinstance(step, Call)
                assert self._answers, f"{step.script.name} has no answer"
                self.calls.append(step)
                seconds, reply = self._answers.pop(0)
                if callable(reply):
                    reply = reply()
                self._clock.now += seconds

    @property
    def scripts(self) -> list[str]:
        """The scripts that were called."""
        return [call.script.name for call in self.calls]


GRANTED = [b"GRANTED", 7, 1_000]
RENEWED = [b"RENEWED", 1]
RELEASED = [b"RELEASED", 7]
NOTHING = StoreUnavailable("no answer", maybe_applied=True)


@pytest.fixture
def clock() -> Clock:
    """A clock by hand."""
    return Clock()


@pytest.fixture
def protocol(clock: Clock) -> Protocol:
    """The core on that clock."""
    return Protocol(Settings(clock=clock))


def acquire(protocol: Protocol) -> Steps[Granted]:
    """The steps of an acquire with a ttl of a second."""
    return protocol.acquire("orders", "me", 1_000, 0.0, {"holder": "me"})


class LeaseAlone(BaseLease):
    """A lease that nobody sends anything for; it remembers why it was lost."""

    announced: str | None = None

    def _announce(self, reason: str) -> None:
        self.announced = reason


def lease_of(protocol: Protocol, clock: Clock) -> LeaseAlone:
    """A lease for ten seconds from now."""
    deadline = clock() + protocol.belief(10_000)
    return LeaseAlone(protocol, Granted("orders", 7, "a" * 32, "me", 10_000, {}, 1_000, deadline))


@twin(bugs_leases.no_margin)
@given(st.integers(_check.MIN_TTL * 1000, _check.MAX_TTL * 1000))  # type: ignore[arg-type]
def test_belief_is_shorter_than_the_ttl(ttl_ms: int) -> None:
    """A holder whose clock runs a little slow would believe longer than the store."""
    belief = Protocol(Settings()).belief(ttl_ms)
    assert 0 < belief <= ttl_ms / 1000 * 0.99 - 0.001


@twin(bugs_leases.counts_from_the_answer)
def test_time_counts_from_before_the_first_try(protocol: Protocol, clock: Clock) -> None:
    """A grant whose reply was lost would be believed in from its repetition on."""
    steered = Steered(clock, (0.3, NOTHING), (0.2, GRANTED))
    granted = steered.run(acquire(protocol))
    assert granted.deadline == 1000 + protocol.belief(1_000)
    assert steered.calls[0] == steered.calls[1], "one grant, one id"


@twin(bugs_leases.counts_from_the_answer)
def test_a_late_grant_is_renewed_at_once(protocol: Protocol, clock: Clock) -> None:
    """A holder would get a lease that has ended, or none although it is still its own."""
    steered = Steered(clock, (1.2, GRANTED), (0.1, RENEWED))
    granted = steered.run(acquire(protocol))
    assert steered.scripts == ["acquire", "renew"]
    assert granted.deadline == 1001.2 + protocol.belief(1_000)


@twin(bugs.gives_nothing_back)
@pytest.mark.parametrize(
    "renewed", [(1.2, RENEWED), (0.1, [b"STALE", 9])], ids=["late again", "stale"]
)
def test_a_late_grant_that_cannot_be_kept_is_given_back(
    protocol: Protocol, clock: Clock, renewed: tuple[float, object]
) -> None:
    """A caller would hear of an error, and the lease be held by nobody."""
    steered = Steered(clock, (1.2, GRANTED), renewed, (0.1, RELEASED))
    with pytest.raises(StoreUnavailable, match="choose a longer one"):
        steered.run(acquire(protocol))
    assert steered.scripts == ["acquire", "renew", "release"]


@twin(bugs.gives_nothing_back)
@pytest.mark.parametrize("fault", [NOTHING, KeyboardInterrupt(), RuntimeError()], ids=repr)
def test_an_acquire_that_fails_midway_is_given_back(
    protocol: Protocol, clock: Clock, fault: BaseException
) -> None:
    """Whatever ends an acquire, nothing may be left held."""
    answers: list[tuple[float, object]] = [(0.1, fault)] * (3 if fault is NOTHING else 1)
    steered = Steered(clock, *answers, (0.1, RELEASED))
    with pytest.raises(type(fault)):
        steered.run(acquire(protocol))
    assert steered.scripts[-1] == "release"
    assert steered.calls[-1].args[1:3] == (steered.calls[0].args[1], 0)


@twin(bugs_leases.sends_on_when_it_is_closed, raises=(RuntimeError,))
def test_a_driver_that_goes_away_is_sent_nothing(protocol: Protocol) -> None:
    """Closing the steps would raise RuntimeError in whoever collects them."""
    steps = acquire(protocol)
    next(steps)
    steps.close()


@twin(bugs_leases.the_deadline_is_the_end)
def test_a_renewal_after_the_deadline(protocol: Protocol, clock: Clock) -> None:
    """A store that confirms the token says that nobody came between: the lease goes on."""
    lease = lease_of(protocol, clock)
    clock.now += 9
    Steered(clock, (2, RENEWED)).run(lease._renewing(None))
    assert lease.remaining() == pytest.approx(protocol.belief(10_000) - 2)


@twin(bugs_leases.counts_from_the_answer)
def test_a_renewal_slower_than_the_ttl(protocol: Protocol, clock: Clock) -> None:
    """The holder would believe in time that has passed."""
    lease = lease_of(protocol, clock)
    steered = Steered(clock, (11, RENEWED), (0.1, RELEASED))
    with pytest.raises(LeaseLost, match="after the ttl"):
        steered.run(lease._renewing(None))
    assert steered.scripts == ["renew", "release"]
    assert lease.announced
    assert not lease.valid


@twin(bugs.a_renewal_brings_back)
def test_a_holder_that_heard_of_the_loss_stays_out(protocol: Protocol, clock: Clock) -> None:
    """A success that comes too late would bring a lease back whose end was acted upon."""
    lease = lease_of(protocol, clock)
    clock.now += 9

    def look_meanwhile() -> list[object]:
        clock.now += 2
        assert not lease.valid
        return RENEWED

    steered = Steered(clock, (0, look_meanwhile), (0.1, RELEASED))
    with pytest.raises(LeaseLost, match="ran out"):
        steered.run(lease._renewing(None))
    assert steered.scripts == ["renew", "release"]
    assert lease.announced
    assert not lease.valid


@twin(bugs_leases.takes_a_ttl_as_granted)
def test_a_shorter_ttl_counts_from_when_it_is_asked_for(protocol: Protocol, clock: Clock) -> None:
    """While the request is on its way the store may have the shorter one already."""
    lease = lease_of(protocol, clock)

    def look_meanwhile() -> list[object]:
        assert lease.remaining() == pytest.approx(protocol.belief(1_000))
        return RENEWED

    Steered(clock, (0.5, look_meanwhile)).run(lease._renewing(1.0))
    assert lease.ttl == 1
    assert lease.remaining() == pytest.approx(protocol.belief(1_000) - 0.5)
