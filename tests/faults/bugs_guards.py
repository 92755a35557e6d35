"""Planted bugs of the guard on Redis, and of what a refusal means. See `tests.faults.planted`."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from fencer import _refusals
from fencer._refusals import code_in
from fencer._steps import Sleep, Steps
from fencer.errors import StoreUnavailable
from fencer.guards import _redis
from fencer.guards._base import Token
from fencer.guards._redis import Word, _BaseRedisGuard
from tests.faults.planted import in_script

# The guard.


def guard_in_two_steps(patch: pytest.MonkeyPatch) -> None:
    """A token is checked, and what it may write is sent afterwards."""
    plain = _BaseRedisGuard._executing

    def executing(guard: _BaseRedisGuard, token: Token, *rest: Any) -> Steps[list[Any]]:
        yield from guard._checking(token)
        yield Sleep(random.choice((0.0, 0.0, 0.0, 0.01)))
        highest = yield from guard._highest()
        return (yield from plain(guard, highest, *rest))

    patch.setattr(_BaseRedisGuard, "_executing", executing)


def guard_runs_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """Each command of a transaction is a step of its own."""
    plain = _BaseRedisGuard._executing

    def executing(
        guard: _BaseRedisGuard, token: Token, commands: Sequence[Sequence[Word]], keys: Any
    ) -> Steps[list[Any]]:
        replies = []
        for command in commands:
            replies += yield from plain(guard, token, [command], keys)
        return replies

    patch.setattr(_BaseRedisGuard, "_executing", executing)


def guard_takes_each_once(patch: pytest.MonkeyPatch) -> None:
    """A token that has written is stale."""
    in_script(patch, "guard", "offered < highest or", "offered <= highest or")


def guard_knows_no_grants(patch: pytest.MonkeyPatch) -> None:
    """Two grants with one token are taken for one."""
    in_script(patch, "guard", " or (offered == highest and rival)", "")


def guard_tells_no_code(patch: pytest.MonkeyPatch) -> None:
    """What a command within the guard met is not looked at."""
    patch.setattr(_redis, "code_in", lambda message: "")


# What a refusal means.


def outages_are_for_good(patch: pytest.MonkeyPatch) -> None:
    """What passes with a failover is an error like any other."""
    patch.setattr(_refusals, "_passing", lambda message, script: "")


def refusals_are_outages(patch: pytest.MonkeyPatch) -> None:
    """What an operator has to see to is waited for."""
    patch.setattr(_refusals, "_passing", lambda message, script: code_in(message))


def gives_no_advice(patch: pytest.MonkeyPatch) -> None:
    """An error has the server's words only."""
    patch.setattr(_refusals, "_ADVICE", dict.fromkeys(_refusals._ADVICE, ""))


def names_no_line(patch: pytest.MonkeyPatch) -> None:
    """An error does not tell where in a script it was."""
    patch.setattr(_refusals, "_LINE", re.compile("(?!)"))


def always_maybe_applied(patch: pytest.MonkeyPatch) -> None:
    """A call that was never sent is told as one that may have been carried out."""
    _maybe_applied(patch, True)


def never_maybe_applied(patch: pytest.MonkeyPatch) -> None:
    """A call without an answer is told as one that was not carried out."""
    _maybe_applied(patch, False)


def _maybe_applied(patch: pytest.MonkeyPatch, told: bool) -> None:
    def error(message: str, *, maybe_applied: bool, code: str = "") -> StoreUnavailable:
        return StoreUnavailable(message, maybe_applied=told, code=code)

    patch.setattr(_refusals, "StoreUnavailable", error)


# The scripts where the server refuses.


def renew_needs_memory(patch: pytest.MonkeyPatch) -> None:
    """A renew begins with what a full server refuses."""
    first = "for i = 1, n do redis.call('PEXPIRE', prolonged[i], ends[i]) end"
    then = "for i = 1, m do redis.call('SET', written[i], values[i], 'PX', ttl_ms) end"
    in_script(patch, "renew", f"{first}\n{then}", f"{then}\n{first}")


def release_undoes_nothing(patch: pytest.MonkeyPatch) -> None:
    """A release that may not delete the lock has retired its token all the same."""
    undo = "redis.call('SET', token, issued, 'PX', keep_ms)\n    return deleted"
    in_script(patch, "release", undo, "return deleted")


def needs_its_history(patch: pytest.MonkeyPatch) -> None:
    """What cannot be put on record is not done."""
    for script in ("acquire", "release"):
        in_script(patch, script, "done = redis.pcall('XADD'", "done = redis.call('XADD'")


def grants_for_good(patch: pytest.MonkeyPatch) -> None:
    """A lock has no time limit."""
    limited = "redis.call('SET', lock, who, 'PX', lock_ms)"
    in_script(patch, "acquire", limited, "redis.call('SET', lock, who)")


def mints_beyond_the_last(patch: pytest.MonkeyPatch) -> None:
    """Tokens go on where numbers are not exact any more."""
    in_script(patch, "acquire", "if number >= 2 ^ 53 then", "if false then")
