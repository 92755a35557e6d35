"""The guard in front of keys of a Redis or Valkey server.

`RedisGuard` and `AsyncRedisGuard` share all but the sending.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from fencer import _check
from fencer._drive import run, run_async
from fencer._keys import Keyspace
from fencer._protocol import ask, read
from fencer._refusals import code_in, told
from fencer._scripts import Script, load
from fencer._steps import Call, Steps, text
from fencer._wires import AsyncClient, Client, async_wire_for, wire_for
from fencer.errors import InvalidArgument, ScriptError, StaleToken, StoreError
from fencer.guards._base import BaseGuard, Token

Word: TypeAlias = str | bytes | int | float

_MAX_COMMANDS = 1_000
_MAX_WORDS = 7_000

_COMPOSED = """\
local function task(KEYS, ARGV) %s
end
local function guard(KEYS, ARGV)
%s
end
local checked = guard({KEYS[1]}, {ARGV[1], ARGV[2], '0'})
if checked[1] ~= 'ACCEPTED' then return checked end
local reply = task({unpack(KEYS, 2)}, {unpack(ARGV, 3)})
if type(reply) == 'table' and reply.err then return {'FAILED', checked[2], {}, reply.err} end
return {'ACCEPTED', checked[2], {reply}}
"""
"""A script of the caller's behind guard.lua. It comes first, so that its lines keep their numbers;
each of the two sees KEYS and ARGV of its own."""


class _BaseRedisGuard(BaseGuard):
    """What is sent, and what the answers mean."""

    def __init__(
        self,
        resource: str,
        name: str | None,
        keys: Sequence[bytes] | None,
        namespace: str,
        tag: str | None,
    ) -> None:
        super().__init__(resource, name=name, keys=keys)
        checked = None if tag is None else _check.name(tag, "tag")
        self._mark = Keyspace(namespace).mark(self.resource, checked)

    def _checking(self, token: Token) -> Steps[None]:
        yield from self._guarded(token, load("guard"), (), (0,), 0, repeat=True)

    def _executing(
        self, token: Token, commands: Sequence[Sequence[Word]], keys: Sequence[str | bytes]
    ) -> Steps[list[Any]]:
        words = _words(commands)
        used = tuple(keys) or tuple(
            str(command[1]) if isinstance(command[1], int | float) else command[1]
            for command in commands
            if len(command) > 1
        )
        count = len(commands)
        return self._guarded(token, load("guard"), used, (count, *words), count)

    def _scripting(
        self, token: Token, lua: str, keys: Sequence[str | bytes], args: Sequence[Word]
    ) -> Steps[Any]:
        script = _composed(lua)
        used = _listed("keys", keys)
        try:
            replies = yield from self._guarded(token, script, used, _checked(args), None)
        except StoreError as error:
            raise _placed(error, lua.count("\n") + 1) from error.__cause__
        return replies[0] if replies else None  # Lua leaves a nil at the end of a table out

    def _highest(self) -> Steps[int]:
        mark = yield from read("HGET", self._mark, "token")
        return int(text(mark)) if mark else 0

    def _guarded(
        self,
        token: Token,
        script: Script,
        keys: tuple[str | bytes, ...],
        args: tuple[Word, ...],
        commands: int | None,
        *,
        repeat: bool = False,
    ) -> Steps[list[Any]]:
        shown = self._claim(token)
        for key in keys:
            if isinstance(key, str):
                _encodable(key)
        call = Call(script, (self._mark, *keys), (shown.token, shown.grant, *args))
        match (yield from ask(call, repeat=repeat)):
            case ["ACCEPTED", _, replies]:
                accepted: list[Any] = replies
                return accepted
            case ["FAILED", _, replies, error] if commands is not None:
                raise _failed(len(replies), commands, text(error))
            case ["FAILED", _, _, error]:
                raise _ended(text(error), None)
            case [_, highest, _]:
                raise StaleToken(self.resource, shown.token, highest)
            case reply:
                raise AssertionError(reply)


class RedisGuard(_BaseRedisGuard):
    """Lets only the newest holder write to a resource on Redis: check and write are one step.

    The guard remembers the largest token that it has accepted, in a key without a time limit beside
    the data. It refuses every smaller one from then on, and an equal one of another grant. The same
    token may write many times.

    Args:
        client: a ``redis.Redis`` for the server that has the data, or a
            ``redis.cluster.RedisCluster``.
        resource: what is protected, 1 to 512 bytes; guards of the same resource share one mark.
        name: the name of the leases whose tokens count here; by default the resource's own name.
        keys: take only what is sealed with one of these.
        namespace: how the mark's key begins.
        tag: the hash tag of the keys that the commands use, so that the mark shares their slot on a
            Cluster: ``tag="42"`` for ``{42}:balance``; by default the resource's own name.

    Raises:
        InvalidArgument: an argument is not allowed.

    Source:
        Kleppmann 2016, "How to do distributed locking".
    """

    def __init__(
        self,
        client: Client,
        resource: str,
        *,
        name: str | None = None,
        keys: Sequence[bytes] | None = None,
        namespace: str = "fencer",
        tag: str | None = None,
    ) -> None:
        super().__init__(resource, name, keys, namespace, tag)
        self._wire = wire_for(client)

    def check(self, token: Token) -> None:
        """Accept the token, or refuse it; write nothing else.

        A check before a write elsewhere leaves a gap between the two; `execute` leaves none.

        Args:
            token: an ``int``, or a `Lease` or `Sequencer`, whose grant is then compared too.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before.
            StoreError: the server refused or did not answer.
            InvalidArgument: it is no token, or one of another name; nothing was sent.

        Cost:
            One script call of constant time.
        """
        run(self._checking(token), self._wire)

    def execute(self, token: Token, *command: Word, keys: Sequence[str | bytes] = ()) -> Any:
        """Run a command if the token is not stale, in one atomic step.

        Args:
            token: as for `check`.
            command: its words, such as ``"SET", "balance", "42"``.
            keys: all keys that it uses; by default its first argument.

        Returns:
            The server's reply as it came: ``b"OK"``, an ``int``, bytes, a list or ``None``.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before; nothing was
                written.
            ScriptError: the token was accepted, but the command failed.
            StoreUnavailable: no answer came. It is not sent again, since the command may not bear
                it: ``maybe_applied`` says whether it may have been carried out.
            StoreError: the server refused; nothing was written.
            InvalidArgument: nothing was sent.

        Cost:
            One script call of constant time, and the command.

        Note:
            Redis 6.2 (seen with 6.2.14) crashes when any script, and so a guard, runs
            ``INCRBYFLOAT`` after a command with more words; later versions do not.
        """
        return run(self._executing(token, [command], keys), self._wire)[0]

    def transaction(
        self,
        token: Token,
        commands: Sequence[Sequence[Word]],
        *,
        keys: Sequence[str | bytes] = (),
    ) -> list[Any]:
        """Run several commands if the token is not stale, in one atomic step.

        Nobody sees a state in between. As in ``MULTI``/``EXEC``, a command that fails, say on a key
        of the wrong type, does not undo those before it; those after it are not run.

        Args:
            token: as for `check`.
            commands: up to 1,000, of up to 7,000 words each.
            keys: all keys that they use; by default the first argument of each.

        Returns:
            The server's replies, in order.

        Raises:
            ScriptError: a command failed; the message says which, and what was applied.
            others: as for `execute`.

        Cost:
            One script call, and the commands.
        """
        return run(self._executing(token, commands, keys), self._wire)

    def script(
        self,
        token: Token,
        lua: str,
        *,
        keys: Sequence[str | bytes] = (),
        args: Sequence[Word] = (),
    ) -> Any:
        """Run a Lua script of yours if the token is not stale, in one atomic step.

            guard.script(
                lease,
                "return redis.call('SET', KEYS[1], ARGV[1])",
                keys=["balance"],
                args=[42],
            )

        It sees ``KEYS`` and ``ARGV`` as if it were alone. Put values into ``args``, never into its
        text: each text is a script of its own on the server. What it wrote before an error stands,
        as with any script.

        Args:
            token: as for `check`.
            lua: the script. What it returns is returned.
            keys: all keys that it uses, in the mark's slot on a Cluster.
            args: what it finds in ``ARGV``.

        Returns:
            The server's reply as it came; ``None`` if it returned nothing.

        Raises:
            ScriptError: the token was accepted, but the script failed; the message says at which of
                its lines, as ``line`` does. If it cannot be compiled, the token was not accepted.
            others: as for `execute`.

        Cost:
            One script call, which writes the mark each time, and what the script does.
        """
        return run(self._scripting(token, lua, keys, args), self._wire)

    def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none.

        Raises:
            StoreError: the server refused or did not answer.
        """
        return run(self._highest(), self._wire)


