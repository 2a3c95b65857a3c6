"""Polynomials through values at a few nodes: Lagrange's, and the states of a path between its grid points.

States are interpolated in the form x/c as functions of φ, both as in :mod:`sde_toolkit.likelihood.quadrature`: in these
coordinates the path is bounded and smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators import Angle
from sde_toolkit.models.prediction import edm_input_scale

__all__ = ["Interpolation", "lagrange"]

_NEIGHBOURS = 8  # grid points that a polynomial goes through


def lagrange(nodes: Tensor, at: Tensor) -> Tensor:
    """Lagrange's polynomials at ``at`` (Q,), each 1 at one node and 0 at the other nodes: (Q, k).

    ``nodes`` is (k,), or (Q, k) with nodes of its own for each element of ``at``.
    """
    own = torch.eye(nodes.shape[-1], dtype=torch.bool)
    difference = (nodes.unsqueeze(-1) - nodes.unsqueeze(-2)).masked_fill(own, 1.0)
    factors = (at.unsqueeze(1) - nodes).unsqueeze(1) / difference
    return factors.masked_fill(own, 1.0).prod(2)


@dataclass(frozen=True, eq=False)
class Interpolation:
    """From states at the times ``grid``, (N + 1, B, *event) increasing in time, to states at ``wanted``."""

    weights: Tensor  # (Q, N + 1)
    shrink: Tensor  # 1/c at the grid
    stretch: Tensor  # c at the wanted times

    @classmethod
    def prepare(cls, equation: ReverseEquation, grid: Tensor, wanted: Tensor) -> Interpolation:
        """All coefficients, float64. ``grid`` is increasing and covers ``wanted``."""
        sde, scale = equation.sde, equation.model.sigma_data
        nodes, at = (Angle(scale).position(sde, sde.half_log_snr(t)) for t in (grid, wanted))
        shrink, shrink_wanted = (edm_input_scale(sde.alpha(t), sde.sigma(t), scale) for t in (grid, wanted))
        return cls(_local_lagrange(nodes, at), shrink, 1 / shrink_wanted)

    def __call__(self, path: Tensor) -> Tensor:
        """(N + 1, B, *event) to (Q, B, *event)."""
        flat = path.reshape(len(path), -1)
        weights = expand_to(self.stretch, self.weights) * self.weights * self.shrink
        return (weights.to(path) @ flat).reshape(-1, *path.shape[1:])


def _local_lagrange(nodes: Tensor, at: Tensor) -> Tensor:
    """Weights (Q, N + 1) of the polynomials through the ``_NEIGHBOURS`` nodes around each of ``at``; nodes increase."""
    N, k = len(nodes), min(_NEIGHBOURS, len(nodes))
    first = (torch.searchsorted(nodes, at) - k // 2).clamp(0, N - k)
    chosen = first.unsqueeze(1) + torch.arange(k)  # (Q, k)
    weights = lagrange(nodes[chosen], at)
    return torch.zeros(len(at), N, dtype=nodes.dtype).scatter_(1, chosen, weights)
