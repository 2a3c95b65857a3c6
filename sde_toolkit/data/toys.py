"""Small synthetic sets: three in the plane, and smooth random signals in one dimension.

Each is a pure function of its arguments, drawn with a generator of its own from ``seed``. The test part is drawn first,
so it does not change with ``n``. Samples are float32. The recommended transform divides by the exact standard deviation
of the distribution (root mean square over its elements), not by that of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from sde_toolkit.checks import check_amount
from sde_toolkit.data.dataset import Dataset
from sde_toolkit.errors import ArgumentError
from sde_toolkit.transforms import Affine

__all__ = ["checkerboard", "rings", "two_moons", "waves"]

_Drawn = tuple[Tensor, Tensor | None]  # samples (n, *event_shape), labels (n,)


def checkerboard(n: int = 10_000, n_test: int = 2_000, seed: int = 0) -> Dataset:
    """(n, 2): uniform on the dark squares of a 4×4 board over [−4, 4]²."""

    def draw(m: int, g: Generator) -> _Drawn:
        column = torch.randint(0, 4, (m,), generator=g)
        row = 2 * torch.randint(0, 2, (m,), generator=g) + column % 2
        corner = torch.stack([column, row], dim=1)
        return 2.0 * (corner + _uniform((m, 2), g)) - 4.0, None

    return _toy("checkerboard", draw, n, n_test, seed, variance=64.0 / 12.0)


def two_moons(n: int = 10_000, n_test: int = 2_000, seed: int = 0, noise: float = 0.05) -> Dataset:
    """(n, 2): two interleaved half circles of radius 1 with Gaussian noise, centred at 0; labels 0 and 1."""
    _non_negative("noise", noise)

    def draw(m: int, g: Generator) -> _Drawn:
        moon = torch.randint(0, 2, (m,), generator=g)
        theta = math.pi * _uniform((m,), g)
        sign = 1.0 - 2.0 * moon
        points = torch.stack([sign * (theta.cos() - 0.5), sign * (theta.sin() - 0.25)], dim=1)
        return points + noise * _normal((m, 2), g), moon

    # E[x²] = E[(cos θ − 1/2)²] = 3/4;  E[y²] = E[(sin θ − 1/4)²] = 9/16 − 1/π
    return _toy("two_moons", draw, n, n_test, seed, variance=(0.75 + 9 / 16 - 1 / math.pi) / 2 + noise**2)


def rings(
    n: int = 10_000,
    n_test: int = 2_000,
    seed: int = 0,
    radii: Sequence[float] = (1.0, 2.0, 3.0),
    noise: float = 0.05,
) -> Dataset:
    """(n, 2): concentric circles, equally likely, with Gaussian noise; label i is the ring of radius ``radii[i]``."""
    _non_negative("noise", noise)
    radius = torch.tensor([float(r) for r in radii], dtype=torch.float64)
    if len(radius) == 0 or not bool((radius > 0).all() and radius.isfinite().all()):
        raise ArgumentError("radii", radii, "not positive numbers", "Give at least one radius above 0.")

    def draw(m: int, g: Generator) -> _Drawn:
        ring = torch.randint(0, len(radius), (m,), generator=g)
        theta = 2.0 * math.pi * _uniform((m,), g)
        circle = torch.stack([theta.cos(), theta.sin()], dim=1)
        return radius[ring][:, None] * circle + noise * _normal((m, 2), g), ring

    return _toy("rings", draw, n, n_test, seed, variance=float((radius**2).mean()) / 2 + noise**2)


def waves(n: int = 10_000, length: int = 64, n_test: int = 2_000, seed: int = 0, modes: int = 4) -> Dataset:
    """(n, 1, length): periodic smooth signals x(s) = Σ_k (a_k / k) cos(2πks + φ_k), s = 0, 1/length, ...

    k = 1..modes, a_k uniform on [1/2, 1], φ_k uniform on [0, 2π], all independent. The signals lie on a surface of
    2·modes dimensions, so they have no density in R^length: sample them, but do
    not expect a finite likelihood.
    """
    if modes < 1 or length < 2 * modes + 1:
        raise ArgumentError(
            "length, modes",
            (length, modes),
            "the signal is not resolved",
            "Give modes >= 1, length > 2 modes.",
        )
    k = torch.arange(1, modes + 1, dtype=torch.float64)
    s = torch.arange(length, dtype=torch.float64) / length

    def draw(m: int, g: Generator) -> _Drawn:
        amplitude = 0.5 + 0.5 * _uniform((m, modes), g)
        phase = 2.0 * math.pi * _uniform((m, modes), g)
        # cos(2πks + φ) split into products, so that no (m, modes, length) tensor is built
        angle = 2.0 * math.pi * k[:, None] * s
        weight = amplitude / k
        signal = (weight * phase.cos()) @ angle.cos() - (weight * phase.sin()) @ angle.sin()
        return signal[:, None, :], None

    # E[a²] = 7/12, E[cos²] = 1/2
    return _toy("waves", draw, n, n_test, seed, variance=7.0 / 24.0 * float((k**-2).sum()))


def _uniform(shape: tuple[int, ...], g: Generator) -> Tensor:
    return torch.rand(shape, generator=g, dtype=torch.float64)


def _normal(shape: tuple[int, ...], g: Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _non_negative(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ArgumentError(name, value, "not a finite number >= 0", f"Give {name} >= 0.")


def _toy(
    name: str, draw: Callable[[int, Generator], _Drawn], n: int, n_test: int, seed: int, variance: float
) -> Dataset:
    if n < 0 or n_test < 0 or n + n_test == 0:
        raise ArgumentError("n, n_test", (n, n_test), "no samples, or a negative number", "Give n >= 1.")
    check_amount("n, n_test", (n, n_test), n + n_test, bytes_each=64)
    generator = Generator().manual_seed(seed)
    test, test_labels = draw(n_test, generator)
    train, train_labels = draw(n, generator)
    return Dataset(
        name=name,
        train=train.float(),
        test=test.float(),
        train_labels=train_labels,
        test_labels=test_labels,
        transform=Affine(0.0, 1.0 / math.sqrt(variance)),
        source="synthetic",
        licence="none needed",
        notes=f"drawn with seed {seed}; transform divides by the distribution's standard deviation",
    )
