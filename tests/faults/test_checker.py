"""The checker of records: each rule must see what breaks it, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

import fencer
from fencer.drill.record import Event, Outcome
from fencer.embedded import Server
from fencer.guards import FileGuard
from fencer.guards.sql import AsyncSQLGuard
from tests.faults.checker import RULES, check
from tests.faults.planted import no_twin
from tests.faults.processes import Worker
from tests.faults.record import Recorder, read, recording
from tests.guards import bugs

pytestmark = no_twin("it looks at the checker: the records that it spoils are the twins")


class Story:
    """A record in which all is well, and the means to spoil it.

    ``a`` has the lease from 0 to 2 s with token 10, ``b`` joins the line at 1 s and has it from
    2.1 to 4 s with token 20; both write. At 5 s a fault is healed, and ``c`` gets it with 30.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.add("a", "acquire", 0.0, 0.1, 10)
        self.add("a", "believes", 0.1, 3.0, 10)
        self.add("a", "renewed", 1.0, 1.1, 10)
        self.add("a", "believes", 1.1, 4.0, 10)
        self.write("a", 10, 1.2)
        self.add("b", "joined", 1.0, 1.1, grant="of b")
        self.add("a", "released", 2.0, 2.0, 10)
        self.add("a", "release", 2.0, 2.1, 10)
        self.add("b", "acquire", 1.0, 2.2, 20)
        self.add("b", "believes", 2.2, 4.0, 20)
        self.write("b", 20, 2.5)
        self.add("a", "write", 2.6, 2.7, 10, "refused", "the resource", note="StaleToken")
        self.add("b", "lost", 4.0, 4.0, 20)
        self.add("c", "joined", 4.2, 4.3, grant="of c")
        self.add("", "healed", 5.0, 5.0, name="", note="2")
        self.add("c", "acquire", 4.2, 6.0, 30)
        self.add("c", "believes", 6.0, 9.0, 30)
        self.add("c", "elected", 6.1, 6.1, 30)
        self.add("c", "stopped", 8.0, 8.0)
        self.add("d", "acquire", 6.5, 6.6, outcome="refused", note="NotAcquired")

    def add(
        self,
        who: str,
        what: str,
        begun: float,
        ended: float,
        token: int | None = None,
        outcome: Outcome = "ok",
        name: str = "orders",
        *,
        grant: str | None = None,
        note: str = "",
    ) -> None:
        grant = grant if grant is not None else (f"of {who}" if token else "")
        self.events.append(Event(who, what, begun, ended, outcome, token, note, name, grant))

    def write(self, who: str, token: int, at: float) -> None:
        self.add(who, "write", at, at + 0.1, token, name="the resource")

    def change(self, who: str, what: str, **changes: object) -> None:
        """Change every event of a kind of somebody."""
        before = self.events
        self.events = [
            replace(event, **changes) if (event.who, event.what) == (who, what) else event  # type: ignore[arg-type]
            for event in before
        ]
        assert self.events != before

    def broken(self) -> set[str]:
        return {finding.rule for finding in check(sorted(self.events, key=lambda e: e.begun))}


Spoil = Callable[[Story], None]


def unique(story: Story) -> None:
    story.add("d", "acquire", 6.0, 7.0, 30)


def falling(story: Story) -> None:
    story.add("d", "acquire", 7.0, 7.1, 15)


def stale_write(story: Story) -> None:
    story.write("a", 10, 3.0)


def one_token_of_two(story: Story) -> None:
    story.add("d", "write", 3.0, 3.1, 20, name="the resource")


def believes_too_long(story: Story) -> None:
    story.events = [event for event in story.events if event.what not in ("released", "release")]


def believes_beyond_the_store(story: Story) -> None:
    story.change("b", "believes", ended=7.0)
    story.events = [event for event in story.events if event.what != "lost"]


def renewed_by_the_old_one(story: Story) -> None:
    story.add("b", "renewed", 6.2, 6.3, 20)
    story.events = [event for event in story.events if event.what != "lost"]


def renewed_after_the_loss(story: Story) -> None:
    story.add("b", "renewed", 4.1, 4.2, 20)


def two_tokens(story: Story) -> None:
    story.add("b", "renewed", 2.6, 2.7, 21)


def elected_twice(story: Story) -> None:
    story.add("c", "elected", 7.0, 7.0, 30)


def elected_too_early(story: Story) -> None:
    story.add("d", "elected", 7.0, 7.0, 31)


def kept_after_release(story: Story) -> None:
    story.add("a", "renewing", 4.5, 4.5, 10)


def renewed_after_release(story: Story) -> None:
    story.add("a", "renewed", 2.15, 2.18, 10)


def busy_is_held(story: Story) -> None:
    story.change("d", "acquire", note="NotAcquired from TimeoutError")


def huge(story: Story) -> None:
    story.add("d", "write", 9.0, 9.1, 2**53, "refused", "another")


def nobody_in_time(story: Story) -> None:
    story.change("c", "acquire", ended=7.5)


