"""How the figures of all reports look: colours, axes, and a legend that is never cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_toolkit.data.blank_figures import text_width

__all__ = ["COLOURS", "DASHES", "MARKERS", "legend_below", "style_axes"]

# Okabe and Ito's palette, readable with any colour vision; blue for the first, and so on
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
_SIZE = 8.5  # of the legend's letters, in points


def legend_below(figure: Any, entries: Mapping[str, Any]) -> None:
    """A legend below all panels, in as many columns as fit. The figure grows by its height, the panels keep theirs.

    Args:
        entries: matplotlib's handles by their labels.
    """
    if not entries:
        return
    width, height = figure.get_size_inches()
    widest = max(text_width(label, _SIZE) for label in entries) + 0.55
    columns = max(1, min(6, len(entries), int((width - 0.1) / widest)))
    lines = -(-len(entries) // columns)
    figure.set_size_inches(width, height + 0.12 + lines * _SIZE * 1.75 / 72)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=_SIZE,
        columnspacing=1.4, labelspacing=0.45, handlelength=2.2,
    )  # fmt: skip


def style_axes(axes: Any) -> None:
    """Light axes: two sides, grey ticks, a faint grid behind what is drawn."""
    axes.tick_params(labelsize=8, colors="#4b5563", which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9ca3af")
    axes.grid(color="#eef0f3", linewidth=0.8, which="major")
    axes.set_axisbelow(True)
