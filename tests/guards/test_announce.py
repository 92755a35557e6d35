"""A new holder shows its token to its guards before `acquire` returns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import redis

import fencer
from fencer.embedded import Server
from fencer.errors import (
    AcquireTimeout,
    InvalidArgument,
    LeaseLost,
    NotAcquired,
    StaleToken,
)
from fencer.guards import AsyncRedisGuard, Guard, MemoryGuard, RedisGuard
from fencer.guards._base import Token
from tests.fix_api import Connect

AHEAD = 2**52
"""A token of the year 2112."""


class Odd(MemoryGuard):
    """A guard that does something of the test's first."""

    def __init__(self, act: Callable[[Any], object]) -> None:
        super().__init__("orders")
        self.act = act
        self.shown: list[int] = []

    def check(self, token: Token) -> None:
        assert isinstance(token, fencer.Lease | fencer.AsyncLease)
        self.shown.append(token.token)
        self.act(token)
        super().check(token)


@asynccontextmanager
async def opened(server: Server) -> AsyncIterator[fencer.AsyncFencer]:
    async with fencer.connect_async(server.unix_url) as client:
        yield client


def test_the_guards_know_the_token_when_acquire_returns(
    client: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """What the new holder reads first could be changed by the old one."""
    guards: list[Guard] = [MemoryGuard("orders"), RedisGuard(redis_client, "orders")]
    lease = client.acquire("orders", guards=guards)
    for guard in guards:
        assert guard.highest() == lease.token
        with pytest.raises(StaleToken):
            guard.check(lease.token - 1)
        with pytest.raises(StaleToken):
            guard.check(fencer.Sequencer("orders", lease.token, "ab" * 16, "rival"))


def test_nothing_else_is_asked_where_no_guard_is_ahead(client: fencer.Fencer) -> None:
    """Each acquire would cost more than its checks, or announce twice."""
    guard = Odd(lambda lease: None)
    lease = client.acquire("orders", guards=(each for each in [guard]))
    assert guard.shown == [lease.token]
    assert [event.event for event in client.history("orders")] == ["grant"]


def test_a_name_is_advanced_past_a_guard_that_is_ahead(client: fencer.Fencer) -> None:
    """A store that lost its data could not grant a lease that writes, ever."""
    behind, ahead = Odd(lambda lease: None), MemoryGuard("orders")
    ahead.check(AHEAD)
    lease = client.acquire("orders", guards=[behind, ahead])
    assert lease.valid
    assert client.inspect("orders").token == lease.token == AHEAD + 2
    assert ahead.highest() == behind.highest() == lease.token
    assert len(behind.shown) == 2, "every guard knows the token that counts"


def test_dense_tokens_that_began_anew_go_on(connect: Connect, redis_client: redis.Redis) -> None:
    """After FLUSHALL, dense tokens would be refused until they had caught up."""
    client = connect(tokens="dense")
    guard = MemoryGuard("orders")
    guard.check(500)
    assert client.acquire("orders", guards=[guard]).token > 500


def test_another_grant_with_the_same_token_is_passed(client: fencer.Fencer) -> None:
    """Two grants with one token would end in an error though the next token is free."""
    guard = MemoryGuard("orders")

    def rival(lease: Any) -> None:
        if not guard.highest():
            guard.check(fencer.Sequencer("orders", lease.token, "ab" * 16, "rival"))

    lease = client.acquire("orders", guards=[Odd(rival), guard])
    assert lease.valid
    assert guard.highest() == lease.token


def test_the_next_in_line_gets_a_token_that_the_guard_takes(
    connect: Connect, client: fencer.Fencer
) -> None:
    """A waiter would be handed a lease that the advance takes away from it at once."""
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(connect().acquire("orders", wait=10)))
    guard = MemoryGuard("orders")
    guard.check(AHEAD)

    def let_one_wait(lease: Any) -> None:
        if not waiter.ident:
            waiter.start()
            _wait_until(lambda: client.inspect("orders").waiters == 1)

    with pytest.raises(AcquireTimeout):
        client.acquire("orders", wait=1, guards=[Odd(let_one_wait), guard])
    waiter.join(10)
    assert got[0].valid
    assert got[0].token > AHEAD
    assert client.inspect("orders").token == got[0].token


def test_a_guard_that_is_ahead_again_is_an_error(client: fencer.Fencer) -> None:
    """Acquire would go round in circles with a guard that is broken."""

    def refuse(lease: Any) -> None:
        raise StaleToken("orders", lease.token, lease.token + 1_000)

    guard = Odd(refuse)
    with pytest.raises(StaleToken) as caught:
        client.acquire("orders", guards=[guard], keep_alive=True)
    first, second = guard.shown
    assert second > first + 1_000
    assert (caught.value.token, caught.value.highest) == (second, second + 1_000)
    assert f"advanced past {first + 1_000}" in "".join(caught.value.__notes__)
    assert not client.inspect("orders").held


def test_a_mark_that_cannot_be_passed_is_an_error(client: fencer.Fencer) -> None:
    """A forged mark would use up all tokens of the name."""
    guard = MemoryGuard("orders")
    guard.check(2**53 - 1)
    with pytest.raises(StaleToken) as caught:
        client.acquire("orders", guards=[guard])
    assert caught.value.highest == 2**53 - 1
    assert not client.inspect("orders").held
    assert client.acquire("orders").token < AHEAD


