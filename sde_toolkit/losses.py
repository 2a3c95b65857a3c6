"""Denoising score matching: one regression, seen in any parameterisation, under any weighting.

    L = E_t w(t) E |ŷ(x_t, t) − y|² / D,    x_t = α x_0 + σ ε,   y = a x_0 + b ε     (:mod:`sde_toolkit.prediction`)

    target       w        name
    epsilon      1        L_simple (Ho et al. 2020, eq. 14)
    score        σ²       the same (Song et al. 2021, section 3.3)
    score        g²       likelihood weighting (Song, Durkan et al. 2021, eq. 7)
    edm          1        EDM's loss (Karras et al. 2022, eq. 8), but for the times: theirs are lognormal in σ

The target need not be what the network outputs: its output is converted first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.broadcasting import expand_to
from sde_toolkit.errors import ArgumentError
from sde_toolkit.prediction import Kind, check_kind
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.sde import SDE, Time

__all__ = ["DenoisingScoreMatching", "constant", "g_squared", "sigma_squared", "stratified_times"]

Weighting = Callable[[SDE, Time], Tensor]


def constant(sde: SDE, t: Time) -> Tensor:
    """w = 1."""
    return torch.ones_like(t)


def g_squared(sde: SDE, t: Time) -> Tensor:
    """w = g(t)²: with the score target, likelihood weighting."""
    return sde.g(t) ** 2


def sigma_squared(sde: SDE, t: Time) -> Tensor:
    """w = σ_t²: with the score target, Song et al.'s original λ(t)."""
    return sde.sigma(t) ** 2


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """The loss of each sample, shape (B,), averaged over the D elements of its event.

    Raises:
        ArgumentError: if ``target`` is not a parameterisation.
    """

    target: Kind = "epsilon"
    weighting: Weighting = constant

    def __post_init__(self) -> None:
        check_kind(self.target, "target")

    def __call__(self, model: ScoreModel, x_0: Tensor, t: Tensor, noise: Tensor, condition: Any = None) -> Tensor:
        """Shapes: x_0 and noise (B, *event) in model space, t (B,)."""
        t = t.to(torch.float64)
        predicted = model(model.sde.perturb(x_0, t, noise), t, condition).view(self.target)
        a, b = (expand_to(c.to(x_0.dtype), x_0) for c in model.readout(t).basis(self.target))
        errors = (predicted - (a * x_0 + b * noise)).square().reshape(x_0.shape[0], -1).mean(1)
        return self.weighting(model.sde, t).to(errors.dtype) * errors


def stratified_times(
    n: int, t_min: float, *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """n times in [t_min, 1], one uniform draw shifted by k/n: low discrepancy, each uniform by itself.

    Kingma et al. 2021, "Variational Diffusion Models", appendix I.1. Shape (n,), float64.

    Raises:
        ArgumentError: unless 0 <= t_min < 1.
    """
    if not 0 <= t_min < 1:
        raise ArgumentError("t_min", t_min, "training times start inside [0, 1)", "Use the SDE's likelihood_end.")
    u = torch.rand((), generator=generator, dtype=torch.float64, device=device)
    spread = (u + torch.arange(n, dtype=torch.float64, device=device) / n) % 1
    return t_min + (1 - t_min) * spread