class AsyncRedisGuard(_BaseRedisGuard):
    """The same for asyncio: see `RedisGuard`.

    Args:
        client: a ``redis.asyncio.Redis`` or its ``RedisCluster``; the others are those of
            `RedisGuard`.
        resource: what is protected.
        name: the name of the leases whose tokens count here.
        keys: take only what is sealed with one of these.
        namespace: how the mark's key begins.
        tag: the hash tag of the keys that the commands use.

    A call whose task is cancelled may have been carried out.
    """

    def __init__(
        self,
        client: AsyncClient,
        resource: str,
        *,
        name: str | None = None,
        keys: Sequence[bytes] | None = None,
        namespace: str = "fencer",
        tag: str | None = None,
    ) -> None:
        super().__init__(resource, name, keys, namespace, tag)
        self._wire = async_wire_for(client)

    async def check(self, token: Token) -> None:
        """Accept the token, or refuse it; write nothing else: see `RedisGuard.check`."""
        await run_async(self._checking(token), self._wire)

    async def execute(self, token: Token, *command: Word, keys: Sequence[str | bytes] = ()) -> Any:
        """Run a command if the token is not stale: see `RedisGuard.execute`."""
        return (await run_async(self._executing(token, [command], keys), self._wire))[0]

    async def transaction(
        self,
        token: Token,
        commands: Sequence[Sequence[Word]],
        *,
        keys: Sequence[str | bytes] = (),
    ) -> list[Any]:
        """Run several commands if the token is not stale: see `RedisGuard.transaction`."""
        return await run_async(self._executing(token, commands, keys), self._wire)

    async def script(
        self,
        token: Token,
        lua: str,
        *,
        keys: Sequence[str | bytes] = (),
        args: Sequence[Word] = (),
    ) -> Any:
        """Run a Lua script of yours if the token is not stale: see `RedisGuard.script`."""
        return await run_async(self._scripting(token, lua, keys, args), self._wire)

    async def highest(self) -> int:
        """Return the largest token accepted so far: see `RedisGuard.highest`."""
        return await run_async(self._highest(), self._wire)


