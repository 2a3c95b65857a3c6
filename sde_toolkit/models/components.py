"""The components of a mixture of Gaussians: their weights, means, and variances along their principal axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError

__all__ = ["Components", "components_of", "union"]


@dataclass(frozen=True, eq=False)
class Components:
    """K Gaussians over events of D elements, in float64.

    Attributes:
        log_weights: (K,), logarithms of weights that sum to 1.
        means: (K, D).
        variances: (K, D), along the axes; 0 is allowed.
        axes: (K, D, D), the columns are the axes; None: the coordinate axes.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor | None

    def roots(self) -> Tensor:
        """Square roots L (K, D, D) of the covariances L Lᵀ."""
        std = self.variances.sqrt()
        return torch.diag_embed(std) if self.axes is None else self.axes * std.unsqueeze(1)

    def to(self, device: torch.device) -> Components:
        """The same components on another device."""
        axes = None if self.axes is None else self.axes.to(device)
        return Components(self.log_weights.to(device), self.means.to(device), self.variances.to(device), axes)

    def only(self, log_weights: Tensor) -> Components:
        """Those with a weight above 0, which are these from now on: (K,), −∞ for the others."""
        kept = log_weights > -torch.inf
        axes = None if self.axes is None else self.axes[kept]
        return Components(log_weights[kept], self.means[kept], self.variances[kept], axes)


def components_of(means: Tensor, std: Any, covariances: Any, weights: Any) -> Components:
    """The components with these means (K, *event), on their device, and either ``std`` or ``covariances``: see
    ``GaussianMixture``.

    Raises:
        ArgumentError: shapes that do not fit, and values that no mixture can have.
    """
    if means.ndim == 0 or len(means) == 0 or not bool(means.isfinite().all()):
        raise ArgumentError("means", means.tolist(), "not finite means (K, *event)", "Pass a tensor (K, *event).")
    if (std is None) == (covariances is None):
        given = "neither" if std is None else "both"
        raise ArgumentError("std, covariances", given, "exactly one is needed", "Pass std=0.1, for example.")
    if covariances is None:
        variances, axes = _variances_from_std(std, means), None
    else:
        variances, axes = _axes_of_covariances(covariances, means)
    return Components(_log_weights(weights, means), means.reshape(len(means), -1), variances, axes)


def union(parts: Sequence[Components], log_weights: Tensor) -> Components:
    """The components of all parts, in their order, with these log-weights (K,)."""
    means, variances = (torch.cat([getattr(part, name) for part in parts]) for name in ("means", "variances"))
    axes = None
    if any(part.axes is not None for part in parts):
        coordinate_axes = torch.eye(means.shape[1]).to(means)
        axes = torch.cat(
            [coordinate_axes.expand(len(part.means), -1, -1) if part.axes is None else part.axes for part in parts]
        )
    return Components(log_weights, means, variances, axes)


def _variances_from_std(std: Any, means: Tensor) -> Tensor:
    std = torch.as_tensor(std, dtype=torch.float64, device=means.device)
    if not bool(((std >= 0) & std.isfinite()).all()):
        raise ArgumentError("std", std.tolist(), "must be finite and not negative", "Pass standard deviations.")
    if std.ndim == 1 and len(std) in (1, len(means)) and means.ndim != 1:
        std = std.reshape(-1, *(1,) * (means.ndim - 1))
    try:
        return (std.expand(means.shape) ** 2).reshape(len(means), -1)
    except RuntimeError:
        problem = f"shape {tuple(std.shape)} does not fit means of shape {tuple(means.shape)}"
        raise ArgumentError("std", tuple(std.shape), problem, "Pass a number, (K,), or (K, *event).") from None


def _axes_of_covariances(covariances: Any, means: Tensor) -> tuple[Tensor, Tensor]:
    K, D = len(means), math.prod(means.shape[1:])
    matrices = torch.as_tensor(covariances, dtype=torch.float64, device=means.device)
    if tuple(matrices.shape) != (K, D, D):
        raise ArgumentError("covariances", tuple(matrices.shape), f"expected {(K, D, D)}", "Pass (K, D, D).")
    symmetric = torch.allclose(matrices, matrices.mT)
    variances, axes = torch.linalg.eigh(matrices)
    if not symmetric or bool((variances < -1e-12 * variances.abs().amax()).any()):
        problem = "not symmetric positive semi-definite"
        raise ArgumentError("covariances", tuple(matrices.shape), problem, "Pass covariance matrices.")
    return variances.clamp(min=0), axes


def _log_weights(weights: Any, means: Tensor) -> Tensor:
    K = len(means)
    values = torch.as_tensor([1.0] * K if weights is None else weights, dtype=torch.float64, device=means.device)
    if tuple(values.shape) != (K,) or not bool(((values > 0) & values.isfinite()).all()):
        raise ArgumentError("weights", values.tolist(), f"expected {K} positive numbers", "Pass positive weights.")
    return torch.log(values / values.sum())