def test_what_a_guard_raises_comes_out(client: fencer.Fencer) -> None:
    """The lease would stay held by nobody, or the cause would be hidden."""
    guard = Odd(lambda lease: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        client.acquire("orders", guards=[guard], keep_alive=True)
    assert not client.inspect("orders").held
    with pytest.raises(InvalidArgument, match="tokens of 'stock'"):
        client.acquire("orders", guards=[MemoryGuard("stock")])
    assert not client.inspect("orders").held


def test_a_lease_that_is_kept_alive_outlives_a_slow_guard(client: fencer.Fencer) -> None:
    """Guards that take longer than the ttl could never be announced to."""
    guard = Odd(lambda lease: time.sleep(0.8))
    lease = client.acquire("orders", ttl=0.2, keep_alive=True, guards=[guard])
    assert lease.valid
    assert client.inspect("orders").token == lease.token
    lease.release()


def test_a_lease_that_a_slow_guard_outlived_is_not_returned(client: fencer.Fencer) -> None:
    """The caller would begin to work without a lease."""
    with pytest.raises(LeaseLost, match="ran out"):
        client.acquire("orders", ttl=0.05, guards=[Odd(lambda lease: time.sleep(0.1))])
    assert not client.inspect("orders").held


def test_a_successor_is_not_advanced_past(client: fencer.Fencer, connect: Connect) -> None:
    """A slow guard would cost the next holder, who did all right, its lease."""
    next_one: list[Any] = []
    guard = MemoryGuard("orders")

    def overtake(lease: Any) -> None:
        time.sleep(0.1)
        if not next_one:
            next_one.append(client.acquire("orders", guards=[guard]))
        guard.check(lease)  # which is refused

    with pytest.raises(LeaseLost):
        connect().acquire("orders", ttl=0.05, guards=[Odd(overtake)])
    assert client.inspect("orders").token == next_one[0].token
    next_one[0].renew()


def test_without_the_lease_no_guard_is_asked(client: fencer.Fencer) -> None:
    """The guards would be stamped by somebody who has nothing."""
    client.acquire("orders")
    guard = Odd(lambda lease: None)
    with pytest.raises(NotAcquired):
        client.acquire("orders", guards=[guard])
    assert guard.shown == []


@pytest.mark.parametrize("guards", [MemoryGuard("orders"), [None], "ab", [MemoryGuard], 5])
def test_what_is_no_guard_is_refused_before_anything_is_sent(
    client: fencer.Fencer, guards: Any
) -> None:
    """The lease would be taken first."""
    with pytest.raises(InvalidArgument, match="guard"):
        client.acquire("orders", guards=guards)
    assert client.history("orders") == []


def test_threads_refuse_a_guard_for_asyncio(shared_server: Server, redis_client: object) -> None:
    """A guard that is never asked would pass for one that agreed."""
    with fencer.connect(shared_server.unix_url) as client:
        odd = cast(Any, AsyncRedisGuard(redis.asyncio.Redis(), "orders"))
        with pytest.raises(InvalidArgument, match="one for asyncio"):
            client.acquire("orders", guards=[MemoryGuard("orders"), odd])
        assert client.history("orders") == []


def test_an_interrupt_leaves_nothing_held(shared_server: Server, redis_client: object) -> None:
    """Ctrl-C while a guard is slow would block the name for a ttl."""

    def interrupt(lease: Any) -> None:
        raise KeyboardInterrupt

    with fencer.connect(shared_server.unix_url) as client:
        with pytest.raises(KeyboardInterrupt):
            client.acquire("orders", keep_alive=True, guards=[Odd(interrupt)])
        assert not client.inspect("orders").held


def test_asyncio_takes_guards_of_both_kinds(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """Half of the guards could not be used."""

    async def run() -> None:
        async with opened(shared_server) as client:
            first, second = AsyncRedisGuard(client.client, "orders"), MemoryGuard("orders")
            async with await client.acquire("orders", guards=[first, second]) as lease:
                assert await first.highest() == second.highest() == lease.token

    asyncio.run(run())


def test_a_slow_guard_for_threads_does_not_stop_the_loop(
    shared_server: Server, redis_client: object
) -> None:
    """All other tasks, and the keeping alive, would stand still meanwhile."""
    going = threading.Event()

    async def run() -> None:
        async with opened(shared_server) as client:
            guard = Odd(lambda lease: going.wait(10) or pytest.fail("the loop stood still"))
            acquiring = asyncio.create_task(client.acquire("orders", guards=[guard]))
            while not guard.shown:
                await asyncio.sleep(0.001)
            going.set()
            await (await acquiring).release()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_cancelled_acquire_leaves_nothing_held(
    kind: str, shared_server: Server, redis_client: object
) -> None:
    """A task that is cancelled while a guard is slow would block the name."""
    going = threading.Event()

    class Slow(Odd):
        async def check(self, token: Token) -> None:  # type: ignore[override]
            self.shown.append(1)
            await asyncio.sleep(10)

    async def run() -> None:
        async with opened(shared_server) as client:
            guard = Odd(lambda lease: going.wait(10)) if kind == "threads" else Slow(lambda _: None)
            acquiring = asyncio.create_task(
                client.acquire("orders", guards=[guard], keep_alive=True)
            )
            while not guard.shown:
                await asyncio.sleep(0.001)
            acquiring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await acquiring
            assert not (await client.inspect("orders")).held
            going.set()

    asyncio.run(run())


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
