"""Promise 1: for one name, a later grant has a larger token, whatever happened in between.

Each check takes what mints the tokens, so that a planted bug can be put in Fencer's place: the
check must then fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import redis

import fencer
from fencer.embedded import Server
from tests.faults import bugs, twins
from tests.faults.history import History
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.fix_servers import MakeServer

Mint = Callable[[], int]

TOKEN = "fencer:{orders}:token"
LOCK = "fencer:{orders}:lock"


def by_release(client: fencer.Fencer) -> Mint:
    """Grants that are released at once."""

    def mint() -> int:
        lease = client.acquire("orders", ttl=60, wait=30)
        assert lease.release()
        return lease.token

    return mint


def by_expiry(client: fencer.Fencer) -> Mint:
    """Grants that nobody ends: each waits for the end of the one before."""
    return lambda: client.acquire("orders", ttl=0.03, wait=10).token


def told(history: History, mint: Mint) -> Mint:
    """Have the record tell of each token that a planted bug mints."""

    def told_mint() -> int:
        token = mint()
        history.granted("twin", token)
        return token

    return told_mint


def must_rise(tokens: list[int]) -> None:
    """The check: each token is larger than the one before."""
    assert all(a < b for a, b in pairwise(tokens)), tokens


def rises_across(mint: Mint, happen: Callable[[], None]) -> None:
    """The scenario of most tests here: grants, a fault, more grants."""
    tokens = [mint(), mint(), mint()]
    happen()
    tokens += [mint()]
    happen()
    must_rise([*tokens, mint()])


# Without loss of data.


@twin(bugs.one_token_for_all)
def test_across_release(client: fencer.Fencer) -> None:
    """A holder that follows another at once could not be told from it."""
    must_rise([by_release(client)() for _ in range(50)])


@twin(bugs.one_token_for_all)
def test_across_expiry(client: fencer.Fencer) -> None:
    """The holder that overran and its successor would show the same number."""
    must_rise([by_expiry(client)() for _ in range(5)])


@pytest.mark.must_break("S1", "S2")
def test_a_counter_that_dies_with_the_lock_fails(
    redis_client: redis.Redis, history: History
) -> None:
    """The check would pass for locks that keep the counter in the lock's own key."""
    mint = told(history, twins.counter_in_the_lock(redis_client))
    with pytest.raises(AssertionError):
        rises_across(mint, lambda: time.sleep(0.1))


