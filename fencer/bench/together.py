"""Many at once: threads and tasks of one process, each of which renews a lease of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import Any, TypeAlias

from fencer.aio import connect_async
from fencer.bench.figures import at
from fencer.bench.ready import TTL, Ready, async_client, client, errors_translated
from fencer.errors import StoreUnavailable

AT_ONCE = (1, 4, 16, 64)

Awaited: TypeAlias = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class TogetherCost:
    """What several renew at once.

    Attributes:
        workers: how many threads or tasks.
        api: ``threads`` or ``asyncio``.
        contender: ``ours``, or ``lock`` for redis-py's.
        per_second: renewals of all of them together.
        p50_us, p99_us: microseconds for one of them.
    """

    workers: int
    api: str
    contender: str
    per_second: float
    p50_us: float
    p99_us: float


def together_costs(
    url: str,
    workers: Sequence[int] = AT_ONCE,
    *,
    seconds: float = 1.0,
    told: Callable[[int, int], None] = lambda done, turns: None,
) -> list[TogetherCost]:
    """Measure threads and tasks that renew at the same time.

    Args:
        url: a server, as `fencer.connect` takes it.
        workers: how many at once, each 1 or more.
        seconds: how long to measure each.
        told: as for `run`.

    Raises:
        StoreError: the server refused or cannot be reached.
        InvalidArgument: the URL cannot be read.
    """
    costs: list[TogetherCost] = []
    whole = 4 * len(workers)
    for count in workers:
        for contender in ("ours", "lock"):
            told(len(costs), whole)
            with errors_translated(), contextlib.ExitStack() as opened:
                renewals = _in_threads(Ready(url, opened), contender, count)
                begun = perf_counter()
                times = _threads(renewals, seconds)
                costs.append(_cost(count, "threads", contender, times, perf_counter() - begun))
            told(len(costs), whole)
            with errors_translated(), contextlib.ExitStack() as opened:
                ready = Ready(url, opened)
                times, took = ready.loop.run(_tasks(ready, contender, count, seconds))
                costs.append(_cost(count, "asyncio", contender, times, took))
    told(whole, whole)
    return costs


def _in_threads(ready: Ready, contender: str, count: int) -> list[Callable[[], Any]]:
    names = [f"together-{number}" for number in range(count)]
    if contender == "ours":
        return [ready.lease(name).renew for name in names]
    driver = ready.opened.enter_context(client(ready.url))
    # Each is acquired here and renewed in a thread of its own.
    locks = [driver.lock(ready.key(name), timeout=TTL, thread_local=False) for name in names]
    for lock in locks:
        lock.acquire()
    return [lock.reacquire for lock in locks]


def _threads(renewals: Sequence[Callable[[], Any]], seconds: float) -> list[int]:
    times: list[list[int]] = [[] for _ in renewals]
    failed: list[BaseException] = []
    start = threading.Barrier(len(renewals))

    def again_and_again(renew: Callable[[], Any], own: list[int]) -> None:
        try:
            start.wait()
            until = perf_counter_ns() + int(seconds * 1e9)
            while (begun := perf_counter_ns()) < until or not own:
                renew()
                own.append(perf_counter_ns() - begun)
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=again_and_again, args=each)
        for each in zip(renewals, times, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [each for own in times for each in own]


async def _tasks(
    ready: Ready, contender: str, count: int, seconds: float
) -> tuple[list[int], float]:
    async with contextlib.AsyncExitStack() as opened:
        names = [f"together-{number}" for number in range(count)]
        renewals: list[Awaited]
        if contender == "ours":
            store = connect_async(ready.url, namespace=ready.namespace, keep=2 * TTL)
            opened.push_async_callback(store.close)
            renewals = [(await store.acquire(name, ttl=TTL)).renew for name in names]
        else:
            driver = async_client(ready.url)
            opened.push_async_callback(driver.aclose)
            locks = [driver.lock(ready.key(name), timeout=TTL) for name in names]
            for lock in locks:
                await lock.acquire()
            renewals = [lock.reacquire for lock in locks]
        until = perf_counter_ns() + int(seconds * 1e9)
        begun = perf_counter()
        times = await asyncio.gather(*(_one_task(renew, until) for renew in renewals))
        return [each for own in times for each in own], perf_counter() - begun


async def _one_task(renew: Awaited, until: int) -> list[int]:
    own: list[int] = []
    while (begun := perf_counter_ns()) < until or not own:
        await renew()
        own.append(perf_counter_ns() - begun)
    return own


def _cost(
    workers: int, api: str, contender: str, times: Sequence[int], took: float
) -> TogetherCost:
    if not times:
        raise StoreUnavailable("nothing was renewed", maybe_applied=True)
    ranked = sorted(times)
    return TogetherCost(
        workers, api, contender, len(times) / took, at(ranked, 0.50), at(ranked, 0.99)
    )
