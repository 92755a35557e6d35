"""What holds on one server holds on a Cluster: the same tests, with clients of a Cluster.

They are those of ``tests/``, imported by name; their docstrings say what each is for.
"""

# ruff: noqa: F401

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis.cluster

import fencer
from fencer.embedded import Server
from tests.api.test_lease import (
    test_a_later_grant_has_a_larger_token,
    test_a_lease_is_granted_to_one,
    test_a_lost_lease_stays_lost,
    test_advance_lifts_the_next_token,
    test_any_thread_may_use_a_lease,
    test_decoded_responses_make_no_difference,
    test_history_tells_what_happened,
    test_names_lists_held_and_free_names,
    test_release_tells_whether_it_ended_the_lease,
    test_renew_can_change_the_ttl,
    test_revoke_ends_a_lease_for_good,
    test_the_info_key_shows_the_holder,
    test_wait_ends_in_a_timeout_that_leaves_nothing,
    test_wait_gets_the_lease_when_it_ends,
    test_with_tells_of_a_loss_inside,
)
from tests.election.conftest import diary, elect
from tests.election.test_terms import (
    test_everybody_can_ask_who_leads,
    test_on_lost_ends_before_the_release,
    test_one_leads_and_the_others_follow,
)
from tests.fix_api import Connect, connecting
from tests.fix_cluster import Cluster
from tests.keep.test_keeping import test_close_releases_what_is_kept
from tests.wait.test_giving_up import test_a_timeout_leaves_the_line
from tests.wait.test_order import test_a_line_in_one_process_keeps_its_order


@pytest.fixture(params=["threads", "asyncio"])
def connect(
    request: pytest.FixtureRequest, shared_server: Server, cluster: Cluster
) -> Iterator[Connect]:
    """A maker of clients of the cluster, of each API in turn."""
    with connecting(request.param, shared_server) as make:

        def make_here(url: str | None = None, **options: Any) -> fencer.Fencer:
            return make(url or cluster.url, **options)

        yield make_here


@pytest.fixture
def redis_client(cluster: Cluster) -> Iterator[redis.cluster.RedisCluster]:
    """The driver's client of the cluster."""
    node = cluster.nodes[0].server
    with redis.cluster.RedisCluster("127.0.0.1", node.port) as client:
        yield client


@pytest.fixture
def client(connect: Connect) -> fencer.Fencer:
    """A client of the cluster."""
    return connect()


@pytest.fixture
def other(connect: Connect) -> fencer.Fencer:
    """A second client, a rival."""
    return connect()