@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
def test_across_del_of_the_lock_key(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """An operator who deletes the lock key by hand would make two holders with one token."""
    tokens = []
    for _ in range(5):
        tokens.append(client.acquire("orders", ttl=60).token)
        assert redis_client.delete(LOCK)
    must_rise(tokens)


@pytest.mark.must_break("S1", "S2")
def test_del_of_the_lock_key_fails_a_counter_in_it(
    redis_client: redis.Redis, history: History
) -> None:
    """The test above would pass for every lock."""
    mint = told(history, twins.counter_in_the_lock(redis_client))
    with pytest.raises(AssertionError):
        rises_across(mint, lambda: void(redis_client.delete(twins.LOCK)))


def test_across_script_flush(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """A server that has forgotten the scripts would answer NOSCRIPT from then on."""
    rises_across(by_release(client), lambda: void(redis_client.script_flush()))


def test_during_script_flush(client: fencer.Fencer, shared_server: Server) -> None:
    """A flush between the refused EVALSHA and its repetition would come out as an error."""
    with flushing(shared_server) as flushes:
        tokens = []
        begun = flushes()
        while flushes() < begun + 200:
            tokens.append(by_release(client)())
    must_rise(tokens)


def test_script_flush_fails_a_bare_evalsha(redis_client: redis.Redis) -> None:
    """The flush would not be one."""
    with pytest.raises(redis.exceptions.NoScriptError):
        rises_across(twins.by_sha_only(redis_client), lambda: void(redis_client.script_flush()))


# Many at once.

CONTENDER = """
import time, fencer
client = fencer.connect(args[0])
def handle(count):
    grants = []
    for _ in range(count):
        lease = client.acquire("orders", ttl=30, wait=60)
        grants.append((lease.token, time.monotonic_ns()))
        left = time.monotonic_ns()
        lease.release()
        grants[-1] += (left,)
    return grants
"""


def test_across_contending_processes(redis_client: redis.Redis, shared_server: Server) -> None:
    """Processes that contend would be given one token twice, or a smaller one later."""
    workers = [Worker(CONTENDER, shared_server.unix_url) for _ in range(8)]
    try:
        for worker in workers:
            worker.tell(count=25)
        grants = [grant for worker in workers for grant in worker.hear(timeout=60)]
    finally:
        for worker in workers:
            worker.close()
    assert len(grants) == 200
    grants.sort(key=lambda grant: grant[1])
    must_rise([token for token, _, _ in grants])
    ends = [(begun, ended) for _, begun, ended in grants]
    assert all(a[1] < b[0] for a, b in pairwise(ends)), "two held it at once"


def of_eight_threads(mint: Mint) -> list[int]:
    """The tokens of 200 grants, in order of the tokens."""
    with ThreadPoolExecutor(8) as pool:
        return sorted(pool.map(lambda _: mint(), range(200)))


def test_across_contending_threads(client: fencer.Fencer) -> None:
    """Threads that share a client would be given one token twice."""
    must_rise(of_eight_threads(by_release(client)))


def test_contention_fails_a_counter_in_two_steps(redis_client: redis.Redis) -> None:
    """The threads would not contend."""
    with pytest.raises(AssertionError):
        must_rise(of_eight_threads(twins.read_then_write(redis_client)))


def test_dense_tokens_rise_under_contention(connect: Connect, redis_client: redis.Redis) -> None:
    """The option for small numbers would give one number twice."""
    tokens = of_eight_threads(by_release(connect(tokens="dense")))
    must_rise(tokens)
    assert tokens[-1] <= 2 * len(tokens)


# With loss of data.


class Store:
    """A server of one test's own, which a fault takes data from.

    Args:
        server: the server.
        key: where the last number issued is kept.
        mint: makes the next one.
    """

    def __init__(self, server: Server, redis_client: redis.Redis, key: str, mint: Mint) -> None:
        self.server = server
        self.redis = redis_client
        self.key = key
        self.tokens: list[int] = []
        self._mint = mint

    def mint(self) -> None:
        """Make one more token."""
        self.tokens.append(self._mint())

    def issued(self) -> int:
        """The number under the key, 0 if there is none."""
        return int(self.redis.get(self.key) or 0)


Loss = Callable[[Store], None]


def flushall(store: Store) -> None:
    """Everything is gone."""
    store.redis.flushall()
    assert not store.redis.keys("*")


def forget_the_token(store: Store) -> None:
    """The token key alone is gone."""
    assert store.redis.delete(store.key)


def eviction(store: Store) -> None:
    """Memory runs full, and the server itself takes the token key."""
    store.redis.config_set("maxmemory-policy", "allkeys-lru")
    store.redis.config_set("maxmemory-samples", 20)
    memory: Any = store.redis.info("memory")
    store.redis.config_set("maxmemory", memory["used_memory"] + 300_000)
    number = 0
    while store.redis.exists(store.key):
        number += 1
        store.redis.set(f"other:{number}", bytes(10_000))
        assert number < 10_000, "nothing was evicted"
    stats: Any = store.redis.info("stats")
    assert stats["evicted_keys"] > 0
    store.redis.config_set("maxmemory", 0)


def crash(store: Store) -> None:
    """SIGKILL of a server that saves nothing, and a start with nothing."""
    store.server.kill()
    store.server.start()
    assert not store.redis.keys("*"), "nothing was lost, so nothing was tested"


def crash_after_a_snapshot(store: Store) -> None:
    """SIGKILL, and a start on a snapshot that misses the last tokens."""
    store.redis.save()
    saved = store.issued()
    store.mint()
    store.mint()
    store.server.kill()
    store.server.start()
    assert store.issued() == saved, "nothing was lost, so nothing was tested"


def power_cut(store: Store) -> None:
    """SIGKILL, and a start on an append-only file that misses its last second."""
    # One file before Redis 7, and several since.
    folder = store.server.folder
    [file] = [*folder.glob("appendonlydir/*.incr.aof"), *folder.glob("appendonly.aof")]
    synced, saved = file.stat().st_size, store.issued()
    store.mint()
    store.mint()
    store.server.kill()
    assert file.stat().st_size > synced
    with file.open("r+b") as written:
        written.truncate(synced)
    store.server.start()
    assert store.issued() == saved, "nothing was lost, so nothing was tested"


def crash_with_aof(store: Store) -> None:
    """SIGKILL, and a start on an append-only file that is synced at each write."""
    saved = store.issued()
    store.server.kill()
    store.server.start()
    assert store.issued() == saved, "what was written before the kill should be there"


def rises_across_loss(store: Store, lose: Loss) -> None:
    """The scenario: tokens, a loss, tokens, the same loss again, tokens."""
    for _ in range(2):
        store.mint()
        store.mint()
        lose(store)
    store.mint()
    must_rise(store.tokens)


LOSSES = [
    pytest.param("none", flushall, id="flushall"),
    pytest.param("none", forget_the_token, id="del-token"),
    pytest.param("none", eviction, id="eviction"),
    pytest.param("none", crash, id="sigkill-none"),
    pytest.param("rdb", crash_after_a_snapshot, id="sigkill-rdb"),
    # Each write is in the file at once, so that it is known what is cut off.
    pytest.param("aof-always", power_cut, id="power-cut-aof"),
]


@pytest.mark.parametrize(
    ("persistence", "lose"),
    [*LOSSES, pytest.param("aof-always", crash_with_aof, id="sigkill-aof")],
)
def test_across_loss(
    make_server: MakeServer, connect: Connect, persistence: str, lose: Loss
) -> None:
    """A server that lost its data would issue numbers that guards have seen long ago."""
    server = make_server(persistence=persistence)
    mint = by_release(connect(server.unix_url))
    with redis.Redis.from_url(server.unix_url) as direct:
        rises_across_loss(Store(server, direct, TOKEN, mint), lose)


@pytest.mark.must_break("S1", "S2")
@pytest.mark.parametrize(("persistence", "lose"), LOSSES)
def test_loss_fails_a_plain_counter(
    make_server: MakeServer, history: History, persistence: str, lose: Loss
) -> None:
    """The losses above would not be any, and every lock's counter would pass them."""
    server = make_server(persistence=persistence)
    with redis.Redis.from_url(server.unix_url) as direct:
        mint = told(history, twins.plain_counter(direct))
        store = Store(server, direct, twins.COUNTER, mint)
        with pytest.raises(AssertionError, match=r"^\[1, 2"):
            rises_across_loss(store, lose)


@pytest.mark.must_break("S1", "S2", "S5")
def test_loss_fails_dense_tokens(connect: Connect, server: Server) -> None:
    """The documents warn of dense tokens on a store that loses data: they would be wrong."""
    mint = by_release(connect(server.unix_url, tokens="dense"))
    with (
        redis.Redis.from_url(server.unix_url) as direct,
        pytest.raises(AssertionError, match=r"^\[1, 3"),
    ):
        rises_across_loss(Store(server, direct, TOKEN, mint), flushall)


def test_a_held_lease_whose_token_key_is_lost(
    client: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """The holder of a forgotten token would go on beside its successor."""
    lease = client.acquire("orders")
    assert redis_client.delete(TOKEN)
    with pytest.raises(fencer.LeaseLost, match="forgotten"):
        lease.renew()
    redis_client.delete(LOCK)
    assert client.acquire("orders").token > lease.token


# Tools.


def void(_: object) -> None:
    """Drop a reply."""


@contextmanager
def flushing(server: Server) -> Iterator[Callable[[], int]]:
    """Another client flushes the scripts in a loop; yields how often it has."""
    done, ended = [0], threading.Event()

    def loop() -> None:
        with redis.Redis.from_url(server.unix_url) as other:
            while not ended.is_set():
                other.script_flush()
                done[0] += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield lambda: done[0]
    finally:
        ended.set()
        thread.join()
