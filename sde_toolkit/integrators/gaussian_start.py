"""A start without evaluations: the exact flow of Gaussian data, from the first time to where the network takes over.

At high noise the denoised estimate of any data depends on their mean and covariance alone. For data N(μ, Σ), Σ with
variances v_i along orthonormal directions u_i and v elsewhere, the probability flow from t to s is linear:

    x_s = α_s μ + c (x_t − α_t μ) + Σ_i (c_i − c) u_i u_iᵀ (x_t − α_t μ)
    c_i = √((α_s² v_i + σ_s²)/(α_t² v_i + σ_t²))

and c is the same with v. Without directions this is the free first step: v = σ_d² is GENIE's analytical first step,
v = 0 holds x̂_0 = μ. With directions it is Gaussian teleportation.

Dockhorn et al. 2022 (GENIE): analytical first step; Wang & Vastola 2024 (The Unreasonable Effectiveness of Gaussian
Score Approximation): Gaussian teleportation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators.around import IntegratorAround
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise

__all__ = ["GaussianStart"]


@dataclass(frozen=True)
class GaussianStart(IntegratorAround):
    """``integrator``, whose first step begins at ``begin`` instead of the grid's first time.

    From a grid's first time above ``begin`` the state goes to ``begin`` by the flow of N(μ, Σ), without an evaluation.
    So a grid of N steps costs N steps of the integrator, and none of them is spent above ``begin``. A grid that starts
    at ``begin`` or below is left to the integrator.

    Args:
        integrator: of fixed steps.
        begin: the time at which the first evaluation is made.
        mean: μ in model space: one number for all elements, or one for each, in the order of ``flatten``.
        variance: v, the variance along all other directions.
        variances, directions: v_i, and u_i as rows of one number per element; orthonormal.

    Raises:
        ArgumentError: for an adaptive integrator, a time outside (0, 1), negative variances, or directions that are
            not orthonormal.
        GridError: from ``prepare``, for a grid whose second time is not below ``begin``.
    """

    begin: float
    mean: tuple[float, ...] = (0.0,)
    variance: float = 1.0
    variances: tuple[float, ...] = ()
    directions: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.integrator, Integrator) or self.integrator.evals_per_step is None:
            problem = "it has no fixed steps that could begin later"
            raise ArgumentError("integrator", self.integrator, problem, "Use Multistep(), for example.")
        if not (is_number(self.begin) and 0 < self.begin < 1):
            raise ArgumentError("begin", self.begin, "not a time between 0 and 1", "0.5, for example.")
        for name in ("mean", "variances"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        object.__setattr__(self, "directions", tuple(tuple(float(v) for v in row) for row in self.directions))
        spread = (self.variance, *self.variances)
        if not all(is_number(v) and v >= 0 for v in spread):
            raise ArgumentError("variances", spread, "variances are at least 0, and finite", "Correct them.")
        if not (self.mean and all(map(math.isfinite, self.mean))):
            raise ArgumentError("mean", self.mean, "not finite numbers", "Pass (0.0,), or a number for each element.")
        self._keep_tensors()

    def _keep_tensors(self) -> None:
        """μ and the u_i as float64 tensors: they are too many to be made of numbers in every run."""
        sizes = {len(row) for row in self.directions} | ({len(self.mean)} - {1})
        fit = len(self.variances) == len(self.directions) and len(sizes) <= 1
        u = torch.tensor(self.directions if fit else (), dtype=torch.float64)
        if u.numel():
            fit = bool(((u @ u.T - torch.eye(len(u), dtype=torch.float64)).abs() < 1e-6).all())
        if not fit:
            problem = "not one direction for each variance, orthonormal and as long as the mean"
            raise ArgumentError("directions", tuple(u.shape), problem, "Use GaussianStart.of_samples(...).")
        object.__setattr__(self, "_mean", torch.tensor(self.mean, dtype=torch.float64))
        object.__setattr__(self, "_directions", u)

    @classmethod
    def of_samples(cls, integrator: Integrator, begin: float, samples: Tensor, rank: int = 16) -> GaussianStart:
        """With the mean and covariance of ``samples`` (n, *event) in model space, along ``rank`` directions at most."""
        x = samples.detach().to("cpu", torch.float64)
        x = x.reshape(len(x), -1)
        mean = x.mean(0)
        _, singular, directions = torch.linalg.svd(x - mean, full_matrices=False)
        variances = singular.square() / max(1, len(x) - 1)
        k = min(rank, len(x) // 2, x.shape[1])
        rest = (variances[k:].sum() / max(1, x.shape[1] - k)).item()
        rows = tuple(tuple(row) for row in directions[:k].tolist())
        return cls(integrator, begin, tuple(mean.tolist()), rest, tuple(variances[:k].tolist()), rows)

    @property
    def first_evaluation(self) -> float | None:
        return self.begin

    @property
    def learned_factors(self) -> tuple[tuple[float, ...], ...] | None:
        return self.integrator.learned_factors

    def relearned(self, factors: tuple[tuple[float, ...], ...]) -> GaussianStart:
        return replace(self, integrator=self.integrator.relearned(factors))

    def __repr__(self) -> str:
        return f"GaussianStart({self.integrator}, begin={self.begin:.4g}, {len(self.variances)} directions)"

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """``jump``: α_s, α_t, c and every c_i − c of the start; in later steps numbers that change nothing."""
        return self._around(equation, grid, self.integrator.prepare)

    def apply(self, equation: ReverseEquation, grid: Tensor, factors: Tensor) -> Table:
        """The table for a tensor of what is learned inside; differentiable in ``grid`` and ``factors``."""
        return self._around(equation, grid, lambda where, times: self.integrator.apply(where, times, factors))

    def _around(
        self, equation: ReverseEquation, grid: Tensor, prepare: Callable[[ReverseEquation, Tensor], Table]
    ) -> Table:
        begin = torch.full_like(grid[:1], self.begin)
        jumps = bool(grid[0] > self.begin)
        if jumps and not bool(grid[1] < self.begin):
            problem = f"its first step ends above the time {self.begin} at which the network takes over"
            raise GridError("grid", grid[:2].tolist(), problem, "Let the second time be below it.")
        still = (0.0, 0.0, 1.0, *([0.0] * len(self.variances)))
        found = self._flow(equation, grid[:1], begin) if jumps else [torch.full_like(begin, v) for v in still]
        first = torch.arange(len(grid) - 1) == 0
        jump = tuple(torch.where(first, value, rest) for value, rest in zip(found, still, strict=True))
        inner = torch.cat([begin, grid[1:]]) if jumps else grid
        return self.table(equation, grid, jump=jump, inside=prepare(equation, inner))

    def _flow(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> list[Tensor]:
        """(α_s, α_t, c, c_i − c ...), each (1,)."""
        sde = equation.sde
        alpha_t, sigma_t, alpha_s, sigma_s = sde.alpha(t), sde.sigma(t), sde.alpha(s), sde.sigma(s)

        def ratio(v: float) -> Tensor:
            return torch.sqrt((alpha_s**2 * v + sigma_s**2) / (alpha_t**2 * v + sigma_t**2))

        c = ratio(self.variance)
        return [alpha_s, alpha_t, c, *(ratio(v) - c for v in self.variances)]

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        if state is None:
            x = self._jump(x, row.jump)
        x, inside = self.integrator.step(equation, x, row.inside, None if state is None else state[0], noise)
        return x, (inside,)

    def _jump(self, x: Tensor, jump: tuple[Tensor, ...]) -> Tensor:
        """The flow of the Gaussian, on samples (B, *event)."""
        alpha_s, alpha_t, c, *rest = jump
        mean = self._mean.to(x.device, x.dtype)  # type: ignore[attr-defined]
        flat = x.reshape(len(x), -1)
        if {len(self.mean), *(len(row) for row in self.directions[:1])} - {1, flat.shape[1]}:
            problem = f"the mean and the directions have {max(len(self.mean), mean.numel())} elements"
            raise ArgumentError("x", tuple(x.shape), problem, "Use it for the events that it was made for.")
        apart = flat - alpha_t * mean
        moved = alpha_s * mean + c * apart
        if rest:
            u = self._directions.to(x.device, x.dtype)  # type: ignore[attr-defined]
            moved = moved + (apart @ u.T * torch.stack(rest)) @ u
        return moved.reshape(x.shape)
