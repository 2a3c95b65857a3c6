"""The curves of a comparison: error and distances against network evaluations, and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from sde_toolkit.data.pictures import FAINT, INK, new_figure, sample_rows
from sde_toolkit.evaluation.comparison import Comparison, Row
from sde_toolkit.evaluation.naming import file_names, literal
from sde_toolkit.metrics.distances import Estimate
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["draw_all", "figure_names"]

# Okabe and Ito's palette, readable with any colour vision; blue for the first, and so on
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")


def draw_all(comparison: Comparison) -> dict[str, tuple[str, Any]]:
    """Every figure that the comparison allows: file name without suffix → (caption, matplotlib figure)."""
    figures: dict[str, tuple[str, Any]] = {}
    if any(row.rmse for row in comparison.rows):
        figures["error"] = (_ERROR, _error(comparison))
    if comparison.judge is not None:
        figures["distances"] = (_DISTANCES, _distances(comparison))
    figures["time"] = (_TIME, _time(comparison))
    return figures | _sheets(comparison)


_ERROR = (
    "Root mean square difference to the exact endpoint of the probability flow, from the same initial noise "
    "(deterministic solvers; model space, per element). Below the dashed line the reference itself is uncertain."
)
_DISTANCES = (
    "Distance between generated and real samples; bars are one standard error. The grey band is what equally many "
    "real samples score, ± 2 standard errors."
)
_TIME = "Wall time of each run, split into the network and everything else (noise, arithmetic, bookkeeping)."


def _error(comparison: Comparison) -> Any:
    figure = new_figure(6.2, 4.2)
    axes = figure.subplots()
    _curves(comparison, axes, lambda row: row.rmse)
    axes.set(xscale="log", yscale="log", ylabel="RMSE to the exact flow")
    if comparison.endpoint is not None and comparison.endpoint.error.value > 0:
        error = comparison.endpoint.error.value
        low = min(row.rmse.value for row in comparison.rows if row.rmse and row.rmse.value > 0)
        if error > low / 100:
            axes.axhline(error, color=FAINT, linestyle="--", linewidth=1, zorder=1)
            axes.text(
                0.99, error, "error of the reference", transform=axes.get_yaxis_transform(),
                ha="right", va="bottom", fontsize=8, color="#6b7280",
            )  # fmt: skip
    _finish(comparison, axes)
    return figure


def _distances(comparison: Comparison) -> Any:
    judge = comparison.judge
    floor = judge.floor if judge else None
    asked = judge.features.plausible if judge else None
    figure = new_figure(4.2 * (3 if asked else 2), 4.2)
    panels = figure.subplots(1, 3 if asked else 2)
    _curves(comparison, panels[0], lambda row: row.scores.sliced_wasserstein if row.scores else None)
    panels[0].set(yscale="log", title="sliced Wasserstein distance")
    _curves(comparison, panels[1], lambda row: row.scores.kernel_distance if row.scores else None)
    panels[1].set(title="kernel distance (unbiased MMD²)")
    if floor is not None:
        _band(panels[0], floor.sliced_wasserstein)
        _band(panels[1], floor.kernel_distance)
        _kernel_axis(panels[1], comparison, floor.kernel_distance)
        if asked:
            _curves(comparison, panels[2], lambda row: row.scores.plausible if row.scores else None)
            _band(panels[2], floor.plausible)
            panels[2].set(title=f"plausible samples ({asked.heading})", ylim=(None, 1.03))
    for panel in panels:
        panel.set_xscale("log")
        _finish(comparison, panel, legend=False)
    lines = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=min(6, len(lines)), frameon=False, fontsize=9
    )
    return figure


def _kernel_axis(axes: Any, comparison: Comparison, floor: Estimate) -> None:
    """Logarithmic above the floor's error, linear where estimates of zero fall on either side of it."""
    found = [row.scores.kernel_distance for row in comparison.rows if row.scores]
    low = min([floor.value - 3 * floor.error, *(e.value - e.error for e in found)])
    high = max([floor.value + 3 * floor.error, *(e.value + e.error for e in found)])
    threshold = max(4 * floor.error, 1e-9)
    axes.set_yscale("symlog", linthresh=threshold)
    axes.set_ylim(low - 0.1 * abs(low), max(high * 1.3, 1.1 * threshold))


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
    _tidy(axes)
    axes.grid(axis="y", visible=False)
    return figure