def overtaken(story: Story) -> None:
    story.add("d", "acquire", 1.5, 2.15, 19)


def overtaken_in_line(story: Story) -> None:
    story.add("d", "joined", 1.5, 1.6, grant="of d")
    story.add("d", "acquire", 1.5, 2.1, 19)


SPOILT: list[tuple[Spoil, set[str]]] = [
    (unique, {"S1"}),
    (falling, {"S2", "L2"}),
    (stale_write, {"S3"}),
    (one_token_of_two, {"S3"}),
    (believes_too_long, {"S4"}),
    (believes_beyond_the_store, {"S4"}),
    (renewed_by_the_old_one, {"S5"}),
    (renewed_after_the_loss, {"S6"}),
    (two_tokens, {"S7"}),
    (elected_twice, {"S10"}),
    (elected_too_early, {"S10"}),
    (kept_after_release, {"S11"}),
    (renewed_after_release, {"S11"}),
    (busy_is_held, {"S12"}),
    (huge, {"S14"}),
    (nobody_in_time, {"L1"}),
    (overtaken, {"L2"}),
    (overtaken_in_line, {"L2"}),
]


def test_a_good_record_is_good() -> None:
    """The checker would condemn a test in which all went well."""
    assert check(Story().events) == []


@pytest.mark.parametrize(("spoil", "rules"), SPOILT, ids=lambda each: getattr(each, "__name__", ""))
def test_each_rule_sees_what_breaks_it(spoil: Spoil, rules: set[str]) -> None:
    """A fault test would pass whatever its record says."""
    story = Story()
    spoil(story)
    assert story.broken() == rules


def test_every_rule_can_fail() -> None:
    """A rule would be kept that nothing breaks."""
    assert set().union(*(rules for _, rules in SPOILT)) == set(RULES)


def test_what_is_unknown_proves_nothing() -> None:
    """A call without an answer would be held against the store."""
    story = Story()
    story.add("d", "acquire", 7.0, 7.1, 15, "unknown")
    story.add("a", "renew", 3.0, 3.1, 10, "unknown")
    story.add("a", "write", 3.0, 3.1, 10, "unknown", "the resource")
    assert story.broken() == set()


def test_a_revoked_holder_may_believe_on() -> None:
    """An operator's revocation would be taken for a fault of the store."""
    story = Story()
    believes_too_long(story)
    story.add("operator", "revoke", 1.9, 2.0, 10, grant="")
    assert story.broken() == set()


def test_other_names_are_others() -> None:
    """Leases on two names would be taken for rivals."""
    story = Story()
    story.add("d", "acquire", 0.0, 0.1, 10, name="invoices")
    story.add("d", "believes", 0.1, 9.0, 10, name="invoices")
    assert story.broken() == set()


@pytest.mark.must_break("S3")
def test_a_write_between_check_and_write_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard in two steps would have a good record, which tells only of what it accepted."""
    bugs.file_in_two_steps(monkeypatch)
    guard = FileGuard(tmp_path / "orders.json", name="orders")
    with guard.open(1) as file:
        guard.write(2, "new")
        file.write(b"late")
    assert guard.path.read_text() == "late"


@pytest.mark.must_break("S3")
def test_the_same_is_seen_on_asyncio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one of the two APIs would leave no record."""
    bugs.sql_in_two_steps(monkeypatch)

    async def run() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'data.sqlite'}")
        old, new = AsyncSQLGuard(engine, "orders"), AsyncSQLGuard(engine, "orders")
        await new.create_table()
        async with old.begin(1), new.begin(2):
            pass
        await engine.dispose()

    asyncio.run(run())


WORKER = """
import fencer
client = fencer.connect(args[0])
def handle(number):
    with client.acquire(f"orders-{number}") as lease:
        lease.renew()
    return lease.token
"""


def test_all_processes_and_threads_write_one_record(
    client: fencer.Fencer, shared_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens in another process would not be judged."""
    path = tmp_path / "ours.jsonl"
    monkeypatch.setenv("FENCER_TEST_RECORD", str(path))
    recorder = Recorder(path)
    with recording(recorder), Worker(WORKER, shared_server.unix_url) as worker:
        theirs = worker.ask(number=1)
        with client.acquire("orders-2") as lease:
            lease.renew()
        with pytest.raises(fencer.LeaseLost):
            lease.renew()
    recorder.close()
    for name, token in (("orders-1", theirs), ("orders-2", lease.token)):
        mine = [event for event in read(path) if event.name == f"fencer:{{{name}}}:lock"]
        whats = [event.what for event in mine if event.outcome == "ok"]
        assert sorted(set(whats)) == [
            "acquire", "believes", "release", "released", "renew", "renewed", "renewing",
        ]  # fmt: skip
        assert {event.token for event in mine} == {token}
        believed = [event for event in mine if event.what == "believes"]
        assert 9 < believed[-1].ended - believed[-1].begun < 10
    assert [event.outcome for event in mine if event.what == "renew"] == ["ok", "refused"]
    assert fencer.Lease.renew.__qualname__ == "Lease.renew"
