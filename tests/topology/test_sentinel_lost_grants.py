"""Failovers to a replica that lacks the last grants: tokens rise, guards keep stale writers out.

`test_a_failover_that_loses_grants` is run with a plain counter, too, and must fail then: it is the
item ``[with-plain_counter]``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import redis

import fencer
from fencer import embedded
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults.bugs import guards_nothing, plain_counter
from tests.faults.clock import ServerClock
from tests.faults.planted import twin
from tests.fix_sentinel import Group, MakeGroup, await_true, role

pytestmark = pytest.mark.usefixtures("history")

BEHIND = 0.7
"""Seconds by which a replica's clock may be behind: less than a failover takes."""

FAR_BEHIND = 60.0

may_have_two_holders = pytest.mark.may_break(
    "S4", why="the new primary knows nothing of the last grant, whose holder believes in it"
)


MakeLate = Callable[[float], Group]


class Story:
    """What befalls one name, and the guard in front of its balance, on a server that survives.

    Args:
        group: its clients reach the primary by the sentinels (``far``), or directly (``near``).
        store: the guard's server.
        name: the name.

    Attributes:
        tokens: those granted, in that order.
    """

    def __init__(self, opened: ExitStack, group: Group, store: redis.Redis, name: str) -> None:
        def connect(url: str) -> fencer.Fencer:
            return opened.enter_context(fencer.connect(url, socket_timeout=0.5))

        self.name = name
        self.far = connect(group.url)
        self.near = connect(group.primary.unix_url)
        self.guard = RedisGuard(store, name)
        self.tokens: list[int] = []

    def grant(self, client: fencer.Fencer) -> fencer.Lease:
        """One more grant."""
        lease = client.acquire(self.name, ttl=60, wait=30)
        self.granted = time.monotonic()
        self.tokens.append(lease.token)
        return lease

    def write(self, lease: fencer.Lease, value: str) -> None:
        """A guarded write."""
        self.guard.execute(lease, "SET", f"{{{self.name}}}:balance", value)

    def begin(self) -> None:
        """A grant that the replicas hear of."""
        lease = self.grant(self.far)
        self.write(lease, "before")
        assert lease.release()

    def go_on_unheard(self) -> None:
        """Some grants of the primary that is cut off, each with a write; the last one is held."""
        for _ in range(4):
            lease = self.grant(self.near)
            self.write(lease, "unheard")
            assert lease.release()
        self.stale = self.grant(self.near)
        self.write(self.stale, "unheard")

    def must_have_lost_grants(self, promoted: Server) -> None:
        """Else nothing was tested."""
        with redis.Redis.from_url(promoted.unix_url) as client:
            issued = client.get(f"fencer:{{{self.name}}}:token")
        assert issued is not None
        assert int(issued) < self.stale.token

    def must_rise(self) -> None:
        """The check: each token is larger than the one before."""
        assert all(a < b for a, b in pairwise(self.tokens)), self.tokens

    def must_keep_the_stale_one_out(self, store: redis.Redis, lease: fencer.Lease) -> None:
        """The check: the new holder can write, and the one before it cannot."""
        self.write(lease, "after")
        with pytest.raises(fencer.StaleToken):
            self.write(self.stale, "stale")
        assert store.get(f"{{{self.name}}}:balance") == b"after"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What is closed when the test ends."""
    with ExitStack() as opened:
        yield opened


@twin(plain_counter)
@may_have_two_holders
def test_a_failover_that_loses_grants(
    group: Group, redis_client: redis.Redis, opened: ExitStack
) -> None:
    """The new primary would issue numbers that guards have seen long ago, as a plain counter does.

    With a plain counter this same test must fail: its twin, here as in every run, shows that.
    """
    story = Story(opened, group, redis_client, "orders")
    story.begin()
    await_true(group.in_sync)
    group.road.drop()
    story.go_on_unheard()
    promoted = group.fail_over()
    story.must_have_lost_grants(promoted)
    lease = story.grant(story.far)
    story.must_rise()
    story.must_keep_the_stale_one_out(redis_client, lease)


@pytest.fixture
def late(make_group: MakeGroup, clock_shim: Path, tmp_path: Path) -> MakeLate:
    """A maker of groups whose replicas' clocks are behind."""

    def make(seconds: float) -> Group:
        programs = []
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            clock = ServerClock(folder, clock_shim)
            clock.jump(-seconds)
            programs.append(clock.program(embedded._find_binary(None)))
        return make_group(programs)

    return make


