"""Adaptive methods for the probability flow, through torchdiffeq and scipy.

The flow is integrated in λ = log(α/σ), where it reads dx/dλ = (dx/dt) / λ′ with λ′ = −g²/(2σ²): one smooth
curve for every SDE, also for those with kinks in t, and the same number of evaluations where t is smooth.

The whole batch takes the same steps, and each sample meets the tolerance: in an accepted step the root mean square
of error/(atol + rtol |x|) is at most one for every sample. Intermediate grid times do not set the steps: they only say
where the solution is wanted. ``[start, end]`` is therefore enough; ``states`` gives the solution at many times of one
solve.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.integrators.integrator import DenseIntegrator
from sde_toolkit.integrators.stepping import Statistics, absolute_tolerance, check_tolerances, lambda_range
from sde_toolkit.integrators.tables import StepRow
from sde_toolkit.models.calls import counted
from sde_toolkit.noise.streams import Noise

__all__ = ["Scipy", "TorchDiffEq"]

STAGES = {"RK45": 6, "RK23": 3, "DOP853": 12}
"""Evaluations of an attempt, for the methods of scipy whose attempts all cost the same."""

DENSE = ("dopri5", "adaptive_heun")
"""Methods of torchdiffeq whose interpolant is as good as their steps."""


class _Flow:
    """dx/dλ between two λ. It limits the number of evaluations and refuses values that are not finite."""

    def __init__(self, equation: ReverseEquation, lambdas: Tensor, max_nfe: int) -> None:
        self._equation, self._max_nfe = equation, max_nfe
        self._low, self._high = lambda_range(equation.sde, (lambdas[0].item(), lambdas[-1].item()))
        self.used = 0

    def __call__(self, lambda_t: float, x: Tensor) -> Tensor:
        sde = self._equation.sde
        t = sde.inverse_half_log_snr(min(max(lambda_t, self._low), self._high))
        if self.used >= self._max_nfe:
            raise MaxEvaluationsError(self._max_nfe, t.item())
        rate = -(sde.g(t) ** 2) / (2 * sde.sigma(t) ** 2)
        drift, (evaluations, _) = counted(self._equation.drift, x, t)
        self.used += evaluations
        v = drift / rate.to(x.device, x.dtype)
        if not bool(v.isfinite().all()):
            bad = (~v.isfinite()).reshape(len(v), -1).any(1).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"the velocity is not finite for {len(bad)} of {len(v)} samples (first: {bad[0]})",
                step=self.used,
                t=t.item(),
                remedy="Check the network's weights and output; the step size is not to blame.",
            )
        return v


class _Counted:
    """The flow as a function for torchdiffeq, which calls one of the two callbacks after every attempted step."""

    def __init__(self, flow: _Flow) -> None:
        self.flow, self.accepted, self.rejected = flow, 0, 0

    def __call__(self, lambda_t: Tensor, x: Tensor) -> Tensor:
        return self.flow(lambda_t.item(), x)

    def callback_accept_step(self, lambda_t: Tensor, x: Tensor, h: Tensor) -> None:
        self.accepted += 1

    def callback_reject_step(self, lambda_t: Tensor, x: Tensor, h: Tensor) -> None:
        self.rejected += 1


@dataclass(frozen=True)
class _Adaptive(DenseIntegrator):
    """Tolerances and the evaluation limit that both adaptive integrators share.

    ``atol`` is in the units of x; None is rtol · σ_d, σ_d being the model's ``sigma_data``.
    """

    method: str = ""
    rtol: float = 1e-5
    atol: float | None = None
    max_nfe: int = 10_000

    methods: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.method not in self.methods:
            raise ArgumentError("method", self.method, "not an adaptive method", f"Use one of {self.methods}.")
        check_tolerances(self.rtol, self.atol, self.max_nfe)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        path, _ = self._solve(equation, x, torch.stack(row).to("cpu", torch.float64))
        return path[-1], None

    def states(self, equation: ReverseEquation, x: Tensor, times: Tensor) -> tuple[Tensor, Statistics]:
        return self._solve(equation, x, self.lambdas(equation, times))

    @abstractmethod
    def _solve(self, equation: ReverseEquation, x: Tensor, lambdas: Tensor) -> tuple[Tensor, Statistics]:
        """The solution at all ``lambdas`` (float64, on the CPU). x is the state at the first."""


@dataclass(frozen=True)
class TorchDiffEq(_Adaptive):
    """An adaptive method of torchdiffeq (Chen et al. 2018), by default Dormand-Prince 5(4).

    ``rtol``, ``atol``: tolerances of a step, ``atol`` in the units of x; None is rtol · σ_d, σ_d being the model's
    ``sigma_data``. The error norm is the largest root mean square of a sample, not that of the whole batch, and the
    last step ends at the end of the interval instead of passing it. ``states`` refuses times between the first and
    the last for dopri8, bosh3 and fehlberg2: there torchdiffeq interpolates less accurately than it steps.
    """

    method: str = "dopri5"
    methods: ClassVar[tuple[str, ...]] = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")

    def _solve(self, equation: ReverseEquation, x: Tensor, lambdas: Tensor) -> tuple[Tensor, Statistics]:
        from torchdiffeq import odeint

        if len(lambdas) > 2 and self.method not in DENSE:
            raise ArgumentError(
                "method",
                self.method,
                "between its steps the error of torchdiffeq's interpolant is hundreds of times the tolerance",
                f"Use TorchDiffEq with one of {DENSE}, PerSample() or Scipy().",
            )
        field = _Counted(_Flow(equation, lambdas, self.max_nfe))
        lambdas = lambdas.to(x.device)
        path: Tensor = odeint(
            field,
            x,
            lambdas,
            rtol=self.rtol,
            atol=absolute_tolerance(self, equation),
            method=self.method,
            options={"norm": _largest_sample_rms, "step_t": lambdas[-1:], "dtype": torch.float64},
        )
        return path, Statistics.shared(len(x), field.accepted, field.rejected, field.flow.used)


@torch.no_grad()  # it chooses step lengths, and these are not differentiated
def _largest_sample_rms(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).square().mean(1).sqrt().max()


@dataclass(frozen=True)
class Scipy(_Adaptive):
    """An adaptive method of ``scipy.integrate.solve_ivp``, by default RK45, computed in float64.

    ``rtol``, ``atol``: tolerances of a step, ``atol`` in the units of x; None is rtol · σ_d, σ_d being the model's
    ``sigma_data``. scipy controls the root mean square over the whole batch. Both tolerances are divided by √B, so
    that each sample meets them. In ``states``, DOP853 takes three more evaluations in every step that contains one of
    the times; the other methods take none. LSODA, Radau and BDF do not report how many steps they rejected.

    Raises:
        ArgumentError: if gradients are needed: autograd cannot follow scipy.
    """

    method: str = "RK45"
    methods: ClassVar[tuple[str, ...]] = ("RK45", "RK23", "DOP853", "LSODA", "Radau", "BDF")

    def _solve(self, equation: ReverseEquation, x: Tensor, lambdas: Tensor) -> tuple[Tensor, Statistics]:
        import scipy.integrate

        flow = _Flow(equation, lambdas, self.max_nfe)
        self._refuse_gradients(x)

        def field(lambda_t: float, flat: np.ndarray) -> np.ndarray:
            v = flow(lambda_t, torch.from_numpy(flat).to(x.device, x.dtype).reshape(x.shape))
            self._refuse_gradients(v)
            return v.double().cpu().numpy().ravel()

        start, *wanted, end = lambdas.tolist()
        tighten, sign = 1 / math.sqrt(len(x)), math.copysign(1.0, end - start)
        solver = getattr(scipy.integrate, self.method)(
            field,
            start,
            x.detach().double().cpu().numpy().ravel(),
            end,
            rtol=self.rtol * tighten,
            atol=absolute_tolerance(self, equation) * tighten,
        )
        path: list[np.ndarray] = []
        accepted = tried = 0
        while solver.status == "running":
            before = flow.used
            message = solver.step()
            if solver.status == "failed":
                raise NonFiniteError(
                    f"{self.method} gave up: {message}",
                    step=flow.used,
                    t=equation.sde.inverse_half_log_snr(solver.t).item(),
                    remedy="Loosen rtol and atol, or end the grid further from t=0.",
                )
            accepted, tried = accepted + 1, tried + flow.used - before
            inside = [value for value in wanted[len(path) :] if sign * (solver.t - value) > 0]
            path += list(solver.dense_output()(np.array(inside)).T) if inside else []
        stages = STAGES.get(self.method)
        rejected = None if stages is None else tried // stages - accepted
        later = torch.from_numpy(np.stack([*path, solver.y])).to(x.device, x.dtype).reshape(-1, *x.shape)
        return torch.cat([x[None], later]), Statistics.shared(len(x), accepted, rejected, flow.used)

    def _refuse_gradients(self, value: Tensor) -> None:
        if torch.is_grad_enabled() and value.requires_grad:
            problem = "autograd cannot follow scipy, and x or the network needs gradients"
            raise ArgumentError("integrator", self, problem, "Use TorchDiffEq() or PerSample(), or torch.no_grad().")
