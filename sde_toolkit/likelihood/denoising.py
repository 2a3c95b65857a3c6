"""Squared errors of the denoised estimate at random (x_t, t): what every variational bound is made of.

|x̂_0 − x_0|² is computed in the network's own parameterisation. With x̂_0 = m x_t + n y and x_t = α x_0 + σ ε,

    x̂_0 − x_0 = n (y − y*),    y* = (1 − m α)/n · x_0 − m σ/n · ε

where y* is the output of a perfect network. No digits cancel at either end of time. Coefficients are float64.

Noise: sample i has a stream for each purpose, which depends on (seed, i, purpose) and not on the batch. It differs from
the noise that :func:`~sde_toolkit.sampling.sample` draws from the same seed, so that its samples can be judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import NonFiniteError
from sde_toolkit.likelihood.bound_requests import BoundRequest
from sde_toolkit.likelihood.decoders import GaussianDensity, LevelMap
from sde_toolkit.likelihood.flow_requests import into_model_space
from sde_toolkit.likelihood.spread import standard_error
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Noise, Purpose, per_sample_noise
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.monitors import Meter

__all__ = ["Denoising", "mean_of_repeats", "stratified_mean", "stratified_uniforms"]


def _strata(draws: int) -> list[int]:
    """How many draws each stratum of (0, 1) gets: two, the last one three if they are odd."""
    count = max(1, draws // 2)
    return [2] * (count - 1) + [draws - 2 * (count - 1)]


def stratified_uniforms(seed: int, first_index: int, n: int, draws: int) -> Tensor:
    """(n, draws) float64 in (0, 1): draws in turn, two to a stratum, strata as wide as they have draws."""
    inside = KeyedDraws(seed, Purpose.TIMES).uniform(0, first_index, (n, draws)).clamp(min=2.0**-54).numpy()
    sizes = np.array(_strata(draws))
    low = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return torch.from_numpy((low + np.repeat(sizes, sizes) * inside) / draws)


def stratified_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and its standard error over the draws (n, draws) of :func:`stratified_uniforms`, (n,) each.

    The variance within a stratum, from its two draws, is without bias, and so is the sum Σ n_s s_s²/draws². NaN for a
    single draw.
    """
    draws = values.shape[1]
    parts = values.split(_strata(draws), dim=1)
    variance = torch.stack([part.shape[1] * part.var(1) for part in parts]).sum(0) / draws**2 if draws > 1 else math.nan
    return values.mean(1), torch.sqrt(torch.as_tensor(variance, dtype=values.dtype)).expand(len(values))


