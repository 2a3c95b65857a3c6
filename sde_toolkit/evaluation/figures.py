"""The curves of a comparison: error and distances against network evaluations, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from sde_toolkit.data.pictures import FAINT, INK, new_figure, sample_rows
from sde_toolkit.evaluation.naming import file_names, literal
from sde_toolkit.evaluation.page import Figure
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.metrics.metric import Against, Axis, Estimate, Metric
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["COLOURS", "SHEET", "comparison_figures", "figure_names", "style_axes"]

SHEET = "samples_"  # begins the names of pictures of samples

# Okabe and Ito's palette, readable with any colour vision; blue for the first, and so on
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")


def comparison_figures(comparison: Comparison) -> list[Figure]:
    """The figures of a comparison: metrics against the flow, other metrics, wall times, and samples."""
    figures = []
    for name, caption, metrics in _groups(comparison.metrics):
        drawn = [m for m in metrics if any(m.name in row.measured for row in comparison.rows)]
        if drawn:
            figures.append(Figure(name, caption, _panels(comparison, drawn), narrow=len(drawn) == 1))
    figures.append(Figure("time", _TIME, _time(comparison), narrow=True))
    return figures + _sheets(comparison)


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
_TIME = "Wall time of each run, split into the network and everything else (noise, arithmetic, bookkeeping)."
_IN_A_ROW = 3


def _panels(comparison: Comparison, metrics: list[Metric]) -> Any:
    """A panel for each metric."""
    if len(metrics) == 1:
        figure = new_figure(6.2, 4.2)
        panels = [figure.subplots()]
    else:
        columns = min(_IN_A_ROW, len(metrics))
        rows = -(-len(metrics) // columns)
        figure = new_figure(4.2 * columns, 4.2 * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[len(metrics) :]:
        unused.set_axis_off()
    for panel, metric in zip(panels, metrics, strict=False):
        _curves(comparison, panel, metric)
        panel.set_xscale("log")
        if len(metrics) == 1:
            panel.set_ylabel(metric.label())
        else:
            panel.set_title(metric.label())
        _scale(panel, comparison, metric)
        _reference(panel, comparison, metric)
        _finish(comparison, panel, legend=len(metrics) == 1)
    if len(metrics) > 1:
        lines = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        figure.legend(
            lines.values(), lines.keys(), loc="outside lower center", ncols=min(6, len(lines)), frameon=False,
            fontsize=9,
        )  # fmt: skip
    return figure


def _scale(axes: Any, comparison: Comparison, metric: Metric) -> None:
    """The y-axis of a metric: logarithmic, of shares, or logarithmic away from zero."""
    floor = comparison.floor(metric)
    found = [row.measured[metric.name] for row in comparison.rows if metric.name in row.measured]
    if metric.axis is Axis.LOG and any(e.value > 0 for e in found):
        axes.set_yscale("log")
    elif metric.axis is Axis.SHARE:
        axes.set_ylim(None, 1.03)
    elif metric.axis is Axis.SIGNED and floor is not None:
        low = min([floor.value - 3 * floor.error, *(e.value - _bar(e) for e in found)])
        high = max([floor.value + 3 * floor.error, *(e.value + _bar(e) for e in found)])
        threshold = max(4 * floor.error, 1e-9)
        axes.set_yscale("symlog", linthresh=threshold)
        axes.set_ylim(low - 0.1 * abs(low), max(high * 1.3, 1.1 * threshold))


def _reference(axes: Any, comparison: Comparison, metric: Metric) -> None:
    """What the curves are read against: the band of real data, or the exact flow's own error."""
    floor = comparison.floor(metric)
    if floor is not None:
        if math.isfinite(floor.error):
            axes.axhspan(floor.value - 2 * floor.error, floor.value + 2 * floor.error, color="#e5e7eb", zorder=0)
        axes.axhline(floor.value, color=FAINT, linewidth=1, zorder=1, label="real data")
    if metric.against is not Against.FLOW or metric.axis is not Axis.LOG or comparison.endpoint is None:
        return
    error = comparison.endpoint.error.value
    values = [row.measured[metric.name].value for row in comparison.rows if metric.name in row.measured]
    if error > min((value for value in values if value > 0), default=math.inf) / 100:
        axes.axhline(error, color=FAINT, linestyle="--", linewidth=1, zorder=1)
        axes.text(
            0.99, error, "error of the reference", transform=axes.get_yaxis_transform(),
            ha="right", va="bottom", fontsize=8, color="#6b7280",
        )  # fmt: skip


