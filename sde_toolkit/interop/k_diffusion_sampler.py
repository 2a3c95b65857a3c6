"""Our solvers as a sampling function of k-diffusion, which ComfyUI and others call as well.

    sample_dpmpp_3m = to_k_diffusion(dpmpp_3m())
    x_0 = sample_dpmpp_3m(denoiser, x, sigmas, extra_args={"class_cond": labels}, callback=show)

What k-diffusion calls x is x_0 + σ ε: the state of :class:`~sde_toolkit.EDMSDE`, on which α = 1. A list of sigmas is a
grid, by their order alone. A last 0 is the step to the denoised x̂_0, with one evaluation at the level before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.interop.sigmas import is_straight, times_of_sigmas
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import NoiseRatio, ScaledTime
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sampling.loop import Options, Step, solve
from sde_toolkit.sde import EDMSDE, SDE
from sde_toolkit.solvers import Solver

__all__ = ["to_k_diffusion"]


def to_k_diffusion(solver: Solver, sde: SDE | None = None, *, sigma_data: float = 1.0) -> Callable[..., Tensor]:
    """A function ``(model, x, sigmas, extra_args=None, callback=None, disable=None)``, as k-diffusion's ``sample_...``.

    It steps as ``sample`` does with ``ScoreModel.from_denoiser(model)`` on the grid of the sigmas:

        model        D(x, sigma, **extra_args) is x̂_0, for x (B, *event) and sigma (B,)
        x            the state at the first sigma, (B, *event)
        sigmas       decreasing. A last 0 is a last evaluation at the sigma before, whose x̂_0 is the result
        callback     is given a dict at the first evaluation of each step: x, i, sigma, sigma_hat, denoised
        disable      of the progress bar: False shows one; None, one in a terminal
        generator    draws the noise of stochastic solvers; without it torch's global generator, as in k-diffusion

    Args:
        solver: any solver.
        sde: the path of the model. None: ``EDMSDE()``, whose σ run from 0.002 to 80. ``FlowMatching()``: x is
            (1 − σ) x_0 + σ ε and sigmas are times, as ComfyUI has it for Flux and Stable Diffusion 3.
        sigma_data: √E[x_0²], for solvers that are in units of it (:func:`~sde_toolkit.edm_stochastic`).

    Raises:
        ArgumentError: for what is not a solver; when called, for what the solver refuses.
        GridError: when called, for sigmas that do not decrease, or are beyond the SDE.
    """
    if not isinstance(solver, Solver):
        raise ArgumentError("solver", solver, "not a Solver", "Call the preset, ddim(), or build Solver(...).")
    path = EDMSDE() if sde is None else sde
    time_input = ScaledTime() if is_straight(path) else NoiseRatio()

    @torch.no_grad()
    def sampler(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if len(sigmas) < 2:
            return x
        times, to_zero = _times(path, sigmas)
        told = _Denoiser(model, dict(extra_args or {}), x.dtype, sigmas, callback)
        score_model = ScoreModel(told, path, "x0", time_input=time_input, sigma_data=sigma_data)
        equation = ReverseEquation(score_model, solver.eta)
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        if len(times) == 1:
            return equation.denoise(x.to(dtype), times[0]).to(x.dtype)

        def noise() -> Tensor:
            where = x.device if generator is None else generator.device
            return torch.randn(x.shape, generator=generator, dtype=dtype, device=where).to(x.device)

        def start(first: int, last: int) -> tuple[Tensor, Callable[[int], Noise]]:
            return x.to(dtype, copy=True), lambda step: noise

        options = Options(
            dtype, x.device, tweedie=to_zero, callback=None if callback is None else told.step_ends,
            progress=_shows_bar(disable),
        )  # fmt: skip
        return solve(equation, solver, times, len(x), start, options).x.to(x.dtype)

    sampler.__name__ = f"sample_{solver.name}"
    return sampler


def _times(path: SDE, sigmas: Tensor) -> tuple[Tensor, bool]:
    """As :func:`times_of_sigmas`; sigmas beyond the path are refused with the way to another one."""
    try:
        return times_of_sigmas(path, sigmas)
    except GridError as error:
        if not error.argument.startswith("sigmas["):
            raise
        remedy = "Make a function for the levels of the model: to_k_diffusion(solver, EDMSDE(sigma_min, sigma_max))."
        raise GridError(error.argument, error.value, f"{path} has no such noise level", remedy) from None


class _Denoiser:
    """The denoiser as a network, which reports the first evaluation of each step to ``callback``."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        extra_args: dict[str, Any],
        dtype: torch.dtype,
        sigmas: Tensor,
        callback: Callable[[dict[str, Any]], object] | None,
    ) -> None:
        self.model, self.extra_args, self.dtype = model, extra_args, dtype
        self.sigmas, self.callback = sigmas, callback
        self.step, self.reported = 0, False

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        x, sigma = x.to(self.dtype), sigma.to(self.dtype)
        denoised = self.model(x, sigma, **self.extra_args)
        if self.callback is not None and not self.reported:
            self.reported = True
            now = {"x": x, "i": self.step, "sigma": self.sigmas[self.step], "sigma_hat": sigma[0]}
            self.callback({**now, "denoised": denoised})
        return denoised

    def step_ends(self, step: Step) -> None:
        """The next evaluation is the first of the next step."""
        self.step, self.reported = step.index + 1, False


def _shows_bar(disable: bool | None) -> bool:
    if disable is None:
        return sys.stderr.isatty() and find_spec("tqdm") is not None
    return not disable
