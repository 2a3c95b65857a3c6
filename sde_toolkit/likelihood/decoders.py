"""From the last latent to the data: log p(x | x_e), the reconstruction term of every bound.

All decoders are factorised around a center c(x_e) with one standard deviation s, in model space:

    GaussianDensity     N(x; c, s² I)                                             a density
    NormalisedLevels    N(x; c, s² I) / Σ over the levels of each element         Kingma et al. 2021 (VDM), eq. 12
    IntegratedBins      the mass of N(c, s² I) in the bin of x, end bins open     Ho et al. 2020 (DDPM), eq. 13

c = x_e/α_e, which needs no network, or the denoised estimate x̂_0(x_e) (``denoise=True``, one more evaluation), DDPM's
mean of its last step. s is σ_e/α_e by default. The last two are probabilities of levels: they sum to 1 over them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive
from sde_toolkit.errors import ArgumentError
from sde_toolkit.likelihood.levels import Levels
from sde_toolkit.transforms import Transform

__all__ = ["Decoder", "GaussianDensity", "IntegratedBins", "LevelMap", "NormalisedLevels"]

_REACH = 12.0  # standard deviations; what lies further from the center adds nothing to a sum in float64
_TABLE_ELEMENTS = 2**22  # elements of a table of levels
_OUTSIDE = 1e15  # in place of an infinite edge, whose quotients have no derivative


@dataclass(frozen=True)
class LevelMap:
    """Levels as a model sees them, through an elementwise, monotone transform."""

    levels: Levels
    transform: Transform

    def forward(self, index: Tensor) -> Tensor:
        """Places of levels, (B, *event), to their values in model space, float64."""
        return self.transform.forward(self.levels.at(index))

    def nearest(self, center: Tensor) -> Tensor:
        """The place of the level nearest to values in model space."""
        x = self.transform.inverse(center)
        return self.levels.index(x.nan_to_num(self.levels.low))

    def bins(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper edge, in model space, of the bins of the given places; the outer edges are infinite."""
        levels, first, last = self.levels, index == 0, index == self.levels.count - 1
        x, half = levels.at(index), levels.width / 2
        a = self.transform.forward(torch.where(first, x, x - half))
        b = self.transform.forward(torch.where(last, x, x + half))
        rising = a < b
        a = torch.where(first, torch.where(rising, -math.inf, math.inf), a)
        b = torch.where(last, torch.where(rising, math.inf, -math.inf), b)
        return torch.where(rising, a, b), torch.where(rising, b, a)

    def spacing(self, x: Tensor) -> float:
        """The least distance in model space of two neighbouring levels; ``x`` (1, *event), in data space, is looked at.

        Raises:
            ArgumentError: if the transform mixes the elements of an event.
        """
        index, least = self.levels.index(x), math.inf
        expected, found = self.forward(index), torch.full_like(x, math.nan, dtype=torch.float64)
        rows = max(2, min(self.levels.count, _TABLE_ELEMENTS // max(1, x.numel())))
        for first in range(0, self.levels.count - 1, rows - 1):
            places = torch.arange(first, min(first + rows, self.levels.count), device=x.device)
            table = self.forward(places.reshape(-1, *(1,) * (x.ndim - 1)).expand(len(places), *x.shape[1:]))
            least = min(least, table.diff(dim=0).abs().min().item())
            for place, row in zip(places.tolist(), table, strict=True):
                found = torch.where(index == place, row, found)
        if not torch.allclose(found, expected):
            problem = "it mixes the elements of an event, so that no element has levels of its own in model space"
            raise ArgumentError("transform", self.transform, problem, "Leave levels out, and dequantise the data.")
        return least


@dataclass(frozen=True)
class Decoder(ABC):
    """p(x | x_e) around a center.

    ``denoise``: whether the center is x̂_0(x_e) and not x_e/α_e. ``std``: s in model space; None is σ_e/α_e.

    Raises:
        ArgumentError: if ``std`` is not positive.
    """

    denoise: bool = False
    std: float | None = None

    of_levels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.std is not None:
            check_positive("std", self.std, "None is σ/α at the end.")

    @abstractmethod
    def log_prob(self, x: Tensor, center: Tensor, std: float, spacing: float, level_map: LevelMap | None) -> Tensor:
        """log p in nats per sample, (B,) float64.

        Args:
            x: (B, *event) float64, values in model space, or the places of levels for decoders of levels.
            center: (B, *event) float64.
            std: s.
            spacing: :meth:`LevelMap.spacing`.
            level_map: what the places mean.
        """


@dataclass(frozen=True)
class GaussianDensity(Decoder):
    """N(x; c, s² I), a density in model space."""

    of_levels: ClassVar[bool] = False

    def log_prob(self, x: Tensor, center: Tensor, std: float, spacing: float, level_map: LevelMap | None) -> Tensor:
        squares = _sum((x - center) ** 2)
        return -squares / (2 * std**2) - math.prod(x.shape[1:]) * (math.log(std) + 0.5 * math.log(2 * math.pi))

    @staticmethod
    def expected(dimension: int, std: float, tau: float) -> float:
        """E log p over x_e for the center x_e/α_e, which is N(x, τ² I)."""
        return -dimension * (tau**2 / (2 * std**2) + math.log(std) + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class NormalisedLevels(Decoder):
    """exp(−(level − c)²/2s²), normalised over all levels, element by element."""

    def log_prob(self, x: Tensor, center: Tensor, std: float, spacing: float, level_map: LevelMap | None) -> Tensor:
        known = _known(level_map)
        count = known.levels.count

        def exponent(index: Tensor) -> Tensor:
            return -((known.forward(index) - center) ** 2) / (2 * std**2)

        reach = math.ceil(_REACH * std / spacing) + 2
        if 2 * reach + 1 >= count:
            places = (torch.full_like(x, k) for k in range(count))
        else:  # the other terms are below the last digit of the sum
            middle = known.nearest(center).clamp(reach, count - 1 - reach)
            places = (middle + k for k in range(-reach, reach + 1))
        total = torch.full_like(center, -math.inf)
        for place in places:
            total = torch.logaddexp(total, exponent(place))
        return _sum(exponent(x) - total)


@dataclass(frozen=True)
class IntegratedBins(Decoder):
    """∫ N(y; c, s²) dy over the bin of the level, element by element; the first and the last bin are open.

    Differentiable in the center and in s, which may be a tensor here, of the shape of the center or broadcast to it.
    """

    denoise: bool = True

    def log_prob(
        self, x: Tensor, center: Tensor, std: float | Tensor, spacing: float, level_map: LevelMap | None
    ) -> Tensor:
        edges = _known(level_map).bins(x)
        is_open = edges[0].isinf() | edges[1].isinf()
        low, high = ((edge.clamp(-_OUTSIDE, _OUTSIDE) - center) / std for edge in edges)
        right = low + high > 0  # mirrored: a difference of two values near 1 has no digits
        low, high = torch.where(right, -high, low), torch.where(right, -low, high)
        low = torch.where(is_open, 0.0, low)  # nothing lies below an open bin, and nothing there has a derivative
        above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        rest = -torch.expm1(torch.where(is_open, -1.0, below - above))
        return _sum(above + torch.where(is_open, 0.0, torch.log(rest)))


def _sum(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1)


def _known(level_map: LevelMap | None) -> LevelMap:
    if level_map is None:
        raise ArgumentError("level_map", None, "a decoder of levels has to know them", "Pass levels=Levels().")
    return level_map
