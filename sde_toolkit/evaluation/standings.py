"""Who is best at a budget, and who cannot be told from the best: for bold cells in tables, and for claims in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.metrics.metric import Against, Axis, Estimate, Metric

__all__ = ["Standing", "budgets_of", "chief_metrics", "clearly_worse", "distances_of", "standing"]


@dataclass(frozen=True, eq=False)
class Standing:
    """The rows of one budget in one metric, the best first.

    ``rows``: with their values. ``near``: the rows whose difference to the best holds zero in its interval, at 95 % for
    this difference alone. ``tied``: the rows that the best does not surely beat, at 95 % for all differences together.
    Both begin with the best. The differences are paired where the comparison has paired ones.
    """

    metric: Metric
    rows: dict[Row, Estimate]
    near: tuple[Row, ...]
    tied: tuple[Row, ...]

    @property
    def best(self) -> Row:
        return next(iter(self.rows))

    @property
    def worst(self) -> Row:
        return next(reversed(self.rows))


def standing(comparison: Comparison, metric: Metric, budget: int | None) -> Standing | None:
    """Who is best at a budget; None without two rows, or for a metric with no better direction."""
    places = [k for k, row in enumerate(comparison.rows) if row.budget == budget and metric.name in row.measured]
    places = [k for k in places if math.isfinite(comparison.rows[k].measured[metric.name].value)]
    if len(places) < 2 or metric.lower_is_better is None:
        return None
    places.sort(key=lambda k: metric.loss(comparison.rows[k].measured[metric.name].value))
    values = {comparison.rows[k]: comparison.rows[k].measured[metric.name] for k in places}
    best, *others = places
    paired = comparison.paired
    if paired is not None and (metric.name, budget) in paired:
        matrix = paired[metric.name, budget]
        near = [k for k in others if matrix.difference(best, k).verdict != "better"]
        tied = [k for k in others if matrix.difference(best, k).sure != "better"]
    else:
        first = comparison.rows[best].measured[metric.name]
        near = tied = [k for k in others if not clearly_worse(metric, comparison.rows[k].measured[metric.name], first)]
    return Standing(metric, values, *(tuple(comparison.rows[k] for k in (best, *found)) for found in (near, tied)))


def clearly_worse(metric: Metric, one: Estimate, other: Estimate) -> bool:
    """Whether one value is worse than another by more than two standard errors of their difference."""
    within = [error for error in (one.error, other.error) if math.isfinite(error)]
    return metric.loss(one.value) - metric.loss(other.value) > 2 * math.hypot(*within)


def budgets_of(comparison: Comparison) -> list[int]:
    """The budgets in evaluations, the smallest first."""
    return sorted({row.budget for row in comparison.rows if row.budget is not None})


def distances_of(comparison: Comparison) -> list[Metric]:
    """The metrics that compare samples with parts of the real data, and have a better direction."""
    found = [m for m in comparison.shown if m.against is Against.PARTS and m.lower_is_better is not None]
    return found if comparison.judge is not None else []


def chief_metrics(comparison: Comparison) -> list[Metric]:
    """At most two: the first error against the flow, and the first distance to the data that is always positive."""
    measured = [m for m in comparison.shown if any(m.name in row.measured for row in comparison.rows)]
    flow = [m for m in measured if m.against is Against.FLOW and m.lower_is_better is not None]
    others = [m for m in measured if m.against is not Against.FLOW and m.lower_is_better is not None]
    others.sort(key=lambda m: (m.against is not Against.PARTS, m.axis is not Axis.LOG))
    return [*flow[:1], *others[:1]]
