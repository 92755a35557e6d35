"""What all guards share: what they are shown, and the one rule by which they accept or refuse.

A guard belongs to a resource and remembers a `Mark`: the highest token that it has accepted, and
the grant that it belonged to. Each guard keeps the mark where its resource is, so that checking the
token and writing are one atomic step of the resource's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from fencer import _check
from fencer._lease import BaseLease
from fencer.errors import InvalidArgument, StaleToken
from fencer.sequencer import Sequencer

Token: TypeAlias = int | BaseLease | Sequencer | bytes
"""What every guard takes: a bare token, a lease, a sequencer, or a packed sequencer."""


@runtime_checkable
class Guard(Protocol):
    """What every guard can do. Yours, too: see `fencer.guards.testing`."""

    @property
    def resource(self) -> str:
        """What is protected."""

    def check(self, token: Token) -> None:
        """Accept the token, or raise `StaleToken`; write nothing else."""

    def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none."""


@runtime_checkable
class AsyncGuard(Protocol):
    """The same for asyncio."""

    @property
    def resource(self) -> str:
        """What is protected."""

    async def check(self, token: Token) -> None:
        """Accept the token, or raise `StaleToken`; write nothing else."""

    async def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none."""


class Claim(NamedTuple):
    """A token, and its grant if it is known (else an empty string)."""

    token: int
    grant: str


class Mark(NamedTuple):
    """The highest token accepted, and its grant if it is known (else an empty string)."""

    highest: int = 0
    grant: str = ""

    def accept(self, claim: Claim, resource: str) -> Mark:
        """Return the mark after the claim: this rule decides in every guard (and in guard.lua).

        Raises:
            StaleToken: the token is smaller than the mark, or equal to it and of another grant.
        """
        rival = claim.grant and self.grant and claim.grant != self.grant
        if claim.token < self.highest or (claim.token == self.highest and rival):
            raise StaleToken(resource, claim.token, self.highest)
        if claim.token == self.highest:
            return Mark(self.highest, claim.grant or self.grant)
        return Mark(*claim)


class BaseGuard:
    """The names and the keys of a guard, and the reading of what it is shown.

    Args:
        resource: what is protected, 1 to 512 bytes; guards of the same resource share one mark.
        name: the name of the leases whose tokens count here; by default the resource's own name.
        keys: where given, only what is sealed with one of them counts (several: for rotation), as
            bytes from `Sequencer.pack`; and a lease itself, which nobody can forge in this process.

    Raises:
        InvalidArgument: an argument is not allowed.
    """

    def __init__(
        self, resource: str, *, name: str | None = None, keys: Sequence[bytes] | None = None
    ) -> None:
        self._resource = _check.name(resource, "resource")
        self._name = self._resource if name is None else _check.name(name)
        self._keys = None if keys is None else _checked_keys(keys)

    @property
    def resource(self) -> str:
        """What is protected."""
        return self._resource

    @property
    def name(self) -> str:
        """The name of the leases whose tokens count here."""
        return self._name

    def _claim(self, token: Token) -> Claim:
        """Read what a caller showed.

        Raises:
            InvalidArgument: it is no token, one of another name, or not sealed as it must be.
        """
        if isinstance(token, bytes):
            token = Sequencer.unpack(token, self._keys)
        elif self._keys is not None and not isinstance(token, BaseLease):
            raise InvalidArgument(
                f"the guard of {self._resource!r} takes only sealed sequencers, as bytes from "
                f"lease.sequencer().pack(key), not {type(token).__name__}"
            )
        if isinstance(token, BaseLease | Sequencer):
            if token.name != self._name:
                raise InvalidArgument(
                    f"the guard of {self._resource!r} takes the tokens of {self._name!r}, not of "
                    f"{token.name!r}: tokens of different names cannot be compared"
                )
            return Claim(token.token, token.grant)
        if not isinstance(token, int):
            raise InvalidArgument(
                "a token is an int, a Lease, a Sequencer or a packed Sequencer, not "
                f"{type(token).__name__}"
            )
        return Claim(_check.token(token), "")


def _checked_keys(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    if isinstance(keys, str | bytes) or not keys:
        raise InvalidArgument("keys must be a list of at least one key")
    for key in keys:
        if not isinstance(key, bytes) or len(key) < 16:
            raise InvalidArgument("a key to check seals with must be at least 16 bytes")
    return tuple(keys)
