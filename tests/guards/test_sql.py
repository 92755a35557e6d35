"""SQLGuard, method by method, on each database."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError, NoResultFound
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from fencer.errors import InvalidArgument, StaleToken
from fencer.guards import AsyncGuard, Guard
from fencer.guards.sql import AsyncSQLGuard, SQLGuard, ddl
from fencer.sequencer import Sequencer
from tests.fix_sql import Database, data

MakeEngine = Callable[..., sa.Engine]
DIALECTS = ["postgresql", "mysql", "mariadb", "sqlite"]


@pytest.fixture
def guard(engine: sa.Engine, resource: str) -> SQLGuard:
    """A guard of a row that has a value already."""
    with engine.begin() as connection:
        connection.execute(sa.insert(data).values(resource=resource, value="first", writes=0))
    return SQLGuard(engine, resource)


def put(resource: str, value: str) -> sa.Update:
    return sa.update(data).where(data.c.resource == resource).values(value=value)


def value_of(engine: sa.Engine, resource: str) -> Any:
    with engine.connect() as connection:
        query = sa.select(data.c.value).where(data.c.resource == resource)
        return connection.execute(query).scalar_one()


def count(engine: sa.Engine) -> list[str]:
    """A list that grows by each statement that the engine sends."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    return sent


def test_it_is_a_guard(engine: sa.Engine, database: Database) -> None:
    """It could not be announced to by acquire()."""
    assert isinstance(SQLGuard(engine, "orders"), Guard)
    twin = AsyncSQLGuard(create_async_engine(database.async_urls[0]), "orders")
    assert isinstance(twin, AsyncGuard)


def test_a_stale_token_does_not_enter(guard: SQLGuard, engine: sa.Engine) -> None:
    """A writer that has been replaced would run its block."""
    with guard.begin(20) as connection:
        connection.execute(put(guard.resource, "newer"))
    with pytest.raises(StaleToken) as caught, guard.begin(10):
        pytest.fail("the block was entered")
    assert (caught.value.resource, caught.value.token, caught.value.highest) == (
        guard.resource,
        10,
        20,
    )
    assert value_of(engine, guard.resource) == "newer"


