"""Times of an SDE from what other frameworks call them: k-diffusion's and diffusers' sigmas, and timesteps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.grids import from_sigmas
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["is_straight", "shifted", "time_told", "times_of_sigmas"]

_HALVINGS = 60


def is_straight(sde: SDE) -> bool:
    """Whether x_t = (1 − t) x_0 + t ε, the path of flow matching."""
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    return torch.allclose(sde.sigma(t), t) and torch.allclose(sde.alpha(t), 1 - t)


def times_of_sigmas(sde: SDE, sigmas: Any) -> tuple[Tensor, bool]:
    """The times (at least one) of decreasing sigmas, and whether a 0 follows them, which has no time of its own.

    On the straight path of flow matching a sigma is the time t; on all others it is σ/α.

    Raises:
        GridError: for sigmas that do not decrease, or that the SDE does not have.
    """
    levels = torch.as_tensor(sigmas).detach().to("cpu", torch.float64).flatten()
    ends_at_zero = len(levels) > 0 and levels[-1].item() == 0
    levels = levels[:-1] if ends_at_zero else levels
    if not bool((levels > 0).any()):
        remedy = "Pass a decreasing list of them, such as [80.0, 2.5, 0.0]."
        raise GridError("sigmas", torch.as_tensor(sigmas).tolist(), "no noise level above 0 is in it", remedy)
    if is_straight(sde):
        levels = levels / (1 - levels)
    if len(levels) > 1:
        return from_sigmas(sde, levels), ends_at_zero
    only = from_sigmas(sde, torch.cat([levels, torch.exp(-sde.half_log_snr(torch.zeros(1, dtype=torch.float64)))]))
    return only[:1], ends_at_zero


def shifted(sde: SDE, grid: Tensor, mu: float) -> Tensor:
    """The grid whose σ/α = t/(1 − t) is e^μ times as large, on the path of flow matching.

    diffusers shifts so by the number of pixels (Esser et al. 2024, "Scaling Rectified Flow Transformers", eq. 23).

    Raises:
        ArgumentError: for another path.
    """
    if not is_straight(sde):
        problem = f"it shifts the times of flow matching, and the path is {sde}"
        raise ArgumentError("mu", mu, problem, "Leave it out.")
    factor = math.exp(mu)
    return factor * grid / (1 + (factor - 1) * grid)


def time_told(model: ScoreModel, timestep: Tensor) -> Tensor:
    """The time t at which the network is told ``timestep``, float64, by bisection; the last one, if there are several.

    An index that the model rounds counts as the index itself.
    """
    time_input: Any = model.time_input
    if getattr(time_input, "whole", False):
        time_input = replace(time_input, whole=False)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=timestep.device)
    rises = bool(time_input(model.sde, ends).diff() > 0)
    low, high = torch.zeros_like(timestep), torch.ones_like(timestep)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        told = time_input(model.sde, middle)
        later = told <= timestep if rises else told >= timestep
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    return high
