"""Spherical interpolation between two noises: all points are as far from the origin as the two ends.

    slerp(z_0, z_1, w) = [sin((1 − w) θ) z_0 + sin(w θ) z_1] / sin θ,        θ the angle between z_0 and z_1

Shoemake 1985; Song et al. 2021a (DDIM), appendix D.5, eq. 67. In many dimensions D, draws from N(0, I) lie at
distance √D from the origin and at right angles to each other. The middle of the straight line between them is at
√(D/2), where the network was not trained.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating
from sde_toolkit.errors import ArgumentError

__all__ = ["slerp"]


def slerp(z_0: Tensor, z_1: Tensor, w: Any) -> Tensor:
    """Points at the fractions ``w`` of the angle between z_0 and z_1, sample by sample.

    Shapes: z_0 and z_1 (n, *event). w is a number, (n,) with one per sample, or anything that broadcasts with (n,).
    More axes of w come first in the result: ``torch.linspace(0, 1, 9)[:, None]`` gives (9, n, *event). Fractions
    outside [0, 1] continue along the circle.

    If z_0 and z_1 have the same direction, or one of them is 0, the result is the straight line between them.

    Raises:
        ArgumentError: for unequal shapes, a w that does not broadcast, and opposite vectors: many circles join them.
    """
    if not (isinstance(z_0, Tensor) and isinstance(z_1, Tensor) and z_0.shape == z_1.shape and z_0.ndim > 0):
        shapes = tuple(tuple(z.shape) if isinstance(z, Tensor) else z for z in (z_0, z_1))
        raise ArgumentError("z_0, z_1", shapes, "not two batches of one shape", "Pass tensors (n, *event).")
    z_0, z_1 = as_floating(z_0, "z_0"), as_floating(z_1, "z_1")
    n, event = len(z_0), (1,) * (z_0.ndim - 1)
    a, b = (z.reshape(n, math.prod(z.shape[1:])).to(torch.float64) for z in (z_0, z_1))
    sizes = [v.norm(dim=1, keepdim=True) for v in (a, b)]
    unit_a, unit_b = (v / size.where(size > 0, 1.0) for v, size in zip((a, b), sizes, strict=True))
    theta = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    theta = torch.where(torch.cat(sizes, 1).amin(1) > 0, theta, 0.0)
    opposite = math.pi - theta < 1e-6
    if bool(opposite.any()):
        i = int(opposite.int().argmax())
        problem, remedy = "they are opposite: many circles join them", "Change one of the two a little."
        raise ArgumentError("z_0, z_1", f"sample {i}", problem, remedy)
    fractions = torch.as_tensor(w, dtype=torch.float64, device=z_0.device)
    try:
        torch.broadcast_shapes(fractions.shape, (n,))
    except RuntimeError:
        problem = f"it does not broadcast with the {n} samples"
        raise ArgumentError("w", tuple(fractions.shape), problem, "Pass a number, (n,), or (m, 1).") from None
    of_0, of_1 = (
        v.reshape(v.shape + event).to(z_0.dtype) for v in (_weight(1 - fractions, theta), _weight(fractions, theta))
    )
    return of_0 * z_0 + of_1 * z_1


def _weight(w: Tensor, theta: Tensor) -> Tensor:
    """sin(w θ)/sin θ, which is w at θ = 0."""
    return w * torch.sinc(w * theta / math.pi) / torch.sinc(theta / math.pi)