def test_what_is_rolled_back_takes_its_mark_along(guard: SQLGuard, engine: sa.Engine) -> None:
    """A mark without its write, or a write without its mark, would stay."""

    def fail() -> None:
        with guard.begin(20) as connection:
            connection.execute(put(guard.resource, "half"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert guard.highest() == 0
    assert value_of(engine, guard.resource) == "first"
    guard.check(10)


def test_an_announced_mark_is_committed(guard: SQLGuard) -> None:
    """A new holder that reads before it writes could have its ground changed."""
    guard.check(20)
    with pytest.raises(ZeroDivisionError), guard.begin(20):
        print(1 / 0)
    assert guard.highest() == 20
    with pytest.raises(StaleToken):
        guard.check(19)


def test_a_refusal_leaves_the_callers_transaction_alive(guard: SQLGuard, engine: sa.Engine) -> None:
    """A caller could not tell its own table that it was refused."""
    guard.check(20)
    with engine.begin() as connection:
        with pytest.raises(StaleToken):
            guard.check(10, connection)
        connection.execute(put(guard.resource, "refused"))
    assert value_of(engine, guard.resource) == "refused"


def test_a_check_in_the_callers_transaction_ends_with_it(
    guard: SQLGuard, engine: sa.Engine
) -> None:
    """The mark would be committed without the caller, or not with it."""
    with engine.connect() as connection:
        guard.check(20, connection)
        connection.rollback()
        assert guard.highest() == 0
        guard.check(10, connection)
        connection.commit()
    assert guard.highest() == 10


def test_the_orm_can_be_used(guard: SQLGuard, engine: sa.Engine) -> None:
    """A session would commit before the block ends, or not at all."""
    with guard.begin(10) as connection, Session(connection) as session:
        session.execute(put(guard.resource, "by the ORM"))
        session.commit()
    with Session(engine) as session:
        guard.check(11, session.connection())
        session.execute(put(guard.resource, "by the ORM, too"))
        session.commit()
    assert value_of(engine, guard.resource) == "by the ORM, too"
    assert guard.highest() == 11


def test_a_block_cannot_go_on_after_its_commit(guard: SQLGuard, engine: sa.Engine) -> None:
    """What comes after an early commit would be written without the guard."""

    def go_on() -> None:
        with guard.begin(10) as connection:
            connection.commit()
            connection.execute(put(guard.resource, "unguarded"))

    with pytest.raises(InvalidRequestError):
        go_on()
    assert value_of(engine, guard.resource) == "first"


def test_nobody_comes_between(guard: SQLGuard) -> None:
    """Another writer, newer or older, would be let in while a block is running."""
    guard.check(1)
    order: list[str] = []

    def other(token: int) -> None:
        try:
            with guard.begin(token):
                order.append(f"{token} in")
        except StaleToken:
            order.append(f"{token} refused")

    with guard.begin(10):
        threads = [threading.Thread(target=other, args=[token]) for token in (9, 11)]
        for thread in threads:
            thread.start()
        threads[0].join(0.2)
        assert order == []
    for thread in threads:
        thread.join(20)
    assert set(order) == {"9 refused", "11 in"}


def test_resources_do_not_share_a_mark(guard: SQLGuard, engine: sa.Engine) -> None:
    """A database that ignores case or trailing blanks would lock out the holder of another name."""
    guard.check(20)
    for other in (guard.resource.upper(), f"{guard.resource} ", f"{guard.resource}é"):
        assert SQLGuard(engine, other).highest() == 0
        SQLGuard(engine, other).check(10)
    long = "é" * 256
    SQLGuard(engine, long).check(10)
    assert SQLGuard(engine, long).highest() == 10


def test_a_guarded_transaction_costs_one_statement(guard: SQLGuard, engine: sa.Engine) -> None:
    """The price of the guard would be higher than it says."""
    guard.check(1)
    sent = count(engine)
    with guard.begin(2) as connection:
        connection.execute(put(guard.resource, "x"))
    assert len([each for each in sent if not each.startswith("BEGIN")]) == 2
    sent.clear()
    with guard.begin(2):
        pass
    assert len([each for each in sent if not each.startswith("BEGIN")]) == 1


def test_a_row_can_keep_its_own_token(guard: SQLGuard, engine: sa.Engine) -> None:
    """An older token would write to the row, or the row would not remember the newer one."""

    def write(token: int, value: str) -> None:
        with engine.begin() as connection:
            guard.execute(connection, token, put(guard.resource, value), fence=data.c.fence)

    write(10, "ten")
    write(10, "ten")
    write(20, "twenty")
    with pytest.raises(StaleToken) as caught:
        write(19, "nineteen")
    assert (caught.value.token, caught.value.highest) == (19, 20)
    assert value_of(engine, guard.resource) == "twenty"
    assert guard.highest() == 0, "the table of the guards has no part in it"


def test_a_row_that_is_not_there_is_no_stale_token(guard: SQLGuard, engine: sa.Engine) -> None:
    """A write that changed nothing would look accepted, or its holder replaced."""
    with engine.begin() as connection, pytest.raises(NoResultFound):
        guard.execute(connection, 10, put("nowhere", "x"), fence=data.c.fence)


def test_several_rows_are_not_one_resource(guard: SQLGuard, engine: sa.Engine) -> None:
    """Some rows would be written and newer ones left out, without a word."""
    both = [f"{guard.resource}-a", f"{guard.resource}-b"]
    with engine.begin() as connection:
        connection.execute(sa.insert(data), [{"resource": each, "writes": 0} for each in both])
    statement = sa.update(data).where(data.c.resource.in_(both)).values(value="x")
    with pytest.raises(InvalidArgument, match="one row"), engine.begin() as connection:
        guard.execute(connection, 10, statement, fence=data.c.fence)
    assert value_of(engine, both[0]) is None


def test_the_clause_fits_statements_of_your_own(guard: SQLGuard, engine: sa.Engine) -> None:
    """A delete could not be guarded by the row's own token."""
    with engine.begin() as connection:
        guard.execute(connection, 20, put(guard.resource, "x"), fence=data.c.fence)
    mine = data.c.resource == guard.resource
    with engine.begin() as connection:
        for token, rows in ((19, 0), (20, 1)):
            statement = sa.delete(data).where(mine, guard.clause(token, data.c.fence))
            assert connection.execute(statement).rowcount == rows


def test_autocommit_is_refused(database: Database, make_engine: MakeEngine, resource: str) -> None:
    """The check would be over before the write begins."""
    guard = SQLGuard(make_engine(database, isolation_level="AUTOCOMMIT"), resource)
    if database.dialect != "sqlite":  # there, BEGIN IMMEDIATE makes it a transaction all the same
        with pytest.raises(InvalidArgument, match="AUTOCOMMIT"), guard.begin(10):
            pytest.fail("the block was entered")
    plain = make_engine(database)
    off = plain.execution_options(isolation_level="AUTOCOMMIT")
    with off.connect() as connection, pytest.raises(InvalidArgument, match="AUTOCOMMIT"):
        SQLGuard(plain, resource).check(10, connection)
    assert SQLGuard(plain, resource).highest() == 0


def test_grants_names_and_seals_count(guard: SQLGuard, engine: sa.Engine) -> None:
    """Two grants with one token could both write, or anybody with a number of his own making."""
    one = Sequencer(guard.resource, 10, "1" * 32, "a")
    two = Sequencer(guard.resource, 10, "2" * 32, "b")
    guard.check(one)
    with pytest.raises(StaleToken):
        guard.check(two)
    with pytest.raises(InvalidArgument):
        guard.check(Sequencer("another", 11, "1" * 32, "a"))
    key = b"k" * 32
    sealed = SQLGuard(engine, guard.resource, keys=[key])
    sealed.check(one.pack(key))
    for forged in (11, one, one.pack(), one.pack(b"x" * 32)):
        with pytest.raises(InvalidArgument):
            sealed.check(forged)


def test_the_table_can_have_another_name(
    database: Database, engine: sa.Engine, resource: str
) -> None:
    """A company with rules for the names of tables could not use it."""
    guard = SQLGuard(engine, resource, table=f"marks_{database.dialect}")
    with ThreadsTogether(4) as together:
        together.run(guard.create_table)
    guard.create_table()
    guard.check(10)
    assert guard.highest() == 10
    assert SQLGuard(engine, resource).highest() == 0


class ThreadsTogether:
    """Threads that do the same at the same moment."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)
        self.errors: list[BaseException] = []

    def run(self, call: Callable[[], object]) -> None:
        def one() -> None:
            self.barrier.wait(10)
            try:
                call()
            except BaseException as error:
                self.errors.append(error)

        self.threads = [threading.Thread(target=one) for _ in range(self.barrier.parties)]
        for thread in self.threads:
            thread.start()

    def __enter__(self) -> ThreadsTogether:
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self.threads:
            thread.join(20)
        assert self.errors == []


def test_the_first_tokens_of_a_resource_may_come_at_once(engine: sa.Engine, resource: str) -> None:
    """Writers that meet before the mark has its row would get an error of the database."""
    for number in range(10):
        guard = SQLGuard(engine, f"{resource}-{number}")
        with ThreadsTogether(4) as together:
            together.run(lambda guard=guard: guard.check(10))  # type: ignore[misc]
        assert guard.highest() == 10


def test_the_printed_ddl_makes_the_table(database: Database, engine: sa.Engine) -> None:
    """A migration written from it would fail, or make a table that the guard cannot use."""
    guard = SQLGuard(engine, "orders", table=f"printed_{database.dialect}")
    with engine.begin() as connection:
        connection.exec_driver_sql(guard.ddl())
    guard.check(10)
    assert guard.highest() == 10


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_ddl_needs_no_database(dialect: str) -> None:
    """A migration could not be written without a connection."""
    text = ddl(dialect, table="marks")
    assert text.startswith("CREATE TABLE IF NOT EXISTS marks (\n")
    assert text.endswith(";\n")
    assert ("ENGINE=InnoDB" in text) == (dialect in ("mysql", "mariadb"))
    with pytest.raises(InvalidArgument, match="oracle"):
        ddl("oracle")


def test_what_it_cannot_use_is_refused(engine: sa.Engine, database: Database) -> None:
    """The twin's engine, or a database never tried, would fail in the middle of a write."""
    asyncio_engine = create_async_engine(database.async_urls[0])
    with pytest.raises(InvalidArgument, match="AsyncSQLGuard"):
        SQLGuard(asyncio_engine, "orders")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="SQLGuard"):
        AsyncSQLGuard(engine, "orders")  # type: ignore[arg-type]
    engine.dialect.name = "oracle"
    with pytest.raises(InvalidArgument, match="oracle"):
        SQLGuard(engine, "orders")


def test_the_twins_have_the_same_methods() -> None:
    """One of them would lack what the other has, or take other arguments."""

    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(found).parameters)
            for name, found in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert public(SQLGuard) == public(AsyncSQLGuard)


