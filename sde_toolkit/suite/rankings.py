"""Rankings of solvers over truths, with intervals.

At each truth and budget a solver's value (its error, or its distance) is divided by the smallest of all solvers. The
figure of a solver is the geometric mean of these ratios over the truths. Its interval comes from resampling (Efron
1979): truths are drawn with replacement, and on each of them the noises, the same for all solvers and budgets. A
distance has no value for each noise. It moves by Σ_b u_b z_b instead, u_b the parts of its variance by blocks of noises
and of real samples (:mod:`sde_toolkit.metrics.jackknife`), and z_b standard normal, the same for all. So a difference
between two solvers is paired: which of them is better on the same truths, noises and real samples. The divisor stays
the solver that was best in the cell, so that the best of many chances is not taken for it.

A value above 1 counts as 1, and so does a cell without samples: if every sample were the data's mean, the error and the
distance would be about 1. So one cell in which a solver explodes does not decide its figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_toolkit.metrics.estimates import Array
from sde_toolkit.suite.suite_results import Cell, Joined

__all__ = ["Measure", "RankedSolver", "Ranking", "rank"]

_MOST_BLOCKS = 32  # of a distance's parts, at most


@dataclass(frozen=True)
class RankedSolver:
    """A solver in a ranking: the geometric mean of its ratios to the best, with its 95 % interval, and its rank.

    ``covered``: on how many truths it was measured. On fewer than all it has no rank (None).
    """

    solver: str
    ratio: float
    low: float
    high: float
    rank: int | None
    rank_low: int
    rank_high: int
    covered: int
    failed: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """Solvers at some budgets, best first. ``beats[i, j]``: share of the resamples in which i is better than j."""

    standings: tuple[RankedSolver, ...]
    beats: Array
    truths: tuple[str, ...]
    budgets: tuple[int, ...]

    @property
    def leaders(self) -> list[str]:
        """The solvers that none beats in 97.5 % of the resamples."""
        ranked = [s for s in self.standings if s.rank is not None]
        return [s.solver for j, s in enumerate(ranked) if not (self.beats[: len(ranked), j] >= 0.975).any()]


class Measure(Enum):
    """A value of a cell: smaller is better."""

    ERROR = "error"
    MEDIAN = "median"
    DISTANCE = "distance"

    def takes(self, cell: Cell) -> bool:
        """Whether the cell has this value, or has no samples at all."""
        return bool(cell.failure) or (cell.distance is not None if self is Measure.DISTANCE else bool(cell.each))

    def of(self, cell: Cell) -> float:
        """The value; 1 for a cell without samples."""
        if self is Measure.DISTANCE:
            return 1.0 if cell.distance is None else cell.distance.value
        errors = cell.flow_errors
        if errors is None:
            return 1.0
        return errors.rmse if self is Measure.ERROR else errors.median

    def resamples(self, cell: Cell, chance: _Chance) -> Array:
        """The value for other noises, (B,)."""
        if cell.failure:
            return np.ones(len(chance.drawn))
        if self is Measure.DISTANCE:
            value = self.of(cell)
            moved = chance.of_distance(cell) / value if value > 0 else np.zeros(len(chance.drawn))
            return np.asarray(value * np.exp(np.where(np.isfinite(moved), moved, 0.0)))
        each = np.asarray(cell.each)[chance.drawn]
        return np.sqrt((each**2).mean(1)) if self is Measure.ERROR else np.median(each, axis=1)


@dataclass(frozen=True, eq=False)
class _Chance:
    """What resampling draws on one truth, the same for all solvers and budgets.

    ``drawn`` (B, n): places of noises. ``blocks`` (2, ``_MOST_BLOCKS``, B): a normal number for each block of generated
    and of real samples. ``own`` (budgets, B): normal numbers of one solver alone, for distances without parts.
    """

    drawn: NDArray[np.int64]
    blocks: Array
    own: Array
    budget: int = 0

    def of_distance(self, cell: Cell) -> Array:
        """By how much a distance moves, (B,)."""
        if cell.distance_parts is None or max(map(len, cell.distance_parts)) > self.blocks.shape[1]:
            return np.asarray((cell.distance.error if cell.distance else math.nan) * self.own[self.budget])
        pairs = zip(cell.distance_parts, self.blocks, strict=True)
        return np.asarray(sum(np.asarray(parts) @ normal[: len(parts)] for parts, normal in pairs))


def rank(
    joined: Joined, measure: Measure, budgets: Sequence[int] | None = None, *, resamples: int = 400, seed: int = 0
) -> Ranking:
    """The ranking of all solvers that have this measure, over ``budgets`` together; empty without any.

    A solver that lacks a truth or a budget that others have is listed after the others, without a rank.
    """
    budgets = tuple(joined.budgets if budgets is None else budgets)
    solvers = [r.solver for r in joined.solvers if _measured(joined, measure, r.solver, budgets)]
    truths = [t for t in joined.truths if any(_whole(joined, measure, s, t, budgets) for s in solvers)]
    if not solvers:
        return Ranking((), np.zeros((0, 0)), (), budgets)
    values, redrawn = _logarithms(joined, measure, solvers, truths, budgets, resamples, seed)
    there: NDArray[np.bool_] = np.asarray(~np.isnan(values[:, :, 0]))  # (S, T)
    complete: NDArray[np.bool_] = np.asarray(there.all(1))
    weights = np.random.default_rng((seed, 1)).multinomial(
        len(truths), np.full(len(truths), 1 / len(truths)), resamples
    )
    best = np.nanargmin(values, axis=0)[None]  # (1, T, budgets)
    figures = np.nanmean(values - np.take_along_axis(values, best, 0), axis=(1, 2))
    spread = _figures(redrawn - np.take_along_axis(redrawn, best[..., None], 0), weights)  # (B, S)
    order = sorted(range(len(solvers)), key=lambda i: (not complete[i], figures[i]))
    spread, figures = spread[:, order], figures[order]
    ranked = int(complete.sum())
    ranks = 1 + (spread[:, :ranked, None] > spread[:, None, :ranked]).sum(2)
    standings = []
    for place, i in enumerate(order):
        low, high = np.exp(np.nanpercentile(spread[:, place], [2.5, 97.5]))
        ends = np.percentile(ranks[:, place], [2.5, 97.5], method="nearest") if complete[i] else (0, 0)
        failed = sum(bool(c and c.failure) for t in truths for b in budgets for c in [joined.cell(solvers[i], t, b)])
        standings.append(
            RankedSolver(
                solver=solvers[i],
                ratio=float(np.exp(figures[place])),
                low=float(low),
                high=float(high),
                rank=place + 1 if complete[i] else None,
                rank_low=int(ends[0]),
                rank_high=int(ends[1]),
                covered=int(there[i].sum()),
                failed=failed,
            )
        )
    beats = (spread[:, :, None] < spread[:, None, :]).mean(0)
    return Ranking(tuple(standings), beats, tuple(truths), budgets)


def _figures(ratios: Array, weights: NDArray[np.int64]) -> Array:
    """The mean logarithm of the ratio to the best, for each resample and solver: (B, S) of (S, T, budgets, B)."""
    of_truths = ratios.mean(2)  # (S, T, B); NaN where a solver lacks the truth
    there = ~np.isnan(of_truths)
    total = np.einsum("stb,bt->bs", np.where(there, of_truths, 0), weights)
    count = np.einsum("stb,bt->bs", there, weights)
    return np.asarray(total / np.where(count > 0, count, np.nan))


def _logarithms(
    joined: Joined,
    measure: Measure,
    solvers: Sequence[str],
    truths: Sequence[str],
    budgets: Sequence[int],
    resamples: int,
    seed: int,
) -> tuple[Array, Array]:
    """Logarithms of the values (S, T, budgets) and of their resamples (S, T, budgets, B); NaN where there is none."""
    shape = (len(solvers), len(truths), len(budgets))
    values, redrawn = np.full(shape, np.nan), np.full((*shape, resamples), np.nan)
    for t, truth in enumerate(truths):
        random = np.random.default_rng((seed, 2, t))
        n = joined.truths[truth].n
        drawn = random.integers(0, n, (resamples, n))
        blocks = np.random.default_rng((seed, 4, t)).standard_normal((2, _MOST_BLOCKS, resamples))
        for s, solver in enumerate(solvers):
            if not _whole(joined, measure, solver, truth, budgets):
                continue
            own = np.random.default_rng((seed, 3, s, t)).standard_normal((len(budgets), resamples))
            chance = _Chance(drawn, blocks, own)
            for b, budget in enumerate(budgets):
                cell = joined.cell(solver, truth, budget) or Cell(truth, budget, failure="not measured")
                values[s, t, b] = _logarithm(measure.of(cell))
                redrawn[s, t, b] = _logarithm(measure.resamples(cell, replace(chance, budget=b)))
    return values, redrawn


def _logarithm(values: Any) -> Any:
    """Of values between rounding and 1."""
    return np.log(np.clip(np.nan_to_num(values, nan=1.0), 1e-12, 1.0))


def _whole(joined: Joined, measure: Measure, solver: str, truth: str, budgets: Sequence[int]) -> bool:
    """Whether the solver has this measure on a truth at all budgets."""
    cells = [joined.cell(solver, truth, budget) for budget in budgets]
    return all(cell is not None and measure.takes(cell) for cell in cells)


def _measured(joined: Joined, measure: Measure, solver: str, budgets: Sequence[int]) -> bool:
    """Whether it has this measure anywhere, and not failures alone."""
    cells = [joined.cell(solver, truth, budget) for truth in joined.truths for budget in budgets]
    return any(cell is not None and not cell.failure and measure.takes(cell) for cell in cells)
