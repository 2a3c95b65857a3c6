"""Moving averages of the weights: exponential, and of power functions (Karras et al. 2024).

    exponential        w̄ ← β_n w̄ + (1 − β_n) w,   β_n = min(β, (1 + n)/(10 + n)) after n updates. With this warm-up
                       (score_sde, TensorFlow) the first weights soon have a small share
    power function     w̄_t ∝ ∫₀ᵗ s^γ w_s ds,   so β_t = (1 − 1/t)^(γ+1)     ("Analyzing and Improving the Training
                                                                             Dynamics of Diffusion Models", eq. 4 to 6)

The width of a power function is a fixed share σ_rel of the training time. From snapshots of two such averages,
:func:`posthoc_weights` finds the average of any other width at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError

__all__ = [
    "WeightAverage",
    "exponential_update",
    "gamma_of",
    "posthoc_weights",
    "power_function_update",
    "worth_using_from",
]

AveragingRule = Callable[[list[Tensor], list[Tensor], int], None]
"""A function (averages, weights, number of earlier updates) that changes the averages in place."""


def exponential_update(decay: float, warm_up: bool = True) -> AveragingRule:
    """w̄ ← β_n w̄ + (1 − β_n) w. Without warm-up β_n = β, as in :mod:`torch.optim.swa_utils`."""

    def update(averages: list[Tensor], weights: list[Tensor], count: int) -> None:
        torch._foreach_lerp_(averages, weights, 1 - decay_after(count, decay, warm_up))

    return update


def decay_after(count: int, decay: float, warm_up: bool) -> float:
    """β_n of the update that follows n = ``count`` earlier ones."""
    return min(decay, (1 + count) / (10 + count)) if warm_up else decay


def worth_using_from(decay: float, warm_up: bool) -> int:
    """The number of updates after which the first weights are less than a hundredth of an exponential average."""
    share, count = 1.0, 1
    while share >= 0.01:
        now = decay_after(count, decay, warm_up)
        if now == decay:  # from here on it is constant
            return count + math.floor(math.log(0.01 / share) / math.log(decay)) + 1 if decay else count + 1
        share, count = share * now, count + 1
    return count


def power_function_update(sigma_rel: float) -> AveragingRule:
    """β_t = (1 − 1/t)^(γ+1), with the γ at which the profile s^γ has the relative width σ_rel (:func:`gamma_of`)."""
    exponent = gamma_of(sigma_rel) + 1

    def update(averages: list[Tensor], weights: list[Tensor], count: int) -> None:
        torch._foreach_lerp_(averages, weights, 1 - (1 - 1 / (count + 1)) ** exponent)

    return update


def gamma_of(sigma_rel: float) -> float:
    """The γ > 0 at which the standard deviation of the profile s^γ is σ_rel times its length.

    It solves γ+1 = σ_rel² (γ+2)² (γ+3).

    Raises:
        ArgumentError: unless 0 < σ_rel < 0.28 (γ = 0, the plain mean, has 0.289).
    """
    if not (is_number(sigma_rel) and 0 < sigma_rel < 0.28):
        problem = "the relative width of a power function must lie between 0 and 0.28"
        raise ArgumentError("sigma_rel", sigma_rel, problem, "Pass a value from 0.05 to 0.15, for example.")
    roots = np.roots([1.0, 7.0, 16.0 - sigma_rel**-2, 12.0 - sigma_rel**-2])
    return float(roots.real.max())


class WeightAverage:
    """The average of a list of parameters, on their device. Of a sharded parameter it is that of this process's shard.

    The first update copies the weights. ``count`` is the number of updates so far.
    """

    def __init__(self, parameters: Sequence[Tensor], update: AveragingRule) -> None:
        self.parameters = list(parameters)
        self._sharded = any(hasattr(p, "to_local") for p in self.parameters)
        self._views: list[Tensor] = []
        self._addresses: list[int] = []
        self.values = [w.clone() for w in self._weights()]
        self.count = 0
        self._update = update

    def _weights(self) -> list[Tensor]:
        """The parameters as plain tensors that share their memory. Of a DTensor it is the shard.

        A DTensor is recognised by ``to_local``, since its class moves between versions of torch. The views are made
        once, unless parameters are sharded or have moved since.
        """
        if self._sharded:
            detached = [p.detach() for p in self.parameters]
            return [w.to_local() if hasattr(w, "to_local") else w for w in detached]
        addresses = [p.data_ptr() for p in self.parameters]
        if not self._views or addresses != self._addresses:
            self._views, self._addresses = [p.detach() for p in self.parameters], addresses
        return self._views

    @torch.no_grad()
    def update(self) -> None:
        """Add the present values of the parameters to the average."""
        if self.count == 0:
            torch._foreach_copy_(self.values, self._weights())
        else:
            self._update(self.values, self._weights(), self.count)
        self.count += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the parameters have the averaged values. After it they have exactly their own again."""
        own = [w.clone() for w in self._weights()]
        try:
            self._set(self.values)
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def set_to_weights(self, count: int) -> None:
        """Set the average to the present values of the parameters, and the number of updates to ``count``."""
        torch._foreach_copy_(self.values, self._weights())
        self.count = count

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._weights(), values)


def posthoc_weights(snapshots: Sequence[tuple[float, float]], sigma_rel: float, step: float) -> np.ndarray:
    """The coefficients x of the snapshots for which Σ x_i w̄_i is closest to the average of ``sigma_rel`` at ``step``.

    Closest: least squares between the profiles p_i(s) = (γ_i+1) s^γ_i / t_i^(γ_i+1) on [0, t_i] (Karras et al. 2024,
    algorithm 3).

    Args:
        snapshots: (σ_rel, step) of each snapshot.
        sigma_rel, step: of the wanted average.
    """
    gamma = np.array([gamma_of(width) for width, _ in snapshots])
    times = np.array([t for _, t in snapshots], float)
    wanted = gamma_of(sigma_rel)
    overlaps = _overlap(gamma[:, None], times[:, None], gamma[None, :], times[None, :])
    right = _overlap(gamma, times, np.array(wanted), np.array(float(step)))
    return np.linalg.lstsq(overlaps, right, rcond=1e-13)[0]


def _overlap(gamma_a: np.ndarray, t_a: np.ndarray, gamma_b: np.ndarray, t_b: np.ndarray) -> np.ndarray:
    """∫ p_a p_b ds of two profiles. Only ratios of times are raised to powers, so that nothing overflows."""
    shorter = np.minimum(t_a, t_b)
    powers = (shorter / t_a) ** gamma_a * (shorter / t_b) ** gamma_b * (shorter / (t_a * t_b))
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * powers
