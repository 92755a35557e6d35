"""SQLGuard and its twin keep the rules of all guards, on each database at each isolation level."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fencer.guards._base import Token
from fencer.guards.sql import AsyncSQLGuard, SQLGuard, _is_conflict
from fencer.guards.testing import conform, conform_async
from tests.faults.planted import twin
from tests.fix_sql import LEVELS, Database, OpenDatabase, data
from tests.guards import bugs

MakeEngine = Callable[..., sa.Engine]
ROUNDS = 30


class RolledBackError(Exception):
    """What a block raises so that its transaction is rolled back."""


def _put(resource: str, value: str) -> sa.Update:
    return sa.update(data).where(data.c.resource == resource).values(value=value)


def _get(resource: str) -> sa.Select[Any]:
    return sa.select(data.c.value).where(data.c.resource == resource)


def _new(engine: sa.Engine, resource: str) -> None:
    try:
        with engine.begin() as connection:
            connection.execute(sa.insert(data).values(resource=resource, writes=0))
    except IntegrityError:
        pass  # another handle was first


def _again(write: Callable[[], None]) -> None:
    """Begin again where the database ended the transaction in favour of another."""
    while True:
        try:
            return write()
        except DBAPIError as error:
            if not _is_conflict(error):
                raise


class Row:
    """A row behind SQLGuard."""

    def __init__(self, engine: sa.Engine, resource: str) -> None:
        self.engine = engine
        self.resource = resource
        self.guard = SQLGuard(engine, resource)
        _new(engine, resource)

    def write(self, token: Token, value: str) -> None:
        _again(lambda: self.write_once(token, value))

    def write_once(self, token: Token, value: str) -> None:
        with self.guard.begin(token) as connection:
            connection.execute(_put(self.resource, value))

    def read(self) -> str | None:
        with self.engine.connect() as connection:
            value: str | None = connection.execute(_get(self.resource)).scalar_one()
        return value

    def check(self, token: Token) -> None:
        _again(lambda: self.guard.check(token))

    def highest(self) -> int:
        return self.guard.highest()

    def fail(self, token: Token) -> None:
        with self.guard.begin(token) as connection:
            connection.execute(_put(self.resource, "half"))
            raise RolledBackError


class RowInMyTransaction(Row):
    """The check is made in a transaction that the caller has."""

    def write_once(self, token: Token, value: str) -> None:
        with self.engine.begin() as connection:
            self.guard.check(token, connection)
            connection.execute(_put(self.resource, value))


@twin(bugs.sql_in_two_steps, of="READ COMMITTED")
@pytest.mark.parametrize(("dialect", "level"), LEVELS)
def test_it_conforms(
    dialect: str, level: str, open_database: OpenDatabase, make_engine: MakeEngine
) -> None:
    """A rule of the family would be broken on this database."""
    engine = make_engine(open_database(dialect), isolation_level=level)
    conform(lambda resource: Row(engine, resource), rounds=ROUNDS, fail=Row.fail)


@twin(bugs.sql_compares_nothing, of="sqlite")
def test_it_conforms_in_the_callers_transaction(engine: sa.Engine) -> None:
    """A check in a transaction that the caller already has would not protect it."""
    conform(lambda resource: RowInMyTransaction(engine, resource), rounds=ROUNDS)


class AsyncRow:
    """A row behind AsyncSQLGuard."""

    def __init__(self, engine: AsyncEngine, maker: sa.Engine, resource: str) -> None:
        self.engine = engine
        self.resource = resource
        self.guard = AsyncSQLGuard(engine, resource)
        _new(maker, resource)

    async def write(self, token: Token, value: str) -> None:
        async with self.guard.begin(token) as connection:
            await connection.execute(_put(self.resource, value))

    async def read(self) -> str | None:
        async with self.engine.connect() as connection:
            value: str | None = (await connection.execute(_get(self.resource))).scalar_one()
        return value

    async def check(self, token: Token) -> None:
        await self.guard.check(token)

    async def highest(self) -> int:
        return await self.guard.highest()

    async def fail(self, token: Token) -> None:
        async with self.guard.begin(token) as connection:
            await connection.execute(_put(self.resource, "half"))
            raise RolledBackError


def _conform_async(database: Database, maker: sa.Engine, url: str, **options: Any) -> None:
    kind = options.pop("kind")

    async def run() -> None:
        engine = create_async_engine(url)
        try:
            await conform_async(lambda resource: kind(engine, maker, resource), **options)
        finally:
            await engine.dispose()

    asyncio.run(run())


@twin(bugs.sql_in_two_steps)
@pytest.mark.parametrize("driver", [0, 1])
def test_the_asyncio_twin_conforms(driver: int, database: Database, engine: sa.Engine) -> None:
    """The twin would break a rule of the family on this driver."""
    if driver >= len(database.async_urls):
        pytest.skip("this database has one asyncio driver here")
    url = database.async_urls[driver]
    _conform_async(database, engine, url, kind=AsyncRow, rounds=ROUNDS, fail=AsyncRow.fail)
