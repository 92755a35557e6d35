"""What must hold on every record: the invariants S1 to L2, as far as a record can decide them.

| rule | what must hold | decided by |
|---|---|---|
| S1 | tokens are unique per name | here |
| S2, S8 | they rise in the order of the grants, whatever was lost | here |
| S3 | a guard accepts nothing below its highest, and an equal token of the same grant only | here |
| S4, S9 | never two that believe at once: a belief ends before another is granted | here |
| S5 | no renew and no release is accepted after a later grant | here |
| S6 | who was told of its loss is renewed no more | here |
| S7 | one grant, one token | here |
| S10 | elected and stopped take turns, and no term begins before the one before has ended | here |
| S11 | no renewal begins after a release | here; exit and fork: `tests/keep/test_ends.py` |
| S12 | a refusal is a script's word, never a driver's error | here |
| S13 | a script does all or nothing | `tests/lua/test_all_or_nothing.py` |
| S14 | tokens are whole numbers below 2^53 | here; what is refused: `tests/api/test_bad_input.py` |
| L1 | after the fault somebody is granted in time | here, where a record tells when it was healed |
| L2 | who joined the line earlier is granted earlier | here |

All of them are judged in the model, too (`tests/model`), but S3, S9, S10 and S12 to S14.

What is unknown may have happened or not, so nothing follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from math import inf

from fencer.drill.judge import Finding
from fencer.drill.record import Event
from fencer.drill.rules import falls, overlaps, shared
from fencer.drill.spans import Span, Spans

LATE = 1.0
"""Seconds that a thread may be late on a busy machine, where two of them race."""

Seen = Iterator[tuple[float, str]]


def check(events: Iterable[Event]) -> list[Finding]:
    """Everything that breaks a rule, in order of time."""
    events = list(events)
    findings = [
        Finding(rule, text, at)
        for rule, look in _RULES.items()
        for _, about in sorted(_by_name(events).items())
        for at, text in look(about)
    ]
    return sorted(findings, key=lambda finding: finding.at)


def _by_name(events: list[Event]) -> dict[str, list[Event]]:
    """The events of each name; what tells of all stands with each."""
    of_all = [event for event in events if not event.name]
    names: dict[str, list[Event]] = {}
    for event in events:
        if event.name:
            names.setdefault(event.name, []).append(event)
    if of_all:
        for name, about in names.items():
            names[name] = sorted(about + of_all, key=lambda event: event.begun)
    return names


def _each(events: list[Event], *whats: str, outcome: str = "ok") -> list[Event]:
    return [event for event in events if event.what in whats and event.outcome == outcome]


def _unique(events: list[Event]) -> Seen:
    grants = _each(events, "acquire")
    for token, one, other in shared((event.token, event.grant) for event in grants):
        yield grants[0].begun, f"token {token} was granted to {one} and to {other}"


def _one_token(events: list[Event]) -> Seen:
    told = [event for event in events if event.grant and event.token]
    for grant, one, other in shared((event.grant, event.token) for event in told):
        yield told[0].begun, f"grant {grant} has token {one} and token {other}"


def _rise(events: list[Event]) -> Seen:
    for before, after in falls(_each(events, "acquire")):
        yield after.ended, f"{_who(after)} was granted after {_who(before)}"


def _guarded(events: list[Event]) -> Seen:
    writes = _each(events, "write")
    for before, after in falls(writes):
        yield after.ended, f"a write with {after.token} was accepted after one with {before.token}"
    owned = [(event.token, event.grant) for event in writes if event.grant]
    for token, one, other in shared(owned):
        yield writes[0].begun, f"{one} and {other} both wrote with token {token}"


def _one_believer(events: list[Event]) -> Seen:
    for one, other, (begun, ended) in overlaps(_beliefs(events).items()):
        yield begun, f"{one} and {other} both believed for {ended - begun:.3f} s"


def _beliefs(events: list[Event]) -> dict[str, Spans]:
    """From when to when each holder believed; not beyond the moment at which it was thrown out."""
    beliefs: dict[str, Spans] = {}
    # Who is revoked believes on for a while, and the guards hold: that is what revoking means.
    thrown = [event for event in events if event.what in ("revoke", "advance")]
    for grant in {event.grant for event in events if event.what == "believes"}:
        mine = [event for event in events if event.grant == grant]
        moments = [event for event in mine if event.what == "believes"]
        token = moments[0].token or 0
        end = min(
            (event.begun for event in mine if event.what in ("lost", "released")), default=inf
        )
        for event in thrown:
            if event.outcome != "failed" and (event.token is None or event.token >= token):
                end = min(end, max(event.begun, moments[0].begun))
        spans: list[Span] = [
            (one.begun, min(one.ended, other.begun, end)) for one, other in pairwise(moments)
        ]
        spans.append((moments[-1].begun, min(moments[-1].ended, end)))
        beliefs[f"{_who(moments[0])}, grant {grant[:8]},"] = Spans(spans)
    return beliefs


def _last_speaks(events: list[Event]) -> Seen:
    grants = _each(events, "acquire")
    released: set[str] = set()
    for event in events:
        if event.what not in ("renew", "renewed", "release"):
            continue
        # A release is true again when it is asked again.
        again = event.what == "release" and event.grant in released
        if event.what == "release" and event.outcome in ("ok", "unknown"):
            released.add(event.grant)
        if event.outcome != "ok" or again:
            continue
        later = [g for g in grants if g.ended < event.begun and (g.token or 0) > (event.token or 0)]
        for grant in later[:1]:
            yield (
                event.ended,
                f"the {event.what} of {_who(event)} was accepted after {_who(grant)} was granted",
            )


def _lost_for_good(events: list[Event]) -> Seen:
    yield from _no_more(events, "lost", ("renew", "renewed"), 0.0)


def _nothing_after_release(events: list[Event]) -> Seen:
    ended = [
        event
        for event in events
        if event.what == "release" and event.outcome in ("ok", "refused", "unknown")
    ]
    yield from _after(ended, _each(events, "renew", "renewed"), 0.0)
    yield from _after(ended, _each(events, "renewing"), LATE)


def _no_more(events: list[Event], end: str, whats: tuple[str, ...], late: float) -> Seen:
    yield from _after(_each(events, end), _each(events, *whats), late)


def _after(ends: list[Event], events: list[Event], late: float) -> Seen:
    ended = {event.grant: event for event in reversed(ends)}
    for event in events:
        end = ended.get(event.grant)
        if end is not None and event.begun > end.ended + late:
            yield event.begun, f"{event.what} of {_who(event)} after it was {end.what}"


def _take_turns(events: list[Event]) -> Seen:
    leads: Event | None = None
    callbacks = [event for event in events if event.what in ("elected", "stopped")]
    by_who: dict[str, Event] = {}
    for event in callbacks:
        before = by_who.get(event.who)
        if event.what == (before.what if before else "stopped"):
            yield event.begun, f"{event.who} is told twice in a row that it is {event.what}"
        by_who[event.who] = event
        if event.what == "elected":
            if leads and by_who[leads.who] is leads:
                yield event.begun, f"{event.who} is elected before {leads.who} was told of its end"
            leads = event
    for before, after in falls(event for event in callbacks if event.what == "elected"):
        yield after.begun, f"{_who(after)} is elected after {_who(before)}"


def _refused_by_scripts(events: list[Event]) -> Seen:
    for event in events:
        if event.outcome == "refused" and " from " in event.note:
            lost = event.what == "renew" and event.note.endswith("CancelledError")
            if not lost:
                yield event.ended, f"the {event.what} of {_who(event)} was refused: {event.note}"


def _whole_numbers(events: list[Event]) -> Seen:
    for event in events:
        if event.token is not None and not 0 < event.token < 2**53:
            yield event.begun, f"{event.what} of {_who(event)} is not within 1 and 2^53 - 1"


def _served_again(events: list[Event]) -> Seen:
    for healed in (event for event in events if event.what == "healed"):
        until = healed.ended + float(healed.note)
        waits = [e for e in events if e.what == "acquire" and e.begun < healed.ended]
        served = [e for e in _each(events, "acquire") if healed.ended <= e.ended <= until]
        stuck = [e for e in waits if e.ended > until]
        if stuck and not served:
            yield until, f"{stuck[0].who} waits, and nobody was granted {healed.note} s after"


def _in_order(events: list[Event]) -> Seen:
    grants = {event.grant: event for event in _each(events, "acquire")}
    joined = {event.grant: event for event in reversed(events) if event.what == "joined"}
    # Who did not have to join could have it at once, so it came when it asked.
    came = {grant: joined.get(grant, event) for grant, event in grants.items()}
    queued = [grants[grant] for grant in joined if grant in grants]
    for event in queued:
        for other in grants.values():
            earlier = came[event.grant].ended < came[other.grant].begun
            if earlier and (other.token or 0) < (event.token or 0):
                yield other.ended, f"{_who(other)} overtook {_who(event)}"


def _who(event: Event) -> str:
    return f"{event.who} with token {event.token}"


_RULES: dict[str, Callable[[list[Event]], Seen]] = {
    "S1": _unique,
    "S2": _rise,
    "S3": _guarded,
    "S4": _one_believer,
    "S5": _last_speaks,
    "S6": _lost_for_good,
    "S7": _one_token,
    "S10": _take_turns,
    "S11": _nothing_after_release,
    "S12": _refused_by_scripts,
    "S14": _whole_numbers,
    "L1": _served_again,
    "L2": _in_order,
}
RULES = tuple(_RULES)
"""The names of the rules that a record can decide."""
