"""A write to a database without a guard, and with each kind of it; ``pytest bench/``.

The databases are those of the tests: in a temporary folder, and without fsync, so that the price of
the guard is not hidden behind that of the disk. Compare the medians within one group.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from pytest_benchmark.fixture import BenchmarkFixture

from fencer.guards.sql import SQLGuard
from tests.fix_sql import DIALECTS, Database, data, make_engine, open_database

__all__ = ["make_engine", "open_database"]

_ROUNDS = 1_000
_WAYS = ["unguarded", "begin", "check in my transaction", "own row"]


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_write(
    way: str,
    dialect: str,
    open_database: Callable[[str], Database],
    make_engine: Callable[..., sa.Engine],
    benchmark: BenchmarkFixture,
) -> None:
    """One row is updated in a transaction of its own, by a holder that has written before."""
    benchmark.group = f"guarded write, {dialect}"
    engine = make_engine(open_database(dialect))
    resource = f"bench-{secrets.token_hex(6)}"
    with engine.begin() as connection:
        connection.execute(sa.insert(data).values(resource=resource, writes=0))
    write = _writer(way, engine, resource)
    benchmark.pedantic(write, rounds=_ROUNDS, warmup_rounds=_ROUNDS // 10)


def _writer(way: str, engine: sa.Engine, resource: str) -> Callable[[], None]:
    guard = SQLGuard(engine, resource)
    guard.check(10)
    numbers = itertools.count()

    def statement() -> sa.Update:
        value = str(next(numbers))
        return sa.update(data).where(data.c.resource == resource).values(value=value)

    def unguarded() -> None:
        with engine.begin() as connection:
            connection.execute(statement())

    def begin() -> None:
        with guard.begin(10) as connection:
            connection.execute(statement())

    def check() -> None:
        with engine.begin() as connection:
            guard.check(10, connection)
            connection.execute(statement())

    def own_row() -> None:
        with engine.begin() as connection:
            guard.execute(connection, 10, statement(), fence=data.c.fence)

    return dict(zip(_WAYS, [unguarded, begin, check, own_row], strict=True))[way]
