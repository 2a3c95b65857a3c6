"""Ancestral versions of deterministic methods: a step of the flow past the target, and back up with noise.

With x̄ = x/α and τ = σ/α, from τ_t to τ_s:

    τ_up = min(τ_s, η √(τ_s² (τ_t² − τ_s²)/τ_t²))        τ_down = √(τ_s² − τ_up²)
    x_s = α_s x̄_down + α_s τ_up z,     x̄_down: the inner method's step from τ_t to τ_down

k-diffusion's ancestral samplers; the split of the variance is DDIM's (Song et al. 2021a, eq. 16). With
``DPMSolver1`` inside this is DDIM at the paper's η, with DPMSolver2 "dpm_2_ancestral", with DPMSolver2S
"dpmpp_2s_ancestral". The flow carries p_t to the marginal at τ_down, and the noise carries that marginal to p_s. The
only error in the marginals is that of the inner method, and so is their order. The path has strong order 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators.linear_step import Form, LinearStep, PathPoint, Recording
from sde_toolkit.integrators.singlestep import DPMSolver1, SingleStep

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral(LinearStep):
    """The ancestral version of ``inner``, a one-step method of the flow in λ; η is the equation's.

    Raises:
        ArgumentError: if ``inner`` is not such a method, or draws noise.
        GridError: if τ_down lies below σ(0)/α(0) and ``inner`` evaluates the network there.
    """

    inner: LinearStep = field(default_factory=DPMSolver1)

    strong_order: ClassVar[float | None] = 1.0
    sees_alpha_sigma_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (
            isinstance(self.inner, LinearStep) and self.inner.sees_alpha_sigma_only and sum(self.inner.draws(0.0)) == 0
        ):
            problem = "not a deterministic one-step method in λ"
            raise ArgumentError("inner", self.inner, problem, "Pass DPMSolver1(), DPMSolver2(), DPMSolver2S(), ...")

    @property
    def order(self) -> int | None:  # type: ignore[override]
        """That of the inner method."""
        return self.inner.order

    @property
    def weak_order(self) -> float | None:  # type: ignore[override]
        """That of the inner method."""
        return None if self.inner.order is None else float(self.inner.order)

    @property
    def evals_per_step(self) -> int | None:  # type: ignore[override]
        """That of the inner method."""
        return self.inner.evals_per_step

    @property
    def begins_at_x(self) -> bool:  # type: ignore[override]
        """That of the inner method."""
        return self.inner.begins_at_x

    def draws(self, eta: float) -> tuple[int, ...]:
        inner = self.inner.draws(0.0)
        return (*inner[:-1], inner[-1] + (eta > 0))

    def plan(self, equation: ReverseEquation, t: Tensor, target: PathPoint) -> Recording:
        sde, eta, flow = equation.sde, equation.eta, replace(equation, eta=0.0)
        if eta == 0:
            return self.inner.plan(flow, t, target)
        r_squared = torch.exp(2 * (sde.half_log_snr(t) - target.half_log_snr))  # (τ_s/τ_t)²
        up = (eta * torch.sqrt(1 - r_squared)).clamp(max=1.0)  # τ_up/τ_s
        down = torch.sqrt(r_squared + (1 - eta**2) * (1 - r_squared)) if eta <= 1 else torch.sqrt(1 - up**2)
        sigma_down = target.sigma * down
        half_log_snr = torch.log(target.alpha) - torch.log(sigma_down)
        beyond = half_log_snr > sde.half_log_snr(torch.zeros_like(t))
        if not isinstance(self.inner, SingleStep) and bool(beyond.any()):
            i = int(beyond.int().argmax())
            raise GridError(
                "grid",
                [t[i].item(), target.time[i].item()],
                f"step {i} of {self} goes down to σ/α={(sigma_down / target.alpha)[i].item():.4g}, less than {sde} has",
                "Use more steps, a smaller eta, or Ancestral(DPMSolver2()), which stays above.",
            )
        above = PathPoint.at_half_log_snr(
            sde, torch.where(sigma_down > 0, half_log_snr, target.half_log_snr.clamp(max=0))
        )
        time = torch.where(sigma_down > 0, above.time, 0.0)
        stages, end = self.inner.plan(flow, t, PathPoint(time, target.alpha, sigma_down, half_log_snr))
        stages = [(u, _with_noise(x, torch.zeros_like(up))) for u, x in stages]
        return Recording(stages, _with_noise(end, target.sigma * up))


def _with_noise(form: Form, amount: Tensor) -> Form:
    """The form with one more draw, whose coefficient is ``amount``."""
    return torch.cat([form, amount[None]])
