"""Sends the steps of the protocol through redis-py: `Wire` blocks, `AsyncWire` awaits.

A call goes out on a connection of the client's own pool, as a rule the one that is kept for it
(`fencer._kept`), as EVALSHA, and once more as EVAL if the server does not know the script (any
more). It goes out once: the driver's own retries are not used for scripts, because whether one may
be repeated is for `fencer._protocol` to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Hashable
from types import TracebackType
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from fencer._drivers import Driver, driver_of, stream_of
from fencer._kept import AsyncLine, Kept, Line, kept_of
from fencer._refusals import is_foreign, refusal, unreached
from fencer._steps import (
    Batch,
    Call,
    Command,
    Confirm,
    Confirmed,
    Enter,
    Leave,
    Sleep,
    Stamp,
    Step,
    Wait,
    text,
)
from fencer._turns import turns_of
from fencer._wakeups import TaskWakeups, ThreadWakeups
from fencer.errors import StoreError, StoreUnavailable

_FREE_SECONDS = 5.0
"""How long a call waits for a free connection of a pool that is bounded."""

_AT_ONCE = 16
"""Calls under way at once, and so connections, of one asyncio client."""


class Wire:
    """Sends scripts through the connection pool of a redis-py client, and blocks meanwhile.

    Args:
        client: the client.
        wakeups: hears what waiters wait for; ``None`` where nobody waits.
    """

    def __init__(self, client: redis.Redis, wakeups: ThreadWakeups | None = None) -> None:
        self.driver = driver_of(client, tasks=False)
        self.client = client
        self._wakeups = wakeups
        self._kept = kept_of(client.connection_pool, Line)

    def do(self, step: Step) -> Any:
        """Carry out one step."""
        match step:
            case Call():
                return self.call(step)
            case Command(words):
                return self.command(words)
            case Batch():
                return self.batch(step)
            case Sleep(seconds):
                return time.sleep(seconds)
            case Stamp(guard, lease):
                return guard.check(lease)
        assert self._wakeups is not None
        match step:
            case Enter(grant, seconds):
                return self._wakeups.enter(grant, seconds)
            case Wait(grant, seconds):
                return self._wakeups.wait(grant, seconds)
            case Leave(grant):
                return self._wakeups.leave(grant)

    def call(self, call: Call) -> Any:
        """Run a script and return its reply.

        Raises:
            StoreError: see `fencer.errors` for which means what.
        """
        kept = self._kept
        if kept.pool is not self.client.connection_pool:  # The user has given it another one.
            kept = self._kept = kept_of(self.client.connection_pool, Line)
        try:
            line = kept.take() if call.confirm is None else None
        except IndexError:
            line = None
        if line is not None and not line.fit():
            kept.pool.release(kept.end(line))
            line = None
        if line is None:
            with self.lent(call.script.name, kept) as connection:
                return _answer(connection, call, self.driver)
        try:
            try:
                reply = line.ask(call.packed or _pack(line, call))
            except NoScriptError:
                line.send_command(*_by_body(call))
                reply = line.read_response()
        except BaseException as error:
            refused = refusal(error, call.script.name) if is_foreign(error) else None
            if refused is None or isinstance(refused, StoreUnavailable):
                line.connection.disconnect()
                kept.pool.release(kept.end(line))
            else:
                kept.put(line)
            if refused is None:
                raise
            raise refused from error
        kept.put(line)
        return reply

    def place(self, key: str | bytes) -> Hashable:
        """Where a key is: one script can use keys of one place."""
        return None

    def command(self, words: tuple[str | int, ...]) -> Any:
        """Run a command that only reads, and return its reply as it came."""
        with self.lent(None) as connection:
            connection.send_command(*words)
            return connection.read_response()

    def batch(self, batch: Batch) -> list[Any]:
        """Run several scripts in one trip; for each its reply, or the error that it met."""
        outcomes: list[Any] = []
        until = time.monotonic() + batch.timeout
        try:
            with self.lent("renew", urgent=batch.timeout) as connection:
                commands = connection.pack_commands([_by_sha(call) for call in batch.calls])
                connection.send_packed_command(commands)
                left = max(0.001, until - time.monotonic())
                patience = min(left, connection.socket_timeout or left)
                for call in batch.calls:
                    try:
                        outcomes.append(self.driver.reply(connection, patience))
                    except self.driver.response as error:
                        if isinstance(_told(error, call), StoreUnavailable):
                            raise  # It would refuse the rest as well.
                        outcomes.append(error)
        except StoreError as error:
            outcomes += [error] * (len(batch.calls) - len(outcomes))
        try:
            return [
                self._again(call, batch.timeout)
                if isinstance(outcome, self.driver.no_script)
                else _told(outcome, call)
                for call, outcome in zip(batch.calls, outcomes, strict=True)
            ]
        finally:
            del outcomes  # A frame that holds its own exception is a cycle.

    def _again(self, call: Call, seconds: float) -> Any:
        try:
            with self.lent(call.script.name, urgent=seconds) as connection:
                return _answer(connection, call, self.driver)
        except StoreError as error:
            return error

    def lent(
        self, script: str | None, kept: Kept[Line] | None = None, urgent: float | None = None
    ) -> _Loan:
        """Lend a connection of the pool, and translate what goes wrong with it.

        Args:
            script: what is called; ``None`` for what changes nothing.
            kept: where the connection may stay afterwards, instead of going back.
            urgent: before all others who wait for one, and for so many seconds at most.
        """
        return _Loan(self.client.connection_pool, self.driver, script, kept, urgent)

    def close(self) -> None:
        """Give the kept connection back."""
        with contextlib.suppress(IndexError):
            line = self._kept.take()
            self._kept.pool.release(self._kept.end(line))


class _Loan:
    """A connection lent by a `Wire`. A class, for a generator takes as long as all the rest."""

    __slots__ = ("_connection", "_driver", "_kept", "_pool", "_script", "_turns", "_urgent")

    def __init__(
        self,
        pool: Any,
        driver: Driver,
        script: str | None,
        kept: Kept[Line] | None,
        urgent: float | None,
    ) -> None:
        self._pool, self._driver, self._script, self._kept = pool, driver, script, kept
        self._turns, self._urgent = turns_of(pool), urgent

    def __enter__(self) -> Any:
        try:
            self._connection = self._at_once() or self._in_turn()
        except BaseException as error:
            if not isinstance(error, self._driver.any):
                # It was put back half made: connected, but not logged in, and in database 0.
                self._pool.disconnect(inuse_connections=False)
            if not isinstance(error, Exception):
                raise
            raise unreached(error, self._pool) from error
        return self._connection

    def _at_once(self) -> Any:
        if self._turns.line:
            return None
        try:
            return self._driver.connection(self._pool)
        except self._driver.full:
            return None

    def _in_turn(self) -> Any:
        urgent = self._urgent is not None
        seconds = _FREE_SECONDS if self._urgent is None else self._urgent
        return self._turns.wait(self._pool, self._driver, seconds, urgent=urgent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection = self._connection
        refused = None
        if is_foreign(error):
            refused = refusal(error, self._script, sent=self._script is not None)
        if error is not None and (refused is None or isinstance(refused, StoreUnavailable)):
            # A reply that nobody reads must not meet the next request. And where this one was
            # turned away, somebody elsewhere may serve it.
            connection.disconnect()
        if error is not None or self._kept is None or not self._kept.keep(connection):
            self._pool.release(connection)
            if self._turns.line:
                self._turns.freed()
        if refused is not None:
            raise refused from error


class AsyncWire:
    """The same on ``redis.asyncio``; the comments of `Wire` hold here, too."""

    def __init__(self, client: redis.asyncio.Redis, wakeups: TaskWakeups | None = None) -> None:
        self.driver = driver_of(client, tasks=True)
        self.client = client
        self._wakeups = wakeups
        # Thousands of tasks would otherwise open thousands of connections.
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        # Grants that wait for a replica that has gone must not keep renewals from being sent.
        self._confirming = asyncio.Semaphore(_AT_ONCE)
        # Nor must the calls of thousands of tasks.
        self._renewing = asyncio.Semaphore(_AT_ONCE)
        self._kept = kept_of(client.connection_pool, AsyncLine)

    async def do(self, step: Step) -> Any:
        """Carry out one step."""
        match step:
            case Call():
                return await self.call(step)
            case Command(words):
                return await self.command(words)
            case Batch():
                return await self.batch(step)
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Stamp(guard, lease):
                if inspect.iscoroutinefunction(guard.check):
                    return await guard.check(lease)
                return await asyncio.to_thread(guard.check, lease)
        assert self._wakeups is not None
        match step:
            case Enter(grant, seconds):
                return await self._wakeups.enter(grant, seconds)
            case Wait(grant, seconds):
                return await self._wakeups.wait(grant, seconds)
            case Leave(grant):
                return self._wakeups.leave(grant)

    async def call(self, call: Call) -> Any:
        """Run a script and return its reply."""
        kept = self._kept
        if kept.pool is not self.client.connection_pool:
            kept = self._kept = kept_of(self.client.connection_pool, AsyncLine)
        try:
            line = kept.take() if call.confirm is None else None
        except IndexError:
            line = None
        if line is not None and not line.fit():
            await kept.pool.release(kept.end(line))
            line = None
        if line is None:
            async with self.lent(call.script.name, kept, call.confirm) as connection:
                return await _async_answer(connection, call, self.driver)
        try:
            try:
                reply = await line.ask(call.packed or _pack(line, call))
            except NoScriptError:
                await line.send_command(*_by_body(call))
                reply = await line.read_response()
        except BaseException as error:
            refused = refusal(error, call.script.name) if is_foreign(error) else None
            if refused is None or isinstance(refused, StoreUnavailable):
                await line.connection.disconnect(nowait=True)
                await kept.pool.release(kept.end(line))
            else:
                kept.put(line)
            if refused is None:
                raise
            raise refused from error
        kept.put(line)
        return reply

    def place(self, key: str | bytes) -> Hashable:
        """Where a key is: one script can use keys of one place."""
        return None

    async def command(self, words: tuple[str | int, ...]) -> Any:
        """Run a command that only reads."""
        async with self.lent(None) as connection:
            await connection.send_command(*words)
            return await connection.read_response()

    async def batch(self, batch: Batch) -> list[Any]:
        """Run several scripts in one trip."""
        outcomes: list[Any] = []
        try:
            # Not read_response(timeout=...), which returns None and leaves the reply unread.
            async with (
                asyncio.timeout(batch.timeout),
                self.lent("renew", urgent=batch.timeout) as connection,
            ):
                commands = connection.pack_commands([_by_sha(call) for call in batch.calls])
                await connection.send_packed_command(commands)
                for call in batch.calls:
                    try:
                        outcomes.append(await connection.read_response())
                    except self.driver.response as error:
                        if isinstance(_told(error, call), StoreUnavailable):
                            raise
                        outcomes.append(error)
        except TimeoutError:
            late = StoreUnavailable("the server did not answer in time", maybe_applied=True)
            outcomes += [late] * (len(batch.calls) - len(outcomes))
        except StoreError as error:
            outcomes += [error] * (len(batch.calls) - len(outcomes))
        try:
            return [
                await self._again(call, batch.timeout)
                if isinstance(outcome, self.driver.no_script)
                else _told(outcome, call)
                for call, outcome in zip(batch.calls, outcomes, strict=True)
            ]
        finally:
            del outcomes

    async def _again(self, call: Call, seconds: float) -> Any:
        try:
            async with self.lent(call.script.name, urgent=seconds) as connection:
                return await _async_answer(connection, call, self.driver)
        except StoreError as error:
            return error

    def lent(
        self,
        script: str | None,
        kept: Kept[AsyncLine] | None = None,
        confirm: Confirm | None = None,
        urgent: float | None = None,
    ) -> _AsyncLoan:
        """Lend a connection of the pool, and translate what goes wrong with it."""
        at_once = self._at_once if confirm is None else self._confirming
        if urgent is not None:
            at_once = self._renewing
        return _AsyncLoan(self.client.connection_pool, self.driver, script, kept, at_once, urgent)

    async def close(self) -> None:
        """Give the kept connection back."""
        with contextlib.suppress(IndexError):
            line = self._kept.take()
            await self._kept.pool.release(self._kept.end(line))


class _AsyncLoan:
    __slots__ = (
        "_at_once",
        "_cancelling",
        "_connection",
        "_driver",
        "_kept",
        "_pool",
        "_script",
        "_turns",
        "_urgent",
    )

    def __init__(
        self,
        pool: Any,
        driver: Driver,
        script: str | None,
        kept: Kept[AsyncLine] | None,
        at_once: asyncio.Semaphore,
        urgent: float | None,
    ) -> None:
        self._pool, self._driver, self._script = pool, driver, script
        self._kept, self._at_once = kept, at_once
        self._turns, self._urgent = turns_of(pool), urgent

    async def __aenter__(self) -> Any:
        self._cancelling = _cancellations()
        await self._at_once.acquire()
        try:
            self._connection = await self._from_pool()
        except BaseException:
            self._at_once.release()
            raise
        return self._connection

    async def _from_pool(self) -> Any:
        try:
            return await self._from_pool_at_once() or await self._in_turn()
        except Exception as error:  # The driver takes care of a cancellation.
            if not isinstance(error, self._driver.any):
                await self._pool.disconnect(inuse_connections=False)
            raise unreached(error, self._pool) from error

    async def _from_pool_at_once(self) -> Any:
        if self._turns.line:
            return None
        try:
            return await self._driver.connection(self._pool)
        except self._driver.full:
            return None

    async def _in_turn(self) -> Any:
        urgent = self._urgent is not None
        seconds = _FREE_SECONDS if self._urgent is None else self._urgent
        return await self._turns.wait_async(self._pool, self._driver, seconds, urgent=urgent)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection = self._connection
        refused = None
        if is_foreign(error):
            refused = refusal(error, self._script, sent=self._script is not None)
        try:
            if error is not None and (refused is None or isinstance(refused, StoreUnavailable)):
                await connection.disconnect(nowait=True)
            if error is not None or self._kept is None or not self._kept.keep(connection):
                await self._pool.release(connection)
                if self._turns.line:
                    self._turns.freed()
        finally:
            self._at_once.release()
        if refused is not None:
            raise refused from error
        if error is None and _cancellations() > self._cancelling:
            # wait_for, in the driver, swallows a cancellation that comes with its result.
            raise asyncio.CancelledError


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _answer(connection: Any, call: Call, driver: Driver) -> Any:
    try:
        connection.send_packed_command(call.packed or _pack(connection, call))
        reply = connection.read_response()
    except driver.no_script:
        connection.send_command(*_by_body(call))
        reply = connection.read_response()
    return reply if call.confirm is None else confirmed(connection, call.confirm, reply, driver)


async def _async_answer(connection: Any, call: Call, driver: Driver) -> Any:
    try:
        await connection.send_packed_command(call.packed or _pack(connection, call))
        reply = await connection.read_response()
    except driver.no_script:
        await connection.send_command(*_by_body(call))
        reply = await connection.read_response()
    if call.confirm is None:
        return reply
    return await confirmed_async(connection, call.confirm, reply, driver)


def _pack(connection: Any, call: Call) -> list[bytes]:
    """The bytes of a call. They are built once: one lease sends the same renew all its life."""
    packed: list[bytes] = connection.pack_command(*_by_sha(call))
    object.__setattr__(call, "packed", packed)
    return packed


def confirmed(connection: Any, confirm: Confirm, reply: Any, driver: Driver) -> Confirmed:
    """Ask what is to be asked after a script, on its connection. For every wire that blocks."""
    if text(reply[0]) != confirm.status:
        return Confirmed(reply, None)
    stream = stream_of(connection)
    connection.send_packed_command(connection.pack_commands(confirm.questions))
    answers: list[Any] = []
    for _ in confirm.questions:
        try:
            answers.append(driver.reply(connection, _patience(connection, confirm)))
        except driver.response as error:
            answers.append(refusal(error))
    _check_same(connection, stream)
    return Confirmed(reply, answers)


async def confirmed_async(
    connection: Any, confirm: Confirm, reply: Any, driver: Driver
) -> Confirmed:
    """The same for every wire that awaits."""
    if text(reply[0]) != confirm.status:
        return Confirmed(reply, None)
    stream = stream_of(connection)
    await connection.send_packed_command(connection.pack_commands(confirm.questions))
    answers: list[Any] = []
    for _ in confirm.questions:
        try:
            answer = await connection.read_response(timeout=_patience(connection, confirm))
        except driver.response as error:
            answer = refusal(error)
        if answer is None:  # The driver's way to say that nothing came, with the reply unread.
            await connection.disconnect(nowait=True)
            raise StoreUnavailable("nothing was heard of how safe a grant is", maybe_applied=True)
        answers.append(answer)
    _check_same(connection, stream)
    return Confirmed(reply, answers)


def _check_same(connection: Any, stream: Any) -> None:
    """Raise if the driver has connected anew, which it does without a word.

    The server then answered for a connection that has written nothing: that all is well.
    """
    if stream is None or stream_of(connection) is not stream:
        raise StoreUnavailable(
            "the connection broke before the server told how safe a grant is", maybe_applied=True
        )


def _patience(connection: Any, confirm: Confirm) -> float:
    """Seconds to wait for an answer: longer than the server was told to take."""
    return confirm.seconds + float(connection.socket_timeout or _FREE_SECONDS)


def _by_sha(call: Call) -> tuple[Any, ...]:
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def _by_body(call: Call) -> tuple[Any, ...]:
    return ("EVAL", call.script.body, len(call.keys), *call.keys, *call.args)


def _told(outcome: Any, call: Call) -> Any:
    if isinstance(outcome, StoreError) or not isinstance(outcome, Exception):
        return outcome
    return refusal(outcome, call.script.name)