def test_the_asyncio_twin_does_the_same(database: Database, guard: SQLGuard) -> None:
    """What holds for one twin would not hold for the other."""

    async def run() -> None:
        engine = create_async_engine(database.async_urls[0])
        twin = AsyncSQLGuard(engine, guard.resource)
        await twin.create_table()

        async def fail() -> None:
            async with twin.begin(20) as connection:
                await connection.execute(put(guard.resource, "half"))
                raise ZeroDivisionError

        async def go_on() -> None:
            async with twin.begin(12) as connection:
                await connection.commit()
                await connection.execute(put(guard.resource, "unguarded"))

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await twin.highest() == 0
        async with twin.begin(10) as connection:
            await connection.execute(put(guard.resource, "ten"))
        async with engine.begin() as connection:
            with pytest.raises(StaleToken):
                await twin.check(9, connection)
            await twin.check(11, connection)
        async with engine.begin() as connection:
            await twin.execute(connection, 30, put(guard.resource, "x"), fence=data.c.fence)
            with pytest.raises(StaleToken):
                await twin.execute(connection, 29, put(guard.resource, "y"), fence=data.c.fence)
        with pytest.raises(InvalidRequestError):
            await go_on()
        off = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with off.connect() as connection:
            with pytest.raises(InvalidArgument, match="AUTOCOMMIT"):
                await twin.check(13, connection)
        await engine.dispose()

    asyncio.run(run())
    assert guard.highest() == 12


