"""The divergence along a path, integrated at a few nodes that do not depend on the solver's steps.

With c² = σ² + s² α² and φ = atan(σ/(s α)) the flow is d(x/c) = −F dφ, F being EDM's raw output at σ_d = s, so that

    log p_0(x_0) = log p_T(x_T) + D log(c_T/c_0) − ∫_{φ_0}^{φ_T} c ∇·F dφ

For data N(0, s² I) F vanishes and the first two terms are the answer; the interval lies inside [0, π/2] and the
integrand stays bounded, also where α or σ vanishes. With F = m x + n y, y the network's output,
c ∇·F = c (m D + n tr ∂y/∂x): m D is known exactly, and only the trace is estimated.

Every rule has a node at the data end, where the state is the data and the divergence also tells how the answer moves
with the end time: Gauss-Radau with a number of nodes that is given, or Clenshaw-Curtis, whose nodes are nested, with as
many as a sample needs. Errors are read from the decay of the integrand's coefficients, Legendre's or Chebyshev's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import MOST, check_count, check_positive, is_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import Angle, FrozenEDM
from sde_toolkit.models.prediction import edm_input_scale

__all__ = ["NestedRules", "Nodes", "Quadrature", "Refined", "Rule"]

_SCALE = 1.6  # of the nodes, in units of ∛(σ_d · detail²)
_ROUNDING = 32  # units of the state's precision, below which no integrand is resolved
_OPENING = 16  # intervals of the first rule
_CAUTION_OF_GAUSS, _CAUTION_OF_CLENSHAW_CURTIS = 12, 28  # of estimates from few nodes, by experiment


@dataclass(frozen=True)
class Rule(ABC):
    """How the divergence is integrated."""

    @abstractmethod
    def prepare(
        self, equation: ReverseEquation, end: float, start: float, detail: float, stretch: float = 1.0
    ) -> NestedRules:
        """The nodes between the times ``end`` < ``start``, prepared before any path is solved.

        ``stretch`` multiplies the rule's scale: it gives as many nodes at other times, for comparison.

        Raises:
            GridError: where F read from the network's output is not finite, for example at σ = 0 for an x_0 network.
        """


@dataclass(frozen=True)
class Quadrature(Rule):
    """``nodes`` Gauss-Radau nodes in φ = atan(σ/(s α)), s = ``scale``.

    The default scale is 1.6 ∛(σ_d · detail²) for data of size σ_d whose finest structure has the size ``detail``: in a
    flat optimum over mixtures at 0.22 σ_d (benchmarks/choose_likelihood.py), and over the embedded MNIST network at
    σ_d/400.

    Raises:
        ArgumentError: for less than two nodes, or a scale that is not positive.
    """

    nodes: int = 25
    scale: float | None = None

    def __post_init__(self) -> None:
        check_count("nodes", self.nodes, "25 is the default.", least=2, most=MOST)
        _check_scale(self.scale)

    def prepare(
        self, equation: ReverseEquation, end: float, start: float, detail: float, stretch: float = 1.0
    ) -> NestedRules:
        scale = stretch * _scale(self.scale, equation, detail)
        return NestedRules((Nodes.at(equation, (end, start), scale, _CAUTION_OF_GAUSS, *_radau(self.nodes)),))


@dataclass(frozen=True)
class Refined(Rule):
    """Clenshaw-Curtis nodes in φ, 17, 33, 65, ..., ``most`` of them: as many as the sample needs.

    A sample gets no further nodes once the estimate of its error is at most ``tolerance`` nats per dimension, or 32
    units of the state's precision. The path must be known at all nodes: that takes memory for ``most`` states.

    Raises:
        ArgumentError: for a tolerance or a scale that is not positive, a ``most`` that is not 16 · 2^k + 1.
    """

    tolerance: float = 1e-5
    most: int = 257
    scale: float | None = None

    def __post_init__(self) -> None:
        check_positive("tolerance", self.tolerance, "Pass 1e-5, for example.")
        rules = (self.most - 1) // _OPENING if is_count(self.most, _OPENING + 1) else 0
        if rules == 0 or rules & (rules - 1) or self.most != rules * _OPENING + 1:
            problem = "nested nodes are 17, 33, 65, 129, 257, ... in number"
            raise ArgumentError("most", self.most, problem, "Pass 257, for example.")
        check_count("most", self.most, "Pass 257, for example.", most=MOST)
        _check_scale(self.scale)

    def prepare(
        self, equation: ReverseEquation, end: float, start: float, detail: float, stretch: float = 1.0
    ) -> NestedRules:
        scale, intervals, rules = stretch * _scale(self.scale, equation, detail), _OPENING, []
        while intervals < self.most:
            rule = _clenshaw_curtis(intervals)
            rules.append(Nodes.at(equation, (end, start), scale, _CAUTION_OF_CLENSHAW_CURTIS, *rule))
            intervals *= 2
        return NestedRules(tuple(rules), self.tolerance)


def _check_scale(scale: float | None) -> None:
    if scale is not None:
        check_positive("scale", scale, "None: by the data.")


def _scale(given: float | None, equation: ReverseEquation, detail: float) -> float:
    return given or _SCALE * (equation.model.sigma_data * detail**2) ** (1 / 3)


@dataclass(frozen=True, eq=False)
class Nodes:
    """Where the divergence is wanted, all float64 of shape (Q,): ``times``, the network's ``inputs``, and the
    coefficients of c ∇·F = of_dimension · D + of_trace · tr ∂y/∂x.

    ``weights`` (Q,) and the matrix ``coefficients`` (Q, Q) turn values of the integrand into the integral, and into
    the coefficients of its polynomial, times the interval's length. ``log_volume``: log(c_T/c_0). ``caution``: how much
    :meth:`error` enlarges the estimate from few nodes.
    """

    times: Tensor
    inputs: tuple[Tensor, ...]
    of_dimension: Tensor
    of_trace: Tensor
    weights: Tensor
    coefficients: Tensor
    log_volume: float
    caution: int

    @classmethod
    def at(
        cls,
        equation: ReverseEquation,
        ends: tuple[float, float],
        scale: float,
        caution: int,
        u: Tensor,
        w: Tensor,
        matrix: Tensor,
    ) -> Nodes:
        """A rule on [−1, 1] with u_0 = −1, moved to the φ of the times ``ends``, data first.

        Raises:
            GridError: where F read from the network's output is not finite.
        """
        sde, coordinate = equation.sde, Angle(scale)
        bounds = sde.half_log_snr(torch.tensor(ends, dtype=torch.float64))
        low, high = coordinate.position(sde, bounds).tolist()
        phi = low + (high - low) * (u + 1) / 2
        lambdas = coordinate.half_log_snr(sde, phi)
        times = sde.inverse_half_log_snr(lambdas.clamp(bounds[1], bounds[0]))
        times[0] = ends[0]
        times[u == 1] = ends[1]
        m, n = FrozenEDM(scale).view(equation, times)
        c, c_ends = (
            1 / edm_input_scale(sde.alpha(t), sde.sigma(t), scale) for t in (times, torch.tensor(ends).to(times))
        )
        table = torch.stack([c * m, c * n, *equation.inputs(times)])
        if not bool(table.isfinite().all()):
            problem = f"the output of a network of {equation.model.prediction} says nothing finite at a node"
            raise GridError("grid", ends[0], problem, f"End the grid at likelihood_end={sde.likelihood_end} instead.")
        return cls(
            times=times,
            inputs=tuple(table[2:]),
            of_dimension=c * m,
            of_trace=c * n,
            weights=w * (high - low) / 2,
            coefficients=matrix * (high - low),
            log_volume=math.log(c_ends[1].item() / c_ends[0].item()),
            caution=caution,
        )

    def integrate(self, traces: Tensor, dimension: int) -> Tensor:
        """D log(c_T/c_0) − ∫ c ∇·F dφ from traces (..., Q, B): (..., B), float64."""
        values = self._values(traces, dimension)
        return dimension * self.log_volume - torch.tensordot(values.movedim(-2, -1), self.weights.to(values), 1)

    def error(self, traces: Tensor, dimension: int) -> Tensor:
        """An estimate of the rule's error, (B,), from traces (Q, B).

        The coefficients a_k of the integrand are known up to k = Q − 1. The error of Gauss-Radau, exact to the degree
        2Q − 2, comes from the coefficients beyond; that of Clenshaw-Curtis is little larger (Trefethen 2008). E is the
        largest |a_k| in the last quarter. Its ratio to the largest in the quarter before the middle is the factor by
        which they fall over Q/2. The estimate, at k = 2Q, is E times this factor to the power 2.25. With few nodes the
        power is smaller: their coefficients have not settled yet.
        """
        seen = (self.coefficients.to(traces) @ self._values(traces, dimension)).abs()
        Q = len(seen)
        last = seen[Q - max(1, Q // 4) :].amax(0)
        middle = seen[Q // 4 : max(Q // 4 + 1, Q // 2)].amax(0)
        fall = (last / middle.clamp(min=torch.finfo(traces.dtype).tiny)).clamp(max=1.0)
        return last * fall ** max(0.5, 2.25 - self.caution / Q)

    def _values(self, traces: Tensor, dimension: int) -> Tensor:
        a, b = (expand_to(v.to(traces), traces.movedim(-2, 0)) for v in (self.of_dimension, self.of_trace))
        return (a * dimension + b * traces.movedim(-2, 0)).movedim(0, -2)


@dataclass(frozen=True, eq=False)
class NestedRules:
    """Rules with more and more nodes, and the tolerance. Every second node of a rule is a node of the rule before."""

    rules: tuple[Nodes, ...]
    tolerance: float = math.inf

    @property
    def finest(self) -> Nodes:
        """The rule that has all nodes."""
        return self.rules[-1]

    def positions(self, k: int) -> list[int]:
        """Where the nodes of rule k are among the finest."""
        return list(range(0, len(self.finest.times), 2 ** (len(self.rules) - 1 - k)))

    def unsettled(self, error: Tensor, dimension: int, precision: torch.dtype) -> Tensor:
        """The samples (their positions) whose error (B,) is too large."""
        least = max(self.tolerance, _ROUNDING * torch.finfo(precision).eps)
        return (error > least * dimension).nonzero().flatten()


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


def _clenshaw_curtis(N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes u_j = −cos(πj/N), j = 0, ..., N, weights, and the matrix from values to Chebyshev coefficients.

    a_k = 2/N Σ″_j T_k(u_j) f(u_j), the first and the last of both j and k halved; ∫ T_k = 2/(1 − k²) for even k.
    """
    j = np.arange(N + 1)
    ends = np.where((j == 0) | (j == N), 0.5, 1.0)
    T = np.cos(np.pi * np.outer(j, N - j) / N)  # T_k(u_j)
    coefficients = 2 / N * ends[:, None] * ends * T
    integrals = np.where(j % 2 == 0, 2 / (1.0 - np.where(j % 2 == 0, j, 0) ** 2), 0.0)
    u = -np.cos(np.pi * j / N)
    return torch.from_numpy(u), torch.from_numpy(integrals @ coefficients), torch.from_numpy(coefficients)
