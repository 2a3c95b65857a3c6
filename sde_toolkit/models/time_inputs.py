"""What a network is told about time. It is told the SDE's own t only by ``ScaledTime()``.

Each is an immutable callable ``(sde, t) -> Tensor`` of the shape of ``t``; any other callable of that form
serves as well (only these are written into a checkpoint by name).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.checks import as_python, check_positive, is_count, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde import SDE, Time

__all__ = ["DiscreteIndex", "NoiseAngle", "NoiseLevel", "NoiseRatio", "RemainingTime", "ScaledTime"]


@dataclass(frozen=True)
class ScaledTime:
    """``scale`` · t. score_sde's continuous networks use 999, others 1000 or 1."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _keep_number(self)

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return self.scale * t


@dataclass(frozen=True)
class DiscreteIndex:
    """N t − 1: the index i−1 of DDPM's step i at t = i/N (0 .. N−1), fractional between the steps.

    Below t = 1/N it is 0, the network's first index: it has learned no earlier index. At t = i/N it is whole, whatever
    rounding makes of N t, so that an embedding may round or truncate it.

    ``whole``: the network looks the index up in a table (``nn.Embedding``). It is told the nearest index, an integer.
    Its score then jumps in the middle between two times i/N; on a grid of such times it is exact. ``None``: it is told
    whole numbers only if it takes nothing else.
    """

    N: int = 1000
    whole: bool | None = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "N", as_python(self.N))
        if not (is_count(self.N) and is_number(self.N)):
            raise ArgumentError("N", self.N, "a discrete network has at least one step", "DDPM's has 1000.")

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        if not isinstance(t, Tensor):
            t = torch.as_tensor(t, dtype=torch.float64)
        position = self.N * t
        whole = position.detach().round()
        off = whole - position.detach()
        slack = 2 * torch.finfo(position.dtype).eps * whole
        index = (position + torch.where(off.abs() <= slack, off, 0.0) - 1).clamp(min=0.0)
        return index.round() if self.whole else index


@dataclass(frozen=True)
class NoiseLevel:
    """``scale`` · log(σ/α) = −``scale`` · λ: with 1/4, EDM's c_noise (Karras et al. 2022, table 1).

    The one time input that means the same under every SDE. Not finite where α or σ vanishes. ``unit``: the noise level
    that is told as 0, so that log(σ/(α unit)) is told; 2 for VE networks of Karras et al.
    """

    scale: float = 0.25
    unit: float = 1.0

    def __post_init__(self) -> None:
        _keep_number(self)
        object.__setattr__(self, "unit", as_python(self.unit))
        check_positive("unit", self.unit, "Pass 1, or 2 for the VE networks of Karras et al. 2022.")

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        level = -self.scale * sde.half_log_snr(t)
        return level if self.unit == 1 else level - self.scale * math.log(self.unit)


@dataclass(frozen=True)
class NoiseRatio:
    """``scale`` · σ/α: the σ that EDM's and k-diffusion's denoisers and score_sde's VE networks are told."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _keep_number(self)

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return self.scale * torch.exp(-sde.half_log_snr(t))


@dataclass(frozen=True)
class NoiseAngle:
    """``scale`` · (2/π) atan(σ/α), from 0 (data) to 1 (noise): k-diffusion's networks that predict v are told it."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _keep_number(self)

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return (self.scale * 2 / math.pi) * torch.atan(torch.exp(-sde.half_log_snr(t)))


@dataclass(frozen=True)
class RemainingTime:
    """``scale`` · (1 − t): the time of networks that count from the noise to the data, as flow_matching's do."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _keep_number(self)

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return self.scale * (1 - t)


def _keep_number(part: ScaledTime | NoiseAngle | NoiseLevel | NoiseRatio | RemainingTime) -> None:
    """``scale`` as a plain number, which it has to be."""
    object.__setattr__(part, "scale", as_python(part.scale))
    if not is_number(part.scale):
        raise ArgumentError("scale", part.scale, "not a finite number", "Pass 1, 999 or 1000, for example.")
