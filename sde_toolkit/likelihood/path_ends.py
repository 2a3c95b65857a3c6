"""What the nodes tell about both ends of a path: how fine the data are, and what stopping at either end costs.

At the data end, with ε̂ = m x + n y and τ = σ/α, the density of data with structure of size s has

    σ ∇·ε̂/D = τ²/(τ² + s²)                                the *roughness*: ½ where the noise is as large as s
    log p_end(x) − log p_0(x) ≈ ½ (|ε̂|² − σ ∇·ε̂) − D log α − (1/α − 1) x·ε̂/σ

At the noise end let w = x/σ and ρ = α/σ. The flow is dw/dρ = x̂_0, and at ρ = 0 the density of w is N(0, I) for any
data. If the flow were continued from ρ_T to 0, to w_0, then the difference between p_T and N(0, σ_T² I) would be

    log p_T(x_T) − log N(x_T; 0, σ_T² I) = ½ (|w_T|² − |w_0|²) − ∫_0^{ρ_T} ρ tr Cov(x_0 | x) dρ

No step is taken there: w is extrapolated by a parabola in ρ, and tr Cov linearly in ρ².
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.likelihood.polynomials import lagrange

__all__ = ["finest_scale", "prior_cost", "roughness", "truncation"]

_VISIBLE = 0.1  # roughness at which the structure is seen: the noise has a third of its size
_DOUBT_FACTOR = 2.0  # times what the last terms of the continuation add
_APART = (1.25, 1.6)  # least ratios to ρ_T of the ρ that a parabola is drawn through: nearer ones amplify errors


def roughness(equation: ReverseEquation, times: Tensor, traces: Tensor, dimension: int) -> Tensor:
    """σ ∇·ε̂/D at the nodes ``times`` (Q,) from tr ∂y/∂x (Q, B): (Q, B)."""
    m, n = (expand_to(c.to(traces), traces) for c in equation.view("epsilon", times))
    sigma = expand_to(equation.sde.sigma(times).to(traces), traces)
    return sigma * (m + n * traces / dimension)


def finest_scale(tau: Tensor, values: Tensor) -> float:
    """The size s of the structure that the noise meets first, from roughnesses (Q,) at increasing τ (Q,).

    It is read where the roughness reaches 0.1, and not at the data end: there the error of a network or a rounded time
    shows as roughness too, and would look like structure. Infinite if the roughness stays below 0.1.
    """
    seen = values.to("cpu", torch.float64).clamp(1e-300, 0.999)
    tau = tau.to("cpu", torch.float64)
    if not bool((seen >= _VISIBLE).any()):
        return math.inf
    size, k = tau * torch.sqrt(1 / seen - 1), int((seen >= _VISIBLE).int().argmax())
    if k == 0:
        return math.hypot(size[0].item(), tau[0].item())
    u = (math.log(_VISIBLE) - seen[k - 1].log()) / (seen[k].log() - seen[k - 1].log())
    between = torch.exp((1 - u) * size[k - 1].log() + u * size[k].log())
    return math.hypot(between.item(), tau[0].item())


def truncation(equation: ReverseEquation, times: Tensor, x: Tensor, outputs: Tensor, rough: Tensor) -> Tensor:
    """log p_end(x) − log p_0(x) to first order, (B,), from the first two nodes: outputs (2, B, *event), rough (2, B).

    Score and divergence are taken from one of the two nodes: the one whose result is smaller in size. For a smooth
    density both give the same. A network errs most at the data end, and its error counts for less at the second node.
    Where the noise at the second node is as large as the structure of the data, the first node is used.
    """
    sde, end = equation.sde, times[0]
    tau = torch.exp(-sde.half_log_snr(end))
    log_alpha, flat = sde.log_alpha(end), x.to(torch.float64).reshape(len(x), -1)
    D = flat.shape[1]
    found = []
    for t, output, of_node in zip(times[:2], outputs, rough, strict=True):
        m, n = (c.to(x) for c in equation.view("epsilon", t))
        epsilon = (m * x + n * output).to(torch.float64).reshape(len(x), -1)
        shrink = torch.where(t == end, 1.0, (tau * torch.exp(sde.half_log_snr(t))) ** 2)
        rate = torch.where(log_alpha == 0, 0.0, torch.expm1(-log_alpha) / sde.sigma(t))  # α is 1 where σ vanishes
        growth = 0.5 * shrink * (epsilon.square().sum(1) - D * of_node)
        found.append(growth - D * log_alpha - rate * (epsilon * flat).sum(1))
    first, second = found
    return torch.where((rough[1] < 0.5) & (second.abs() < first.abs()), second, first)


def prior_cost(
    equation: ReverseEquation, times: Tensor, states: Tensor, traces: Tensor, latent: Tensor, start: Tensor
) -> Tensor:
    """|log p_T(x_T) − log N(x_T; 0, σ_T² I)|, plus a margin for the error of this estimate, (B,), nats.

    ``states`` (Q, B, *event) and ``traces`` of ∂y/∂x (Q, B) at the nodes ``times``; ``latent`` at the time ``start``.
    """
    sde = equation.sde
    rho, rho_T = torch.exp(sde.half_log_snr(times)), torch.exp(sde.half_log_snr(start))
    if rho_T == 0:
        return torch.zeros(len(latent), dtype=torch.float64, device=latent.device)
    near, far = (_last(rho > ratio * rho_T) for ratio in _APART)
    far = far if far != near else max(0, near - 1)
    nodes = list(dict.fromkeys([near, far]))

    def scaled(x: Tensor, t: Tensor) -> Tensor:
        return x.to(torch.float64).reshape(len(x), -1) / sde.sigma(t).to(x.device)

    w = torch.stack([scaled(latent, start), *(scaled(states[k], times[k]) for k in nodes)])
    at = torch.stack([rho_T, *(rho[k] for k in nodes)])
    curves = [lagrange(at[:count], torch.zeros(1, dtype=at.dtype))[0] for count in range(2, len(at) + 1)]
    lengths = [0.5 * torch.tensordot(c.to(w), w[: len(c)], 1).square().sum(1) for c in curves]
    m, n = equation.view("x0", times[nodes])
    m, n = m.to(w), n.to(w)
    of_nodes, squares = traces[nodes], rho[nodes] ** 2
    covariance = sde.sigma(times[nodes]) / rho[nodes]  # tr Cov(x_0 | x) = σ/ρ tr ∂x̂_0/∂x
    spread = 0.5 * rho_T**2 * expand_to(covariance.to(w), of_nodes) * (
        expand_to(m, of_nodes) * w.shape[2] + expand_to(n, of_nodes) * of_nodes
    )  # fmt: skip
    beyond = torch.zeros_like(spread[0])  # linear in ρ², whose mean between 0 and ρ_T, weighted by ρ, is ½ ρ_T²
    if len(nodes) > 1:
        beyond = (squares[0] - 0.5 * rho_T**2) / (squares[1] - squares[0]) * (spread[0] - spread[1])
    ratio = 0.5 * w[0].square().sum(1) - lengths[-1] - (spread[0] + beyond)
    doubt = (lengths[-1] - lengths[0]).abs() + (spread[0] - spread[-1]).abs()
    return ratio.abs() + _DOUBT_FACTOR * doubt


def _last(which: Tensor) -> int:
    """The last place that is true, or the first of all."""
    places = which.nonzero().flatten()
    return int(places[-1]) if len(places) else 0
