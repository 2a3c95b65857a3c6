"""What is wrong with a row or with the network, in sentences: each has a definition, and says its numbers.

    outside the data    samples with more than one element in a hundred beyond the range of the real data by a tenth of
                        its width, more often than real ones are
    behind linear       at the largest budget all rows are farther from the data than a Gaussian of the same moments
    starved by a grid   twice as far as the same solver on another grid; or as the best row, where the last step of the
                        grid spans a third of all of log(α/σ) and a quarter more than an equal share
    truncation          the end of the grid costs more than all the other parts of the error
    network             the network's own error is larger than what the solver adds
    products            methods that take products with the network's Jacobian, which budgets do not count

The others hold beyond two standard errors, and for pairs of rows beyond their paired interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sde_toolkit.evaluation.linear_reference import linear_scores
from sde_toolkit.evaluation.naming import names_in_words
from sde_toolkit.evaluation.report_table import plus_minus
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.evaluation.standings import budgets_of, chief_metrics, clearly_worse, distances_of, standing
from sde_toolkit.metrics.metric import Axis, Estimate, Metric

__all__ = ["comparison_cautions", "last_step", "outside_share"]

_MARGIN = 0.1  # of the range of the data
_ELEMENTS = 0.01  # of a sample
_LONG_STEP = 1 / 3  # of the range of log(α/σ)


def comparison_cautions(comparison: Comparison) -> list[str]:
    """One sentence for each thing that is wrong; "" for the rest."""
    found = [_outside(comparison), _behind_linear(comparison), *_starved(comparison)]
    return [*found, *_of_parts(comparison), _products(comparison)]


def _outside(comparison: Comparison) -> str:
    """Rows with samples outside the range of the real data."""
    if comparison.judge is None:
        return ""
    real = comparison.judge.real
    half = len(real) // 2
    usual = _share(outside_share(real[half:], real[:half]), len(real) - half)
    found = dict[Row, Estimate]()
    for row, x in zip(comparison.rows, comparison.samples, strict=True):
        if len(x):
            share = _share(outside_share(x, real), len(x))
            if share.value - usual.value > 2 * math.hypot(share.error, usual.error) and share.value * len(x) >= 2:
                found[row] = share
    if not found:
        return ""
    rows = sorted(found, key=lambda row: -found[row].value)
    named = [f"{comparison.label(row)} at {row.nfe} ({found[row].value:.0%})" for row in rows]
    return f"Samples lie outside the range of the data: {names_in_words(named)}; of real ones {usual.value:.0%} do."


def outside_share(x: Tensor, real: Tensor) -> float:
    """The share of samples (n, *event) with elements outside the range of ``real`` by a tenth of its width.

    More than one element in a hundred has to be outside: a few pixels of an image do not spoil it.

    The range is that of each coordinate for vectors, and of all elements together for images and signals with channels.
    """
    axes = 0 if real.ndim == 2 else tuple(range(real.ndim))
    low, high = real.double().amin(axes), real.double().amax(axes)
    margin = _MARGIN * (high - low).max()
    values = x.double()
    beyond = (values < low - margin) | (values > high + margin) | ~values.isfinite()
    return (beyond.reshape(len(x), -1).double().mean(1) > _ELEMENTS).double().mean().item()


def _share(p: float, n: int) -> Estimate:
    """With an error that is not zero where nothing was found (Agresti & Coull 1998)."""
    q = (p * n + 2) / (n + 4)
    return Estimate(p, math.sqrt(q * (1 - q) / (n + 4)))


def _behind_linear(comparison: Comparison) -> str:
    """All rows at the largest budget are worse than linear, in every distance."""
    judge, budgets = comparison.judge, budgets_of(comparison)
    if judge is None or not budgets:
        return ""
    linear = linear_scores(judge)
    distances = [metric for metric in distances_of(comparison) if metric.name in linear]
    rows = [row for row in comparison.rows if row.budget == budgets[-1] and not row.failure]
    if not rows or not distances:
        return ""
    for metric in distances:
        reached = [row.measured.get(metric.name) for row in rows]
        if any(found is None or not clearly_worse(metric, found, linear[metric.name]) for found in reached):
            return ""
    metric = distances[0]
    best = min((row.measured[metric.name] for row in rows), key=lambda e: metric.loss(e.value))
    return (
        f"The network is left behind: at {budgets[-1]} evaluations all rows are farther from the data than a Gaussian "
        f"with their mean and covariance ({metric.heading} {plus_minus(best)} at best, the Gaussian "
        f"{plus_minus(linear[metric.name])})."
    )


def _starved(comparison: Comparison) -> list[str]:
    """Rows that another grid would serve, by the chief metrics that are always positive."""
    on_another, long_last = dict[Row, str](), dict[Row, str]()
    for metric in [m for m in chief_metrics(comparison) if m.axis is Axis.LOG]:
        for budget in budgets_of(comparison):
            rows = [row for row in comparison.rows if row.budget == budget and metric.name in row.measured]
            for row in rows:
                if row not in on_another and (words := _on_another_grid(comparison, metric, row, rows)):
                    on_another[row] = words
                elif row not in long_last and (words := _long_last_step(comparison, metric, row, budget)):
                    long_last[row] = words
    said = []
    if on_another:
        found = names_in_words(list(on_another.values()))
        said.append(f"Some grids starve their solvers, which do better on others: {found}.")
    if long_last:
        found = names_in_words(list(long_last.values()))
        said.append(f"Some grids may starve their solvers: their last step spans much of log(α/σ). These are {found}.")
    return said


def _on_another_grid(comparison: Comparison, metric: Metric, row: Row, rows: Iterable[Row]) -> str:
    """The same solver is twice as close on another grid of this comparison."""
    others = [other for other in rows if other.solver == row.solver and other.grid != row.grid]
    best = min(others, key=lambda other: other.measured[metric.name].value, default=None)
    if best is None or not _twice_as_far(comparison, metric, row, best):
        return ""
    ratio = row.measured[metric.name].value / best.measured[metric.name].value
    return f"{row.solver} on {row.grid} at {row.nfe} ({metric.heading} {ratio:.1f} times that on {best.grid})"


def _long_last_step(comparison: Comparison, metric: Metric, row: Row, budget: int) -> str:
    """The last step of the grid is long, and the row is twice as far as the best one."""
    found = standing(comparison, metric, budget)
    if found is None or row in found.tied or not _twice_as_far(comparison, metric, row, found.best):
        return ""
    last, steps = last_step(comparison, row), len(row.times) - 1
    if last is None or last < max(_LONG_STEP, 1.25 / steps):
        return ""
    ratio = found.rows[row].value / found.rows[found.best].value
    best = comparison.label(found.best)
    return f"{row.solver} on {row.grid} at {row.nfe} ({last:.0%}, {metric.heading} {ratio:.1f} times that of {best})"


def _twice_as_far(comparison: Comparison, metric: Metric, row: Row, other: Row) -> bool:
    """A row is twice as far as another one, and surely farther."""
    far, near = row.measured[metric.name], other.measured[metric.name]
    if not (near.value > 0 and far.value >= 2 * near.value):
        return False
    place, paired = (metric.name, row.budget), comparison.paired
    if paired is not None and place in paired:
        i, j = comparison.rows.index(row), comparison.rows.index(other)
        return bool(paired[place].difference(i, j).sure == "worse")
    return clearly_worse(metric, far, near)


def last_step(comparison: Comparison, row: Row) -> float | None:
    """The last step of a row's grid as a share of the range of log(α/σ) that its times span, without infinite ends.

    At high noise a long step costs little: the flow is nearly linear there. At the end of the grid it does.
    """
    model = comparison.request.all_models.get(row.model, comparison.request.model)
    levels = model.sde.half_log_snr(torch.tensor(row.times, dtype=torch.float64))
    steps = levels[levels.isfinite()].diff()
    return None if len(steps) < 2 else (steps[-1] / steps.sum()).item()


def _of_parts(comparison: Comparison) -> list[str]:
    """Which part of the error dominates, by the chief metrics."""
    budgets, said = budgets_of(comparison), list[str]()
    for metric in chief_metrics(comparison):
        parts = {k: of[metric.name] for k, of in (comparison.error_parts or {}).items() if metric.name in of}
        ended = [k for k, of in parts.items() if _dominates(of.truncation, of.network, of.discretisation)]
        if ended:
            named = [f"{comparison.label(comparison.rows[k])} at {comparison.rows[k].nfe}" for k in ended]
            most = max(found.value for k in ended if (found := parts[k].truncation) is not None)
            said.append(
                f"Where the grid ends costs {names_in_words(named)} more than all else: up to "
                f"{most:.2g} of {metric.heading}. A grid that ends nearer to the data mends it."
            )
        last = {k: of for k, of in parts.items() if comparison.rows[k].budget in budgets[-1:]}
        learned = [k for k, of in last.items() if _dominates(of.network, of.discretisation, of.truncation)]
        if learned:
            named = [comparison.label(comparison.rows[k]) for k in learned]
            most = max(found.value for k in learned if (found := parts[k].network) is not None)
            said.append(
                f"At {budgets[-1]} evaluations the error of the network itself ({metric.heading} {most:.2g}) is larger "
                f"than what {names_in_words(named)} add{'s' * (len(named) == 1)}: a better solver hardly helps."
            )
    return said


def _products(comparison: Comparison) -> str:
    """Rows that take products with the network's Jacobian."""
    found = {f"{row.solver} ({row.products} at {row.nfe})": row for row in comparison.rows if row.products}
    if not found:
        return ""
    return (
        f"Budgets count evaluations alone. {names_in_words(list(found))} took products with the network's Jacobian, "
        "too, each about as dear as two evaluations: compare seconds."
    )


def _dominates(part: Estimate | None, *others: Estimate | None) -> bool:
    """Whether one part is larger than each of the others, beyond two standard errors; false with nothing to compare."""
    known = [found for found in others if found is not None]
    if part is None or not known:
        return False
    errors = ((e for e in (part.error, other.error) if math.isfinite(e)) for other in known)
    return all(part.value - other.value > 2 * math.hypot(*both) for other, both in zip(known, errors, strict=True))