def _sheets(comparison: Comparison) -> dict[str, tuple[str, Any]]:
    """One picture of samples for each budget (and grid): the same initial noise in each column."""
    figures: dict[str, tuple[str, Any]] = {}
    real = None
    if comparison.judge is not None:
        order = generator_for(comparison.seed, Once.PICTURES)
        real = comparison.judge.real[torch.randperm(len(comparison.judge.real), generator=order)[: comparison.n]]
    safe = file_names(row.grid for row in comparison.rows)
    for grid in safe:
        for budget in dict.fromkeys(row.budget for row in comparison.rows if row.grid == grid):
            rows = [
                (f"{literal(row.solver)} ({row.nfe})", x)
                for row, x in zip(comparison.rows, comparison.samples, strict=True)
                if (row.grid, row.budget) == (grid, budget)
            ]
            if comparison.endpoint_data is not None:
                rows.append(("exact flow", comparison.endpoint_data))
            figure = sample_rows(rows, real)
            if figure is not None:
                of = "adaptive solvers" if budget is None else f"{budget} network evaluations"
                on = f", grid {grid}" if comparison.several_grids and budget is not None else ""
                figures[_sheet_name(safe[grid], budget)] = (f"Samples: {of}{on}. Evaluations used in brackets.", figure)
    return figures


def _sheet_name(grid: str, budget: int | None) -> str:
    """The name of the picture of samples for a grid, by its name for files, and a budget (None: adaptive solvers)."""
    return "samples_adaptive" if budget is None else f"samples_{grid}_{budget}"


def figure_names(grids: Iterable[str], budgets: Iterable[int | None]) -> list[str]:
    """All that :func:`draw_all` may draw of a comparison on these grids at these budgets."""
    safe, found = file_names(grids), list(budgets)
    return ["error", "distances", "time", *(_sheet_name(safe[grid], budget) for grid in safe for budget in found)]


def _curves(comparison: Comparison, axes: Any, measure: Callable[[Row], Estimate | None]) -> None:
    solvers = list(dict.fromkeys(row.solver for row in comparison.rows))
    grids = list(dict.fromkeys(row.grid for row in comparison.rows))
    for row_label in dict.fromkeys(comparison.label(row) for row in comparison.rows):
        rows = [row for row in comparison.rows if comparison.label(row) == row_label]
        points = [(row.nfe, estimate) for row in rows if (estimate := measure(row)) is not None]
        if not points:
            continue
        i, j = solvers.index(rows[0].solver), grids.index(rows[0].grid)
        axes.errorbar(
            [nfe for nfe, _ in points],
            [e.value for _, e in points],
            yerr=[e.error for _, e in points],
            label=literal(row_label),
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle=DASHES[j % len(DASHES)],
            linewidth=1.6,
            markersize=5,
            capsize=2,
            elinewidth=1,
        )


def _band(axes: Any, floor: Estimate | None) -> None:
    if floor is not None:
        axes.axhspan(floor.value - 2 * floor.error, floor.value + 2 * floor.error, color="#e5e7eb", zorder=0)
        axes.axhline(floor.value, color=FAINT, linewidth=1, zorder=1, label="real data")


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
    _tidy(axes)
    if legend:
        axes.legend(fontsize=8, frameon=False)


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8, colors="#4b5563", which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9ca3af")
    axes.grid(color="#eef0f3", linewidth=0.8, which="major")
    axes.set_axisbelow(True)
