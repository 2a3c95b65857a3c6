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
        halves = words.astype("<u8", copy=False).view("<u4").reshape(-1, 2)
        r, cosine, sine = buffers = self._buffers[:, :padded]
        r[:n], r[n:] = halves[:, 0], 0
        r += np.float32(0.5)
        r *= np.float32(UNIT)
        np.log(r, out=r)
        r *= np.float32(-2)
        np.sqrt(r, out=r)
        sine[:n], sine[n:] = halves.view("<i4")[:, 1], 0
        sine *= np.float32(ANGLE)
        np.cos(sine, out=cosine)
        np.sin(sine, out=sine)
        found = tuple(buffer[:n].reshape(words.shape) for buffer in buffers)
        return found[0], found[1], found[2]


def normals_by_torch(words: Tensor) -> tuple[Tensor, Tensor]:
    """z and z′, float32, of int64 words of any shape, on their device."""
    u = ((words & 0xFFFFFFFF).to(torch.float32) + 0.5) * UNIT
    theta = (words >> 32).to(torch.float32) * ANGLE
    r = torch.sqrt(-2 * torch.log(u))
    return r * torch.cos(theta), r * torch.sin(theta)
