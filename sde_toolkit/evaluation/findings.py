"""What a comparison says, in sentences computed from its numbers, and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sde_toolkit.evaluation.comparison import Comparison, Row
from sde_toolkit.metrics.distances import Estimate
from sde_toolkit.metrics.judge import at_floor, plausible_at_floor

__all__ = ["cells", "columns", "findings", "floor_cells", "plus_minus", "text_table"]


def findings(comparison: Comparison) -> list[str]:
    """One sentence for each thing that the numbers say; the first is the headline."""
    sentences = [_closest(comparison), _first_at_floor(comparison), _spread(comparison), _most_exact(comparison)]
    sentences.append(_failures(comparison))
    return [s for s in sentences if s] or ["No row could be measured against anything; wall times are below."]


def _closest(comparison: Comparison) -> str:
    """Who is closest to the data at the smallest and at the largest budget, with whoever ties."""
    if comparison.judge is None:
        return ""
    parts = []
    budgets = _budgets(comparison)
    for budget in dict.fromkeys((budgets[0], budgets[-1])) if budgets else ():
        rows = [row for row in comparison.rows if row.budget == budget and row.scores]
        if not rows:
            continue
        best = min(rows, key=lambda row: _kernel(row).value)
        tied = [
            row for row in rows if _kernel(row).value - _kernel(best).value <= 2 * _joint(_kernel(row), _kernel(best))
        ]
        names = _listed([comparison.label(row) for row in [best, *[r for r in tied if r is not best]]], most=3)
        if len(tied) == len(rows) > 1:
            parts.append(f"at {budget} network evaluations no solver is measurably closer to the data than another")
            continue
        verb = "are" if len(tied) > 1 else "is"
        tie = " (not told apart)" if len(tied) > 1 else ""
        parts.append(f"at {budget} network evaluations {names} {verb} closest to the data{tie}")
    return _sentence("; ".join(parts) + ", by kernel distance" * bool(parts))


def _first_at_floor(comparison: Comparison) -> str:
    """The smallest budget at which some solver is within error of real data, and by which measures."""
    judge = comparison.judge
    if judge is None:
        return ""
    scored = [row for row in comparison.rows if row.scores]
    for budget in _budgets(comparison):
        at = [row for row in scored if row.budget == budget and _distances_at_floor(comparison, row)]
        if judge.floor.plausible is None:
            whole, partly = at, []
        else:
            whole = [row for row in at if plausible_at_floor(_plausible(row), judge.floor.plausible)]
            partly = [row for row in at if row not in whole]
        if whole:
            names = _listed([comparison.label(row) for row in whole], most=3)
            return f"At {budget} evaluations no measure here tells {judge.n} samples of {names} from as many real ones."
        if partly and judge.floor.plausible and judge.features.plausible:
            best = max(_plausible(row).value for row in partly)
            return (
                f"At {budget} evaluations {_listed([comparison.label(row) for row in partly], most=3)} "
                f"{'reach' if len(partly) > 1 else 'reaches'} the floor of real data in both distances, but with "
                f"{'at most ' * (len(partly) > 1)}{best:.0%} plausible samples ({judge.features.plausible.heading}) "
                f"against {judge.floor.plausible.value:.0%} of real ones."
            )
    least = min(map(_kernel, scored), key=lambda e: e.value, default=None)
    if least is None:
        return ""
    return (
        f"No solver reaches the floor of real data in both distances: the least kernel distance is "
        f"{plus_minus(least)}, and {judge.n} real samples score {plus_minus(judge.floor.kernel_distance)}."
    )


def _spread(comparison: Comparison) -> str:
    """How far apart best and worst are at the largest budget."""
    budgets = _budgets(comparison)
    rows = [row for row in comparison.rows if budgets and row.budget == budgets[-1] and row.scores]
    if len(rows) < 2:
        return ""
    best, worst = (pick(rows, key=lambda row: _sliced(row).value) for pick in (min, max))
    if _sliced(worst).value - _sliced(best).value <= 2 * _joint(_sliced(worst), _sliced(best)):
        return ""
    ratio = _sliced(worst).value / _sliced(best).value
    return (
        f"At {budgets[-1]} evaluations the sliced Wasserstein distance of {comparison.label(worst)} is "
        f"{ratio:.1f} times that of {comparison.label(best)}."
    )


def _most_exact(comparison: Comparison) -> str:
    """Which deterministic solver follows the flow best, and whether order shows."""
    exact = [row for row in comparison.rows if row.rmse is not None and row.budget is not None]
    if len({row.solver for row in exact}) < 2:
        return ""
    parts = []
    for budget in dict.fromkeys((exact[0].budget, exact[-1].budget)):
        rows = [row for row in exact if row.budget == budget]
        best = min(rows, key=_rmse)
        parts.append(f"{comparison.label(best)} at {budget} evaluations (RMSE {_rmse(best):.3g})")
    return f"Closest to the exact flow: {', '.join(parts)}."


def _failures(comparison: Comparison) -> str:
    failed = [f"{comparison.label(row)} at {row.nfe}" for row in comparison.rows if row.failure]
    return f"Diverged: {', '.join(failed)}." if failed else ""


def _budgets(comparison: Comparison) -> list[int]:
    return sorted({row.budget for row in comparison.rows if row.budget is not None})


def _kernel(row: Row) -> Estimate:
    return row.scores.kernel_distance if row.scores else Estimate(math.inf, 0.0)


def _sliced(row: Row) -> Estimate:
    return row.scores.sliced_wasserstein if row.scores else Estimate(math.inf, 0.0)


def _rmse(row: Row) -> float:
    return row.rmse.value if row.rmse else math.inf


def _joint(a: Estimate, b: Estimate) -> float:
    return math.hypot(a.error, b.error)


def _plausible(row: Row) -> Estimate:
    return row.scores.plausible if row.scores and row.scores.plausible else Estimate(0.0, 0.0)


def _distances_at_floor(comparison: Comparison, row: Row) -> bool:
    floor = comparison.judge.floor if comparison.judge else None
    return (
        floor is not None
        and at_floor(_kernel(row), floor.kernel_distance)
        and at_floor(_sliced(row), floor.sliced_wasserstein)
    )


def _listed(names: list[str], most: int = 99) -> str:
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _sentence(text: str) -> str:
    return text and f"{text[0].upper()}{text[1:]}."


# The table: the same cells for the terminal and for the page.


def columns(comparison: Comparison) -> list[tuple[str, str]]:
    """(heading, what it means) of every column that this comparison fills."""
    found = [("solver", "equation and integrator"), ("NFE", "network evaluations that each sample went through")]
    if comparison.several_grids:
        found.insert(1, ("grid", "spacing of the times"))
    if comparison.endpoint is not None:
        found.append(("RMSE to flow", "to the exact endpoint of the probability flow; deterministic solvers only"))
    if comparison.judge is not None:
        found.append(("sliced W2", "sliced Wasserstein distance to real data"))
        found.append(("kernel distance", "unbiased MMD² to real data"))
        plausible = comparison.judge.features.plausible
        if plausible is not None:
            found.append((plausible.heading, plausible.meaning))
    return [*found, ("seconds", "wall time"), ("outside", "share of it spent outside the network")]


def cells(comparison: Comparison, row: Row) -> list[str]:
    """The row's cells; ``≈`` marks what is within error of the floor."""
    out = [row.solver, *([row.grid] if comparison.several_grids else []), str(row.nfe)]
    if comparison.endpoint is not None:
        out.append("–" if row.rmse is None else plus_minus(row.rmse))
    if comparison.judge is not None:
        floor = comparison.judge.floor
        pick: list[Callable[[Any], Estimate | None]] = [lambda s: s.sliced_wasserstein, lambda s: s.kernel_distance]
        for measure in pick:
            estimate = measure(row.scores) if row.scores else None
            mark = "≈ " if at_floor(estimate, measure(floor)) else ""
            out.append("–" if estimate is None else mark + plus_minus(estimate))
        if floor.plausible is not None:
            share = row.scores.plausible if row.scores else None
            out.append(("≈ " if plausible_at_floor(share, floor.plausible) else "") + _percent(share))
    if row.failure:
        return [*out, "diverged", "–"]
    return [*out, f"{row.seconds:.2f}" if row.seconds < 10 else f"{row.seconds:.1f}", f"{row.outside:.1%}"]


