"""The record of a fault test: who did what to which lease, when, and with what outcome.

It has the events of the drills (`fencer.drill.record`), one in each line of a file to which all
processes of a test append. It is kept beside the clients, not by them: `recording` looks at every
client of the process, in both APIs, while it lasts; `begin` does so in a process that the test
starts, if the test keeps a record.

Times are those of the clock by which leases count (`fencer._clock`), which is the same in all
processes. ``name`` is the lease's lock key, or what a guard protects.

- ``acquire``, ``renew``, ``release``, ``revoke``, ``advance``: a call, from its begin to its end.
- ``believes``: from ``begun`` on the holder believes until ``ended``, unless another one follows.
- ``lost``, ``released``: its lease has ended, as far as the holder knows.
- ``renewed``: the server's answer to a renew, a keeper's or a caller's; ``renewing``: one begins.
- ``joined``: it is in line.
- ``write``: a guard was shown a token; ``name`` is its kind and its resource, which are the same in
  all processes that write there. A block that a guard lets its holder into is two of them, one when
  it begins and one when it ends: whoever writes between them has come between check and write.
- ``elected``, ``stopped``: a callback of an election began, and ended.
- ``healed``: the fault is over; ``note`` says in how many seconds somebody must be granted.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fencer import _clock
from fencer._lease import BaseLease, State
from fencer._protocol import Protocol
from fencer.aio import AsyncFencer, AsyncLease
from fencer.client import Fencer, Lease
from fencer.drill.record import Event, Outcome, as_dict
from fencer.errors import LeaseLost, NotAcquired, StaleToken, StoreUnavailable
from fencer.guards import FileGuard, MemoryGuard
from fencer.guards._base import BaseGuard
from tests.faults import planted

VARIABLE = "FENCER_TEST_RECORD"
"""Where the processes of a test find its record."""

BEGIN = "from tests.faults import record; record.begin()\n"
"""What stands before the script of a process."""


class Recorder:
    """Appends to a file. Any thread and any process may: each line is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # Kept, for a test may put another one in its place.
        self._write: Callable[[int, bytes], int] = os.write

    def tell(self, event: Event) -> None:
        self._write(self._file, json.dumps(as_dict(event)).encode() + b"\n")

    def close(self) -> None:
        """What is told later, by a guard that outlives the test, is told to nobody."""
        self._write = lambda *_: 0
        os.close(self._file)


def read(path: Path) -> list[Event]:
    """All that was told, in the order in which it was begun."""
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(
        (Event(**{"who": "", **json.loads(line)}) for line in lines), key=lambda event: event.begun
    )


def begin() -> None:
    """Keep a record from now on, in a process that a test has started; with the twin's bug."""
    planted.begin()
    if VARIABLE in os.environ:
        _look(Recorder(Path(os.environ[VARIABLE])), ExitStack())


def told() -> dict[str, str]:
    """What a process that outlives a test must be told for `during`."""
    return {name: os.environ[name] for name in (VARIABLE, planted.VARIABLE) if name in os.environ}


@contextmanager
def during(test: Mapping[str, str]) -> Iterator[None]:
    """What `begin` does, in a process that outlives the test: until the block ends."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as undo:
        patch.delenv(planted.VARIABLE, raising=False)  # It may have been started by a twin.
        for name, value in test.items():
            patch.setenv(name, value)
        planted.begin(patch)
        if VARIABLE in test:
            recorder = Recorder(Path(test[VARIABLE]))
            undo.callback(recorder.close)
            _look(recorder, undo)
        yield


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Keep a record of all clients of this process."""
    with ExitStack() as undo:
        _look(recorder, undo)
        yield


def outcome_of(error: BaseException) -> Outcome:
    """What an exception says about what was asked for."""
    match error:
        case NotAcquired() | LeaseLost() | StaleToken():
            return "refused"
        case StoreUnavailable(maybe_applied=True):
            return "unknown"
        case _:
            return "failed"


def _look(recorder: Recorder, undo: ExitStack) -> None:
    watch = _Watch(recorder)
    for fencer in (Fencer, AsyncFencer):
        for name in ("_acquire", "revoke", "advance"):
            _wrap(undo, fencer, name, getattr(watch, name.strip("_")))
    for lease in (Lease, AsyncLease):
        _wrap(undo, lease, "renew", watch.renew)
    _replace(undo, BaseGuard, "__init__", watch.guard(BaseGuard.__init__))
    _replace(undo, BaseLease, "_settle", watch.settle(BaseLease._settle))
    _replace(undo, BaseLease, "_begin_renewal", watch.begin_renewal(BaseLease._begin_renewal))
    _replace(undo, BaseLease, "_set_out", watch.set_out(BaseLease._set_out))
    _replace(undo, BaseLease, "_releasing", watch.releasing(BaseLease._releasing))
    _replace(undo, Protocol, "_look", watch.look(Protocol._look))
    for name, tell in (("_deadline", watch.believes), ("_state", watch.ends)):
        _replace(undo, BaseLease, name, _attribute(name, tell))


