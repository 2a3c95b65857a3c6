"""What a comparison says: in sentences computed from its numbers, and as a table."""

from __future__ import annotations

import math

from sde_toolkit.evaluation.report_table import Column, Line, Table, plus_minus, value_text
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.metrics.metric import Against, Axis, Estimate, Metric

__all__ = ["comparison_findings", "comparison_table"]


def comparison_findings(comparison: Comparison) -> list[str]:
    """One sentence for each thing that the numbers say; the first is the headline."""
    sentences = [_closest(comparison), _first_at_floor(comparison), _spread(comparison), _most_exact(comparison)]
    sentences.append(_failures(comparison))
    return [s for s in sentences if s] or ["No row could be measured against anything; wall times are below."]


def _distances(comparison: Comparison) -> list[Metric]:
    """The metrics that compare samples with parts of the real data, and have a better direction."""
    found = [m for m in comparison.shown if m.against is Against.PARTS and m.lower_is_better is not None]
    return found if comparison.judge is not None else []


def _closest(comparison: Comparison) -> str:
    """Which solver is closest to the data at the smallest and at the largest budget, and which ones tie with it.

    The distance is the first unbiased one, or else the first.
    """
    distances = sorted(_distances(comparison), key=lambda metric: not metric.unbiased)
    budgets = _budgets(comparison)
    if not distances:
        return ""
    metric, parts = distances[0], []
    for budget in dict.fromkeys((budgets[0], budgets[-1])) if budgets else ():
        found = _measured(comparison, metric, budget)
        if len(found) < 2:  # with one row there is nothing to compare
            continue
        best = min(found, key=lambda row: metric.loss(found[row].value))
        tied = [row for row, estimate in found.items() if not _worse(metric, estimate, found[best])]
        names = _listed([comparison.label(row) for row in [best, *[r for r in tied if r is not best]]], most=3)
        if len(tied) == len(found) > 1:
            parts.append(f"at {budget} network evaluations no solver is measurably closer to the data than another")
            continue
        verb = "are" if len(tied) > 1 else "is"
        tie = " (not told apart)" if len(tied) > 1 else ""
        parts.append(f"at {budget} network evaluations {names} {verb} closest to the data{tie}")
    return _sentence("; ".join(parts) + f", by {metric.heading}" * bool(parts))


def _first_at_floor(comparison: Comparison) -> str:
    """The smallest budget at which some solver is within error of real data, and by which measures."""
    judge, distances = comparison.judge, _distances(comparison)
    if judge is None or not distances:
        return ""
    alone = [m for m in comparison.shown if m.against is Against.NOTHING and m.lower_is_better is not None]
    for budget in _budgets(comparison):
        rows = [row for row in comparison.rows if row.budget == budget]
        at = [row for row in rows if all(comparison.at_floor(m, row) for m in distances)]
        whole = [row for row in at if all(comparison.at_floor(m, row) for m in alone)]
        if whole:
            names = _listed([comparison.label(row) for row in whole], most=3)
            return f"At {budget} evaluations no measure here tells {judge.n} samples of {names} from as many real ones."
        if at:
            short = next(m for m in alone if not all(comparison.at_floor(m, row) for row in at))
            return _partly(comparison, budget, at, short, len(distances))
    first = sorted(distances, key=lambda metric: not metric.unbiased)[0]
    found = [row.measured[first.name] for row in comparison.rows if first.name in row.measured]
    floor = comparison.floor(first)
    if not found or floor is None:
        return ""
    best = min(found, key=lambda estimate: first.loss(estimate.value))
    least = "least" if first.lower_is_better else "largest"
    return (
        f"No solver reaches the floor of real data in {_all_of(len(distances))}: the {least} {first.heading} is "
        f"{plus_minus(best)}, and {judge.n} real samples score {plus_minus(floor)}."
    )


def _partly(comparison: Comparison, budget: int, rows: list[Row], short: Metric, distances: int) -> str:
    """Rows that reach the floor in every distance, but not in a metric of the samples alone."""
    estimates, floor = [row.measured[short.name] for row in rows], comparison.floor(short)
    best = min(estimates, key=lambda estimate: short.loss(estimate.value))
    verb, most = ("reach", "at most ") if len(rows) > 1 else ("reaches", "")
    names = _listed([comparison.label(row) for row in rows], most=3)
    shown = [value_text(short, None if e is None else Estimate(e.value, math.nan)) for e in (best, floor)]
    if short.axis is Axis.SHARE:
        shown = [f"{e.value:.0%}" for e in (best, floor) if e is not None]
    return (
        f"At {budget} evaluations {names} {verb} the floor of real data in {_all_of(distances)}, but with "
        f"{most}{shown[0]} {short.label()} against {shown[1]} of real ones."
    )


