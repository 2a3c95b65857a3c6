"""The look of a comparison's rows, and the axis of a metric, the same in all figures."""

from __future__ import annotations

import math
from typing import Any

from sde_toolkit.evaluation.figure_style import COLOURS, DASHES, MARKERS
from sde_toolkit.evaluation.naming import literal
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.metrics.metric import Axis, Estimate, Metric

__all__ = ["bar_length", "metric_axis", "row_styles"]


def row_styles(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each row by its label: a colour for each solver, dashes for its further grids."""
    solvers = list(dict.fromkeys(row.solver for row in comparison.rows))
    grids = {solver: list(dict.fromkeys(r.grid for r in comparison.rows if r.solver == solver)) for solver in solvers}
    styles = {}
    for row in comparison.rows:
        i, j = solvers.index(row.solver), grids[row.solver].index(row.grid)
        marker = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]  # colours begin again: with other markers
        styles[comparison.label(row)] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": marker,
            "linestyle": DASHES[j % len(DASHES)],
            "label": literal(comparison.label(row)),
        }
    return styles


def metric_axis(axes: Any, comparison: Comparison, metric: Metric) -> None:
    """The y-axis of a metric: logarithmic, of shares, or logarithmic away from zero."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    floor = comparison.floor(metric)
    found = [row.measured[metric.name] for row in comparison.rows if metric.name in row.measured]
    if metric.axis is Axis.LOG and any(e.value > 0 for e in found):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif metric.axis is Axis.SHARE:
        axes.set_ylim(None, 1.03)
    elif metric.axis is Axis.SIGNED and floor is not None:
        low = min([floor.value - 3 * floor.error, *(e.value - bar_length(e) for e in found)])
        high = max([floor.value + 3 * floor.error, *(e.value + bar_length(e) for e in found)])
        threshold = max(4 * floor.error, 1e-9)
        axes.set_yscale("symlog", linthresh=threshold)
        axes.set_ylim(low - 0.1 * abs(low), max(high * 1.3, 1.1 * threshold))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def bar_length(estimate: Estimate) -> float:
    """The length of an error bar; none where the error is unknown."""
    return estimate.error if math.isfinite(estimate.error) else 0.0
