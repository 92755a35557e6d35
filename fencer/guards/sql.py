"""The guard in front of what lives in a database: PostgreSQL, MySQL, MariaDB or SQLite.

The mark is a row of the table ``fencer_guard``, one for each resource, in the same database as the
data. A transaction that was let in has changed that row, so the database itself keeps all others
of that resource waiting until it ends, and takes the mark back if it is rolled back.

    resource   what is protected
    highest    the largest token accepted
    grant_id   the grant that it belonged to, or an empty text
    at         when a token was last accepted, by the database's clock; for people, not for us

Needs SQLAlchemy: ``pip install 'redis-fencer[sql]'``, and the driver of your database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

try:
    import sqlalchemy as sa
except ImportError as error:
    raise ImportError(
        "fencer.guards.sql needs SQLAlchemy: pip install 'redis-fencer[sql]'"
    ) from error
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable

from fencer import _check
from fencer.errors import InvalidArgument, StaleToken
from fencer.guards._base import BaseGuard, Claim, Mark, Token

__all__ = ["AsyncSQLGuard", "SQLGuard", "ddl"]

TABLE = "fencer_guard"

_DIALECTS: dict[str, Callable[[], sa.Dialect]] = {
    "postgresql": postgresql.dialect,
    "mysql": mysql.dialect,
    "mariadb": mysql.dialect,
    "sqlite": sqlite.dialect,
}
_BY_COUNT = ("mysql", "mariadb")
_NONE = sa.literal_column("''", sa.String)
_TRIES = 10


def ddl(dialect: str, *, table: str = TABLE, schema: str | None = None) -> str:
    """Return the statement that creates the guards' table, for a migration.

    Args:
        dialect: ``postgresql``, ``mysql``, ``mariadb`` or ``sqlite``.
        table: what the table is called.
        schema: the schema that it is in, if not the default one.

    Raises:
        InvalidArgument: an argument is not allowed.
    """
    if dialect not in _DIALECTS:
        raise InvalidArgument(f"dialect must be one of {', '.join(_DIALECTS)}, not {dialect!r}")
    statement = CreateTable(_marks(table, schema), if_not_exists=True)
    text = str(statement.compile(dialect=_DIALECTS[dialect]()))
    lines = (line.rstrip().replace("\t", "    ") for line in text.splitlines())
    return "\n".join(line for line in lines if line).replace(")ENGINE", ") ENGINE") + ";\n"


class _Statements:
    """All that is asked of the guards' table, for one resource."""

    def __init__(self, marks: sa.Table, resource: str, dialect: str) -> None:
        self.marks = marks
        name = _name(resource, dialect)
        mine = marks.c.resource == name
        self.highest = sa.select(marks.c.highest).where(mine)
        self.locked = sa.select(marks.c.highest, marks.c.grant_id).where(mine).with_for_update()
        token = sa.bindparam("token", type_=sa.BigInteger)
        grant = sa.bindparam("grant", type_=sa.String)
        row = {"resource": name, "highest": token, "grant_id": grant, "at": _now(dialect)}
        # One statement that reads, decides and locks, whether the row exists or not. (An UPDATE
        # first, and an INSERT if it found no row, deadlocks InnoDB again and again: the gap.)
        self.accept: sa.Insert
        if dialect in _BY_COUNT:
            self.accept = _insert_or_update(marks, row)
        else:
            upsert = postgresql.insert if dialect == "postgresql" else sqlite.insert
            new = upsert(marks).values(row)
            self.accept = new.on_conflict_do_update(
                index_elements=[marks.c.resource],
                set_={
                    "highest": new.excluded.highest,
                    "grant_id": _grant_after(marks, new.excluded.highest, new.excluded.grant_id),
                    "at": new.excluded.at,
                },
                where=_accepts(marks, new.excluded.highest, new.excluded.grant_id),
            ).returning(marks.c.highest)


def _insert_or_update(marks: sa.Table, row: dict[str, Any]) -> sa.Insert:
    """The statement for MySQL and MariaDB, which know no condition here: it changes 2, or none."""
    new = mysql.insert(marks).values(row)
    accepts = _accepts(marks, new.inserted.highest, new.inserted.grant_id)
    grant = _grant_after(marks, new.inserted.highest, new.inserted.grant_id)
    # In this order: each is evaluated with what the one before has set.
    return new.on_duplicate_key_update(
        [
            ("grant_id", sa.case((accepts, grant), else_=marks.c.grant_id)),
            ("at", sa.case((accepts, new.inserted.at), else_=marks.c.at)),
            ("highest", sa.func.greatest(marks.c.highest, new.inserted.highest)),
        ]
    ).inline()


