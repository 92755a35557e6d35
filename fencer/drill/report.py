"""The report of a drill as one HTML page: figures, and for each run who led when and the tokens.

It needs nothing but itself: no script, no font and no picture from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from fencer.drill.figures import as_range, as_seconds
from fencer.drill.play import OLD_TTLS, Result, Run
from fencer.drill.record import SERVER, Event, Record
from fencer.drill.spans import Spans

_WIDTH = 1000.0
_LEFT = 104.0
_RIGHT = 14.0
_LANE = 30.0
_TOP = 12.0
_LABEL = 13.0
_STAIRS = 150.0
_MARK = 25.0

_FAULTS = {
    "term": "SIGTERM",
    "kill": "SIGKILL",
    "freeze": "SIGSTOP",
    "thaw": "SIGCONT",
    "cut": "cut off",
    "mend": "mended",
    "started": "started",
}

_STYLE = Path(__file__).with_name("report.css")

_HATCH = """<svg width="0" height="0" style="position:absolute;min-width:0"><defs>
<pattern id="frozen" width="6" height="6" patternUnits="userSpaceOnUse"
 patternTransform="rotate(45)"><rect width="6" height="6" fill="var(--panel)" opacity=".55"/>
<line x1="0" y1="0" x2="0" y2="6" stroke="var(--text)" stroke-width="2.4"/></pattern>
<pattern id="cut" width="5" height="5" patternUnits="userSpaceOnUse">
<rect width="5" height="5" fill="var(--panel)" opacity=".45"/>
<circle cx="2.5" cy="2.5" r="1.3" fill="var(--bad)"/></pattern></defs></svg>"""


def page(results: Iterable[Result], facts: dict[str, Any]) -> str:
    """The page.

    Args:
        results: what came of each scenario.
        facts: what else there is to know, by label.
    """
    shown = list(results)
    body = [
        "<h1>Failover drill</h1>",
        f'<p class="dim">{escape(" · ".join(f"{k} {v}" for k, v in facts.items()))}</p>',
        f"<p>{escape(verdict_in_words(shown))}</p>",
        _figures(shown),
        f'<p class="dim">{escape(about_old(shown))}</p>',
        _key(),
        *(_scenario(result) for result in shown if result.runs),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Failover drill</title><style>{_STYLE.read_text()}</style></head>\n<body>{_HATCH}\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def about_old(results: list[Result]) -> str:
    """Where the figures of the old system come from."""
    ttl = results[0].old_ttl if results else OLD_TTLS[0]
    return f"Old system: as measured at a ttl of {ttl:g} s and a retry interval of {ttl / 5:g} s."


def verdict_in_words(results: list[Result]) -> str:
    """How many scenarios held."""
    by = dict.fromkeys(("good", "slow", "BAD", "skipped"), 0)
    for result in results:
        by[result.verdict] += 1
    held = by["good"] + by["slow"]
    words = [f"{held} of {held + by['BAD']} scenarios held"]
    if by["slow"]:
        words.append(f"{by['slow']} slower than expected")
    if by["skipped"]:
        words.append(f"{by['skipped']} skipped")
    return ", ".join(words) + "."


def _figures(results: list[Result]) -> str:
    head = ("scenario", "runs", "min", "typical", "max", "expected", "old system", "verdict")
    rows = []
    for result in results:
        name = escape(result.scenario.name)
        link = f'<a href="#{name}">{name}</a>' if result.runs else name
        spread = [as_seconds(figure) for figure in result.spread or ()] or ["–"] * 3
        told = result.verdict + (f": {result.skipped}" if result.skipped else "")
        cells = [link, str(len(result.runs)), *spread, as_range(result.expected)]
        cells += [as_range(result.old), _verdict(result.verdict, told)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{title}</th>" for title in head)
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _verdict(verdict: str, told: str = "") -> str:
    return f'<span class="v {verdict}">{escape(told or verdict)}</span>'


def _key() -> str:
    def sample(inside: str, text: str) -> str:
        return f'<span><svg viewBox="0 0 26 14">{inside}</svg>{text}</span>'

    samples = (
        ('<rect y="2" width="26" height="10" rx="2" fill="var(--c0)"/>', "believes that it leads"),
        ('<rect y="6" width="26" height="2" class="alive"/>', "alive, follows"),
        ('<rect y="1" width="26" height="12" fill="url(#frozen)"/>', "stopped (SIGSTOP)"),
        ('<rect y="1" width="26" height="12" fill="url(#cut)"/>', "cut off from the server"),
        ('<rect width="26" height="14" class="down"/>', "no server"),
        ('<path d="M4 2v10M10 2v10M16 2v10M22 2v10" class="job"/>', "a job done"),
        ('<path d="M9 3l8 8m0-8l-8 8" class="refused"/>', "a write that the guard refused"),
        ('<circle cx="13" cy="7" r="5" class="landed"/>', "a stale write that landed"),
        ('<path d="M13 0v14" class="fault"/>', "a fault, or its end"),
    )
    return f'<div class="key">{"".join(sample(*each) for each in samples)}</div>'


def _scenario(result: Result) -> str:
    scenario = result.scenario
    parts = [
        f'<h2 id="{escape(scenario.name)}">{escape(scenario.name)} {_verdict(result.verdict)}</h2>',
        f'<p class="dim">{escape(scenario.about)} Measured: {escape(scenario.measured)}.</p>',
    ]
    for run in result.runs:
        told = ", ".join(as_seconds(figure) for figure in run.figures) or "nothing measured"
        parts.append(f"<h3>Run {run.number}: {told}</h3>")
        if run.findings:
            begin = run.record.begin
            items = "".join(
                f"<li>{finding.at - begin:.2f} s, <b>{escape(finding.rule)}</b>: "
                f"{escape(finding.text)}</li>"
                for finding in run.findings
            )
            parts.append(f'<ul class="findings">{items}</ul>')
            parts.append(f'<p class="dim">Logs and record: {escape(str(run.folder))}</p>')
        parts.append(f'<div class="scroll">{_timeline(run)}{_staircase(run)}</div>')
    return "\n".join(parts)


class _Scale:
    """Where a moment stands on the page."""

    def __init__(self, record: Record) -> None:
        self.begin = record.begin
        self.length = max(record.end - record.begin, 0.001)
        # A long chaos is drawn wider than the page, which then scrolls.
        faults = sum(bool(_fault(event)) for event in record.events)
        self.width = max(_WIDTH, _MARK * faults)

    def x(self, moment: float) -> float:
        share = min(1.0, max(0.0, (moment - self.begin) / self.length))
        return round(_LEFT + share * (self.width - _LEFT - _RIGHT), 1)

    def ticks(self) -> Iterator[float]:
        """Round numbers of seconds, some ten of them."""
        step = next(
            step
            for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 1e9)
            if self.length / step <= 12 * self.width / _WIDTH
        )
        for number in range(int(self.length / step) + 1):
            yield number * step

    def rect(self, spans: Spans, y: float, height: float, look: str) -> str:
        return "".join(
            f'<rect x="{self.x(a)}" y="{y}" width="{max(1.0, self.x(b) - self.x(a)):.1f}" '
            f'height="{height}" {look}/>'
            for a, b in spans
        )


def _color(record: Record, who: str) -> str:
    return f"var(--c{record.instances.index(who) % 6})"


def _timeline(run: Run) -> str:
    record = run.record
    scale = _Scale(record)
    marks, rows = _marks(record, scale)
    top = _TOP + rows * _LABEL + 6
    bottom = top + _LANE * len(record.instances)
    parts = [_grid(scale, top, bottom)]
    down = Spans([(record.begin, record.end)]) - record.served()
    parts.append(scale.rect(down, top, bottom - top, 'class="down"'))
    parts += [_lane(record, scale, who, top + _LANE * i) for i, who in enumerate(record.instances)]
    parts += [
        f'<path d="M{x} {top - 4}V{bottom}" class="fault"/>'
        f'<path d="M{x} {y + 3}V{top - 4}" class="fault" opacity=".35"/>'
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="mark">{escape(text)}</text>'
        for x, y, anchor, text in marks
    ]
    return _svg(scale.width, bottom + 22, "Who led when", parts)


def _lane(record: Record, scale: _Scale, who: str, y: float) -> str:
    parts = [
        f'<text x="8" y="{y + 19}" class="who">{escape(who)}</text>',
        scale.rect(record.alive(who), y + 14, 2, 'class="alive"'),
    ]
    for term in record.terms():
        if term.who == who:
            look = f'rx="2" fill="{_color(record, who)}"'
            title = (
                f"<title>{escape(who)} led from {term.begun - record.begin:.3f} to "
                f"{term.ended - record.begin:.3f} s with token {term.token}</title>"
            )
            parts.append(f"<g>{title}{scale.rect(Spans([term.span]), y + 6, 18, look)}</g>")
    parts.append(scale.rect(record.frozen(who), y + 4, 22, 'fill="url(#frozen)"'))
    parts.append(scale.rect(record.cut(who), y + 4, 22, 'fill="url(#cut)"'))
    done = {scale.x(job.ended) for job in record.about(who, "job") if job.outcome == "ok"}
    ticks = "".join(f"M{x} {y + 11}v8" for x in sorted(done))
    crosses = "".join(
        f"M{scale.x(job.ended) - 4} {y + 11}l8 8m0-8l-8 8"
        for job in record.about(who, "job")
        if job.outcome == "refused"
    )
    parts.append(f'<path d="{ticks}" class="job"/>' if ticks else "")
    parts.append(f'<path d="{crosses}" class="refused"/>' if crosses else "")
    return "".join(parts)


def _grid(scale: _Scale, top: float, bottom: float) -> str:
    return "".join(
        f'<path d="M{x} {top}V{bottom}" class="grid"/>'
        f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{tick:g} s</text>'
        for tick in scale.ticks()
        if (x := scale.x(scale.begin + tick))
    )


def _marks(record: Record, scale: _Scale) -> tuple[list[tuple[float, float, str, str]], int]:
    """Where the faults are written: x, y, anchor, text; each in the first row with room for it."""
    told: list[tuple[float, str]] = []
    first = True
    for event in record.events:
        text = _fault(event)
        if event.who == SERVER and event.what == "start" and first:
            first, text = False, ""
        if event.what == "started" and not _is_return(record, event):
            text = ""
        if text:
            told.append((scale.x(event.begun), text))
    ends: list[float] = []
    placed: list[tuple[float, int, str, str]] = []
    for x, text in sorted(told):
        width = 6.3 * len(text) + 8
        anchor = "start" if x + width < scale.width else "end"
        begin = x if anchor == "start" else x - width
        row = next((row for row, end in enumerate(ends) if end <= begin), len(ends))
        ends[row : row + 1] = [begin + width]
        placed.append((x, row, anchor, text))
    return [(x, _TOP + row * _LABEL, anchor, text) for x, row, anchor, text in placed], len(ends)


def _is_return(record: Record, event: Event) -> bool:
    """Whether an instance had run before."""
    return any(before.begun < event.begun for before in record.about(event.who, "started"))


def _fault(event: Event) -> str:
    if event.who == SERVER:
        match event.what:
            case "stop":
                return "server killed" if event.note == "killed" else "server stopped"
            case "start":
                return "server started"
            case "jump":
                return f"server's clock {event.note}"
    if event.what in _FAULTS:
        detail = ", refused" if event.what == "cut" and "refused" in event.note else ""
        return f"{_FAULTS[event.what]}{detail} {event.who.removeprefix('instance-')}"
    return f"{event.who} died" if event.what == "died" else ""


def _staircase(run: Run) -> str:
    """Each leader's token over time. Tokens of the same step are as high as their order says."""
    record = run.record
    scale = _Scale(record)
    terms = record.terms()
    tokens = sorted({term.token for term in terms})
    if not tokens:
        return ""
    top, bottom = (
        _TOP + 14,
        _TOP + 14 + max(60.0, min(_STAIRS * scale.width / _WIDTH, 30.0 * len(tokens))),
    )
    rise = (bottom - top - 16) / max(1, len(tokens) - 1)
    height = {token: round(bottom - 8 - i * rise, 1) for i, token in enumerate(tokens)}
    parts = [
        '<text x="8" y="16" class="who">tokens</text>',
        _grid(scale, top, bottom),
    ]
    before = None
    for term in terms:
        y, color = height[term.token], _color(record, term.who)
        begun, ended = scale.x(term.begun), scale.x(term.ended)
        if before is not None:
            parts.append(f'<path d="M{begun} {height[before]}V{y}" class="rise"/>')
        parts.append(
            f'<path d="M{begun} {y}H{max(ended, begun + 1)}" class="held" stroke="{color}"/>'
        )
        if len(tokens) <= 8 * scale.width / _WIDTH:
            end = begun > scale.width - 250
            parts.append(
                f'<text x="{begun + (-5 if end else 4)}" y="{y - 5}" '
                f'text-anchor="{"end" if end else "start"}">{term.token}</text>'
            )
        before = term.token
    newest = 0
    for job in record.each("job"):
        if job.token not in height or job.outcome not in ("ok", "refused"):
            continue
        x, y = scale.x(job.ended), height[job.token]
        if job.outcome == "refused":
            parts.append(f'<path d="M{x - 4} {y - 4}l8 8m0-8l-8 8" class="refused"/>')
        elif job.token < newest:
            parts.append(f'<circle cx="{x}" cy="{y}" r="5" class="landed"/>')
        else:
            newest = job.token
            parts.append(f'<circle cx="{x}" cy="{y}" r="2" fill="{_color(record, job.who)}"/>')
    return _svg(scale.width, bottom + 22, "The tokens of the leaders and of their writes", parts)


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="width:{width / _WIDTH:.0%}" '
        f'role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
