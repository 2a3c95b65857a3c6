"""Operators on signals and images: some elements alone, a blur, averages, colours to grey."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive, is_count, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.operators import SVD, LinearOperator, as_shape
from sde_toolkit.guidance.spectra import HartleyBasis, fft_axes, filtered

__all__ = ["Blur", "Downsample", "Grey", "Mask", "kept_places"]


class Mask(LinearOperator):
    """The elements where the mask is 1, in one row: (m,). Aᵀ y has them in their places, and zeros between.

    Args:
        mask: 1 or True where x_0 is measured, of the shape of an event, or one that broadcasts to it.
        event_shape: by default that of the mask.

    Raises:
        ArgumentError: for a mask that is not of zeros and ones, keeps nothing, or does not fit the event.
    """

    row_gram = 1.0
    closed_svd: ClassVar[bool] = True

    def __init__(self, mask: Tensor, event_shape: Sequence[int] | None = None) -> None:
        places, shape = kept_places(mask, event_shape)
        super().__init__(shape, (len(places),))
        self._places = Constant(places)

    def apply(self, x: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], math.prod(self.event_shape))
        return flat.index_select(1, self._places.beside(x))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        empty = y.new_zeros(y.shape[0], math.prod(self.event_shape))
        return empty.index_copy(1, self._places.beside(y), y).reshape(y.shape[0], *self.event_shape)

    def _decomposed(self) -> SVD:
        return _svd_of_orthogonal_rows(self)


def kept_places(mask: Any, event_shape: Any) -> tuple[Tensor, tuple[int, ...]]:
    """Where a mask of zeros and ones is 1, as places (m,) in a flattened event; and the event's shape.

    Raises:
        ArgumentError: for a mask that is not of zeros and ones, keeps nothing, or does not fit the event.
    """
    if not isinstance(mask, Tensor) or mask.ndim == 0:
        raise ArgumentError("mask", mask, "not a tensor of the shape of an event", "Pass a tensor of zeros and ones.")
    shape = as_shape("event_shape", tuple(mask.shape) if event_shape is None else event_shape)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ArgumentError("mask", mask, "not all of its numbers are 0 or 1", "Compare with a level: mask > 0.5.")
    try:
        whole = mask.broadcast_to(shape)
    except RuntimeError:
        problem = f"it does not broadcast to an event of shape {shape}"
        raise ArgumentError("mask", tuple(mask.shape), problem, "Give it the shape of an event.") from None
    places = (whole.reshape(-1) == 1).nonzero().squeeze(1)
    if not len(places):
        raise ArgumentError(
            "mask", mask, "it has no 1, so nothing is measured", "1 is what is measured, 0 what is not."
        )
    return places, shape


class Blur(LinearOperator):
    """Convolution with a kernel along the last axes, periodic: (A x)_i = Σ_j k_j x_(i − j + c), c the kernel's middle.

    Computed by FFT, so that the size of the kernel costs nothing.

    Args:
        kernel: (k,) along the last axis or (k, l) along the last two; its middle is at k // 2. It is not normalised.
        event_shape: (D,), (C, H, W), ...; all channels have the same kernel.

    Raises:
        ArgumentError: for a kernel that is not finite, has no or more axes than the event, or is larger.
    """

    closed_svd: ClassVar[bool] = True

    def __init__(self, kernel: Tensor, event_shape: Sequence[int]) -> None:
        shape = as_shape("event_shape", event_shape)
        kernel = _kernel(kernel, shape)
        super().__init__(shape, shape)
        self._axes = fft_axes(kernel.ndim)
        sizes = shape[-kernel.ndim :]
        whole = torch.zeros(sizes, dtype=torch.float64)
        whole[tuple(slice(k) for k in kernel.shape)] = kernel
        whole = whole.roll(tuple(-(k // 2) for k in kernel.shape), self._axes)
        spectrum = torch.fft.fftn(whole)
        size = spectrum.abs()
        self._half, self._size = Constant(spectrum[..., : sizes[-1] // 2 + 1]), size
        turn = torch.where(size > 0, spectrum / size, 1)  # e^(iφ), φ the phase of the spectrum
        self._turn = Constant(turn[..., : sizes[-1] // 2 + 1])

    @classmethod
    def gaussian(cls, std: float, event_shape: Sequence[int], axes: int | None = None) -> Blur:
        """A normalised Gaussian of standard deviation ``std``, in elements, along the last one or two axes.

        ``axes``: how many; by default one of a signal (D,), two of an image.
        """
        std, shape = (
            check_positive("std", std, "Pass the width in elements, 1.5."),
            as_shape("event_shape", event_shape),
        )
        count = min(len(shape), 2) if axes is None else axes
        if count not in (1, 2) or count > len(shape):
            raise ArgumentError(
                "axes", axes, f"an event of shape {shape} is blurred along 1 or 2 axes", "Leave it out."
            )
        along = shape[-count:]
        kernel = torch.ones((), dtype=torch.float64)
        for n in along:
            weights = torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - n // 2) / std) ** 2)
            kernel = kernel.unsqueeze(-1) * (weights / weights.sum())
        return cls(kernel, shape)

    def apply(self, x: Tensor) -> Tensor:
        return filtered(x, self._half.beside(x), self._axes)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return filtered(y, self._half.beside(y).conj(), self._axes)

    def _decomposed(self) -> SVD:
        """In Hartley's real basis H: A = (F* e^(iφ) F H) |k̂| H."""
        size = self._size.broadcast_to(self.event_shape).reshape(-1)
        places = (size > size.max() * len(size) * torch.finfo(size.dtype).eps).nonzero().squeeze(1)
        basis = HartleyBasis(self.event_shape, self._axes, places)
        axes, turn = self._axes, self._turn

        return SVD(
            size[places],
            to_range=lambda y: basis.coefficients(filtered(y, turn.beside(y).conj(), axes)),
            from_range=lambda c: filtered(basis.event(c), turn.beside(c), axes),
            to_domain=basis.coefficients,
            from_domain=basis.event,
        )


