"""A distance of samples to endpoints of the flow, without pairs: one part for the whole, one for details.

    J = (SW² − 3 × what two sets of the flow are apart)₊/E|x*|² + Σ over levels w_l (log R_l − log R*_l)²

SW is the sliced Wasserstein distance. Its noise is that of the numbers of samples per mode, far above an error within
the modes; it counts for what exceeds three times that. R_l is the size of the denoising residual
√E|x − x̂_0(α x + σ z)|²/D at noise level l: the model's own account of how far samples lie from their neighbourhood, at
several scales, precise where SW is blind. R* is that of the flow's endpoints, and w_l falls with the relative variance
of its squares, which is large at levels where samples change modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["Likeness", "residuals", "sliced_squares"]

BLOCKS = 8
_LEVELS = (0.0, 1.0, 2.0, 3.0)  # λ, for data of size 1


def sliced_squares(x: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    """W_2² along each of the unit ``directions`` (D, P), for two sets of equal size: (P,)."""
    a, b = (torch.sort(v.reshape(len(v), -1) @ directions, dim=0).values for v in (x, target))
    return (a - b).square().mean(0)


def residuals(equation: ReverseEquation, x: Tensor, *, earliest: float, seed: int = 0, number: int = 0) -> Tensor:
    """|x − x̂_0(α x + σ z)|²/D at every level: (levels, n); z is that of the ``number``-th set of a seed."""
    sde = equation.sde
    low, high = sde.half_log_snr(1.0).item(), sde.half_log_snr(earliest).item()
    generator = generator_for(seed, Once.RESIDUALS, number)
    found = []
    levels = [level - math.log(equation.model.sigma_data) for level in _LEVELS]
    for value in (v for v in levels if low < v < high):
        t = sde.inverse_half_log_snr(torch.tensor(value, dtype=torch.float64))
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        x_t = sde.alpha(t).to(x) * x + sde.sigma(t).to(x) * z
        found.append((x - equation.denoise(x_t, t)).reshape(len(x), -1).square().mean(1))
    return torch.stack(found)


@dataclass(frozen=True, eq=False)
class Likeness:
    """The distance to endpoints ``target`` (n, *event); ``sizes`` (levels,) of their residuals, and ``weights``.

    ``seed``, ``number``: of the noise of residuals, which targets and samples share.
    """

    target: Tensor
    sizes: Tensor
    weights: Tensor
    seed: int = 0
    number: int = 0

    @classmethod
    def of(cls, equation: ReverseEquation, target: Tensor, earliest: float, seed: int = 0, number: int = 0) -> Likeness:
        squares = residuals(equation, target, earliest=earliest, seed=seed, number=number)
        relative_variance = squares.var(1) / squares.mean(1) ** 2
        return cls(target, squares.mean(1).sqrt(), 1 / relative_variance.clamp(min=1.0), seed, number)

    def _residuals(self, equation: ReverseEquation, x: Tensor, earliest: float) -> Tensor:
        return residuals(equation, x, earliest=earliest, seed=self.seed, number=self.number)

    def excess(self, x: Tensor, rows: slice | Tensor, directions: Tensor) -> Tensor:
        """SW² beyond three times that of two halves of the target, which is scaled to this number of samples."""
        half = len(self.target) // 2
        floor = sliced_squares(self.target[:half], self.target[half : 2 * half], directions).mean() * half / len(x)
        beyond = torch.relu(sliced_squares(x, self.target[rows], directions).mean() - 3 * floor)
        return beyond / self.target.square().mean()

    def loss(self, equation: ReverseEquation, x: Tensor, rows: Tensor, directions: Tensor, earliest: float) -> Tensor:
        """J, differentiable in x."""
        sizes = self._residuals(equation, x, earliest).mean(1).sqrt()
        return self.excess(x, rows, directions) + (self.weights * torch.log(sizes / self.sizes).square()).sum()

    def blocks(self, equation: ReverseEquation, x: Tensor, directions: Tensor, earliest: float) -> Tensor:
        """J in blocks of samples, (8,). The log-ratio of a block times that of all others has no bias."""
        squares = self._residuals(equation, x, earliest)
        parts = torch.stack([part.mean(1) for part in squares.chunk(BLOCKS, dim=1)])
        others = (parts.sum(0) - parts) / (len(parts) - 1)
        gaps = torch.log(parts.sqrt() / self.sizes) * torch.log(others.sqrt() / self.sizes)
        return ((self.weights * gaps).sum(1) + self.excess(x, slice(0, len(x)), directions)).to(torch.float64)
