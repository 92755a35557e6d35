"""Who leads when, and what the callbacks hear of it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import Any

import pytest
import redis

import fencer
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.election import bugs
from tests.election.conftest import Candidate, Diary, Elect, eventually, leader_of, waiting
from tests.faults import bugs as shared
from tests.faults.planted import twin


@twin(bugs.shares_the_lead)
def test_one_leads_and_the_others_follow(elect: Elect, diary: Diary) -> None:
    """Two leaders at once, or none, is what an election is there to prevent."""
    first = elect("a")
    leader_of(first)
    second = elect("b")
    waiting(first, 1)
    assert first.election.is_leader
    assert not second.election.is_leader
    assert second.election.lease is None
    assert [entry.who for entry in diary.of("on_elected")] == ["a"]


@twin(bugs.forgets_the_info)
def test_everybody_can_ask_who_leads(elect: Elect) -> None:
    """An operator or a follower would not know where to turn to."""
    first = leader_of(elect("a", info={"address": "10.0.0.1:80"}))
    leader = elect("b").election.leader()
    assert leader is not None
    assert (leader.holder, leader.pid) == ("a", os.getpid())
    assert leader.token == first.election.lease.token
    assert leader.info == {"address": "10.0.0.1:80"}
    assert abs(leader.since - time.time()) < 60
    assert leader.host


@twin(bugs.leads_unless_told_otherwise)
def test_nobody_leads_before_a_start(elect: Elect) -> None:
    """A name on which nobody campaigns would have a leader."""
    candidate = elect("a", start=False)
    assert candidate.election.leader() is None
    assert not candidate.election.is_leader
    assert candidate.election.lease is None
    assert (candidate.election.name, candidate.election.instance_id) == ("lead", "a")


@twin(bugs.elected_before_it_leads)
def test_on_elected_runs_after_the_grant(elect: Elect, diary: Diary) -> None:
    """The work would begin before anybody knows that it may."""
    seen: list[Any] = []

    def look(candidate: Candidate, lease: Any) -> None:
        seen.append((lease.valid, candidate.twin.is_leader, candidate.twin.lease is lease))

    candidate = elect("a", on_elected=look)
    eventually(lambda: seen)
    assert seen == [(True, True, True)]
    token = diary.of("on_elected")[0].argument.token
    assert candidate.client.inspect("lead").token == token


@twin(bugs.shows_no_guard)
def test_the_guards_know_the_leader_before_its_work_begins(elect: Elect) -> None:
    """What a new leader reads first could still be changed by the one before."""
    guard = fencer.guards.MemoryGuard("lead")
    seen: list[Any] = []

    def look(candidate: Candidate, lease: Any) -> None:
        seen.append((guard.highest(), lease.token))

    elect("a", guards=[guard], on_elected=look)
    eventually(lambda: seen)
    assert seen[0][0] == seen[0][1]


@twin(bugs.shows_no_guard)
def test_a_leader_whose_guard_is_ahead_gets_a_token_that_counts(elect: Elect) -> None:
    """A leader whose writes are all refused would hold the lead for ever."""
    guard = fencer.guards.MemoryGuard("lead")
    guard.check(ahead := 2**52)
    candidate = leader_of(elect("a", guards=[guard]))
    assert candidate.election.lease.token == guard.highest() > ahead


@twin(bugs.releases_first)
def test_on_lost_ends_before_the_release(elect: Elect, diary: Diary) -> None:
    """The next leader would start while the old one's work is still stopping."""
    seen: list[Any] = []

    def stop_work(candidate: Candidate, reason: str) -> Any:
        seen.append((candidate.twin.is_leader, candidate.twin.lease.valid, reason))
        return candidate.sleep(0.2)

    first = leader_of(elect("a", on_lost=stop_work))
    second = elect("b")
    waiting(first, 1)
    first.election.stop()
    assert first.election.lease is None
    assert seen == [(False, True, "the election was stopped")]
    leader_of(second)
    (lost,) = diary.of("on_lost")
    (_, elected) = diary.of("on_elected")
    assert lost.ended is not None
    assert lost.ended < elected.begun


@twin(bugs.releases_first)
def test_terms_never_overlap(elect: Elect, diary: Diary) -> None:
    """In some hand-over of many, two leaders would work at once, or a term would end twice."""
    candidates = [elect(who) for who in "abc"]
    for _ in range(12):
        leader = leader_of(*candidates)
        leader.election.stop()
        leader.election.start()
    for candidate in candidates:
        candidate.election.stop()
    assert len(diary.of("on_elected")) >= 12
    diary.check()


