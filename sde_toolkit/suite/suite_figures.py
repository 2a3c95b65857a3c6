"""Curves of the suite: a panel for each truth."""

from __future__ import annotations

from typing import Any

from sde_toolkit.data.blank_figures import FAINT, new_figure
from sde_toolkit.evaluation.figure_style import COLOURS
from sde_toolkit.evaluation.naming import literal
from sde_toolkit.evaluation.page import Figure
from sde_toolkit.suite.rankings import Measure
from sde_toolkit.suite.suite_results import Joined, TruthFacts

__all__ = ["curves"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_COLUMNS = 4
_CAPTIONS = {
    "error": "Error against the exact flow by evaluations. Dashed: the reference's own error, where it is in sight.",
    "distance": "Distance to real samples by evaluations. Dashed: the floor, the distance of as many real samples.",
}


def curves(joined: Joined, measure: Measure) -> Figure:
    """The values of all solvers at all budgets, truth by truth."""
    rows = -(-len(joined.truths) // _COLUMNS)
    columns = min(_COLUMNS, len(joined.truths))
    figure = new_figure(max(3.1 * columns, 5.0), 2.5 * rows + 0.7)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[len(joined.truths) :]:
        unused.set_axis_off()
    lines: dict[str, Any] = {}
    for panel, (truth, facts) in zip(panels, joined.truths.items(), strict=False):
        lines |= _panel(joined, measure, panel, truth)
        _reference(panel, measure, facts)
        panel.set_title(literal(truth), fontsize=10)
    figure.legend(
        lines.values(), map(literal, lines), loc="outside lower center", ncols=min(8, max(1, len(lines))), frameon=False
    )
    return Figure(f"suite_{measure.value}", _CAPTIONS[measure.value], figure)


def _panel(joined: Joined, measure: Measure, panel: Any, truth: str) -> dict[str, Any]:
    lines = {}
    for k, results in enumerate(joined.solvers):
        cells = [joined.cell(results.solver, truth, budget) for budget in joined.budgets]
        points = [(c.budget, measure.of(c)) for c in cells if c is not None and not c.failure and measure.takes(c)]
        if points:
            style = {"color": COLOURS[k % len(COLOURS)], "marker": _MARKERS[k // len(COLOURS) % len(_MARKERS)]}
            (lines[results.solver],) = panel.plot(*zip(*points, strict=True), markersize=4, linewidth=1.2, **style)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(joined.budgets, list(map(str, joined.budgets)), fontsize=8)
    panel.minorticks_off()
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    return lines


def _reference(panel: Any, measure: Measure, facts: TruthFacts) -> None:
    value = facts.floor if measure is Measure.DISTANCE else facts.own_error
    low, _ = panel.get_ylim()
    if value > low / 2:
        panel.axhline(value, color=FAINT, linestyle="--", linewidth=1, zorder=1)