def _kernel(kernel: Any, shape: tuple[int, ...]) -> Tensor:
    """The kernel in float64.

    Raises:
        ArgumentError: unless it is one of finite real numbers, with one or two axes, no larger than the event.
    """
    if not isinstance(kernel, Tensor) or kernel.ndim not in (1, 2) or kernel.is_complex() or 0 in kernel.shape:
        raise ArgumentError("kernel", kernel, "not a real tensor (k,) or (k, l)", "Pass torch.ones(3, 3) / 9.")
    if not bool(kernel.isfinite().all()):
        raise ArgumentError("kernel", kernel, "not all of its numbers are finite", "Pass finite numbers.")
    if kernel.ndim > len(shape) or any(k > n for k, n in zip(kernel.shape, shape[-kernel.ndim :], strict=True)):
        problem = f"it is larger than an event of shape {shape}"
        raise ArgumentError("kernel", tuple(kernel.shape), problem, "Cut it to the size of the event.")
    return kernel.detach().to("cpu", torch.float64)


class Downsample(LinearOperator):
    """Means of blocks: each axis is ``factor`` times shorter.

    Args:
        factor: a whole number, for the last axis of a signal (D,) and for the last two of an image; or one per axis,
            for the last axes.
        event_shape: (D,), (C, H, W), ...

    Raises:
        ArgumentError: for a factor that does not divide its axis.
    """

    closed_svd: ClassVar[bool] = True

    def __init__(self, factor: int | Sequence[int], event_shape: Sequence[int]) -> None:
        shape = as_shape("event_shape", event_shape)
        factors: Any = (factor,) * min(len(shape), 2) if is_count(factor) else factor
        if not isinstance(factors, Sequence) or not 0 < len(factors) <= len(shape) or not all(map(is_count, factors)):
            problem = f"not a whole number, or one for each of the last axes of {shape}"
            raise ArgumentError("factor", factor, problem, "Pass 2, or (2, 2).")
        lengths = shape[-len(factors) :]
        if any(n % f for n, f in zip(lengths, factors, strict=True)):
            remedy = "Pass a factor that divides the length, or cut or pad the events."
            raise ArgumentError("factor", factor, f"it does not divide the axes {lengths} of {shape}", remedy)
        self.factors = tuple(map(int, factors))
        self._rest = shape[: -len(factors)]
        self._blocks = tuple(
            n for pair in zip(lengths, self.factors, strict=True) for n in (pair[0] // pair[1], pair[1])
        )
        super().__init__(shape, (*self._rest, *self._blocks[::2]))
        self.row_gram = 1 / math.prod(self.factors)

    def apply(self, x: Tensor) -> Tensor:
        axes = tuple(range(-2 * len(self.factors) + 1, 0, 2))
        return x.reshape(x.shape[0], *self._rest, *self._blocks).mean(axes)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        singles = (n for length in self._blocks[::2] for n in (length, 1))
        blocks = (y / math.prod(self.factors)).reshape(y.shape[0], *self._rest, *singles)
        return blocks.expand(y.shape[0], *self._rest, *self._blocks).reshape(y.shape[0], *self.event_shape)

    def _decomposed(self) -> SVD:
        return _svd_of_orthogonal_rows(self)


class Grey(LinearOperator):
    """A weighted sum of the channels of an image (C, H, W): (1, H, W).

    Args:
        event_shape: (C, ...).
        weights: one per channel; by default the luma of ITU-R BT.601 for three channels, the mean for others.

    Raises:
        ArgumentError: unless there is a finite weight for each channel, and one that is not 0.
    """

    closed_svd: ClassVar[bool] = True

    def __init__(self, event_shape: Sequence[int], weights: Sequence[float] | None = None) -> None:
        shape = as_shape("event_shape", event_shape)
        if weights is None:
            weights = (0.299, 0.587, 0.114) if shape[0] == 3 else (1 / shape[0],) * shape[0]
        if not isinstance(weights, Sequence) or len(weights) != shape[0] or not all(map(is_number, weights)):
            problem = f"not one finite number for each of the {shape[0]} channels"
            raise ArgumentError("weights", weights, problem, "Pass (0.299, 0.587, 0.114), for example.")
        if not any(weights):
            raise ArgumentError("weights", weights, "all are 0, so nothing is measured", "Pass a weight that is not 0.")
        super().__init__(shape, (1, *shape[1:]))
        column = torch.tensor([float(w) for w in weights], dtype=torch.float64)
        self._weights = Constant(column.reshape(-1, *(1,) * (len(shape) - 1)))
        self.row_gram = float(column.square().sum())

    def apply(self, x: Tensor) -> Tensor:
        return (x * self._weights.beside(x)).sum(1, keepdim=True)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return y * self._weights.beside(y)

    def _decomposed(self) -> SVD:
        return _svd_of_orthogonal_rows(self)


def _svd_of_orthogonal_rows(A: LinearOperator) -> SVD:
    """Of A with A Aᵀ = g I: s = √g, U = I, V = Aᵀ/√g."""
    s, m = math.sqrt(A.row_gram or 0.0), A.measured_shape
    return SVD(
        torch.full((math.prod(m),), s, dtype=torch.float64),
        to_range=lambda y: y.reshape(y.shape[0], math.prod(m)),
        from_range=lambda c: c.reshape(c.shape[0], *m),
        to_domain=lambda x: A(x).reshape(x.shape[0], math.prod(m)) / s,
        from_domain=lambda c: A.adjoint(c.reshape(c.shape[0], *m)) / s,
    )
