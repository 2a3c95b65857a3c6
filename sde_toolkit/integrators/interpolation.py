"""Weights of exponential multistep methods: ∫ density(λ) L_j dλ over a step, for the polynomial through earlier values.

The variable of the polynomial is a coordinate: λ (DPM-Solver++, UniPC), τ = σ/α or t (DEIS), or φ = atan τ. Nodes at
which the coordinate is infinite (λ where α or σ vanishes) are left out, which lowers the order of that step alone.
Everything is float64, once per grid, all steps at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sde_toolkit.integrators.coordinates import Angle, Coordinate, HalfLogSNR
from sde_toolkit.integrators.frozen import Frozen, FrozenX0
from sde_toolkit.sde import SDE
from sde_toolkit.sde.derive import gauss_legendre

__all__ = ["TwoPoint", "bh1", "bh2", "difference_weights"]

TwoPoint: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(∫ density dλ, h density(λ_s)) to B: for a straight line L, ∫ density L dλ is replaced by B L(middle)."""


def bh1(total: Tensor, at_end: Tensor) -> Tensor:
    """UniPC's B(h) = h (Zhao et al. 2023, section 4.1)."""
    return at_end


def bh2(total: Tensor, at_end: Tensor) -> Tensor:
    """UniPC's B(h) = e^h − 1, which is the midpoint rule of DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2)."""
    return total


_ANGLE = Angle()


@dataclass(frozen=True)
class _Polynomials:
    """Polynomials in ``coordinate``, one per step.

    ``nodes`` (p, steps): the coordinate at the nodes. ``valid`` (p, steps): the nodes that a polynomial goes through.
    """

    coordinate: Coordinate
    nodes: Tensor
    valid: Tensor

    def basis(self, sde: SDE, lambda_u: Tensor) -> Tensor:
        """L_j at λ_u (Q, steps): (p, Q, steps)."""
        return _lagrange(_positions(self.coordinate, sde, lambda_u), self.nodes, self.valid)


@dataclass(frozen=True)
class _Steps:
    """Steps from ``lambda_t`` to the times ``s``, at which λ is ``lambda_s``; each (steps,)."""

    sde: SDE
    eta: float
    frozen: Frozen
    lambda_t: Tensor
    lambda_s: Tensor
    s: Tensor

    def density(self, lambda_u: Tensor) -> Tensor:
        """What F at λ_u adds to x_s, per unit of λ."""
        return self.frozen.density(self.sde, self.eta, lambda_u, self.s)

    def integrals(self, polynomials: _Polynomials) -> Tensor:
        """∫ density L_j dλ by Gauss-Legendre, (p, steps); 0 for steps that are infinitely long in λ."""
        nodes, weights = (v.unsqueeze(-1) for v in gauss_legendre())
        bounded = self.lambda_t.isfinite() & self.lambda_s.isfinite()
        inside = torch.where(
            self.lambda_t.isfinite(), self.lambda_t, torch.where(self.lambda_s.isfinite(), self.lambda_s, 0.0)
        )
        begin, end = (torch.where(bounded, v, inside) for v in (self.lambda_t, self.lambda_s))
        lambda_u = begin + (end - begin) * nodes
        density = self.density(lambda_u)
        return (density * (end - begin) * weights * polynomials.basis(self.sde, lambda_u)).sum(1)

    def integrals_over_angle(self, polynomials: _Polynomials) -> Tensor:
        """The same over φ, which is finite where λ is not: dλ = −dφ/(sin φ cos φ)."""
        nodes, weights = (v.unsqueeze(-1) for v in gauss_legendre())
        phi_t, phi_s = (_ANGLE.position(self.sde, value) for value in (self.lambda_t, self.lambda_s))
        phi = phi_t + (phi_s - phi_t) * nodes
        lambda_u = _ANGLE.half_log_snr(self.sde, phi)
        rate = self.density(lambda_u) * (phi_t - phi_s) / (torch.sin(phi) * torch.cos(phi))
        return (rate * weights * polynomials.basis(self.sde, lambda_u)).sum(1)


