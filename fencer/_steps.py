"""The steps of which the protocol is made, and what waiters hear.

`fencer._protocol` yields them; a driver (`fencer._drive`) has a wire (`fencer._wire`) carry them
out, and sends back what each comes to.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fencer._scripts import Script


@dataclass(frozen=True, slots=True)
class Call:
    """Run a script. The driver answers with its reply, or throws a `StoreError`."""

    script: Script
    keys: tuple[str | bytes, ...]
    args: tuple[str | bytes | int | float, ...]
    confirm: Confirm | None = None
    """What to ask next on the same connection. The driver then answers with a `Confirmed`."""
    packed: list[bytes] | None = field(default=None, init=False, repr=False, compare=False)
    """The bytes of its request, once a wire has built them."""


@dataclass(frozen=True, slots=True)
class Confirm:
    """Questions about what a script has done, such as ``WAIT``, for it if it did anything.

    They go out in one trip, after the script's reply and on its connection: the server answers for
    what this connection has written.
    """

    status: str
    """They are asked if the script's reply begins with this."""
    questions: tuple[tuple[str | int, ...], ...]
    seconds: float
    """How long the server may take to answer, beside the usual."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What came of a `Call` with a `Confirm`."""

    reply: Any
    answers: list[Any] | None
    """To each question its answer, or the `StoreError` that it met; ``None`` if none was asked."""


@dataclass(frozen=True, slots=True)
class Command:
    """Run a command that only reads. The driver answers as to a `Call`."""

    words: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Run several calls in one trip.

    The driver answers with a list: for each call its reply, or the `StoreError` that it met.
    """

    calls: tuple[Call, ...]
    timeout: float
    """Seconds to wait for the replies."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Enter:
    """Listen for a grant. The driver answers with the channel, or ``None`` if it takes too long."""

    grant: str
    seconds: float
    """How long to wait for the server to confirm it."""
    name: str
    """What is waited for: on a Cluster it says where to listen."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a `Wakeup` of a grant that was entered. The driver answers with it, or ``None``."""

    grant: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Leave:
    """Listen for a grant no longer."""

    grant: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Somebody else holds the lease that is waited for. Only an acquire that reports yields it."""

    holder: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """Have a guard accept a lease. The driver throws what it raises."""

    guard: Any
    lease: Any


@dataclass(frozen=True, slots=True)
class Wakeup:
    """What a waiter hears.

    Attributes:
        kind: ``GRANT``, you have it, with its token and since_ms; ``HEAD``, you are among the first
            in line, with the milliseconds until the lease ends and your place; ``LOOK``, something
            may have been missed.
        numbers: as the kind says.
    """

    kind: str
    numbers: tuple[int, ...] = ()


T = TypeVar("T")
Step = Call | Command | Batch | Sleep | Enter | Wait | Leave | Seen | Stamp
Steps = Generator[Step, Any, T]


def wakeup(message: bytes | str) -> tuple[str, Wakeup]:
    """Read what a script published: the grant that it is for, and what it says.

    Anybody can publish: what no script of ours did is for nobody.
    """
    try:
        kind, grant, first, second = text(message).split(" ")
        return grant, Wakeup(kind, (int(first), int(second)))
    except ValueError:
        return "", Wakeup("LOOK")


def text(value: Any) -> str:
    """A string of a reply; with ``decode_responses`` the driver has made it one already."""
    return value.decode() if isinstance(value, bytes) else str(value)
