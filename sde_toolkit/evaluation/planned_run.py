"""A planned run: what draws the samples of a row, batch by batch, and what is known of it beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.jobs.store import Arrays
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import Plan
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import Solver

__all__ = ["USUAL", "BatchRequest", "DrawnBatch", "PlannedRun", "SolverRun"]

USUAL = "usual"  # the name of the set of all usual grids
_ADAPTIVE = 100  # evaluations assumed of an adaptive solver, to share the work out


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """The samples ``first`` to ``last`` − 1 of a run: sample i has the noise stream (seed, i), whatever the batch.

    ``condition``: one row for each of these samples. ``callback``: is told of evaluations as they happen.
    """

    first: int
    last: int
    seed: int = 0
    condition: Any = None
    device: torch.device | str = "cpu"
    callback: Callable[[int], None] = lambda evaluations: None

    @property
    def size(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, eq=False)
class DrawnBatch:
    """``x`` (b, *event) in model space, and what one sample took: evaluations of the network, products with its
    Jacobian (both counted), wall time, and the network's part of it, which is NaN where it is not known.
    """

    x: Tensor
    nfe: int
    seconds: float
    network_seconds: float
    products: int = 0

    def arrays(self) -> Arrays:
        """All of it, to be stored."""
        numbers = {name: np.array(getattr(self, name)) for name in ("nfe", "products", "seconds", "network_seconds")}
        return {"x": self.x.cpu().numpy(), **numbers}


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedRun(ABC):
    """One solver on one grid. Its kinds say how a batch is drawn; a comparison does not know which kind it has.

    ``name``, ``grid_name``: of solver and grid in the report. ``grid_set``: the name of the grid if it was chosen for
    all solvers, "usual" if each has its own. ``budget``: evaluations allowed; None for an adaptive solver, which takes
    what it needs. ``evaluations_inside``: evaluations of networks in one of the model. ``model``, ``model_name``: the
    row's own, None and "" for that of the comparison. ``measuring``: evaluations, of one sample each, that were made
    once to plan it.
    """

    name: str
    grid_name: str
    budget: int | None
    grid_set: str = USUAL
    evaluations_inside: int = 1
    model: ScoreModel | None = None
    model_name: str = ""
    measuring: int = 0

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Evaluations of networks per sample that a run of fixed steps will make."""

    @property
    def cost(self) -> int:
        """Evaluations per sample, about; an assumption for adaptive solvers."""
        return self.nfe

    @property
    @abstractmethod
    def times(self) -> tuple[float, ...]:
        """The grid."""

    @property
    @abstractmethod
    def tweedie(self) -> bool:
        """Whether the last evaluation denoises."""

    @property
    @abstractmethod
    def eta(self) -> float | None:
        """The equation's stochasticity; 0 for the flow, None for other noise."""

    @property
    @abstractmethod
    def integrator(self) -> str:
        """The integrator in words."""

    @property
    def samples_the_model(self) -> bool:
        """Whether shorter and shorter steps lead to samples of the model; a step operator's lead elsewhere."""
        return True

    @property
    def deterministic(self) -> bool:
        """Whether it solves the probability flow of the model."""
        return self.eta == 0 and self.samples_the_model

    def in_double(self) -> PlannedRun | None:
        """The same run in float64; None if its solver cannot."""
        return None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What its samples depend on, besides the model."""

    @abstractmethod
    def draw(self, model: ScoreModel, batch: BatchRequest) -> DrawnBatch:
        """The samples of a batch.

        Raises:
            NonFiniteError, MaxEvaluationsError, ForeignSolverError: where there are no samples.
        """


@dataclass(frozen=True, eq=False, kw_only=True)
class SolverRun(PlannedRun):
    """A solver of this package on a grid of times, with ``tweedie`` as its last evaluation."""

    solver: Solver
    grid: Tensor
    denoises: bool
    dtype: torch.dtype | None = None

    def in_double(self) -> SolverRun:
        return replace(self, dtype=torch.float64)

    def first_step(self) -> SolverRun:
        """Its first step alone."""
        return replace(self, grid=self.grid[:2], denoises=False)

    @property
    def samples_the_model(self) -> bool:
        return self.solver.integrator.samples_the_model

    @property
    def evals_per_step(self) -> int:
        """Of networks; those of one evaluation for adaptive solvers, whose number of steps is not known beforehand."""
        return self.evaluations_inside * (self.solver.integrator.evals_per_step or 1)

    @property
    def nfe(self) -> int:
        return self.evaluations_inside * Plan(self.solver, self.grid, self.denoises).nfe

    @property
    def cost(self) -> int:
        return self.nfe if self.solver.integrator.evals_per_step else _ADAPTIVE

    @property
    def times(self) -> tuple[float, ...]:
        return tuple(self.grid.tolist())

    @property
    def tweedie(self) -> bool:
        return self.denoises

    @property
    def eta(self) -> float:
        return self.solver.eta

    @property
    def integrator(self) -> str:
        return repr(self.solver.integrator)

    def settings(self) -> dict[str, Any]:
        return {"solver": self.solver, "grid": self.grid, "tweedie": self.denoises}

    def draw(self, model: ScoreModel, batch: BatchRequest) -> DrawnBatch:
        done = sample(
            model,
            self.solver,
            self.grid,
            shape=(batch.size, *(model.event_shape or ())),
            seed=batch.seed,
            first_index=batch.first,
            condition=batch.condition,
            tweedie=self.denoises,
            device=batch.device,
            dtype=self.dtype,
            callback=lambda step: batch.callback(self.evals_per_step),
        )
        if self.denoises:
            batch.callback(self.evaluations_inside)
        return DrawnBatch(done.x, done.nfe, done.seconds, done.network_seconds, done.products)
