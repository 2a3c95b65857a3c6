"""A measurement y = A x_0 + N(0, Σ_y): what methods of guidance ask of it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating
from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.foreign_operators import as_operator
from sde_toolkit.guidance.measurement_noise import MeasurementNoise, measurement_noise
from sde_toolkit.guidance.measurement_solves import ScaledSolve, scaled_solve
from sde_toolkit.guidance.operators import LinearOperator, check_rows
from sde_toolkit.noise.streams import Purpose, per_sample_noise
from sde_toolkit.showing import shown

__all__ = ["Measurement"]


@dataclass(frozen=True, eq=False)
class Measurement:
    """y = A x_0 + N(0, Σ_y), with one y for all samples or one for each.

    Args:
        A: an operator, or a matrix (m, D) for events (D,). Of anything else make one first: ``as_operator(A, shape)``.
        y: (*measured), for all samples; None: each sample has its own, which methods get as its condition.
        noise_std: σ_y, a number, or one per element (*measured). A method that divides by it refuses 0.
        noise_covariance: Σ_y instead, (m, m), m the number of elements of a measurement in their order in memory.

    Raises:
        ArgumentError: for a y of another shape than A(x), or not finite; for none or both of the noises; for a σ_y that
            is negative or not finite; for a Σ_y that is not symmetric and positive definite.
    """

    A: LinearOperator
    y: Tensor | None = None
    noise_std: float | Tensor | None = None
    noise_covariance: Tensor | None = None
    noise: MeasurementNoise = field(init=False, repr=False)
    _y: Constant | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "A", as_operator(self.A))
        if self.y is not None:
            object.__setattr__(self, "_y", Constant(_own_y(self.A, self.y)))
        noise = measurement_noise(self.noise_std, self.noise_covariance, self.A.measured_shape)
        object.__setattr__(self, "noise", noise)

    @property
    def noise_is_zero(self) -> bool:
        """Whether an element is measured without noise, so that nothing can be divided by Σ_y."""
        return self.noise.is_zero

    def check_noise(self, method: str) -> None:
        """Refuse a noise of 0, for a method that divides by it.

        Raises:
            ArgumentError: naming the method.
        """
        if self.noise_is_zero:
            value = self.noise_std
            remedy = "Pass a small noise_std above 0, or choose a method for measurements without noise, such as DDNM."
            raise ArgumentError("noise_std", value, f"{method} divides by it", remedy)

    def residual(self, x_0: Tensor, y: Tensor | None = None) -> Tensor:
        """e = y − A x_0, (B, *measured).

        Args:
            x_0: (B, *event).
            y: (*measured), or (B, *measured); None: the measurement's own.

        Raises:
            ArgumentError: for another shape; if there is no y.
        """
        return self.measured(x_0, y) - self.A(x_0)

    def measured(self, x_0: Tensor, y: Tensor | None = None) -> Tensor:
        """y on the device and in the dtype of x_0 (B, *event): (*measured), or (B, *measured).

        Raises:
            ArgumentError: for another shape, or if there is no y.
        """
        if y is None:
            if self._y is None:
                problem = "the measurement has no y of its own"
                remedy = "Make it with y=, or pass each sample's y as its condition: (B, *measured)."
                raise ArgumentError("y", None, problem, remedy)
            return self._y.beside(as_floating(x_0, "x_0"))
        shape, found = self.A.measured_shape, tuple(y.shape) if isinstance(y, Tensor) else None
        if found not in (shape, (x_0.shape[0], *shape)):
            problem = f"A(x) has shape {('B', *shape)}, for B = {x_0.shape[0]} samples".replace("'", "")
            raise ArgumentError("y", y if found is None else found, problem, "Pass y as A(x) gives it.")
        return y.to(x_0.device, x_0.dtype)

    def apply_covariance(self, e: Tensor) -> Tensor:
        """Σ_y e for e (B, *measured)."""
        return self.noise.covariance(self._checked(e))

    def apply_precision(self, e: Tensor) -> Tensor:
        """Σ_y⁻¹ e for e (B, *measured).

        Raises:
            ArgumentError: if the noise is 0.
        """
        self.check_noise("Σ_y⁻¹ e")
        return self.noise.precision(self._checked(e))

    def solve(self, e: Tensor, scale: float | Tensor) -> Tensor:
        """(s A Aᵀ + Σ_y)⁻¹ e, without an evaluation of the network.

        Where Σ_y is 0 it is the pseudo-inverse. By a closed form where A and Σ_y have one, by eigenvectors up to 1024
        elements, and by conjugate gradients beyond.

        Args:
            e: (B, *measured).
            scale: s, not negative: a number, 0-dim, or one per sample, (B, 1, ..., 1).

        Raises:
            ArgumentError: for another shape.
        """
        e = self._checked(e)
        return self._solve(e, _beside(scale, e))

    @property
    def solves_directly(self) -> bool:
        """Whether :meth:`solve` has a closed form, and is cheap."""
        return self._solve.direct

    @functools.cached_property
    def _solve(self) -> ScaledSolve:
        return scaled_solve(self.A, self.noise)

    def log_likelihood(self, x_0: Tensor, y: Tensor | None = None) -> Tensor:
        """log N(y; A x_0, Σ_y), (B,), in nats.

        Raises:
            ArgumentError: if the noise is 0, for another shape, or if there is no y.
        """
        self.check_noise("log N(y; A x_0, Σ_y)")
        m = math.prod(self.A.measured_shape)
        white = self.noise.whiten(self.residual(x_0, y)).reshape(x_0.shape[0], m)
        return -0.5 * (white.square().sum(1) + self.noise.log_determinant(m) + m * math.log(2 * math.pi))

    def simulate(self, x_0: Tensor, *, seed: int = 0, first_index: int = 0) -> Tensor:
        """A x_0 + noise, (B, *measured). Sample i has the noise of its own stream ``(seed, first_index + i)``."""
        clean = self.A(x_0)
        draw = per_sample_noise(
            seed,
            first_index,
            tuple(clean.shape),
            dtype=clean.dtype,
            device=clean.device,
            purpose=Purpose.MEASUREMENT,
        )
        return clean + self.noise.colour(draw())

    def __repr__(self) -> str:
        given = {"y": self.y, "noise_std": self.noise_std, "noise_covariance": self.noise_covariance}
        named = "".join(f", {name}={shown(value)}" for name, value in given.items() if value is not None)
        return f"Measurement({self.A!r}{named})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_solve"}  # which is computed again

    def _checked(self, e: Tensor) -> Tensor:
        return check_rows("e", e, self.A.measured_shape, "Pass residuals y − A x_0.")


def _own_y(A: LinearOperator, y: Any) -> Tensor:
    """y (*measured), floating-point numbers.

    Raises:
        ArgumentError: naming it.
    """
    y = as_floating(y, "y")
    if tuple(y.shape) != A.measured_shape or y.is_complex():
        problem = f"A(x) has shape {A.measured_shape} for one x"
        remedy = "Pass one y without the batch, A(x)[0]. With a y per sample leave y out: it is the condition then."
        if tuple(y.shape) == A.event_shape:
            remedy = "It has the shape of an event. Pass what is measured of it, A(image[None])[0]."
        raise ArgumentError("y", tuple(y.shape), problem, remedy)
    if not bool(y.isfinite().all()):
        raise ArgumentError("y", y, "not all of its numbers are finite", "Remove them with a Mask, or replace them.")
    return y


def _beside(scale: float | Tensor, e: Tensor) -> Tensor:
    """A scale as a 0-dim tensor or (B, 1, ..., 1) with the axes of e.

    Raises:
        ArgumentError: unless it is a number, or one number per sample.
    """
    if not isinstance(scale, Tensor):
        if not (is_number(scale) and scale >= 0):
            remedy = "Pass r², the variance of x_0 given x_t."
            raise ArgumentError("scale", scale, "it must be finite and not negative", remedy)
        return torch.full((), scale, dtype=e.dtype, device=e.device)
    if scale.ndim == 0:
        return scale.to(e.device, e.dtype)
    if scale.numel() != scale.shape[0] or scale.shape[0] not in (1, e.shape[0]):
        problem = f"e has {e.shape[0]} rows"
        raise ArgumentError("scale", tuple(scale.shape), problem, "Pass a number, or one per sample, (B, 1, ..., 1).")
    return scale.to(e.device, e.dtype).reshape(-1, *(1,) * (e.ndim - 1))
