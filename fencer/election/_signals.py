"""Waiting in the main thread for a signal that asks for the end."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[float | None], bool]]:
    """Hear SIGTERM and SIGINT; yields a function that waits for one, at most so many seconds.

    The second one acts as it would have without this. Only in the main thread.

    A handler that sets an event would not do: a signal that comes right before the thread blocks
    does not wake it, and one that comes while it handles the event's lock leaves it locked. A byte
    in a pipe does neither.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = {number: signal.signal(number, lambda *_: restore()) for number in _NUMBERS}
    wakeup = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def wait(seconds: float | None = None) -> bool:
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([ours], [], [], left)[0]:
                return False
            if set(_NUMBERS) & set(os.read(ours, 4096)):
                return True

    try:
        yield wait
    finally:
        restore()
        signal.set_wakeup_fd(wakeup)
        os.close(theirs)
        os.close(ours)