@twin(shared.believes_too_long)
def test_a_loss_is_told_before_another_is_elected(
    elect: Elect, diary: Diary, server: Server
) -> None:
    """A leader that is cut off would work on beside its successor; healed, it follows."""
    with Proxy(("127.0.0.1", server.port)) as proxy:
        first = leader_of(elect("a", proxy.url))
        second = elect("b", server.url)
        waiting(second, 1)
        proxy.drop()
        leader_of(second)
        assert not first.election.is_leader
        (lost,) = diary.of("on_lost", "a")
        (elected,) = diary.of("on_elected", "b")
        assert "ran out" in lost.argument
        assert lost.begun < elected.begun
        proxy.heal()
        eventually(lambda: diary.of("on_leader_change", "a"))
        waiting(second, 1)
        assert second.election.is_leader
    first.election.stop()
    second.election.stop()
    diary.check()


@twin(shared.renews_without_compare)
@pytest.mark.may_break("S10", why="a revoked leader hears of it when it renews")
def test_a_revoked_leader_steps_down(
    elect: Elect, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator could not take the lead away from a leader that misbehaves."""
    caplog.set_level(logging.INFO, "fencer.election")
    first = leader_of(elect("a"))
    second = elect("b")
    waiting(first, 1)
    lease = first.lease
    second.client.revoke("lead")
    with pytest.raises(fencer.LeaseLost):
        lease.renew()
    eventually(lambda: diary.of("on_lost", "a"))
    leader_of(second)
    assert "lost leadership instance_id=a" in caplog.text


@twin(bugs.tells_of_no_release)
def test_a_leader_that_lets_go_by_hand_is_told(elect: Elect, diary: Diary) -> None:
    """Nobody would lead for as long as the process of the leader lives."""

    def release(candidate: Candidate, lease: Any) -> Any:
        return lease.release() if len(diary.of("on_elected")) == 1 else None

    candidate = elect("a", on_elected=release)
    eventually(lambda: len(diary.of("on_elected")) == 2)
    leader_of(candidate)
    assert [entry.argument for entry in diary.of("on_lost")] == ["it has been released"]


@twin(bugs.heals_nothing)
def test_the_lock_key_is_healed(elect: Elect, redis_client: redis.Redis, diary: Diary) -> None:
    """A ``DEL`` that somebody typed would take the lead from a leader that is well."""
    candidate = leader_of(elect("a", ttl=0.5))
    token = candidate.election.lease.token
    redis_client.delete("fencer:{lead}:lock", "fencer:{lead}:info")
    eventually(lambda: redis_client.get("fencer:{lead}:lock") == b"a")
    eventually(lambda: redis_client.exists("fencer:{lead}:info"))
    assert candidate.election.is_leader
    assert candidate.election.lease.token == token
    assert not diary.of("on_lost")
    candidate.election.stop()
    candidate.election.start()
    assert leader_of(candidate).election.lease.token > token


@twin(bugs.tells_at_each_look)
def test_followers_hear_of_each_leader_once(elect: Elect, diary: Diary) -> None:
    """A follower would go on sending work to a leader that is none, or be told over and over."""
    first = leader_of(elect("a", name="lead"))
    second = elect("b")
    waiting(first, 1)
    third = elect("c")
    waiting(first, 2)
    time.sleep(0.6)  # a few looks
    first.election.stop()
    leader_of(second)
    eventually(lambda: len(diary.of("on_leader_change", "c")) >= 2)
    assert [entry.argument.holder for entry in diary.of("on_leader_change", "b")] == ["a"]
    told = [entry.argument for entry in diary.of("on_leader_change", "c")]
    assert [leader.holder for leader in told] == ["a", "b"]
    assert told[1].token == second.election.lease.token
    assert not third.election.is_leader


@twin(bugs.leads_by_its_id)
def test_two_with_the_same_id_do_not_both_lead(elect: Elect, diary: Diary) -> None:
    """A copied setting would give two leaders, for who leads must hang on the grant."""
    first = leader_of(elect("same"))
    second = elect("same")
    waiting(first, 1)
    assert not second.election.is_leader
    time.sleep(1.2)  # longer than a ttl
    assert first.election.is_leader
    assert not second.election.is_leader
    first.election.stop()
    leader_of(second)
    assert not first.election.is_leader
    eventually(lambda: len(diary.of("on_elected")) == 2)


@twin(bugs.tells_at_once)
def test_losing_while_on_elected_runs(elect: Elect, diary: Diary) -> None:
    """The work would be started after it was stopped, and nobody would stop it."""
    went_on = threading.Event()
    first = leader_of(elect("a", on_elected=lambda candidate, _: candidate.until(went_on)))
    first.client.revoke("lead")
    eventually(lambda: not first.election.is_leader)
    assert not diary.of("on_lost")
    went_on.set()
    eventually(lambda: diary.of("on_lost"))
    first.election.stop()
    diary.check()


@twin(bugs.keeps_after_on_elected)
def test_on_elected_may_take_longer_than_the_ttl(elect: Elect, diary: Diary) -> None:
    """A leader that loads much data at first would lose the lead by it, again and again."""
    candidate = elect("a", ttl=0.4, on_elected=lambda candidate, _: candidate.sleep(1.0))
    eventually(lambda: diary.of("on_elected") and diary.of("on_elected")[0].ended)
    assert candidate.election.is_leader
    assert not diary.of("on_lost")


@twin(bugs.releases_what_is_lost)
def test_a_hanging_on_lost_is_bounded_by_the_lease(elect: Elect, diary: Diary) -> None:
    """A leader that cannot stop its work would keep everybody from leading for ever."""
    went_on = threading.Event()
    first = leader_of(elect("a", on_lost=lambda candidate, _: candidate.until(went_on)))
    second = elect("b")
    waiting(first, 1)
    first.election.stop(timeout=0.05)
    assert diary.of("on_lost")[0].ended is None
    leader_of(second)
    went_on.set()
    first.election.stop()
    assert second.election.is_leader, "the late release is not for this lease"


@twin(bugs.calls_every_end_a_stop)
def test_an_on_elected_that_fails_gives_the_lead_up(
    elect: Elect, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    """A leader whose work did not start would lead, and do nothing."""
    first = elect("a", on_elected=lambda *_: 1 / 0)
    eventually(lambda: diary.of("on_lost"))
    second = elect("b")
    leader_of(second)
    assert {entry.argument for entry in diary.of("on_lost", "a")} == {"on_elected failed"}
    assert "ZeroDivisionError" in caplog.text
    assert "instance_id=a" in caplog.text
    first.election.stop()
    second.election.stop()
    diary.check()


@twin(bugs.lets_exits_pass)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_thread_that_is_ended_by_its_callback_does_not_lead_on(
    redis_client: redis.Redis, shared_server: Server, error: type[BaseException]
) -> None:
    """A ``sys.exit`` in a callback would leave a lease that is renewed for ever by nobody."""

    def end(lease: fencer.Lease) -> None:
        elected.append(lease)
        raise error

    elected: list[fencer.Lease] = []
    lost: list[str] = []
    with (
        fencer.connect(shared_server.unix_url) as client,
        fencer.Election(
            client, "lead", ttl=1, retry_interval=1, on_elected=end, on_lost=lost.append
        ),
    ):
        eventually(lambda: elected)
        eventually(lambda: not client.inspect("lead").held)
    assert lost == ["on_elected failed"]


@twin(bugs.keeps_what_on_lost_failed_for)
def test_an_on_lost_that_fails_does_not_keep_the_lease(elect: Elect) -> None:
    """The next leader would have to wait for the end of the lease."""
    candidate = leader_of(elect("a", ttl=10, on_lost=lambda *_: 1 / 0))
    candidate.election.stop()
    assert not candidate.client.inspect("lead").held


@twin(bugs.passes_its_turn)
def test_an_on_leader_change_that_fails_does_not_end_the_campaign(
    elect: Elect, diary: Diary
) -> None:
    """A follower with a bug would never lead."""
    first = leader_of(elect("a"))
    second = elect("b", on_leader_change=lambda *_: 1 / 0)
    waiting(first, 1)
    assert diary.of("on_leader_change", "b")
    third = elect("c")
    waiting(first, 2)
    first.election.stop()
    assert leader_of(second, third) is second


@twin(bugs.takes_a_cancelled_callback_for_a_stop, of="asyncio")
def test_coroutines_that_cancel_themselves_fail(elect: Elect, diary: Diary) -> None:
    """A callback that cancels itself would be taken for a stop, and the candidate would be gone."""

    def cancel(candidate: Candidate, _: Any) -> Any:
        async def cancelled() -> None:
            raise asyncio.CancelledError

        if not candidate.asyncio:
            raise asyncio.CancelledError
        return cancelled()

    candidate = elect("a", on_elected=cancel)
    eventually(lambda: diary.of("on_lost"))
    assert diary.of("on_lost")[0].argument == "on_elected failed"
    eventually(lambda: len(diary.of("on_lost")) == 2)
    candidate.election.stop()
    diary.check()


@twin(bugs.keeps_ten_at_most)
def test_many_elections_in_one_process(
    elect: Elect, diary: Diary, redis_client: redis.Redis
) -> None:
    """A service with a leader per tenant would run out of something."""
    candidates = [elect(f"i{number}", name=f"lead{number}") for number in range(25)]
    for candidate in candidates:
        leader_of(candidate)
    time.sleep(1.2)  # longer than a ttl
    assert all(candidate.election.is_leader for candidate in candidates)
    assert not diary.of("on_lost"), "it leads again is not that it leads on"
    for candidate in candidates:
        candidate.election.stop()
    assert not redis_client.keys("*:lock")
