"""Systematic resampling: of K weighted particles, K of equal weight.

Particle k is kept ⌊K w_k⌋ or ⌈K w_k⌉ times, K w_k on average (Kitagawa 1996; Douc & Cappé 2005). One uniform number
decides for all particles of an ensemble.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["effective_size", "pair_factor", "rows_at", "shares_of_starts", "systematic_indices"]


def effective_size(weights: Tensor) -> Tensor:
    """(Σ w)²/Σ w² of each ensemble: (n, K) to (n,), from 1 to K."""
    return weights.sum(1).square() / weights.square().sum(1)


def systematic_indices(weights: Tensor, offsets: Tensor) -> Tensor:
    """Which particles are kept: (n, K) integers, in increasing order.

    Args:
        weights: (n, K), not negative, of sum 1 in each row.
        offsets: (n,), uniform in [0, 1).
    """
    K = weights.shape[1]
    upto = weights.cumsum(1)
    upto = upto / upto[:, -1:]
    places = (torch.arange(K, device=weights.device) + offsets.unsqueeze(1)) / K
    return torch.searchsorted(upto, places.to(upto.dtype), right=True).clamp(max=K - 1)


def shares_of_starts(weights: Tensor, starts: Tensor) -> Tensor:
    """G (n, K): the weight of all particles that descend from each of the K starts."""
    return torch.zeros_like(weights).scatter_add_(1, starts, weights)


def pair_factor(G: Tensor) -> Tensor:
    """How a resampling changes the expected number of pairs of particles that descend from different starts, (n,).

    Particles stand in the order of their starts. So of start k there are M_k = ⌊K G_k⌋ or ⌈K G_k⌉ after the resampling,
    and the factor is Σ_{k≠l} E[M_k M_l] / Σ_{k≠l} K² G_k G_l = (K² − Σ E[M_k²]) / (K² − Σ K² G_k²).
    """
    K = G.shape[1]
    part = (K * G).frac()
    pairs = 1 - G.square().sum(1)
    return torch.where(pairs > 0, 1 - (part * (1 - part)).sum(1) / (K**2 * pairs), torch.ones_like(pairs))


def rows_at(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows of the particles that were kept: (n K, ...) and (n, K) to (n K, ...)."""
    n, K = indices.shape
    first = K * torch.arange(n, device=indices.device).unsqueeze(1)
    return rows.index_select(0, (first + indices).flatten())
