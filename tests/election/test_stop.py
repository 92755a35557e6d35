"""Starting and stopping, in every state."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import fencer
from fencer.drill.proxy import Proxy
from fencer.election._core import Campaign, GiveUp, Obtain, Settings, Timings
from fencer.embedded import Server
from tests.election import bugs
from tests.election.conftest import Candidate, Diary, Elect, eventually, leader_of, waiting
from tests.faults import bugs as shared
from tests.faults.planted import twin


@twin(bugs.tells_again_at_a_start)
def test_starting_twice_is_starting_once(elect: Elect, diary: Diary) -> None:
    """One candidate would stand in line twice, or hear of each term twice."""
    first = leader_of(elect("a"))
    first.election.start()
    second = elect("b")
    second.election.start()
    waiting(first, 1)
    time.sleep(0.3)
    waiting(first, 1)
    assert len(diary.of("on_elected")) == 1


@twin(bugs.joins_what_never_ran, raises=(RuntimeError,))
def test_stop_without_a_start(elect: Elect) -> None:
    """Cleaning up after a failed start would raise or hang."""
    candidate = elect("a", start=False)
    candidate.election.stop()
    candidate.election.start()
    leader_of(candidate)


@twin(shared.gives_nothing_back)
def test_stop_in_line_leaves_the_line(elect: Elect, diary: Diary) -> None:
    """A lease would be handed to a candidate that has gone, and nobody would lead meanwhile."""
    first = leader_of(elect("a"))
    second = elect("b")
    waiting(first, 1)
    second.election.stop()
    assert first.client.inspect("lead").waiters == 0
    first.election.stop()
    assert not first.client.inspect("lead").held
    assert not diary.of("on_elected", "b")


@twin(shared.gives_nothing_back)
def test_stop_right_after_a_start(elect: Elect, diary: Diary) -> None:
    """A grant that crosses the stop would be left held, or begin a term."""
    first = leader_of(elect("a"))
    second = elect("b", start=False)
    for number in range(20):
        second.election.start()
        time.sleep(number / 4000)
        second.election.stop()
    assert first.client.inspect("lead").waiters == 0
    first.election.stop()
    assert not first.client.inspect("lead").held
    assert not diary.of("on_elected", "b")


@twin(bugs.never_releases)
def test_stop_as_the_leader_frees_the_lead(elect: Elect, diary: Diary) -> None:
    """Each restart of a service would leave it without a leader for a ttl."""
    candidate = leader_of(elect("a", ttl=60.0))
    candidate.election.stop()
    candidate.election.stop()
    assert not candidate.client.inspect("lead").held
    diary.check()


@twin(bugs.stops_the_work_itself)
def test_stop_while_on_elected_runs(elect: Elect, diary: Diary) -> None:
    """The stop would overtake the start of the work, and leave it running."""
    went_on = threading.Event()
    candidate = elect("a", on_elected=lambda candidate, _: candidate.until(went_on))
    eventually(lambda: diary.of("on_elected"))
    candidate.election.stop(timeout=0.05)
    assert not diary.of("on_lost")
    went_on.set()
    candidate.election.stop()
    assert not candidate.client.inspect("lead").held
    diary.check()


@twin(bugs.stops_the_work_itself)
def test_stop_while_on_lost_runs(elect: Elect, diary: Diary) -> None:
    """A second stop would cut the first one short, or ask the work to stop twice."""
    candidate = leader_of(elect("a", on_lost=lambda candidate, _: candidate.sleep(0.3)))
    stops = [threading.Thread(target=candidate.election.stop) for _ in range(3)]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join()
    assert len(diary.of("on_lost")) == 1
    diary.check()


@twin(bugs.waits_for_itself)
def test_stop_from_within_each_callback(
    elect: Elect, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that stops its own election would wait for itself for ever."""

    def stop(candidate: Candidate, _: Any) -> Any:
        return candidate.twin.stop()

    first = elect("a", on_elected=stop, on_lost=stop)
    eventually(lambda: diary.of("on_lost", "a"))
    first.election.stop()
    assert not first.client.inspect("lead").held
    second = leader_of(elect("b"))
    third = elect("c", on_leader_change=stop)
    eventually(lambda: diary.of("on_leader_change", "c"))
    third.election.stop()
    waiting(second, 0)
    second.election.stop()
    diary.check()
    assert "failed" not in caplog.text


