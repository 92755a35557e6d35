"""The loss of a lease on asyncio cancels the body, and is told apart from other cancellations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import redis
import redis.asyncio

import fencer
from fencer import LeaseLost
from fencer.embedded import Server
from tests.faults.planted import twin
from tests.keep import bugs
from tests.keep.helpers import is_renewed, run
from tests.ways import way  # noqa: F401

SOON = 0.15
Main = Callable[[fencer.AsyncFencer], Awaitable[None]]


@pytest.fixture
def go(shared_server: Server, redis_client: redis.Redis) -> Callable[[Main], None]:
    """Runs a coroutine with a client, and looks whether tasks are left."""

    async def main(body: Main) -> None:
        async with fencer.connect_async(shared_server.unix_url) as client:
            try:
                await asyncio.wait_for(body(client), 20)
            except asyncio.CancelledError:
                raise AssertionError("a cancellation comes out") from None
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "tasks are left"

    return lambda body: asyncio.run(main(body), debug=True)


@asynccontextmanager
async def short(
    client: fencer.AsyncFencer, name: str = "orders"
) -> AsyncIterator[fencer.AsyncLease]:
    """A block whose lease is lost soon."""
    lease = await client.acquire(name, ttl=SOON)
    async with lease:
        yield lease


async def work_on(lease: fencer.AsyncLease) -> None:
    """What a body does that is not cancelled by the loss."""
    await lease.lost.wait()
    await asyncio.sleep(0.2)


@twin(bugs.cancels_no_body)
def test_the_body_is_cancelled(go: Callable[[Main], None]) -> None:
    """A body would work on without its lease until it ends by itself."""

    async def main(client: fencer.AsyncFencer) -> None:
        with pytest.raises(LeaseLost, match="ran out") as caught:
            async with await client.acquire("orders", ttl=SOON) as lease:
                await work_on(lease)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0, "the cancellation is taken back"
        await asyncio.sleep(0)

    go(main)


@twin(bugs.a_refusal_is_no_loss)
def test_a_revoked_lease_cancels_the_body(
    go: Callable[[Main], None], shared_server: Server
) -> None:
    """Only a ttl that runs out would be noticed."""

    async def main(client: fencer.AsyncFencer) -> None:
        with pytest.raises(LeaseLost, match="retired"):  # noqa: PT012
            async with await client.acquire("orders", ttl=0.9, keep_alive=True):
                await client.revoke("orders")
                await asyncio.sleep(30)

    go(main)


@twin(bugs.any_cancellation_is_the_loss)
def test_an_outer_cancellation_comes_out_as_it_is(go: Callable[[Main], None]) -> None:
    """A task that was cancelled by its owner would report a loss that there was not."""

    async def main(client: fencer.AsyncFencer) -> None:
        async def body() -> None:
            async with await client.acquire("orders", keep_alive=True):
                inside.set()
                await asyncio.sleep(30)

        inside = asyncio.Event()
        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (await client.inspect("orders")).held, "released all the same"

    go(main)


@pytest.mark.parametrize("loss_first", [True, False])
@twin(bugs.counts_no_cancellations)
def test_both_at_once_is_an_outer_cancellation(
    go: Callable[[Main], None], loss_first: bool
) -> None:
    """A cancelled task would go on, since its cancellation was taken for the loss."""

    async def main(client: fencer.AsyncFencer) -> None:
        async def body() -> None:
            async with await client.acquire("orders", keep_alive=True) as lease:
                leases.append(lease)
                inside.set()
                await asyncio.sleep(30)

        leases: list[fencer.AsyncLease] = []
        inside = asyncio.Event()
        task = asyncio.create_task(body())
        await inside.wait()
        if not loss_first:
            task.cancel()
        leases[0]._lose("as a test wants it")
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    go(main)


@pytest.mark.parametrize("which", ["inner", "outer", "both"])
@twin(bugs.any_cancellation_is_the_loss, of="outer")
def test_two_leases(go: Callable[[Main], None], which: str) -> None:
    """The loss of one would be told of the other, or be swallowed between the two."""

    async def main(client: fencer.AsyncFencer) -> None:
        ttls = {"outer": (SOON, 10.0), "inner": (10.0, SOON), "both": (SOON, SOON)}[which]
        with pytest.raises(LeaseLost) as caught:  # noqa: PT012
            async with await client.acquire("outer", ttl=ttls[0]):  # noqa: SIM117
                async with await client.acquire("inner", ttl=ttls[1]):
                    await asyncio.sleep(30)
        assert which in (caught.value.name, "both")
        for name in ("outer", "inner"):  # what was lost ends a moment later on the server
            await (await client.acquire(name, wait=5)).release()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    go(main)


@twin(bugs.any_cancellation_is_the_loss)
def test_inside_a_timeout(go: Callable[[Main], None]) -> None:
    """A timeout around the block would be taken for a loss, or a loss for a timeout."""

    async def main(client: fencer.AsyncFencer) -> None:
        with pytest.raises(LeaseLost):
            async with asyncio.timeout(20), short(client):
                await asyncio.sleep(30)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON), await client.acquire("other"):
                await asyncio.sleep(30)
        assert not (await client.inspect("other")).held
        async with await client.acquire("other"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SOON):
                    await asyncio.sleep(30)
        with pytest.raises(LeaseLost):
            async with short(client, "third"), asyncio.timeout(20):
                await asyncio.sleep(30)

    go(main)


@twin(bugs.cancels_no_body)
def test_a_task_group_inside(go: Callable[[Main], None]) -> None:
    """Tasks that the body started would work on without the lease."""

    async def main(client: fencer.AsyncFencer) -> None:
        async def work() -> None:
            try:
                await work_on(lease)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        cancelled: list[bool] = []
        lease = await client.acquire("orders", ttl=SOON)
        with pytest.raises(LeaseLost):  # noqa: PT012
            async with lease, asyncio.TaskGroup() as group:
                group.create_task(work())
                group.create_task(work())
        assert cancelled == [True, True]

    go(main)


@twin(bugs.the_cancellation_comes_out)
def test_inside_a_task_group(go: Callable[[Main], None]) -> None:
    """The group would swallow the loss as a cancellation."""

    async def main(client: fencer.AsyncFencer) -> None:
        async def work() -> None:
            async with await client.acquire("orders", ttl=SOON):
                await asyncio.sleep(30)

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(work())
        assert caught.group_contains(LeaseLost)

    go(main)


@twin(bugs.leaves_in_silence)
def test_a_body_that_swallows_the_cancellation(go: Callable[[Main], None]) -> None:
    """A body with a broad except would hide the loss."""

    async def main(client: fencer.AsyncFencer) -> None:
        with pytest.raises(LeaseLost):  # noqa: PT012
            async with await client.acquire("orders", ttl=SOON):
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    pass
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    go(main)


@twin(bugs.hides_the_error_of_the_body)
def test_a_body_that_fails_on_being_cancelled(go: Callable[[Main], None]) -> None:
    """The body's own error would be hidden."""

    async def main(client: fencer.AsyncFencer) -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with await client.acquire("orders", ttl=SOON):
                try:
                    await asyncio.sleep(30)
                finally:
                    print(1 / 0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    go(main)


@pytest.mark.parametrize("swallows", [False, True])
@twin(bugs.cancels_who_has_left)
def test_the_body_finds_out_by_itself(go: Callable[[Main], None], swallows: bool) -> None:
    """A body that blocked, and then looks, would be cancelled after it has left the block."""

    async def main(client: fencer.AsyncFencer) -> None:
        with pytest.raises(LeaseLost):  # noqa: PT012
            async with await client.acquire("orders", ttl=SOON) as lease:
                time.sleep(2 * SOON)
                try:
                    lease.check()
                except LeaseLost:
                    if not swallows:
                        raise
        for _ in range(5):
            await asyncio.sleep(0.01)

    go(main)


@twin(bugs.cancels_no_body)
def test_a_body_that_blocks_past_the_end(go: Callable[[Main], None]) -> None:
    """A loss during a blocked event loop would go unnoticed."""

    async def main(client: fencer.AsyncFencer) -> None:
        worked_on: list[bool] = []
        with pytest.raises(LeaseLost):  # noqa: PT012
            async with await client.acquire("orders", ttl=0.3, keep_alive=True) as lease:
                time.sleep(0.5)
                await asyncio.sleep(0.3)
                worked_on.append(True)
        assert lease.lost.is_set()
        assert not worked_on

    go(main)


FOUND_OUT_BY_A_THREAD = """
import asyncio, sys, time
import fencer

async def main():
    async with fencer.connect_async(sys.argv[1]) as client:
        lease = await client.acquire("orders", ttl=0.15)
        waiting = asyncio.create_task(lease.lost.wait())
        await asyncio.sleep(0)
        time.sleep(0.3)
        assert await asyncio.to_thread(lambda: lease.valid) is False
        assert await asyncio.wait_for(waiting, 5)

asyncio.run(main(), debug=True)
"""


@twin(bugs.tells_the_loop_that_runs_here)
def test_another_thread_may_find_out(shared_server: Server, redis_client: redis.Redis) -> None:
    """A worker thread that checks the lease would break the event loop, or not wake those in it."""
    done = run(FOUND_OUT_BY_A_THREAD, shared_server.unix_url, timeout=10)
    assert done.returncode == 0, done.stderr  # asyncio tells there how long we slept


@twin(bugs.tells_the_loop_alone, raises=(RuntimeError,))
def test_after_its_loop_a_lease_is_only_over(shared_server: Server) -> None:
    """Looking at a lease after its event loop has ended would raise."""

    async def main() -> fencer.AsyncLease:
        async with fencer.connect_async(shared_server.unix_url) as client:
            return await client.acquire("orders", ttl=SOON)

    lease = asyncio.run(main())
    time.sleep(2 * SOON)
    assert not lease.valid
    assert lease.lost.is_set()


@twin(bugs.awaits_no_callback)
def test_callbacks_may_be_coroutines(go: Callable[[Main], None]) -> None:
    """An async callback would never be awaited, or would keep the next one waiting."""

    async def main(client: fencer.AsyncFencer) -> None:
        async def hear(reason: str) -> None:
            await asyncio.sleep(0.01)
            ended.append("hear")

        async def take_long(reason: str) -> None:
            await asyncio.sleep(0.3)
            ended.append("take long")

        ended: list[str] = []
        lease = await client.acquire("orders", ttl=SOON)
        lease.on_lost(take_long)
        lease.on_lost(hear)
        await lease.lost.wait()
        await asyncio.sleep(0.6)
        assert ended == ["hear", "take long"]

    go(main)


@twin(bugs.events_for_all_loops)
def test_one_event_loop_after_another(shared_server: Server, redis_client: redis.Redis) -> None:
    """Something of the first event loop would be used in the second."""

    async def main() -> int:
        async with fencer.connect_async(shared_server.unix_url) as client:  # noqa: SIM117
            async with await client.acquire("orders", ttl=0.6, keep_alive=True) as lease:
                await asyncio.sleep(0.8)
                return lease.token

    tokens = [asyncio.run(main(), debug=True) for _ in range(2)]
    assert tokens == sorted(set(tokens))


@twin(bugs.releases_nothing_at_the_end)
def test_close_at_once_releases_what_is_kept(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """A lease that was kept for no turn of the event loop would stay held."""

    async def main() -> None:
        async with fencer.connect_async(shared_server.unix_url) as client:
            await client.acquire("orders", keep_alive=True)

    asyncio.run(main())
    assert not redis_client.exists("fencer:{orders}:lock")


@twin(bugs.only_the_keeper_releases)
def test_close_in_the_same_turn_releases_what_is_kept(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """A keeper that had no turn of the event loop yet would leave its leases held."""

    async def main() -> None:
        client = fencer.connect_async(shared_server.unix_url)
        await client.acquire("orders", keep_alive=True)
        await client.close()

    asyncio.run(main())
    assert not redis_client.exists("fencer:{orders}:lock")


@twin(bugs.keeps_nothing_after_a_close)
def test_a_client_can_be_used_again(shared_server: Server, redis_client: redis.Redis) -> None:
    """close() would leave a client that hangs, or keeps nothing alive any more."""

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(shared_server.unix_url) as driver:
            client = fencer.AsyncFencer(driver)
            for _ in range(2):
                held = await client.acquire("held", ttl=0.4)
                lease = await client.acquire("orders", ttl=1.5, keep_alive=0.3)
                again = await asyncio.wait_for(client.acquire("held", wait=5), 10)
                assert await asyncio.to_thread(is_renewed, lease)
                assert again.token > held.token
                await again.release()
                await client.close()
                assert not lease.valid

    asyncio.run(main(), debug=True)
