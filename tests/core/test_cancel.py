"""Interrupted at every step, against a real server: nothing held, nothing queued, no inbox left.

The n-th step is interrupted before it is carried out, or after it was and before anybody heard of
it; then the next n, until the operation gets through. On threads it is a KeyboardInterrupt. On
asyncio the task is cancelled while it waits within the step.

`Leave` does not wait for anything: on asyncio a cancellation cannot come there, on threads only
after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis

import fencer
from fencer._steps import Call, Leave, Step, Wait
from fencer._wire import AsyncWire, Wire
from fencer.embedded import Server
from fencer.errors import FencerError
from tests.ways import way  # noqa: F401

MOMENTS = ["before", "after"]
STEPS = 40


class Interruption:
    """Which step is interrupted, and what happens in the world before the first `Wait`."""

    def __init__(self, number: int, moment: str, at_wait: Callable[[], object]) -> None:
        self.left = number
        self.moment = moment
        self.at_wait: Callable[[], object] | None = at_wait
        self.steps: list[str] = []

    def due(self, step: Step, moment: str) -> bool:
        if moment == "before":
            self.steps.append(type(step).__name__)
            if isinstance(step, Wait) and self.at_wait is not None:
                act, self.at_wait = self.at_wait, None
                act()
            self.left -= 1
        if isinstance(step, Leave) and self.moment == "before":
            return False
        return self.left == 0 and moment == self.moment


class InterruptedWire(Wire):
    """Raises KeyboardInterrupt at one step."""

    plan: Interruption | None = None

    def do(self, step: Step) -> Any:
        return self.call(step) if isinstance(step, Call) else self._perhaps(super().do, step)

    def call(self, call: Call) -> Any:
        return self._perhaps(super().call, call)

    def _perhaps(self, act: Callable[[Any], Any], step: Step) -> Any:
        plan = self.plan
        if plan is not None and plan.due(step, "before"):
            raise KeyboardInterrupt
        outcome = act(step)
        if plan is not None and plan.due(step, "after"):
            raise KeyboardInterrupt
        return outcome


class CancelledWire(AsyncWire):
    """Cancels the task that it is told at one step."""

    plan: Interruption | None = None
    task: asyncio.Task[Any] | None = None

    async def do(self, step: Step) -> Any:
        if isinstance(step, Call):
            return await self.call(step)
        return await self._perhaps(super().do, step)

    async def call(self, call: Call) -> Any:
        return await self._perhaps(super().call, call)

    async def _perhaps(self, act: Callable[[Any], Awaitable[Any]], step: Step) -> Any:
        plan = self.plan
        if plan is not None and plan.due(step, "before"):
            await self._cancel()
        outcome = await act(step)
        if plan is not None and plan.due(step, "after") and not isinstance(step, Leave):
            await self._cancel()
        return outcome

    async def _cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
def rival(shared_server: Server, redis_client: redis.Redis) -> Iterator[fencer.Fencer]:
    with fencer.connect(shared_server.unix_url, holder="rival") as client:
        yield client


class Story:
    """What an acquire meets."""

    def __init__(
        self, rival: fencer.Fencer, *, ttl: float | None, wait: float, frees: bool = False
    ) -> None:
        self.rival = rival
        self.ttl = ttl
        self.wait = wait
        self.frees = frees
        self.lease: fencer.Lease | None = None

    def begin(self) -> None:
        if self.ttl is not None:
            self.lease = self.rival.acquire("orders", ttl=self.ttl)

    def at_wait(self) -> None:
        if self.frees and self.lease is not None:
            self.lease.release()

    def end(self, wakeups: Any, doing: str) -> None:
        """Nothing is left; then make all free for the next one."""
        status = self.rival.inspect("orders")
        assert status.holder in (None, "rival"), f"left held, {doing}"
        assert status.waiters == 0, f"left in line, {doing}"
        assert not wakeups._inboxes, f"left listening, {doing}"
        if self.lease is not None:
            self.lease.release()
        self.rival.revoke("orders")


STORIES: dict[str, dict[str, Any]] = {
    "free": {"ttl": None, "wait": 0},
    "free, would wait": {"ttl": None, "wait": 10},
    "held": {"ttl": 10, "wait": 0},
    "timeout": {"ttl": 10, "wait": 0.01},
    "handed over": {"ttl": 10, "wait": 10, "frees": True},
    "ends in silence": {"ttl": 0.03, "wait": 10},
}


@pytest.fixture(params=STORIES, ids=lambda name: name.replace(" ", "-"))
def story(request: pytest.FixtureRequest, rival: fencer.Fencer) -> Story:
    return Story(rival, **STORIES[request.param])


@pytest.mark.parametrize("moment", MOMENTS)
def test_acquire_interrupted_at_each_step(shared_server: Server, story: Story, moment: str) -> None:
    """Ctrl-C at a bad moment would leave a lease held, or a dead place in line."""
    failures: list[str] = []
    with fencer.connect(shared_server.unix_url, holder="me") as client:
        client._wire = wire = InterruptedWire(client.client, client._wakeups)
        for number in range(1, STEPS):
            story.begin()
            wire.plan = Interruption(number, moment, story.at_wait)
            interrupted = False
            try:
                lease = client.acquire("orders", wait=story.wait)
            except KeyboardInterrupt:
                interrupted = True
            except FencerError:
                pass
            else:
                wire.plan = None
                assert lease.release()
            steps, wire.plan = ", ".join(["", *wire.plan.steps] if wire.plan else []), None
            try:
                story.end(client._wakeups, f"{moment} step {number}{steps}")
            except AssertionError as error:
                failures.append(str(error).partition("\n")[0])
                client._wakeups._inboxes.clear()
                story.rival.revoke("orders")
                story.rival.client.flushall()
            if not interrupted:
                break
        else:
            pytest.fail("it never gets through")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("moment", MOMENTS)
def test_acquire_cancelled_at_each_step(shared_server: Server, story: Story, moment: str) -> None:
    """A cancelled task would leave a lease held, or a dead place in line."""
    failures: list[str] = []

    async def once(client: fencer.AsyncFencer, number: int) -> bool:
        wire = client._wire
        assert isinstance(wire, CancelledWire)
        story.begin()
        wire.plan = plan = Interruption(number, moment, story.at_wait)
        wire.task = asyncio.create_task(client.acquire("orders", wait=story.wait))
        await asyncio.wait([wire.task])
        wire.plan = None
        cancelled = wire.task.cancelled()
        if not cancelled and wire.task.exception() is None:
            assert await wire.task.result().release()
        try:
            story.end(client._wakeups, f"{moment} step {number}, {', '.join(plan.steps)}")
        except AssertionError as error:
            failures.append(str(error).partition("\n")[0])
            client._wakeups._inboxes.clear()
            story.rival.client.flushall()
        return cancelled or plan.left <= 0

    async def main() -> None:
        async with fencer.connect_async(shared_server.unix_url, holder="me") as client:
            client._wire = CancelledWire(client.client, client._wakeups)
            for number in range(1, STEPS):
                if not await once(client, number):
                    return
            pytest.fail("it never gets through")

    asyncio.run(main())
    assert not failures, "\n".join(failures)


def renews(lease: fencer.Lease) -> None:
    lease.renew(ttl=5.0)


def renews_as_before(lease: fencer.Lease) -> None:
    lease.renew()


def releases(lease: fencer.Lease) -> None:
    lease.release()


def leaves(lease: fencer.Lease) -> None:
    with lease:
        pass


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("act", [renews, renews_as_before, releases, leaves])
def test_a_lease_interrupted_at_each_step(
    shared_server: Server, rival: fencer.Fencer, act: Callable[[fencer.Lease], None], moment: str
) -> None:
    """Ctrl-C in a renew would block all later ones; in a release it would leave the lease held."""
    with fencer.connect(shared_server.unix_url, holder="me") as client:
        client._wire = wire = InterruptedWire(client.client, client._wakeups)
        for number in range(1, STEPS):
            wire.plan = None
            lease = client.acquire("orders")
            wire.plan = Interruption(number, moment, lambda: None)
            interrupted = False
            try:
                act(lease)
            except KeyboardInterrupt:
                interrupted = True
            wire.plan = None
            if act in (renews, renews_as_before):
                assert lease.valid
                lease.renew()
                assert lease.release()
            assert not rival.inspect("orders").held, f"left held, {moment} step {number}"
            if not interrupted:
                return
    pytest.fail("it never gets through")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    "which", ["renews", "renews as before", "releases", "leaves", "is in the body"]
)
def test_a_lease_cancelled_at_each_step(
    shared_server: Server, rival: fencer.Fencer, which: str, moment: str
) -> None:
    """A cancelled renew would block all later ones; a cancelled release leave the lease held."""

    async def leave(lease: fencer.AsyncLease) -> None:
        async with lease:
            pass

    async def body(lease: fencer.AsyncLease) -> None:
        async with lease:
            await lease.renew()

    acts: dict[str, Callable[[fencer.AsyncLease], Awaitable[object]]] = {
        "renews": lambda lease: lease.renew(ttl=5.0),
        "renews as before": lambda lease: lease.renew(),
        "releases": lambda lease: lease.release(),
        "leaves": leave,
        "is in the body": body,
    }

    async def main() -> None:
        async with fencer.connect_async(shared_server.unix_url, holder="me") as client:
            client._wire = wire = CancelledWire(client.client, client._wakeups)
            for number in range(1, STEPS):
                wire.plan = None
                lease = await client.acquire("orders")
                wire.plan = plan = Interruption(number, moment, lambda: None)
                wire.task = asyncio.ensure_future(acts[which](lease))
                assert wire.task is not None
                await asyncio.wait([wire.task])
                wire.plan = None
                with contextlib.suppress(asyncio.CancelledError):
                    await wire.task
                if which.startswith("renews"):
                    assert lease.valid
                    await lease.renew()
                    assert await lease.release()
                assert not rival.inspect("orders").held, f"left held, {moment} step {number}"
                if plan.left > 0:
                    return
        pytest.fail("it never gets through")

    asyncio.run(main())


@pytest.mark.parametrize("wait", [0, 30])
def test_acquire_cancelled_at_each_turn_of_the_loop(
    shared_server: Server, rival: fencer.Fencer, wait: float
) -> None:
    """A cancellation that comes while the driver sends would be swallowed, and the task wait on.

    On Python 3.11 ``asyncio.wait_for``, in which redis-py sends, returns its result instead of
    raising if both come in the same turn.
    """

    async def once(client: fencer.AsyncFencer, turns: int) -> str:
        task = asyncio.create_task(client.acquire("orders", wait=wait))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.cancel():
            return ""  # it was done before
        done, _ = await asyncio.wait([task], timeout=2)
        if not done:
            task.cancel()
            await asyncio.wait([task])
            return f"waits on after {turns} turns"
        if not task.cancelled():
            return f"not cancelled after {turns} turns: {task.exception() or task.result()}"
        status = rival.inspect("orders")
        if status.holder == "me" or status.waiters:
            return f"left behind after {turns} turns: {status}"
        return ""

    async def main() -> list[str]:
        async with fencer.connect_async(shared_server.unix_url, holder="me") as client:
            found = []
            for turns in range(60):
                if wait and not rival.inspect("orders").held:
                    rival.acquire("orders", ttl=60)
                found.append(await once(client, turns))
                if not wait:
                    rival.revoke("orders")
            return [one for one in found if one]

    assert not asyncio.run(main())
