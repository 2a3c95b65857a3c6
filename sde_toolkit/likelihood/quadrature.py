"""The divergence along a path, integrated at few nodes that have nothing to do with the solver's steps.

With c² = σ² + s² α² and φ = atan(σ/(s α)) the flow is d(x/c) = −F dφ, F being EDM's raw output at σ_d = s, so that

    log p_0(x_0) = log p_T(x_T) + D log(c_T/c_0) − ∫_{φ_0}^{φ_T} c ∇·F dφ

For data N(0, s² I) F vanishes and the first two terms are the answer; the interval lies inside [0, π/2] and the
integrand stays bounded, also where α or σ vanishes. With F = m x + n y, y the network's output,
c ∇·F = c (m D + n tr ∂y/∂x): what is known analytically stays exact, and only the trace is ever estimated.

The rule is Gauss-Radau with its fixed node at the data end, where the state is the data and the divergence also
tells how the answer moves with the end time. Its error is read from the decay of the integrand's Legendre coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.broadcasting import expand_to
from sde_toolkit.checking import is_count, is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import FrozenEDM
from sde_toolkit.prediction import edm_input_scale

__all__ = ["Nodes", "Quadrature"]


@dataclass(frozen=True)
class Quadrature:
    """``nodes`` Gauss-Radau nodes in φ = atan(σ/(s α)), s = ``scale``.

    The default scale is 1.5 √(σ_d · detail) for data of size σ_d whose finest structure has the size ``detail``: near
    the middle of a flat optimum over random mixtures and on the embedded MNIST network (benchmarks/README.md).

    Raises:
        ArgumentError: for less than two nodes, or a scale that is not positive.
    """

    nodes: int = 25
    scale: float | None = None

    def __post_init__(self) -> None:
        if not is_count(self.nodes, 2):
            raise ArgumentError("nodes", self.nodes, "must be a whole number, at least 2", "25 is the default.")
        if self.scale is not None and not (is_number(self.scale) and self.scale > 0):
            raise ArgumentError("scale", self.scale, "must be positive and finite", "None: by the data.")

    def prepare(self, equation: ReverseEquation, end: float, start: float, detail: float) -> Nodes:
        """All that is known of the nodes between the times ``end`` < ``start`` before a path is.

        Raises:
            GridError: where the network's output says nothing finite of F, for example at σ = 0 of an x_0 network.
        """
        sde = equation.sde
        scale = 1.5 * math.sqrt(equation.model.sigma_data * detail) if self.scale is None else self.scale
        ends = torch.tensor([end, start], dtype=torch.float64)
        low, high = angle(sde.half_log_snr(ends), scale).tolist()
        u, weights, legendre = _radau(self.nodes)
        phi = low + (high - low) * (u + 1) / 2
        lambdas = -torch.log(scale * torch.tan(phi))
        bounds = sde.half_log_snr(ends)
        times = sde.inverse_half_log_snr(lambdas.clamp(bounds[1], bounds[0]))
        times[0] = end
        m, n = FrozenEDM(scale).view(equation, times)
        c = 1 / edm_input_scale(sde.alpha(times), sde.sigma(times), scale)
        c_ends = 1 / edm_input_scale(sde.alpha(ends), sde.sigma(ends), scale)
        table = torch.stack([c * m, c * n, *equation.inputs(times)])
        if not bool(table.isfinite().all()):
            problem = f"the output of a network of {equation.model.prediction} says nothing finite at a node"
            raise GridError("grid", end, problem, f"End the grid at likelihood_end={sde.likelihood_end} instead.")
        return Nodes(
            times=times,
            inputs=tuple(table[2:]),
            of_dimension=c * m,
            of_trace=c * n,
            weights=weights * (high - low) / 2,
            legendre=legendre * (high - low),
            log_volume=math.log(c_ends[1].item() / c_ends[0].item()),
        )


@dataclass(frozen=True, eq=False)
class Nodes:
    """Where the divergence is wanted, all float64 of shape (Q,): ``times``, the network's ``inputs``, and the
    coefficients of c ∇·F = of_dimension · D + of_trace · tr ∂y/∂x.
    """

    times: Tensor
    inputs: tuple[Tensor, ...]
    of_dimension: Tensor
    of_trace: Tensor
    weights: Tensor
    legendre: Tensor
    log_volume: float

    def integrate(self, traces: Tensor, dimension: int) -> Tensor:
        """D log(c_T/c_0) − ∫ c ∇·F dφ from traces (..., Q, B): (..., B), float64."""
        values = self._values(traces, dimension)
        return dimension * self.log_volume - torch.tensordot(values.movedim(-2, -1), self.weights.to(values), 1)

    def error(self, traces: Tensor, dimension: int) -> Tensor:
        """An estimate of the rule's error, (B,), from traces (Q, B).

        The Legendre coefficients a_k of the integrand are seen up to k = Q − 1; a rule of degree 2Q − 2 errs by what
        lies beyond. Their envelope E over the last quarter against that of the quarter before the middle gives the
        factor by which they fall in half of Q; E is carried on by its 1.5th power, to about 1.6 Q: on mixtures 2 to
        1,000 times the true error, below it for few samples.
        """
        coefficients = (self.legendre.to(traces) @ self._values(traces, dimension)).abs()
        Q = len(coefficients)
        last = coefficients[Q - max(1, Q // 4) :].amax(0)
        middle = coefficients[Q // 4 : max(Q // 4 + 1, Q // 2)].amax(0)
        return last * (last / middle.clamp(min=torch.finfo(traces.dtype).tiny)).clamp(max=1.0) ** 1.5

    def _values(self, traces: Tensor, dimension: int) -> Tensor:
        a, b = (expand_to(v.to(traces), traces.movedim(-2, 0)) for v in (self.of_dimension, self.of_trace))
        return (a * dimension + b * traces.movedim(-2, 0)).movedim(0, -2)


def angle(lambda_t: Tensor, scale: float) -> Tensor:
    """φ = atan(e^{−λ}/s), also at λ = ±∞."""
    return torch.atan(torch.exp(-lambda_t) / scale)


def _radau(Q: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes u_j in [−1, 1) with u_0 = −1, weights w_j, and the matrix from values to Legendre coefficients.

    Abramowitz & Stegun 1964, 25.4.31; a_k = (2k + 1)/2 Σ_j w_j P_k(u_j) f(u_j), exact for polynomials of degree Q − 1.
    """
    k = np.arange(Q - 1)
    jacobi = np.diag(1 / ((2 * k + 1) * (2 * k + 3)))  # the recurrence of the polynomials orthogonal under 1 + u
    beside = np.sqrt(k[1:] * (k[1:] + 1)) / (2 * k[1:] + 1)
    u = np.concatenate([[-1.0], np.linalg.eigvalsh(jacobi + np.diag(beside, 1) + np.diag(beside, -1))])
    P = np.polynomial.legendre.legvander(u, Q - 1)  # (Q, Q): P_k(u_j)
    weights = (1 - u) / (Q * P[:, Q - 1]) ** 2
    coefficients = (np.arange(Q)[:, None] + 0.5) * weights * P.T
    return torch.from_numpy(u), torch.from_numpy(weights), torch.from_numpy(coefficients)
