"""The density at the noise end: what stands for p_T in log p_0(x_0) = log p_T(x_T) + ..., and how wrong it is.

The model's own prior is N(0, σ_T² I). Data of mean m and covariance C have moments (α_T m, α_T² C + σ_T² I) there, and

    KL(N(α m, α² C + σ² I) ‖ N(0, σ² I)) = ½ [α² |m|²/σ² + Σ_i (r_i − log(1 + r_i))],    r_i = α² C_i/σ²

is what the difference costs on average, from the first two moments alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.ranges import check_range
from sde_toolkit.sde import SDE

__all__ = ["GaussianPrior", "Prior"]

Prior: TypeAlias = Callable[[Tensor, float], Tensor]
"""(x_T (B, *event) in model space, T) to log p_T(x_T), (B,) nats: a mixture's own ``log_prob`` is one."""


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """N(α_T mean, α_T² Cov + σ_T² I), from the moments of the data in model space.

    ``mean`` (*event); ``axes`` (D, D), columns the eigenvectors of the covariance, None: the coordinate axes;
    ``variances`` (D,) along them. Build it with :meth:`of_data` or :meth:`of_moments`.
    """

    sde: SDE
    mean: Tensor
    variances: Tensor
    axes: Tensor | None = None

    @classmethod
    def of_data(
        cls, model: ScoreModel, data: Tensor, covariance: Literal["full", "diagonal", "isotropic"] = "full"
    ) -> GaussianPrior:
        """The moments of ``data`` (N, *event), in the caller's data space.

        Raises:
            ArgumentError: for what is no tensor, for fewer than two samples, or for a full covariance from no more
                samples than dimensions.
        """
        if not isinstance(data, Tensor):
            raise ArgumentError("data", data, "not a tensor", "Pass a tensor (N, *event).")
        check_range(model.transform, data, name="data")
        y = model.transform.forward(data).to(torch.float64)
        N, D = len(y), math.prod(y.shape[1:])
        if N < 2 or (covariance == "full" and N <= D):
            problem = f"{N} samples do not determine the covariance of {D} dimensions"
            raise ArgumentError("data", tuple(data.shape), problem, 'Pass more, or covariance="diagonal".')
        if not bool(y.isfinite().all()):
            raise ArgumentError("data", tuple(data.shape), "NaN or infinity among them", "Clean the data.")
        flat = y.reshape(N, D)
        mean = flat.mean(0)
        if covariance == "full":
            return cls.of_moments(model.sde, mean.reshape(y.shape[1:]), torch.cov(flat.T).reshape(D, D))
        variances = flat.var(0)
        if covariance == "isotropic":
            variances = variances.mean().expand(D)
        elif covariance != "diagonal":
            raise ArgumentError("covariance", covariance, "unknown", "Use full, diagonal or isotropic.")
        return cls(model.sde, mean.reshape(y.shape[1:]), variances)

    @classmethod
    def of_moments(cls, sde: SDE, mean: Tensor, covariance: Tensor) -> GaussianPrior:
        """From a mean (*event) and a covariance (D, D), in model space."""
        D = mean.numel()
        if tuple(covariance.shape) != (D, D):
            raise ArgumentError("covariance", tuple(covariance.shape), f"expected {(D, D)}", "Flatten the event.")
        if not bool(mean.isfinite().all() and covariance.isfinite().all()):
            raise ArgumentError("mean, covariance", tuple(mean.shape), "NaN or infinity among them", "Clean the data.")
        matrix = covariance.to(torch.float64)
        variances, axes = torch.linalg.eigh(matrix)
        if not torch.allclose(matrix, matrix.mT) or bool((variances < -1e-9 * variances.abs().max()).any()):
            problem = "not symmetric positive semi-definite"
            raise ArgumentError("covariance", tuple(covariance.shape), problem, "Pass a covariance matrix.")
        return cls(sde, mean, variances.clamp(min=0.0), axes)

    def __call__(self, x: Tensor, t: float = 1.0) -> Tensor:
        """log density at x (B, *event), nats per sample, float64."""
        self.check(tuple(x.shape[1:]))
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = (v.to(x.device) for v in (self.sde.alpha(time), self.sde.sigma(time)))
        d = self._along_axes(x.to(torch.float64) - alpha * self.mean.to(x.device, torch.float64))
        spread = alpha**2 * self.variances.to(x.device) + sigma**2
        return -0.5 * (d.square() / spread + torch.log(2 * math.pi * spread)).sum(1)

    def kl(self, x: Tensor, t: float = 1.0) -> Tensor:
        """KL(N(α_t x, σ_t² I) ‖ this), of what x (B, *event) has become from the density here, (B,) nats, float64."""
        snr = self._snr(t).to(x.device)
        r = snr * self.variances.to(x.device, torch.float64)
        d = self._along_axes(x.to(torch.float64) - self.mean.to(x.device, torch.float64))
        return 0.5 * (snr * d.square() / (1 + r) + torch.log1p(r) - r / (1 + r)).sum(1)

    def check(self, event: tuple[int, ...]) -> None:
        """Refuse events of another size.

        Raises:
            ArgumentError: naming both.
        """
        if math.prod(event) != self.mean.numel():
            problem = f"the moments are those of {self.mean.numel()} dimensions"
            raise ArgumentError("prior", tuple(event), problem, "Take them from data of this shape.")

    def mismatch(self, t: float = 1.0) -> float:
        """KL of this from the model's own prior N(0, σ_t² I), in nats per sample."""
        snr = self._snr(t)
        r = snr * self.variances
        return 0.5 * (snr * self.mean.to(torch.float64).square().sum() + (r - torch.log1p(r)).sum()).item()

    def _snr(self, t: float) -> Tensor:
        time = torch.tensor(t, dtype=torch.float64)
        return (self.sde.alpha(time) / self.sde.sigma(time)) ** 2

    def _along_axes(self, d: Tensor) -> Tensor:
        """(B, *event) to its components (B, D)."""
        flat = d.reshape(len(d), -1)
        return flat if self.axes is None else flat @ self.axes.to(flat.device)