def _replace(undo: ExitStack, owner: type, name: str, by: Any) -> None:
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, by)


def _wrap(undo: ExitStack, owner: type, name: str, told: Callable[..., Any]) -> None:
    """Have ``told(began, outcome, result or error, self, *args)`` called after each call."""
    _replace(undo, owner, name, _told(getattr(owner, name), told))


def _told(plain: Callable[..., Any], told: Callable[..., Any]) -> Callable[..., Any]:
    def tell(begun: float, error: BaseException | None, result: Any, *args: Any) -> None:
        outcome = "ok" if error is None else outcome_of(error)
        told(begun, outcome, error if error is not None else result, *args)

    @functools.wraps(plain)
    def call(*args: Any, **options: Any) -> Any:
        begun = _clock.now()
        try:
            result = plain(*args, **options)
        except BaseException as error:
            tell(begun, error, None, *args)
            raise
        tell(begun, None, result, *args)
        return result

    @functools.wraps(plain)
    async def call_async(*args: Any, **options: Any) -> Any:
        begun = _clock.now()
        try:
            result = await plain(*args, **options)
        except BaseException as error:
            tell(begun, error, None, *args)
            raise
        tell(begun, None, result, *args)
        return result

    return call_async if inspect.iscoroutinefunction(plain) else call


def _told_blocks(plain: Callable[..., Any], told: Callable[..., Any]) -> Callable[..., Any]:
    """The same of a block: ``told([began, entered, left], error, *args)``, as far as it came."""

    @contextmanager
    def block(inner: Any, *args: Any) -> Iterator[Any]:
        moments = [_clock.now()]
        try:
            with inner as inside:
                moments.append(_clock.now())
                yield inside
                moments.append(_clock.now())
        except BaseException as error:
            told(moments, error, *args)
            raise
        told(moments, None, *args)

    @asynccontextmanager
    async def block_async(inner: Any, *args: Any) -> AsyncIterator[Any]:
        moments = [_clock.now()]
        try:
            async with inner as inside:
                moments.append(_clock.now())
                yield inside
                moments.append(_clock.now())
        except BaseException as error:
            told(moments, error, *args)
            raise
        told(moments, None, *args)

    def call(*args: Any) -> Any:
        inner = plain(*args)
        is_async = isinstance(inner, AbstractAsyncContextManager)
        return block_async(inner, *args) if is_async else block(inner, *args)

    return call


def _attribute(name: str, tell: Callable[[BaseLease, Any], None]) -> property:
    """An attribute that tells of each change; its value stays where it was before."""

    def change(lease: BaseLease, value: Any) -> None:
        before = vars(lease).get(name)
        vars(lease)[name] = value
        if value != before:
            tell(lease, value)

    return property(lambda lease: vars(lease)[name], change)