def mean_of_repeats(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over independent repeats (n, repeats); NaN for a single one."""
    return values.mean(1), standard_error(values, 1)


@dataclass(frozen=True, eq=False)
class Denoising:
    """A model and the data on which its denoising is judged.

    Attributes:
        request: the bound that is asked for; states are of its dtype and on its device.
        y: (n, *event) float64, in model space, on the CPU or wherever it is.
        index: (n, *event), the positions of discrete data among their levels; None for data with a density.
        log_abs_det: what the change of variables adds, in nats per sample.
        meter: counts the evaluations.
    """

    request: BoundRequest
    y: Tensor
    index: Tensor | None
    log_abs_det: float
    meter: Meter

    @classmethod
    def prepare(cls, request: BoundRequest) -> Denoising:
        """Check the request, and bring its data into model space.

        Raises:
            ArgumentError, DataError, GridError: before any evaluation.
        """
        request.check()
        model, levels = request.model, request.levels
        index, x = None, request.x.cpu() if request.x.device.type == "mps" else request.x  # which has no float64
        if levels is not None:
            levels.check(x)
            index = levels.index(x)
            x = levels.at(index)
            LevelMap(levels, model.transform).spacing(x[:1])
        y, log_abs_det = into_model_space(model, x, request.space, torch.float64)
        return cls(request, y, index, 0.0 if levels is not None else log_abs_det, Meter(model, request.place()))

    @property
    def model(self) -> ScoreModel:
        """The model."""
        return self.request.model

    def batches(self) -> Iterator[tuple[int, int]]:
        """First and last sample of each batch."""
        n = len(self.y)
        size = self.request.batch_size or n
        for first in range(0, n, size):
            self.meter.restart()
            yield first, min(n, first + size)

    def squared_errors(self, times: Tensor) -> Tensor:
        """|x̂_0 − x_0|² at x_t with a fresh ε for every time, (n, K) float64 on the CPU; ``times`` (n, K) float64."""
        n, K = times.shape
        size = self.request.batch_size or n
        bar = progress_bar(K * -(-n // size), "bound", enabled=self.request.progress)
        found = []
        for first, last in self.batches():
            y, condition = (
                self.y[first:last].to(self.meter.device, self.request.dtype),
                rows_of(self.request.condition, first, last),
            )
            inputs, weights, gain = self._columns(times[first:last])
            noise = self._noise(first, last, Purpose.PERTURBATION)
            errors = []
            for k in range(K):
                epsilon = noise()
                alpha, sigma, a, b = (expand_to(c[:, k], y) for c in weights)
                x_t = alpha * y + sigma * epsilon
                output = self.meter.evaluate(x_t, tuple(c[:, k] for c in inputs), condition)
                errors.append((output - (a * y + b * epsilon)).square().reshape(last - first, -1).sum(1))
                bar.update(1)
            values = torch.stack(errors, 1).to("cpu", torch.float64) * gain
            self._check(values, times[first:last])
            found.append(values)
        bar.close()
        return torch.cat(found)

    def log_reconstruction(self, draws: int) -> tuple[Tensor, Tensor]:
        """E log p(x | x_e) at the request's ``end``, in model space, and its standard error, (n,) float64 each.

        The mean over ``draws`` of x_e; for the density around x_e/α_e it is exact.
        """
        decoder, levels, index = self.request.decoder, self.request.levels, self.index
        level_map = None if levels is None else LevelMap(levels, self.model.transform)
        t = torch.tensor(self.request.end, dtype=torch.float64)
        n, events = len(self.y), self.y.shape[1:]
        tau = torch.exp(-self.model.sde.half_log_snr(t)).item()
        std = decoder.std or tau
        if isinstance(decoder, GaussianDensity) and not decoder.denoise:
            exact = decoder.expected(math.prod(events), std, tau)
            return torch.full((n,), exact, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        spacing = math.nan
        if level_map is not None and index is not None:
            spacing = level_map.spacing(level_map.levels.at(index[:1]))
        found = []
        for first, last in self.batches():
            y, noise = self.y[first:last], self._noise(first, last, Purpose.DECODER)
            truth = y if index is None else index[first:last]
            values = [
                decoder.log_prob(truth, self._center(first, last, t, noise(), decoder.denoise), std, spacing, level_map)
                for _ in range(draws)
            ]
            found.append(torch.stack(values, 1).cpu())
            self._check(found[-1], t.expand(found[-1].shape))
        return mean_of_repeats(torch.cat(found))

    def _center(self, first: int, last: int, t: Tensor, epsilon: Tensor, denoise: bool) -> Tensor:
        y, sde = self.y[first:last], self.model.sde
        if not denoise:
            return y + torch.exp(-sde.half_log_snr(t)) * epsilon.to(y)
        x_t = (sde.alpha(t) * y + sde.sigma(t) * epsilon.to(y)).to(self.meter.device, self.request.dtype)
        equation = ReverseEquation(self.model, 0.0, rows_of(self.request.condition, first, last), self.meter.evaluate)
        return equation.denoise(x_t, t).to(y)

    def _columns(self, times: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Network inputs; α, σ, and y* in terms of x_0 and ε, all (b, K); and n², float64."""
        sde, t = self.model.sde, times.reshape(-1)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        m, n = self.model.readout(t).view("x0")
        weights = (alpha, sigma, (1 - m * alpha) / n, -m * sigma / n)

        def shaped(c: Tensor) -> Tensor:
            return c.expand(t.shape).reshape(times.shape).to(self.meter.device, self.request.dtype)

        inputs = [shaped(c) for c in self.model.network_inputs(t)]
        return inputs, [shaped(c) for c in weights], (n**2).reshape(times.shape)

    def _noise(self, first: int, last: int, purpose: Purpose) -> Noise:
        return per_sample_noise(
            self.request.seed,
            self.request.first_index + first,
            (last - first, *self.y.shape[1:]),
            dtype=self.request.dtype,
            device=self.meter.device,
            purpose=purpose,
        )

    def _check(self, values: Tensor, times: Tensor) -> None:
        wrong = ~values.isfinite()
        if bool(wrong.any()):
            i, k = torch.nonzero(wrong)[0].tolist()
            raise NonFiniteError(
                f"the bound of sample {self.request.first_index + i} of its batch is not finite after evaluation {k}",
                step=k,
                t=times[i, k].item(),
                remedy="Look for NaN in the network's weights or output, or for an end too close to 0.",
            )
