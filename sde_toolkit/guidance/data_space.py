"""A measurement of data, y = A x + noise, as one of what the model knows: z = T(x), with the model's transform T.

For x = shift + step z, element by element, y − A shift = A (step z) + noise. A step that all elements share divides y
and the noise; one per element becomes a part of A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.operators import LinearOperator
from sde_toolkit.transforms import Identity, Transform

__all__ = ["IntoModelSpace", "measurement_of_data"]


@dataclass(frozen=True, eq=False)
class IntoModelSpace:
    """y ↦ (y − offset)/step, of measurements of data; offset = A shift."""

    offset: Constant
    step: float

    def __call__(self, y: Tensor) -> Tensor:
        """y is (*measured) or (B, *measured)."""
        y = as_floating(y, "y")
        return (y - self.offset.beside(y)) / self.step


def measurement_of_data(
    transform: Transform, A: LinearOperator, y: Any, noise_std: Any, noise_covariance: Any
) -> tuple[Measurement, IntoModelSpace | None]:
    """The measurement in model space, and how a sample's own y is brought there; None: it stays as it is.

    Arguments as of :class:`Measurement`, in data space.

    Raises:
        ArgumentError: as :class:`Measurement`; for a transform that is not affine, element by element.
    """
    given = Measurement(A, y, noise_std, noise_covariance)  # refuses by the names that the caller knows
    if isinstance(transform, Identity):
        return given, None
    shift, step = _affine_parts(transform, A.event_shape)
    offset, first = A(shift)[0], float(step.flatten()[0])
    if bool((step == first).all()):
        into = IntoModelSpace(Constant(offset), first)
        if noise_std is not None:
            noise_std = noise_std / abs(first)
        else:
            noise_covariance = torch.as_tensor(noise_covariance, dtype=torch.float64) / first**2
    else:
        A, into = A @ _Scaled(step[0]), IntoModelSpace(Constant(offset), 1.0)
    own = None if given.y is None else into(torch.as_tensor(given.y).to(torch.float64))
    return Measurement(A, own, noise_std, noise_covariance), into


class _Scaled(LinearOperator):
    """Each element times a number of its own, ``step`` (*event)."""

    def __init__(self, step: Tensor) -> None:
        super().__init__(tuple(step.shape), tuple(step.shape))
        self._step = Constant(step)

    def apply(self, x: Tensor) -> Tensor:
        return x * self._step.beside(x)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return self.apply(y)


def _affine_parts(transform: Transform, event_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """shift and step (1, *event), float64, of data x = shift + step z.

    Raises:
        ArgumentError: if the transform is something else.
    """
    z = torch.randn(1, *event_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = transform.inverse(torch.zeros_like(z))
    step = transform.inverse(torch.ones_like(z)) - shift
    found = transform.inverse(3 * z)
    if not bool(((found - shift - 3 * step * z).abs() <= 1e-9 * (found.abs() + shift.abs())).all()):
        problem = "it is not affine, so that a linear A of data is not linear for the model"
        raise ArgumentError("transform", transform, problem, 'Measure in model space: space="model".')
    return shift, step