class _Watch:
    """Makes events of what clients do."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._guards = itertools.count(1)

    def _tell(
        self,
        who: str,
        what: str,
        name: str,
        begun: float,
        outcome: Outcome = "ok",
        token: int | None = None,
        grant: str = "",
        note: str = "",
        ended: float | None = None,
    ) -> None:
        ended = _clock.now() if ended is None else ended
        self._recorder.tell(Event(who, what, begun, ended, outcome, token, note, name, grant))

    def _of(self, lease: BaseLease, what: str, begun: float, **rest: Any) -> None:
        name = _key(lease._protocol, lease.name)
        self._tell(lease.holder, what, name, begun, token=lease.token, grant=lease.grant, **rest)

    def acquire(
        self, begun: float, outcome: Outcome, result: Any, client: Any, name: Any, *_: Any
    ) -> None:
        if isinstance(result, BaseLease):
            return self._of(result, "acquire", begun)
        key = _key(client._protocol, name)
        return self._tell(client.holder, "acquire", key, begun, outcome, note=_note(result))

    def revoke(
        self, begun: float, outcome: Outcome, result: Any, client: Any, name: Any, *_: Any
    ) -> None:
        token = result if isinstance(result, int) else None
        outcome = "refused" if result is None else outcome
        key = _key(client._protocol, name)
        self._tell(client.holder, "revoke", key, begun, outcome, token, note=_note(result))

    def advance(
        self,
        begun: float,
        outcome: Outcome,
        result: Any,
        client: Any,
        name: Any,
        beyond: Any = None,
        *_: Any,
    ) -> None:
        key = _key(client._protocol, name)
        token = beyond if isinstance(beyond, int) else None
        self._tell(client.holder, "advance", key, begun, outcome, token, note=_note(result))

    def renew(self, begun: float, outcome: Outcome, result: Any, lease: Any, *_: Any) -> None:
        self._of(lease, "renew", begun, outcome=outcome, note=_note(result))

    def guard(self, plain: Any) -> Any:
        """Looks at each guard from its beginning: its module may not have been imported before."""

        def init(guard: BaseGuard, *args: Any, **options: Any) -> None:
            plain(guard, *args, **options)
            place = functools.partial(_place, guard, next(self._guards))
            # What a caller commits, or rolls back, is not told; all else goes through `begin`.
            for name in ("begin",) if hasattr(guard, "begin") else _SHOWN:
                if found := getattr(guard, name, None):
                    blocks = name in ("begin", "open")
                    see = functools.partial(self.block if blocks else self.write, guard, place)
                    vars(guard)[name] = (_told_blocks if blocks else _told)(found, see)

        return init

    def write(
        self,
        guard: BaseGuard,
        place: Callable[[], str],
        begun: float,
        outcome: Outcome,
        result: Any,
        shown: Any,
        *_: Any,
        ended: float | None = None,
    ) -> None:
        try:
            token, grant = BaseGuard._claim(guard, shown)
        except Exception:
            return  # It was no token, and nothing was sent.
        self._tell("", "write", place(), begun, outcome, token, grant, _note(result), ended)

    def block(
        self,
        guard: BaseGuard,
        place: Callable[[], str],
        moments: list[float],
        error: BaseException | None,
        shown: Any,
    ) -> None:
        outcome: Outcome = "ok" if error is None else outcome_of(error)
        match moments:
            case [begun]:
                self.write(guard, place, begun, outcome, error, shown)
            case [begun, entered, *left]:
                # What was rolled back has taken its mark along.
                first: Outcome = "ok" if error is None else "unknown"
                self.write(guard, place, begun, first, None, shown, ended=entered)
                for last in left:
                    self.write(guard, place, last, outcome, error, shown)

    def settle(self, plain: Any) -> Any:
        def settle(lease: BaseLease, reply: list[Any], started: float, ttl_ms: int) -> bool:
            lost: bool = plain(lease, reply, started, ttl_ms)
            outcome = "ok" if reply[0] == "RENEWED" else "refused"
            self._of(lease, "renewed", started, outcome=outcome)
            return lost

        return settle

    def begin_renewal(self, plain: Any) -> Any:
        def begin_renewal(lease: BaseLease) -> bool:
            begins: bool = plain(lease)
            if begins:
                self._of(lease, "renewing", _clock.now())
            return begins

        return begin_renewal

    def set_out(self, plain: Any) -> Any:
        def set_out(lease: BaseLease) -> float | None:
            begun: float | None = plain(lease)
            if begun is not None:
                self._of(lease, "renewing", begun)
            return begun

        return set_out

    def releasing(self, plain: Any) -> Any:
        def releasing(lease: BaseLease, *rest: Any) -> Any:
            begun = _clock.now()
            if lease._pid != os.getpid():
                return (yield from plain(lease, *rest))  # In a forked child it is nobody's.
            try:
                released = yield from plain(lease, *rest)
            except BaseException as error:
                if not isinstance(error, GeneratorExit):
                    self._of(lease, "release", begun, outcome=outcome_of(error))
                raise
            self._of(lease, "release", begun, outcome="ok" if released else "refused")
            return released

        return releasing

    def look(self, plain: Any) -> Any:
        tried: dict[str, float] = {}

        def look(core: Any, ask_for: Any, seen: Any, waiting: str = "no", *rest: Any) -> Any:
            # A try that was not answered may have put it in line.
            begun = tried.setdefault(ask_for.grant, _clock.now()) if waiting == "join" else 0.0
            granted = yield from plain(core, ask_for, seen, waiting, *rest)
            if waiting == "join" and seen.place is not None:
                name = _key(core, ask_for.name)
                self._tell(ask_for.holder, "joined", name, begun, grant=ask_for.grant)
            return granted

        return look

    def believes(self, lease: BaseLease, deadline: float) -> None:
        self._of(lease, "believes", _clock.now(), ended=deadline)

    def ends(self, lease: BaseLease, state: State) -> None:
        if state is not State.LIVE:
            self._of(lease, state.value, _clock.now())


_SHOWN = ("check", "execute", "transaction", "script", "put", "open")
"""What a guard is shown a token by."""


def _place(guard: BaseGuard, number: int) -> str:
    """What a guard protects: its kind and its resource, as all who write there name it."""
    kind = type(guard).__name__.removeprefix("Async")
    match guard:
        case MemoryGuard():  # each has a mark of its own
            return f"{kind} {guard.resource} {number} of {os.getpid()}"
        case FileGuard():
            return f"{kind} {guard.path}"
        case _:
            return f"{kind} {guard.resource}"


def _key(core: Any, name: Any) -> str:
    return str(core._settings.keyspace.of(name).lock)


def _note(result: Any) -> str:
    """What an error is, and what it comes from."""
    if not isinstance(result, BaseException):
        return ""
    cause = result.__cause__
    return type(result).__name__ + (f" from {type(cause).__name__}" if cause else "")
