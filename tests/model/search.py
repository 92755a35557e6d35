"""Every state that can be reached, breadth first; and whether all come through from each."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.model.world import CLAIMS, GIVES_BACK, HOLDS, JOINS, WAITS, Broken, State, World


@dataclass(frozen=True)
class Found:
    """What a search came to: how many states and steps, and the shortest way to what is wrong."""

    states: int
    steps: int
    wrong: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        seen = f"{self.states} states, {self.steps} steps"
        if self.wrong is None:
            return f"{seen}: all is well"
        lines = [f"{number:3} {label}" for number, label in enumerate(self.trace, 1)]
        return "\n".join([f"{seen}: {self.wrong}, after", *lines])


@contextmanager
def _no_collection() -> Iterator[None]:
    """There are no cycles here, and to look for them among so many objects takes long."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_no_collection()
def search(world: World, most: int = 1_000_000) -> Found:
    """Look at every state. The first thing that is wrong ends the search.

    That somebody waits for ever is seen last: of each state in which a live client wants the lease
    it is asked whether it can get it without a fault, and without any message, by time alone.
    """
    numbers = {world.start: 0}
    came: list[tuple[int, str]] = [(-1, "")]
    states = [world.start]
    before: list[list[int]] = [[]]
    todo = deque([0])
    count = 0
    while todo:
        at = todo.popleft()
        try:
            for label, state, heals in world.steps(states[at]):
                count += 1
                number = numbers.get(state)
                if number is None:
                    number = numbers[state] = len(states)
                    assert number < most, f"more than {most} states"
                    states.append(state)
                    came.append((at, label))
                    before.append([])
                    todo.append(number)
                if heals:
                    before[number].append(at)
        except Broken as wrong:
            return Found(len(states), count, str(wrong), _trace(came, at))
    for who in range(len(world.start.clients)):
        stuck = _stuck(states, before, who)
        if stuck is not None:
            wrong_thing = f"{who} waits for ever"
            return Found(len(states), count, wrong_thing, _trace(came, stuck))
    return Found(len(states), count)


def _stuck(states: list[State], before: list[list[int]], who: int) -> int | None:
    """The first state in which this client wants the lease and cannot get it any more."""
    good = [state.clients[who].phase == HOLDS for state in states]
    todo = [number for number, is_good in enumerate(good) if is_good]
    while todo:
        for number in before[todo.pop()]:
            if not good[number]:
                good[number] = True
                todo.append(number)
    wants = JOINS, WAITS, CLAIMS, GIVES_BACK
    return next(
        (n for n, state in enumerate(states) if not good[n] and state.clients[who].phase in wants),
        None,
    )


def _trace(came: list[tuple[int, str]], at: int) -> tuple[str, ...]:
    labels: list[str] = []
    while at > 0:
        at, label = came[at]
        labels.append(label)
    return tuple(reversed(labels))
