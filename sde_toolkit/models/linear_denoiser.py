"""The best linear denoiser of some data: the Wiener filter of their mean and covariance.

    x̂_0 = μ + α C (α² C + σ² I)⁻¹ (x_t − α μ)

It is the denoiser of a Gaussian with the same moments. A network that has learned anything but these is better.

The covariance is that of few samples in many dimensions: its eigenvectors are those of the samples, its eigenvalues are
the variances of *other* samples along the eigenvectors of some (cross-validation; Bartz 2016, "Cross-validation
based nonlinear shrinkage"). What lies outside the span of the samples is isotropic, with
the variance that was left out there. Nothing of the size D × D is made where there are fewer samples than dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearDenoiser"]

_FOLDS = 4


@dataclass(frozen=True, eq=False)
class LinearDenoiser:
    """``mean`` (D,), and a covariance: ``variances`` (r,) along ``axes`` (D, r), ``rest`` in all other directions."""

    mean: Tensor
    axes: Tensor
    variances: Tensor
    rest: Tensor

    @classmethod
    def of(cls, x: Tensor) -> LinearDenoiser:
        """That of samples x (N, *event), at least 2; float64."""
        x = x.reshape(len(x), -1).to(torch.float64)
        mean, axes = _principal_axes(x)
        folds = min(_FOLDS, len(x))
        along = torch.zeros(axes.shape[1], dtype=torch.float64, device=x.device)
        left = torch.zeros((), dtype=torch.float64, device=x.device)
        for fold in range(folds):
            out = torch.arange(len(x), device=x.device) % folds == fold
            other_mean, other_axes = _principal_axes(x[~out])
            away = x[out] - other_mean
            squares = (away @ other_axes).square()
            share = (~out).sum() / ((~out).sum() + 1)  # the mean has an error of its own
            r = min(len(along), squares.shape[1])
            along[:r] += share * squares.mean(0)[:r] / folds
            along[r:] += share * squares.mean(0)[-1:].sum() / folds
            outside = x.shape[1] - squares.shape[1]
            if outside > 0:
                left += share * (away.square().sum(1) - squares.sum(1)).mean().clamp(min=0.0) / outside / folds
        return cls(mean, axes, along, left)

    def __call__(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x̂_0 (B, *event) of x_t, for one noise level."""
        away = x_t.reshape(len(x_t), -1).to(self.mean) - alpha * self.mean
        gain, rest = (alpha * c / (alpha**2 * c + sigma**2) for c in (self.variances, self.rest))
        along = away @ self.axes
        x_0 = self.mean + rest * away + (along * (gain - rest)) @ self.axes.T
        return x_0.reshape(x_t.shape)


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of x (N, D), and its principal axes (D, min(N − 1, D)), those of largest variance first."""
    mean = x.mean(0)
    away = x - mean
    N, D = x.shape
    r = min(N - 1, D)
    if D <= N:
        return mean, torch.linalg.eigh(away.T @ away).eigenvectors.flip(1)[:, :r]
    values, vectors = torch.linalg.eigh(away @ away.T)
    found = values.clamp(min=0.0) > 1e-12 * values[-1]
    axes = away.T @ (vectors / values.clamp(min=1e-300).sqrt())
    return mean, torch.where(found, axes, 0.0).flip(1)[:, :r]
