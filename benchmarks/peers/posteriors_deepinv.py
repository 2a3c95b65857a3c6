"""deepinv's PosteriorDiffusion with each of its terms for a measurement, at their defaults and at other settings."""

from __future__ import annotations

from functools import partial
from typing import Any

import deepinv
import torch
from deepinv.sampling import (
    AncestralSolver,
    DPSDataFidelity,
    EulerSolver,
    MomentMatchingDataFidelity,
    PiGDMDataFidelity,
    PosteriorDiffusion,
    VarianceExplodingDiffusion,
)
from peers.posterior_problems import PosteriorMethodRow, PosteriorProblem, on_both_grids
from torch import Tensor

__all__ = ["rows"]


class _Denoiser(deepinv.models.Denoiser):
    """The problem's denoiser on images (B, C, H, W)."""

    def __init__(self, problem: PosteriorProblem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, x: Tensor, sigma: Any, **kwargs: Any) -> Tensor:
        said = self.problem.denoise(x.reshape(len(x), *self.problem.A.event_shape), sigma)
        return said.reshape(x.shape)


def rows(problem: PosteriorProblem) -> list[PosteriorMethodRow]:
    """Its terms, with its exponential solver and with its default, Euler-Maruyama at α = 0.25."""
    terms: dict[str, tuple[bool, Any]] = {
        "DPS norm 1": (True, partial(DPSDataFidelity, weight=1.0)),
        "DPS norm 10": (False, partial(DPSDataFidelity, weight=10.0)),
        "DPS annealed 1": (False, partial(DPSDataFidelity, weight=1.0, guidance="annealed")),
        "PiGDM": (True, PiGDMDataFidelity),
        "moment matching cg 3": (True, MomentMatchingDataFidelity),
        "moment matching cg 10": (False, partial(MomentMatchingDataFidelity, cg_max_iter=10)),
    }
    solvers = {
        "ancestral α=0": (AncestralSolver, 0.0),
        "ancestral α=1": (AncestralSolver, 1.0),
        "Euler α=0.25": (EulerSolver, 0.25),
    }
    rows = [
        PosteriorMethodRow("deepinv", f"{name}, {how}", partial(_run, make, *solvers[how]), default and "Euler" in how)
        for name, (default, make) in terms.items()
        for how in solvers
    ]
    return on_both_grids(rows)


def _run(make: Any, solver: Any, alpha: float, problem: PosteriorProblem, y: Tensor, steps: int, seed: int) -> Tensor:
    shape, measured = _image_shape(problem.A.event_shape), _image_shape(problem.A.measured_shape)
    denoiser = _Denoiser(problem)

    def forward(x: Tensor, **kwargs: Any) -> Tensor:
        return problem.A.apply(x.reshape(len(x), *problem.A.event_shape)).reshape(len(x), *measured)

    def adjoint(e: Tensor, **kwargs: Any) -> Tensor:
        return problem.A.adjoint(e.reshape(len(e), *problem.A.measured_shape)).reshape(len(e), *shape)

    physics = deepinv.physics.LinearPhysics(
        A=forward, A_adjoint=adjoint, noise_model=deepinv.physics.GaussianNoise(problem.noise_std)
    )
    term = make(denoiser=denoiser)
    sde = VarianceExplodingDiffusion(
        denoiser=denoiser, sigma_min=problem.sigma_min, sigma_max=problem.sigma_max, alpha=alpha, dtype=torch.float32
    )
    levels = (problem.levels(steps) / problem.sigma_min).log()
    times = (levels / levels[0]).float()
    sampler = PosteriorDiffusion(
        data_fidelity=term, denoiser=denoiser, sde=sde, solver=solver(timesteps=times, rng=torch.Generator()),
        dtype=torch.float32, minus_one_one=False,
    )  # fmt: skip
    drawn = sampler(
        y.float().reshape(1, *measured).expand(problem.n, *measured), physics,
        x_init=(problem.n, *shape), seed=seed, denoise_output=False,
    )  # fmt: skip
    return drawn.reshape(problem.n, *problem.A.event_shape)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W): what deepinv calls an image."""
    return (1,) * (3 - len(shape)) + tuple(shape)
