"""Planted bugs of the guards: see `tests.faults.planted`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from fencer.errors import StoreUnavailable
from fencer.guards import FileGuard, MemoryGuard, RedisGuard, _file, http, s3, sql
from fencer.guards._base import Claim, Token
from fencer.guards.s3 import STAMP_BYTES, S3Guard
from fencer.guards.sql import _BaseSQLGuard

GAP = 0.001
"""Seconds between a check and the write that should be one step with it."""


# In two steps: the check is over before the write begins.


def memory_in_two_steps(patch: pytest.MonkeyPatch) -> None:
    """Others are let in while a block runs."""
    plain = MemoryGuard.begin

    @contextmanager
    def begin(guard: MemoryGuard, token: Token) -> Iterator[None]:
        with plain(guard, token):
            pass
        time.sleep(GAP)
        yield

    patch.setattr(MemoryGuard, "begin", begin)


def file_in_two_steps(patch: pytest.MonkeyPatch) -> None:
    """A file is replaced without another look at the mark."""
    plain = FileGuard._accept

    def accept(guard: FileGuard, claim: Claim, fresh: Path | None = None) -> None:
        if fresh is None:
            plain(guard, claim)
        else:
            time.sleep(random.choice((0.0, 50 * GAP)))
            fresh.replace(guard._path)

    patch.setattr(FileGuard, "_accept", accept)
    patch.setattr(FileGuard, "_remove_leftovers", lambda guard, below: None)


def sql_in_two_steps(patch: pytest.MonkeyPatch) -> None:
    """A token is accepted in a transaction of its own, which is committed before the block."""
    plain = _BaseSQLGuard._enter

    def enter(guard: Any, connection: sa.Connection, claim: Claim, last: bool) -> bool:
        with connection.engine.begin() as another:
            entered = plain(guard, another, claim, last)
        for _ in range(random.choice((0, 0, 0, 20))):  # time for others, in both APIs
            connection.exec_driver_sql("SELECT 1")
        return entered

    patch.setattr(_BaseSQLGuard, "_enter", enter)


def s3_in_two_steps(patch: pytest.MonkeyPatch) -> None:
    """An object is put in the place of whatever is there by now, not of what was looked at."""
    plain = S3Guard._put

    def put(guard: S3Guard, seen: Any, *rest: Any) -> str:
        return plain(guard, seen._replace(etag=guard._look().etag), *rest)

    patch.setattr(S3Guard, "_put", put)


# Other slips.


def sql_compares_nothing(patch: pytest.MonkeyPatch) -> None:
    """The statement that stores the token takes every one."""
    patch.setattr(sql, "_accepts", lambda *_: sa.true())


def s3_stamps_alike(patch: pytest.MonkeyPatch) -> None:
    """The stamp is the same for every token, and so is the ETag."""
    patch.setattr(s3, "_stamp", lambda mark: b" " * STAMP_BYTES)


def s3_may_always_have_written(patch: pytest.MonkeyPatch) -> None:
    """A look without an answer is told as a put."""
    plain = S3Guard._answers
    patch.setattr(S3Guard, "_answers", lambda guard, writing=False: plain(guard, writing=True))


def file_locks_nobody_out(patch: pytest.MonkeyPatch) -> None:
    """Writers do not wait for each other."""

    @contextmanager
    def locked(guard: FileGuard) -> Iterator[None]:
        yield
        time.sleep(GAP)

    patch.setattr(FileGuard, "_locked", locked)


def file_lock_stays(patch: pytest.MonkeyPatch) -> None:
    """A lock is a file that is there: whoever was killed has it for ever."""

    @contextmanager
    def locked(guard: FileGuard) -> Iterator[None]:
        path = guard._beside(".lock")
        until = time.monotonic() + guard._timeout
        while path.exists():
            if time.monotonic() > until:
                raise StoreUnavailable("another writer has the lock", maybe_applied=False)
            time.sleep(GAP)
        path.touch()
        yield
        path.unlink()

    patch.setattr(FileGuard, "_locked", locked)


def file_is_written_in_place(patch: pytest.MonkeyPatch) -> None:
    """New content goes into the file itself, piece by piece."""
    plain = FileGuard._accept
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    patch.setattr(FileGuard, "_create_alike", lambda guard, fresh: os.open(guard._path, flags))
    patch.setattr(FileGuard, "_accept", lambda guard, claim, fresh=None: plain(guard, claim))


def file_is_not_flushed(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks whether the content has reached the disk."""
    unflushed = SimpleNamespace(**{**vars(os), "fsync": lambda file: None})
    patch.setattr(_file, "os", unflushed)


def redis_mark_in_the_process(patch: pytest.MonkeyPatch) -> None:
    """A process knows only what it has seen itself."""
    marks: dict[str, MemoryGuard] = {}

    def check(guard: RedisGuard, token: Token) -> None:
        mark = marks.setdefault(guard.resource, MemoryGuard(guard.resource))
        mark.check(token)

    patch.setattr(RedisGuard, "check", check)


def http_tells_strangers(patch: pytest.MonkeyPatch) -> None:
    """A response says what the guard's store said."""
    plain = http._Middleware._answer

    def answer(app: Any, error: Exception) -> Any:
        return plain(app, error)._replace(detail=str(error))

    patch.setattr(http._Middleware, "_answer", answer)
