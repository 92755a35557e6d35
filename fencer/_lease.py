"""What a lease is, apart from how it talks to the server.

All of a lease's states are here. It begins *live*. It ends once, and for good:

- *released*: by `release`, or by leaving its ``with`` block;
- *lost*: a renew was refused, or its time ran out on this machine's clock. From then on it never
  speaks for its token again, and a success that comes too late is given back.

Only one renew is under way at a time, a keeper's or a caller's: two with different ttls could
overtake each other, and the holder would believe in the longer one.

Only the process that acquired a lease may use it: in a forked child it is neither valid nor does
it send anything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

from fencer import _check
from fencer._protocol import Granted, Protocol
from fencer._steps import Call, Sleep, Steps, text
from fencer.errors import LeaseLost, StoreError, StoreUnavailable
from fencer.sequencer import Sequencer


class State(Enum):
    """See the module."""

    LIVE = "live"
    RELEASED = "released"
    LOST = "lost"


class BaseLease:
    """The state and the rules of a lease; `Lease` and `AsyncLease` add the sending."""

    def __init__(self, protocol: Protocol, granted: Granted) -> None:
        self._protocol = protocol
        self._granted = granted
        self._ttl_ms = granted.ttl_ms
        self._deadline = granted.deadline
        self._pid = os.getpid()
        self._state = State.LIVE
        self._released: bool | None = None
        self._describe = False
        self._reason = ""
        self._renewing_now = False
        self._changing = threading.RLock()
        self._callbacks: list[Callable[[str], Any]] = []
        self._believes = 0, 0.0
        self._renewal: Call | None = None
        self._renews: tuple[int, bool] | None = None

    @property
    def name(self) -> str:
        """The name it is a lease on."""
        return self._granted.name

    @property
    def token(self) -> int:
        """The fencing token: larger than that of every earlier grant of this name."""
        return self._granted.token

    @property
    def holder(self) -> str:
        """The readable id of the holder, as the lock key shows it."""
        return self._granted.holder

    @property
    def grant(self) -> str:
        """The random id of this grant: 32 hex digits."""
        return self._granted.grant

    @property
    def ttl(self) -> float:
        """For how many seconds it is granted and renewed."""
        return self._ttl_ms / 1000

    @property
    def valid(self) -> bool:
        """Whether the holder may still believe in it: no other can have been granted it yet.

        Counted from before the last request that got it or renewed it was sent, on a clock that
        runs through suspend, less a margin for clocks that run at different rates. It asks nobody,
        so it can turn false right after you looked: let a guard check the token where you write.
        """
        return self.remaining() > 0

    def remaining(self) -> float:
        """For how many seconds it stays valid unless it is renewed; 0 once it has ended."""
        if self._pid != os.getpid():
            return 0.0
        with self._changing:
            if self._state is not State.LIVE:
                return 0.0
            left = self._deadline - self._protocol.clock()
            if left > 0:
                return left
            self._lose(f"its ttl of {self.ttl:g} s ran out before it was renewed")
            return 0.0

    def check(self) -> None:
        """Raise unless the lease is valid. Asks nobody: it costs a look at the clock.

        Raises:
            LeaseLost: it has ended.
        """
        if not self.valid:
            raise self._ended()

    def sequencer(self) -> Sequencer:
        """The lease's name, token, grant and holder as one value that can travel."""
        return Sequencer(self.name, self.token, self.grant, self.holder)

    def __repr__(self) -> str:
        state = self._state.value
        return f"<{type(self).__name__} {self.name!r} token={self.token} {state}>"

    def _renewing(self, ttl: float | None, durable: bool = False) -> Steps[None]:
        asked_ms = None if ttl is None else _check.ttl_ms(ttl)
        if durable:
            self._protocol.asked_for("RENEWED")
        while (started := self._set_out()) is None:
            yield Sleep(0.002)
        ttl_ms = asked_ms or self._ttl_ms  # the other renew may have changed it
        yield from self._carrying_on(ttl_ms, started, durable=durable)

    def _believed(self) -> bool:
        return self.valid

    def _set_out(self) -> float | None:
        """Begin a renew, and tell when that was; ``None`` if another one is under way."""
        if self._pid != os.getpid():
            raise self._ended()  # Before the lock: a fork may have copied it locked.
        with self._changing:
            started = self._protocol.clock()
            # Not `valid` at once: one look at the clock serves for both.
            if (self._state is not State.LIVE or started >= self._deadline) and not self.valid:
                raise self._ended()
            if self._renewing_now:
                return None
            self._renewing_now = True
        return started

    def _renewed(self, reply: list[Any], started: float) -> bool:
        """Take in the reply to a first try with the same ttl; whether that was all.

        If it was not, the rest is up to `_carrying_on`.
        """
        done = text(reply[0]) == "RENEWED" and reply[1] == 1
        if done:
            self._settle(["RENEWED", 1], started, self._ttl_ms)
            done = self._state is State.LIVE
            self._renewing_now = not done
        return done

    def _carrying_on(
        self,
        ttl_ms: int,
        started: float,
        first: list[Any] | StoreUnavailable | None = None,
        *,
        durable: bool = False,
    ) -> Steps[None]:
        """Do what is left of a renew, of which a first try may have been made."""
        try:
            if ttl_ms != self._ttl_ms:
                # Until a reply says otherwise the store may have either: believe in the shorter
                # one, and tell it the ttl each time, for it cuts what is longer than info says.
                self._describe = True
                self._deadline = min(self._deadline, started + self._protocol.belief(ttl_ms))
            # What is renewed is believed in once the question is answered: that must be in time.
            confirm = self._protocol.asked_for("RENEWED", self.remaining() / 2) if durable else None
            call = self._renew_call(ttl_ms)
            reply, answers = yield from self._protocol.renewed(call, confirm, first, self._believed)
            if reply == ["RENEWED", 0]:
                self._describe = True
                call = self._renew_call(ttl_ms)
                reply, answers = yield from self._protocol.renewed(
                    call, confirm, None, self._believed
                )
            if self._settle(reply, started, ttl_ms) and reply[0] == "RENEWED":
                yield from self._protocol.give_back(self._granted)
        finally:
            self._end_renewal()
        if self._state is not State.LIVE:
            raise self._ended()
        if confirm is not None:
            self._protocol.judge(self._granted, confirm, answers, "renewal")

    def _begin_renewal(self) -> bool:
        with self._changing:
            if self._renewing_now:
                return False
            self._renewing_now = True
            return True

    def _end_renewal(self) -> None:
        self._renewing_now = False

    def _renew_call(self, ttl_ms: int | None = None) -> Call:
        """The call that renews. It is the same one, with the same bytes, until the ttl changes."""
        ttl_ms = ttl_ms or self._ttl_ms
        if (ttl_ms, self._describe) != self._renews or self._renewal is None:
            self._renewal = self._protocol.renew_call(
                self._granted, ttl_ms, describe=self._describe
            )
            self._renews = ttl_ms, self._describe
        return self._renewal

    def _settle(self, reply: list[Any], started: float, ttl_ms: int) -> bool:
        """Take in the reply to a renew that was sent at ``started``; whether the lease is lost."""
        if ttl_ms != self._believes[0]:
            self._believes = ttl_ms, self._protocol.belief(ttl_ms)
        deadline = started + self._believes[1]
        with self._changing:
            if self._state is State.LIVE:
                if reply[0] == "RENEWED" and deadline > self._protocol.clock():
                    self._ttl_ms, self._deadline = ttl_ms, deadline
                    self._describe = reply[1] == 0
                else:
                    self._lose(_why(reply, self.token))
            return self._state is State.LOST

    def _releasing(self, durable: bool = False) -> Steps[bool]:
        confirm = self._protocol.asked_for("RELEASED") if durable else None
        if self._pid != os.getpid():
            return False
        if self._released is not None:
            if durable and self._released:
                yield from self._protocol.confirm_release(self._granted)
            return self._released
        # A release whose reply was lost may be asked for again.
        if self._state is not State.RELEASED and not self.valid:
            return False
        with self._changing:
            if self._state is State.LOST:
                return False
            again = self._state is State.RELEASED
            self._state = State.RELEASED
        self._released, answers = yield from self._protocol.release(self._granted, confirm)
        if confirm is not None and self._released:
            if answers is None or again:
                yield from self._protocol.confirm_release(self._granted)
            else:
                self._protocol.judge(self._granted, confirm, answers, "release")
        return self._released

    def _release_call(self) -> Call | None:
        """End the lease here, and return the call that ends it there; ``None`` if it has ended."""
        if self._pid != os.getpid() or not self.valid:
            return None
        with self._changing:
            if self._state is not State.LIVE:
                return None
            self._state = State.RELEASED
        return self._protocol.release_call(self._granted, self.token)

    def _leaving(self, error: BaseException | None) -> Steps[None]:
        """End the ``with`` block: release, and tell of a loss unless another error is under way."""
        was_released = self._state is State.RELEASED
        try:
            released = yield from self._releasing()
        except StoreError as failure:
            if error is None:
                raise
            error.add_note(f"The lease on {self.name!r} was not released: {failure}")
            return
        if not released and not was_released and error is None and self._pid == os.getpid():
            raise self._ended()

    def _lose(self, reason: str) -> None:
        self._state, self._reason = State.LOST, reason
        self._announce(reason)

    def _announce(self, reason: str) -> None:
        """Tell of the loss, each API in its way; must not block."""
        raise NotImplementedError

    def _ended(self) -> LeaseLost:
        if self._pid != os.getpid():
            reason = f"it belongs to process {self._pid}, of which this one is a fork"
        elif self._state is State.RELEASED:
            reason = "it has been released"
        else:
            reason = self._reason
        return LeaseLost(self.name, self.token, reason)


def _why(reply: list[Any], token: int) -> str:
    match reply:
        case ["STALE", 0]:
            return "the server has forgotten every token of this name (data lost or deleted)"
        case ["STALE", issued] if issued == token + 1:
            return f"its token was retired (revoked, or released), the last number is {issued}"
        case ["STALE", issued]:
            return f"token {issued} has been issued since"
        case ["FOREIGN", value]:
            return f"its lock key now holds {text(value)!r}, which is not this holder's"
        case _:
            return "the server's answer came after the ttl"
