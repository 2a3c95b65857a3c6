"""What a peer is to the benchmark: a name, and a callable from a problem and a budget to a sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peers.problems import Problem
from torch import Tensor

__all__ = ["Configuration", "Row", "measure"]


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
