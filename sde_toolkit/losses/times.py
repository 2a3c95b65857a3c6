"""Distributions of training times: each maps uniform numbers u to times t and importance weights.

    ``times(sde, u, t_min) -> (t, importance)``       u in [0, 1), t in [t_min, 1], larger u to larger t

t is the u-quantile of the distribution. Numbers that are evenly spread in u (:func:`low_discrepancy`) are therefore
evenly spread in the distribution.

Some distributions are only a better way to compute an average over uniform times (:class:`LikelihoodTimes`). There
E_u[importance · h(t)] is the average of h over uniform t in [t_min, 1]. Others are a part of the loss (EDM's); there
the importance is 1.

Distributions of noise levels are defined in λ = log(α/σ), or τ = σ/α = e^(−λ). The inverse of λ maps them to t, so that
they have the same noise levels under every SDE. They are cut off outside of [λ(1), λ(t_min)].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_count, check_positive, is_number, some_seen
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde import SDE, check_sde

__all__ = [
    "Cosine",
    "Discrete",
    "LikelihoodTimes",
    "LogNormal",
    "LogitNormal",
    "TimeDistribution",
    "Uniform",
    "low_discrepancy",
    "stratified_times",
]

_LEAST_MASS = 1e-6  # the least probability between two ends of a normal distribution; with less, quantiles lose digits


class TimeDistribution(ABC):
    """A way to draw training times: an immutable callable."""

    def __call__(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        """Times t and importance weights, float64 of the shape of u.

        Args:
            sde: the forward process.
            u: uniform in [0, 1), any shape, floating point; float64 for exact quantiles.
            t_min: the first time, in [0, 1); the SDE's ``likelihood_end`` is a usual one.

        Raises:
            ArgumentError: if ``t_min`` lies outside [0, 1), if the distribution does not exist for it or, on the CPU,
                if a u lies outside [0, 1).
        """
        check_sde(sde)
        _check_t_min(t_min)
        if not (isinstance(u, Tensor) and u.is_floating_point()):
            raise ArgumentError("u", u, "not a floating-point tensor", "Pass torch.rand(B, dtype=torch.float64).")
        if some_seen(~((u >= 0) & (u < 1))):
            raise ArgumentError("u", u.detach().flatten().tolist()[:4], "outside [0, 1)", "Pass uniform numbers.")
        t, importance = self.draw(sde, u.to(torch.float64), float(t_min))
        return t.clamp(t_min, 1.0), importance

    @abstractmethod
    def draw(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        """(t, importance) for arguments that have been checked."""


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """t uniform on [t_min, 1]."""

    def draw(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        return t_min + (1 - t_min) * u, torch.ones_like(u)


@dataclass(frozen=True)
class Discrete(TimeDistribution):
    """t = i/N with i uniform on 1 … N, DDPM's steps (Ho et al. 2020, algorithm 1), without those before t_min."""

    N: int = 1000

    def __post_init__(self) -> None:
        check_count("N", self.N, "DDPM has 1000.")

    def draw(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        first = max(1, math.ceil(t_min * self.N - 1e-9))
        i = (first + torch.floor(u * (self.N - first + 1))).clamp(max=self.N)
        return i / self.N, torch.ones_like(u)


@dataclass(frozen=True)
class LikelihoodTimes(TimeDistribution):
    """p(t) ∝ g²/σ²: importance sampling of the likelihood weighting (Song, Durkan et al. 2021, section 5.1).

    g²/σ² = −2 dλ/dt, so λ is uniform between λ(t_min) and λ(1), in closed form for every SDE. The importance is
    1/((1 − t_min) p(t)), proportional to σ²/g². It turns g² |score error|² into a multiple of |ε error|², whose size
    changes little with t.

    If λ(1) lies below ``floor``, or is −∞ (α(1) = 0), the density there is p(t) ∝ g²/σ² e^(2(λ − floor)). It falls no
    faster than the error falls with the SNR, so that all times are drawn and the weighted loss stays bounded.

    Args:
        floor: a half log-SNR, for data of size 1; for data of standard deviation σ_d subtract log σ_d. The default
            lies below λ(1) of all schedules here that keep a signal at t=1.

    Raises:
        ArgumentError: if ``floor`` is not finite; when called, if λ(t_min) = ∞, where no such distribution exists.
    """

    floor: float = -10.0

    def __post_init__(self) -> None:
        if not is_number(self.floor):
            raise ArgumentError("floor", self.floor, "not a finite half log-SNR", "-10 is the default.")

    def draw(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        low, high = _lambda_range(sde, t_min)
        if not math.isfinite(high):
            problem = f"λ of {sde} is infinite there, and so is the integral of g²/σ²"
            raise ArgumentError("t_min", t_min, problem, f"Use its likelihood_end, {sde.likelihood_end}, for example.")
        floor = min(self.floor, high)
        flat = high - max(low, floor)  # the mass above the floor; that of the tail below it is ½ (1 − rest)
        rest = math.exp(2 * (low - floor)) if low < floor else 1.0
        mass = flat + 0.5 * (1 - rest)
        remaining = 2 * mass * (1 - u) + rest  # e^(2(λ − floor)) in the tail
        tail = floor + 0.5 * torch.log(remaining)
        lambda_t = torch.where(mass * u <= flat, high - mass * u, tail).clamp(low, high)
        t = _time_at(sde, lambda_t)
        density = torch.exp(2 * (lambda_t - floor).clamp(max=0.0)) / mass
        return t, 2 * (sde.sigma(t) / sde.g(t)) ** 2 / (density * (1 - t_min))


@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """log(σ/α) ~ N(P_mean, P_std²), EDM's noise levels (Karras et al. 2022, table 1), under any SDE.

    The paper's values are for data of standard deviation σ_d = 0.5. For other data add log(σ_d/0.5) to P_mean.

    Raises:
        ArgumentError: unless P_mean is finite and P_std positive; when called, if the SDE has almost none of these
            noise levels.
    """

    P_mean: float = -1.2
    P_std: float = 1.2

    def __post_init__(self) -> None:
        _check_normal("P_mean", self.P_mean, "P_std", self.P_std)

    def draw(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        low, high = _lambda_range(sde, t_min)
        log_tau = _normal_quantile(u, self.P_mean, self.P_std, -high, -low, self, f"log(σ/α) of {sde}")
        return _time_at(sde, -log_tau), torch.ones_like(u)


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """log(t/(1 − t)) ~ N(mean, std²): Esser et al. 2024, "Scaling Rectified Flow Transformers", eq. 19.

    It is a distribution of times, whatever the noise level at these times. Under flow matching, where
    σ/α = t/(1 − t), it is :class:`LogNormal` with the same two numbers. The paper's values are for that path and for
    data of standard deviation 1.

    Raises:
        ArgumentError: unless mean is finite and std positive; when called, if almost all of it lies before t_min.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal("mean", self.mean, "std", self.std)

    def draw(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        first = math.log(t_min) - math.log1p(-t_min) if t_min > 0 else -math.inf
        logit = _normal_quantile(u, self.mean, self.std, first, math.inf, self, "the logit of t")
        return torch.sigmoid(logit), torch.ones_like(u)


@dataclass(frozen=True)
class Cosine(TimeDistribution):
    """σ/α = σ_d tan(π p/2), p uniform: the noise levels of the cosine schedule, with density sech(λ + log σ_d)/π in λ.

    The noise levels are the same under every SDE. Under flow matching with σ_d = 1 it is Esser et al.'s CosMap,
    t = 1 − 1/(tan(π p/2) + 1) (2024, eq. 21). The schedule is in table 1 of Kingma & Gao 2023.

    ``sigma_data``: σ_d, the standard deviation of the data; 1 in both papers.

    Raises:
        ArgumentError: unless ``sigma_data`` is positive and finite.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data, "The default, 1.0, is for data of size 1.")

    def draw(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        shift = math.log(self.sigma_data)
        low, high = (end + shift for end in _lambda_range(sde, t_min))
        first, last = (2 / math.pi * math.atan2(math.exp(-max(e, 0.0)), math.exp(min(e, 0.0))) for e in (high, low))
        p = first + (last - first) * u
        log_tau = torch.log(torch.sin(math.pi / 2 * p)) - torch.log(torch.sin(math.pi / 2 * (1 - p)))
        return _time_at(sde, (-log_tau).clamp(low, high) - shift), torch.ones_like(u)


def low_discrepancy(n: int, offset: float | Tensor, *, device: torch.device | str | None = None) -> Tensor:
    """(offset + i/n) mod 1 for i = 0 … n−1, (n,) float64: one number in each interval [k/n, (k+1)/n).

    If ``offset`` is uniform in [0, 1), so is each of them. (Kingma et al. 2021, "Variational Diffusion Models",
    appendix I.1.)

    Raises:
        ArgumentError: unless n is a whole number of at least 1, and ``offset`` one finite number.
    """
    check_count("n", n, "Pass the batch size.")
    if isinstance(offset, Tensor):
        if offset.numel() != 1:
            raise ArgumentError("offset", tuple(offset.shape), "it must be one number", "Pass torch.rand(()).")
        offset = offset.reshape(()).to(torch.float64)
        device = offset.device if device is None else device
        offset = offset.to(device)
    elif not is_number(offset):
        raise ArgumentError("offset", offset, "not a finite number", "Pass a uniform number in [0, 1).")
    u = (offset + torch.arange(n, dtype=torch.float64, device=device) / n) % 1
    return torch.where(u < 1, u, 0.0)


def stratified_times(
    n: int, t_min: float, *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """n uniform times in [t_min, 1] by :func:`low_discrepancy`, with an offset from ``generator``; (n,) float64.

    Raises:
        ArgumentError: unless 0 <= t_min < 1.
    """
    _check_t_min(t_min)
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=device)
    return t_min + (1 - t_min) * low_discrepancy(n, offset)


def _lambda_range(sde: SDE, t_min: float) -> tuple[float, float]:
    """λ(1) and λ(t_min)."""
    low, high = sde.half_log_snr(torch.tensor([1.0, t_min], dtype=torch.float64)).tolist()
    return low, high


def _time_at(sde: SDE, lambda_t: Tensor) -> Tensor:
    return sde.solve_half_log_snr(lambda_t).clamp(0.0, 1.0)


def _normal_quantile(
    u: Tensor, mean: float, std: float, first: float, last: float, distribution: TimeDistribution, what: str
) -> Tensor:
    """The u-quantile of N(mean, std²) cut off at ``first`` and ``last``."""
    ends = torch.tensor([(first - mean) / std, (last - mean) / std], dtype=torch.float64)
    low, high = torch.special.ndtr(ends).tolist()
    if high - low < _LEAST_MASS:
        problem = f"{what} runs from {first:.6g} to {last:.6g}, where this distribution has almost no probability"
        raise ArgumentError("times", distribution, problem, "Choose another mean, a larger std, or another t_min.")
    return (mean + std * torch.special.ndtri(low + (high - low) * u)).clamp(first, last)


def _check_t_min(t_min: Any) -> None:
    if not (is_number(t_min) and 0 <= t_min < 1):
        raise ArgumentError("t_min", t_min, "training times must start in [0, 1)", "Use the SDE's likelihood_end.")


def _check_normal(mean_name: str, mean: Any, std_name: str, std: Any) -> None:
    if not is_number(mean):
        raise ArgumentError(mean_name, mean, "not a finite number", "Leave it out for the paper's own value.")
    check_positive(std_name, std, "Leave it out for the paper's own value.")
