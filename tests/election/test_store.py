"""Elections while the server is away, late, or comes back empty."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from tests.election import bugs
from tests.election.conftest import Diary, Elect, eventually, leader_of, waiting
from tests.faults import bugs as shared
from tests.faults.history import History
from tests.faults.planted import twin
from tests.fix_servers import MakeServer

TROUBLE = "The store cannot be used"


def complaints(caplog: pytest.LogCaptureFixture, who: str) -> int:
    return sum(
        TROUBLE in record.getMessage() and f"instance_id={who} " in record.getMessage()
        for record in caplog.records
    )


@twin(bugs.complains_each_time)
def test_a_server_that_is_away_at_the_start(
    elect: Elect, server: Server, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that starts before its server would never have a leader, or flood its log."""
    with Proxy(("127.0.0.1", server.port)) as proxy:
        proxy.refuse()
        candidate = elect("a", proxy.url)
        eventually(lambda: complaints(caplog, "a"))
        time.sleep(1.0)
        assert not candidate.election.is_leader
        proxy.heal()
        history.healed(30)
        leader_of(candidate)
    assert complaints(caplog, "a") == 1


@twin(bugs.complains_each_time)
def test_an_outage_while_in_line_is_told_once(
    elect: Elect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A follower that cannot reach the server would keep silent about it, or never stop."""
    caplog.set_level(logging.INFO, "fencer.election")
    with Proxy(("127.0.0.1", server.port)) as proxy:
        leader = leader_of(elect("a", server.unix_url))
        elect("b", proxy.url)
        waiting(leader, 1)
        for _ in range(2):
            caplog.clear()
            proxy.refuse()
            eventually(lambda: complaints(caplog, "b"))
            time.sleep(0.5)
            proxy.heal()
            eventually(lambda: "The store can be used again" in caplog.text)
            assert complaints(caplog, "b") == 1
        assert leader.election.is_leader


@twin(bugs.complains_at_once)
def test_a_reset_connection_is_not_worth_a_word(
    elect: Elect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Every restart of a load balancer would wake somebody up."""
    with Proxy(("127.0.0.1", server.port)) as proxy:
        leader = leader_of(elect("a", proxy.url))
        elect("b", proxy.url)
        waiting(leader, 1)
        proxy.swallow_reply(match=b"stay")  # which only a waiter says
        eventually(lambda: proxy.swallowed)
        for _ in range(3):
            time.sleep(0.3)
            proxy.reset()
        assert leader.election.is_leader
        waiting(leader, 1)
    assert TROUBLE not in caplog.text


@twin(shared.plain_counter, of="none")
@pytest.mark.parametrize("persistence", ["none", "aof"])
def test_one_leads_after_a_restart_of_the_server(
    elect: Elect, diary: Diary, make_server: MakeServer, history: History, persistence: Any
) -> None:
    """A crash of the server would leave no leader or two; empty or not, tokens must rise."""
    server = make_server(persistence=persistence)
    candidates = [elect(who, server.unix_url) for who in "abc"]
    leader = leader_of(*candidates)
    waiting(leader, 2)
    server.kill()
    time.sleep(1.2)  # longer than a ttl
    assert not any(candidate.election.is_leader for candidate in candidates)
    assert len(diary.of("on_lost")) == 1
    server.restart()
    history.healed(30)
    second = leader_of(*candidates)
    waiting(second, 2)
    for candidate in candidates:
        candidate.election.stop()
    diary.check()


@twin(bugs.loses_what_is_not_answered)
def test_a_short_restart_does_not_end_the_term(
    elect: Elect, diary: Diary, make_server: MakeServer
) -> None:
    """Each restart of a server that keeps its data would be a failover."""
    server = make_server(persistence="aof")
    leader = leader_of(elect("a", server.unix_url, ttl=10.0, heartbeat=0.2))
    token = leader.election.lease.token
    server.kill()
    time.sleep(0.5)  # a heartbeat or more, without an answer
    server.restart()
    assert leader.election.is_leader
    eventually(lambda: (leader.client.inspect("lead").remaining or 0) > 9.6)
    assert leader.election.is_leader
    assert leader.election.lease.token == token
    assert not diary.of("on_lost")