def test_a_cancelled_block_is_rolled_back(database: Database, guard: SQLGuard) -> None:
    """A task that lost its lease in the block would keep the row, or half of its write."""

    async def run() -> None:
        engine = create_async_engine(database.async_urls[0])
        twin = AsyncSQLGuard(engine, guard.resource)
        entered = asyncio.Event()

        async def write() -> None:
            async with twin.begin(20) as connection:
                await connection.execute(put(guard.resource, "half"))
                entered.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(write())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.dispose()

    asyncio.run(run())
    assert guard.highest() == 0
    guard.check(10)


def test_the_package_does_not_need_sqlalchemy() -> None:
    """Who has no database would have to install a library for one, or not be told which."""
    script = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "import fencer, fencer.guards, fencer.cli.guard\n"
        "try: import fencer.guards.sql\n"
        "except ImportError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert "pip install 'redis-fencer[sql]'" in ran.stdout


def test_the_command_prints_the_ddl() -> None:
    """A migration could not be written from the shell."""
    from typer.testing import CliRunner

    from fencer.cli.guard import app

    result = CliRunner().invoke(app, ["sql", "--dialect", "postgresql", "--table", "marks"])
    assert result.stdout == ddl("postgresql", table="marks")
    assert CliRunner().invoke(app, ["sql", "--dialect", "oracle"]).exit_code == 2
