"""Warping images with high-quality resampling: ×2 up, bilinear at twice the resolution, ×2 down.

Positions are in pixels. Pixel i is centred at i. The image is continued by mirroring at its edges −1/2 and W − 1/2.

    up      pixels are kept; the values half-way between them are P: Lagrange interpolation of the 2K = 6 nearest
            pixels (Deslauriers & Dubuc 1989)
    warp    y(p) = up(A p + b), bilinear between values that are half a pixel apart
    down    pixel_i + Σ_k ½ P_k d_(i+k), d = half-way value − P(pixels): the lifting step that makes P's dual a
            low-pass filter (Sweldens 1996)

Down undoes up exactly for any P, since d = 0. P is symmetric as well, so the identity, flips, quarter turns of square
images and shifts by whole pixels are exact permutations of the pixels. Karras et al. (2022) resample in the same way
with the wavelet filter sym6, which is not symmetric. All sums are written out element by element: no sample depends on
its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["half_way_weights", "warp"]

_K = 3  # pixels on either side of a half-way point
_MARGIN = 2 * _K - 1  # pixels outside the image on which `_down` depends, on each side


def half_way_weights(K: int) -> list[float]:
    """Weights of the pixels −K+1/2, …, K−1/2 in the value at 0: exact for polynomials of degree < 2K."""
    nodes = [m + 0.5 for m in range(-K, K)]
    weights = []
    for i, a in enumerate(nodes):
        weight = 1.0
        for j, b in enumerate(nodes):
            if i != j:
                weight *= b / (b - a)
        weights.append(weight)
    return weights


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """y(p) = x(A p + b) for every pixel p = (column, row) counted from the centre of the image.

    ``x``: (B, C, H, W) floating. ``matrix``: (B, 2, 3) = [A | b] in float64, b in pixels.
    """
    H, W = x.shape[-2:]
    fine = _up(_up(x, -1), -2)
    half = torch.arange(-2 * _MARGIN, 2 * (max(H, W) + _MARGIN) - 1, device=x.device, dtype=torch.float64) / 2
    column = (half[: 2 * (W + 2 * _MARGIN) - 1] - (W - 1) / 2)[None, None, :]
    row = (half[: 2 * (H + 2 * _MARGIN) - 1] - (H - 1) / 2)[None, :, None]
    m = matrix.to(x.device, torch.float64).reshape(len(x), 6, 1, 1)
    at_column = m[:, 0] * column + m[:, 1] * row + m[:, 2] + (W - 1) / 2
    at_row = m[:, 3] * column + m[:, 4] * row + m[:, 5] + (H - 1) / 2
    return _down(_down(_bilinear(fine, at_column, at_row), -2), -1)


def _mirrored(index: Tensor, n: int) -> Tensor:
    """Pixels of the image mirrored at its edges: …, 1, 0 | 0, 1, …, n−1 | n−1, …"""
    index = torch.remainder(index, 2 * n)
    return torch.minimum(index, 2 * n - 1 - index)


def _up(x: Tensor, axis: int) -> Tensor:
    """(…, n, …) to the 2n + 1 values at −1/2, 0, 1/2, …, n − 1/2 along ``axis``."""
    x = x.movedim(axis, -1)
    n = x.shape[-1]
    wide = x[..., _mirrored(torch.arange(-_K, n + _K, device=x.device), n)]
    half = _weighted(wide, n + 1)
    fine = torch.empty(*x.shape[:-1], 2 * n + 1, dtype=x.dtype, device=x.device)
    fine[..., 1::2] = x
    fine[..., 0::2] = half
    return fine.movedim(-1, axis)


def _down(fine: Tensor, axis: int) -> Tensor:
    """The pixels of the frame from those at −margin, −margin + 1/2, …, n − 1 + margin along ``axis``."""
    fine = fine.movedim(axis, -1)
    pixels, half = fine[..., 0::2], fine[..., 1::2]
    n = pixels.shape[-1] - 2 * _MARGIN
    detail = half[..., _K - 1 : half.shape[-1] - _K + 1] - _weighted(pixels, n + 2 * _K - 1)
    return (pixels[..., _MARGIN : _MARGIN + n] + 0.5 * _weighted(detail, n)).movedim(-1, axis)


def _weighted(x: Tensor, n: int) -> Tensor:
    """n interpolated values, the first from the first 2K elements of the last axis."""
    total = torch.zeros(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
    for k, weight in enumerate(half_way_weights(_K)):
        total = total + weight * x[..., k : k + n]
    return total


def _bilinear(fine: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Values at positions (B, h, w) in pixels of the image whose ``fine`` values start at −1/2."""
    C, rows, columns = fine.shape[1:]
    left, right, along = _neighbours(column, columns)
    above, below, down = _neighbours(row, rows)
    flat = fine.flatten(2)
    along, down = along.to(fine.dtype)[:, None], down.to(fine.dtype)[:, None]

    def at(r: Tensor, c: Tensor) -> Tensor:
        index = (r * columns + c).flatten(1)[:, None].expand(-1, C, -1)
        return flat.gather(2, index).unflatten(2, column.shape[1:])

    upper = at(above, left) * (1 - along) + at(above, right) * along
    lower = at(below, left) * (1 - along) + at(below, right) * along
    return upper * (1 - down) + lower * down


def _neighbours(position: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two nearest of n values, and the weight of the second."""
    u = torch.remainder(2 * position + 1, 2 * (n - 1))
    u = torch.minimum(u, 2 * (n - 1) - u)
    first = u.floor().clamp(0, n - 1)
    lower = first.long()
    return lower, (lower + 1).clamp(max=n - 1), u - first
