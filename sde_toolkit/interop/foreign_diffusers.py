"""Schedulers of diffusers as rows of a comparison: ``diffusers_solver("DPMSolverMultistepScheduler")``."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, GridError, MissingDependencyError
from sde_toolkit.grids import from_sigmas
from sde_toolkit.interop.diffusers_levels import Language, language_of, own_levels, ratio_of, scheduler_at
from sde_toolkit.interop.foreign_names import row_name
from sde_toolkit.sampling.foreign_denoiser import Denoiser, SampleNoise
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.sde import SDE
from sde_toolkit.solvers import GridBuilder

__all__ = ["diffusers_solver"]

_NEVER_TO_0 = ("DEIS", "SASolver")
_UNLESS_SAID = {"clip_sample": False, "skip_prk_steps": True}


def diffusers_solver(
    scheduler: Any,
    *,
    name: str | None = None,
    grid: GridBuilder | None = None,
    last: Literal["denoise", "step"] | None = None,
    step: Mapping[str, Any] | None = None,
    **config: Any,
) -> ForeignSolver:
    """A scheduler of diffusers on our noise, its evaluations counted by us.

        compare_solvers(model, [unipc(), diffusers_solver("UniPCMultistepScheduler", solver_order=3)])

    It is driven as pipelines drive it. Its training levels are those of the model's SDE, whatever its betas. What it
    draws comes from the samples' own streams, and the samples do not depend on their batch. diffusers computes in
    float32.

    Args:
        scheduler: a class of diffusers or its name; or an object, whose config is kept.
        name: of the row. By default ``diffusers:UniPCMultistep[solver_order=3]``.
        grid: builds the times of the levels. None: the levels that the scheduler chooses by its own spacing.
        last: how to get from the last level above 0 to 0. ``"step"``: by a step of the scheduler; ``"denoise"``: by one
            evaluation there. None: a step, except for DEIS, SA-Solver and noise prediction, which have none to 0.
        step: arguments of its ``step``, such as ``{"eta": 1.0}``.
        **config: options of the class. Where no object is given, ``clip_sample`` is False by default, and
            ``skip_prk_steps`` True.

    Raises:
        ArgumentError: for a name that diffusers does not have, a scheduler whose levels cannot be chosen, or options
            that it does not take.
        MissingDependencyError: for a name, if diffusers is not installed.
    """
    kind, told = _kind_and_config(scheduler, config)
    run = _SchedulerRun(kind, told, dict(step or {}), last)
    short, given = kind.__name__.removesuffix("Scheduler"), {**config, **(step or {})}
    return ForeignSolver(name or row_name("diffusers", short, given), run, "diffusers", grid or _OwnGrid(kind, told))


def _kind_and_config(scheduler: Any, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class, and the arguments to make it with."""
    kind = _scheduler_named(scheduler) if isinstance(scheduler, str) else scheduler
    if not isinstance(kind, type):
        kind = type(scheduler)
    if not hasattr(kind, "set_timesteps") or not hasattr(kind, "step"):
        remedy = 'Pass its name, "DPMSolverMultistepScheduler" for example.'
        raise ArgumentError("scheduler", scheduler, "not a scheduler of diffusers that steps", remedy)
    takes = [key for key in inspect.signature(kind.__init__).parameters if key != "self"]
    for key, value in config.items():
        if key not in takes:
            raise ArgumentError(key, value, f"no option of {kind.__name__}", f"It has {', '.join(takes)}.")
    if isinstance(scheduler, str | type):
        own = {key: value for key, value in _UNLESS_SAID.items() if key in takes}
    else:
        own = {key: value for key, value in dict(scheduler.config).items() if key in takes}
    told = {**own, **config}
    if told.get("skip_prk_steps") is False:
        problem = "its Runge-Kutta steps need levels between those of the grid"
        raise ArgumentError("skip_prk_steps", False, problem, "Pass skip_prk_steps=True.")
    language_of(kind, told)
    return kind, told


