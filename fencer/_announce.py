"""Announcing: a new holder shows its token to its guards before it begins to read.

From then on nothing that it reads there can be changed by the holder before it. The rule, for both
APIs:

- Every guard accepts the new token before `acquire` returns.
- A guard that has accepted a larger one is ahead of the store, say because a store that counts
  densely has lost its data: the name is advanced past that number, which ends the lease, and the
  lease is granted anew, once, within what is left of the wait.
- Whatever else a guard raises, a loss of the lease meanwhile, a cancellation: the lease is given
  back, and the exception comes out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from fencer import _check
from fencer._lease import BaseLease
from fencer._steps import Stamp, Steps
from fencer.errors import InvalidArgument, StaleToken
from fencer.guards._base import AsyncGuard, Guard

L = TypeVar("L", bound=BaseLease)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is to be announced to whom.

    Attributes:
        guards: as `checked` returned them.
        wait: seconds to wait for the lease, at most; ``None`` is for ever.
        advance: the steps by which the name is advanced past a number.
        clock: as in the protocol.
    """

    guards: tuple[Guard | AsyncGuard, ...]
    wait: float | None
    advance: Callable[[int], Steps[object]]
    clock: Callable[[], float]

    def steps(
        self, grant: Callable[[float | None], Steps[L]], drop: Callable[[L], object]
    ) -> Steps[L]:
        """Get the lease and announce it; see the module.

        Args:
            grant: the steps to a lease, kept alive if it is to be, within so many seconds.
            drop: keeps the lease alive no longer.
        """
        begun = self.clock()
        lease = yield from grant(self.wait)
        ahead = yield from self._shown(lease, drop)
        if ahead is None:
            return lease
        took = self.clock() - begun
        lease = yield from grant(None if self.wait is None else max(0.0, self.wait - took))
        still = yield from self._shown(lease, drop, after=ahead)
        assert still is None
        return lease

    def _shown(
        self, lease: L, drop: Callable[[L], object], after: int | None = None
    ) -> Steps[int | None]:
        """Show the lease to all guards; if one was ahead, end it, and return how far.

        With ``after``, the number of the first time, that is an error.
        """
        try:
            try:
                for guard in self.guards:
                    yield from self._stamp(guard, lease)
                    lease.check()
                return None
            except StaleToken as error:
                self._refuse_to_advance(error, after)
                # First this, and then the release: whoever is next in line gets a token that the
                # guard will take.
                yield from self.advance(error.highest)
                yield from lease._releasing()
                drop(lease)
                return error.highest
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                yield from lease._leaving(error)
            drop(lease)
            raise

    @staticmethod
    def _refuse_to_advance(error: StaleToken, after: int | None) -> None:
        if error.highest > _check.MAX_BEYOND:
            error.add_note("No token beyond that can be issued: repair the guard's mark.")
            raise error
        if after is not None:
            error.add_note(
                f"The name had been advanced past {after}, which a guard showed before, and the "
                "lease been granted anew. It has been given back; acquire once more to try again."
            )
            raise error

    def _stamp(self, guard: Guard | AsyncGuard, lease: BaseLease) -> Steps[None]:
        try:
            yield Stamp(guard, lease)
        except StaleToken:
            # A slow guard may have outlived the lease: then a successor was there, and the name
            # must not be advanced past it.
            lease.check()
            raise


def checked(guards: Iterable[Guard | AsyncGuard], *, tasks: bool) -> tuple[Any, ...]:
    """Return the guards, if they are such and can be asked.

    Raises:
        InvalidArgument: one is no guard, or is one for asyncio though there are no tasks.
    """
    try:
        found = tuple(guards)
    except TypeError:
        raise InvalidArgument(f"guards must be a list of guards, not {guards!r}") from None
    for guard in found:
        if isinstance(guard, type) or not isinstance(guard, Guard):
            raise InvalidArgument(f"{guard!r} is no guard: it lacks resource, check or highest")
        if not tasks and _is_for_tasks(guard):
            raise InvalidArgument(
                f"the guard of {guard.resource!r} is one for asyncio: acquire with AsyncFencer, or "
                "take the guard's twin for threads"
            )
    return found


def _is_for_tasks(guard: Guard | AsyncGuard) -> bool:
    return inspect.iscoroutinefunction(guard.check)
