"""The weights of ensembles on their way: log-weights, evidence, and the starts that particles descend from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sde_toolkit.guidance.systematic_resampling import (
    effective_size,
    pair_factor,
    rows_at,
    shares_of_starts,
    systematic_indices,
)

__all__ = ["Weights", "doubled", "evidence_error", "log_mean"]


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

    @classmethod
    def joined(cls, batches: Sequence[Weights]) -> Weights:
        """Those of several batches of ensembles, one after another, without the last proposals."""
        names = [f.name for f in fields(cls) if f.name not in ("sizes", "reference", "apart")]
        sizes = tuple(map(torch.cat, zip(*(batch.sizes for batch in batches), strict=True)))
        return cls(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}, sizes=sizes)

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
            log_pairs=self.log_pairs + torch.where(due, pair_factor(shares_of_starts(weights, self.starts)).log(), 0.0),
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


def evidence_error(weights: Weights) -> Tensor:
    """The standard error of the log-evidence of each ensemble, (n,), from one run.

    Two particles of different starts are independent but for the resampling. So their pairs estimate the square of the
    evidence without its variance (Lee & Whiteley 2018, eq. 2), with G_k the weight of the descendants of start k:

        variance/evidence² = 1 − (1 − Σ_k G_k²) K/(K−1) / ∏ c        c of each resampling: :func:`pair_factor`

    Their c is 1 − 1/K, that of multinomial resampling. If all particles descend from one start the error is 1: nothing
    is known of it. For K = 1 it is infinite.
    """
    w = weights.normalised
    K = w.shape[1]
    if K == 1:
        return torch.full_like(w[:, 0], torch.inf)
    apart = 1 - shares_of_starts(w, weights.starts).square().sum(1)
    variance = 1 - apart * (K / (K - 1)) * torch.exp(-weights.log_pairs)
    return variance.clamp(min=0.0).sqrt()
