"""What a peer is to the benchmark: a name, and a callable from a problem and a budget to a sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peers.problems import Problem
from peers.ratio_grids import build
from torch import Tensor

from sde_toolkit.sampling import ForeignSolver

__all__ = ["Configuration", "OnGrid", "Row", "measure"]


@dataclass(frozen=True)
class Configuration:
    """A peer on a grid. ``run(problem, nfe)`` returns x/α at the end, with at most ``nfe`` evaluations."""

    library: str
    sampler: str
    grid: str
    run: Callable[[Problem, int], Tensor]

    @property
    def name(self) -> str:
        return f"{self.library} {self.sampler} [{self.grid}]"


@dataclass(frozen=True)
class OnGrid:
    """A foreign solver on a grid of :mod:`ratio_grids`; ``ratios``: instead of the kinds that are there.

    ``per_step``: evaluations in a step; that to 0 takes ``spared`` less.
    """

    solver: ForeignSolver
    kind: str
    low: float
    ending: str
    per_step: int = 1
    spared: int = 0
    ratios: Callable[[Problem, str, int, float], Tensor] | None = None

    def __call__(self, problem: Problem, nfe: int) -> Tensor:
        denoises = self.ending == "denoise"
        steps = (nfe - denoises + self.spared * (self.ending == "zero")) // self.per_step
        levels = build(problem, self.kind, steps + denoises, self.low, self.ending, self.ratios)
        y = problem.y_start
        if len(levels) > 1:
            y = self.solver.run(problem.denoise, levels, y, lambda: torch.zeros_like(problem.y_start))
        return problem.denoise(y, self.low) if denoises else y


@dataclass(frozen=True)
class Row:
    """A measured row; ``error`` is nan where the peer failed, ``deviation`` its standard error over noises."""

    name: str
    library: str
    grid: str
    budget: int
    error: float
    deviation: float


def measure(problem: Problem, configuration: Configuration, budget: int) -> Row:
    """Run, count, compare. A peer that fails, gives a sample that is not finite or takes too much gets error nan."""
    problem.calls, error, deviation = 0, math.nan, math.nan
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            sample = configuration.run(problem, budget)
        squares = (sample.double() - problem.reference).flatten(1).square().mean(dim=1)
        error = squares.mean().sqrt().item()
        deviation = squares.std().item() / (2 * error * math.sqrt(len(squares)))
    except Exception:  # whatever a peer raises is its result
        if configuration.library == "ours":
            raise
    if problem.calls > budget or not math.isfinite(error):
        error = math.nan
    return Row(configuration.name, configuration.library, configuration.grid, budget, error, deviation)
