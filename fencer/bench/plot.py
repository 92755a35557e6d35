"""Draws a run: latencies as curves, one panel for each case, and how cost grows.

matplotlib is imported here and nowhere else, and only when something is to be drawn.
"""

from __future__ import annotations

import html
import io
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fencer.bench.figures import CURVE, FLOOR, OURS, PING, CaseResult, Figures, Results
from fencer.bench.growth import Growth
from fencer.bench.growth_panels import panels
from fencer.bench.style import ACCENT, FAINT, GRID, INK, PALETTE, RC, beside
from fencer.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = (".svg", ".png", ".html")
_PANEL_INCHES = (8.0, 4.0)
_LEGEND_PART = 0.40
"""Of a panel's width."""
_TICKS = {0.0: "0", 0.5: "50 %", 0.9: "90 %", 0.99: "99 %", 0.999: "99.9 %"}


def can_draw(path: Path) -> None:
    """Raise `InvalidArgument` now rather than after a long run."""
    if path.suffix.lower() not in _KINDS:
        raise InvalidArgument(f"a plot is a file called …{', …'.join(_KINDS)}, not {path}")
    if not path.absolute().parent.is_dir():
        raise InvalidArgument(f"there is no folder {path.absolute().parent} to put a plot in")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InvalidArgument(
            "plots need matplotlib, which is not installed: pip install 'redis-fencer[bench]'"
        ) from error


def draw(path: Path, found: Results, growth: Growth, caption: str) -> None:
    """Draw a run into a file, in the format that its name ends with.

    Args:
        path: the file, which is replaced.
        found: the latencies.
        growth: how cost grows.
        caption: where and with what it was measured.
    """
    from matplotlib import rc_context

    with rc_context(RC):
        figure = _figure(found, growth, caption)
        if path.suffix.lower() == ".html":
            drawn = io.StringIO()
            figure.savefig(drawn, format="svg")
            path.write_text(_page(drawn.getvalue()), encoding="utf-8")
        else:
            figure.savefig(path, format=path.suffix.lower()[1:], dpi=150)


def _figure(found: Results, growth: Growth, caption: str) -> Figure:
    # Not by pyplot, which keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours: dict[str, str] = {}
    drawings: list[Callable[[Axes], None]] = [
        *(_latency(case, colours) for case in found.cases),
        *panels(growth),
    ]
    columns = min(2, len(drawings))
    rows = math.ceil(len(drawings) / columns)
    width, height = _PANEL_INCHES
    wrapped = textwrap.fill(caption, 100 * columns, break_on_hyphens=False)
    below = 0.35 + 0.17 * wrapped.count("\n")
    above = 0.6
    inches = (width * columns, height * rows + above + below)
    figure = Figure(figsize=inches)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.85 / inches[0],
        right=1 - _LEGEND_PART * width / inches[0],
        top=1 - (above + 0.35) / inches[1],
        bottom=(below + 0.62) / inches[1],
        hspace=0.42,
        wspace=_LEGEND_PART / (1 - _LEGEND_PART),
    )
    for number, drawing in enumerate(drawings):
        drawing(figure.add_subplot(grid[divmod(number, columns)]))
    edge = 0.25 / inches[0]
    figure.text(
        edge, 1 - 0.2 / inches[1], "fencer bench", size=15, weight="bold", color=INK, va="top"
    )
    figure.text(
        edge, 0.15 / inches[1], wrapped, size=7.5, color=FAINT, va="bottom", linespacing=1.4
    )
    return figure


def _latency(case: CaseResult, colours: dict[str, str]) -> Callable[[Axes], None]:
    """The panel of a case: for each time the part of the calls that took no longer."""

    def drawing(axes: Axes) -> None:
        ranked = sorted(case.contenders.items(), key=lambda each: each[1].p50_us)
        for name, figures in ranked:
            shown = _enough(case, figures)
            axes.plot(
                figures.curve_us[:shown],
                CURVE[:shown],
                label=f"{_called(name, figures)} · {_time(figures.p50_us)}",
                **_line(name, colours),
            )
        axes.set_xscale("log")
        axes.set_yscale("function", functions=(_nines, _from_nines))
        axes.set_ylim(0, CURVE[-1])
        axes.set_yticks(list(_TICKS), list(_TICKS.values()))
        axes.set_ylabel("calls that took no longer")
        axes.set_xlabel("time of a call")
        axes.xaxis.set_major_formatter(lambda x, _: _time(x))
        _round_ticks(axes)
        axes.set_title(f"{case.title} ({case.api}, {case.transport})")
        beside(axes, "contender · median")
        axes.grid(True, color=GRID)

    return drawing


def _line(name: str, colours: dict[str, str]) -> dict[str, Any]:
    """How the curve of a contender looks: a peer has one colour in all panels."""
    if name.startswith(OURS):
        return {"color": ACCENT, "linewidth": 2.8, "zorder": 5, "ls": "-" if name == OURS else "--"}
    if name in (FLOOR, "one"):
        return {"color": INK, "linewidth": 2.0, "zorder": 4, "ls": "-" if name == FLOOR else "--"}
    if name == PING:
        return {"color": FAINT, "linewidth": 1.4, "zorder": 2, "ls": ":"}
    colour = colours.setdefault(name, PALETTE[len(colours) % len(PALETTE)])
    return {"color": colour, "linewidth": 1.3, "zorder": 3}


def _called(name: str, figures: Figures) -> str:
    """The contender in a legend: what the table calls it, and of ours what it is."""
    return f"{name}, {figures.label}" if name == OURS and len(figures.label) < 24 else name


def _enough(case: CaseResult, figures: Figures) -> int:
    """How much of a curve there were calls enough for."""
    most = 1 - 1 / (case.rounds * figures.calls)
    return sum(part <= most for part in CURVE)


def _nines(parts: Any) -> Any:
    """A scale that shows the bulk as it is, and above the median each further nine as large."""
    from numpy import clip, log10, where

    parts = clip(parts, 0.0, 0.99999)
    return where(parts < 0.5, parts, 0.5 - 0.5 * log10(2.0 * (1.0 - parts)))


def _from_nines(heights: Any) -> Any:
    from numpy import asarray, where

    heights = asarray(heights)
    return where(heights < 0.5, heights, 1.0 - 0.5 * 10.0 ** (1.0 - 2.0 * heights))


def _round_ticks(axes: Axes) -> None:
    """Ticks at 10, 20, 50, 100 where they have room, else at powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())


def _time(microseconds: float) -> str:
    """A time with the unit that suits it."""
    if microseconds < 1_000:
        return f"{microseconds:.3g} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def _page(svg: str) -> str:
    """An HTML page of one drawing, which needs nothing else."""
    drawing = svg[svg.index("<svg") :]
    return (
        textwrap.dedent(
            f"""\
        <!doctype html>
        <html lang="en">
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <title>{html.escape("fencer bench")}</title>
        <style>
        body {{ margin: 0; background: #fff; }}
        svg {{ display: block; width: 100%; max-width: 1400px; height: auto; margin: 0 auto; }}
        </style>
        <body>
        """
        )
        + f"{drawing}\n</body>\n</html>\n"
    )