def _words(commands: Sequence[Sequence[Word]]) -> list[Word]:
    if isinstance(commands, str | bytes) or len(commands) > _MAX_COMMANDS:
        raise InvalidArgument(f"commands must be a list of at most {_MAX_COMMANDS}")
    words: list[Word] = []
    for command in commands:
        if isinstance(command, str | bytes) or not 1 <= len(command) <= _MAX_WORDS:
            raise InvalidArgument(
                f"a command is a list of 1 to {_MAX_WORDS} words, such as "
                f'["SET", "balance", "42"], not {command!r}'
            )
        words += [len(command), *_checked(command)]
    return words


def _checked(words: Sequence[Word]) -> tuple[Word, ...]:
    for word in _listed("args", words):
        if isinstance(word, str):
            _encodable(word)
        elif isinstance(word, bool) or not isinstance(word, bytes | int | float):
            raise InvalidArgument(f"a word must be str, bytes, int or float, not {word!r}")
    return tuple(words)


def _listed(what: str, items: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(items, str | bytes):
        raise InvalidArgument(f"{what} must be a list, not {items!r}")
    return tuple(items)


@lru_cache(maxsize=256)
def _composed(lua: str) -> Script:
    if not isinstance(lua, str) or not lua.strip() or "\0" in lua:
        raise InvalidArgument("a script must be a str of Lua without NUL characters")
    body = _COMPOSED.encode() % (lua.encode(), load("guard").body)
    return Script("guard", body, hashlib.sha1(body, usedforsecurity=False).hexdigest())


def _failed(done: int, of: int, message: str) -> ScriptError:
    applied = "Nothing was written" if done == 0 else f"The first {done} of {of} commands stand"
    return ScriptError(
        f"command {done + 1} of {of} failed: {told(message)}. {applied}",
        script="guard",
        line=None,
        code=code_in(message),
    )


def _encodable(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{word!r} cannot be encoded as UTF-8: {error.reason}") from None


_LINE = re.compile(r"user_script:\s?(\d+)")


def _placed(error: StoreError, lines: int) -> StoreError:
    """The error of a composed script, told by the line in the part that it belongs to."""
    message = str(error.__cause__)
    found = _LINE.search(message)
    if found is None:
        return error
    line = int(found[1])
    if "compiling" in message:
        return _not_compiled(message, line if line <= lines else None)
    if line <= lines:
        return _ended(message, line)
    if isinstance(error, ScriptError):
        told = str(error).partition(": ")[2]
        return ScriptError(told, script="guard", line=line - lines - 2, code=error.code)
    return error


def _not_compiled(message: str, line: int | None) -> ScriptError:
    return _of_caller(f"your script cannot be compiled ({message}). Nothing was changed", line)


def _ended(message: str, line: int | None) -> ScriptError:
    where = "ended" if line is None else f"ended at its line {line}"
    return _of_caller(
        f"the token was accepted, and your script {where} with an error ({message}). "
        "What it had written stands",
        line,
    )


def _of_caller(message: str, line: int | None) -> ScriptError:
    error = ScriptError(message, script="guard", line=None)
    error.line = line  # It is no line of lua/guard.lua, as the message would say.
    return error
