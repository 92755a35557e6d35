"""Sends the steps of the protocol through redis-py: `Wire` blocks, `AsyncWire` awaits.

A call goes out on a connection of the client's own pool, as EVALSHA, and once more as EVAL if the
server does not know the script (any more). It goes out once: the driver's own retries are not used
for scripts, because whether one may be repeated is for `fencer._protocol` to say.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import MaxConnectionsError, NoScriptError, RedisError, ResponseError

from fencer._refusals import refusal
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
from fencer._wakeups import TaskWakeups, ThreadWakeups
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable

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
        if not isinstance(client, redis.Redis):
            raise InvalidArgument(_wanted("redis.Redis", client))
        self.client = client
        self._wakeups = wakeups

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
        with self._lent(call.script.name) as connection:
            try:
                connection.send_command(*_by_sha(call))
                reply = connection.read_response()
            except NoScriptError:
                connection.send_command(*_by_body(call))
                reply = connection.read_response()
            return reply if call.confirm is None else confirmed(connection, call.confirm, reply)

    def command(self, words: tuple[str | int, ...]) -> Any:
        """Run a command that only reads, and return its reply as it came."""
        with self._lent(None) as connection:
            connection.send_command(*words)
            return connection.read_response()

    def batch(self, batch: Batch) -> list[Any]:
        """Run several scripts in one trip; for each its reply, or the error that it met."""
        outcomes: list[Any] = []
        try:
            with self._lent("renew") as connection:
                commands = connection.pack_commands([_by_sha(call) for call in batch.calls])
                connection.send_packed_command(commands)
                for _ in batch.calls:
                    try:
                        outcomes.append(connection.read_response(timeout=batch.timeout))
                    except ResponseError as error:
                        outcomes.append(error)
        except StoreError as error:
            outcomes += [error] * (len(batch.calls) - len(outcomes))
        return [
            self._again(call) if isinstance(outcome, NoScriptError) else _told(outcome, call)
            for call, outcome in zip(batch.calls, outcomes, strict=True)
        ]

    def _again(self, call: Call) -> Any:
        try:
            return self.call(call)
        except StoreError as error:
            return error

    @contextmanager
    def _lent(self, script: str | None) -> Iterator[Any]:
        """Lend a connection of the pool, and translate what goes wrong with it."""
        pool = self.client.connection_pool
        connection, until = None, time.monotonic() + _FREE_SECONDS
        while connection is None:
            try:
                connection = pool.get_connection()
            except MaxConnectionsError as error:
                if time.monotonic() > until:
                    raise refusal(error, script, sent=False) from error
                time.sleep(0.002)
            except RedisError as error:
                raise refusal(error, script, sent=False) from error
        try:
            yield connection
        except RedisError as error:
            raise refusal(error, script, sent=script is not None) from error
        except BaseException:
            connection.disconnect()  # A reply that nobody reads must not meet the next request.
            raise
        finally:
            pool.release(connection)


class AsyncWire:
    """The same on ``redis.asyncio``; the comments of `Wire` hold here, too."""

    def __init__(self, client: redis.asyncio.Redis, wakeups: TaskWakeups | None = None) -> None:
        if not isinstance(client, redis.asyncio.Redis):
            raise InvalidArgument(_wanted("redis.asyncio.Redis", client))
        self.client = client
        self._wakeups = wakeups
        # Thousands of tasks would otherwise open thousands of connections.
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        # Grants that wait for a replica that has gone must not keep renewals from being sent.
        self._confirming = asyncio.Semaphore(_AT_ONCE)

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
        async with self._lent(call.script.name, confirm=call.confirm) as connection:
            try:
                await connection.send_command(*_by_sha(call))
                reply = await connection.read_response()
            except NoScriptError:
                await connection.send_command(*_by_body(call))
                reply = await connection.read_response()
            if call.confirm is None:
                return reply
            return await confirmed_async(connection, call.confirm, reply)

    async def command(self, words: tuple[str | int, ...]) -> Any:
        """Run a command that only reads."""
        async with self._lent(None) as connection:
            await connection.send_command(*words)
            return await connection.read_response()

    async def batch(self, batch: Batch) -> list[Any]:
        """Run several scripts in one trip."""
        outcomes: list[Any] = []
        try:
            # Not read_response(timeout=...), which returns None and leaves the reply unread.
            async with asyncio.timeout(batch.timeout), self._lent("renew") as connection:
                commands = connection.pack_commands([_by_sha(call) for call in batch.calls])
                await connection.send_packed_command(commands)
                for _ in batch.calls:
                    try:
                        outcomes.append(await connection.read_response())
                    except ResponseError as error:
                        outcomes.append(error)
        except TimeoutError:
            late = StoreUnavailable("the server did not answer in time", maybe_applied=True)
            outcomes += [late] * (len(batch.calls) - len(outcomes))
        except StoreError as error:
            outcomes += [error] * (len(batch.calls) - len(outcomes))
        return [
            await self._again(call) if isinstance(outcome, NoScriptError) else _told(outcome, call)
            for call, outcome in zip(batch.calls, outcomes, strict=True)
        ]

    async def _again(self, call: Call) -> Any:
        try:
            return await self.call(call)
        except StoreError as error:
            return error

    @asynccontextmanager
    async def _lent(
        self, script: str | None, *, confirm: Confirm | None = None
    ) -> AsyncIterator[Any]:
        pool = self.client.connection_pool
        connection, until = None, time.monotonic() + _FREE_SECONDS
        async with self._at_once if confirm is None else self._confirming:
            while connection is None:
                try:
                    connection = await pool.get_connection()
                except MaxConnectionsError as error:
                    if time.monotonic() > until:
                        raise refusal(error, script, sent=False) from error
                    await asyncio.sleep(0.002)
                except RedisError as error:
                    raise refusal(error, script, sent=False) from error
            try:
                yield connection
            except RedisError as error:
                raise refusal(error, script, sent=script is not None) from error
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            finally:
                await pool.release(connection)


def confirmed(connection: Any, confirm: Confirm, reply: Any) -> Confirmed:
    """Ask what is to be asked after a script, on its connection. For every wire that blocks."""
    if text(reply[0]) != confirm.status:
        return Confirmed(reply, None)
    connection.send_packed_command(connection.pack_commands(confirm.questions))
    answers: list[Any] = []
    for _ in confirm.questions:
        try:
            answers.append(connection.read_response(timeout=_patience(connection, confirm)))
        except ResponseError as error:
            answers.append(refusal(error))
    return Confirmed(reply, answers)


async def confirmed_async(connection: Any, confirm: Confirm, reply: Any) -> Confirmed:
    """The same for every wire that awaits."""
    if text(reply[0]) != confirm.status:
        return Confirmed(reply, None)
    await connection.send_packed_command(connection.pack_commands(confirm.questions))
    answers: list[Any] = []
    for _ in confirm.questions:
        try:
            answer = await connection.read_response(timeout=_patience(connection, confirm))
        except ResponseError as error:
            answer = refusal(error)
        if answer is None:  # The driver's way to say that nothing came, with the reply unread.
            await connection.disconnect(nowait=True)
            raise redis.TimeoutError("nothing was heard of what a script has done")
        answers.append(answer)
    return Confirmed(reply, answers)


def _patience(connection: Any, confirm: Confirm) -> float:
    """Seconds to wait for an answer: longer than the server was told to take."""
    return confirm.seconds + float(connection.socket_timeout or _FREE_SECONDS)


def _by_sha(call: Call) -> tuple[Any, ...]:
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def _by_body(call: Call) -> tuple[Any, ...]:
    return ("EVAL", call.script.body, len(call.keys), *call.keys, *call.args)


def _told(outcome: Any, call: Call) -> Any:
    return refusal(outcome, call.script.name) if isinstance(outcome, RedisError) else outcome


def _wanted(kind: str, client: object) -> str:
    return (
        f"a {kind} client is wanted here, not {type(client).__module__}.{type(client).__name__}; "
        "fencer.connect(url) makes one for threads, fencer.connect_async(url) one for asyncio"
    )
