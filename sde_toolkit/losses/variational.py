"""The variational bound as a training objective, and the hybrid objective for networks that learn variances.

Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 3-7, 15 and 16.

The steps are t_i = i/N, i = 1 … N, of any SDE. For a step from t to s = t − 1/N the model is x_s ~ N(μ(x_t, x̂_0), Σ),
and v is the variance fraction that the network predicts:

    L_vlb = Σ_i L_{i−1} (+ L_N, which has no parameters)
    L_{i−1} = KL(q(x_s|x_t, x_0) ‖ N(μ, Σ))                                                     i ≥ 2
            = ½ Σ_elements [ e^(−ℓ) − 1 + ℓ + (e^(2λ_s) − e^(2λ_t)) (x̂_0 − x_0)² e^(−ℓ) ],      ℓ = 2 v log(σ_t/σ_s)
    L_0     = −log p(x_0|x_1),  around x̂_0                                                      the decoder
    log Σ   = v log β + (1 − v) log β̃        β̃ = σ_s² (1 − r²),  β = σ_t² (1 − r²)              eq. 15

with r² = e^(2λ_t − 2λ_s). The last step, to the data, has β_1 = σ_t². Its β̃_1 would be 0; β̃_2 replaces it, as in the
paper's code. A model without learned variance has Σ = β̃, and β_1 for that last step (Ho et al. 2020, section 3.2). The
last step leads to clean data also for SDEs whose σ(0) is not 0. With levels the decoder is the discretised Gaussian
(Ho et al. 2020, eq. 13).

The losses are in bits per dimension, the unit in which the paper's weight is 0.001. The mean of N L_{i−1} over random i
is the sum. Σ is computed by its logarithm, KL without the difference of two variances, and the schedule in float64.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import check_count, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.likelihood.decoders import IntegratedBins, LevelMap
from sde_toolkit.likelihood.levels import Levels, check_fits, check_levels
from sde_toolkit.losses.matching import DenoisingScoreMatching, check_batch, native_error
from sde_toolkit.losses.weightings import error_ratio
from sde_toolkit.models.prediction import Prediction
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["Hybrid", "VariationalBound"]

_ROUNDING = 1e-3  # of a step: a time may lie this far after the step it belongs to, as a rounding error of float32


@dataclass(frozen=True)
class VariationalBound:
    """N L_{i−1} in bits per dimension, (B,). Its mean over uniform i is the variational bound without L_N.

    Args:
        N: number of steps. A time between two steps belongs to the later one, so that :class:`Discrete` and uniform
            times give the same loss.
        levels: the values of discrete data, in data space, for the decoder of L_0; the losses are then bits per
            dimension of the discrete data. None: the decoder is a Gaussian density in model space.

    Raises:
        ArgumentError: unless N >= 2 and ``levels`` are Levels or None.
    """

    N: int = 1000
    levels: Levels | None = None

    def __post_init__(self) -> None:
        check_count("N", self.N, "DDPM has 1000.", least=2)
        check_levels(self.levels)

    def __call__(self, model: ScoreModel, x_0: Tensor, t: Tensor, noise: Tensor, condition: Any = None) -> Tensor:
        """Shapes: x_0 and noise (B, *event) in model space, t (B,). One network evaluation.

        Raises:
            ArgumentError: if shapes do not fit, or the levels do not fit the model's transform.
        """
        prediction = self.predict(model, x_0, t, noise, condition)
        return self.of(model, prediction, x_0, noise)

    def predict(self, model: ScoreModel, x_0: Tensor, t: Tensor, noise: Tensor, condition: Any = None) -> Prediction:
        """The prediction at the step that each time belongs to."""
        check_batch(x_0, t, noise)
        if self.levels is not None:
            check_fits(self.levels, model.transform)
        i = torch.ceil(t.to(torch.float64) * self.N - _ROUNDING).clamp(1, self.N)
        t = i / self.N
        return model(model.sde.perturb(x_0, t, noise), t, condition)

    def of(self, model: ScoreModel, prediction: Prediction, x_0: Tensor, noise: Tensor) -> Tensor:
        """The loss of a ``prediction`` that was made at x_t = α x_0 + σ noise for steps t, (B,)."""
        readout = prediction.readout
        kind, error = native_error(prediction, x_0, noise)
        t = readout.t
        first = t < 1.5 / self.N
        gap, drop, log_beta, log_posterior = (
            expand_to(c.to(x_0.dtype), x_0) for c in self._coefficients(readout.sde, t, first)
        )
        gain = error_ratio(readout.sde, t, "x0", kind, readout.sigma_data)
        squares = expand_to(gain.to(x_0.dtype), x_0) * error.square()
        v = prediction.variance_fraction
        if v is None:
            steps, log_variance = 0.5 * drop * squares, log_beta
        else:
            ell = 2 * gap * v
            steps = 0.5 * (torch.expm1(-ell) + ell + drop * squares * torch.exp(-ell))
            log_variance = log_posterior + v * (log_beta - log_posterior)
        last = self._decode(model, prediction, log_variance, x_0)
        nats = torch.where(first, last, steps.reshape(x_0.shape[0], -1).mean(1).to(last.dtype))
        return (self.N / math.log(2)) * nats.to(x_0.dtype)

    def _coefficients(self, sde: SDE, t: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        """log(σ_t/σ_s) and e^(2λ_s) − e^(2λ_t) of each step, and log β and log β̃ for the decoder; (B,) float64.

        ``first``: where the step is the one to the data. It gets the values of step 2, except for its own β.
        """
        later = torch.where(first, 2 / self.N, t)
        before = (later - 1 / self.N).clamp(min=1 / self.N)
        sigma_t, sigma_s = sde.sigma(later), sde.sigma(before)
        lambda_t, lambda_s = sde.half_log_snr(later), sde.half_log_snr(before)
        rest = -torch.expm1(2 * (lambda_t - lambda_s))
        drop = torch.exp(2 * lambda_s) * rest
        log_posterior = 2 * torch.log(sigma_s) + torch.log(rest)
        return torch.log(sigma_t / sigma_s), drop, 2 * torch.log(sde.sigma(t)), log_posterior

    def _decode(self, model: ScoreModel, prediction: Prediction, log_variance: Tensor, x_0: Tensor) -> Tensor:
        """−log p(x_0|x_1) per element, in nats, (B,). Computed for all samples: selecting some would synchronise."""
        center = prediction.x_0
        if self.levels is None:
            z = (x_0 - center).square() * torch.exp(-log_variance)
            density = 0.5 * (z + log_variance + math.log(2 * math.pi))
            return density.reshape(x_0.shape[0], -1).mean(1)
        index = self.levels.index(model.transform.inverse(x_0))
        std = torch.exp(0.5 * log_variance.to(torch.float64))
        level_map = LevelMap(self.levels, model.transform)
        log_p = IntegratedBins().log_prob(index, center.to(torch.float64), std, math.nan, level_map)
        return -log_p / max(1, math.prod(x_0.shape[1:]))


@dataclass(frozen=True)
class Hybrid:
    """L_simple + 0.001 L_vlb (Nichol & Dhariwal 2021, eq. 16), with one network evaluation.

    ``simple`` trains the mean. ``bound`` trains v only: no gradient of it reaches the mean.

    Raises:
        ArgumentError: if ``weight`` is negative, or ``simple`` or ``bound`` is of another class; when called, if the
            model has no learned variance.
    """

    simple: DenoisingScoreMatching = field(default_factory=DenoisingScoreMatching)
    bound: VariationalBound = field(default_factory=VariationalBound)
    weight: float = 0.001

    def __post_init__(self) -> None:
        for name, kind in (("simple", DenoisingScoreMatching), ("bound", VariationalBound)):
            if not isinstance(getattr(self, name), kind):
                problem, remedy = f"not a {kind.__name__}", f"Leave it out, or pass {kind.__name__}(...)."
                raise ArgumentError(name, getattr(self, name), problem, remedy)
        if not (is_number(self.weight) and self.weight >= 0):
            raise ArgumentError("weight", self.weight, "must be finite and not negative", "The paper has 0.001.")

    def __call__(self, model: ScoreModel, x_0: Tensor, t: Tensor, noise: Tensor, condition: Any = None) -> Tensor:
        """Shapes: x_0 and noise (B, *event) in model space, t (B,), moved to the bound's steps; (B,).

        Raises:
            ArgumentError: if shapes do not fit, or the model has no learned variance.
        """
        if not model.learned_variance:
            problem = "it has no learned variance, so that the bound would train nothing"
            raise ArgumentError("model", model, problem, "Build it with learned_variance=True, or use simple alone.")
        prediction = self.bound.predict(model, x_0, t, noise, condition)
        stopped = dataclasses.replace(prediction, output=prediction.output.detach())
        bound = self.bound.of(model, stopped, x_0, noise)
        return self.simple.of(prediction, x_0, noise) + self.weight * bound
