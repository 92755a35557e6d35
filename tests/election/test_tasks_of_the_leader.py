"""What only the leader does: ``leader_only``, and the jobs of APScheduler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import redis

import fencer
from fencer.embedded import Server
from fencer.guards import MemoryGuard
from tests.election import bugs
from tests.election.conftest import Candidate, Elect, eventually, leader_of, waiting
from tests.faults.planted import twin


@twin(bugs.shares_the_lead)
def test_leader_only_runs_on_the_leader(elect: Elect, caplog: pytest.LogCaptureFixture) -> None:
    """A job would run on every replica, or on none."""
    caplog.set_level(logging.INFO, "fencer.election")
    leader = leader_of(elect("a"))
    follower = elect("b")
    waiting(leader, 1)

    def clean_up(lease: Any, folder: str, *, deep: bool) -> tuple[int, str, bool]:
        return lease.token, folder, deep

    ran = [each.election.leader_only(clean_up)("/x", deep=True) for each in (leader, follower)]
    assert ran == [(leader.election.lease.token, "/x", True), None]
    assert "Leader executing scheduled task task=clean_up instance_id=a" in caplog.text
    assert "Skipping task execution - not the leader instance_id=b" in caplog.text
    assert "task=clean_up" in caplog.records[-1].getMessage()


@twin(bugs.ignores_the_name)
def test_leader_only_is_a_decorator_and_takes_a_name(
    elect: Elect, caplog: pytest.LogCaptureFixture
) -> None:
    """Operators could not find a job in the log by the name that they know."""
    caplog.set_level(logging.INFO, "fencer.election")
    candidate = leader_of(elect("a"))

    @candidate.twin.leader_only  # type: ignore[untyped-decorator]
    def job(lease: Any) -> int:
        """Say what it does."""
        return int(lease.token)

    assert job() == candidate.election.lease.token
    assert (job.__name__, job.__doc__) == ("job", "Say what it does.")
    candidate.twin.leader_only(lambda lease: None, name="CleanupJob")()
    assert "Leader executing scheduled task task=CleanupJob instance_id=a" in caplog.text


@twin(bugs.wraps_no_coroutines)
def test_leader_only_of_a_coroutine_function_stays_one(elect: Elect) -> None:
    """A scheduler for asyncio would not await the job."""
    candidate = leader_of(elect("a"))

    async def job(lease: Any, add: int) -> int:
        await asyncio.sleep(0)
        return int(lease.token) + add

    wrapped = candidate.twin.leader_only(job)
    assert asyncio.iscoroutinefunction(wrapped)
    token = candidate.election.lease.token
    assert asyncio.run(wrapped(1)) == token + 1
    candidate.election.stop()
    assert asyncio.run(wrapped(1)) is None


@twin(bugs.lets_in_while_it_steps_down)
def test_no_task_is_let_in_while_the_leader_steps_down(elect: Elect) -> None:
    """A job that begins after the work was stopped would run into the next leader's term."""
    ran: list[Any] = []

    def try_it(candidate: Candidate, _: str) -> None:
        ran.append(candidate.twin.leader_only(lambda lease: lease.token)())

    candidate = leader_of(elect("a", on_lost=try_it))
    candidate.election.stop()
    assert ran == [None]


@twin(bugs.accepts_every_token)
@pytest.mark.may_break("S10", why="a revoked leader hears of it when it renews")
def test_the_token_stops_a_leader_that_was_replaced(elect: Elect) -> None:
    """A job that was under way when the lead went would write over the next leader's work."""
    guard = MemoryGuard("lead")
    first = leader_of(elect("a"))
    second = elect("b")
    waiting(first, 1)

    def job(lease: Any) -> str:
        first.client.revoke("lead")
        guard.check(leader_of(second).twin.lease)
        with pytest.raises(fencer.StaleToken):
            guard.check(lease)
        return "done"

    assert first.election.leader_only(job)() == "done"


@twin(bugs.checks_no_times)
def test_an_election_with_wrong_times_is_refused(elect: Elect) -> None:
    """Times that cannot work would be found out in production."""
    for wrong in (
        {"ttl": 0.001},
        {"ttl": 1.0, "heartbeat": 0.6},
        {"ttl": 1.0, "heartbeat": 0.0},
        {"ttl": 1.0, "retry_interval": 1.5},
        {"ttl": 1.0, "retry_interval": 0.0},
        {"name": "{lead}"},
        {"info": {"token": 1}},
        {"info": {"made": object()}},
    ):
        with pytest.raises(fencer.InvalidArgument):
            elect("a", start=False, **wrong)
    default = elect("a", start=False, ttl=9.0)
    assert default.twin._settings.timings.heartbeat == 3.0


@pytest.fixture
def schedulers() -> Any:
    """APScheduler, and its executor for the leader."""
    pool: Any = pytest.importorskip("apscheduler.executors.pool")
    background: Any = pytest.importorskip("apscheduler.schedulers.background")
    from fencer.apscheduler import LeaderExecutor

    running = []

    def make(election: Any) -> Any:
        executors = {"default": LeaderExecutor(election), "everywhere": pool.ThreadPoolExecutor()}
        running.append(background.BackgroundScheduler(executors=executors, timezone="UTC"))
        running[-1].start()
        return running[-1]

    yield make
    for scheduler in running:
        scheduler.shutdown()


@twin(bugs.shares_the_lead)
def test_jobs_of_apscheduler_run_on_the_leader_only(
    schedulers: Callable[[Any], Any],
    shared_server: Server,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each replica's scheduler would do the work again."""
    caplog.set_level(logging.INFO, "fencer.election")
    ran: list[tuple[str, str]] = []
    with (
        fencer.connect(shared_server.unix_url, holder="a") as first,
        fencer.connect(shared_server.unix_url, holder="b") as second,
        fencer.Election(first, "lead") as leader,
    ):
        eventually(lambda: leader.is_leader)
        with fencer.Election(second, "lead") as follower:
            for who, election in (("a", leader), ("b", follower)):
                scheduler = schedulers(election)
                for where in ("default", "everywhere"):
                    scheduler.add_job(
                        ran.append,
                        "interval",
                        [(where, who)],
                        seconds=0.1,
                        executor=where,
                        name=f"{where}-job",
                    )
            eventually(lambda: ran.count(("default", "a")) > 2 and ("everywhere", "b") in ran)
            assert ("default", "b") not in ran
            leader.stop()
            eventually(lambda: ("default", "b") in ran)
    assert "Leader executing scheduled task task=default-job instance_id=a" in caplog.text
    assert "Skipping task execution - not the leader instance_id=b" in caplog.text
