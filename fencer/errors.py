"""Every error that Fencer raises, and whether anything changed when it does.

    FencerError
    ├── InvalidArgument (also ValueError)   nothing was sent
    ├── NotAcquired                         somebody else holds the lease
    │   └── AcquireTimeout (also TimeoutError)
    ├── LeaseLost                           this lease has ended; its token is stale
    ├── StaleToken                          a guard refused the write; nothing was written
    ├── NotDurable                          not safe enough in time; a grant was given back
    ├── ServerFailed                        the embedded server did not start or stop
    └── StoreError                          the server refused; nothing changed
        ├── StoreUnavailable                an outage; see ``maybe_applied``
        └── ScriptError                     a script failed; nothing changed unless it says so

Messages are built from the attributes, so that a handler can use either. The driver's exception,
where there is one, is the ``__cause__``.
"""

from __future__ import annotations

from typing import Any


class FencerError(Exception):
    """The root of all errors of this package. All of them can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class InvalidArgument(FencerError, ValueError):
    """The caller passed something that cannot be meant. Nothing was sent."""


class NotAcquired(FencerError):
    """Somebody else holds the lease. Nothing changed.

    Attributes:
        name: the lease asked for.
        holder: who has it, as far as the server could tell.
        remaining: seconds until it ends unless it is renewed; ``None`` if the lock key never ends.
    """

    def __init__(self, name: str, holder: str, remaining: float | None) -> None:
        self.name = name
        self.holder = holder
        self.remaining = remaining
        super().__init__(f"{self._held()}. {self._advice()}")

    def _held(self) -> str:
        return f"{self.name!r} is held by {self.holder!r}"

    def _advice(self) -> str:
        if self.remaining is None:
            return (
                "Its lock key has no time limit, so Fencer did not write it: find out who did, "
                "and delete the key by hand if it is a left-over"
            )
        return (
            f"It ends in {self.remaining:.3f} s unless it is renewed: "
            "pass wait=SECONDS to wait for it, or ask again later"
        )


class AcquireTimeout(NotAcquired, TimeoutError):
    """Somebody else still held the lease when the time to wait was over. Nothing is left held.

    Attributes: those of `NotAcquired`, and ``waited``, the seconds spent waiting.
    """

    def __init__(self, name: str, holder: str, remaining: float | None, waited: float) -> None:
        self.waited = waited
        super().__init__(name, holder, remaining)

    def _held(self) -> str:
        return f"{self.name!r} was still held by {self.holder!r} after waiting {self.waited:.3f} s"


class LeaseLost(FencerError):
    """The lease has ended without a release of its own: its token must not be used any more.

    Attributes:
        name, token: the lease that was lost.
        reason: a short sentence that says how.
    """

    def __init__(self, name: str, token: int, reason: str) -> None:
        self.name = name
        self.token = token
        self.reason = reason
        super().__init__(
            f"the lease on {name!r} with token {token} is lost: {reason}. "
            "Stop the work it protects; acquire anew to go on"
        )


class StaleToken(FencerError):
    """A guard refused the token: a newer holder has been here. Nothing was written.

    Attributes:
        resource: what the guard protects.
        token: the one that was refused.
        highest: the largest token that the guard has accepted.
    """

    def __init__(self, resource: str, token: int, highest: int) -> None:
        self.resource = resource
        self.token = token
        self.highest = highest
        if token == highest:
            why = f"another grant has already written with the same token {highest}"
        else:
            why = f"the guard has accepted token {highest} since"
        super().__init__(
            f"{resource!r} refused token {token}: {why}. "
            "This holder has been replaced: stop, and acquire anew"
        )


class NotDurable(FencerError):
    """What a `fencer.Fencer` with a ``durability`` wants was not reached in time.

    A grant has been given back: nothing is held, and its token was not handed out. (What cannot be
    given back, for the server has gone, ends with its ttl.) A renewal or a release that was to be
    durable has been carried out all the same.

    Attributes:
        name, token: the lease; its token has been retired unless this was a renewal.
        wanted: how many replicas were to have it; 1 for the server's disk.
        reached: how many had it.
        seconds: how long the server was given.
        place: ``replicas`` or ``disk``.
        act: ``grant``, ``renewal`` or ``release``.
    """

    def __init__(
        self,
        name: str,
        token: int,
        wanted: int,
        reached: int,
        seconds: float,
        *,
        place: str = "replicas",
        act: str = "grant",
    ) -> None:
        self.name = name
        self.token = token
        self.wanted = wanted
        self.reached = reached
        self.seconds = seconds
        self.place = place
        self.act = act
        if place == "disk":
            how = f"was not on the server's disk within {seconds:.3g} s"
            advice = "look at the server's disk, or allow more time"
        else:
            how = f"reached {reached} of {wanted} replicas within {seconds:.3g} s"
            advice = "see in INFO replication there which of them follow, or allow more time"
        super().__init__(f"the {act} of {name!r} with token {token} {how}. {self._now()}: {advice}")

    def _now(self) -> str:
        return {
            "grant": "It has been given back, and nothing is held",
            "renewal": "The lease is renewed and held all the same",
            "release": "The lease has ended all the same",
        }[self.act]


class ServerFailed(FencerError):
    """The embedded server could not be found, started or stopped.

    Attributes:
        log: the last lines that the server printed, empty if there were none.
    """

    def __init__(self, message: str, log: str = "") -> None:
        self.log = log
        super().__init__(f"{message}\n{log}".rstrip())


class StoreError(FencerError):
    """The server answered with a refusal. Nothing changed.

    Attributes:
        code: the server's word for it, such as ``READONLY``, ``OOM``, ``NOPERM``, ``BUSY``.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        self.code = code
        super().__init__(message)


class StoreUnavailable(StoreError):
    """An outage, which may pass: the server cannot be reached, or cannot serve now.

    No answer came, or one that belongs to a failover or a start: ``READONLY`` from a server that is
    a replica (now), ``LOADING``, ``MASTERDOWN``, ``NOREPLICAS``, ``CLUSTERDOWN``. Whoever waits in
    line, keeps a lease alive or campaigns tries on by itself.

    Attributes:
        code: the server's word for it, if it did answer; else "".
        maybe_applied: ``False`` if nothing was sent, or the server refused, so that nothing
            changed; ``True`` if the request may have been carried out though its reply was lost.
    """

    def __init__(self, message: str, *, maybe_applied: bool, code: str = "") -> None:
        self.maybe_applied = maybe_applied
        self._message = message
        tail = "It may have been applied" if maybe_applied else "Nothing was changed"
        super().__init__(f"{message}. {tail}", code=code)

    def told(self, *, maybe_applied: bool) -> StoreUnavailable:
        """The same error with another ``maybe_applied``: an earlier try counts too."""
        if maybe_applied == self.maybe_applied:
            return self
        return StoreUnavailable(self._message, maybe_applied=maybe_applied, code=self.code)


class ScriptError(StoreError):
    """A script stopped with an error, such as a key of the wrong type. Nothing changed.

    Only a guard's transaction can fail in the middle, and its message then says what was applied.

    Attributes:
        script: which one, such as ``acquire``.
        line: the line in ``lua/<script>.lua``, or ``None`` if the server did not say.
    """

    def __init__(self, message: str, *, script: str, line: int | None, code: str = "") -> None:
        self.script = script
        self.line = line
        place = f"lua/{script}.lua:{line}" if line is not None else f"lua/{script}.lua"
        super().__init__(f"{place}: {message}", code=code)


def _rebuild(kind: type[FencerError], args: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error
