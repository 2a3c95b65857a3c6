"""Who beats whom: the paired differences of all rows of a budget as a matrix."""

from __future__ import annotations

from typing import Any

from sde_toolkit.data.blank_figures import INK, new_figure, text_width
from sde_toolkit.evaluation.naming import literal
from sde_toolkit.evaluation.page import Figure
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.evaluation.standings import budgets_of, chief_metrics

__all__ = ["draw_paired"]

_CELL = 0.46  # inches
_MANY = 8  # rows; with more of them only the largest budget is drawn
_SURE, _LIKELY, _NONE = {"better": "#2f7fb5", "worse": "#d9803f"}, {"better": "#cfe3f1", "worse": "#f8dfcb"}, "#f6f7f9"
_CAPTION = (
    "Does the row beat the column? Each cell is the value of the row minus that of the column, from the same noise and "
    "the same real samples, with one standard error below it. Blue: the row is better, orange: it is worse. Strong "
    "colours hold at 95 % for all cells of a matrix together (Holm 1979), pale ones for that cell alone. In grey cells "
    "the two are not told apart."
)


def draw_paired(comparison: Comparison) -> list[Figure]:
    """A matrix for each chief metric at the smallest, a middle and the largest budget; no figure without any.

    With many rows only that at the largest budget.
    """
    paired, budgets = comparison.paired, budgets_of(comparison)
    if paired is None or not budgets:
        return []
    shown = list(dict.fromkeys((budgets[0], budgets[len(budgets) // 2], budgets[-1])))
    if max((len(matrix.rows) for matrix in paired), default=0) > _MANY:
        shown = shown[-1:]
    metrics = [m for m in chief_metrics(comparison) if any((m.name, budget) in paired for budget in shown)]
    if not metrics:
        return []
    matrices = [{b: paired[m.name, b] for b in shown if (m.name, b) in paired} for m in metrics]
    most = [max(len(matrix.rows) for matrix in line.values()) for line in matrices]
    labels = [literal(comparison.label(row)) for row in comparison.rows]
    name = 0.25 + max(text_width(label, 8) for label in labels)
    titles = [f"{m.heading}, {budget} evaluations" for m in metrics for budget in shown]
    side = max(max(most) * _CELL, *(text_width(title, 9) + 0.1 for title in titles))
    w = name + len(shown) * (side + 0.25)
    h = sum(count * _CELL + 0.4 + name for count in most)
    figure = new_figure(w, h)
    figure.set_layout_engine(None)
    top = h
    for i, (metric, line) in enumerate(zip(metrics, matrices, strict=True)):
        top -= most[i] * _CELL + 0.4 + (name if i else 0.0)
        for budget, matrix in line.items():
            j, tall = shown.index(budget), len(matrix.rows) * _CELL
            left = name + j * (side + 0.25)
            panel = figure.add_axes((left / w, (top + (most[i] * _CELL - tall)) / h, tall / w, tall / h))
            panel.set_title(f"{metric.heading}, {budget} evaluations", fontsize=9, color=INK, pad=5)
            _draw(comparison, panel, matrix, names=j == 0)
    return [Figure("paired", _CAPTION, figure)]


def _draw(comparison: Comparison, panel: Any, matrix: Any, *, names: bool) -> None:
    """One matrix; ``names``: write those of the rows."""
    from matplotlib.patches import Rectangle

    rows = matrix.rows
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if one == other:
                continue
            cell = matrix.difference(one, other)
            colour = _SURE[cell.sure] if cell.sure else _LIKELY[cell.verdict] if cell.verdict else _NONE
            panel.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
            ink = "white" if cell.sure else INK
            panel.text(j + 0.5, i + 0.42, _signed(cell.value), ha="center", va="center", fontsize=6.5, color=ink)
            error = f"±{cell.error:.1g}" if cell.error > 0 else ""
            panel.text(j + 0.5, i + 0.74, error, ha="center", va="center", fontsize=5, color=ink)
    panel.set(xlim=(0, len(rows)), ylim=(len(rows), 0))
    places = [k + 0.5 for k in range(len(rows))]
    labels = [literal(comparison.label(comparison.rows[k])) for k in rows]
    panel.set_yticks(places, labels if names else [])
    panel.set_xticks(places, labels, rotation=90)
    panel.tick_params(length=0, labelsize=8, colors="#374151")
    for side in panel.spines.values():
        side.set_visible(False)


def _signed(value: float) -> str:
    """Two digits with a sign, without a leading zero: ``−.012``."""
    if value == 0:
        return "0"
    size = f"{abs(value):.2g}"
    size = f"{abs(value):.0e}" if "e" in size else size.removeprefix("0") or "0"
    return f"{'−' if value < 0 else '+'}{size}"
