"""Inverse problems on which methods of posterior sampling are compared: the same denoiser and the same measurements.

The denoiser is D(x, σ) for x = x_0 + σ ε, whatever the SDE of the model. It counts its evaluations, and how often
autograd goes back through it, per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit import VESDE, GaussianMixture, ScoreModel
from sde_toolkit.guidance import Downsample, LinearOperator, Mask, Matrix

__all__ = ["NAMES", "PosteriorMethodRow", "PosteriorProblem", "load", "on_both_grids"]

NAMES = ["blur-32", "mask-2", "blur-64", "mnist-inpaint", "mnist-superres"]


class _Back(torch.autograd.Function):
    """The identity; a way back through it is counted."""

    @staticmethod
    def forward(y: Tensor, problem: PosteriorProblem) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, PosteriorProblem], output: Tensor) -> None:
        ctx.problem = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        ctx.problem.products += 1
        return g, None


@dataclass
class PosteriorProblem:
    """A prior, an operator, a noise, and measurements of draws of the prior.

    Attributes:
        model: the score model of the prior.
        truths: (M, *event), the draws; ``measurements`` (M, *measured) are A of them plus noise.
        exact: whether the model is a mixture, whose posterior is known.
        sigma_max, sigma_min: the levels between which everybody runs.
        data_variance: of an element of x_0.
    """

    name: str
    model: ScoreModel
    A: LinearOperator
    noise_std: float
    truths: Tensor
    n: int
    sigma_max: float
    sigma_min: float
    data_variance: float
    covariance: Tensor | None = None
    measurements: Tensor = field(init=False)
    grid: str = "geometric"
    calls: int = 0
    products: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        clean = self.A(self.truths)
        self.measurements = clean + self.noise_std * torch.randn(clean.shape, generator=generator)

    @property
    def exact(self) -> bool:
        return isinstance(self.model, GaussianMixture)

    def posterior_draws(self, y: Tensor, n: int, seed: int) -> Tensor:
        """Exact samples, (n, *event)."""
        truth = self.model.posterior(self.A.apply, y, self.noise_std)
        return truth.draw(n, generator=torch.Generator().manual_seed(seed))

    def level(self, u: Tensor) -> Tensor:
        """The noise level at u in [0, 1], 1 the highest: geometric between the ends, or Karras et al.'s with ρ = 7."""
        if self.grid == "geometric":
            return self.sigma_min * (self.sigma_max / self.sigma_min) ** u
        low, high = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        return (low + u * (high - low)) ** 7

    def levels(self, steps: int) -> Tensor:
        """``steps + 1`` noise levels, float64."""
        return self.level(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """D(x, σ), for x (n, *event) = x_0 + σ ε."""
        level = torch.as_tensor(sigma, dtype=torch.float64).flatten()[0]
        t = self.model.sde.inverse_half_log_snr(-level.log())
        alpha = self.model.sde.alpha(t).to(x.dtype)
        self.calls += 1
        return _Back.apply(self.model(alpha * x, t).x_0, self)


def load(name: str, mnist: Path | None) -> PosteriorProblem:
    """The problem of this name. ``mnist``: mnist.npz, for the problems on digits."""
    generator = torch.Generator().manual_seed(3)
    if name.startswith("mnist"):
        return _mnist(name, mnist)
    if name == "blur-32":
        return _blur_32(generator)
    return _mask_2(generator) if name == "mask-2" else _blur_64(generator)


def _blurred_half(D: int) -> Matrix:
    """A blur of width 1.5 on a ring; every second value is kept."""
    d = _distance(D)
    kernel = torch.exp(-0.5 * (d / 1.5) ** 2)
    return Matrix((kernel / kernel.sum(1, keepdim=True))[::2])


def _distance(D: int) -> Tensor:
    """On a ring of D places, (D, D)."""
    i = torch.arange(D, dtype=torch.float64)
    d = (i[:, None] - i[None]).abs()
    return torch.minimum(d, D - d)


def _ring_covariance(D: int) -> Tensor:
    """exp(−d/6); what a ring makes slightly negative is 0."""
    values, axes = torch.linalg.eigh(torch.exp(-_distance(D) / 6))
    return axes @ torch.diag(values.clamp(min=0)) @ axes.mT


def _blur_32(generator: torch.Generator) -> PosteriorProblem:
    C = _ring_covariance(32)
    model = GaussianMixture(torch.zeros(1, 32), VESDE(2e-3, 50.0), covariances=C[None])
    truths = model.draw(4, generator=generator)
    return PosteriorProblem("blur-32", model, _blurred_half(32), 0.05, truths, 300, 50.0, 2e-3, 1.0, C)


def _mask_2(generator: torch.Generator) -> PosteriorProblem:
    means = torch.tensor([[-2.0, 0.2], [0.3, -1.5], [0.1, 1.8]])
    model = GaussianMixture(means, VESDE(2e-3, 50.0), std=torch.tensor([0.4, 0.3, 0.5]))
    truths = torch.tensor([[0.2, -1.5], [0.2, 1.6], [-0.9, 0.2], [0.4, 2.0]])
    A = Mask(torch.tensor([1.0, 0.0]))
    return PosteriorProblem("mask-2", model, A, 0.3, truths, 300, 50.0, 2e-3, 1.5)


def _blur_64(generator: torch.Generator) -> PosteriorProblem:
    means = 1.5 * torch.randn(4, 64, generator=generator)
    C = 0.3 * _ring_covariance(64)
    model = GaussianMixture(means, VESDE(2e-3, 50.0), covariances=C.expand(4, 64, 64))
    truths = model.draw(4, generator=generator)
    return PosteriorProblem("blur-64", model, _blurred_half(64), 0.2, truths, 300, 50.0, 2e-3, 2.5)


def _mnist(name: str, file: Path | None) -> PosteriorProblem:
    if file is None:
        raise SystemExit(f"{name} needs --mnist PATH of mnist.npz")
    model = ScoreModel.from_pretrained("mnist")
    images = torch.from_numpy(np.load(file)["x_test"][[3, 2, 1, 18]]).float()[:, None]
    truths = model.transform.forward(images.to(torch.uint8) if images.max() > 1 else images)
    shape = tuple(truths.shape[1:])
    if name == "mnist-inpaint":
        known = torch.ones(shape)
        known[:, 8:20, 8:20] = 0
        A: LinearOperator = Mask(known)
    else:
        A = Downsample(4, shape)
    variance = float(truths.var())
    return PosteriorProblem(name, model, A, 0.05, truths, 8, 50.0, 5e-3, variance)


Run = Callable[[PosteriorProblem, Tensor, int, int], Tensor]
"""(problem, y, steps, seed) to samples (problem.n, *event)."""


@dataclass(frozen=True)
class PosteriorMethodRow:
    """A method with its settings; ``default``: as its library has it without being asked."""

    library: str
    name: str
    run: Run
    default: bool = False
    grid: str = "geometric"


def on_both_grids(rows: list[PosteriorMethodRow]) -> list[PosteriorMethodRow]:
    """The rows, and each on Karras et al.'s grid."""
    return rows + [replace(row, grid="karras", default=False) for row in rows]
