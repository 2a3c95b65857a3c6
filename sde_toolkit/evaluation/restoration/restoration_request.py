"""The request for a restoration: checked, measured and planned before the work.

Everything happens in the model's space: A measures T(x), T the model's transform, and σ_y has the units of that space.
For a transform with one shift and one scale, that is a measurement of the data x with noise of σ_y/|scale|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_amount, check_count, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.candidates import Candidate
from sde_toolkit.evaluation.planned_run import SolverRun
from sde_toolkit.evaluation.planning import plan_run, run_of
from sde_toolkit.evaluation.restoration.restoration_tasks import Task
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod
from sde_toolkit.guidance.posterior_model import Posterior
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.ranges import check_range
from sde_toolkit.sampling.arguments import check_model
from sde_toolkit.sampling.automatic import Plan
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["Method", "RestorationRequest", "Steps"]

Method: TypeAlias = PosteriorMethod | Callable[[ScoreModel, Measurement], Solver]
"""A rule for x̂_0 given y, with which the request's solver works; or what makes a solver of its own of a measurement."""


@dataclass(frozen=True, eq=False)
class Steps:
    """A solver on a grid at ``nfe`` evaluations, by the names of the report; a planner brings its own grid."""

    name: str
    solver: Candidate
    grid_name: str
    grid: GridBuilder
    nfe: int

    def run(self, model: ScoreModel, nfe: int | None = None, own: Solver | None = None) -> SolverRun:
        """The planned run. ``nfe``: another number; ``own``: another solver, on the grid that is usual for it.

        Raises:
            SDEToolkitError: if it cannot run.
        """
        nfe = self.nfe if nfe is None else nfe
        name, solver, grid_name, grid = self.name, self.solver, self.grid_name, self.grid
        if own is not None:
            name, solver, grid_name, grid = own.name, own, "its own", own.usual_grid
        if isinstance(solver, ForeignSolver):
            problem = "someone else's solver, and restorations need one of this package"
            raise ArgumentError("solver", name, problem, "Use sde_toolkit.dpmpp_2m_sde(), for example.")
        if not isinstance(solver, Solver):
            return run_of(model, name, solver if isinstance(solver, Plan) else solver(model, nfe), "its own")
        try:
            return plan_run(model, name, solver, grid_name, grid, nfe)
        except ArgumentError as error:
            if error.argument != "budget":
                raise
            raise ArgumentError("nfe", nfe, str(error.problem), "Raise it.") from None


@dataclass(frozen=True, eq=False)
class RestorationRequest:
    """Each of k held-out samples is measured once, and restored n times by each method.

    Args:
        model: in evaluation mode, with an ``event_shape``, on ``device``.
        truth: (k, *event), in data space.
        task: says which operator measures them.
        noise_std: σ_y, in the model's space; 0 for the methods that allow it.
        methods: by the names of the report.
        steps: solver, grid and number of evaluations, the same for all methods.
        cost: evaluations and products together, instead of ``steps.nfe``: each method takes as many steps as fit.
        n: samples for each measurement and method, at least 2.
        seed: of the noise of measurements and samples. Sample j of measurement i has the stream (seed, i n + j).
        condition: handed to the model; n rows, the same for each measurement.
        source: where the truth comes from, in words.

    Attributes:
        operator: A.
        measurements: k of them, each with its y.

    Raises:
        SDEToolkitError: for settings that do not fit together, and for a method that cannot do the task.
    """

    model: ScoreModel
    truth: Tensor
    task: Task
    noise_std: float
    methods: Mapping[str, Method]
    steps: Steps
    cost: int | None = None
    n: int = 16
    seed: int = 0
    condition: Any = None
    source: str = "given"
    device: torch.device | str = "cpu"
    measurements: tuple[Measurement, ...] = field(init=False)

    def __post_init__(self) -> None:
        event_shape = self._check()
        A = self.task.operator(event_shape)
        x_0 = self.model.transform.forward(self.truth).float()
        blank = Measurement(A, noise_std=float(self.noise_std))
        y = blank.simulate(x_0, seed=self.seed)
        measurements = tuple(Measurement(A, part, noise_std=float(self.noise_std)) for part in y)
        object.__setattr__(self, "measurements", measurements)
        for name in self.methods:
            self.run(name, 0)

    def _check(self) -> tuple[int, ...]:
        check_model(self.model)
        check_evaluation_mode(self.model)
        event_shape = self.model.event_shape
        if event_shape is None:
            name = type(self.model).__name__
            raise ArgumentError("model", name, "it has no event_shape", "Build it with event_shape=...")
        if len(self.truth) == 0 or tuple(self.truth.shape[1:]) != event_shape:
            problem = f"the model's samples have shape {event_shape}"
            raise ArgumentError("truth", tuple(self.truth.shape), problem, "Give one or more samples of that shape.")
        check_range(self.model.transform, self.truth, name="truth", remedy="Give data as the model was trained on.")
        check_count("n", self.n, "16 is usual.", least=2)
        check_amount("n", self.n, 3 * self.n * len(self.truth) * len(self.methods) * math.prod(event_shape))
        check_count("seed", self.seed, "Use 0, for example.", least=0)
        if self.cost is not None:
            check_count("cost", self.cost, "100 is usual.", least=2, most=MOST)
        if not (is_number(self.noise_std) and self.noise_std >= 0):
            problem = "a standard deviation is finite and not negative"
            raise ArgumentError("noise", self.noise_std, problem, "Give noise=0.05, for example.")
        if not self.methods:
            raise ArgumentError("methods", {}, "there is nothing to restore with", "Name at least one method.")
        check_condition(self.condition, self.n)
        return event_shape

    @property
    def operator(self) -> Any:
        return self.measurements[0].A

    def run(self, name: str, i: int, nfe: int | None = None) -> tuple[ScoreModel, SolverRun]:
        """The model that method ``name`` samples from after measurement i, and the run that does it.

        Raises:
            SDEToolkitError: if the method cannot do it.
        """
        method, measurement = self.methods[name], self.measurements[i]
        if isinstance(method, PosteriorMethod):
            model: ScoreModel = Posterior(self.model, measurement, method)
            return model, self.steps.run(model, nfe)
        made = method(self.model, measurement) if callable(method) else method
        if not isinstance(made, Solver):
            problem = f"a {type(made).__name__}, neither a posterior method nor a solver"
            remedy = "Give a PosteriorMethod, or a function from a model and a Measurement to a Solver."
            raise ArgumentError(f"methods[{name!r}]", method, problem, remedy)
        return self.model, self.steps.run(self.model, nfe, made)
