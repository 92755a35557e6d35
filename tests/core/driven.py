"""Drives the generators of the core by hand, with a clock that moves only when it is told to."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from fencer._lease import BaseLease
from fencer._protocol import Granted, Protocol, Settings
from fencer._steps import Call, Step, Steps
from fencer.errors import StoreUnavailable

T = TypeVar("T")


class Clock:
    """Shows what it was set to."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Driven(Generic[T]):
    """A generator of steps that stands at its next step until it is told what came of it."""

    def __init__(self, steps: Steps[T], clock: Clock) -> None:
        self._steps = steps
        self._clock = clock
        self._step: Step | None = None
        self._result: list[T] = []
        self.error: BaseException | None = None
        self.answer()

    @property
    def step(self) -> Step:
        """The step that waits for its outcome."""
        assert self._step is not None, f"it has ended: {self._result or self.error!r}"
        return self._step

    @property
    def result(self) -> T:
        """What the steps came to."""
        if self.error is not None:
            raise self.error
        assert self._result, f"it still waits for {self._step}"
        return self._result[0]

    @property
    def ended(self) -> bool:
        return self._step is None

    def call(self, script: str) -> tuple[Any, ...]:
        """The arguments of the call that is wanted now."""
        assert isinstance(self.step, Call), f"not a call: {self.step}"
        assert self.step.script.name == script
        return self.step.args

    def answer(self, outcome: object = None, *, after: float = 0.0) -> None:
        """Send the outcome of the step, so many seconds later."""
        self._go(lambda: self._steps.send(outcome), after)

    def fail(self, error: BaseException, *, after: float = 0.0) -> None:
        """Throw what the step failed with."""
        self._go(lambda: self._steps.throw(error), after)

    def _go(self, act: Any, after: float) -> None:
        self._clock.now += after
        try:
            self._step = act()
        except StopIteration as stop:
            self._step, self._result = None, [stop.value]
        except BaseException as error:
            self._step, self.error = None, error


class Told(BaseLease):
    """A lease that notes when it told of its loss."""

    told: tuple[float, str] | None = None

    def _announce(self, reason: str) -> None:
        assert self.told is None, "a loss is told once"
        self.told = self._protocol.clock(), reason


def unavailable(maybe_applied: bool = True) -> StoreUnavailable:
    """No answer."""
    return StoreUnavailable("cut", maybe_applied=maybe_applied)


def protocol(clock: Clock) -> Protocol:
    """The core, on a clock of the test."""
    return Protocol(Settings(clock=clock))


def told_lease(core: Protocol, name: str = "orders", ttl: float = 10.0, token: int = 7) -> Told:
    """A lease that was granted just now."""
    ttl_ms = round(ttl * 1000)
    deadline = core.clock() + core.belief(ttl_ms)
    return Told(core, Granted(name, token, "ab" * 16, "me", ttl_ms, {}, 1, deadline))
