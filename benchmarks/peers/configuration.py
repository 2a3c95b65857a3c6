"""What a peer is to the benchmark: a name, and a callable from a problem and a budget to a sample."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from problems import Problem, rmse
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
    """A measured row; ``error`` is nan where the peer failed, and ``failure`` says how.

    ``median`` is the median over samples of a sample's own RMSE. In high dimension ``error`` can be one sample that
    went to another mode: in 64 dimensions, among 512, that alone is about 0.07.
    """

    problem: str
    library: str
    sampler: str
    grid: str
    budget: int
    nfe: int
    error: float
    seconds: float
    failure: str = ""
    median: float | None = None

    def as_dict(self) -> dict[str, object]:
        values = asdict(self)
        values["error"] = None if math.isnan(self.error) else self.error
        return values


def measure(problem: Problem, configuration: Configuration, budget: int) -> Row:
    """Run, count, compare. Nothing is dropped: an exception or a sample that is not finite is a row too."""
    problem.calls, failure, error, median = 0, "", math.nan, None
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            sample = configuration.run(problem, budget)
        error = rmse(sample, problem.reference)
        median = float((sample.double() - problem.reference).flatten(1).square().mean(dim=1).median().sqrt())
        failure = "" if math.isfinite(error) else "not finite"
    except Exception as exception:  # whatever a peer raises is its result
        failure = f"{type(exception).__name__}: {exception}"[:160]
    if not failure and problem.calls > budget:
        failure, error = f"over budget: {problem.calls}", math.nan
    error = error if math.isfinite(error) else math.nan
    seconds = time.perf_counter() - start
    identity = (problem.name, configuration.library, configuration.sampler, configuration.grid)
    return Row(*identity, budget, problem.calls, error, seconds, failure, None if failure else median)
