"""The model is held to the real scripts: random traces, on a server and in plain Python."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import redis

from fencer.embedded import Server
from tests.lua.scenarios import Store
from tests.model.replay import Diverged, Replay

TRACES, STEPS = 12, 100


@pytest.fixture
def client(shared_server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(shared_server.unix_url, decode_responses=True) as client:
        yield client
        client.flushall()


def replay(client: redis.Redis, store: Store, seed: int, minting: str) -> set[tuple[str, str]]:
    """One trace from an empty server; which answers of which scripts came."""
    client.flushall()
    with client.pubsub() as listener:
        replay = Replay(store, listener, seed, minting)
        replay.run(STEPS)
    return replay.seen


def diverges(client: redis.Redis, store: Store, seed: int) -> bool:
    """Whether the trace of this seed shows that something was changed."""
    try:
        replay(client, store, seed, "time")
    except Diverged as found:
        print(found)
        return True
    return False


@pytest.mark.parametrize("minting", ["time", "dense"])
def test_the_scripts_do_what_the_model_does(client: redis.Redis, minting: str) -> None:
    """What the search proves of the model would say nothing of the scripts."""
    store = Store(client)
    store.load()
    wanted = {
        *(("acquire", status) for status in ("GRANTED", "HELD", "QUEUED", "GONE")),
        *(("renew", status) for status in ("RENEWED", "STALE", "FOREIGN")),
        *(("release", status) for status in ("RELEASED", "STALE", "CANCELLED")),
        ("revoke", "REVOKED"),
        ("advance", "ADVANCED"),
    }
    seen = set[tuple[str, str]]()
    for number in range(10 * TRACES):
        if number >= TRACES and wanted <= seen:
            break
        seed = random.randrange(10**6)
        print("seed:", seed)
        seen |= replay(client, store, seed, minting)
    assert wanted <= seen, "the traces say too little"


PLANTED = {
    "a release that does not retire": (
        "release",
        r"string.format\('%.0f', issued \+ 1\), 'PX', keep_ms\)\nlocal leavings",
        "issued, 'PX', keep_ms)\nlocal leavings",
    ),
    "newcomers overtake": (
        "acquire",
        r"held_by, remaining_ms = serve\(number, since_ms, grant, lost\)",
        "",
    ),
    "a renew of another's token": (
        "renew",
        "if issued ~= mine then",
        "if not issued then",
    ),
    "the second in line is not told": ("release", "if place == 2 then", "if place == 1 then"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_changed_script_is_found(client: redis.Redis, bug: str) -> None:
    """The replay would pass whatever the scripts do."""
    store = Store(client)
    store.load()
    planted = store.planted(*PLANTED[bug])
    assert any(diverges(client, planted, seed) for seed in range(50))