def difference_weights(
    sde: SDE,
    eta: float,
    frozen: Frozen,
    coordinate: Coordinate,
    two_point: TwoPoint | None,
    lambda_t: Tensor,
    s: Tensor,
    nodes: list[Tensor],
) -> list[Tensor]:
    """w_1, w_2, ... of F_1 − F_0, F_2 − F_0, ... for the steps from ``lambda_t`` to the times ``s``.

    ``nodes``: λ at which F_0, F_1, ... were taken, each of shape (steps,), NaN where there is none. Nodes may
    repeat the end of the step (correctors).
    """
    lambda_s = sde.half_log_snr(s)
    c = torch.stack([_positions(coordinate, sde, node) for node in nodes])  # (p, steps)
    valid = c.isfinite()
    c_s = _positions(coordinate, sde, lambda_s)
    reaches_data = lambda_s == torch.inf
    valid[1:] &= valid[:1] & (c_s.isfinite() | ~reaches_data)
    c = _filled(c, valid)
    steps, polynomials = _Steps(sde, eta, frozen, lambda_t, lambda_s, s), _Polynomials(coordinate, c, valid)
    needed = two_point is None or len(nodes) > 2  # the exact integrals
    weights = steps.integrals(polynomials) if needed else torch.zeros_like(c)
    bounded = lambda_t.isfinite() & lambda_s.isfinite()
    if needed and not bool(bounded.all()):
        outer = steps.integrals_over_angle(polynomials)
        if isinstance(frozen, FrozenX0):  # all the weight of its integral lies at the end
            outer = torch.where(reaches_data, sde.alpha(s) * _lagrange(c_s.unsqueeze(0), c, valid)[:, 0], outer)
        weights = torch.where(bounded, weights, outer)
    if two_point is not None:
        lambdas = _filled(torch.stack(nodes), valid)
        constant = _Polynomials(HalfLogSNR(), lambdas[:1], torch.ones_like(valid[:1]))
        total = steps.integrals(constant)[0]
        weight = two_point(total, (lambda_s - lambda_t) * steps.density(lambda_s))
        middle = _lagrange(((lambda_t + lambda_s) / 2).unsqueeze(0), lambdas, valid)[:, 0]
        weights = torch.where(valid.sum(0) == 2, weight * middle, weights)
    return list(torch.where(valid, weights, 0.0)[1:])


def _positions(coordinate: Coordinate, sde: SDE, lambda_t: Tensor) -> Tensor:
    """The coordinate at every λ, NaN where λ is NaN."""
    known = ~lambda_t.isnan()
    if bool(known.all()):
        return coordinate.position(sde, lambda_t)
    if not bool(known.any()):
        return lambda_t
    return torch.where(
        known, coordinate.position(sde, torch.where(known, lambda_t, lambda_t[known][0].detach())), torch.nan
    )


def _filled(c: Tensor, valid: Tensor) -> Tensor:
    """Finite, distinct numbers in place of invalid nodes. All uses are masked; finite numbers keep gradients finite."""
    filler = c[valid].detach().abs().max() + 1 if bool(valid.any()) else torch.ones(())
    return torch.where(valid, c, filler + torch.arange(len(c)).unsqueeze(-1))


def _lagrange(u: Tensor, c: Tensor, valid: Tensor) -> Tensor:
    """L_j(u) through the valid nodes; 0 for the others. Shapes: u (Q, steps), c (p, steps), to (p, Q, steps)."""
    basis = []
    for j in range(len(c)):
        product = torch.ones_like(u)
        for k in range(len(c)):
            if k != j:
                factor = (u - c[k]) / (c[j] - c[k])
                product = product * torch.where(valid[k], factor, 1.0)
        basis.append(torch.where(valid[j], product, 0.0))
    return torch.stack(basis)
