"""Two distances between samples and a mixture: sliced Wasserstein, and the spread inside the modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spread", "directions", "sliced_wasserstein", "spread"]


def directions(dimension: int, count: int = 128, seed: int = 0) -> Tensor:
    """Unit vectors as columns, (dimension, count) float32; all angles of a half circle, evenly, in two dimensions."""
    if dimension == 2:
        angle = math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
        return torch.stack([angle.cos(), angle.sin()]).float()
    normal = torch.randn(dimension, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (normal / normal.norm(dim=0)).float()


def sliced_wasserstein(x: Tensor, y: Tensor, lines: Tensor) -> float:
    """√(mean over lines of W_2²) between equally many points, (n, D) each, by sorting their projections.

    Two finite sets of one distribution are a positive distance apart; compare with that floor.
    """
    if x.shape != y.shape:
        raise ValueError(f"two sets of one shape are needed, not {tuple(x.shape)} and {tuple(y.shape)}")
    total = 0.0
    for columns in lines.split(8, dim=1):
        a, b = ((points.float() @ columns).T.contiguous().sort(dim=1).values for points in (x, y))
        total += float((a - b).double().square().mean(dim=1).sum())
    return math.sqrt(total / lines.shape[1])


@dataclass(frozen=True)
class Spread:
    """Within-mode spread, each 1 for samples that are right.

    Attributes:
        variance: mean over samples and coordinates of (x − m)²/std², m the *true* mean of the mode nearest to x. Strays
            between the modes count fully.
        median: median over samples of |x − m|²/std², over chi-squared's with D degrees; strays hardly count.
        strays: the share of samples farther from every mode than exact samples are, but for one in 10 000.
    """

    variance: float
    median: float
    strays: float


def spread(x: Tensor, means: Tensor, std: float, exact: Tensor | None = None) -> Spread:
    """The within-mode spread of x, (n, D).

    Args:
        exact: exact samples; both ratios are divided by theirs. Where modes overlap, assignment to the nearest mode
            cuts the modes' tails, and an exact sample alone would give less than 1.
    """

    def raw(points: Tensor) -> tuple[float, float, Tensor]:
        nearest = [torch.cdist(part.double(), means.double()).amin(dim=1) for part in points.split(1 << 16)]
        squared = torch.cat(nearest).square() / std**2
        return float(squared.mean()) / means.shape[1], float(squared.median()), squared

    variance, median, squared = raw(x)
    if exact is None:
        dimension = torch.tensor(0.5 * means.shape[1], dtype=torch.float64)
        # Wilson and Hilferty's quantiles of chi-squared are right to 1 % from D = 2 on.
        chi = [
            2 * float(dimension) * (1 - 1 / (9 * float(dimension)) + z * math.sqrt(1 / (9 * float(dimension)))) ** 3
            for z in (0.0, 3.719)
        ]
        reference = (1.0, chi[0], chi[1])
    else:
        own_variance, own_median, own = raw(exact)
        reference = (own_variance, own_median, float(own.sort().values[int(0.9999 * len(own))]))
    strays = float((squared > reference[2]).double().mean())
    return Spread(variance / reference[0], median / reference[1], strays)
