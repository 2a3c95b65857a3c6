"""What a comparison says, in sentences computed from its numbers.

A sentence says that one solver is better than another only where the interval of their difference allows it: at 95 %
for all pairs of its matrix together (:mod:`sde_toolkit.evaluation.paired`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sde_toolkit.evaluation.cautions import comparison_cautions
from sde_toolkit.evaluation.naming import names_in_words
from sde_toolkit.evaluation.report_table import plus_minus, value_text
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.evaluation.standings import Standing, budgets_of, distances_of, standing
from sde_toolkit.metrics.metric import Against, Axis, Estimate, Metric

__all__ = ["comparison_findings"]


def comparison_findings(comparison: Comparison) -> list[str]:
    """One sentence for each thing that the numbers say; the first is the headline."""
    sentences = [_closest(comparison), _first_at_floor(comparison), _spread(comparison), _most_exact(comparison)]
    sentences += [*comparison_cautions(comparison), *_failures(comparison)]
    return [s for s in sentences if s] or ["No row could be measured against anything; wall times are below."]


def _closest(comparison: Comparison) -> str:
    """Which solver is closest to the data at the smallest and at the largest budget, and which ones tie with it.

    The distance is the first unbiased one, or else the first.
    """
    metric = next(iter(sorted(distances_of(comparison), key=lambda metric: not metric.unbiased)), None)
    if metric is None:
        return ""
    return _led(comparison, metric, "the data")


def _most_exact(comparison: Comparison) -> str:
    """Which deterministic solver is closest to the exact flow, at the smallest and at the largest budget."""
    metric = next((m for m in comparison.shown if m.against is Against.FLOW and m.lower_is_better is not None), None)
    if metric is None:
        return ""
    return _led(comparison, metric, "the exact flow")


def _led(comparison: Comparison, metric: Metric, what: str) -> str:
    """Who is closest at the smallest and at the largest budget."""
    budgets = budgets_of(comparison)
    ends = dict.fromkeys((budgets[0], budgets[-1])) if budgets else ()
    found = {budget: best for budget in ends if (best := standing(comparison, metric, budget)) is not None}
    if not found:
        return ""
    if all(len(best.tied) == len(best.rows) for best in found.values()):
        at = " and ".join(map(str, found))
        return f"By {metric.heading} no solver is measurably closer to {what} than another at {at} network evaluations."
    names = {budget: _leaders(comparison, best) for budget, best in found.items()}
    same = len(set(names.values())) == 1
    at = " and ".join(map(str, names))
    said = f"{names[min(names)]} at {at}" if same else "; ".join(f"{led} at {budget}" for budget, led in names.items())
    return f"Closest to {what}, by {metric.heading}: {said} network evaluations."


def _leaders(comparison: Comparison, found: Standing) -> str:
    """The best, and all that it does not surely beat."""
    if len(found.tied) == len(found.rows):
        return "none for sure"
    return f"{_names(comparison, found.tied)}{'' if len(found.tied) == 1 else ' (not told apart)'}"


def _first_at_floor(comparison: Comparison) -> str:
    """The smallest budget at which some solver is within error of real data, and by which measures."""
    judge, distances = comparison.judge, distances_of(comparison)
    if judge is None or not distances:
        return ""
    alone = [m for m in comparison.shown if m.against is Against.NOTHING and m.lower_is_better is not None]
    for budget in budgets_of(comparison):
        rows = [row for row in comparison.rows if row.budget == budget]
        at = [row for row in rows if all(comparison.at_floor(m, row) for m in distances)]
        whole = [row for row in at if all(comparison.at_floor(m, row) for m in alone)]
        if whole:
            names = _names(comparison, whole)
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
    shown = [value_text(short, None if e is None else Estimate(e.value, math.nan)) for e in (best, floor)]
    if short.axis is Axis.SHARE:
        shown = [f"{e.value:.0%}" for e in (best, floor) if e is not None]
    return (
        f"At {budget} evaluations {_names(comparison, rows)} {verb} the floor of real data in {_all_of(distances)}, "
        f"but with {most}{shown[0]} {short.label()} against {shown[1]} of real ones."
    )


def _all_of(distances: int) -> str:
    return {1: "the distance", 2: "both distances"}.get(distances, f"all {distances} distances")


def _spread(comparison: Comparison) -> str:
    """How far apart best and worst are at the largest budget, by the first distance that is always positive."""
    metric = next((m for m in distances_of(comparison) if m.axis is Axis.LOG), None)
    budgets = budgets_of(comparison)
    found = None if metric is None or not budgets else standing(comparison, metric, budgets[-1])
    if metric is None or found is None or found.worst in found.tied:
        return ""
    return (
        f"At {budgets[-1]} evaluations the {metric.label()} of {comparison.label(found.worst)} is "
        f"{found.rows[found.worst].value / found.rows[found.best].value:.1f} times that of "
        f"{comparison.label(found.best)}."
    )


def _failures(comparison: Comparison) -> list[str]:
    """The rows that diverged, and those that failed otherwise."""
    said = []
    for word, diverged in (("Diverged", True), ("Failed", False)):
        rows = [row for row in comparison.rows if row.failure and row.diverged == diverged]
        if rows:
            said.append(f"{word}: {', '.join(f'{comparison.label(row)} at {row.nfe}' for row in rows)}.")
    return said


def _names(comparison: Comparison, rows: Iterable[Row]) -> str:
    """The labels of rows, at most three of them by name."""
    return names_in_words([comparison.label(row) for row in rows], most=3)
