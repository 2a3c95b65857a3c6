"""A solve whose network is evaluated by the caller, one evaluation at a time.

A step of an integrator is a function that calls the network. A pipeline of another framework works the other way
round: it evaluates its network, and hands the answer over. So a step is computed until it asks for an evaluation that
has not been made. When that answer is there, the step is computed again from its beginning, with the same answers and
the same draws of noise. Steps are pure, so the numbers are those of :func:`sde_toolkit.sample`. Arithmetic alone is
repeated, and a step of one evaluation repeats none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Table
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.models.variance_channels import twice_the_channels
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sampling.automatic import Plan
from sde_toolkit.solvers import Solver

__all__ = ["StagedSolve", "check_fixed_steps", "without_network"]


class _AnswerMissingError(Exception):
    """A step asks for an evaluation at ``x`` that has not been made."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class _Answer:
    """A network that answers what the caller's network said."""

    said: Tensor

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        return self.said


def without_network(model: ScoreModel) -> ScoreModel:
    """A model with the path, the parameterisation and the time input of ``model``, and no network."""
    return ScoreModel(
        _Answer(),
        model.sde,
        model.prediction,
        time_input=model.time_input,
        sigma_data=model.sigma_data,
        learned_variance=model.learned_variance,
        sign=model.sign,
    )


def check_fixed_steps(solver: Solver) -> int:
    """The evaluations of a step. Refuses a solver that chooses its own steps, or begins below the grid's first time.

    Raises:
        ArgumentError: naming it.
    """
    stages = solver.integrator.evals_per_step
    if stages is None:
        problem = "it chooses its own steps, and a pipeline wants to know all times before the first evaluation"
        remedy = "Take a solver of fixed steps, such as dpmpp_2m() or heun()."
        raise ArgumentError("solver", solver.name, problem, remedy)
    if solver.integrator.first_evaluation is not None:
        problem = "it moves the start before its first evaluation, and a pipeline evaluates its network first"
        raise ArgumentError("solver", solver.name, problem, "Take one without a GaussianStart.")
    return stages


class StagedSolve:
    """The steps of a plan, then its last denoising, stage by stage. A stage is one evaluation of the network.

    Args:
        model: the path, the parameterisation and the time input. Its network is not evaluated.
        plan: solver, grid and last denoising. A grid of one time has no steps.

    Attributes:
        inputs: (stages, k), float64: what the network is told of the time at each stage, as ``model.network_inputs``.

    Raises:
        ArgumentError: for an integrator that chooses its own steps; one that adds noise before the first evaluation of
            all; whatever the integrator refuses.
        GridError: if the integrator cannot run on the grid.
    """

    def __init__(self, model: ScoreModel, plan: Plan) -> None:
        solver = plan.solver
        self.plan = plan
        self._model = without_network(model)
        self._answer: Any = self._model.network
        self._equation = ReverseEquation(self._model, solver.eta, evaluate=self._look_up)
        solver.integrator.check(self._equation)
        many = len(plan.grid) > 1
        self._table: Table | None = solver.integrator.prepare(self._equation, plan.grid) if many else None
        self._rows = self._table
        self._factors, self.inputs = self._rehearse()
        if self._factors and self._factors[0] is not None:
            problem = "it adds noise before its first evaluation, and a pipeline evaluates its network first"
            remedy = "Begin the grid at t=1, where churn adds no noise, or take a solver without churn."
            raise ArgumentError("solver", solver.name, problem, remedy)
        self._step, self._state = 0, None
        self._x = self._handed_over = torch.empty(0)
        self._answers: list[Tensor] = []
        self._draws: list[Tensor] = []

    def _rehearse(self) -> tuple[list[float | None], Tensor]:
        """What each step makes of x before its first evaluation, and :attr:`inputs`.

        For a step that adds noise first, it is the factor of x there; None for others. The steps are taken on two
        samples: one with all its draws 0, one with all 1.
        """
        model, asked = self._model, []
        x, state = torch.ones(2, 1, dtype=torch.float64), None
        z = torch.tensor([[0.0], [1.0]], dtype=x.dtype)
        self._answer.said = torch.zeros(twice_the_channels(x) if model.learned_variance else x.shape, dtype=x.dtype)

        def listen(x_j: Tensor, inputs: Inputs, condition: Any, call: Callable[..., Any] = model.output) -> Any:
            asked.append((x_j, torch.stack(inputs)))
            return call(x_j, inputs, condition)

        equation, integrator = replace(self._equation, evaluate=listen), self.plan.solver.integrator
        stages = check_fixed_steps(self.plan.solver)
        factors: list[float | None] = []
        for row in self._table or ():
            before = len(asked)
            _, state = integrator.step(equation, x, row, state, z.clone)
            if len(asked) - before != stages:
                problem = f"its steps evaluate the network {len(asked) - before} times, not {stages}"
                raise ArgumentError("solver", self.plan.solver.name, problem, "Correct its evals_per_step.")
            factor, with_noise = asked[before][0].flatten().tolist()
            factors.append(factor if abs(with_noise - factor) > 1e-9 else None)
        if self.plan.tweedie:
            equation.denoise(x, self.plan.grid[-1])
        return factors, torch.stack([inputs for _, inputs in asked])

    def start(self, x: Tensor) -> None:
        """Begin with the state ``x`` (B, *event) at the first time of the grid."""
        self._rows = None if self._table is None else self._table.to(x.device, x.dtype)
        self._step, self._state, self._x = 0, None, x
        self._answers, self._draws = [], []

    def proceed(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The state at which the network is evaluated next, after its answer ``y`` at ``x``; at last, the end state.

        Args:
            x: what was returned before, or what the caller made of it. It replaces the state at the beginning of a
                step. Inside a step it is not used.
            y: the network's answer there.
            noise: draws of the shape of x.
        """
        if not self._answers:
            factor = self._factor
            self._x = x if factor is None else self._x + (x - self._handed_over) / factor
        self._answers.append(y)
        self._handed_over = self._compute(noise)
        if not self._answers and self._factor is not None:
            self._handed_over = self._compute(noise)
        return self._handed_over

    @property
    def _factor(self) -> float | None:
        """Of x at the first evaluation of the present step, if noise is added before it."""
        return self._factors[self._step] if self._step < len(self._factors) else None

    def _compute(self, noise: Noise) -> Tensor:
        """The state where the present step needs its next evaluation; where it ends, if all its answers are there."""
        draws = iter(tuple(self._draws))

        def replayed() -> Tensor:
            z = next(draws, None)
            if z is None:
                z = noise()
                self._draws.append(z)
            return z

        self._asked = 0
        try:
            if self._rows is not None and self._step < len(self._rows):
                row, integrator = self._rows[self._step], self.plan.solver.integrator
                self._x, self._state = integrator.step(self._equation, self._x, row, self._state, replayed)
            else:
                self._x = self._equation.denoise(self._x, self.plan.grid[-1])
        except _AnswerMissingError as missing:
            return missing.x
        self._step += 1
        self._answers, self._draws = [], []
        return self._x

    def _look_up(self, x: Tensor, inputs: Inputs, condition: Any, call: Callable[..., Any] | None = None) -> Any:
        """The next evaluation of the present step, from the answers."""
        if self._asked == len(self._answers):
            raise _AnswerMissingError(x)
        self._answer.said = self._answers[self._asked]
        self._asked += 1
        return (call or self._model.output)(x, inputs, condition)
