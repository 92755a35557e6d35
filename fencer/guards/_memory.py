"""The guard for what lives in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fencer.guards._base import BaseGuard, Mark, Token


class MemoryGuard(BaseGuard):
    """Lets only the newest holder at something in this process's memory. Any thread may use it.

    The mark ends with the process: use it for what ends with the process, too.

    Args:
        resource: what is protected.
        name: the name of the leases whose tokens count here; by default the resource's own name.
        keys: take only what is sealed with one of these.
    """

    def __init__(
        self, resource: str, *, name: str | None = None, keys: Sequence[bytes] | None = None
    ) -> None:
        super().__init__(resource, name=name, keys=keys)
        self._mark = Mark()
        self._writing = threading.RLock()

    @contextmanager
    def begin(self, token: Token) -> Iterator[None]:
        """Accept the token, and keep every other writer out until the block ends.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before; the block
                is not entered.
            InvalidArgument: it is no token, or one of another name.
        """
        claim = self._claim(token)
        with self._writing:
            self._mark = self._mark.accept(claim, self.resource)
            yield

    def check(self, token: Token) -> None:
        """Accept the token, or refuse it; `begin` keeps others out while you write.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before.
            InvalidArgument: it is no token, or one of another name.
        """
        with self.begin(token):
            pass

    def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none."""
        return self._mark.highest
