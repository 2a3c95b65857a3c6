"""The tables of a comparison: its rows, and the parts of their errors."""

from __future__ import annotations

import math

from sde_toolkit.evaluation.report_table import Column, Line, Table, value_text
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.evaluation.standings import chief_metrics, standing
from sde_toolkit.metrics.metric import Against, Metric

__all__ = ["PART_MEANINGS", "comparison_table", "parts_tables", "time_meaning"]

PART_MEANINGS = {
    "network": "How far this network's exact flow, or its exact reverse SDE, is from the data. No solver mends it.",
    "discretisation": "How far the samples are from that exact flow or SDE. More evaluations mend it.",
    "truncation": "What the exact flow loses if it stops where the row stops. A grid that ends later mends it.",
    "rounding": "What computing with 32 instead of 64 bits changes.",
}
"""The parts of a row's error, with what is said of them."""


def comparison_table(comparison: Comparison) -> Table:
    """A line for each row, a column for each metric, and the real data below.

    ``≈`` marks what is at the floor. In bold: the best of a budget, and what cannot be told from it.
    """
    columns = [
        Column("solver", "equation and integrator", left=True),
        Column("grid", "spacing of the times", left=True),
        Column("NFE", "network evaluations that each sample went through"),
        *(Column(metric.heading, metric.meaning) for metric in comparison.shown),
        Column(_unit(comparison)[0], time_meaning(comparison)),
        Column("overhead", "share of the time spent outside the network"),
    ]
    bold = {
        metric.name: {
            row
            for budget in dict.fromkeys(row.budget for row in comparison.rows)
            for found in [standing(comparison, metric, budget)]
            for row in (found.near if found else ())
        }
        for metric in comparison.shown
    }
    lines: list[Line] = []
    before: Row | None = None
    for row in comparison.rows:
        begins = before is not None and (row.budget, row.grid_set) != (before.budget, before.grid_set)
        best = frozenset(3 + k for k, metric in enumerate(comparison.shown) if row in bold[metric.name])
        lines.append(Line(_cells(comparison, row), "group" if begins else "", best))
        before = row
    if comparison.judge is not None:
        lines.append(Line(_floor_cells(comparison), "floor"))
    return Table(tuple(columns), tuple(lines), sortable=True)


def time_meaning(comparison: Comparison) -> str:
    """What the seconds of a row are."""
    if not any(row.timing for row in comparison.rows):
        return "wall time of all samples"
    size = min(comparison.request.batch_size or comparison.n, comparison.n)
    return f"wall time of a batch of {size} samples: the median over the batches (quartiles)"


def _cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    out = [row.solver, row.grid, str(row.nfe)]
    for metric in comparison.shown:
        mark = "≈ " if comparison.at_floor(metric, row) else ""
        out.append(mark + value_text(metric, row.measured.get(metric.name)))
    if row.failure:
        return (*out, "diverged" if row.diverged else "failed", "–")
    return (*out, _time(row, _unit(comparison)[1]), f"{row.outside:.1%}")


def _unit(comparison: Comparison) -> tuple[str, float]:
    """The heading of the times, and how many of its unit a second has."""
    longest = max((row.timing.median_seconds if row.timing else row.seconds for row in comparison.rows), default=0.0)
    return ("seconds", 1.0) if longest >= 1 else ("time, ms", 1000.0)


def _time(row: Row, unit: float) -> str:
    """The median with its quartiles, to three digits of the median."""
    timing = row.timing
    several = (row.seconds,) if timing is None else (timing.median_seconds, timing.low, timing.high)
    several = several if timing is not None and timing.batches > 1 else several[:1]
    decimals = min(3, max(0, 2 - math.floor(math.log10(max(unit * several[0], 1e-3)))))
    shown = [f"{unit * seconds:.{decimals}f}" for seconds in several]
    return shown[0] if len(shown) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def _floor_cells(comparison: Comparison) -> tuple[str, ...]:
    """The line of real data, in the same columns."""
    out = ["real data (floor)", "", ""]
    for metric in comparison.shown:
        floor = comparison.floor(metric)
        if metric.against is Against.FLOW and comparison.endpoint is not None:
            out.append(f"reference ± {comparison.endpoint.error.value:.2g}")
        else:
            out.append("" if floor is None else value_text(metric, floor))
    return (*out, "", "")


def parts_tables(comparison: Comparison) -> list[tuple[Metric, Table]]:
    """For the chief metrics the parts of every row's error, where they were measured."""
    found = list[tuple[Metric, Table]]()
    for metric in chief_metrics(comparison):
        parts = {k: of[metric.name] for k, of in (comparison.error_parts or {}).items() if metric.name in of}
        measured = {name for name in PART_MEANINGS if any(getattr(part, name) is not None for part in parts.values())}
        if not measured:
            continue
        shown = [name for name in PART_MEANINGS if name in measured]
        columns = [
            Column("solver", left=True),
            Column("grid", left=True),
            Column("NFE"),
            Column(metric.heading),
            *(Column(name) for name in shown),
        ]
        lines = list[Line]()
        for k, part in parts.items():
            row = comparison.rows[k]
            begins = bool(lines) and row.budget != comparison.rows[k - 1].budget
            values = [row.measured.get(metric.name), *(getattr(part, name) for name in shown)]
            cells = (row.solver, row.grid, str(row.nfe), *(value_text(metric, value) for value in values))
            lines.append(Line(cells, "group" if begins else ""))
        found.append((metric, Table(tuple(columns), tuple(lines), sortable=True)))
    return found
