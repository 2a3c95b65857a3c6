"""The figures of a comparison: curves against network evaluations, what an error costs, who beats whom, and samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from sde_toolkit.data.blank_figures import FAINT, INK, new_figure
from sde_toolkit.evaluation.comparison_axes import bar_length, metric_axis, row_styles
from sde_toolkit.evaluation.figure_style import legend_below, style_axes
from sde_toolkit.evaluation.page import Figure
from sde_toolkit.evaluation.paired_figure import draw_paired
from sde_toolkit.evaluation.pareto_figure import draw_pareto
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.metrics.metric import Against, Axis, Metric

__all__ = ["CURVES", "comparison_figures"]

CURVES = ("error", "distances", "pareto", "paired")  # the names of all figures that may be drawn here


def comparison_figures(comparison: Comparison) -> list[Figure]:
    """The figures of a comparison but its samples: metrics against the flow, others, costs, and paired differences."""
    figures = []
    for name, caption, metrics in _groups(comparison.metrics):
        drawn = [m for m in metrics if any(m.name in row.measured for row in comparison.rows)]
        if drawn:
            figures.append(Figure(name, caption, _panels(comparison, drawn), narrow=len(drawn) == 1))
    return [*figures, *draw_pareto(comparison), *draw_paired(comparison)]


def _groups(metrics: Iterable[Metric]) -> list[tuple[str, str, list[Metric]]]:
    """Name, caption and metrics of each figure of curves."""
    several = list(metrics)
    of_flow = [metric for metric in several if metric.against is Against.FLOW]
    others = [metric for metric in several if metric.against is not Against.FLOW]
    return [("error", _ERROR, of_flow), ("distances", _DISTANCES, others)]


_ERROR = (
    "Root mean square difference to the exact endpoint of the probability flow, from the same initial noise "
    "(deterministic solvers; model space, per element). Below the dashed line the reference itself is uncertain."
)
_DISTANCES = (
    "Distance between generated and real samples; bars are one standard error. The grey band is what equally many "
    "real samples score, ± 2 standard errors."
)
_IN_A_ROW = 3


def _panels(comparison: Comparison, metrics: list[Metric]) -> Any:
    """A panel for each metric, and one legend below them."""
    if len(metrics) == 1:
        figure = new_figure(6.2, 4.2)
        panels = [figure.subplots()]
    else:
        columns = min(_IN_A_ROW, len(metrics))
        rows = -(-len(metrics) // columns)
        figure = new_figure(4.2 * columns, 3.9 * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[len(metrics) :]:
        unused.set_axis_off()
    entries: dict[str, Any] = {}
    for panel, metric in zip(panels, metrics, strict=False):
        entries |= _curves(comparison, panel, metric)
        panel.set_xscale("log")
        if len(metrics) == 1:
            panel.set_ylabel(metric.label())
        else:
            panel.set_title(metric.label())
        metric_axis(panel, comparison, metric)
        entries |= _reference(panel, comparison, metric)
        _finish(comparison, panel)
    legend_below(figure, entries)
    return figure


def _reference(axes: Any, comparison: Comparison, metric: Metric) -> dict[str, Any]:
    """What curves are read against: the band of real data, or the exact flow's own error. Returns legend entries."""
    floor, entries = comparison.floor(metric), dict[str, Any]()
    if floor is not None:
        if math.isfinite(floor.error):
            axes.axhspan(floor.value - 2 * floor.error, floor.value + 2 * floor.error, color="#e5e7eb", zorder=0)
        entries["real data"] = axes.axhline(floor.value, color=FAINT, linewidth=1, zorder=1)
    if metric.against is not Against.FLOW or metric.axis is not Axis.LOG or comparison.endpoint is None:
        return entries
    error = comparison.endpoint.error.value
    values = [row.measured[metric.name].value for row in comparison.rows if metric.name in row.measured]
    if error > min((value for value in values if value > 0), default=math.inf) / 100:
        axes.axhline(error, color=FAINT, linestyle="--", linewidth=1, zorder=1)
        axes.text(
            0.99, error, "error of the reference", transform=axes.get_yaxis_transform(),
            ha="right", va="bottom", fontsize=8, color="#6b7280",
        )  # fmt: skip
    return entries


def _curves(comparison: Comparison, axes: Any, metric: Metric) -> dict[str, Any]:
    """A curve for each label; returns the legend's entries."""
    entries = {}
    for label, style in row_styles(comparison).items():
        rows = [row for row in comparison.rows if comparison.label(row) == label]
        points = [(row.nfe, row.measured[metric.name]) for row in rows if metric.name in row.measured]
        if points:
            entries[style["label"]] = axes.errorbar(
                [nfe for nfe, _ in points],
                [e.value for _, e in points],
                yerr=[bar_length(e) for _, e in points],
                linewidth=1.6,
                markersize=5,
                capsize=2,
                elinewidth=1,
                **style,
            )
    return entries


def _finish(comparison: Comparison, axes: Any) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    nfes = sorted({row.nfe for row in comparison.rows})
    budgets = sorted({row.budget for row in comparison.rows if row.budget is not None}) or nfes
    axes.set_xticks(budgets, [str(b) for b in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("network evaluations (NFE)", fontsize=9, color=INK)
    axes.title.set_size(10.5)
    axes.title.set_color(INK)
    axes.yaxis.label.set_size(9)
    axes.yaxis.label.set_color(INK)
    style_axes(axes)
