"""Adaptive methods for the probability flow, through torchdiffeq and scipy.

The flow is integrated in λ = log(α/σ), where it reads dx/dλ = (dx/dt) / λ′ with λ′ = −g²/(2σ²): one smooth
curve for every SDE, also for those with kinks in t, and the same number of evaluations where t is smooth.

Steps are shared by the batch, the accuracy is promised to each sample: an accepted step has, for every
sample, a root mean square of error/(atol + rtol |x|) of at most one. Intermediate grid times only say where
the solution is wanted, so that the natural grid is ``[start, end]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.integrators.base import Integrator, Row
from sde_toolkit.integrators.stepping import check_tolerances, lambda_range
from sde_toolkit.noise import Noise

__all__ = ["Scipy", "TorchDiffEq"]


@dataclass(frozen=True)
class _Adaptive(Integrator):
    """Tolerances and the evaluation limit that both adaptive integrators share."""

    method: str = ""
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 10_000

    order: ClassVar[int | None] = None
    evals_per_step: ClassVar[int | None] = None
    methods: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.method not in self.methods:
            raise ArgumentError("method", self.method, "not an adaptive method", f"Use one of {self.methods}.")
        check_tolerances(self.rtol, self.atol, self.max_nfe)

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Tensor:
        """λ at the two ends of every interval; the coefficients depend on where the method steps."""
        lambdas = equation.sde.half_log_snr(grid)
        return self.table(equation, grid, lambdas[:-1], lambdas[1:])

    def _field(self, equation: ReverseEquation, ends: tuple[float, float]) -> Callable[[float, Tensor], Tensor]:
        """dx/dλ, with its evaluations limited and its values looked at."""
        sde, used = equation.sde, 0
        low, high = lambda_range(sde, ends)

        def velocity(lambda_t: float, x: Tensor) -> Tensor:
            nonlocal used
            t = sde.inverse_half_log_snr(min(max(lambda_t, low), high))
            if used >= self.max_nfe:
                raise MaxEvaluationsError(self.max_nfe, t.item())
            used += 1
            rate = -(sde.g(t) ** 2) / (2 * sde.sigma(t) ** 2)
            v = equation.drift(x, t) / rate.to(x.device, x.dtype)
            if not bool(v.isfinite().all()):
                bad = (~v.isfinite()).reshape(len(v), -1).any(1).nonzero().flatten().tolist()
                raise NonFiniteError(
                    f"the velocity is not finite for {len(bad)} of {len(v)} samples (first: {bad[0]})",
                    step=used,
                    t=t.item(),
                    remedy="Check the network's weights and output; the step size is not to blame.",
                )
            return v

        return velocity


@dataclass(frozen=True)
class TorchDiffEq(_Adaptive):
    """An adaptive method of torchdiffeq (Chen et al. 2018), by default Dormand-Prince 5(4).

    The error norm is the largest root mean square of a sample, not that of the whole batch, and the last
    step ends at the end of the interval instead of passing it.
    """

    method: str = "dopri5"
    methods: ClassVar[tuple[str, ...]] = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")

    def step(self, equation: ReverseEquation, x: Tensor, row: Row, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        from torchdiffeq import odeint

        ends = torch.stack(row).to(torch.float64)
        velocity = self._field(equation, (row[0].item(), row[1].item()))
        path = odeint(
            lambda lambda_t, x: velocity(lambda_t.item(), x),
            x,
            ends,
            rtol=self.rtol,
            atol=self.atol,
            method=self.method,
            options={"norm": _largest_sample_rms, "step_t": ends[1:], "dtype": torch.float64},
        )
        return path[-1], None


def _largest_sample_rms(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).square().mean(1).sqrt().max()


@dataclass(frozen=True)
class Scipy(_Adaptive):
    """An adaptive method of ``scipy.integrate.solve_ivp``, by default RK45, computed in float64.

    scipy controls the root mean square over the whole batch; both tolerances are divided by √B, which
    bounds that of each sample.
    """

    method: str = "RK45"
    methods: ClassVar[tuple[str, ...]] = ("RK45", "RK23", "DOP853", "LSODA", "Radau", "BDF")

    def step(self, equation: ReverseEquation, x: Tensor, row: Row, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        from scipy.integrate import solve_ivp

        start, end = (value.item() for value in row)
        velocity = self._field(equation, (start, end))

        def field(lambda_t: float, flat: np.ndarray) -> np.ndarray:
            state = torch.from_numpy(flat).to(x.device, x.dtype).reshape(x.shape)
            return velocity(lambda_t, state).double().cpu().numpy().ravel()

        tighten = 1 / math.sqrt(len(x))
        solution = solve_ivp(
            field,
            (start, end),
            x.double().cpu().numpy().ravel(),
            method=self.method,
            rtol=self.rtol * tighten,
            atol=self.atol * tighten,
            t_eval=[end],
        )
        if not solution.success:
            raise NonFiniteError(
                f"solve_ivp gave up: {solution.message}",
                step=solution.nfev,
                t=equation.sde.inverse_half_log_snr(start).item(),
                remedy="Loosen rtol and atol, or end the grid further from t=0.",
            )
        return torch.from_numpy(solution.y[:, -1]).to(x.device, x.dtype).reshape(x.shape), None
