"""Failovers to a replica that lacks the last grants: tokens rise, guards keep stale writers out.

What the time of the server is to tokens, `tokens="dense"` lacks: it is the planted bug here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import redis

import fencer
from fencer import embedded
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults.clock import ServerClock
from tests.fix_sentinel import Group, MakeGroup, await_true, role

BEHIND = 0.7
"""Seconds by which a replica's clock may be behind: less than a failover takes."""

FAR_BEHIND = 60.0


class Story:
    """What befalls one name, and the guard in front of its balance, on a server that survives.

    Args:
        group: its clients reach the primary by the sentinels (``far``), or directly (``near``).
        store: the guard's server.
        name: the name.
        options: for the clients.

    Attributes:
        tokens: those granted, in that order.
    """

    def __init__(
        self, opened: ExitStack, group: Group, store: redis.Redis, name: str, **options: object
    ) -> None:
        def connect(url: str) -> fencer.Fencer:
            return opened.enter_context(fencer.connect(url, socket_timeout=0.5, **options))  # type: ignore[arg-type]

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


def test_a_failover_that_loses_grants(
    group: Group, redis_client: redis.Redis, opened: ExitStack
) -> None:
    """The new primary would issue numbers that guards have seen long ago, as a plain counter does.

    The counter's own story is told beside it, and must end badly.
    """
    timed = Story(opened, group, redis_client, "orders")
    dense = Story(opened, group, redis_client, "invoices", tokens="dense")
    for story in (timed, dense):
        story.begin()
    await_true(group.in_sync)
    group.road.drop()
    for story in (timed, dense):
        story.go_on_unheard()
    promoted = group.fail_over()
    for story in (timed, dense):
        story.must_have_lost_grants(promoted)
    lease = timed.grant(timed.far)
    timed.must_rise()
    timed.must_keep_the_stale_one_out(redis_client, lease)
    counted = dense.grant(dense.far)
    with pytest.raises(AssertionError):
        dense.must_rise()
    with pytest.raises(fencer.StaleToken):  # The rightful holder is the one kept out.
        dense.must_keep_the_stale_one_out(redis_client, counted)


@pytest.mark.slow
def test_clocks_apart(
    make_group: MakeGroup,
    redis_client: redis.Redis,
    opened: ExitStack,
    clock_shim: Path,
    tmp_path: Path,
) -> None:
    """The limit that the documents state would not hold, or nothing would protect beyond it.

    The clock of the promoted replica is behind, first by less than the time from the last grant of
    one primary to the first of the other, and then by more.
    """
    clocks = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        clocks.append(ServerClock(folder, clock_shim))
        clocks[-1].jump(-BEHIND)
    binary = embedded._find_binary(None)
    group = make_group([clock.program(binary) for clock in clocks])
    within = Story(opened, group, redis_client, "orders")
    beyond = Story(opened, group, redis_client, "invoices")
    for story in (within, beyond):
        story.begin()
    await_true(group.in_sync)
    group.road.drop()
    for story in (beyond, within):
        story.go_on_unheard()
    promoted = group.fail_over()
    must_be_behind(promoted, BEHIND)
    last = within.granted
    lease = within.grant(within.far)
    assert within.granted - last > BEHIND, "a failover takes longer than that"
    within.must_rise()
    within.must_keep_the_stale_one_out(redis_client, lease)

    for clock in clocks:
        clock.jump(-FAR_BEHIND)
    must_be_behind(promoted, FAR_BEHIND)
    beyond.must_have_lost_grants(promoted)
    lease = beyond.grant(beyond.far)
    with pytest.raises(AssertionError):
        beyond.must_rise()
    with pytest.raises(fencer.StaleToken):
        beyond.write(lease, "too small")
    assert redis_client.get("{invoices}:balance") == b"unheard"
    assert lease.release()
    lifted = beyond.far.acquire("invoices", ttl=60, guards=[beyond.guard])
    assert lifted.token > beyond.stale.token
    beyond.must_keep_the_stale_one_out(redis_client, lifted)


def must_be_behind(server: Server, seconds: float) -> None:
    """Else nothing was tested."""
    with redis.Redis.from_url(server.unix_url) as client:
        whole, micro = client.time()
    assert time.time() - (int(whole) + int(micro) / 1e6) > seconds - 0.1


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
