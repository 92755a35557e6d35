"""The rules of a guard as a suite that any guard can be run through, yours too.

    from fencer.guards.testing import conform

    def test_my_guard() -> None:
        conform(MySubject)

It needs no test framework: `conform` returns, or raises `NonConforming`, which says which rule was
broken, and by which numbers. It first takes the guard through the rules one by one, then lets
several writers at it at once, many times over, and looks at what they and a bystander saw. That
second part is a matter of chance: a guard that checks and writes in two steps is found in about 19
of 20 runs if both are in memory, and practically always if they are two requests to a server; more
``rounds`` find more.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Protocol, Self, TypeVar

from fencer._check import MAX_TOKEN
from fencer.errors import InvalidArgument, StaleToken
from fencer.guards._base import Token
from fencer.sequencer import Sequencer

SMALLER = "every token below the highest is refused"
LARGER = "a larger token is accepted"
SAME = "the same token may write many times"
RIVAL = "of two grants that show the same token, only the first is accepted"
NAME = "a sequencer of another name is refused with InvalidArgument"
INVALID = "what is no token is refused with InvalidArgument"
HIGHEST = "highest() is the largest token accepted, 0 before the first"
ANNOUNCED = "check() accepts a token as a write does: none below it writes from then on"
TOLD = "StaleToken names the token that was refused, and the highest"
UNTOUCHED = "a refused write changes nothing"
KEPT = "an accepted write is kept"
BACK = "the resource never goes back to an older token's write"

_T = TypeVar("_T")

_LADDER = (
    # As text, "10" < "9"; as 32 bits, 2**32 is 0; a float32 or "%.14g" makes one of the last ones.
    *(1, 2, 9, 10, 99, 100, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1),
    *(10**14 - 1, 10**14, 10**14 + 1, 1_763_870_400_123_456, 1_763_870_400_123_457),
    *(MAX_TOKEN - 1, MAX_TOKEN),
)
_NO_TOKENS: tuple[Any, ...] = (
    0,
    -1,
    True,
    1.0,
    1.5,
    MAX_TOKEN + 1,
    "1",
    None,
    b"",
    b"no sequencer",
)
_PATIENCE_SECONDS = 60.0
_LONGEST_HALT_SECONDS = 0.02


class NonConforming(AssertionError):
    """The guard broke a rule.

    Attributes:
        rule: the rule, one of this module's constants, such as `SMALLER`.
        detail: what happened, with the numbers.
    """

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        self.detail = detail
        super().__init__(rule, detail)

    def __str__(self) -> str:
        return f"broken rule: {self.rule}. {self.detail}"


class Subject(Protocol):
    """A handle on one resource behind the guard under test; each writer gets its own.

    A handle is used by one thread at a time. What the resource wants to be tried again, such as a
    transaction that could not be serialised, the handle tries again.
    """

    def write(self, token: Token, value: str) -> None:
        """Make ``value`` the resource's value under the guard, or raise `StaleToken`."""

    def read(self) -> str | None:
        """Return the value, ``None`` before the first; no guard is asked."""

    def check(self, token: Token) -> None:
        """Accept the token, or raise `StaleToken`; write no value."""

    def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none."""


class AsyncSubject(Protocol):
    """The same for asyncio."""

    async def write(self, token: Token, value: str) -> None:
        """Make ``value`` the resource's value under the guard, or raise `StaleToken`."""

    async def read(self) -> str | None:
        """Return the value, ``None`` before the first; no guard is asked."""

    async def check(self, token: Token) -> None:
        """Accept the token, or raise `StaleToken`; write no value."""

    async def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none."""


def conform(
    make: Callable[[str], Subject],
    *,
    writers: int = 4,
    rounds: int = 200,
    prefix: str = "conform",
    fail: Callable[[Any, Token], None] | None = None,
) -> None:
    """Take a guard through all rules; return if it keeps them.

    Args:
        make: opens a new handle on the resource of the name that it is given, behind a guard for
            leases of that same name. Handles are not closed here: that is the caller's. The names
            are new in each run, so that marks of earlier runs do not matter.
        writers: how many threads write at once, 2 or more.
        rounds: how often they do; 0 leaves this part out.
        prefix: what the resources' names begin with.
        fail: where given, called as ``fail(handle, token)``: attempts a write that the token would
            be allowed, but that fails half-way, say a transaction that is rolled back. What the
            function raises does not matter. The value must stay, and so must a mark that
            was there before.

    Raises:
        NonConforming: a rule was broken.
        others: whatever a handle raises that is neither `StaleToken` nor `InvalidArgument`.

    Cost:
        Some 700 calls of a handle, and some ``3 * writers`` for each round. While it runs, the
        interpreter switches threads as often as it can, and the writers' threads are traced for
        a part of their way: a debugger or a measurement of coverage does not see them there.
    """
    if writers < 2 or rounds < 0:
        raise InvalidArgument("conform needs at least 2 writers, and no fewer than 0 rounds")
    names = (f"{prefix}-{secrets.token_hex(6)}" for _ in itertools.count())
    _numbers(_Trial(make, next(names)))
    _grants(_Trial(make, next(names)))
    _announcing(_Trial(make, next(names)))
    _refusals_of_no_tokens(_Trial(make, next(names)))
    if fail is not None:
        _failures(_Trial(make, next(names)), fail)
    if rounds:
        with _restless(), ThreadPoolExecutor(writers + 1) as pool:
            _Race(make, next(names), writers, pool).run(rounds)


async def conform_async(make: Callable[[str], AsyncSubject], **options: Any) -> None:
    """Take a guard for asyncio through all rules, on the running loop.

    Args:
        make: as for `conform`; called on the loop, and so is each handle.
        options: those of `conform`; ``fail`` returns an awaitable here.

    Raises:
        NonConforming: a rule was broken.
    """
    loop = asyncio.get_running_loop()
    fail = options.pop("fail", None)
    if fail is not None:
        options["fail"] = lambda handle, token: handle.wait(fail, handle.subject, token)
    await asyncio.to_thread(conform, lambda name: _OnLoop(loop, make, name), **options)


class _OnLoop:
    """A handle for threads on one for asyncio."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[str], AsyncSubject], name: str
    ) -> None:
        self._loop = loop
        self.subject = self.wait(_as_coroutine(make), name)

    def wait(self, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        async def call() -> _T:
            result: _T = await _Halting(function(*args))
            return result

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def write(self, token: Token, value: str) -> None:
        self.wait(self.subject.write, token, value)

    def read(self) -> str | None:
        return self.wait(self.subject.read)

    def check(self, token: Token) -> None:
        self.wait(self.subject.check, token)

    def highest(self) -> int:
        return self.wait(self.subject.highest)


class _Halting:
    """An awaitable that lets others run, now and then, wherever the one inside it waits."""

    def __init__(self, inner: Awaitable[Any]) -> None:
        self._inner = inner

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._inner.__await__()
        proceed = partial(next, steps)
        while True:
            try:
                waited_for = proceed()
            except StopIteration as done:
                return done.value
            try:
                sent = yield waited_for
                for _ in range(random.choice((0, 0, 1, 2, 5, 20))):
                    yield
                proceed = partial(steps.send, sent)
            except BaseException as error:  # a cancellation, which is for the one inside
                proceed = partial(steps.throw, error)


def _as_coroutine(function: Callable[..., _T]) -> Callable[..., Coroutine[Any, Any, _T]]:
    async def call(*args: Any) -> _T:
        return function(*args)

    return call


class _Trial:
    """One resource, two handles that take turns, and what must be found there."""

    def __init__(self, make: Callable[[str], Subject], name: str) -> None:
        self.name = name
        self.mark = 0
        self.value: str | None = None
        # Two that take turns, so that a mark that only a handle remembers is not enough.
        self.handle, self._other = make(name), make(name)
        self._count = itertools.count(1)
        self.unchanged(HIGHEST)

    def accepts(self, token: Token, rule: str) -> None:
        value = f"{_number(token)} #{next(self._count)}"
        self._accepted(token, rule, lambda handle: handle.write(token, value))
        self.value = value
        self.unchanged(KEPT)

    def announces(self, token: Token, rule: str) -> None:
        self._accepted(token, rule, lambda handle: handle.check(token))
        self.unchanged(UNTOUCHED)

    def refuses(self, token: Token, rule: str) -> None:
        for what, call in self._both(token):
            try:
                call(self.handle)
            except StaleToken as error:
                self._told(error, _number(token))
            else:
                raise NonConforming(
                    rule, f"{what} accepted token {_number(token)} though {self.mark} was accepted"
                )
            self.unchanged(UNTOUCHED)

    def rejects(self, token: Token, rule: str) -> None:
        for what, call in self._both(token):
            try:
                call(self.handle)
            except InvalidArgument:
                pass
            except Exception as error:
                raise NonConforming(
                    rule, f"{what} answered {token!r} with {type(error).__name__}: {error}"
                ) from error
            else:
                raise NonConforming(rule, f"{what} accepted {token!r}")
            self.unchanged(UNTOUCHED)

    def unchanged(self, rule: str) -> None:
        highest = self.handle.highest()
        if type(highest) is not int or highest != self.mark:
            raise NonConforming(HIGHEST, f"it is {highest!r}, and should be {self.mark}")
        value = self.handle.read()
        if value != self.value:
            raise NonConforming(rule, f"the value is {value!r}, and should be {self.value!r}")

    def _accepted(self, token: Token, rule: str, call: Callable[[Subject], None]) -> None:
        try:
            call(self.handle)
        except StaleToken as error:
            raise NonConforming(
                rule, f"token {_number(token)} was refused though {self.mark} is the highest"
            ) from error
        self.mark = _number(token)
        self.handle, self._other = self._other, self.handle

    def _both(self, token: Token) -> Iterator[tuple[str, Callable[[Subject], None]]]:
        yield "check()", lambda handle: handle.check(token)
        yield "write()", lambda handle: handle.write(token, "refused")

    def _told(self, error: StaleToken, token: int) -> None:
        if (error.token, error.highest) != (token, self.mark):
            raise NonConforming(
                TOLD, f"it says {error.token} and {error.highest}, not {token} and {self.mark}"
            )


def _numbers(trial: _Trial) -> None:
    """Rising tokens, of every size at which a comparison may go wrong."""
    for before, token in itertools.pairwise((0, *_LADDER)):
        trial.accepts(token, LARGER)
        if before:
            trial.refuses(before, SMALLER)
        if before > 1:
            trial.refuses(1, SMALLER)
        trial.accepts(token, SAME)
        trial.announces(token, SAME)
        trial.accepts(token, SAME)


def _grants(trial: _Trial) -> None:
    """The grants behind equal tokens."""
    first, second = _shown(trial.name, 10), _shown(trial.name, 10)
    trial.accepts(first, LARGER)
    trial.refuses(second, RIVAL)
    trial.accepts(first, SAME)
    trial.accepts(10, SAME)  # a bare token has no grant to compare, and must not wipe out the known
    trial.refuses(second, RIVAL)
    trial.accepts(first.pack(), SAME)
    trial.refuses(_shown(trial.name, 9), SMALLER)

    trial.accepts(20, LARGER)  # nor may the last token's grant stay behind
    first, second = _shown(trial.name, 20), _shown(trial.name, 20)
    trial.accepts(first, SAME)
    trial.refuses(second, RIVAL)

    first, second = _shown(trial.name, 30), _shown(trial.name, 30)
    trial.announces(first, LARGER)
    trial.refuses(second, RIVAL)
    trial.accepts(first, SAME)
    trial.accepts(_shown(trial.name, 31), LARGER)
    trial.refuses(first, SMALLER)
    trial.rejects(_shown(trial.name + "-other", 40), NAME)
    trial.accepts(31, SAME)


def _announcing(trial: _Trial) -> None:
    """A token that checks before it writes."""
    trial.announces(100, LARGER)
    trial.refuses(99, ANNOUNCED)
    trial.accepts(100, SAME)
    trial.announces(200, LARGER)
    trial.refuses(100, ANNOUNCED)
    trial.refuses(199, ANNOUNCED)
    trial.accepts(200, SAME)


def _refusals_of_no_tokens(trial: _Trial) -> None:
    """What is no token, before the first token and after it."""
    for token in _NO_TOKENS:
        trial.rejects(token, INVALID)
    trial.accepts(1, LARGER)
    for token in _NO_TOKENS:
        trial.rejects(token, INVALID)


def _failures(trial: _Trial, fail: Callable[[Any, Token], None]) -> None:
    """Writes that are allowed, and fail."""
    trial.accepts(5, LARGER)
    trial.announces(10, LARGER)
    for token in (10, 20):
        handle = trial.handle
        try:
            fail(handle, token)
        except Exception:
            pass
        # Whether the mark of a write that failed remains is up to the guard; it may not get lost.
        if (highest := handle.highest()) == token:
            trial.mark = highest
        trial.unchanged(UNTOUCHED)
        trial.refuses(9, ANNOUNCED)
        trial.accepts(trial.mark, SAME)


@dataclass(frozen=True, slots=True)
class _Write:
    """An accepted write, and when it was under way."""

    token: int
    value: str
    began: float
    ended: float


class _Race:
    """Several writers at one resource at once, and a bystander who reads all the time."""

    def __init__(
        self, make: Callable[[str], Subject], name: str, writers: int, pool: ThreadPoolExecutor
    ) -> None:
        self._name = name
        self._pool = pool
        self._handles = [make(name) for _ in range(writers)]
        self._bystander, self._judge = make(name), make(name)
        self._tokens = itertools.count(1_000)
        self._barrier = threading.Barrier(writers)
        self._over = threading.Event()
        began = time.monotonic()
        with _Halt() as counted:
            self._judge.write(next(self._tokens), "1000 #0")
        self._lines = counted.lines
        self._pace = min(2 * (time.monotonic() - began), _LONGEST_HALT_SECONDS)

    def run(self, rounds: int) -> None:
        watching = self._pool.submit(self._watch)
        kinds = itertools.cycle([self._overtake, self._announce, self._overtake, self._rival])
        try:
            for kind in itertools.islice(kinds, rounds):
                if watching.done():
                    break
                kind()
        finally:
            self._over.set()
            seen = watching.exception()  # it may know better what the writers stumbled over
        if seen is not None:
            raise seen

    def _overtake(self) -> None:
        """Older and newer tokens at once: the newest has the last word."""
        tokens = self._new_tokens()
        writes = self._at_once([partial(self._write, token, 2) for token in tokens])
        self._orderly(writes)
        if len(writes[-1]) < 2:
            raise NonConforming(
                LARGER, f"token {tokens[-1]} was refused; the others were {tokens[:-1]}"
            )
        self._stands(writes[-1][-1])

    def _announce(self) -> None:
        """The newest reads after its check: what it read stays."""
        *older, newest = self._new_tokens()
        seen: list[str | None] = []

        def take_over(handle: Subject) -> list[_Write]:
            handle.check(newest)
            seen.append(handle.read())
            return []

        self._orderly(
            self._at_once([*(partial(self._write, each, 3) for each in older), take_over])
        )
        value = self._judge.read()
        if [value] != seen:
            raise NonConforming(
                ANNOUNCED,
                f"the holder of {newest} read {seen[0]!r} after its check, and later {value!r}",
            )
        self._at_least(newest)

    def _rival(self) -> None:
        """Several grants that show one token: only one of them writes."""
        token = next(self._tokens)
        claims = [_shown(self._name, token) for _ in self._handles]
        writes = [
            each for each in self._at_once([partial(self._write, c, 2) for c in claims]) if each
        ]
        if len(writes) != 1:
            raise NonConforming(
                RIVAL if writes else LARGER,
                f"{len(writes)} of {len(claims)} grants wrote with the same token {token}",
            )
        self._stands(writes[0][-1])

    def _new_tokens(self) -> list[int]:
        return [next(self._tokens) for _ in self._handles]

    def _at_once(self, calls: Sequence[Callable[[Subject], list[_Write]]]) -> list[list[_Write]]:
        # The pool starts its threads in turn, so shuffle who goes first.
        order = random.sample(range(len(calls)), len(calls))
        running = {
            each: self._pool.submit(self._started, calls[each], self._handles[each])
            for each in order
        }
        return [running[each].result() for each in range(len(calls))]

    def _started(self, call: Callable[[Subject], list[_Write]], handle: Subject) -> list[_Write]:
        self._barrier.wait(_PATIENCE_SECONDS)
        return call(handle)

    def _write(self, token: Token, times: int, handle: Subject) -> list[_Write]:
        done: list[_Write] = []
        for count in range(times):
            value = f"{_number(token)} #{count} {secrets.token_hex(4)}"
            began = time.monotonic()
            try:
                with self._halted():
                    handle.write(token, value)
            except StaleToken:
                break
            done.append(_Write(_number(token), value, began, time.monotonic()))
        return done

    def _halted(self) -> AbstractContextManager[object]:
        """Every other write stands still somewhere, and the rest can overtake it."""
        if random.random() < 0.5:
            return nullcontext()
        return _Halt(random.randint(1, self._lines), random.uniform(0, self._pace))

    def _orderly(self, writes: Sequence[Sequence[_Write]]) -> None:
        accepted = sorted(itertools.chain(*writes), key=lambda each: each.began)
        for early, late in itertools.combinations(accepted, 2):
            if late.token < early.token and early.ended < late.began:
                raise NonConforming(
                    SMALLER,
                    f"token {late.token} wrote {late.began - early.ended:.6f} s after {early.token}"
                    " had written",
                )

    def _stands(self, last: _Write) -> None:
        value = self._judge.read()
        if value != last.value:
            older = value is not None and _token_in(value) < last.token
            raise NonConforming(
                BACK if older else KEPT,
                f"all writers are done, and the value is {value!r}; the newest of them "
                f"wrote {last.value!r}, which was accepted",
            )
        self._at_least(last.token)

    def _at_least(self, token: int) -> None:
        highest = self._judge.highest()
        if highest != token:
            raise NonConforming(HIGHEST, f"it is {highest}, and should be {token}")

    def _watch(self) -> None:
        """Read all the time: neither the value nor the mark may go back."""
        newest = mark = 0
        while not self._over.wait(0.0002):
            value = self._bystander.read()
            token = 0 if value is None else _token_in(value)
            if token < newest:
                raise NonConforming(
                    BACK, f"a reader saw a value of token {newest}, and then one of {token}"
                )
            highest = self._bystander.highest()
            if highest < max(mark, token):
                raise NonConforming(
                    HIGHEST,
                    f"a reader was told {highest} after it had been told {mark}, "
                    f"and had read a value of {token}",
                )
            newest, mark = token, highest


@contextmanager
def _restless() -> Iterator[None]:
    """Let the interpreter switch threads all the time, so that short windows are hit."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Halt:
    """Lets this thread stand still at one line of what it runs, and counts the lines.

    Most of the time that a guard takes is in one call of its driver: a window between two of its
    own lines is too short to be hit by chance.
    """

    def __init__(self, line: int = 0, seconds: float = 0.0) -> None:
        self.lines = 0
        self._line = line
        self._seconds = seconds

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        # The tracing goes on to the end: to stop it in here can crash CPython 3.11.
        self.lines += 1
        if self.lines == self._line:
            time.sleep(self._seconds)
        return self._trace


def _shown(name: str, token: int) -> Sequencer:
    return Sequencer(name, token, secrets.token_hex(16), "conform")


def _number(token: Token) -> int:
    if isinstance(token, bytes):
        token = Sequencer.unpack(token)
    return token if isinstance(token, int) else token.token


def _token_in(value: str) -> int:
    head = value.partition(" ")[0]
    if not head.isdigit():
        raise NonConforming(KEPT, f"the value is {value!r}, which nobody wrote")
    return int(head)
