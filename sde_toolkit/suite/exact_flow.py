"""Where the probability flow takes given noises, solved finely and then more finely, which gives the reference's error.

Exact scores are solved in float64 by an adaptive Runge-Kutta method of order 8 (Hairer, Nørsett & Wanner 1993, DOP853).
With c² = σ² + s²α², s the size of the data, and tan φ = σ/(s α), the flow of u = x/c is

    du/dφ = cos φ ε̂ − sin φ x̂_0/s

It is bounded at both ends, also where α vanishes at t=1, and φ needs no cut near the data. Networks are solved in
float32 by a multistep method of order 3 with a corrector, on a grid that is dense both in t and in λ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.calibration.reference import fine_grid
from sde_toolkit.integrators import Corrected, FrozenX0, Multistep
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import Solver

__all__ = ["METHOD", "ExactFlow", "solve_flow"]

METHOD = 1
"""Raised by whoever changes how references are solved: references of an older method are solved again."""

_TOLERANCES = (1e-7, 1e-9)
_STEPS = (150, 300)


@dataclass(frozen=True, eq=False)
class ExactFlow:
    """The flow's endpoints ``x`` (n, *event) in model space, float64, and the own error of each, ``own`` (n,).

    ``own``: root mean square change per element between the solve and a finer one. ``x`` is from the finer one, so
    that its error is smaller.
    """

    x: Tensor
    own: Tensor

    @property
    def own_error(self) -> float:
        """Root mean square over all samples and elements."""
        return self.own.square().mean().sqrt().item()


def solve_flow(model: ScoreModel, noise: Tensor, condition: Any = None) -> ExactFlow:
    """The probability flow from x = σ(1) ``noise`` at t=1 down to the data, denoised at the end if noise is left there.

    Exact scores are followed to t=0, networks to the SDE's ``sampling_end``.

    Args:
        noise: (n, *event), standard normal.
        condition: handed to the network.
    """
    solve = _solve_exactly if model.has_exact_score else _solve_network
    coarse, fine = (solve(model, noise, finer, condition) for finer in (False, True))
    own = (fine - coarse).square().flatten(1).mean(1).sqrt()
    return ExactFlow(fine, own)


def _solve_exactly(model: ScoreModel, noise: Tensor, finer: bool, condition: Any, end: float = 0.0) -> Tensor:
    from scipy.integrate import solve_ivp

    sde, s, shape = model.sde, model.sigma_data, noise.shape
    first, last = _angle(model, 1.0), _angle(model, end)

    def slope(phi: float, flat: np.ndarray) -> np.ndarray:
        t = _time(model, phi, first, last, end)
        scale = math.hypot(sde.sigma(t).item(), s * sde.alpha(t).item())
        with torch.no_grad():
            said = model(scale * torch.from_numpy(flat).reshape(shape), t, condition)
        return (math.cos(phi) * said.epsilon - math.sin(phi) / s * said.x_0).flatten().numpy()

    one = torch.ones((), dtype=torch.float64)
    sigma, alpha = sde.sigma(one).item(), sde.alpha(one).item()
    start = noise.double() * sigma / math.hypot(sigma, s * alpha)
    tolerance = _TOLERANCES[finer]
    solved = solve_ivp(slope, (first, last), start.flatten().numpy(), "DOP853", rtol=tolerance, atol=tolerance)
    t = end * one
    reached = torch.from_numpy(solved.y[:, -1].copy()).reshape(shape)
    x = reached * math.hypot(sde.sigma(t).item(), s * sde.alpha(t).item())
    if sde.sigma(t).item() > 0:
        with torch.no_grad():
            x = model(x, t, condition).x_0
    return x


def _angle(model: ScoreModel, t: float) -> float:
    time = torch.tensor(t, dtype=torch.float64)
    return math.atan2(model.sde.sigma(time).item(), model.sigma_data * model.sde.alpha(time).item())


def _time(model: ScoreModel, phi: float, first: float, last: float, end: float) -> Tensor:
    """The time at which tan φ = σ/(s α)."""
    if phi >= first or phi <= last:
        return torch.tensor(1.0 if phi >= first else end, dtype=torch.float64)
    lambda_t = -math.log(model.sigma_data * math.tan(phi))
    return model.sde.inverse_half_log_snr(torch.tensor(lambda_t, dtype=torch.float64))


def _solve_network(model: ScoreModel, noise: Tensor, finer: bool, condition: Any) -> Tensor:
    sde, solver = model.sde, Solver("fine", 0.0, Corrected(Multistep(3, FrozenX0())))
    grid = fine_grid(sde, _STEPS[finer], end=sde.sampling_end, sigma_data=model.sigma_data)
    start = sde.sigma(torch.tensor(1.0, dtype=torch.float64)).to(torch.float32) * noise.float()
    return sample(model, solver, grid, x_start=start, condition=condition, tweedie=True).x.double()
