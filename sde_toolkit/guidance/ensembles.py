"""Weighted ensembles: particles, their weights, and what the weights say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.guidance.systematic_resampling import effective_size
from sde_toolkit.guidance.weight_rules import WeightRule
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose, check_stream
from sde_toolkit.transforms import Transform

__all__ = ["Ensemble"]

_SMALL_PART = 0.01  # of K: fewer effective particles, or starts, are reported as a collapse


@dataclass(frozen=True, eq=False)
class Ensemble:
    """n weighted ensembles of K particles, and how they came about.

    Attributes:
        x: (n, K, *event), in model space. ``data`` is the same in the caller's space.
        log_weights: (n, K), float64, normalised: the weights of an ensemble have the sum 1.
        log_evidence: (n,), in nats: log of the estimate of E[potential at x_0], which is log p(y) for a measurement.
            The estimate itself, not its logarithm, is unbiased for the law of the sampler at this number of steps.
        log_evidence_error: (n,), its standard error, from the starts that the particles descend from. See
            :func:`evidence_error`.
        effective_sizes: (n, evaluations), (Σ w)²/Σ w² before each resampling decision; ``effective_size`` (n,) at the
            end.
        resamplings: (n,), how often each was resampled.
        starts: (n,), how many of the K starts have descendants at the end.
        nfe, products: evaluations and vector-Jacobian products per particle.
        seconds: wall time of the whole call.
        grid, eta, rule, seed, transform: what was asked for; the transform is the model's.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    effective_sizes: Tensor
    resamplings: Tensor
    starts: Tensor
    nfe: int
    products: int
    grid: Tensor
    eta: float
    rule: WeightRule
    seed: int
    first_index: int
    seconds: float
    transform: Transform

    @property
    def particles(self) -> int:
        """K."""
        return self.x.shape[1]

    @property
    def weights(self) -> Tensor:
        """(n, K), of sum 1 in each ensemble."""
        return self.log_weights.exp()

    @property
    def data(self) -> Tensor:
        """The particles in the caller's space, (n, K, *event)."""
        return self.transform.inverse(self.x.flatten(0, 1)).unflatten(0, self.x.shape[:2])

    @property
    def effective_size(self) -> Tensor:
        """(Σ w)²/Σ w² at the end, (n,)."""
        return effective_size(self.weights)

    @property
    def collapsed(self) -> Tensor:
        """(n,): whether the weights are on few particles, or the particles descend from few starts.

        Few are less than 2, or less than K/100; less than K/2 where K < 4.
        """
        few = min(max(2.0, _SMALL_PART * self.particles), 0.5 * self.particles)
        return torch.minimum(self.effective_size, self.starts.to(self.weights.dtype)) < few

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Σ_k w_k function(data_k) of each ensemble, (n, ...). ``function``: (B, *event) to (B, ...)."""
        values = function(self.data.flatten(0, 1)).unflatten(0, self.x.shape[:2])
        weights = self.weights.to(values.dtype)
        return torch.einsum("nk,nk...->n...", weights, values)

    def mean(self) -> Tensor:
        """The weighted mean of the data, (n, *event)."""
        return self.expectation(lambda data: data)

    def std(self) -> Tensor:
        """The weighted standard deviation of every element of the data, (n, *event)."""
        apart = (self.data - self.mean().unsqueeze(1)).square()
        return torch.einsum("nk,nk...->n...", self.weights.to(apart.dtype), apart).sqrt()

    def draw(self, m: int, seed: int = 0) -> Tensor:
        """m particles of each ensemble, drawn with replacement by their weights: (n, m, *event), in data space.

        Raises:
            ArgumentError: unless ``m`` is a whole number of at least 1.
        """
        check_count("m", m, "Pass m=16, for example.")
        check_stream(seed, self.first_index)
        draws = KeyedDraws(seed, Purpose.SELECTION, self.weights.device)
        upto = self.weights.cumsum(1)
        uniform = draws.uniform(0, self.first_index, (self.x.shape[0], m)).to(upto) * upto[:, -1:]
        chosen = torch.searchsorted(upto, uniform, right=True).clamp(max=self.particles - 1)
        rows = self.x.flatten(0, 1)
        first = self.particles * torch.arange(len(chosen), device=chosen.device).unsqueeze(1)
        drawn = self.transform.inverse(rows.index_select(0, (first + chosen).flatten()))
        return drawn.unflatten(0, chosen.shape)
