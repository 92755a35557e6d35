"""Promise 6: a guard never goes back, whoever writes at the same time.

The resource is a list, to which each writer appends its own token: a stale write that landed would
stand behind a larger number.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import redis

import fencer
from fencer import Sequencer, StaleToken
from fencer._lease import BaseLease
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults import bugs, bugs_guards
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import plain

WRITTEN = "{orders}:written"

Write = Callable[[int], object]
Outcome = tuple[int, bool]


def written(store: redis.Redis) -> list[int]:
    """What landed, in order."""
    entries: list[bytes] = store.lrange(WRITTEN, 0, -1)  # type: ignore[assignment]
    return [int(entry) for entry in entries]


def never_goes_back(store: redis.Redis, outcomes: list[Outcome]) -> None:
    """The check: what landed rises, and is exactly what was accepted."""
    landed = written(store)
    assert all(a <= b for a, b in pairwise(landed)), landed
    assert sorted(token for token, accepted in outcomes if accepted) == landed


def attempt(write: Write, token: int) -> Outcome:
    """Write, and record how it went."""
    try:
        write(token)
    except StaleToken as error:
        return error.token, False
    return token, True


def race(write: Write, rounds: int) -> list[Outcome]:
    """Eight writers; each gets a larger token each time, and writes with the older ones again."""
    tokens = itertools.count(1)
    start = threading.Barrier(8)

    def writer(_: int) -> list[Outcome]:
        outcomes, mine = [], []
        start.wait()
        for _ in range(rounds):
            mine.append(next(tokens))
            outcomes += [attempt(write, token) for token in [*mine[-3:], mine[-1]]]
        return outcomes

    with ThreadPoolExecutor(8) as pool:
        return [outcome for outcomes in pool.map(writer, range(8)) for outcome in outcomes]


@twin(bugs_guards.guard_in_two_steps)
def test_no_stale_write_lands_between_threads(redis_client: redis.Redis) -> None:
    """A paused holder would overwrite what its successor wrote."""
    guard = RedisGuard(redis_client, "orders")
    outcomes = race(lambda token: guard.execute(token, "RPUSH", WRITTEN, token), rounds=25)
    never_goes_back(redis_client, outcomes)
    assert any(accepted for _, accepted in outcomes)
    assert not all(accepted for _, accepted in outcomes), "nothing raced"
    assert guard.highest() == max(token for token, _ in outcomes) == 200


WRITER = """
import fencer
from fencer.guards import RedisGuard
client = fencer.connect(args[0])
guard = RedisGuard(client.client, "orders")
def write(lease):
    try:
        guard.execute(lease, "RPUSH", "{orders}:written", lease.token)
        return lease.token, True
    except fencer.StaleToken:
        return lease.token, False
def handle(rounds):
    leases, outcomes = [], []
    for _ in range(rounds):
        lease = client.acquire("orders", ttl=60, wait=60)
        leases.append(lease)
        outcomes.append(write(lease))
        lease.release()
        outcomes += [write(late) for late in leases[-3:]]
    return outcomes
