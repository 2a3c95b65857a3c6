"""Augmentation as a pure function of (x, random numbers), in model space.

Every random number comes in as an argument: ``uniform`` (B, k) in [0, 1) and ``normal`` (B, l) standard normal, where
``(k, l) = augmentation.draws``. The caller decides what they depend on; the trainer keys them by seed, step and index.
The result is (x, labels). The labels (B, width) tell the network what was done to each sample; they are zero where
nothing was done. A network that is given zeros therefore samples from the data without augmentation ("non-leaking").

`EDMAugmentation` (Karras et al. 2022, "Elucidating the Design Space", appendix F.2, table 6): each row is applied with
probability p. The geometric transforms act in this order, in one resampling:

    transform    parameters                            labels
    x-flip       a ∈ {0, 1}                            a
    y-flip       a ∈ {0, 1}                            a
    scaling      2^(0.2 a), a ~ N(0, 1)                a
    rotation     by −a, a ~ U(−π, π)                   cos a − 1, sin a
    anisotropy   2^(±0.2 b) along and across a,        b cos a, b sin a
                 a ~ U(−π, π), b ~ N(0, 1)
    translation  W a / 8, H b / 8, a, b ~ N(0, 1)      a, b

Angles turn x (columns, to the right) towards y (rows, downwards). Labels of anisotropy are as published: (a, b) and
(a + π, −b) have the same label, although the first stretches where the second shrinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_toolkit.checks import branches_on_data, is_number
from sde_toolkit.data.warping import warp
from sde_toolkit.errors import ArgumentError

__all__ = ["Augmentation", "Draws", "EDMAugmentation", "HorizontalFlip", "NoAugmentation", "horizontal_flip"]


class Draws(NamedTuple):
    """How many random numbers one sample needs."""

    uniforms: int
    normals: int


@runtime_checkable
class Augmentation(Protocol):
    """What a trainer calls: ``augmented, labels = augmentation(x, uniform, normal)``."""

    @property
    def draws(self) -> Draws:
        """Uniform and normal numbers per sample."""
        ...

    @property
    def width(self) -> int:
        """Numbers per label; 0 if there are no labels."""
        ...

    def __call__(self, x: Tensor, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Augmented x of the same shape, and labels (B, width).

        ``x``: (B, *event) in model space; ``uniform``: (B, uniforms); ``normal``: (B, normals).
        """
        ...


def horizontal_flip(x: Tensor, uniform: Tensor, probability: float = 0.5) -> Tensor:
    """Mirror the last axis of the samples of ``x`` (B, …, W) whose ``uniform`` (B,) is below ``probability``.

    Raises:
        ArgumentError: unless there is one number per sample and an axis to mirror.
    """
    _check_probability("probability", probability)
    if x.ndim < 2:
        raise ArgumentError("x", tuple(x.shape), "there is no axis to mirror", "Pass (B, ..., W).")
    _check_draws("uniform", uniform, (len(x),))
    return _where((uniform < probability).to(x.device), x.flip(-1), x)


