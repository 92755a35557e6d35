"""Planted bugs: the checks of this folder must see each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress

import pytest
import redis

import fencer
from fencer import _protocol, _scripts
from fencer._scripts import Script
from fencer.embedded import Server
from tests.wait.line import Crowd, check_gaps, check_nothing_left, check_order

Plant = Callable[[str, str, str], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, redis_client: redis.Redis) -> Plant:
    """Replaces a piece of a script, which must be there once."""

    def change(name: str, piece: str, by: str) -> None:
        good = _scripts.load(name).body.decode()
        assert good.count(piece) == 1, f"lua/{name}.lua has changed: {piece!r}"
        bad = good.replace(piece, by).encode()
        script = Script(name, bad, hashlib.sha1(bad, usedforsecurity=False).hexdigest())

        def load(asked: str) -> Script:
            return script if asked == name else _scripts.load(asked)

        monkeypatch.setattr(_protocol, "load", load)

    return change


def story(server: Server, end: str) -> None:
    """Ten wait, one gives up; then the lease is released, or runs out while newcomers press."""
    with fencer.connect(server.unix_url) as client, Crowd() as crowd:
        lease = client.acquire("orders", ttl=2, keep_alive=end == "release")
        for _ in range(10):
            crowd.queue(client, "orders", ttl=2)
        with pytest.raises(fencer.AcquireTimeout):
            client.acquire("orders", wait=0.1)
        assert client.inspect("orders").waiters == 10
        if end == "release":
            lease.release()
        while end == "expiry" and client.inspect("orders").waiters == 10:
            with suppress(fencer.NotAcquired):
                newcomer = client.acquire("orders", ttl=2)
                first = not crowd.resource.visits  # its release lets a waiter in
                newcomer.release()
                assert not first, "a newcomer has overtaken"
        served = crowd.served()
        check_order(served, list(range(10)))
        check_gaps(served, 0.9)
        check_nothing_left(client, "orders")


@pytest.mark.parametrize("end", ["release", "expiry"])
def test_without_a_planted_bug(shared_server: Server, redis_client: redis.Redis, end: str) -> None:
    """The tests below would prove nothing if the story failed by itself."""
    story(shared_server, end)


PLANTED = {
    "nobody is handed the lease": ("release", "serve(mint(issued + 1))", ""),
    "newcomers overtake": (
        "acquire",
        "held_by, remaining_ms = serve(number, since_ms, grant, lost)",
        "",
    ),
    "last come, first served": (
        "release",
        "local id, ticket = unpack(redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES'))",
        "local id, ticket = unpack(redis.call('ZREVRANGE', queue, 0, 0, 'WITHSCORES'))",
    ),
    "who gives up stays in line": (
        "release",
        "if redis.call('ZREM', queue, grant) == 1 then",
        "if false then",
    ),
}


IN_THE_RECORD = {"newcomers overtake": "L2", "last come, first served": "L2"}
"""What the record says of it; the others only cost time."""


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, marks=[pytest.mark.must_break(rule)] if rule else [])
        for bug, rule in ((bug, IN_THE_RECORD.get(bug)) for bug in PLANTED)
    ],
)
def test_a_planted_bug_is_seen(plant: Plant, shared_server: Server, bug: str) -> None:
    """The checks would pass whatever the scripts do."""
    plant(*PLANTED[bug])
    with pytest.raises(AssertionError):
        story(shared_server, "expiry" if bug == "newcomers overtake" else "release")