@twin(plain_counter)
@may_have_two_holders
@pytest.mark.slow
def test_clocks_apart(late: MakeLate, redis_client: redis.Redis, opened: ExitStack) -> None:
    """The limit that the documents state would not hold.

    The clock of the promoted replica is behind by less than the time from the last grant of one
    primary to the first of the other.
    """
    group = late(BEHIND)
    story = Story(opened, group, redis_client, "orders")
    story.begin()
    await_true(group.in_sync)
    group.road.drop()
    story.go_on_unheard()
    promoted = group.fail_over()
    must_be_behind(promoted, BEHIND)
    last = story.granted
    lease = story.grant(story.far)
    assert story.granted - last > BEHIND, "a failover takes longer than that"
    story.must_rise()
    story.must_keep_the_stale_one_out(redis_client, lease)


@twin(guards_nothing)
@pytest.mark.may_break("S2", "S5", why="the clock is behind by more than the documents allow for")
@may_have_two_holders
@pytest.mark.slow
def test_clocks_too_far_apart(late: MakeLate, redis_client: redis.Redis, opened: ExitStack) -> None:
    """Nothing would protect beyond the limit that the documents state."""
    group = late(FAR_BEHIND)
    story = Story(opened, group, redis_client, "orders")
    story.begin()
    await_true(group.in_sync)
    group.road.drop()
    story.go_on_unheard()
    promoted = group.fail_over()
    must_be_behind(promoted, FAR_BEHIND)
    story.must_have_lost_grants(promoted)
    lease = story.grant(story.far)
    assert lease.token < story.stale.token, "else nothing was tested"
    with pytest.raises(fencer.StaleToken):
        story.write(lease, "too small")
    assert redis_client.get("{orders}:balance") == b"unheard"
    assert lease.release()
    lifted = story.far.acquire("orders", ttl=60, guards=[story.guard])
    assert lifted.token > story.stale.token
    story.must_keep_the_stale_one_out(redis_client, lifted)


def must_be_behind(server: Server, seconds: float) -> None:
    """Else nothing was tested."""
    with redis.Redis.from_url(server.unix_url) as client:
        whole, micro = client.time()
    assert time.time() - (int(whole) + int(micro) / 1e6) > seconds - 0.1


@twin(guards_nothing)
@pytest.mark.may_break("S5", why="who has been cut off knows of no later grant, and renews")
@may_have_two_holders
@pytest.mark.slow
def test_a_primary_that_is_cut_off_and_lives(
    group: Group, redis_client: redis.Redis, opened: ExitStack
) -> None:
    """While two primaries grant one name, a guard would let the older of two holders write.

    And the one that was cut off would go on granting when it can be reached again.
    """
    story = Story(opened, group, redis_client, "orders")
    story.begin()
    await_true(group.in_sync)
    group.road.drop()
    story.go_on_unheard()
    promoted = group.failed_over()
    story.must_have_lost_grants(promoted)
    lease = story.grant(story.far)
    assert story.stale.valid, "both believe, and only the guard is between them"
    assert lease.valid
    story.stale.renew()
    story.must_keep_the_stale_one_out(redis_client, lease)
    assert story.stale.release()
    again = story.grant(story.near)
    story.must_rise()
    story.write(again, "by the newest token, whoever granted it")
    with pytest.raises(fencer.StaleToken):
        story.write(lease, "stale")

    group.road.heal()
    with redis.Redis.from_url(group.primary.unix_url, decode_responses=True) as client:
        await_true(lambda: role(client) == "slave")
        await_true(lambda: issued(client) == str(lease.token))
    with pytest.raises(fencer.StoreUnavailable, match="replica") as caught:
        story.near.acquire("receipts")
    assert (caught.value.code, caught.value.maybe_applied) == ("READONLY", False)
    with pytest.raises(fencer.LeaseLost):
        again.renew()
    lease.renew()


def issued(client: redis.Redis) -> object:
    """The last token that a server knows of; ``None`` while it says nothing."""
    with suppress(redis.RedisError):  # It takes over the data of its new primary.
        return client.get("fencer:{orders}:token")
    return None