def floor_cells(comparison: Comparison) -> list[str]:
    """The line of real data, in the same columns; empty without any."""
    if comparison.judge is None:
        return []
    floor = comparison.judge.floor
    out = ["real data (floor)", *([""] if comparison.several_grids else []), ""]
    if comparison.endpoint is not None:
        out.append(f"reference ± {comparison.endpoint.error.value:.2g}")
    out += [plus_minus(floor.sliced_wasserstein), plus_minus(floor.kernel_distance)]
    if floor.plausible is not None:
        out.append(_percent(floor.plausible))
    return [*out, "", ""]


def text_table(comparison: Comparison) -> str:
    """The table for a terminal, one blank line between budgets."""
    heads = [name for name, _ in columns(comparison)]
    body = [cells(comparison, row) for row in comparison.rows]
    floor = floor_cells(comparison)
    widths = [max(map(len, column)) for column in zip(heads, *body, *([floor] if floor else []), strict=True)]
    left = 2 if comparison.several_grids else 1

    def line(values: list[str]) -> str:
        return "  ".join(
            v.ljust(w) if i < left else v.rjust(w) for i, (v, w) in enumerate(zip(values, widths, strict=True))
        ).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(heads), rule]
    before: Row | None = None
    for row, values in zip(comparison.rows, body, strict=True):
        if before is not None and (row.budget, row.grid) != (before.budget, before.grid):
            lines.append("")
        lines.append(line(values))
        before = row
    if floor:
        lines += [rule, line(floor)]
    return "\n".join(lines)


def plus_minus(estimate: Estimate) -> str:
    """Value and standard error to the error's first two digits: ``0.0123 ± 0.0045``."""
    value, error = estimate.value, estimate.error
    if not math.isfinite(error) or error <= 0:
        return f"{value:.3g}"
    if error >= 1e5 or error < 1e-6:
        return f"{value:.3g} ± {error:.1g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _percent(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{100 * estimate.value:.1f} ± {100 * estimate.error:.1f} %"