@twin(bugs.cuts_callbacks_off, of="asyncio")
def test_a_stop_lets_on_leader_change_come_to_its_end(elect: Elect, diary: Diary) -> None:
    """A callback would be cut off in its middle because somebody else stops the election."""
    leader_of(elect("a"))
    second = elect("b", on_leader_change=lambda candidate, _: candidate.sleep(0.3))
    eventually(lambda: diary.of("on_leader_change", "b"))
    second.election.stop()
    (told,) = diary.of("on_leader_change", "b")
    assert told.ended is not None
    assert told.ended - told.begun > 0.25


@twin(bugs.releases_first)
def test_stop_while_the_server_is_down(elect: Elect, diary: Diary, server: Server) -> None:
    """A service could not be stopped during an outage, and its work would run on."""
    leader = leader_of(elect("a", server.unix_url))
    follower = elect("b", server.unix_url)
    waiting(leader, 1)
    server.kill()
    follower.election.stop(timeout=10)
    leader.election.stop(timeout=10)
    assert len(diary.of("on_lost", "a")) == 1
    assert leader.election.lease is None
    diary.check()


@twin(bugs.releases_first)
def test_stop_while_nothing_answers(elect: Elect, diary: Diary, server: Server) -> None:
    """Work would go on for as long as the network swallows everything."""
    with Proxy(("127.0.0.1", server.port)) as proxy:
        leader = leader_of(elect("a", proxy.url))
        proxy.drop()
        leader.election.stop(timeout=0.5)
        assert len(diary.of("on_lost", "a")) == 1
        assert not leader.election.is_leader
        proxy.heal()


@twin(bugs.starts_its_thread_again, raises=(RuntimeError,))
def test_starting_again_after_a_stop(elect: Elect, diary: Diary) -> None:
    """An instance that was taken out of service could not come back."""
    candidate = leader_of(elect("a"))
    tokens = []
    for _ in range(3):
        tokens.append(candidate.election.lease.token)
        candidate.election.stop()
        candidate.election.start()
        leader_of(candidate)
    assert tokens == sorted(set(tokens))
    candidate.election.stop()
    diary.check()


@twin(bugs.takes_a_stop_back)
def test_starting_again_while_a_stop_is_under_way(elect: Elect, diary: Diary) -> None:
    """The start would be lost, or the two terms of one candidate would overlap."""
    went_on = threading.Event()
    candidate = leader_of(elect("a", on_lost=lambda candidate, _: candidate.until(went_on)))
    candidate.election.stop(timeout=0.05)
    candidate.election.start()
    assert not candidate.election.is_leader
    time.sleep(0.1)
    assert len(diary.of("on_elected")) == 1
    went_on.set()
    leader_of(candidate)
    candidate.election.stop()
    assert len(diary.of("on_elected")) == 2
    diary.check()


@twin(bugs.runs_on_after_its_block)
def test_with_starts_and_stops(elect: Elect, diary: Diary) -> None:
    """A block that ends would leave a candidate behind."""
    candidate = elect("a", start=False)
    with candidate.election:
        leader_of(candidate)
    assert not candidate.client.inspect("lead").held
    assert len(diary.of("on_lost")) == 1


@twin(bugs.leads_though_stopped)
def test_a_grant_that_crosses_the_stop_begins_no_term() -> None:
    """Work would be started in a process that is being shut down."""
    elected: list[Any] = []
    settings = Settings("lead", Timings.checked(1, None, 1), elected.append, None, None)
    campaign = Campaign(settings, "a")
    steps = campaign.run()
    assert next(steps) == Obtain()
    campaign.stopping = True
    lease = object()
    assert steps.send(lease) == GiveUp(lease)
    assert list(steps) == []
    assert not elected


@twin(bugs.closes_without_a_release)
def test_a_closed_client_ends_the_term(shared_server: Server, diary: Diary) -> None:
    """A leader whose client was closed would believe in a lease that was released."""
    lost: list[str] = []
    with (
        fencer.connect(shared_server.unix_url) as client,
        fencer.Election(client, "closed", ttl=1, retry_interval=1, on_lost=lost.append) as election,
    ):
        eventually(lambda: election.is_leader)
        client.close()
        assert not election.is_leader
        eventually(lambda: lost)