class _BaseSQLGuard(BaseGuard):
    """What the twins share: the arguments, the statements and the decision."""

    def __init__(
        self,
        engine: sa.Engine,
        resource: str,
        name: str | None,
        keys: Sequence[bytes] | None,
        table: str,
        schema: str | None,
    ) -> None:
        super().__init__(resource, name=name, keys=keys)
        self._dialect = engine.dialect.name
        if self._dialect not in _DIALECTS:
            raise InvalidArgument(
                f"SQLGuard works on {', '.join(_DIALECTS)}, not on {self._dialect!r}"
            )
        self._table = table
        self._schema = schema
        self._statements = _Statements(_marks(table, schema), self.resource, self._dialect)

    def ddl(self) -> str:
        """Return the statement that `create_table` runs, for a migration."""
        return ddl(self._dialect, table=self._table, schema=self._schema)

    def clause(self, token: Token, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Return the condition under which a row that keeps its own token may be written.

        For statements of your own; `execute` adds it, stores the token, checks the count of rows,
        and tells a stale token from a row that is not there. The table of the guards has no part
        in it, and grants are not compared.

        Args:
            token: an ``int``, a `Lease` or a `Sequencer`.
            column: the BIGINT that holds the largest token of those who wrote the row; ``NULL``
                counts as 0, so that it can be added to a table with rows.

        Raises:
            InvalidArgument: it is no token, or one of another name.
        """
        return sa.func.coalesce(column, 0) <= sa.literal(self._claim(token).token, sa.BigInteger)

    def _enter(self, connection: sa.Connection, claim: Claim, last: bool) -> bool:
        """Accept in a transaction just begun; ``False``: it lost against another, begin again."""
        if self._dialect == "sqlite" and not _in_transaction(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            self._accept(connection, claim)
        except DBAPIError as error:
            if last or not _is_conflict(error):
                raise
            return False
        return True

    def _accept(self, connection: sa.Connection, claim: Claim) -> None:
        self._refuse_autocommit(connection)
        result = connection.execute(self._statements.accept, _parameters(claim))
        if self._dialect in _BY_COUNT:
            # MySQL counts 2 for a row that was changed; 1 or 0 for all else, such as a new row.
            if result.rowcount != 2:
                row = connection.execute(self._statements.locked).one()
                Mark(*row).accept(claim, self.resource)
        elif result.first() is None:
            highest = connection.execute(self._statements.highest).scalar_one()
            raise StaleToken(self.resource, claim.token, highest)
        if self._dialect == "sqlite" and not _in_transaction(connection):
            raise self._no_transaction()

    def _refuse_autocommit(self, connection: sa.Connection) -> None:
        asked = connection.get_execution_options().get("isolation_level")
        found = False
        # On SQLite, our BEGIN counts, not what the driver is set to, if only it is rolled back.
        if self._dialect != "sqlite" or connection.dialect.skip_autocommit_rollback:
            with suppress(NotImplementedError):  # not every driver can tell
                dbapi = connection.connection.dbapi_connection
                found = dbapi is not None and connection.dialect.detect_autocommit_setting(dbapi)
        if asked == "AUTOCOMMIT" or found:
            raise self._no_transaction()

    def _no_transaction(self) -> InvalidArgument:
        return InvalidArgument(
            f"the guard of {self.resource!r} needs a transaction, and the connection commits each "
            "statement by itself (AUTOCOMMIT): the check would be over before the write begins. "
            "Use another isolation level"
        )

    def _execute(
        self,
        connection: sa.Connection,
        token: Token,
        statement: sa.Update,
        fence: sa.ColumnElement[Any],
    ) -> sa.CursorResult[Any]:
        claim = self._claim(token)
        guarded = statement.where(self.clause(token, fence)).values({fence: claim.token})
        result = connection.execute(guarded)
        if result.rowcount == 0:
            self._hold(connection, claim.token, statement, fence)
            # The row has come since; or the driver counts only rows that it gave a new value.
            result = connection.execute(guarded)
        if result.rowcount > 1:
            raise InvalidArgument(
                f"the statement has written {result.rowcount} rows of {self.resource!r}, and may "
                "have left out newer ones: write one row at a time. Roll back"
            )
        return result

    def _hold(
        self,
        connection: sa.Connection,
        token: int,
        statement: sa.Update,
        fence: sa.ColumnElement[Any],
    ) -> None:
        """Lock the row as it is now, and tell why it was not written."""
        query = sa.select(fence).with_for_update()
        if statement.whereclause is not None:
            query = query.where(statement.whereclause)
        found = connection.execute(query).scalars().all()
        if not found:
            raise NoResultFound(f"there is no row of {self.resource!r} to write")
        highest = max(each or 0 for each in found)
        if highest > token:
            raise StaleToken(self.resource, token, highest)

    def _create(self, connection: sa.Connection) -> None:
        connection.execute(CreateTable(self._statements.marks, if_not_exists=True))

    def _exists(self, connection: sa.Connection) -> bool:
        return sa.inspect(connection).has_table(self._table, schema=self._schema)


class SQLGuard(_BaseSQLGuard):
    """Lets only the newest holder write to a resource in a database: check and write are one step.

    Any thread may use it. `begin` is the way to write; `check` announces a token before reading.

    Args:
        engine: an SQLAlchemy engine for PostgreSQL, MySQL, MariaDB or SQLite (3.35 or later).
        resource: what is protected, 1 to 512 bytes; guards of the same resource share one mark.
        name: the name of the leases whose tokens count here; by default the resource's own name.
        keys: take only what is sealed with one of these.
        table: what the guards' table is called.
        schema: the schema that it is in, if not the default one.

    Raises:
        InvalidArgument: an argument is not allowed.

    Isolation:
        Right at READ COMMITTED, REPEATABLE READ and SERIALIZABLE. Where the database ends a
        transaction because of another one (a deadlock, or "could not serialize"), its own error
        reaches you as SQLAlchemy raises it, and nothing was written: begin again, with the same
        token. AUTOCOMMIT is refused.

    Rolling back:
        A transaction that is rolled back, or was never committed because its process died, takes
        its mark along: nothing was written under that token, so an older holder may write again.
        If that must not be, call ``check(token)`` first, whose mark is committed at once.

    Recovery:
        If the resource has seen a larger token than the store will mint, for instance after the
        store was lost for good, advance the name: ``fencer advance NAME $(highest)``.

    Source:
        Kleppmann 2016, "How to do distributed locking".
    """

    def __init__(
        self,
        engine: sa.Engine,
        resource: str,
        *,
        name: str | None = None,
        keys: Sequence[bytes] | None = None,
        table: str = TABLE,
        schema: str | None = None,
    ) -> None:
        if not isinstance(engine, sa.Engine):
            raise InvalidArgument(
                "SQLGuard takes an sqlalchemy.Engine (AsyncSQLGuard an AsyncEngine), not "
                f"{type(engine).__name__}"
            )
        super().__init__(engine, resource, name, keys, table, schema)
        self._engine = engine

    @contextmanager
    def begin(self, token: Token) -> Iterator[sa.Connection]:
        """Begin a transaction in which the token is accepted, and commit it when the block ends.

        Nobody else is let in at this resource until then: those who come meanwhile, older or newer,
        wait for as long as the database lets them (``lock_timeout`` of PostgreSQL,
        ``innodb_lock_wait_timeout`` of MySQL, ``timeout`` of SQLite's driver). A process that
        stands still in the block therefore holds up its successor; one that dies does not.

        Args:
            token: an ``int``, or a `Lease` or `Sequencer`, whose grant is then compared too.

        Returns:
            The connection; for the ORM, ``Session(connection)``. Do not commit in the block.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before; the block
                is not entered, and nothing was written.
            InvalidArgument: it is no token, or one of another name, or the engine is in AUTOCOMMIT
                mode; nothing was written.
            sqlalchemy.exc.DBAPIError: the database's own error. Where the check lost against
                another transaction, it has been tried 10 times; the block is never run twice. After
                an error of the commit itself, the block may have been committed or not.

        Cost:
            One statement beside the block's own; on SQLite also ``BEGIN IMMEDIATE``; on MySQL and
            MariaDB one more for the first token of a resource. A refusal takes one more.
        """
        claim = self._claim(token)
        with self._engine.connect() as connection:
            for left in reversed(range(_TRIES)):
                with connection.begin() as transaction:
                    if self._enter(connection, claim, last=left == 0):
                        yield connection
                        return
                    transaction.rollback()

    def check(self, token: Token, connection: sa.Connection | None = None) -> None:
        """Accept the token, or refuse it.

        Without a connection, in a transaction of its own: the mark is committed on return. That is
        how a new holder announces itself before it reads; a check before a write elsewhere leaves
        a gap between the two.

        With a connection, in its transaction, which you commit: what `begin` does for a transaction
        that you have already. Check before you read: at REPEATABLE READ, MySQL shows you the data
        as it was at your first read, even if that was before you were let in.

        Args:
            token: an ``int``, or a `Lease` or `Sequencer`, whose grant is then compared too.
            connection: one with a transaction; of an ORM session, ``session.connection()``.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before; nothing was
                written, and the transaction can go on.
            InvalidArgument: it is no token, or one of another name, or the connection is in
                AUTOCOMMIT mode.
            sqlalchemy.exc.DBAPIError: the database's own error. On a connection of yours nothing
                is tried again.

        Cost:
            One statement, and more in the cases that `begin` names.
        """
        if connection is not None:
            self._accept(connection, self._claim(token))
            return
        with self.begin(token):
            pass

    def execute(
        self,
        connection: sa.Connection,
        token: Token,
        statement: sa.Update,
        *,
        fence: sa.ColumnElement[Any],
    ) -> sa.CursorResult[Any]:
        """Update one row that keeps its own token; the guards' table is not needed for it.

        The row's token is compared and stored by the statement itself: ``UPDATE ... SET fence =
        :token WHERE ... AND coalesce(fence, 0) <= :token``. Equal tokens of different grants are
        not told apart. It is right in AUTOCOMMIT mode, too.

        Args:
            connection: where to run it; you commit.
            token: an ``int``, a `Lease` or a `Sequencer`.
            statement: the update of one row, by its key.
            fence: the BIGINT column of the same table that holds the token; ``NULL`` counts as 0.

        Returns:
            The result of the statement.

        Raises:
            StaleToken: the row was written with a newer token; nothing was written.
            NoResultFound: there is no such row (an error of SQLAlchemy); nothing was written.
            InvalidArgument: it is no token, or one of another name; nothing was written. Or the
                statement wrote more than one row: roll back.
            sqlalchemy.exc.DBAPIError: the database's own error.

        Cost:
            No statement beside the update; one more to tell why it was refused.
        """
        return self._execute(connection, token, statement, fence)

    def highest(self) -> int:
        """Return the largest token accepted and committed so far; 0 if there was none.

        Raises:
            sqlalchemy.exc.DBAPIError: the database's own error.
        """
        with self._engine.connect() as connection:
            return connection.execute(self._statements.highest).scalar() or 0

    def create_table(self) -> None:
        """Create the guards' table if it is not there. Several processes may do so at once.

        Raises:
            sqlalchemy.exc.DBAPIError: the database's own error; nothing changed.
        """
        try:
            with self._engine.begin() as connection:
                self._create(connection)
        except DBAPIError:
            # On PostgreSQL, IF NOT EXISTS fails if another process creates it at this moment.
            with self._engine.connect() as connection:
                if not self._exists(connection):
                    raise


class AsyncSQLGuard(_BaseSQLGuard):
    """The twin of `SQLGuard` for SQLAlchemy's asyncio engines; any task may use it.

    Args:
        engine: an ``AsyncEngine``, say on asyncpg, psycopg, aiomysql or aiosqlite.
        others: those of `SQLGuard`, and all of what is said there.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        resource: str,
        *,
        name: str | None = None,
        keys: Sequence[bytes] | None = None,
        table: str = TABLE,
        schema: str | None = None,
    ) -> None:
        if not isinstance(engine, AsyncEngine):
            raise InvalidArgument(
                "AsyncSQLGuard takes an AsyncEngine (SQLGuard an sqlalchemy.Engine), not "
                f"{type(engine).__name__}"
            )
        super().__init__(engine.sync_engine, resource, name, keys, table, schema)
        self._engine = engine

    @asynccontextmanager
    async def begin(self, token: Token) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction in which the token is accepted: see `SQLGuard.begin`."""
        claim = self._claim(token)
        async with self._engine.connect() as connection:
            for left in reversed(range(_TRIES)):
                async with connection.begin() as transaction:
                    if await connection.run_sync(self._enter, claim, last=left == 0):
                        yield connection
                        return
                    await transaction.rollback()

    async def check(self, token: Token, connection: AsyncConnection | None = None) -> None:
        """Accept the token, or refuse it: see `SQLGuard.check`."""
        if connection is not None:
            await connection.run_sync(self._accept, self._claim(token))
            return
        async with self.begin(token):
            pass

    async def execute(
        self,
        connection: AsyncConnection,
        token: Token,
        statement: sa.Update,
        *,
        fence: sa.ColumnElement[Any],
    ) -> sa.CursorResult[Any]:
        """Update one row that keeps its own token: see `SQLGuard.execute`."""
        return await connection.run_sync(self._execute, token, statement, fence)

    async def highest(self) -> int:
        """Return the largest token accepted and committed so far; 0 if there was none."""
        async with self._engine.connect() as connection:
            return (await connection.execute(self._statements.highest)).scalar() or 0

    async def create_table(self) -> None:
        """Create the guards' table if it is not there: see `SQLGuard.create_table`."""
        try:
            async with self._engine.begin() as connection:
                await connection.run_sync(self._create)
        except DBAPIError:
            async with self._engine.connect() as connection:
                if not await connection.run_sync(self._exists):
                    raise


def _marks(table: str, schema: str | None) -> sa.Table:
    length = _check.MAX_NAME_BYTES
    return sa.Table(
        _check.text("table", table, 63),
        sa.MetaData(schema=schema),
        # MySQL's texts ignore case and trailing blanks: bytes do not.
        sa.Column(
            "resource",
            sa.String(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb"),
            primary_key=True,
        ),
        sa.Column("highest", sa.BigInteger, nullable=False),
        sa.Column("grant_id", sa.String(32), nullable=False),
        sa.Column(
            "at",
            sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"),
            nullable=False,
        ),
        mysql_engine="InnoDB",  # the others have no transactions
        mariadb_engine="InnoDB",
    )


def _accepts(
    marks: sa.Table, token: sa.ColumnElement[Any], grant: sa.ColumnElement[Any]
) -> sa.ColumnElement[bool]:
    """The rule of `Mark.accept`."""
    highest, known = marks.c.highest, marks.c.grant_id
    no_rival = sa.or_(grant == _NONE, known == _NONE, known == grant)
    return sa.or_(highest < token, sa.and_(highest == token, no_rival))


def _grant_after(
    marks: sa.Table, token: sa.ColumnElement[Any], grant: sa.ColumnElement[Any]
) -> sa.ColumnElement[str]:
    """The grant in the mark that `Mark.accept` returns."""
    return sa.case(
        (grant != _NONE, grant), (marks.c.highest == token, marks.c.grant_id), else_=_NONE
    )


def _name(resource: str, dialect: str) -> sa.ColumnElement[Any]:
    if dialect not in _BY_COUNT:
        return sa.literal(resource)
    # In hex, so that neither the connection's character set nor the driver's quoting matters.
    return sa.func.unhex(sa.literal(resource.encode().hex()))


def _now(dialect: str) -> sa.ColumnElement[Any]:
    return sa.literal_column("utc_timestamp(6)") if dialect in _BY_COUNT else sa.func.now()


def _parameters(claim: Claim) -> dict[str, Any]:
    return {"token": claim.token, "grant": claim.grant}


def _in_transaction(connection: sa.Connection) -> bool:
    """Whether SQLite itself is in a transaction; SQLAlchemy only knows of its own."""
    return bool(getattr(connection.connection.driver_connection, "in_transaction", True))


def _is_conflict(error: DBAPIError) -> bool:
    """Whether the database ended the transaction in favour of another: a new one may succeed."""
    raised: Any = error.orig
    state = getattr(raised, "sqlstate", None) or getattr(raised, "pgcode", None)
    if state is not None:
        return state in ("40001", "40P01")
    number = raised.args[0] if raised is not None and raised.args else None
    return number in (1213, 1020)  # MySQL: deadlock; MariaDB: changed since the snapshot
