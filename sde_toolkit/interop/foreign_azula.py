"""Samplers of azula as rows of a comparison: ``azula_solver("DDIM", eta=0.5)``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.grids import uniform
from sde_toolkit.interop.foreign_names import row_name
from sde_toolkit.sampling.foreign_denoiser import Denoiser, SampleNoise
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.solvers import GridBuilder

__all__ = ["azula_solver"]

_OF_THE_ROW = ("start", "stop", "steps", "silent", "dtype", "device")


def azula_solver(
    sampler: str | Callable[..., Any],
    *,
    name: str | None = None,
    grid: GridBuilder = uniform,
    last: Literal["denoise", "step"] = "denoise",
    **options: Any,
) -> ForeignSolver:
    """A sampler of azula on our noise, its evaluations counted by us.

        compare_solvers(model, [ddim(), azula_solver("zAB", order=3)])

    azula's samplers see σ/α only, up to scale. So they run at α = 1 with σ from the grid. What they draw by
    ``torch.randn_like`` comes from the samples' own streams, and the samples do not depend on their batch.

    Args:
        sampler: a class of ``azula.sample``, or its name with or without ``Sampler``; or any function
            ``(denoiser, steps, silent, **options)`` that returns a sampler.
        name: of the row. By default ``azula:zAB[order=3]``.
        grid: builds the times of the levels. By default equal steps in the model's own time, as azula's.
        last: how to get from the last level above 0 to 0. ``"denoise"``: by one evaluation there. ``"step"``: by a step
            of the sampler itself, which some of them cannot make.
        **options: of the class, such as ``eta`` or ``order``.

    Raises:
        ArgumentError: for a name that azula does not have, and what is not a class or function.
        MissingDependencyError: for a name, if azula is not installed.
    """
    made = _class_named(sampler) if isinstance(sampler, str) else sampler
    if not callable(made):
        raise ArgumentError("sampler", sampler, "not a sampler of azula", 'Pass its name, "DDIM" for example.')
    if last not in ("denoise", "step"):
        raise ArgumentError("last", last, "there is no such end", 'Pass "denoise" or "step".')
    _check_options(made, options)
    short = str(getattr(made, "__name__", "sampler")).removesuffix("Sampler")
    return ForeignSolver(
        name or row_name("azula", short, options), _SamplerOfAzula(made, dict(options), last), "azula", grid
    )


def _class_named(name: str) -> Callable[..., Any]:
    try:
        samplers: Any = importlib.import_module("azula.sample")
    except ImportError as error:
        raise MissingDependencyError("azula", "samplers of azula", None, error) from None
    known = [key.removesuffix("Sampler") for key in samplers.__all__ if key not in ("Sampler",)]
    if name.removesuffix("Sampler") not in known:
        raise ArgumentError("sampler", name, "azula has no such sampler", f"It has {', '.join(known)}.")
    made: Callable[..., Any] = getattr(samplers, f"{name.removesuffix('Sampler')}Sampler")
    return made


def _check_options(made: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse options that the class does not have; ``steps``, ``start`` and the like are the row's own."""
    own = list(inspect.signature(made).parameters)
    named = [key for key in own if key not in ("denoiser", "kwargs", *_OF_THE_ROW)]
    for key, value in options.items():
        if key not in named:
            remedy = f"It has {', '.join(named)}." if named else "It has none."
            raise ArgumentError(key, value, f"no option of {getattr(made, '__name__', 'the sampler')}", remedy)


@dataclass(frozen=True)
class _SamplerOfAzula:
    """``run`` of a ForeignSolver."""

    made: Callable[..., Any]
    options: dict[str, Any]
    last: str

    def __call__(self, denoise: Denoiser, sigmas: Tensor, x: Tensor, rng: SampleNoise) -> Tensor:
        finish = self.last == "denoise" and bool(sigmas[-1] == 0)
        levels = (sigmas[:-1] if finish else sigmas).to(x.dtype)
        if len(levels) > 1:
            schedule = _Schedule(levels.to(x.device))
            sampler = self.made(
                _DenoiserOfAzula(denoise, schedule),
                steps=len(levels) - 1,
                silent=True,
                dtype=torch.float64,
                **self.options,
            )
            x = sampler(x)
        return denoise(x, levels[-1]) if finish else x


@dataclass(frozen=True, eq=False)
class _Schedule:
    """α = 1 and σ from the levels: azula's time 1 is the first of them, 0 the last."""

    levels: Tensor

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.levels[((1 - t) * (len(self.levels) - 1)).round().long()]
        return torch.ones_like(sigma), sigma


@dataclass(frozen=True, eq=False)
class _DenoiserOfAzula:
    """What azula's samplers ask of a denoiser: ``schedule``, and a call whose result has ``mean``."""

    denoise: Denoiser
    schedule: _Schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=self.denoise(x_t, self.schedule(t)[1]))
