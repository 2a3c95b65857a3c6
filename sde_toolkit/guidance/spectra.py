"""Fourier transforms of real events, with real arithmetic outside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_toolkit.guidance.constants import Constant

__all__ = ["HartleyBasis", "fft", "fft_axes", "filtered", "inverse_fft"]


def fft_axes(count: int) -> tuple[int, ...]:
    """The last ``count`` axes."""
    return tuple(range(-count, 0))


def fft(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The orthonormal Fourier transform of real x. FFTs need rows, and no half precision: that is done in float32."""
    if x.shape[0] == 0:
        return torch.complex(_single(x), _single(x))
    return torch.fft.fftn(_single(x), dim=axes, norm="ortho")


def inverse_fft(spectrum: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Its inverse."""
    return torch.fft.ifftn(spectrum, dim=axes, norm="ortho") if spectrum.shape[0] else spectrum


def filtered(x: Tensor, response: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Real x with each frequency k times response(k), whose real event has the non-negative k of the last axis."""
    if x.shape[0] == 0:
        return x
    sizes = tuple(x.shape[axis] for axis in axes)
    return torch.fft.irfftn(torch.fft.rfftn(_single(x), dim=axes) * response, s=sizes, dim=axes).to(x.dtype)


def _single(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class HartleyBasis:
    """Some vectors of Hartley's orthonormal basis, cos + sin. The transform is real, and its own inverse.

    The coefficient at a frequency is Re X̂ − Im X̂. A convolution with a symmetric kernel is diagonal in this basis.

    Args:
        event_shape: the shape of an event.
        axes: the last axes, along which it is transformed.
        places: (r,), which of the coefficients in their order in memory.
    """

    def __init__(self, event_shape: tuple[int, ...], axes: tuple[int, ...], places: Tensor) -> None:
        self.event_shape, self.axes = event_shape, axes
        self._places = Constant(places)

    def coefficients(self, x: Tensor) -> Tensor:
        """(B, *event) to (B, r)."""
        flat = self._transformed(x).reshape(x.shape[0], math.prod(self.event_shape))
        return flat.index_select(1, self._places.beside(x))

    def event(self, c: Tensor) -> Tensor:
        """(B, r) to (B, *event)."""
        flat = c.new_zeros(c.shape[0], math.prod(self.event_shape)).index_copy(1, self._places.beside(c), c)
        return self._transformed(flat.reshape(c.shape[0], *self.event_shape))

    def _transformed(self, x: Tensor) -> Tensor:
        spectrum = fft(x, self.axes)
        return (spectrum.real - spectrum.imag).to(x.dtype)