"""


@twin(bugs_guards.guard_in_two_steps)
def test_no_stale_write_lands_between_processes(
    redis_client: redis.Redis, shared_server: Server
) -> None:
    """The same, of processes that take the lease from each other and go on to write."""
    workers = [Worker(WRITER, shared_server.unix_url) for _ in range(8)]
    try:
        for worker in workers:
            worker.tell(rounds=10)
        outcomes: list[Outcome] = [
            (token, accepted) for worker in workers for token, accepted in worker.hear(timeout=60)
        ]
    finally:
        for worker in workers:
            worker.close()
    never_goes_back(redis_client, outcomes)
    tokens = {token for token, _ in outcomes}
    assert len(tokens) == 80
    assert {token for token, accepted in outcomes if accepted} == tokens, "a holder was refused"
    assert not all(accepted for _, accepted in outcomes), "nothing was late"


@twin(bugs_guards.guard_runs_one_by_one)
def test_a_transaction_is_seen_as_a_whole(redis_client: redis.Redis) -> None:
    """A reader would see one key of the old holder beside one of the new."""
    guard = RedisGuard(redis_client, "orders", tag="orders")
    ended = threading.Event()

    def write(token: int) -> object:
        keys = ["{orders}:a", "{orders}:b", WRITTEN]
        return guard.transaction(
            token, [["SET", keys[0], token], ["SET", keys[1], token], ["RPUSH", keys[2], token]]
        )

    def read() -> list[Any]:
        seen = []
        while not ended.is_set():
            seen.append(redis_client.mget("{orders}:a", "{orders}:b"))
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        outcomes = race(write, rounds=15)
        ended.set()
        seen = reading.result()
    never_goes_back(redis_client, outcomes)
    assert all(a == b for a, b in seen)


@twin(bugs_guards.guard_takes_each_once)
def test_a_token_may_write_many_times(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """A holder would be fenced off by its own first write."""
    lease = plain(client.acquire("orders"))
    guard = RedisGuard(redis_client, "orders")
    for token in (lease, lease.token, lease.sequencer(), lease):
        assert guard.execute(token, "INCR", "balance")
        guard.check(token)
    assert redis_client.get("balance") == b"4"


def rival(lease: BaseLease) -> Sequencer:
    """Another grant that shows the same token, as after a loss of data with dense tokens."""
    return Sequencer(lease.name, lease.token, "f" * 32, "another")


@twin(bugs_guards.guard_knows_no_grants)
@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_grants_with_one_token_the_second_is_refused(
    client: fencer.Fencer, redis_client: redis.Redis, swapped: bool
) -> None:
    """Two holders of one token would overwrite each other for ever."""
    lease = plain(client.acquire("orders"))
    guard = RedisGuard(redis_client, "orders")
    first, second = (rival(lease), lease) if swapped else (lease, rival(lease))
    guard.execute(first, "SET", "balance", "first")
    for _ in range(2):
        with pytest.raises(StaleToken, match="another grant") as caught:
            guard.execute(second, "SET", "balance", "second")
        assert (caught.value.token, caught.value.highest) == (lease.token, lease.token)
        with pytest.raises(StaleToken):
            guard.check(second)
    guard.check(first)
    assert redis_client.get("balance") == b"first"


@twin(bugs_guards.guard_knows_no_grants)
def test_of_many_grants_with_one_token_one_is_accepted(redis_client: redis.Redis) -> None:
    """Grants that show one token at the same time would all be let in."""
    guard = RedisGuard(redis_client, "orders")

    def write(number: int) -> bool:
        try:
            guard.execute(Sequencer("orders", 5, f"{number:032x}", "me"), "RPUSH", WRITTEN, number)
        except StaleToken:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(write, [number % 8 for number in range(80)]))
    assert accepted.count(True) == 10
    assert len(set(written(redis_client))) == 1


@twin(bugs_guards.guard_knows_no_grants)
def test_a_grant_that_comes_after_its_bare_token(
    client: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """A holder that once showed a bare number would open its token to every other grant."""
    lease = plain(client.acquire("orders"))
    guard = RedisGuard(redis_client, "orders")
    guard.check(lease.token)
    guard.check(lease)
    with pytest.raises(StaleToken):
        guard.check(rival(lease))


@twin(bugs.guards_nothing)
@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
def test_an_announced_token_shuts_the_older_ones_out(
    client: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """What the new holder reads could still be changed by the one before."""
    old = plain(client.acquire("orders"))
    guard = RedisGuard(redis_client, "orders")
    guard.execute(old, "SET", "balance", "1")
    redis_client.delete("fencer:{orders}:lock")
    new = plain(client.acquire("orders"))
    guard.check(new)
    for late in (old, old.token, old.sequencer()):
        with pytest.raises(StaleToken):
            guard.execute(late, "SET", "balance", "2")
    assert redis_client.get("balance") == b"1"
