"""The step of a weighted ensemble: weigh, resample where weights are uneven, and take an exponential step.

A particle x_t has the estimate x̂_0 of its proposal and x̄_0 of its reference path. With the step's ρ, κ and draw z,

    x_s = α_s x′_0 + ρ (x_t − α_t x′_0)/σ_t + κ z        x′_0 = x̄_0 + c (x̄_0 − x̄_0 before) + d,    d = x̂_0 − x̄_0

    log w ← log w + log ψ_s(x_s) − log ψ_t(x_t) − ½‖δ‖² − δ·z        δ = (α_s − ρ α_t/σ_t) d/κ

−½‖δ‖² − δ·z is the log-ratio of the two normal densities of x_s, that of the reference path over that of the proposal.
c is that of a multistep method: without it the reference path is of order 1, with it of weak order 2. The last step is
Tweedie's: x_0 = x̄_0 at the last time above σ = 0. The product of all ratios of ψ is then the potential at x_0.

Wu et al. 2023 (TDS), algorithm 1, here for any η > 0 and with a reference path of order 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.ensemble_weights import Weights, doubled
from sde_toolkit.guidance.step_operator import inside_of
from sde_toolkit.guidance.systematic_resampling import rows_at
from sde_toolkit.guidance.weight_rules import ParticleProposal, WeightRule
from sde_toolkit.integrators.exponential import eta_family
from sde_toolkit.integrators.frozen import FrozenX0
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.multistep import Multistep
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.score_model import Inputs

__all__ = ["EnsembleNoise", "WeightedStep", "repeated"]


class EnsembleNoise(Protocol):
    """The random numbers of n ensembles."""

    def __call__(self) -> Tensor:
        """The next standard normal draw, (n, K, *event)."""

    def offsets(self) -> Tensor:
        """The next uniform numbers of the resampling, (n,) float64."""


@dataclass(frozen=True, eq=False)
class WeightedStep(Integrator):
    """The exponential step of ensembles x (n, K, *event); their weights are the integrator's state.

    ``rule``: what is proposed and weighted. ``resample_below``: as a part of K, at which effective size an ensemble is
    resampled. ``reference_order``: 1 or 2, that of the reference path. The noise is an :class:`EnsembleNoise`.
    """

    rule: WeightRule
    resample_below: float = 0.5
    reference_order: int = 2

    strong_order: ClassVar[float | None] = None
    evals_per_step: ClassVar[int | None] = 1
    sees_alpha_sigma_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.reference_order not in (1, 2):
            raise ArgumentError("order", self.reference_order, "the reference path has order 1 or 2", "Pass order=2.")

    @property
    def order(self) -> int | None:  # type: ignore[override]
        """That of the reference path."""
        return self.reference_order

    @property
    def weak_order(self) -> float | None:  # type: ignore[override]
        """That of the reference path."""
        return float(self.reference_order)

    def check(self, equation: ReverseEquation) -> None:
        """Refuse the flow.

        Raises:
            ArgumentError: for η = 0.
        """
        if equation.eta == 0:
            problem = "without noise, copies of a resampled particle would never part"
            raise ArgumentError("eta", equation.eta, problem, "Use eta=1, the usual one, or any other above 0.")

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """One row per step, and Tweedie's as the last: in place of a step to σ = 0, or after the last step."""
        sde = equation.sde
        noisy = grid if sde.sigma(grid[-1]) > 0 else grid[:-1]  # the times with an evaluation, Tweedie's the last
        t, s = noisy, noisy[1:]
        alpha_t, sigma_t, lambda_t = sde.alpha(t), sde.sigma(t), sde.half_log_snr(t)
        snr_t = torch.exp(2 * lambda_t)
        rho, kappa = (sde.sigma(s) * part for part in eta_family(equation.eta, -lambda_t.diff()))
        of_x_0 = sde.alpha(s) - rho * (alpha_t / sigma_t)[:-1]
        return self.table(
            equation,
            torch.cat([noisy, noisy[-1:]]),
            inputs=equation.inputs(t),
            view=equation.view("x0", t),
            time=t,
            now=(alpha_t, sigma_t),
            alpha_s=_ended(sde.alpha(s), 1.0),
            rho=_ended(rho, 0.0),
            kappa=_ended(kappa, 0.0),
            guided=_ended(torch.ones_like(rho), 0.0),
            delta=_ended(of_x_0 / kappa, 0.0),
            ahead=_ended(self._ahead(equation, noisy, of_x_0), 0.0),
            gain=torch.cat([snr_t.diff(), snr_t[-1:]]),  # the last: what is left of ∫ g² ‖score_c − score‖² dt
            of_score=sigma_t**2 / alpha_t,
        )

    def _ahead(self, equation: ReverseEquation, grid: Tensor, of_x_0: Tensor) -> Tensor:
        """c of each step: how far the reference x̄_0 is continued, in units of its last change."""
        if self.reference_order == 1 or len(grid) < 2:
            return torch.zeros_like(of_x_0)
        *_, (of_earlier,) = Multistep(2, FrozenX0()).columns(equation, grid)
        c: Tensor = -of_earlier / of_x_0
        return c

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Any) -> tuple[Tensor, Any]:
        weights: Weights = Weights.even(x) if state is None else state
        K, x_t = x.shape[1], x.flatten(0, 1)
        proposal = self._proposal(equation, x_t, row, K)
        weights, kept = weights.told(proposal.log_potential).resampled(self.resample_below * K, noise.offsets())
        x_t, x_0, reference = (rows_at(rows, kept) for rows in (x_t, proposal.x_0, proposal.reference))
        difference = row.guided * (x_0 - reference)
        x_0 = continued(reference, weights.reference, row.ahead) + difference
        z = noise().flatten(0, 1)
        delta = (row.delta * difference).flatten(1)
        log_ratio = -(delta * (0.5 * delta + z.flatten(1))).sum(1)
        apart = None
        if proposal.apart is not None:
            apart = rows_at(proposal.apart, kept)
            weight = proposal.apart_weight
            weight = rows_at(weight, kept) if isinstance(weight, Tensor) and weight.ndim > 0 else weight
            length = continued(apart, weights.apart, row.ahead).flatten(1).square().sum(1)
            log_ratio = log_ratio + row.gain * weight * length
        weights = replace(
            weights,
            log_weights=weights.log_weights + doubled(log_ratio).reshape(kept.shape),
            reference=reference,
            apart=apart,
        )
        alpha_t, sigma_t = row.now
        x_s = row.alpha_s * x_0 + row.rho * ((x_t - alpha_t * x_0) / sigma_t) + row.kappa * z
        return x_s.reshape(x.shape), weights

    def _proposal(self, equation: ReverseEquation, x_t: Tensor, row: StepRow, particles: int) -> ParticleProposal:
        condition = repeated(equation.condition, particles)

        def propose(x_t: Tensor, inputs: Inputs, condition: Any) -> ParticleProposal:
            inside = inside_of(equation, x_t, inputs, row.view, row.time, row.now)
            return self.rule.propose(x_t, inside, condition)

        call: Callable[..., Any] = propose
        if equation.evaluate is None:
            return propose(x_t, row.inputs, condition)
        proposal: ParticleProposal = equation.evaluate(x_t, row.inputs, condition, call)
        return proposal


def continued(now: Tensor, before: Tensor | None, ahead: Tensor) -> Tensor:
    """now + c (now − before)."""
    return now if before is None else torch.addcmul(now, ahead, now - before)


def _ended(steps: Tensor, last: float) -> Tensor:
    """A column with the coefficient of Tweedie's step behind those of all others."""
    return torch.cat([steps, steps.new_full((1,), last)])


def repeated(condition: Any, particles: int) -> Any:
    """A condition with a row for each particle, (n K), in place of one for each ensemble."""
    return map_rows(condition, lambda rows: rows.repeat_interleave(particles, 0))