def _time(comparison: Comparison) -> Any:
    rows = [row for row in comparison.rows if not row.failure]
    figure = new_figure(6.6, 0.6 + 0.24 * len(rows))
    axes = figure.subplots()
    names = [f"{literal(comparison.label(row))}, {row.nfe}" for row in rows]
    network = [row.network_seconds for row in rows]
    places = range(len(rows))
    axes.set_yticks(places, names)
    axes.barh(places, network, color="#93c5fd", height=0.72, label="network")
    rest = [row.seconds - row.network_seconds for row in rows]
    axes.barh(places, rest, left=network, color="#1d4ed8", height=0.72, label="everything else")
    for i, row in enumerate(rows):
        axes.text(
            row.seconds,
            i,
            f" {row.outside:.1%}" if row.outside < 0.1 else f" {row.outside:.0%}",
            va="center",
            fontsize=7.5,
            color="#1d4ed8",
        )
    axes.invert_yaxis()
    axes.set_xlabel("seconds (percentage: share outside the network)", fontsize=9, color=INK)
    axes.margins(x=0.08, y=0.01)
    axes.legend(fontsize=8, frameon=False, loc="lower right" if len(rows) < 3 else "best")
    style_axes(axes)
    axes.grid(axis="y", visible=False)
    return figure


def _sheets(comparison: Comparison) -> list[Figure]:
    """One picture of samples for each budget (and grid): the same initial noise in each column."""
    figures: list[Figure] = []
    real = None
    if comparison.judge is not None:
        order = generator_for(comparison.request.seed, Once.PICTURES)
        real = comparison.judge.real[torch.randperm(len(comparison.judge.real), generator=order)[: comparison.n]]
    safe = file_names(row.grid_set for row in comparison.rows)
    for grid in safe:
        for budget in dict.fromkeys(row.budget for row in comparison.rows if row.grid_set == grid):
            rows = [
                (f"{literal(row.solver)} ({row.nfe})", x)
                for row, x in zip(comparison.rows, comparison.samples, strict=True)
                if (row.grid_set, row.budget) == (grid, budget)
            ]
            if comparison.endpoint_data is not None:
                rows.append(("exact flow", comparison.endpoint_data))
            figure = sample_rows(rows, real)
            if figure is not None:
                of = "adaptive solvers" if budget is None else f"{budget} network evaluations"
                on = f", grid {grid}" if len(safe) > 1 and budget is not None else ""
                caption = f"Samples: {of}{on}. Evaluations used in brackets."
                figures.append(Figure(f"{SHEET}{_sheet_name(safe[grid], budget)}", caption, figure))
    return figures


def _sheet_name(grid: str, budget: int | None) -> str:
    """The name of a picture of samples; ``grid`` is its name for files, ``budget`` None for adaptive solvers."""
    return "adaptive" if budget is None else f"{grid}_{budget}"


def figure_names(grids: Iterable[str], budgets: Iterable[int | None]) -> list[str]:
    """The names of all figures that :func:`comparison_figures` may draw on these grids at these budgets."""
    safe, found = file_names(grids), list(budgets)
    sheets = (f"{SHEET}{_sheet_name(safe[grid], budget)}" for grid in safe for budget in found)
    return [*(name for name, _, _ in _groups(())), "time", *sheets]


def _curves(comparison: Comparison, axes: Any, metric: Metric) -> None:
    solvers = list(dict.fromkeys(row.solver for row in comparison.rows))
    grids = list(dict.fromkeys(row.grid for row in comparison.rows))
    for row_label in dict.fromkeys(comparison.label(row) for row in comparison.rows):
        rows = [row for row in comparison.rows if comparison.label(row) == row_label]
        points = [(row.nfe, row.measured[metric.name]) for row in rows if metric.name in row.measured]
        if not points:
            continue
        i, j = solvers.index(rows[0].solver), grids.index(rows[0].grid)
        axes.errorbar(
            [nfe for nfe, _ in points],
            [e.value for _, e in points],
            yerr=[_bar(e) for _, e in points],
            label=literal(row_label),
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle=DASHES[j % len(DASHES)],
            linewidth=1.6,
            markersize=5,
            capsize=2,
            elinewidth=1,
        )


def _bar(estimate: Estimate) -> float:
    """The length of an error bar; none where the error is unknown."""
    return estimate.error if math.isfinite(estimate.error) else 0.0


def _finish(comparison: Comparison, axes: Any, *, legend: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    nfes = sorted({row.nfe for row in comparison.rows})
    budgets = sorted({row.budget for row in comparison.rows if row.budget is not None}) or nfes
    axes.set_xticks(budgets, [str(b) for b in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(plain)
    axes.set_xlabel("network evaluations (NFE)", fontsize=9, color=INK)
    axes.title.set_size(10.5)
    axes.title.set_color(INK)
    axes.yaxis.label.set_size(9)
    axes.yaxis.label.set_color(INK)
    style_axes(axes)
    if legend:
        axes.legend(fontsize=8, frameon=False)


def style_axes(axes: Any) -> None:
    axes.tick_params(labelsize=8, colors="#4b5563", which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9ca3af")
    axes.grid(color="#eef0f3", linewidth=0.8, which="major")
    axes.set_axisbelow(True)
