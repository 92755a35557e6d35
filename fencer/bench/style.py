"""Colours and type of the plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1f2933"
FAINT = "#7b8794"
GRID = "#e4e7eb"
ACCENT = "#d64545"
"""For ours."""

SECOND = "#2b6cb0"
PALETTE = (
    "#2b6cb0",
    "#dd8a1d",
    "#2f9e7e",
    "#8b5fbf",
    "#5aa9e6",
    "#a0673c",
    "#c26fa8",
    "#7a8b2e",
    "#3b8ea5",
    "#9aa5b1",
    "#b38f00",
    "#5f6caf",
)
"""For the peers, distinct also for most people who see fewer colours."""

RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "legend.borderaxespad": 0.0,
    "legend.fontsize": 7.8,
    "legend.title_fontsize": 7.8,
    "legend.labelspacing": 0.35,
    "svg.fonttype": "none",
    "svg.hashsalt": "fencer",
}


def beside(axes: Axes, title: str | None = None) -> None:
    """A legend to the right of a panel, where it hides nothing."""
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.02, 1.0), alignment="left")
