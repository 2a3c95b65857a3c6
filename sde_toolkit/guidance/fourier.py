"""Subsampled Fourier measurements, as of MRI: some frequencies of an event, in real arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.operators import SVD, LinearOperator, as_shape
from sde_toolkit.guidance.pixel_operators import kept_places
from sde_toolkit.guidance.spectra import HartleyBasis, fft, fft_axes, inverse_fft

__all__ = ["Fourier"]


class Fourier(LinearOperator):
    """The orthonormal Fourier transform of real events, at some frequencies.

    A(x) is (..., 2, n): real and imaginary part at n frequencies, for each of the other axes of x. The frequencies k
    and −k of a real event tell the same. So A Aᵀ is never the identity: a singular value is 1 where k = −k or where
    both are measured, and √½ where one of the two is.

    Args:
        mask: 1 or True at the frequencies that are measured, along the last axes of an event, frequency 0 first; for a
            mask with frequency 0 in the middle pass ``torch.fft.ifftshift(mask)``.
        event_shape: by default that of the mask.

    Raises:
        ArgumentError: for a mask that is not of zeros and ones, measures nothing, or does not fit the event.
    """

    closed_svd: ClassVar[bool] = True

    def __init__(self, mask: Tensor, event_shape: Sequence[int] | None = None) -> None:
        places, sizes = kept_places(mask, None)
        shape = sizes if event_shape is None else as_shape("event_shape", event_shape)
        if shape[-len(sizes) :] != sizes:
            problem = f"it has one number per frequency of the last axes, and an event has shape {shape}"
            raise ArgumentError("mask", sizes, problem, f"Pass a mask of shape {shape[-min(2, len(shape)) :]}.")
        self._rest = shape[: len(shape) - len(sizes)]
        super().__init__(shape, (*self._rest, 2, len(places)))
        self._sizes, self._axes, self._places = sizes, fft_axes(len(sizes)), Constant(places)

    def apply(self, x: Tensor) -> Tensor:
        spectrum = fft(x, self._axes).reshape(x.shape[0], *self._rest, math.prod(self._sizes))
        kept = spectrum.index_select(-1, self._places.beside(x))
        return torch.stack([kept.real, kept.imag], -2).to(x.dtype)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        y_full = y if y.dtype in (torch.float32, torch.float64) else y.float()
        kept = torch.complex(*y_full.unbind(-2))
        spectrum = kept.new_zeros(y.shape[0], *self._rest, math.prod(self._sizes))
        spectrum = spectrum.index_copy(-1, self._places.beside(y), kept)
        return inverse_fft(spectrum.reshape(y.shape[0], *self.event_shape), self._axes).real.to(y.dtype)

    def _decomposed(self) -> SVD:
        """Aᵀ A is a convolution whose spectrum is the mean of the masks at k and −k: diagonal in Hartley's basis V."""
        mask = torch.zeros(math.prod(self._sizes), dtype=torch.float64)
        mask[self._places.value] = 1
        mask = mask.reshape(self._sizes)
        opposite = mask.flip(self._axes).roll((1,) * len(self._sizes), self._axes)
        squares = ((mask + opposite) / 2).broadcast_to(self.event_shape).reshape(-1)
        places = squares.nonzero().squeeze(1)
        basis, s = HartleyBasis(self.event_shape, self._axes, places), squares[places].sqrt()
        scale = Constant(s)
        return SVD(
            s,
            to_range=lambda y: basis.coefficients(self.adjoint(y)) / scale.beside(y),
            from_range=lambda c: self(basis.event(c / scale.beside(c))),
            to_domain=basis.coefficients,
            from_domain=basis.event,
        )