@dataclass(frozen=True)
class NoAugmentation:
    """Leaves x unchanged."""

    @property
    def draws(self) -> Draws:
        """No random numbers."""
        return Draws(0, 0)

    @property
    def width(self) -> int:
        """0: there are no labels."""
        return 0

    def __call__(self, x: Tensor, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor | None]:
        """x itself, and None for the labels."""
        return x, None


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with a probability. The network also learns to produce mirror images.

    Raises:
        ArgumentError: unless ``probability`` lies in [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("probability", self.probability)

    @property
    def draws(self) -> Draws:
        """One uniform number."""
        return Draws(1, 0)

    @property
    def width(self) -> int:
        """0: the network is not told."""
        return 0

    def __call__(self, x: Tensor, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor | None]:
        """x with those samples mirrored whose number is below ``probability``, and None for the labels."""
        _check_draws("uniform", uniform, (len(x), 1))
        return horizontal_flip(x, uniform[:, 0], self.probability), None


@dataclass(frozen=True)
class EDMAugmentation:
    """Flips, scaling, rotation, anisotropy and translation, each with ``probability``, and nine labels.

    The other numbers multiply ``probability``: 0 leaves a transform out. As in EDM, ``x_flip`` is so large that the row
    is always applied: half of the samples are mirrored. Give 0 for data such as digits, whose mirror images mean
    something else. EDM uses probability 0.12 for CIFAR-10 and 0.15 for FFHQ and AFHQv2.

    Raises:
        ArgumentError: unless ``probability`` lies in [0, 1] and no factor is negative.
    """

    probability: float = 0.12
    x_flip: float = 1e8
    y_flip: float = 1.0
    scaling: float = 1.0
    rotation: float = 1.0
    anisotropy: float = 1.0
    translation: float = 1.0

    def __post_init__(self) -> None:
        _check_probability("probability", self.probability)
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ArgumentError(name, value, "not a number >= 0", f"Give {name}=0 to leave it out, 1 to use it.")

    @property
    def draws(self) -> Draws:
        """Eight uniform numbers (flips, four switches, two angles) and four normal ones."""
        return Draws(8, 4)

    @property
    def width(self) -> int:
        """9 numbers per label."""
        return 9

    def __call__(self, x: Tensor, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Transformed images (B, C, H, W) and their labels (B, 9) in float32.

        Raises:
            ArgumentError: if x is no batch of floating-point images, or the numbers have another shape.
        """
        if x.ndim != 4 or not x.is_floating_point():
            problem = "EDM's transforms act on floating-point images (B, C, H, W) in model space"
            raise ArgumentError("x", (tuple(x.shape), x.dtype), problem, "Use HorizontalFlip or NoAugmentation.")
        _check_draws("uniform", uniform, (len(x), 8))
        _check_draws("normal", normal, (len(x), 4))
        u, n = uniform.double().unbind(1), normal.double().unbind(1)
        mirror = [u[0] < self._chance("x_flip") / 2, u[1] < self._chance("y_flip") / 2]
        on = [u[i] < self._chance(fields(self)[i + 1].name) for i in range(2, 6)]
        size, turn, direction, stretch, right, down = (
            torch.where(switch, value, 0.0)
            for switch, value in (
                (on[0], n[0]),
                (on[1], math.pi * (2 * u[6] - 1)),
                (on[2], math.pi * (2 * u[7] - 1)),
                (on[2], n[1]),
                (on[3], n[2]),
                (on[3], n[3]),
            )
        )
        columns = [*(flag.double() for flag in mirror), size, turn.cos() - 1, turn.sin()]
        columns += [stretch * direction.cos(), stretch * direction.sin(), right, down]
        x = _where(mirror[0].to(x.device), x.flip(-1), x)
        x = _where(mirror[1].to(x.device), x.flip(-2), x)
        H, W = x.shape[-2:]
        matrix = _inverse(size, turn, direction, stretch, right * W / 8, down * H / 8)
        x = _warped_where(on[0] | on[1] | on[2] | on[3], x, matrix)
        return x, torch.stack(columns, 1).to(x.device, torch.float32)

    def _chance(self, name: str) -> float:
        return min(1.0, self.probability * getattr(self, name))


def _warped_where(chosen: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """Warp the chosen samples. On an accelerator and in a graph all are warped, so that the host need not wait."""
    if chosen.device.type != "cpu" or not branches_on_data():
        return _where(chosen.to(x.device), warp(x, matrix), x)
    which = chosen.nonzero()[:, 0]
    if len(which) == 0:
        return x
    there = which.to(x.device)
    return x.index_copy(0, there, warp(x[there], matrix[which]))


def _inverse(size: Tensor, turn: Tensor, direction: Tensor, stretch: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """[A | b], (B, 2, 3): the position from which the output at p is read, S⁻¹ R⁻¹ N⁻¹ (p − T), written out.

    N stretches by s = 2^(0.2 stretch) along the unit vector e at ``direction`` and by 1/s across it, so that
    N⁻¹ = s 1 + (1/s − s) e eᵀ; R turns by −``turn``.
    """
    s = torch.exp2(0.2 * stretch)
    ex, ey = direction.cos(), direction.sin()
    off = (1 / s - s) * ex * ey
    n = ((s + (1 / s - s) * ex * ex, off), (off, s + (1 / s - s) * ey * ey))
    cos, sin = turn.cos(), turn.sin()
    shrink = torch.exp2(-0.2 * size)
    a = [[shrink * (cos * n[0][j] - sin * n[1][j]) for j in (0, 1)]]
    a += [[shrink * (sin * n[0][j] + cos * n[1][j]) for j in (0, 1)]]
    rows = [torch.stack([left, other, -(left * right + other * down)], 1) for left, other in a]
    return torch.stack(rows, 1)


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.reshape(-1, *[1] * (no.ndim - 1)), yes, no)


def _check_probability(name: str, value: float) -> None:
    if not is_number(value) or not 0 <= value <= 1:
        raise ArgumentError(name, value, "not a probability", "Give a number in [0, 1].")


def _check_draws(name: str, draws: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(draws.shape) != shape:
        raise ArgumentError(name, tuple(draws.shape), f"not {shape}", "Give augmentation.draws numbers per sample.")
