"""What must hold on every record, and what did not. A verdict depends on the record alone.

The rules, with the numbers of what they stand for in the project's list of invariants:

- *one believer* (S4, S9): never two that believe to lead at once, by their own records. Excused
  are those that were stopped (SIGSTOP), since nothing that does not run can notice; and both where
  the server itself has forgotten the lease (data loss, a clock that jumped): there the guards hold.
- *tokens rise* (S1, S2, S7, S8): each leader's token is larger than every earlier one.
- *no stale write* (S3): the writes that landed never go back in token, and no two instances write
  with the same one.
- *dead is dead* (S5, S6, S11): nobody writes with a token that it was told it lost, or after it
  stopped.
- *once each* (S10): elected and lost take turns in every instance, and nobody stops as the leader.
- *told in time* (S10): whoever ran was told of its loss before the next leader was elected.
- *new leaders*: so many as the scenario says.
- *no gap* (L1): while somebody could lead, somebody does, within the time allowed.
- *the job runs on*: each leader that could work did, and was not refused while nobody was newer.
- *alive*: no instance ended by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from fencer.drill.record import Event, Record, Term
from fencer.drill.rules import falls, overlaps, shared
from fencer.drill.spans import Span, Spans

CALLBACK = 0.25
"""Seconds that a busy machine may take to run a callback that is due."""

PATIENCE = 2.0
"""Seconds that it may take to do a job."""


@dataclass(frozen=True, slots=True)
class Count:
    """So many leaders were to be elected from one moment to another."""

    begun: float
    ended: float
    leaders: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What a scenario leads one to expect.

    Attributes:
        gap: for how many seconds there may be no leader though there could be one.
        every: seconds between two jobs.
        counts: how many leaders were to be elected when.
        forgets: whether the server itself was made to forget the lease before its time.
    """

    gap: float
    every: float
    counts: tuple[Count, ...] = ()
    forgets: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be.

    Attributes:
        rule: which rule it breaks.
        text: what was seen, with names and numbers.
        at: when.
    """

    rule: str
    text: str
    at: float


def judge(record: Record, expected: Expected) -> list[Finding]:
    """Everything in the record that breaks a rule, in order of time; the same thing once."""
    found: dict[tuple[str, str], list[float]] = {}
    for rule, look in _RULES:
        for at, text in look(record, expected):
            found.setdefault((rule, text), []).append(at)
    return sorted(
        (Finding(rule, text + _times(len(at)), at[0]) for (rule, text), at in found.items()),
        key=lambda finding: finding.at,
    )


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


Seen = Iterator[tuple[float, str]]


def _one_believer(record: Record, expected: Expected) -> Seen:
    if expected.forgets:
        return
    terms = [(term, Spans([term.span])) for term in record.terms()]
    for one, other, (begun, ended) in overlaps(terms):
        if not any(_stopped(record, term, ended) for term in (one, other)):
            yield (
                begun,
                (
                    f"{one.who} (token {one.token}) and {other.who} (token {other.token}) both "
                    f"believed to lead for {_span(ended - begun)}"
                ),
            )


def _tokens_rise(record: Record, expected: Expected) -> Seen:
    highest: Event | None = None
    for event in record.each("elected"):
        if highest is not None and (event.token or 0) <= (highest.token or 0):
            # A process that stood still tells late of a grant that came before.
            late = event.token != highest.token and any(
                begun <= highest.begun <= ended for begun, ended in record.frozen(event.who)
            )
            if not late:
                yield (
                    event.begun,
                    (
                        f"{event.who} was elected with token {event.token} after {highest.who} "
                        f"with {highest.token}"
                    ),
                )
        if highest is None or (event.token or 0) > (highest.token or 0):
            highest = event


def _no_stale_write(record: Record, expected: Expected) -> Seen:
    for before, after in pairwise(record.writes):
        if after.token < before.token:
            yield (
                record.end,
                (
                    f"a write of {after.who} with token {after.token} landed after one of "
                    f"{before.who} with {before.token}"
                ),
            )
    for token, one, other in shared((write.token, write.who) for write in record.writes):
        yield record.end, f"{one} and {other} both wrote with token {token}"
    # The same by the writers' own clocks: it holds even where the data were lost.
    for newest, job in falls(job for job in record.each("job") if job.outcome == "ok"):
        yield (
            job.ended,
            f"{job.who} wrote with token {job.token} after {newest.who} with {newest.token}",
        )


def _dead_is_dead(record: Record, expected: Expected) -> Seen:
    for who in record.instances:
        lost: dict[int | None, float] = {}
        stopped: float | None = None
        for event in sorted(record.about(who, "lost", "stopped", "started", "job"), key=_begun):
            if event.what == "lost":
                lost[event.token] = event.begun
            elif event.what == "job" and event.begun - lost.get(event.token, inf) > CALLBACK:
                yield (
                    event.begun,
                    (
                        f"{who} began a job with token {event.token} "
                        f"{_span(event.begun - lost[event.token])} after it had lost it"
                    ),
                )
            elif event.what == "job" and stopped is not None:
                yield event.begun, f"{who} began a job after it had stopped"
            if event.what in ("stopped", "started"):
                stopped = event.begun if event.what == "stopped" else None


def _once_each(record: Record, expected: Expected) -> Seen:
    for who in record.instances:
        leads: Event | None = None
        for event in record.about(who, "elected", "lost", "stopped", "kill", "died", "started"):
            if event.what == "elected" and leads is not None:
                yield event.begun, f"{who} was elected again while it led with {leads.token}"
            if event.what == "lost" and (leads is None or leads.token != event.token):
                yield event.begun, f"{who} lost token {event.token} without leading with it"
            if event.what == "stopped" and leads is not None:
                yield event.begun, f"{who} stopped without losing the lead, token {leads.token}"
            leads = event if event.what == "elected" else None


def _told_in_time(record: Record, expected: Expected) -> Seen:
    if expected.forgets:
        return
    for before, after in pairwise(record.terms()):
        if before.told is None or _stopped(record, before, before.told):
            continue
        late = before.told - after.begun
        if late > CALLBACK:
            yield (
                before.told,
                f"{before.who} was told of its loss {_span(late)} after {after.who} was elected",
            )


def _new_leaders(record: Record, expected: Expected) -> Seen:
    for count in expected.counts:
        elected = [
            event for event in record.each("elected") if count.begun <= event.begun <= count.ended
        ]
        if len(elected) != count.leaders:
            names = ", ".join(event.who for event in elected) or "nobody"
            yield (
                count.begun,
                (
                    f"{count.leaders} new leaders were to be elected after "
                    f"{_at(record, count.begun)}, and {len(elected)} were: {names}"
                ),
            )


def _no_gap(record: Record, expected: Expected) -> Seen:
    for begun, ended in record.gaps():
        if ended - begun > expected.gap:
            until = "ever" if ended == record.end else _at(record, ended)
            yield (
                begun,
                (
                    f"nobody led from {_at(record, begun)} to {until}, for {_span(ended - begun)}; "
                    f"at most {_span(expected.gap)} is allowed"
                ),
            )


def _job_runs_on(record: Record, expected: Expected) -> Seen:
    patience = max(PATIENCE, 5 * expected.every)
    done: dict[tuple[str, int | None], list[float]] = {}
    for job in record.each("job"):
        if job.outcome == "ok":
            done.setdefault((job.who, job.token), []).append(job.ended)
    for term in record.terms():
        idle = Spans([term.span]) - record.hampered(term.who) - record.spans(term.who, "term")
        for begun, ended in idle:
            moments = [at for at in done.get((term.who, term.token), []) if begun <= at <= ended]
            for one, other in pairwise([begun, *moments, ended]):
                if other - one > patience:
                    yield (
                        one,
                        (
                            f"{term.who} led with token {term.token} and did no job for "
                            f"{_span(other - one)} from {_at(record, one)} on"
                        ),
                    )
    newest = max((event.token or 0 for event in record.each("elected")), default=0)
    for job in record.each("job"):
        if job.outcome == "refused" and (job.token or 0) >= newest:
            yield job.ended, f"{job.who} was refused with token {job.token}, the newest: {job.note}"


def _alive(record: Record, expected: Expected) -> Seen:
    for event in record.each("died"):
        yield event.begun, f"{event.who} ended by itself: {event.note}"


_RULES: tuple[tuple[str, Callable[[Record, Expected], Seen]], ...] = (
    ("one believer", _one_believer),
    ("tokens rise", _tokens_rise),
    ("no stale write", _no_stale_write),
    ("dead is dead", _dead_is_dead),
    ("once each", _once_each),
    ("told in time", _told_in_time),
    ("new leaders", _new_leaders),
    ("no gap", _no_gap),
    ("the job runs on", _job_runs_on),
    ("alive", _alive),
)
RULES = tuple(rule for rule, _ in _RULES)
"""The names of all rules."""


def _stopped(record: Record, term: Term, until: float) -> bool:
    """Whether a leader was stopped in its term, or while it was elected."""
    before = max(
        (
            event.ended
            for event in record.about(term.who, "started", "lost", "follows", "job")
            if event.ended < term.begun
        ),
        default=record.begin,
    )
    span: Span = before, until
    return record.frozen(term.who).meets(span)


def _begun(event: Event) -> float:
    return event.begun


def _at(record: Record, moment: float) -> str:
    return f"{moment - record.begin:.2f} s"


def _span(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
