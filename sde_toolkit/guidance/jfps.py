"""JFPS: Cov[x_0 | x_t] is that of Gaussian data with a fixed covariance C.

    x̂_0 + V Aᵀ (A V Aᵀ + Σ_y)⁻¹ e        V = σ² C (α² C + σ² I)⁻¹

MMPS without the Jacobian: no way back through the network is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.conjugate_gradients import conjugate_gradients
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod
from sde_toolkit.models.linear_denoiser import LinearDenoiser
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["JFPS"]


@dataclass(frozen=True, eq=False)
class JFPS(PosteriorMethod):
    """x̂_0 + V Aᵀ (A V Aᵀ + Σ_y)⁻¹ e with V = σ² C (α² C + σ² I)⁻¹, by one evaluation and no product.

    Assumes Gaussian data with the covariance C; exact if they are. σ_y = 0 is allowed. The system is solved to
    round-off, without the network.

    Args:
        covariance: C in model space: a variance for all elements, one for each (*event), a matrix (D, D), or a
            :class:`~sde_toolkit.models.linear_denoiser.LinearDenoiser` of data, which has no D × D matrix.

    Raises:
        ArgumentError: for numbers that are no covariance.
    """

    covariance: float | Tensor | LinearDenoiser = field(repr=False)
    _found: dict[int, _PrincipalAxes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        C = self.covariance
        if isinstance(C, LinearDenoiser):
            return
        remedy = "Pass a variance, one per element, a matrix (D, D), or JFPS.of(samples)."
        if isinstance(C, Tensor):
            if C.is_complex() or C.ndim == 0 or not bool(C.isfinite().all()):
                raise ArgumentError("covariance", C, "not finite real numbers with at least one axis", remedy)
        elif not is_number(C) or C < 0:
            raise ArgumentError("covariance", C, "not a variance", remedy)

    @classmethod
    def of(cls, data: Tensor) -> JFPS:
        """With the covariance of samples (N, *event), in model space (``model.transform.forward(x)``)."""
        return cls(LinearDenoiser.of(data))

    def check(self, measurement: Measurement, model: ScoreModel) -> None:
        C, event = self.covariance, measurement.A.event_shape
        D = math.prod(event)
        remedy = f"Pass a variance, a tensor {event} of variances, or a matrix {(D, D)}."
        if isinstance(C, LinearDenoiser):
            if C.mean.numel() != D:
                raise ArgumentError("covariance", tuple(C.mean.shape), f"A takes events of {D} elements", remedy)
            return
        if isinstance(C, Tensor):
            if tuple(C.shape) not in (event, (D, D)):
                raise ArgumentError("covariance", tuple(C.shape), f"A takes events of shape {event}", remedy)
            if tuple(C.shape) == event and not bool((C >= 0).all()):
                raise ArgumentError("covariance", C, "a variance is negative", remedy)
        self._axes_of(D)

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        A, x_0 = measurement.A, inside(x_t, condition)
        V = self._conditional(inside)

        def covariance(p: Tensor) -> Tensor:
            return A(V(A.adjoint(p))) + measurement.apply_covariance(p)

        solved = conjugate_gradients(
            covariance,
            measurement.residual(x_0, y),
            tolerance=10 * torch.finfo(x_0.dtype).eps,
            max_iterations=2 * math.prod(A.measured_shape),
        )
        return x_0 + V(A.adjoint(solved.x))

    def settings(self) -> dict[str, Any]:
        C = self.covariance
        if isinstance(C, LinearDenoiser):
            return {"method": "JFPS", "covariance": f"of data, {tuple(C.axes.shape)} axes"}
        return {"method": "JFPS", "covariance": f"{tuple(C.shape)} numbers" if isinstance(C, Tensor) else C}

    def _conditional(self, inside: Inside) -> Callable[[Tensor], Tensor]:
        """u ↦ V u at a time."""
        alpha, sigma = inside.alpha, inside.sigma

        def gain(c: Tensor, beside: Tensor) -> Tensor:
            a, s = (k if k.ndim == 0 else k.reshape(-1, *(1,) * (beside.ndim - 1)) for k in (alpha, sigma))
            return s**2 * c / (a**2 * c + s**2)

        def product(u: Tensor) -> Tensor:
            flat = u.reshape(u.shape[0], math.prod(u.shape[1:]))
            C = self._axes_of(flat.shape[1])
            rest = gain(C.rest.beside(u), flat)
            if C.axes is None:
                return (rest * flat).reshape(u.shape)
            axes = C.axes.beside(u)
            along = flat @ axes
            moved = rest * flat + ((gain(C.variances.beside(u), flat) - rest) * along) @ axes.mT
            return moved.reshape(u.shape)

        return product

    def _axes_of(self, D: int) -> _PrincipalAxes:
        """Those of C for events of D elements, found once."""
        if D not in self._found:
            self._found[D] = _axes_of_covariance(self.covariance, D)
        return self._found[D]


@dataclass(frozen=True, eq=False)
class _PrincipalAxes:
    """C: ``variances`` (r,) along the columns of ``axes`` (D, r), ``rest`` in all other directions, 0-dim or (D,)."""

    axes: Constant | None
    variances: Constant
    rest: Constant


def _axes_of_covariance(C: float | Tensor | LinearDenoiser, D: int) -> _PrincipalAxes:
    """The axes of a covariance of D elements.

    Raises:
        ArgumentError: for a matrix that is not symmetric, or has a negative eigenvalue.
    """
    none = Constant(torch.zeros(0, dtype=torch.float64))
    if isinstance(C, LinearDenoiser):
        return _PrincipalAxes(Constant(C.axes), Constant(C.variances), Constant(C.rest))
    C = torch.as_tensor(C, dtype=torch.float64).detach()
    if C.ndim == 0 or C.numel() == D:
        return _PrincipalAxes(None, none, Constant(C.flatten() if C.ndim else C))
    size = float(C.abs().max())
    if float((C - C.mT).abs().max()) > 1e-5 * size:
        raise ArgumentError("covariance", C, "it is not symmetric", "Pass (C + C.mT) / 2, if that is meant.")
    variances, axes = torch.linalg.eigh((C + C.mT).cpu() / 2)
    if float(variances[0]) < -1e-5 * size:
        problem = f"its smallest eigenvalue is {float(variances[0]):.3g}, and no variance is negative"
        raise ArgumentError("covariance", C, problem, "Pass the covariance of data, torch.cov(data.mT).")
    return _PrincipalAxes(Constant(axes), Constant(variances.clamp_min(0)), Constant(torch.zeros((), dtype=axes.dtype)))
