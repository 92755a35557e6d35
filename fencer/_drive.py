"""Carries out the steps of the protocol: `run` with threads, `run_async` on asyncio.

A driver knows nothing of servers; what a step does there, a wire (`fencer._wire`) does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Doer(Protocol):
    """What carries out a step: a wire, as a rule."""

    def do(self, step: Any, /) -> Any:
        """Carry it out, and return what it comes to."""


class AsyncDoer(Protocol):
    """The same on asyncio."""

    def do(self, step: Any, /) -> Coroutine[Any, Any, Any]:
        """Carry it out, and return what it comes to."""


def run(steps: Generator[Any, Any, T], wire: Doer) -> T:
    """Carry out the steps, and return what they come to."""
    outcome: Any = None
    fault: BaseException | None = None
    while True:
        try:
            step = steps.send(outcome) if fault is None else steps.throw(fault)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            fault = None  # A frame that holds its own exception is a cycle.
        try:
            outcome = wire.do(step)
        except BaseException as error:
            fault = error


async def run_async(steps: Generator[Any, Any, T], wire: AsyncDoer) -> T:
    """Carry out the steps, and return what they come to.

    If the task is cancelled, the steps hear of it and clean up; that is not cancelled once more.
    """
    outcome: Any = None
    fault: BaseException | None = None
    cancelled = False
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    while True:
        try:
            step = steps.send(outcome) if fault is None else steps.throw(fault)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            fault = None
        try:
            outcome = await (to_the_end(wire.do(step)) if cancelled else wire.do(step))
            if task and task.cancelling() > before and not cancelled:
                # wait_for, in the driver, swallows a cancellation that comes with its result.
                raise asyncio.CancelledError
        except BaseException as error:
            cancelled = cancelled or isinstance(error, asyncio.CancelledError)
            fault = error


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Do the work even if this task is cancelled meanwhile, and only then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.cancelled() or task.exception()  # or asyncio would complain that nobody asked
        raise cancelled
    return task.result()