def _all_of(distances: int) -> str:
    return {1: "the distance", 2: "both distances"}.get(distances, f"all {distances} distances")


def _spread(comparison: Comparison) -> str:
    """How far apart best and worst are at the largest budget, by the first distance that is always positive."""
    metric = next((m for m in _distances(comparison) if m.axis is Axis.LOG), None)
    budgets = _budgets(comparison)
    if metric is None or not budgets:
        return ""
    found = _measured(comparison, metric, budgets[-1])
    if len(found) < 2:
        return ""
    best, worst = (pick(found, key=lambda row: metric.loss(found[row].value)) for pick in (min, max))
    if not _worse(metric, found[worst], found[best]):
        return ""
    return (
        f"At {budgets[-1]} evaluations the {metric.label()} of {comparison.label(worst)} is "
        f"{found[worst].value / found[best].value:.1f} times that of {comparison.label(best)}."
    )


def _most_exact(comparison: Comparison) -> str:
    """Which deterministic solver is closest to the exact flow, at the smallest and at the largest budget."""
    metric = next((m for m in comparison.shown if m.against is Against.FLOW and m.lower_is_better is not None), None)
    if metric is None:
        return ""
    rows = [row for row in comparison.rows if metric.name in row.measured and row.budget is not None]
    if len({row.solver for row in rows}) < 2:
        return ""
    parts = []
    for budget in dict.fromkeys((rows[0].budget, rows[-1].budget)):
        best = min(
            (row for row in rows if row.budget == budget), key=lambda row: metric.loss(row.measured[metric.name].value)
        )
        value = best.measured[metric.name].value
        parts.append(f"{comparison.label(best)} at {budget} evaluations ({metric.heading} {value:.3g})")
    return f"Closest to the exact flow: {', '.join(parts)}."


def _failures(comparison: Comparison) -> str:
    failed = [f"{comparison.label(row)} at {row.nfe}" for row in comparison.rows if row.failure]
    return f"Diverged: {', '.join(failed)}." if failed else ""


def _budgets(comparison: Comparison) -> list[int]:
    return sorted({row.budget for row in comparison.rows if row.budget is not None})


def _measured(comparison: Comparison, metric: Metric, budget: int) -> dict[Row, Estimate]:
    """The values of a metric at a budget."""
    rows = [row for row in comparison.rows if row.budget == budget and metric.name in row.measured]
    return {row: row.measured[metric.name] for row in rows}


def _worse(metric: Metric, one: Estimate, other: Estimate) -> bool:
    """Whether one value is worse than another by more than two standard errors of their difference."""
    within = [error for error in (one.error, other.error) if math.isfinite(error)]
    return metric.loss(one.value) - metric.loss(other.value) > 2 * math.hypot(*within)


def _listed(names: list[str], most: int = 99) -> str:
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _sentence(text: str) -> str:
    return text and f"{text[0].upper()}{text[1:]}."


def comparison_table(comparison: Comparison) -> Table:
    """A line for each row, a column for each metric, and the real data below; ``≈`` marks what is at the floor."""
    names = [Column("solver", "equation and integrator", left=True)]
    if comparison.several_grids:
        names.append(Column("grid", "spacing of the times", left=True))
    columns = [
        *names,
        Column("NFE", "network evaluations that each sample went through"),
        *(Column(metric.heading, metric.meaning) for metric in comparison.shown),
        Column("seconds", "wall time"),
        Column("overhead", "share of it spent outside the network"),
    ]
    lines: list[Line] = []
    before: Row | None = None
    for row in comparison.rows:
        begins = before is not None and (row.budget, row.grid_set) != (before.budget, before.grid_set)
        lines.append(Line(_cells(comparison, row), "group" if begins else ""))
        before = row
    if comparison.judge is not None:
        lines.append(Line(_floor_cells(comparison), "floor"))
    return Table(tuple(columns), tuple(lines))


def _cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    out = [row.solver, *([row.grid] if comparison.several_grids else []), str(row.nfe)]
    for metric in comparison.shown:
        mark = "≈ " if comparison.at_floor(metric, row) else ""
        out.append(mark + value_text(metric, row.measured.get(metric.name)))
    if row.failure:
        return (*out, "diverged", "–")
    return (*out, f"{row.seconds:.2f}" if row.seconds < 10 else f"{row.seconds:.1f}", f"{row.outside:.1%}")


def _floor_cells(comparison: Comparison) -> tuple[str, ...]:
    """The line of real data, in the same columns."""
    out = ["real data (floor)", *([""] if comparison.several_grids else []), ""]
    for metric in comparison.shown:
        floor = comparison.floor(metric)
        if metric.against is Against.FLOW and comparison.endpoint is not None:
            out.append(f"reference ± {comparison.endpoint.error.value:.2g}")
        else:
            out.append("" if floor is None else value_text(metric, floor))
    return (*out, "", "")
