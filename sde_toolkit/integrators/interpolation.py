"""Weights of exponential multistep methods: ∫ density(λ) L_j dλ over a step, for the polynomial through earlier values.

The polynomial is one in a coordinate of time: λ (DPM-Solver++, UniPC), τ = σ/α or t (DEIS), or φ = atan τ. Nodes at
which the coordinate is infinite (λ where α or σ vanishes) are left out, which lowers the order of that step alone.
Everything is float64, once per grid, all steps at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from sde_toolkit.integrators.frozen import Frozen, FrozenX0
from sde_toolkit.sde import SDE
from sde_toolkit.sde.derive import gauss_legendre

__all__ = ["Coordinate", "TwoPoint", "bh1", "bh2", "difference_weights", "in_lambda", "in_phi", "in_tau", "in_time"]

Coordinate: TypeAlias = Callable[[SDE, Tensor], Tensor]
"""(sde, λ) to the variable that the polynomial is in."""

TwoPoint: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(∫ density dλ, h density(λ_s)) to what a polynomial of degree one is multiplied with at the middle of the step."""


def in_lambda(sde: SDE, lambda_t: Tensor) -> Tensor:
    """λ itself (DPM-Solver++, UniPC)."""
    return lambda_t


def in_tau(sde: SDE, lambda_t: Tensor) -> Tensor:
    """τ = σ/α (DEIS's ρ, Zhang & Chen 2023, section 3.3)."""
    return torch.exp(-lambda_t)


def in_phi(sde: SDE, lambda_t: Tensor) -> Tensor:
    """φ = atan(σ/α), bounded at both ends of time."""
    return torch.atan(torch.exp(-lambda_t))


def in_time(sde: SDE, lambda_t: Tensor) -> Tensor:
    """t (DEIS's tAB, Zhang & Chen 2023, eq. 15)."""
    return sde.inverse_half_log_snr(lambda_t)


def bh1(total: Tensor, at_end: Tensor) -> Tensor:
    """UniPC's B(h) = h (Zhao et al. 2023, section 4.1)."""
    return at_end


def bh2(total: Tensor, at_end: Tensor) -> Tensor:
    """UniPC's B(h) = e^h − 1, which is the midpoint rule of DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2)."""
    return total


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
    c = torch.stack([_coordinate_of(coordinate, sde, node) for node in nodes])  # (p, steps)
    valid = c.isfinite()
    c_s = _coordinate_of(coordinate, sde, lambda_s)
    reaches_data = lambda_s == torch.inf
    valid[1:] &= valid[:1] & (c_s.isfinite() | ~reaches_data)
    filler = c[valid].detach().abs().max() + 1 if bool(valid.any()) else torch.ones(())
    c = torch.where(valid, c, filler + torch.arange(len(c)).unsqueeze(-1))  # finite and distinct; masked everywhere
    bounded = lambda_t.isfinite() & lambda_s.isfinite()
    weights = _integrate_in_lambda(sde, eta, frozen, coordinate, lambda_t, lambda_s, s, c, valid)
    if not bool(bounded.all()):
        outer = _integrate_in_phi(sde, eta, frozen, coordinate, lambda_t, lambda_s, s, c, valid)
        if isinstance(frozen, FrozenX0):  # all its weight lies at the end
            outer = torch.where(reaches_data, sde.alpha(s) * _lagrange(c_s.unsqueeze(0), c, valid)[:, 0], outer)
        weights = torch.where(bounded, weights, outer)
    if two_point is not None:
        weights = torch.where(
            valid.sum(0) == 2, _two_point(sde, eta, frozen, two_point, lambda_t, lambda_s, s, nodes, valid), weights
        )
    return list(torch.where(valid, weights, 0.0)[1:])


def _coordinate_of(coordinate: Coordinate, sde: SDE, lambda_t: Tensor) -> Tensor:
    known = ~lambda_t.isnan()
    if not bool(known.any()):
        return lambda_t
    return torch.where(known, coordinate(sde, torch.where(known, lambda_t, lambda_t[known][0].detach())), torch.nan)


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


def _integrate_in_lambda(
    sde: SDE,
    eta: float,
    frozen: Frozen,
    coordinate: Coordinate,
    lambda_t: Tensor,
    lambda_s: Tensor,
    s: Tensor,
    c: Tensor,
    valid: Tensor,
) -> Tensor:
    nodes, weights = (v.unsqueeze(-1) for v in gauss_legendre())
    bounded = lambda_t.isfinite() & lambda_s.isfinite()
    inside = torch.where(lambda_t.isfinite(), lambda_t, torch.where(lambda_s.isfinite(), lambda_s, 0.0))
    begin, end = (torch.where(bounded, v, inside) for v in (lambda_t, lambda_s))  # of no length where not bounded
    h = end - begin
    at = begin + h * nodes
    u = _coordinate_of(coordinate, sde, at)
    return (frozen.density(sde, eta, at, s) * h * weights * _lagrange(u, c, valid)).sum(1)


def _integrate_in_phi(
    sde: SDE,
    eta: float,
    frozen: Frozen,
    coordinate: Coordinate,
    lambda_t: Tensor,
    lambda_s: Tensor,
    s: Tensor,
    c: Tensor,
    valid: Tensor,
) -> Tensor:
    """The same over φ, finite where λ is not: dλ = −dφ/(sin φ cos φ)."""
    nodes, weights = (v.unsqueeze(-1) for v in gauss_legendre())
    phi_t, phi_s = in_phi(sde, lambda_t), in_phi(sde, lambda_s)
    phi = phi_t + (phi_s - phi_t) * nodes
    at = -torch.log(torch.tan(phi))
    u = _coordinate_of(coordinate, sde, at)
    rate = frozen.density(sde, eta, at, s) * (phi_t - phi_s) / (torch.sin(phi) * torch.cos(phi))
    return (rate * weights * _lagrange(u, c, valid)).sum(1)


def _two_point(
    sde: SDE,
    eta: float,
    frozen: Frozen,
    two_point: TwoPoint,
    lambda_t: Tensor,
    lambda_s: Tensor,
    s: Tensor,
    nodes: list[Tensor],
    valid: Tensor,
) -> Tensor:
    lambdas = torch.stack(nodes)
    one = torch.zeros_like(valid)
    one[0] = True
    total = _integrate_in_lambda(sde, eta, frozen, in_lambda, lambda_t, lambda_s, s, lambdas, one)[0]
    weight = two_point(total, (lambda_s - lambda_t) * frozen.density(sde, eta, lambda_s, s))
    return weight * _lagrange(((lambda_t + lambda_s) / 2).unsqueeze(0), lambdas, valid)[:, 0]
