"""Samplers of k-diffusion as rows of a comparison: ``k_diffusion_solver("dpmpp_2m")``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.grids import karras
from sde_toolkit.interop.foreign_names import row_name
from sde_toolkit.sampling.foreign_denoiser import Denoiser, SampleNoise
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.solvers import GridBuilder

__all__ = ["k_diffusion_functions", "k_diffusion_solver"]

_ROUNDING = 1e-5  # relative: samplers compute a level as exp(log σ), in float32


def k_diffusion_solver(
    sampler: str | Callable[..., Tensor], *, name: str | None = None, grid: GridBuilder = karras, **options: Any
) -> ForeignSolver:
    """A sampling function of k-diffusion on our noise, its evaluations counted by us.

        compare_solvers(model, [ddim(), k_diffusion_solver("dpmpp_2m"), k_diffusion_solver("lms", order=3)])

    The levels have the precision of the state, as in k-diffusion. Stochastic samplers get a Brownian motion in σ for
    each sample, from the sample's own stream: the samples do not depend on their batch. A sampler that takes
    (sigma_min, sigma_max, n), as ``sample_dpm_fast`` does, runs down to the last level above 0 and denoises there.

    Args:
        sampler: its name, with or without ``sample_``; or a function (model, x, sigmas, ...) of the same form, from
            k-diffusion or from code that follows it, such as ComfyUI.
        name: of the row. By default ``k_diffusion:dpmpp_2m`` with the options.
        grid: builds the times of the levels; a last 0 follows. By default ``grids.karras``, as k-diffusion does.
        **options: of the function, such as ``eta`` or ``s_churn``.

    Raises:
        ArgumentError: for a name that k-diffusion does not have, a function of another form, or options that it does
            not take.
        MissingDependencyError: for a name, if k-diffusion is not installed.
    """
    function = _function_named(sampler) if isinstance(sampler, str) else sampler
    run = _SamplerRun(function, dict(options))
    short = str(getattr(function, "__name__", "sampler")).removeprefix("sample_")
    return ForeignSolver(name or row_name("k_diffusion", short, options), run, "k-diffusion", grid)


def k_diffusion_functions() -> Any:
    """The module ``k_diffusion.sampling``; without the packages for images that k-diffusion imports for training.

    Raises:
        MissingDependencyError: if k-diffusion or what its samplers need is not installed.
    """
    loaded = sys.modules.get("k_diffusion.sampling")
    try:
        return loaded or importlib.import_module("k_diffusion.sampling")
    except ImportError:
        pass
    found = importlib.util.find_spec("k_diffusion")
    try:
        if found is None or found.origin is None:
            raise ModuleNotFoundError("No module named 'k_diffusion'")
        return _sampling_alone(Path(found.origin).parent)
    except ImportError as error:
        missing = getattr(error, "name", None)
        package = missing if found is not None and missing else "k-diffusion"
        raise MissingDependencyError(package, "samplers of k-diffusion", None, error) from None


def _sampling_alone(folder: Path) -> Any:
    """``sampling.py`` of the folder, its package replaced by the one function of ``utils`` that it calls."""
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = [str(folder)]
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    stand_ins = {"k_diffusion": package, "k_diffusion.utils": utils}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _function_named(name: str) -> Callable[..., Tensor]:
    module, full = k_diffusion_functions(), f"sample_{name.removeprefix('sample_')}"
    known = sorted(key.removeprefix("sample_") for key in vars(module) if key.startswith("sample_"))
    if not hasattr(module, full):
        raise ArgumentError("sampler", name, "k-diffusion has no such sampler", f"It has {', '.join(known)}.")
    function: Callable[..., Tensor] = getattr(module, full)
    return function


@dataclass(frozen=True)
class _SamplerRun:
    """``run`` of a ForeignSolver."""

    function: Callable[..., Tensor]
    options: dict[str, Any]
    takes: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parameters: Mapping[str, inspect.Parameter] = {}
        with suppress(TypeError, ValueError):  # it is no function
            parameters = inspect.signature(self.function).parameters
        remedy = "Pass a function of k-diffusion's form: (model, x, sigmas, extra_args=None, callback=None, ...)."
        names = [] if isinstance(self.function, type) else list(parameters)
        if names[2:3] not in (["sigmas"], ["sigma_min"]):
            raise ArgumentError("sampler", self.function, "not a sampling function of k-diffusion", remedy)
        if names[2] == "sigma_min" and "n" not in names:
            problem = "it chooses its own number of evaluations, and a row has a budget"
            raise ArgumentError("sampler", self.function, problem, "Choose a sampler that takes sigmas.")
        any_option = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        unknown = [] if any_option else [key for key in self.options if key not in names]
        if unknown:
            own = [key for key in names[3:] if key not in ("extra_args", "callback", "disable", "noise_sampler")]
            raise ArgumentError(unknown[0], self.options[unknown[0]], "no option of it", f"It has {', '.join(own)}.")
        object.__setattr__(self, "takes", frozenset(names))

    def __call__(self, denoise: Denoiser, sigmas: Tensor, x: Tensor, rng: SampleNoise) -> Tensor:
        levels = sigmas.to(x.device, x.dtype)
        told = dict(self.options)
        if "disable" in self.takes:
            told.setdefault("disable", True)
        if "noise_sampler" in self.takes:
            told.setdefault("noise_sampler", BrownianNoise(rng, levels[0].item()))
        if "sigmas" in self.takes:
            return self.function(denoise, x, levels, **told)
        low, high = levels[levels > 0][[-1, 0]].tolist()
        ends = len(levels) if levels[-1] > 0 else len(levels) - 1  # evaluations, the last one to denoise
        if ends > 1:
            x = self.function(denoise, x, low, high, ends - 1, **told)
        return x if levels[-1] > 0 else denoise(x, low)


class BrownianNoise:
    """k-diffusion's ``noise_sampler``: (W(σ′) − W(σ))/√|σ′ − σ| of a Brownian motion W in σ for each sample.

    W is drawn where it is asked for: beyond the known levels by increments, between them by Brownian bridges.
    """

    def __init__(self, rng: SampleNoise, start: float) -> None:
        self.rng = rng
        self.known: dict[float, Tensor | float] = {start: 0.0}

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        first, second = float(sigma), float(sigma_next)
        before, after = self._value(first), self._value(second)
        difference: Tensor = torch.as_tensor(after - before)
        return difference / abs(second - first) ** 0.5

    def _value(self, level: float) -> Tensor | float:
        level = next((known for known in self.known if math.isclose(known, level, rel_tol=_ROUNDING)), level)
        if level not in self.known:
            below = max((known for known in self.known if known < level), default=None)
            above = min((known for known in self.known if known > level), default=None)
            if below is None or above is None:
                near = above if below is None else below
                mean, variance = self.known[near], abs(level - near)  # type: ignore[index, operator]
            else:
                part = (level - below) / (above - below)
                mean = (1 - part) * self.known[below] + part * self.known[above]
                variance = (level - below) * (1 - part)
            self.known[level] = mean + variance**0.5 * self.rng()
        return self.known[level]
