"""What an error costs: rows by error and network evaluations, and by error and seconds, with the front of the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sde_toolkit.data.blank_figures import INK, new_figure
from sde_toolkit.evaluation.comparison_axes import bar_length, metric_axis, row_styles
from sde_toolkit.evaluation.comparison_tables import time_meaning
from sde_toolkit.evaluation.figure_style import legend_below, style_axes
from sde_toolkit.evaluation.page import Figure
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.evaluation.standings import budgets_of, chief_metrics
from sde_toolkit.metrics.metric import Metric

__all__ = ["draw_pareto", "pareto_front"]

Cost = tuple[float, float, float]
"""A cost with the ends of its spread."""


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points (cost, loss) than which no other point is cheaper and better, the cheapest first.

    A point is left out if another one costs no more and has no larger loss; of equal points the first one stays.
    """
    front, least = list[int](), math.inf
    for k in sorted(range(len(points)), key=lambda k: (*points[k], k)):
        if points[k][1] < least:
            front.append(k)
            least = points[k][1]
    return front


def draw_pareto(comparison: Comparison) -> list[Figure]:
    """Two panels for each chief metric; no figure without any."""
    metrics = [m for m in chief_metrics(comparison) if any(m.name in row.measured for row in comparison.rows)]
    if not metrics:
        return []
    timed = "seconds for one batch" if any(row.timing for row in comparison.rows) else "seconds for all samples"
    costs = (("network evaluations (NFE)", _evaluations), (timed, _seconds))
    figure = new_figure(8.4, 3.7 * len(metrics))
    panels = figure.subplots(len(metrics), len(costs), squeeze=False, sharey="row", sharex="col")
    entries: dict[str, Any] = {}
    for metric, line in zip(metrics, panels, strict=True):
        for (name, cost), panel in zip(costs, line, strict=True):
            entries |= _points(comparison, panel, metric, cost)
            panel.set_xscale("log")
            panel.set_xlabel(name, fontsize=9, color=INK)
            style_axes(panel)
        _ticks_at_budgets(line[0], comparison)
        _plain_ticks(line[1])
        metric_axis(line[0], comparison, metric)
        line[0].set_ylabel(metric.label(), fontsize=9, color=INK)
    legend_below(figure, entries)
    return [Figure("pareto", _CAPTION.format(time=time_meaning(comparison)), figure)]


_CAPTION = (
    "What an error costs, in evaluations and in seconds: {time}. Bars: one standard error, and the quartiles of the "
    "time. The line is the front: no row is both cheaper and better. Neighbours whose bars overlap may change places."
)


def _evaluations(row: Row) -> Cost:
    return (row.nfe, row.nfe, row.nfe)


def _seconds(row: Row) -> Cost:
    timing = row.timing
    return (row.seconds,) * 3 if timing is None else (timing.median_seconds, timing.low, timing.high)


def _points(comparison: Comparison, panel: Any, metric: Metric, cost: Callable[[Row], Cost]) -> dict[str, Any]:
    """All rows as points, and the front; returns the legend's entries."""
    rows = [row for row in comparison.rows if metric.name in row.measured and cost(row)[0] > 0]
    entries, styles = dict[str, Any](), row_styles(comparison)
    for row in rows:
        style, found = styles[comparison.label(row)], row.measured[metric.name]
        middle, low, high = cost(row)
        entries[style["label"]] = panel.errorbar(
            [middle],
            [found.value],
            xerr=[[middle - low], [high - middle]],
            yerr=[bar_length(found)],
            color=style["color"],
            marker=style["marker"],
            linestyle="none",
            markersize=5.5,
            elinewidth=1,
            capsize=0,
        )
    front = pareto_front([(cost(row)[0], metric.loss(row.measured[metric.name].value)) for row in rows])
    x, y = [cost(rows[k])[0] for k in front], [rows[k].measured[metric.name].value for k in front]
    panel.step(x, y, where="post", color="#9ca3af", linewidth=1.2, zorder=1)
    return entries


def _ticks_at_budgets(panel: Any, comparison: Comparison) -> None:
    from matplotlib.ticker import NullLocator

    budgets = budgets_of(comparison) or sorted({row.nfe for row in comparison.rows})
    panel.set_xticks(budgets, [str(budget) for budget in budgets])
    panel.xaxis.set_minor_locator(NullLocator())


def _plain_ticks(panel: Any) -> None:
    """Numbers without powers of ten, few enough not to touch."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
