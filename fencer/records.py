"""What Fencer tells about a name: plain, frozen records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Waiter:
    """One place in the line for a name.

    Attributes:
        holder: who waits.
        age: for how many seconds.
    """

    holder: str
    age: float


@dataclass(frozen=True, slots=True)
class Status:
    """Who has the lease on a name, as the server saw it at one moment.

    Attributes:
        name: the name that was asked about.
        held: whether somebody has the lease.
        holder: who, or ``None``. A lock key that Fencer did not write shows its value here.
        token: the holder's token; ``None`` if the name is free or its info key is missing.
        remaining: seconds until the lease ends unless it is renewed; ``None`` if the name is free
            or its lock key never ends.
        issued: the last number issued for the name; 0 if the store knows none.
        waiters: how many wait for it.
        line: the first 100 of them, in order.
        info: what the info key says: the caller's own fields, and ``holder``, ``host``, ``pid``,
            ``grant``, ``ttl`` (seconds), ``token`` and ``since`` (Unix seconds).
    """

    name: str
    held: bool
    holder: str | None
    token: int | None
    remaining: float | None
    issued: int
    waiters: int = 0
    line: tuple[Waiter, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def leader(self) -> Leader | None:
        """The holder as an election sees it; ``None`` if nobody holds the lease."""
        if not self.held or self.holder is None:
            return None
        info = dict(self.info)
        for field_of_the_lease in ("holder", "grant", "ttl", "token"):
            info.pop(field_of_the_lease, None)
        return Leader(
            self.holder,
            self.token,
            info.pop("host", None),
            info.pop("pid", None),
            info.pop("since", None),
            info,
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict, fit for JSON."""
        return asdict(self) | {"line": [asdict(waiter) for waiter in self.line]}


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads an election.

    Attributes:
        holder: its readable id.
        token: its fencing token.
        host, pid: where it runs.
        since: when it was elected, Unix seconds by the server's clock.
        info: its own fields.

    All but ``holder`` are ``None`` if somebody deleted the info key, until its next heartbeat.
    """

    holder: str
    token: int | None = None
    host: str | None = None
    pid: int | None = None
    since: float | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a name's history.

    Attributes:
        at: the server's time, Unix seconds.
        event: ``grant``, ``release``, ``loss`` (the lease ended in silence; written with the next
            grant), ``revoke``, ``advance`` or ``cancel`` (an acquire whose reply never came).
        token: the token that it is about; 0 for ``cancel``.
        holder: whose lease it was, empty for an advance of a free name.
        grant: the random id of the grant.
    """

    at: float
    event: str
    token: int
    holder: str
    grant: str

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict, fit for JSON."""
        return asdict(self)
