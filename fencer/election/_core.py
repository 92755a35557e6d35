"""The campaign: how a candidate becomes the leader, stays it, and steps down. Written once, here.

A `Campaign` yields steps (`Obtain`, `Look`, `Tell`, `Hold`, `LetGo`, `GiveUp`, `Rest`), which a
thread or a task carries out. Its rules:

- ``on_elected`` runs after a grant that the store has confirmed, and whose token the guards have
  seen; ``on_lost`` once after it, for every term, and never at the same time.
- A leader that is asked to stop renews no more, lets ``on_lost`` come to its end, and only then
  releases. If that hangs, the lease ends by itself.
- A leader that has lost its lease hears so before another can have it.
- Whoever steps down leads no more from before ``on_lost`` on: no new task is let in.
- A candidate that has stopped is started anew as another one, which waits for the end of the first.
- Whoever cannot reach the store tries on, and says so once.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from fencer import _check
from fencer._keeper import heartbeat as checked_heartbeat
from fencer.errors import FencerError, InvalidArgument, StoreError, StoreUnavailable
from fencer.records import Leader

logger = logging.getLogger("fencer.election")


STOPPED = "the election was stopped"
FAILED = "on_elected failed"

_BROKEN = 0.5
"""Seconds without an answer after which a waiter says so."""


@dataclass(frozen=True, slots=True)
class Obtain:
    """Wait in line for the lease. Answered with it, or with ``None`` if the candidate must stop."""


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the store who leads. Answered with a `Leader` or ``None``."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Run a callback to its end. What it raises is thrown into the campaign."""

    callback: Callable[..., Any]
    argument: Any


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait until the lease has ended, or the leader must stop."""

    lease: Any


@dataclass(frozen=True, slots=True)
class LetGo:
    """From now on, renew the lease no more."""

    lease: Any


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Release the lease."""

    lease: Any


@dataclass(frozen=True, slots=True)
class Rest:
    """Do nothing for a while, or until the candidate must stop."""

    seconds: float


Step: TypeAlias = Obtain | Look | Tell | Hold | LetGo | GiveUp | Rest
T = TypeVar("T")
Steps: TypeAlias = Generator[Step, Any, T]


