"""The record of a run: who did what, when, and with what outcome.

All times are seconds on the machine-wide monotonic clock, so that the events of several processes
stand in one order. An outcome of ``unknown`` may have happened or not, at any time after it began.

Who an event is about is an instance by its id, or `SERVER`, or `DRILL`.

- An instance tells of itself: ``started``, ``elected``, ``lost``, ``believed`` (its belief in the
  lead that was lost, from when to when), ``job``, ``follows`` and ``stopped``.
- The drill does to it: ``term``, ``kill``, ``freeze``, ``thaw``, ``cut`` and ``mend``. If it ends
  by itself, that is ``died``.
- The drill does to the server: ``start``, ``stop`` and ``jump`` (of its clock).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fencer.drill.spans import Span, Spans

SERVER = "server"
DRILL = "drill"

Outcome = Literal["ok", "refused", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        who, what: see the module.
        begun, ended: when.
        outcome: ``ok``; ``refused`` by a guard; ``failed``, it did not happen; or ``unknown``.
        token: the fencing token that it is about.
        note: a reason, or what an error said.
        name, grant: the lease's, where a record is about several.
    """

    who: str
    what: str
    begun: float
    ended: float
    outcome: Outcome = "ok"
    token: int | None = None
    note: str = ""
    name: str = ""
    grant: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """A write that the resource accepted, as it stands there."""

    who: str
    token: int


@dataclass(frozen=True, slots=True)
class Term:
    """One instance's lead, as it believed itself.

    Attributes:
        who: the instance.
        token: its token.
        begun, ended: from when to when it believed that it leads.
        told: when its ``on_lost`` was called; ``None`` if it was not.
        end: why it ended: ``lost``, ``killed``, or ``open`` if it was so until the record ends.
    """

    who: str
    token: int
    begun: float
    ended: float
    told: float | None
    end: Literal["lost", "killed", "open"]

    @property
    def span(self) -> Span:
        """From when to when."""
        return self.begun, self.ended


@dataclass(frozen=True, slots=True)
class Record:
    """All events of a run, in the order in which they ended, and the accepted writes in theirs."""

    events: tuple[Event, ...] = ()
    writes: tuple[Write, ...] = ()
    end: float = field(default=math.inf)

    @classmethod
    def of(cls, events: Iterable[Event], writes: Iterable[Write], end: float) -> Record:
        """A record of what began before the end."""
        kept = sorted((event for event in events if event.begun <= end), key=lambda e: e.ended)
        return cls(tuple(kept), tuple(writes), end)

    @property
    def begin(self) -> float:
        """When the first instance was ready: what is told of a run counts from then."""
        return min((event.begun for event in self.each("started")), default=self.end)

    def about(self, who: str, *whats: str) -> Iterator[Event]:
        """The events about somebody, of certain kinds."""
        return (event for event in self.events if event.who == who and event.what in whats)

    def each(self, *whats: str) -> Iterator[Event]:
        """The events of certain kinds."""
        return (event for event in self.events if event.what in whats)

    @property
    def instances(self) -> list[str]:
        """The ids of all instances, in order."""
        return sorted({event.who for event in self.events} - {SERVER, DRILL})

    def terms(self) -> list[Term]:
        """Every lead of every instance, in the order in which they began."""
        terms = [term for who in self.instances for term in self._terms_of(who)]
        return sorted(terms, key=lambda term: term.begun)

    def _terms_of(self, who: str) -> Iterator[Term]:
        # What it knew of its deadline is stricter than when its callback came to run.
        believed = {event.token: event.ended for event in self.about(who, "believed")}
        begun: Event | None = None
        for event in self.about(who, "elected", "lost", "kill", "died"):
            if begun is not None:
                lost = event.what == "lost"
                ended = believed.get(begun.token, event.begun) if lost else event.begun
                yield Term(
                    who,
                    begun.token or 0,
                    begun.begun,
                    max(begun.begun, min(ended, event.begun)),
                    event.begun if lost else None,
                    "lost" if lost else "killed",
                )
            begun = event if event.what == "elected" else None
        if begun is not None:
            yield Term(who, begun.token or 0, begun.begun, self.end, None, "open")

    def spans(self, who: str, begins: str, *ends: str) -> Spans:
        """From each event ``begins`` about somebody to the next of ``ends``, or to the end."""
        found: list[Span] = []
        begun: float | None = None
        for event in self.about(who, begins, *ends):
            if event.what == begins:
                begun = event.begun if begun is None else begun
            elif begun is not None:
                found.append(
                    (begun, event.ended if event.what in ("thaw", "mend") else event.begun)
                )
                begun = None
        if begun is not None:
            found.append((begun, self.end))
        return Spans(found)

    def frozen(self, who: str) -> Spans:
        """When an instance was stopped by SIGSTOP."""
        return self.spans(who, "freeze", "thaw", "kill")

    def cut(self, who: str) -> Spans:
        """When an instance was cut off from the server."""
        return self.spans(who, "cut", "mend")

    def alive(self, who: str) -> Spans:
        """When an instance ran and was not asked to stop."""
        return self.spans(who, "started", "term", "kill", "died")

    def served(self) -> Spans:
        """When there was a server."""
        return self.spans(SERVER, "start", "stop")

    def hampered(self, who: str) -> Spans:
        """When a living instance could not do its work, or not reach the server for it."""
        down = Spans([(self.begin, self.end)]) - self.served()
        return self.frozen(who) | self.cut(who) | down

    def able(self, who: str) -> Spans:
        """When an instance could campaign."""
        return self.alive(who) - self.hampered(who)

    def led(self) -> Spans:
        """When somebody led who believed so and could work."""
        found = Spans()
        for term in self.terms():
            found |= Spans([term.span]) - self.hampered(term.who)
        return found

    def gaps(self) -> Spans:
        """When nobody led though somebody could have."""
        able = Spans()
        for who in self.instances:
            able |= self.able(who)
        return able - self.led()

    def lines(self) -> Iterator[str]:
        """The record as lines of JSON."""
        for event in self.events:
            yield json.dumps(as_dict(event))
        for write in self.writes:
            yield json.dumps({"what": "write", **asdict(write)})
        yield json.dumps({"what": "end", "ended": self.end})

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `lines` gave."""
        events, writes, end = [], [], math.inf
        for line in path.read_text().splitlines():
            told = json.loads(line)
            if told["what"] == "write":
                writes.append(Write(told["who"], told["token"]))
            elif told["what"] == "end":
                end = told["ended"]
            else:
                events.append(Event(**told))
        return cls.of(events, writes, end)


def as_dict(event: Event) -> dict[str, Any]:
    """An event without what it does not say."""
    return {key: value for key, value in asdict(event).items() if value not in (None, "")}


def told_by_instance(line: str) -> Event:
    """Read what ``fencer instance --events`` wrote."""
    told = json.loads(line)
    who, what, at, token = told["instance"], told["event"], told["at"], told.get("token")
    match what:
        case "job":
            note = f"the guard had seen {told['highest']}" if "highest" in told else ""
            return Event(who, what, told["begun"], at, told["outcome"], token, note)
        case "believed":
            return Event(who, what, told["begun"], told["ended"], "ok", token)
        case "leader_change":
            return Event(who, "follows", at, at, "ok", token, told["leader"])
        case _:
            return Event(who, what, at, at, "ok", token, told.get("reason", ""))
