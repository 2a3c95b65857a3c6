"""Standard normals from random words, two from each, by the method of Box and Muller (1958).

    u = (low + ½)/2³²,    θ = π high/2³¹,    r = √(−2 log u),    z = r cos θ,  z′ = r sin θ

``low`` and ``high`` are the halves of a word; ``high`` is signed. u and θ are rounded to float32 and are the same bits
on every device. Only log, cos and sin differ between libraries, by a few units in the last place. |z| is at most 6.8.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["ANGLE", "UNIT", "HostBoxMuller", "normals_by_torch"]

UNIT = 2.0**-32
ANGLE = float(np.float32(math.pi)) * 2.0**-31  # a float32 number, so that no device rounds it
_HALF, _UNIT, _MINUS_TWO, _ANGLE = (np.float32(value) for value in (0.5, UNIT, -2.0, ANGLE))
_WORD, _UNSIGNED, _SIGNED = (np.dtype(name) for name in ("<u8", "<u4", "<i4"))  # found by name takes time
_VECTOR = 64  # whole vectors only: a processor may compute the rest of an array by other instructions


class HostBoxMuller:
    """On the CPU, by numpy, in memory that is used again."""

    def __init__(self) -> None:
        self._buffers = np.empty((3, 0), np.float32)

    def __call__(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """r, cos θ, sin θ of uint64 words of any shape. They are overwritten by the next call."""
        n = words.size
        padded = -(-n // _VECTOR) * _VECTOR
        if padded > self._buffers.shape[1]:
            self._buffers = np.empty((3, padded), np.float32)
        halves = words.astype(_WORD, copy=False).reshape(n).view(_UNSIGNED)
        r, cosine, sine = self._buffers[:, :padded]
        r[:n], sine[:n] = halves[::2], halves.view(_SIGNED)[1::2]
        if padded > n:
            r[n:] = sine[n:] = 0
        np.add(r, _HALF, out=r)
        np.multiply(r, _UNIT, out=r)
        np.log(r, out=r)
        np.multiply(r, _MINUS_TWO, out=r)
        np.sqrt(r, out=r)
        np.multiply(sine, _ANGLE, out=sine)
        np.cos(sine, out=cosine)
        np.sin(sine, out=sine)
        return r[:n].reshape(words.shape), cosine[:n].reshape(words.shape), sine[:n].reshape(words.shape)


def normals_by_torch(words: Tensor) -> tuple[Tensor, Tensor]:
    """z and z′, float32, of int64 words of any shape, on their device."""
    u = ((words & 0xFFFFFFFF).to(torch.float32) + 0.5) * UNIT
    theta = (words >> 32).to(torch.float32) * ANGLE
    r = torch.sqrt(-2 * torch.log(u))
    return r * torch.cos(theta), r * torch.sin(theta)
