"""Langevin dynamics at a fixed time: p_t is its stationary law, so it corrects the errors of a predictor.

    x ← x + e ∇log p_t(x) + √(2e) z,        e = 2 a (snr ‖z‖/‖∇log p_t(x)‖)²    (Song et al. 2021, algorithms 4 and 5)

a is 1 − β of the step that follows, (α_t/α_s)²: 1 for VE. In terms of ε̂ = −σ ∇log p_t the size is e = δ σ² with
δ = 2 a (snr ‖z‖/‖ε̂‖)², and x ← x − δ σ ε̂ + σ √(2δ) z. p_t contains noise of variance σ²: where it is
log-concave, the slope of its score is at most 1/σ². δ is limited to 1, so that x does not move far where ε̂ is near 0.

Three rules for ‖z‖/‖ε̂‖: the norms of each sample (the default), score_sde's means over the batch, or 1. In many
dimensions the first two are near 1. With 1, e depends on t alone. A step whose size depends on x changes p_t: with own
norms and snr = 0.16 the standard deviation of isotropic Gaussian data comes out about 70 % too large in one dimension,
40 % in two, 5 % above the other rules in 16 and 1 % in 64. In few dimensions use ``expected_norms``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import check_count, check_positive
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.noise.streams import Noise

__all__ = ["Corrector", "Langevin", "expected_norms", "mean_norms", "own_norms"]

NormRule = Callable[[Tensor, Tensor], Tensor]
"""(z, ε̂) to ‖z‖/‖ε̂‖, 0-dim or (B,)."""


def _norms(x: Tensor) -> Tensor:
    """The norm of each sample: (B, *event) to (B,)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).norm(dim=1)


def own_norms(z: Tensor, epsilon: Tensor) -> Tensor:
    """The norms of each sample: a sample does not depend on its batch."""
    return _norms(z) / _norms(epsilon)


def mean_norms(z: Tensor, epsilon: Tensor) -> Tensor:
    """Means of the norms over the batch, as in score_sde; samples then depend on their batch."""
    return _norms(z).mean() / _norms(epsilon).mean()


def expected_norms(z: Tensor, epsilon: Tensor) -> Tensor:
    """1: the size is 2 a (snr σ)², score_sde's "annealed Langevin dynamics" corrector."""
    return z.new_ones(())


class Corrector(ABC):
    """Moves x at a fixed time, and keeps p_t."""

    @property
    @abstractmethod
    def evals_per_step(self) -> int:
        """Evaluations at each time."""

    @abstractmethod
    def coefficients(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`correct` needs for correcting at the times ``t`` before steps to ``s``, float64."""

    @abstractmethod
    def correct(
        self, equation: ReverseEquation, x: Tensor, inputs: Inputs, coefficients: tuple[Tensor, ...], noise: Noise
    ) -> Tensor:
        """x after the corrections at one time. ``inputs`` and ``coefficients`` are those of this time."""


@dataclass(frozen=True)
class Langevin(Corrector):
    """``steps`` Langevin steps with signal-to-noise ratio ``snr``; ``norms`` says what ‖z‖/‖ε̂‖ is.

    Raises:
        ArgumentError: if ``snr`` is not positive, ``steps`` is negative, or ``norms`` is not a function.
    """

    snr: float = 0.16
    steps: int = 1
    norms: NormRule = own_norms

    def __post_init__(self) -> None:
        check_positive("snr", self.snr, "Song et al. use 0.16 for images.")
        check_count("steps", self.steps, "One step is usual.", least=0)
        if not callable(self.norms):
            raise ArgumentError("norms", self.norms, "not a function", "Pass own_norms, mean_norms or expected_norms.")

    @property
    def evals_per_step(self) -> int:
        """Evaluations at each time: one per Langevin step."""
        return self.steps

    def coefficients(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        """m and n of ε̂, σ, and 2 a snr²."""
        sde = equation.sde
        a = (sde.alpha(t) / sde.alpha(s)) ** 2
        return (*equation.view("epsilon", t), sde.sigma(t), 2 * a * self.snr**2)

    def correct(
        self, equation: ReverseEquation, x: Tensor, inputs: Inputs, coefficients: tuple[Tensor, ...], noise: Noise
    ) -> Tensor:
        m, n, sigma, size = coefficients
        for _ in range(self.steps):
            epsilon = torch.addcmul(m * x, n, equation.output(x, inputs))
            z = noise()
            delta = (size * self.norms(z, epsilon) ** 2).clamp(max=1.0)
            drift, diffusion = (expand_to(c, x) for c in (delta * sigma, torch.sqrt(2 * delta) * sigma))
            x = torch.addcmul(torch.addcmul(x, drift, epsilon, value=-1), diffusion, z)
        return x