def _scheduler_named(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependencyError("diffusers", "its schedulers", "interop", error) from None
    full = f"{name.removesuffix('Scheduler')}Scheduler"
    kind = getattr(diffusers, full, None)
    if kind is None:
        problem, remedy = "diffusers has no such scheduler", "Pass the name of a class, UniPCMultistepScheduler."
        raise ArgumentError("scheduler", name, problem, remedy)
    return kind


@dataclass(frozen=True)
class _OwnGrid:
    """The grid builder of a scheduler's own spacing.

    Its training levels are those of the SDE: at i/N where the SDE has N steps, else at 1000 equal times.
    """

    kind: Any
    config: dict[str, Any]

    @property
    def __name__(self) -> str:  # as reports name a grid
        return "its own"

    def __call__(self, sde: SDE, steps: int, start: float = 1.0) -> Tensor:
        N = int(getattr(sde, "N", 1000))
        trained = torch.exp(-sde.half_log_snr(torch.linspace(1 / N, 1.0, N, dtype=torch.float64) * start))
        if bool(trained[-1].isinf()):
            raise GridError("start", start, "σ/α is infinite there", "Start a little below t=1.")
        lowest = torch.exp(-sde.half_log_snr(torch.zeros((), dtype=torch.float64))).item()
        return from_sigmas(sde, own_levels(self.kind, self.config, steps + 1, trained, lowest))


@dataclass(frozen=True)
class _SchedulerRun:
    """``run`` of a ForeignSolver."""

    kind: Any
    config: dict[str, Any]
    step: dict[str, Any]
    last: str | None

    def __post_init__(self) -> None:
        takes = inspect.signature(self.kind.step).parameters
        for key, value in self.step.items():
            if key not in takes:
                raise ArgumentError(f"step[{key!r}]", value, f"its step has no argument {key}", "Leave it out.")
        if self.last not in (None, "denoise", "step"):
            raise ArgumentError("last", self.last, "there is no such end", 'Pass "denoise" or "step", or leave it out.')

    @property
    def denoises_last(self) -> bool:
        """Whether the last evaluation is the result."""
        if self.last is not None:
            return self.last == "denoise"
        predicts_noise = str(self.config.get("algorithm_type", "")).endswith(("dpmsolver", "noise_prediction"))
        return predicts_noise or self.config.get("predict_x0") is False or self.kind.__name__.startswith(_NEVER_TO_0)

    def __call__(self, denoise: Denoiser, sigmas: Tensor, x: Tensor, rng: SampleNoise) -> Tensor:
        finish = bool(sigmas[-1] == 0) and self.denoises_last
        levels = sigmas[:-1] if finish else sigmas
        if len(levels) > 1:
            x = self._stepped(denoise, levels, x, rng)
        return denoise(x, levels[-1]) if finish else x

    def _stepped(self, denoise: Denoiser, levels: Tensor, y: Tensor, rng: SampleNoise) -> Tensor:
        language = language_of(self.kind, self.config)
        scheduler = scheduler_at(self.kind, self.config, levels, y.device)
        told = dict(self.step)
        if hasattr(scheduler, "noise_sampler_seed"):  # its noise is a Brownian tree for each sample
            scheduler.noise_sampler_seed = rng.seeds()
        elif hasattr(scheduler, "noise_sampler"):
            told["generator"] = [torch.Generator().manual_seed(seed) for seed in rng.seeds()]
        state = y * _state_scale(language, levels[0].item())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchsde")  # of ends that rounding moved
            for t in scheduler.timesteps:
                ratio = ratio_of(scheduler, language, t)
                y = state / _state_scale(language, ratio)
                output = _output(scheduler, language, y, denoise(y, ratio), ratio)
                state = scheduler.step(output, t, state, **told).prev_sample
        return state / _state_scale(language, levels[-1].item())


def _state_scale(language: Language, ratio: float) -> float:
    """The scheduler's state over x/α."""
    return {"vp": 1 / math.sqrt(1 + ratio**2), "flow": 1 / (1 + ratio)}.get(language, 1.0)


def _output(scheduler: Any, language: Language, y: Tensor, x_0: Tensor, ratio: float) -> Tensor:
    """What the scheduler's network would answer where the denoised estimate is x_0."""
    kind = scheduler.config.get("prediction_type", "v_prediction" if language == "vp" else "flow_prediction")
    if language == "edm":
        data = scheduler.config.sigma_data
        size = math.sqrt(ratio**2 + data**2)
        answer = (x_0 - (data / size) ** 2 * y) * (size / (ratio * data))
        return answer if kind == "epsilon" else -answer
    if kind == "sample":
        return x_0
    epsilon = (y - x_0) / ratio
    if language == "flow":
        return epsilon - x_0
    return (epsilon - ratio * x_0) / math.sqrt(1 + ratio**2) if kind == "v_prediction" else epsilon
