"""Promise 1: for one name, a later grant has a larger token, whatever happened in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import redis

import fencer
from fencer.embedded import Server
from tests.faults import bugs, bugs_leases
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


def must_rise(tokens: list[int]) -> None:
    """The check: each token is larger than the one before."""
    assert all(a < b for a, b in pairwise(tokens)), tokens


# Without loss of data.


@twin(bugs.one_token_for_all)
def test_across_release(client: fencer.Fencer) -> None:
    """A holder that follows another at once could not be told from it."""
    must_rise([by_release(client)() for _ in range(50)])


@twin(bugs_leases.counter_in_the_lock)
def test_across_expiry(client: fencer.Fencer) -> None:
    """The holder that overran and its successor would show the same number."""
    must_rise([by_expiry(client)() for _ in range(5)])


@twin(bugs_leases.counter_in_the_lock)
@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
def test_across_del_of_the_lock_key(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """An operator who deletes the lock key by hand would make two holders with one token."""
    tokens = []
    for _ in range(5):
        tokens.append(client.acquire("orders", ttl=60).token)
        assert redis_client.delete(LOCK)
    must_rise(tokens)


@twin(bugs_leases.by_sha_alone, raises=(fencer.ScriptError,))
def test_across_script_flush(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """A server that has forgotten the scripts would answer NOSCRIPT from then on."""
    mint = by_release(client)
    tokens = [mint()]
    for _ in range(2):
        redis_client.script_flush()
        tokens.append(mint())
    must_rise(tokens)


@twin(bugs_leases.by_sha_alone, raises=(fencer.ScriptError,))
def test_during_script_flush(client: fencer.Fencer, shared_server: Server) -> None:
    """A flush between the refused EVALSHA and its repetition would come out as an error."""
    with flushing(shared_server) as flushes:
        tokens = []
        begun = flushes()
        while flushes() < begun + 200:
            tokens.append(by_release(client)())
    must_rise(tokens)


# Many at once.

CONTENDER = """
import time, fencer
client = fencer.connect(args[0])
def handle(count):
    grants = []
    for _ in range(count):
        lease = client.acquire("orders", ttl=30, wait=60)
        grants.append((lease.token, time.monotonic_ns()))
        time.sleep(0.001)
        left = time.monotonic_ns()
        lease.release()
        grants[-1] += (left,)
    return grants
"""


@twin(bugs_leases.hands_on_its_own_token)
def test_across_contending_processes(redis_client: redis.Redis, shared_server: Server) -> None:
    """Processes that contend would be given one token twice, or a smaller one later."""
    workers = [Worker(CONTENDER, shared_server.unix_url) for _ in range(8)]
    try:
        for worker in workers:
            worker.ask(count=0)
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


@twin(bugs_leases.hands_on_its_own_token)
def test_across_contending_threads(client: fencer.Fencer) -> None:
    """Threads that share a client would be given one token twice."""
    must_rise(of_eight_threads(by_release(client)))


@twin(bugs_leases.hands_on_its_own_token)
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
        mint: makes the next one.
    """

    def __init__(self, server: Server, redis_client: redis.Redis, mint: Mint) -> None:
        self.server = server
        self.redis = redis_client
        self.tokens: list[int] = []
        self._mint = mint

    def mint(self) -> None:
        """Make one more token."""
        self.tokens.append(self._mint())

    def issued(self) -> int:
        """The number under the key, 0 if there is none."""
        return int(self.redis.get(TOKEN) or 0)


Loss = Callable[[Store], None]


def flushall(store: Store) -> None:
    """Everything is gone."""
    store.redis.flushall()
    assert not store.redis.keys("*")


def forget_the_token(store: Store) -> None:
    """The token key alone is gone."""
    assert store.redis.delete(TOKEN)


def eviction(store: Store) -> None:
    """Memory runs full, and the server itself takes the token key."""
    store.redis.config_set("maxmemory-policy", "allkeys-lru")
    store.redis.config_set("maxmemory-samples", 20)
    memory: Any = store.redis.info("memory")
    store.redis.config_set("maxmemory", memory["used_memory"] + 300_000)
    number = 0
    while store.redis.exists(TOKEN):
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


@twin(bugs.plain_counter, of="flushall")
@twin(bugs.plain_counter, of="del-token")
@twin(bugs.plain_counter, of="eviction")
@twin(bugs.plain_counter, of="sigkill-none")
@twin(bugs.plain_counter, of="sigkill-rdb")
@twin(bugs.plain_counter, of="power-cut-aof")
@pytest.mark.parametrize(
    ("persistence", "lose"),
    [
        pytest.param("none", flushall, id="flushall"),
        pytest.param("none", forget_the_token, id="del-token"),
        pytest.param("none", eviction, id="eviction"),
        pytest.param("none", crash, id="sigkill-none"),
        pytest.param("rdb", crash_after_a_snapshot, id="sigkill-rdb"),
        # Each write is in the file at once, so that it is known what is cut off.
        pytest.param("aof-always", power_cut, id="power-cut-aof"),
        pytest.param("aof-always", crash_with_aof, id="sigkill-aof"),
    ],
)
def test_across_loss(
    make_server: MakeServer, connect: Connect, persistence: str, lose: Loss
) -> None:
    """A server that lost its data would issue numbers that guards have seen long ago."""
    server = make_server(persistence=persistence)
    mint = by_release(connect(server.unix_url))
    with redis.Redis.from_url(server.unix_url) as direct:
        rises_across_loss(Store(server, direct, mint), lose)


@twin(bugs_leases.dense_tokens_are_times)
@pytest.mark.must_break("S1", "S2", "S5")
def test_loss_fails_dense_tokens(connect: Connect, server: Server) -> None:
    """The documents warn of dense tokens on a store that loses data: they would be wrong."""
    mint = by_release(connect(server.unix_url, tokens="dense"))
    with (
        redis.Redis.from_url(server.unix_url) as direct,
        pytest.raises(AssertionError, match=r"^\[1, 3"),
    ):
        rises_across_loss(Store(server, direct, mint), flushall)


@twin(bugs_leases.renews_what_is_forgotten)
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
