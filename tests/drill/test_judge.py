"""The judge of the drills: each rule must see what breaks it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fencer.drill.judge import RULES, Count, Expected, judge
from fencer.drill.record import SERVER, Event, Outcome, Record, Write, told_by_instance
from fencer.drill.spans import Spans

END = 6.0
EXPECTED = Expected(gap=1.5, every=0.1, counts=(Count(2.0, END, 1),))


class Doctor:
    """A record in which all is well, and the means to spoil it.

    ``a`` leads with token 100 until it is killed at 2 s; ``b`` follows it at 2.9 s with token 200.
    """

    def __init__(self) -> None:
        self.events = [Event(SERVER, "start", 0.0, 0.05)]
        self.writes: list[Write] = []
        for number, who in enumerate("abc"):
            self.add(who, "started", 0.1 + number / 100)
        self.lead("a", 100, 0.2, 2.0)
        self.add("b", "follows", 0.25, 100)
        self.add("c", "follows", 0.26, 100)
        self.add("a", "kill", 2.0)
        self.lead("b", 200, 2.9, END)

    def add(
        self,
        who: str,
        what: str,
        at: float,
        token: int | None = None,
        outcome: Outcome = "ok",
        ended: float | None = None,
    ) -> None:
        self.events.append(Event(who, what, at, at if ended is None else ended, outcome, token))

    def lead(self, who: str, token: int, begun: float, ended: float) -> None:
        """Elected, and a job every tenth of a second, each of which lands."""
        self.add(who, "elected", begun, token)
        for tenth in range(1, int((ended - begun) * 10)):
            self.job(who, token, begun + tenth / 10)

    def job(self, who: str, token: int, at: float, outcome: Outcome = "ok") -> None:
        self.add(who, "job", at, token, outcome, at + 0.01)
        if outcome == "ok":
            self.writes.append(Write(who, token))

    def drop(self, *whats: str, who: str = "abc", after: float = 0.0) -> None:
        self.events = [
            event
            for event in self.events
            if not (event.what in whats and event.who in who and event.begun >= after)
        ]

    def retoken(self, old: int, new: int) -> None:
        self.events = [replace(e, token=new) if e.token == old else e for e in self.events]
        self.writes = [replace(w, token=new) if w.token == old else w for w in self.writes]

    def record(self) -> Record:
        return Record.of(self.events, self.writes, END)

    def broken(self, expected: Expected = EXPECTED) -> set[str]:
        return {finding.rule for finding in judge(self.record(), expected)}


def test_a_good_record_is_good() -> None:
    """If this fails, the judge condemns a failover in which all went well."""
    assert judge(Doctor().record(), EXPECTED) == []


def overlapping_believers(doctor: Doctor) -> None:
    doctor.drop("kill")
    doctor.add("a", "job", 2.3, 100)
    doctor.add("a", "believed", 0.2, 100, ended=3.0)
    doctor.add("a", "lost", 3.0, 100)


def falling_tokens(doctor: Doctor) -> None:
    doctor.retoken(200, 50)


def the_same_token_twice(doctor: Doctor) -> None:
    doctor.retoken(200, 100)


def stale_write_landed(doctor: Doctor) -> None:
    doctor.writes.append(Write("a", 100))


def stale_write_told_by_its_writer_only(doctor: Doctor) -> None:
    doctor.add("a", "job", 4.0, 100, ended=4.01)


def two_writers_with_one_token(doctor: Doctor) -> None:
    doctor.writes.append(Write("c", 200))


def a_write_after_the_loss(doctor: Doctor) -> None:
    doctor.add("b", "lost", 5.0, 200)
    doctor.job("b", 200, 5.5)


def a_write_after_the_end(doctor: Doctor) -> None:
    doctor.add("c", "stopped", 3.0)
    doctor.add("c", "job", 3.5, 200)


def elected_twice(doctor: Doctor) -> None:
    doctor.add("b", "elected", 5.5, 300)


def lost_without_election(doctor: Doctor) -> None:
    doctor.add("c", "lost", 4.0, 200)


def stopped_as_the_leader(doctor: Doctor) -> None:
    doctor.add("b", "stopped", 5.95)


def told_too_late(doctor: Doctor) -> None:
    doctor.drop("kill")
    doctor.add("a", "believed", 0.2, 100, ended=2.8)
    doctor.add("a", "lost", 3.5, 100)


def no_leader(doctor: Doctor) -> None:
    doctor.drop("elected", "job", after=2.5)


def two_leaders(doctor: Doctor) -> None:
    doctor.add("b", "believed", 2.9, 200, ended=4.0)
    doctor.add("b", "lost", 4.0, 200)
    doctor.drop("job", who="b", after=3.9)
    doctor.lead("c", 300, 4.1, END)


def a_late_leader(doctor: Doctor) -> None:
    doctor.drop("elected", "job", after=2.5)
    doctor.lead("b", 200, 4.0, END)


def an_idle_leader(doctor: Doctor) -> None:
    doctor.drop("job", after=3.5)


def a_refused_leader(doctor: Doctor) -> None:
    doctor.job("b", 200, 4.55, "refused")


def a_crash(doctor: Doctor) -> None:
    doctor.add("c", "died", 4.0)


@pytest.mark.parametrize(
    ("harm", "rules"),
    [
        (overlapping_believers, {"one believer"}),
        (falling_tokens, {"tokens rise", "no stale write"}),
        (the_same_token_twice, {"tokens rise", "no stale write"}),
        (stale_write_landed, {"no stale write"}),
        (stale_write_told_by_its_writer_only, {"no stale write"}),
        (two_writers_with_one_token, {"no stale write"}),
        (a_write_after_the_loss, {"dead is dead"}),
        (a_write_after_the_end, {"dead is dead"}),
        (elected_twice, {"once each", "new leaders"}),
        (lost_without_election, {"once each"}),
        (stopped_as_the_leader, {"once each"}),
        (told_too_late, {"told in time"}),
        (no_leader, {"new leaders", "no gap"}),
        (two_leaders, {"new leaders"}),
        (a_late_leader, {"no gap"}),
        (an_idle_leader, {"the job runs on"}),
        (a_refused_leader, {"the job runs on"}),
        (a_crash, {"alive"}),
    ],
)
def test_a_planted_bug_is_seen(harm: Callable[[Doctor], None], rules: set[str]) -> None:
    """If this fails, the drill calls an election good that broke what it is there for."""
    doctor = Doctor()
    harm(doctor)
    assert doctor.broken() == rules


def test_every_rule_has_a_planted_bug() -> None:
    """If this fails, a rule exists that no test has ever seen to fail."""
    marks = getattr(test_a_planted_bug_is_seen, "pytestmark")  # noqa: B009
    assert set().union(*(rules for _, rules in marks[0].args[1])) == set(RULES)


def test_who_was_stopped_is_excused() -> None:
    """If this fails, a process that cannot know of its loss is called a second believer."""
    doctor = Doctor()
    doctor.drop("kill")
    doctor.add("a", "freeze", 2.0, ended=2.001)
    doctor.add("a", "thaw", 4.0, ended=4.001)
    doctor.job("a", 100, 4.001, "refused")
    doctor.add("a", "believed", 0.2, 100, ended=4.002)
    doctor.add("a", "lost", 4.002, 100)
    assert doctor.broken() == set()


def test_being_stopped_later_is_no_excuse() -> None:
    """If this fails, a SIGSTOP at any time hides two believers at another."""
    doctor = Doctor()
    overlapping_believers(doctor)
    doctor.add("a", "freeze", 5.0, ended=5.001)
    assert "one believer" in doctor.broken()


def test_a_forgetful_server_excuses_two_believers_only() -> None:
    """If this fails, data loss excuses tokens that fall, or stale writes."""
    forgets = replace(EXPECTED, forgets=True)
    doctor = Doctor()
    overlapping_believers(doctor)
    assert doctor.broken(forgets) == set()
    falling_tokens(doctor)
    assert doctor.broken(forgets) == {"tokens rise", "no stale write"}


def test_without_a_server_or_a_candidate_nobody_is_missed() -> None:
    """If this fails, an outage of the server is counted as a failure of the election."""
    doctor = Doctor()
    doctor.drop("elected", "job", after=2.5)
    doctor.add(SERVER, "stop", 2.0)
    doctor.add(SERVER, "start", 5.0)
    assert doctor.broken() == {"new leaders"}


def test_a_record_can_be_read_again(tmp_path: Path) -> None:
    """If this fails, what is kept of a failed run cannot be judged again."""
    doctor = Doctor()
    falling_tokens(doctor)
    record = doctor.record()
    file = tmp_path / "record.jsonl"
    file.write_text("\n".join(record.lines()))
    assert Record.read(file) == record
    assert judge(Record.read(file), EXPECTED) == judge(record, EXPECTED) != []


def test_what_an_instance_tells_is_understood() -> None:
    """If this fails, the drill and `fencer instance` have come to speak different languages."""
    line = '{"at": 2.0, "event": "job", "instance": "a", "token": 7, "begun": 1.5, '
    assert told_by_instance(line + '"outcome": "refused", "highest": 9}') == Event(
        "a", "job", 1.5, 2.0, "refused", 7, "the guard had seen 9"
    )
    line = '{"at": 2.0, "event": "leader_change", "instance": "a", "token": 7, "leader": "b"}'
    assert told_by_instance(line) == Event("a", "follows", 2.0, 2.0, "ok", 7, "b")
    line = '{"at": 2.0, "event": "believed", "instance": "a", "token": 7, "begun": 1, "ended": 1.9}'
    assert told_by_instance(line) == Event("a", "believed", 1, 1.9, "ok", 7)


def test_spans() -> None:
    """If this fails, gaps without a leader are measured wrongly."""
    spans = Spans([(3, 4), (0, 1), (1, 2)])
    assert list(spans) == [(0, 2), (3, 4)]
    assert list(spans | Spans([(2, 3)])) == [(0, 4)]
    assert list(spans & Spans([(1, 3.5)])) == [(1, 2), (3, 3.5)]
    assert list(spans - Spans([(0.5, 1), (3, 9)])) == [(0, 0.5), (1, 2)]
    assert list(spans - spans) == []
    assert spans.longest() == 2
    assert Spans().longest() == 0
    assert spans.holds(0.5)
    assert not spans.holds(2.5)
    assert spans.meets((2, 2.5))
    assert not spans.meets((2.1, 2.9))
