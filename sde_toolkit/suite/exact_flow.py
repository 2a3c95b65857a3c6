"""Where the probability flow takes given noises, solved finely and then more finely, which gives the reference's error.

Exact scores are solved in float64 by an adaptive Runge-Kutta method of order 8 (Hairer, Nørsett & Wanner 1993, DOP853).
With c² = σ² + s²α², s the size of the data, and tan φ = σ/(s α), the flow of u = x/c is

    du/dφ = cos φ ε̂ − sin φ x̂_0/s

It is bounded at both ends, also where α vanishes at t=1, and φ needs no cut near the data. Networks are solved in
float32 by a multistep method of order 3 with a corrector, on a grid that is dense both in t and in λ. Hundreds of steps
are needed: a network that is told the time through sines of high frequency is rough in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

__all__ = ["CHUNK", "METHOD", "ExactFlow", "solve_flow"]

METHOD = 2
"""Raised by whoever changes how references are solved: references of an older method are solved again."""

CHUNK = 64
"""Noises that are solved together. An adaptive method takes the same steps for all of them."""

_TOLERANCES = (1e-8, 1e-10)
_STEPS = (300, 600)


@dataclass(frozen=True, eq=False)
class ExactFlow:
    """The flow's endpoints ``x`` (n, *event) in model space, float64, and the own error of each, ``own`` (n,).

    ``own``: root mean square change per element between the solve and a finer one. ``x`` is from the finer one, so
    that its error is smaller.
    """

    x: Tensor
    own: Tensor

    @classmethod
    def joined(cls, flows: Sequence[ExactFlow]) -> ExactFlow:
        """Flows of the same model, one after the other."""
        return cls(torch.cat([flow.x for flow in flows]), torch.cat([flow.own for flow in flows]))

    def part(self, first: int, last: int) -> ExactFlow:
        """Of the noises ``first`` to ``last`` − 1."""
        return ExactFlow(self.x[first:last], self.own[first:last])

    @property
    def own_error(self) -> float:
        """Root mean square over all samples and elements."""
        return self.own.square().mean().sqrt().item()


def solve_flow(
    model: ScoreModel,
    noise: Tensor,
    *,
    steps: tuple[int, int] = _STEPS,
    tolerances: tuple[float, float] = _TOLERANCES,
) -> ExactFlow:
    """The probability flow from x = σ(1) ``noise`` at t=1 down to the data, denoised at the end if noise is left there.

    Exact scores are followed to t=0, networks to the SDE's ``sampling_end``.

    Args:
        noise: (n, *event), standard normal.
        steps: of the two solves of a network, the finer one last; ``tolerances``: of those of an exact score.
    """
    if model.has_exact_score:
        coarse, fine = (_solve_exactly(model, noise, tolerance) for tolerance in tolerances)
    else:
        coarse, fine = (_solve_network(model, noise, count) for count in steps)
    return ExactFlow(fine, (fine - coarse).square().flatten(1).mean(1).sqrt())


def _solve_network(model: ScoreModel, noise: Tensor, steps: int) -> Tensor:
    solver = Solver("fine", 0.0, Corrected(Multistep(3, FrozenX0())))
    grid = fine_grid(model.sde, steps, end=model.sde.sampling_end, sigma_data=model.sigma_data)
    start = model.sde.sigma(_float64(1.0)).to(torch.float32) * noise.float()
    return sample(model, solver, grid, x_start=start, tweedie=True).x.double()


def _solve_exactly(model: ScoreModel, noise: Tensor, tolerance: float) -> Tensor:
    from scipy.integrate import solve_ivp

    curve = _Curve(model)

    def slope(phi: float, flat: Any) -> Any:
        t = curve.time(phi)
        with torch.no_grad():
            said = model(curve.scale(t) * torch.from_numpy(flat).reshape(noise.shape), t)
        return (math.cos(phi) * said.epsilon - math.sin(phi) / curve.size * said.x_0).flatten().numpy()

    start = (model.sde.sigma(_float64(1.0)) / curve.scale(_float64(1.0)) * noise.double()).flatten().numpy()
    solved = solve_ivp(slope, (curve.first, curve.last), start, "DOP853", rtol=tolerance, atol=tolerance)
    x = curve.scale(_float64(0.0)) * torch.from_numpy(np.array(solved.y[:, -1])).reshape(noise.shape)
    if model.sde.sigma(_float64(0.0)).item() > 0:
        with torch.no_grad():
            x = model(x, _float64(0.0)).x_0
    return x


class _Curve:
    """The path (σ, s α) in polar coordinates: the angle φ, from ``first`` at t=1 to ``last`` at t=0, and c."""

    def __init__(self, model: ScoreModel) -> None:
        self.sde, self.size = model.sde, model.sigma_data
        self.first, self.last = self._angle(1.0), self._angle(0.0)

    def _angle(self, t: float) -> float:
        return math.atan2(self.sde.sigma(_float64(t)).item(), self.size * self.sde.alpha(_float64(t)).item())

    def scale(self, t: Tensor) -> Tensor:
        """c = √(σ² + s²α²)."""
        return torch.hypot(self.sde.sigma(t), self.size * self.sde.alpha(t))

    def time(self, phi: float) -> Tensor:
        """The time at which tan φ = σ/(s α)."""
        if phi >= self.first or phi <= self.last:
            return _float64(1.0 if phi >= self.first else 0.0)
        return self.sde.inverse_half_log_snr(_float64(-math.log(self.size * math.tan(phi))))


def _float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
