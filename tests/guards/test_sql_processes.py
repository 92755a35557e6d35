"""Writers in processes of their own: many at once, stopped, killed, and with the database killed.

This module is also what such a process runs: `start` returns its handler.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from fencer.errors import StaleToken
from fencer.guards.sql import SQLGuard, _is_conflict
from tests.faults import record
from tests.faults.planted import twin
from tests.faults.processes import Worker, WorkerError
from tests.fix_sql import LEVELS, Database, OpenDatabase, data, journal
from tests.guards import bugs

pytestmark = pytest.mark.usefixtures("history")

MakeEngine = Callable[..., sa.Engine]
MODULE = "tests.guards.test_sql_processes"
WRITERS = 16
ATTEMPTS = 40


# What a writer's process runs


def write(connection: sa.Connection, resource: str, token: int, note: str) -> None:
    """The business of all writers: read, write what follows from it, and keep a record."""
    mine = data.c.resource == resource
    writes = connection.execute(sa.select(data.c.writes).where(mine)).scalar_one()
    connection.execute(
        sa.update(data).where(mine).values(value=note, fence=token, writes=writes + 1)
    )
    connection.execute(sa.insert(journal).values(resource=resource, token=token, note=note))


def start() -> Callable[..., Any]:
    """Return a handler that does one thing per message, and remembers an open transaction."""
    open_one = ExitStack()
    current: list[sa.Connection] = []

    def handle(step: str, **args: Any) -> Any:
        if step == "attempts":
            with record.during(args.pop("test")):
                return attempts(**args)
        if step == "enter":
            engine = sa.create_engine(args["url"])
            open_one.callback(engine.dispose)
            block = SQLGuard(engine, args["resource"]).begin(args["token"])
            current.append(open_one.enter_context(block))
        elif step == "write":
            write(current[-1], **args)
        elif step == "commit":
            open_one.close()
        return None

    return handle


def attempts(url: str, level: str, resource: str, writer: int, count: int) -> dict[str, Any]:
    """Write with tokens that rise over all processes, and with some that have had their time."""
    engine = sa.create_engine(url, isolation_level=level)
    guard = SQLGuard(engine, resource)
    told: dict[str, Any] = {"accepted": [], "stale": 0, "conflicts": 0, "broken": None}
    token = 0
    try:
        for number in range(count):
            if random.random() < 0.5 or not token:
                # The machine's clock stands for the store: one sequence, larger for who asks later.
                late_us = random.choice((0, 0, 3_000, 30_000))
                token = (time.monotonic_ns() // 1_000 - late_us) * WRITERS + writer
            note = f"{token}-{number}"
            while True:
                try:
                    with guard.begin(token) as connection:
                        write(connection, resource, token, note)
                    told["accepted"].append(note)
                except StaleToken:
                    told["stale"] += 1
                    token = 0
                except DBAPIError as error:
                    if not _is_conflict(error):
                        told["broken"] = repr(error)
                        return told
                    told["conflicts"] += 1
                    continue
                break
    finally:
        engine.dispose()
    return told


# The tests


def new(engine: sa.Engine, resource: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(data).values(resource=resource, writes=0))


def records(engine: sa.Engine, resource: str) -> list[tuple[int, str]]:
    """The tokens and notes of all writes, in the order in which they were done."""
    query = sa.select(journal.c.token, journal.c.note).where(journal.c.resource == resource)
    with engine.connect() as connection:
        return [(row.token, row.note) for row in connection.execute(query.order_by("position"))]


def row(engine: sa.Engine, resource: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(sa.select(data).where(data.c.resource == resource)).one()


def faults(engine: sa.Engine, resource: str, accepted: Sequence[str]) -> list[str]:
    """What is wrong with the record of a resource; an unknown outcome may be in it or not."""
    written = records(engine, resource)
    tokens, notes = [token for token, _ in written], [note for _, note in written]
    found = [
        f"token {late} wrote after {early}"
        for early, late in itertools.pairwise(tokens)
        if late < early
    ]
    if lost := set(accepted) - set(notes):
        found.append(f"accepted, and lost: {sorted(lost)[:5]}")
    last = row(engine, resource)
    if last.writes != len(written):
        found.append(f"{len(written)} writes were done, and {last.writes} are counted")
    if written and (last.fence, last.value) != written[-1]:
        found.append(f"the row has {last.fence}, and the last write was of {written[-1]}")
    if (highest := SQLGuard(engine, resource).highest()) != max(tokens, default=0):
        found.append(
            f"the mark is {highest}, and the largest token written {max(tokens, default=0)}"
        )
    return found


@pytest.fixture(scope="module")
def writers() -> Iterator[list[Worker]]:
    """Sixteen processes, for all tests of this module that leave them alive."""
    with ExitStack() as stack:
        started = [stack.enter_context(Worker(MODULE)) for _ in range(WRITERS)]
        for writer in started:
            writer.ask(step="ready", timeout=120)
        yield started


def let_all_write(
    writers: list[Worker],
    url: str,
    level: str,
    resource: str,
    *,
    count: int = ATTEMPTS,
) -> None:
    for number, writer in enumerate(writers):
        writer.tell(
            step="attempts",
            url=url,
            level=level,
            resource=resource,
            writer=number,
            count=count,
            test=record.told(),
        )


def hear_all(writers: list[Worker]) -> list[dict[str, Any]]:
    return [writer.hear(timeout=60) for writer in writers]


@twin(bugs.sql_in_two_steps, of="READ COMMITTED")
@pytest.mark.slow
@pytest.mark.parametrize(("dialect", "level"), LEVELS)
def test_sixteen_writers_never_take_the_resource_back(
    dialect: str,
    level: str,
    open_database: OpenDatabase,
    make_engine: MakeEngine,
    writers: list[Worker],
    resource: str,
) -> None:
    """Writers that compete for a row would overwrite newer data, or lose what was accepted."""
    database = open_database(dialect)
    engine = make_engine(database)
    new(engine, resource)
    let_all_write(writers, database.url, level, resource)
    told = hear_all(writers)
    assert not [each["broken"] for each in told if each["broken"]]
    accepted = [note for each in told for note in each["accepted"]]
    assert not faults(engine, resource, accepted)
    assert len(records(engine, resource)) == len(accepted) > WRITERS
    assert sum(each["stale"] for each in told) > WRITERS, "no stale writer was there to refuse"


def wait_for_writes(engine: sa.Engine, resource: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while row(engine, resource).writes < count:
        assert time.monotonic() < deadline, f"{count} writes were not reached"
        time.sleep(0.02)


class Stopped:
    """A writer with token 10 that stands still between its check and its commit."""

    def __init__(self, worker: Worker, database: Database, resource: str) -> None:
        self.worker = worker
        self.resource = resource
        worker.ask(step="enter", url=database.url, resource=resource, token=10)
        worker.stop()

    def goes_on(self) -> None:
        self.worker.cont()
        self.worker.ask(step="write", resource=self.resource, token=10, note="older")
        self.worker.ask(step="commit")


@pytest.fixture
def stop(database: Database, engine: sa.Engine, resource: str) -> Iterator[Callable[..., Stopped]]:
    """A maker of a stopped writer."""
    new(engine, resource)
    with ExitStack() as stack:
        yield lambda: Stopped(stack.enter_context(Worker(MODULE)), database, resource)


def newer(engine: sa.Engine, resource: str) -> threading.Thread:
    """A thread that writes with token 20, as soon as it is let in."""

    def run() -> None:
        with SQLGuard(engine, resource).begin(20) as connection:
            write(connection, resource, 20, "newer")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@twin(bugs.sql_in_two_steps, of="sqlite")
def test_a_writer_stopped_after_its_check_comes_before_the_newer_one(
    stop: Callable[..., Stopped], engine: sa.Engine, resource: str
) -> None:
    """A writer that stands still between its check and its commit would overwrite a newer one."""
    older = stop()
    assert SQLGuard(engine, resource).highest() == 0, "its mark is there before its write"
    thread = newer(engine, resource)
    thread.join(0.3)
    assert thread.is_alive(), "the newer one was let in beside the older"
    older.goes_on()
    thread.join(20)
    assert records(engine, resource) == [(10, "older"), (20, "newer")]
    assert not faults(engine, resource, ["older", "newer"])


@twin(bugs.sql_in_two_steps, of="sqlite")
def test_a_stopped_writer_that_is_killed_frees_the_resource(
    stop: Callable[..., Stopped], engine: sa.Engine, resource: str
) -> None:
    """A process that died in its transaction would lock the new holder out."""
    older = stop()
    assert SQLGuard(engine, resource).highest() == 0, "its mark is there before its write"
    thread = newer(engine, resource)
    thread.join(0.3)
    assert thread.is_alive()
    older.worker.kill()
    thread.join(20)
    assert records(engine, resource) == [(20, "newer")]
    assert not faults(engine, resource, ["newer"])


@twin(bugs.sql_in_two_steps, of="sqlite")
def test_who_waits_too_long_for_a_stopped_writer_is_told(
    stop: Callable[..., Stopped],
    database: Database,
    make_engine: MakeEngine,
    engine: sa.Engine,
    resource: str,
) -> None:
    """A newer writer would hang for ever, or go ahead in spite of the older one."""
    older = stop()
    hasty = SQLGuard(make_engine(database, **database.hasty(1)), resource)
    with pytest.raises(DBAPIError), hasty.begin(20):
        pytest.fail("it was let in beside the older")
    older.goes_on()
    assert records(engine, resource) == [(10, "older")]
    hasty.check(20)


@twin(bugs.sql_compares_nothing, of="sqlite")
def test_a_writer_that_was_overtaken_before_its_check_is_refused(
    database: Database, engine: sa.Engine, resource: str
) -> None:
    """A holder that slept with its token in hand would write after its successor."""
    new(engine, resource)
    newer(engine, resource).join(20)
    with Worker(MODULE) as worker, pytest.raises(WorkerError) as caught:
        worker.ask(step="enter", url=database.url, resource=resource, token=10)
    assert caught.value.kind == "StaleToken"
    assert records(engine, resource) == [(20, "newer")]


@twin(bugs.sql_in_two_steps)
@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_the_mark_and_the_data_agree_after_the_database_was_killed(
    dialect: str,
    open_database: OpenDatabase,
    make_engine: MakeEngine,
    writers: list[Worker],
    resource: str,
) -> None:
    """A crash of the database would leave a mark without its write, or a write without its mark."""
    database = open_database(dialect)
    engine = make_engine(database)
    new(engine, resource)
    accepted: list[str] = []
    some = writers[:6]
    try:
        for _ in range(2):
            let_all_write(some, database.url, "READ COMMITTED", resource, count=10**6)
            wait_for_writes(engine, resource, len(records(engine, resource)) + 50)
            time.sleep(random.random() * 0.2)
            database.kill()
            told = hear_all(some)
            assert all(each["broken"] for each in told), "nobody was in the middle of anything"
            accepted += [note for each in told for note in each["accepted"]]
            database.start()
            engine.dispose()
            assert not faults(engine, resource, accepted)
    finally:
        if not database.running:
            database.start()
