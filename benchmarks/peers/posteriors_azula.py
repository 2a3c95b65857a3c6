"""azula's posterior denoisers with its own samplers, at their defaults and at other settings.

Its DPS divides by one norm for the whole batch, so that its step depends on the number of samples: it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.diffpir import DiffPIRDenoiser
from azula.guidance.jfps import JFPSDenoiser
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.tmpd import TMPDenoiser
from azula.linalg.covariance import FullCovariance, IsotropicCovariance
from azula.noise import Schedule
from azula.sample import DDIMSampler
from peers.posterior_problems import PosteriorMethodRow, PosteriorProblem, on_both_grids
from torch import Tensor

__all__ = ["rows"]


class _Levels(Schedule):
    """The levels of the problem, α = 1."""

    def __init__(self, problem: PosteriorProblem) -> None:
        self.problem = problem

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha(t), self.sigma(t)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.problem.level(t)


class _Denoiser(Denoiser):
    """The problem's denoiser, on flat events."""

    def __init__(self, problem: PosteriorProblem) -> None:
        super().__init__()
        self.problem, self.schedule = problem, _Levels(problem)

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        x = x_t.reshape(len(x_t), *self.problem.A.event_shape)
        return DiracPosterior(self.problem.denoise(x, self.schedule.sigma(t)).flatten(1))


def rows(problem: PosteriorProblem) -> list[PosteriorMethodRow]:
    """Its methods."""
    prior = _prior(problem)
    noise = IsotropicCovariance(torch.tensor(problem.noise_std**2))
    variance = problem.noise_std**2
    makers: dict[str, tuple[bool, Callable[..., Denoiser]]] = {}
    for solver in ("gmres", "cg"):
        for k in (1, 2, 3, 5):
            makers[f"MMPS {solver} {k}"] = (
                solver == "gmres" and k == 1,
                partial(MMPSDenoiser, cov_y=noise, solver=solver, iterations=k),
            )
    for k in (1, 3, 5):
        makers[f"JFPS cg {k}"] = (k == 1, partial(JFPSDenoiser, cov_y=noise, cov_x=prior, iterations=k))
    for weight in (10.0, 1.0):
        for k in (1, 5):
            how = {"var_y": variance, "lmbda": weight, "iterations": k}
            makers[f"DiffPIR λ={weight:g} gmres {k}"] = (weight == 10 and k == 1, partial(DiffPIRDenoiser, **how))
    makers["TMPD"] = (True, partial(TMPDenoiser, var_y=variance))
    found = [
        PosteriorMethodRow("azula", f"{name}, η={eta}", partial(_run, make, eta), default)
        for name, (default, make) in makers.items()
        for eta in (0, 1)
    ]
    pgdm = [PosteriorMethodRow("azula", f"PGDM, η={eta}", partial(_run_pgdm, eta), True) for eta in (0, 1)]
    return on_both_grids(found + pgdm)


def _prior(problem: PosteriorProblem) -> Any:
    if problem.covariance is None:
        return IsotropicCovariance(torch.tensor(problem.data_variance))
    values, axes = torch.linalg.eigh(problem.covariance)
    return FullCovariance(axes.float(), values.clamp(min=1e-6).float())


def _apply(problem: PosteriorProblem, x: Tensor) -> Tensor:
    return problem.A.apply(x.reshape(len(x), *problem.A.event_shape)).flatten(1)


def _start(problem: PosteriorProblem, seed: int) -> Tensor:
    shape = (problem.n, problem.truths[0].numel())
    torch.manual_seed(seed)  # its samplers draw from torch's global numbers
    return problem.sigma_max * torch.randn(shape)


def _run(
    make: Callable[..., Denoiser], eta: int, problem: PosteriorProblem, y: Tensor, steps: int, seed: int
) -> Tensor:
    guided = make(_Denoiser(problem), y.float().flatten()[None], partial(_apply, problem))
    drawn = DDIMSampler(guided, eta=float(eta), steps=steps, silent=True)(_start(problem, seed))
    return drawn.reshape(problem.n, *problem.A.event_shape)


def _run_pgdm(eta: int, problem: PosteriorProblem, y: Tensor, steps: int, seed: int) -> Tensor:
    def inverse(e: Tensor) -> Tensor:
        return problem.A.pseudo_inverse(e.reshape(len(e), *problem.A.measured_shape)).flatten(1)

    how = {"A": partial(_apply, problem), "A_inv": inverse, "eta": float(eta), "steps": steps, "silent": True}
    drawn = PGDMSampler(_Denoiser(problem), y.float().flatten()[None], **how)(_start(problem, seed))
    return drawn.reshape(problem.n, *problem.A.event_shape)