class Stopped(BaseException):
    """Takes a candidate that must stop out of the line."""


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of an election, in seconds, checked against each other.

    Raises:
        InvalidArgument: a leader that misses one heartbeat would have no time for another, or a
            candidate would look for the leader less often than once per ttl.
    """

    ttl: float
    heartbeat: float
    retry_interval: float

    @classmethod
    def checked(cls, ttl: float, heartbeat: float | None, retry_interval: float) -> Timings:
        """Check the times; a heartbeat of ``None`` is ttl/3."""
        ttl_ms = _check.ttl_ms(ttl)
        beat = checked_heartbeat(True if heartbeat is None else heartbeat, ttl_ms)
        assert beat is not None
        _check.number("retry_interval", retry_interval, 0.01, _check.MAX_TTL)
        if retry_interval > ttl:
            raise InvalidArgument(
                f"retry_interval={retry_interval:g} is longer than the ttl of {ttl:g} s: where a "
                "wake-up is missed, there would be no leader for longer than that"
            )
        return cls(ttl_ms / 1000, beat, float(retry_interval))


@dataclass(frozen=True, slots=True)
class Settings:
    """What stays the same from one start of an election to the next."""

    name: str
    timings: Timings
    on_elected: Callable[..., Any] | None
    on_lost: Callable[..., Any] | None
    on_leader_change: Callable[..., Any] | None


class Campaign:
    """One candidate, from its start to its end: its lease while it leads, and the steps it takes.

    Attributes:
        lease: what it leads with, until ``on_lost`` has come to its end.
        leading: whether it leads and does not step down.
        stopping: whether it must stop; whoever sets it ends the step that is under way.
    """

    def __init__(self, settings: Settings, instance_id: str) -> None:
        self.settings = settings
        self.instance_id = instance_id
        self.lease: Any = None
        self.leading = False
        self.stopping = False
        self._in_trouble = False
        self._unheard_since: float | None = None
        self._leader: str | None = None

    def run(self) -> Steps[None]:
        """Campaign until it must stop."""
        while not self.stopping:
            try:
                lease = yield Obtain()
            except FencerError as error:
                self.trouble(error)
                yield Rest(self.settings.timings.retry_interval * random.uniform(0.5, 1.0))
                continue
            if lease is not None:
                yield from self._lead(lease)

    def _lead(self, lease: Any) -> Steps[None]:
        if self.stopping:  # The grant crossed the stop.
            yield from self._give_up(lease)
            return
        self.lease, self.leading, self._leader = lease, True, None
        self.log(logging.INFO, "Became the leader!", token=lease.token)
        if (yield from self._tell(self.settings.on_elected, lease)):
            yield Hold(lease)
            reason = STOPPED if lease.valid else lease._ended().reason
        else:
            reason = FAILED
        self.leading = False
        yield LetGo(lease)
        if lease.valid:
            self.log(logging.INFO, "Releasing leadership voluntarily", token=lease.token)
        else:
            self.log(logging.WARNING, "lost leadership", token=lease.token, reason=reason)
        yield from self._tell(self.settings.on_lost, reason)
        self.lease = None
        yield from self._give_up(lease)
        if reason == FAILED:  # Let another try.
            yield Rest(self.settings.timings.retry_interval)

    def _give_up(self, lease: Any) -> Steps[None]:
        try:
            yield GiveUp(lease)
        except FencerError as error:
            self.trouble(error)

    def seen(self, holder: str) -> Steps[None]:
        """Take in that another leads."""
        if holder == self._leader:
            return
        try:
            leader: Leader | None = yield Look()
        except StoreError:
            return  # The next look will tell, as it does if the leader has changed meanwhile.
        if leader is None or leader.holder != holder:
            return
        self._leader = holder
        self.log(logging.INFO, "Another instance is the leader", leader=holder)
        yield from self._tell(self.settings.on_leader_change, leader)

    def _tell(self, callback: Callable[..., Any] | None, argument: Any) -> Steps[bool]:
        """Run a callback; whether it came to its end without an exception."""
        try:
            if callback is not None:
                yield Tell(callback, argument)
        except GeneratorExit:
            raise
        except BaseException:  # A leader whose thread had ended would be renewed for ever.
            name = getattr(callback, "__qualname__", repr(callback))
            logger.exception("The callback %s failed %s", name, self._fields({}))
            return False
        return True

    def trouble(self, error: FencerError) -> None:
        """Say that the store cannot be used, once until it can be used again."""
        if not self._in_trouble and not self.stopping:
            self._in_trouble = True
            self.log(logging.WARNING, "The store cannot be used, trying on", error=error)

    def heard(self, error: StoreError | None) -> None:
        """Take in how the store answered to an acquire. A waiter stays in line while it does not.

        A connection that turns out to be broken is made anew, and not worth a word.
        """
        if error is None:
            self._unheard_since = None
            if self._in_trouble:
                self._in_trouble = False
                self.log(logging.INFO, "The store can be used again")
        elif isinstance(error, StoreUnavailable):
            if self._unheard_since is None:
                self._unheard_since = time.monotonic()
            elif time.monotonic() - self._unheard_since > _BROKEN:
                self.trouble(error)

    def log(self, level: int, message: str, **fields: Any) -> None:
        """Log with the instance's id, in the text for ``grep`` and as ``extra`` for machines."""
        extra = {"instance_id": self.instance_id, "lease_name": self.settings.name, **fields}
        logger.log(level, "%s %s", message, self._fields(fields), extra=extra)

    def _fields(self, fields: dict[str, Any]) -> str:
        shown = {"instance_id": self.instance_id, "name": self.settings.name, **fields}
        return " ".join(f"{key}={value}" for key, value in shown.items())
