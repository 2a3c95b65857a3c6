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
from sde_toolkit.guidance.step_operator import inside_of
from sde_toolkit.guidance.systematic_resampling import effective_size, pair_factor, rows_at, shares, systematic_indices
from sde_toolkit.guidance.weight_rules import Proposal, WeightRule
from sde_toolkit.integrators.exponential import eta_family
from sde_toolkit.integrators.frozen import FrozenX0
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.multistep import Multistep
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.score_model import Inputs

__all__ = ["EnsembleNoise", "WeightedStep", "Weights", "doubled"]


class EnsembleNoise(Protocol):
    """The random numbers of n ensembles."""

    def __call__(self) -> Tensor:
        """The next standard normal draw, (n, K, *event)."""

    def offsets(self) -> Tensor:
        """The next uniform numbers of the resampling, (n,) float64."""


@dataclass(frozen=True, eq=False)
class Weights:
    """What n ensembles of K particles know of themselves.

    Attributes:
        log_weights: (n, K), since the last resampling, not normalised.
        log_potential: (n, K), log ψ as it is contained in the log-weights.
        log_evidence: (n,), the part of earlier resamplings.
        starts: (n, K), which of the K starts a particle descends from.
        log_pairs: (n,), of :func:`pair_factor` over all resamplings.
        resamplings: (n,).
        sizes: the effective size before each step, (n,) each.
        reference, apart: of the last proposals, (n K, *event); None before the first step.
    """

    log_weights: Tensor
    log_potential: Tensor
    log_evidence: Tensor
    starts: Tensor
    log_pairs: Tensor
    resamplings: Tensor
    sizes: tuple[Tensor, ...] = ()
    reference: Tensor | None = None
    apart: Tensor | None = None

    @classmethod
    def even(cls, x: Tensor) -> Weights:
        """Those of starts x (n, K, *event)."""
        n, K = x.shape[:2]
        zeros = doubled(x.new_zeros(n, K))
        starts = torch.arange(K, device=x.device).expand(n, K)
        each = zeros[:, 0]
        return cls(zeros, zeros, each, starts, each, torch.zeros_like(each, dtype=torch.int64))

    @property
    def normalised(self) -> Tensor:
        """The weights (n, K), of sum 1."""
        return torch.softmax(self.log_weights, dim=1)

    def told(self, log_potential: Tensor | None) -> Weights:
        """With another estimate of the log-potential."""
        if log_potential is None:
            return self
        new = doubled(log_potential).reshape(self.log_weights.shape)
        return replace(self, log_weights=self.log_weights + new - self.log_potential, log_potential=new)

    def resampled(self, below: float, offsets: Tensor) -> tuple[Weights, Tensor]:
        """Resampled where the effective size is at most ``below``, and which particles were kept (n, K)."""
        K = self.log_weights.shape[1]
        weights = self.normalised
        size = effective_size(weights)
        due = size <= below
        every = torch.arange(K, device=size.device).expand_as(weights)
        kept = torch.where(due.unsqueeze(1), systematic_indices(weights, offsets), every)
        even = due.unsqueeze(1)
        new = replace(
            self,
            log_weights=torch.where(even, torch.zeros_like(weights), self.log_weights),
            log_potential=self.log_potential.gather(1, kept),
            log_evidence=self.log_evidence + torch.where(due, log_mean(self.log_weights), 0.0),
            starts=self.starts.gather(1, kept),
            log_pairs=self.log_pairs + torch.where(due, pair_factor(shares(weights, self.starts)).log(), 0.0),
            resamplings=self.resamplings + due,
            sizes=(*self.sizes, size),
            reference=None if self.reference is None else rows_at(self.reference, kept),
            apart=None if self.apart is None else rows_at(self.apart, kept),
        )
        return new, kept


def log_mean(log_weights: Tensor) -> Tensor:
    """log of the mean weight of each ensemble: (n, K) to (n,)."""
    mean = torch.logsumexp(log_weights, dim=1) - torch.log(log_weights.new_tensor(float(log_weights.shape[1])))
    return torch.as_tensor(mean)


def doubled(x: Tensor) -> Tensor:
    """In float64 where there is any."""
    return x if x.device.type == "mps" else x.to(torch.float64)


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
        sde, least = equation.sde, 1 if equation.sde.sigma(grid[-1]) > 0 else 0
        steps = len(grid) - 2 + least  # without Tweedie's
        t, s = grid[: steps + 1], grid[1 : steps + 1]
        alpha_t, sigma_t, lambda_t = sde.alpha(t), sde.sigma(t), sde.half_log_snr(t)
        snr_t = torch.exp(2 * lambda_t)
        rho, kappa = (sde.sigma(s) * part for part in eta_family(equation.eta, -lambda_t.diff()))
        of_x_0 = sde.alpha(s) - rho * (alpha_t / sigma_t)[:-1]
        return self.table(
            equation,
            grid if least == 0 else torch.cat([grid, grid[-1:]]),
            inputs=equation.inputs(t),
            view=equation.view("x0", t),
            time=t,
            now=(alpha_t, sigma_t),
            alpha_s=_ended(sde.alpha(s), 1.0),
            rho=_ended(rho, 0.0),
            kappa=_ended(kappa, 0.0),
            guided=_ended(torch.ones_like(rho), 0.0),
            delta=_ended(of_x_0 / kappa, 0.0),
            ahead=_ended(self._ahead(equation, grid[: steps + 1], of_x_0), 0.0),
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

    def _proposal(self, equation: ReverseEquation, x_t: Tensor, row: StepRow, particles: int) -> Proposal:
        condition = map_rows(equation.condition, lambda rows: rows.repeat_interleave(particles, 0))

        def propose(x_t: Tensor, inputs: Inputs, condition: Any) -> Proposal:
            inside = inside_of(equation, x_t, inputs, row.view, row.time, row.now)
            return self.rule.propose(x_t, inside, condition)

        call: Callable[..., Any] = propose
        if equation.evaluate is None:
            return propose(x_t, row.inputs, condition)
        proposal: Proposal = equation.evaluate(x_t, row.inputs, condition, call)
        return proposal


def continued(now: Tensor, before: Tensor | None, ahead: Tensor) -> Tensor:
    """now + c (now − before)."""
    return now if before is None else torch.addcmul(now, ahead, now - before)


def _ended(steps: Tensor, last: float) -> Tensor:
    """A column with the coefficient of Tweedie's step behind those of all others."""
    return torch.cat([steps, steps.new_full((1,), last)])
