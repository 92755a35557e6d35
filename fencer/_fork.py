"""What must be forgotten in a forked child: threads that are not there, lines of the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Forgetful(Protocol):
    def forget(self) -> None: ...


_known: weakref.WeakSet[_Forgetful] = weakref.WeakSet()


def forget_in_child(thing: _Forgetful) -> None:
    """Call ``thing.forget()`` in every child that is forked from now on."""
    _known.add(thing)


def _after_fork() -> None:
    for thing in list(_known):
        thing.forget()


os.register_at_fork(after_in_child=_after_fork)
