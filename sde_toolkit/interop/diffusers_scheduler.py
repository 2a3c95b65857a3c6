"""A scheduler of diffusers around a solver; ``to_diffusers`` makes it.

A pipeline evaluates its network at ``timesteps``, one after another, and hands each answer to ``step``. A solver of
several evaluations per step has several timesteps per step, as diffusers' own Heun scheduler has. The arithmetic is
that of :func:`sde_toolkit.sample`, with the same coefficients (:mod:`.staged_solve`).

    timesteps              what the network is told of the time, evaluation by evaluation
    order                  evaluations per step
    scale_model_input      c_in x for networks of EDM's raw output, x for all others
    init_noise_sigma       σ at the first time
    step                   the state at which the network is evaluated next
    add_noise              α x + σ noise at any timestep
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.interop.diffusers_training import Training
from sde_toolkit.interop.scheduler_config import (
    CONFIG_FILE,
    model_as_data,
    model_from_data,
    solver_as_data,
    solver_from_data,
)
from sde_toolkit.interop.sigmas import is_straight, shifted, time_told, times_of_sigmas
from sde_toolkit.interop.staged_solve import StagedSolve, check_fixed_steps, without_network
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import Plan, usual_plan
from sde_toolkit.solvers import Solver

try:
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import FrozenDict
    from diffusers.schedulers.scheduling_utils import SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise MissingDependencyError("diffusers", "a scheduler of diffusers", "interop", error) from None

__all__ = ["SolverScheduler"]

_PREDICTION_TYPES = {"x0": "sample", "v": "v_prediction", "velocity": "flow_prediction"}


class _Progress(NamedTuple):
    """Steps in progress: a solve, which of the timesteps comes next, and whether it has the first state."""

    solve: StagedSolve
    position: int
    started: bool = False


class SolverScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler around a solver. :func:`~sde_toolkit.interop.to_diffusers` makes it and explains the arguments.

    Its config is plain data, so that ``save_pretrained`` and ``from_pretrained`` work, of the scheduler and of its
    pipeline. ``solver`` and ``model`` may be what the config holds. A solver or an SDE of your own is noted in the
    config, and refused when it is read. ``looked_up`` is what pipelines look up in the config beside that.
    """

    config_name: Any = CONFIG_FILE.name
    has_compatibles = False

    def __init__(
        self,
        solver: Solver | dict[str, Any],
        model: ScoreModel | dict[str, Any],
        grid: Tensor | Sequence[float] | None = None,
        tweedie: bool | None = None,
        looked_up: dict[str, Any] | None = None,
    ) -> None:
        self._solver = solver_from_data(solver) if isinstance(solver, dict) else solver
        self._model = without_network(model_from_data(model) if isinstance(model, dict) else model)
        self.order = check_fixed_steps(self._solver)
        self._grid = None if grid is None else grids.check_grid(grid)
        self._tweedie = tweedie
        self.register_to_config(
            solver=solver_as_data(self._solver),
            model=model_as_data(self._model),
            grid=None if self._grid is None else self._grid.tolist(),
            tweedie=tweedie,
            looked_up=looked_up or {},
        )
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self.begin_index: int | None = None
        self._solve: StagedSolve | None = None
        self._progress: _Progress | None = None
        if self._grid is not None:
            self.set_timesteps(len(self._grid) - 1)

    @property
    def config(self) -> Any:
        """What is saved, and what pipelines look up here."""
        own, model = super().config, self._model
        usual = {
            "num_train_timesteps": getattr(model.time_input, "N", 1000),
            "trained_betas": getattr(model.sde, "betas", None),
            "prediction_type": _PREDICTION_TYPES.get(model.prediction, model.prediction),
            "variance_type": "learned_range" if model.learned_variance else "fixed_small",
        }
        leaves_grid_here = {"use_flow_sigmas": True}
        return FrozenDict({**usual, **own["looked_up"], **own, **leaves_grid_here})

    @property
    def training(self) -> Training:
        """How the network was trained, as :func:`~sde_toolkit.interop.from_diffusers` asks every scheduler."""
        model = self._model
        return Training(
            model.sde,
            model.prediction,
            model.time_input,
            model.sign,
            model.sigma_data if model.prediction == "edm" else None,
            "range" if model.learned_variance else False,
            is_straight(model.sde),
        )

    @property
    def init_noise_sigma(self) -> float:
        """σ at the first time. A pipeline multiplies its standard normal start by it."""
        first = torch.ones((), dtype=torch.float64) if self._solve is None else self._solve.plan.grid[0]
        return self._model.sde.sigma(first).item()

    @property
    def step_index(self) -> int | None:
        """The position of the next evaluation in ``timesteps``; None before the first and after the last."""
        return None if self._progress is None else self._progress.position

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The position in ``timesteps`` at which the next run begins. Without it, its first timestep is looked up."""
        self.begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the grid, and with it ``timesteps``.

        Args:
            num_inference_steps: of the usual grid. A last denoising is not one of them, as ``steps`` of ``sample``.
            device: of ``timesteps``.
            sigmas: noise levels instead, decreasing: t on the path of flow matching, σ/α on others. After the last
                level above 0 an evaluation denoises.
            mu: logarithm of the factor by which σ/α of every time is multiplied, on the path of flow matching. A grid
                that was given to the scheduler stays as it is.

        Raises:
            ArgumentError, GridError: for a number of steps that the given grid does not have, and as ``sample``.
        """
        plan = self._plan(num_inference_steps, sigmas, mu)
        self._solve = StagedSolve(self._model, plan)
        told = self._solve.inputs[:, 0]
        are_whole = bool((told == told.round()).all())
        self.timesteps = told.to(torch.int64 if are_whole else torch.float32).to(device or "cpu")
        self.num_inference_steps = len(plan.grid) - 1
        self.begin_index = self._progress = None

    def _plan(self, steps: int | None, sigmas: Sequence[float] | None, mu: float | None) -> Plan:
        if self._grid is not None:
            n = len(self._grid) - 1
            if sigmas is not None or steps != n:
                name, value = ("num_inference_steps", steps) if sigmas is None else ("sigmas", sigmas)
                remedy = f"Pass num_inference_steps={n}, or make the scheduler without grid=."
                raise ArgumentError(name, value, f"the scheduler was given a grid of {n} steps", remedy)
            return Plan(self._solver, self._grid, bool(self._tweedie))
        if (steps is None) == (sigmas is None):
            problem, remedy = "one of them says what the grid is", "Pass num_inference_steps=20, for example."
            raise ArgumentError("num_inference_steps, sigmas", (steps, sigmas), problem, remedy)
        if sigmas is not None:
            plan = Plan(self._solver, times_of_sigmas(self._model.sde, sigmas)[0], True)
        else:
            plan = usual_plan(self._model, self._solver, steps=steps)
            plan = plan if self._tweedie is None else replace(plan, tweedie=self._tweedie)
        return plan if mu is None else replace(plan, grid=shifted(self._model.sde, plan.grid, mu))

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network sees of ``sample``: c_in x for EDM's raw output, x for all others."""
        if not self._model.scales_input:
            return sample
        run = self._progress = self._progress or self._begin(timestep)
        place = len(self.timesteps) - len(run.solve.inputs)
        return sample * run.solve.inputs[run.position - place, 1].item()

    def _begin(self, timestep: Any) -> _Progress:
        """The run that begins with this timestep, or where :meth:`set_begin_index` said."""
        if self._solve is None:
            problem = "the scheduler has no timesteps yet"
            raise ArgumentError("timestep", timestep, problem, "Call set_timesteps(num_inference_steps) first.")
        index = self.begin_index
        if index is None:
            places = (self.timesteps == torch.as_tensor(timestep, device=self.timesteps.device)).nonzero()
            places = places[places % self.order == 0]
            if not len(places):
                problem = "no step of the scheduler begins with it"
                raise ArgumentError("timestep", timestep, problem, "Loop over scheduler.timesteps.")
            index = int(places[0])
        step, inside = divmod(index, self.order)
        if inside or not 0 <= index < len(self.timesteps):
            problem = f"a run begins with a step, and every step has {self.order} timesteps"
            raise ArgumentError("begin_index", index, problem, f"Pass a multiple of {self.order}.")
        if step == 0:
            return _Progress(self._solve, index)
        plan = self._solve.plan
        return _Progress(StagedSolve(self._model, replace(plan, grid=plan.grid[step:])), index)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> Any:
        """The state at which the network is evaluated next; after the last timestep, the result.

        Args:
            model_output: the network's answer at ``sample`` and ``timestep``.
            timestep: is looked up at the beginning of a run; then the timesteps follow one another.
            sample: what the step before returned, or what the caller made of it.
            generator: draws the noise of stochastic solvers; one for all samples, or one for each. None: torch's
                global generator.
            return_dict: False for a tuple of one tensor.
            **ignored: arguments of other schedulers, such as ``eta``. The solver has its own η.
        """
        run = self._progress or self._begin(timestep)
        x = sample if sample.dtype == torch.float64 else sample.to(torch.float32)
        if not run.started:
            run.solve.start(x)

        def noise() -> Tensor:
            return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        y = self._with_variance(model_output.to(x.dtype), x)
        found = run.solve.proceed(x, y, noise).to(sample.dtype)
        done = run.position + 1 == len(self.timesteps)
        self._progress = None if done else _Progress(run.solve, run.position + 1, started=True)
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _with_variance(self, y: Tensor, x: Tensor) -> Tensor:
        """The answer with its channels of the variance; those of v = 0 where a pipeline has cut them off."""
        if not self._model.learned_variance or y.shape != x.shape:
            return y
        none = -1.0 if self._model.learned_variance == "range" else 0.0
        return torch.cat([y, torch.full_like(y, none)], dim=1)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α x + σ noise at the timesteps (B,) or 0-dim, whether or not they are the scheduler's own."""
        t = time_told(self._model, torch.as_tensor(timesteps, dtype=torch.float64, device=noise.device))
        alpha, sigma = (expand_to(c(t).to(noise.dtype), noise) for c in (self._model.sde.alpha, self._model.sde.sigma))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise`, as pipelines of flow matching call it."""
        return self.add_noise(sample, noise, timestep)
