"""A trial of a score model on perturbed data: what it makes of x_t, read and asked in one way or another.

Every way is tried on the same samples x_0 and noises ε at the same relative noise levels, so that errors are paired:
their ratio is known better than either of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.inspection import dtype_of, modules_of
from sde_toolkit.models.linear_denoiser import LinearDenoiser
from sde_toolkit.models.prediction import KINDS, Kind, Readout
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["Errors", "Manner", "Trial", "device_of", "readings"]

_WIDEST = 4.0  # |log(α σ_d/σ)| of the levels: beyond, x_t is data or noise, and many networks were not trained
_ELEMENTS = 2**18  # of x that go through the network together
_FITTED = 1024  # samples of which the linear denoiser is made

Errors: TypeAlias = Tensor
"""Mean squares over the elements of x̂_0 − x_0, (levels, samples), in the units of the model's space."""


@dataclass(frozen=True)
class Manner:
    """How a network is asked and read. ``shift``, ``scale``: the data it gets are (x − shift) · scale.

    ``later``: it is told the time of the level that is so many steps noisier.
    """

    sde: SDE
    prediction: Kind
    time_input: Callable[..., Tensor]
    sigma_data: float
    sign: int = 1
    shift: float = 0.0
    scale: float = 1.0
    later: float = 0.0

    @classmethod
    def of(cls, model: ScoreModel) -> Manner:
        """That which the model declares."""
        return cls(model.sde, model.prediction, model.time_input, model.sigma_data, model.sign)

    @property
    def question(self) -> tuple[Any, ...]:
        """What the network is asked: manners of the same question are read from the same answers."""
        scaled = self.sigma_data if self.prediction == "edm" else None
        return self.sde, repr(self.time_input), scaled, self.shift, self.scale, self.later


def readings(manner: Manner) -> Iterator[Manner]:
    """The manners of the same question: every prediction that fits it, with both signs."""
    kinds: tuple[Kind, ...] = ("edm",) if manner.prediction == "edm" else tuple(kind for kind in KINDS if kind != "edm")
    for kind in kinds:
        for sign in (1, -1):
            yield replace(manner, prediction=kind, sign=sign)


@dataclass(frozen=True, eq=False)
class Trial:
    """Data x_0 and noises ε (levels, n, *event) at the noise levels ``half_log_snr`` (levels,), with baselines.

    Attributes:
        data_size: σ_d = √E[x_0²], of the samples of the linear denoiser.
        trivial, linear: errors of the best a x_t + b with a number a, and of the best A x_t + b (levels, n).
        variance: of an element about the mean.
    """

    model: ScoreModel
    half_log_snr: Tensor
    x_0: Tensor
    noise: Tensor
    places: Tensor
    condition: Any
    data_size: float
    variance: float
    trivial: Errors
    linear: Errors
    variants: dict[Any, ScoreModel | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: ScoreModel, x: Tensor, condition: Any, levels: int, n: int, seed: int) -> Trial:
        """A trial on x (N, *event), in model space: one half for the baselines, the other for the network."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator)
        half = len(x) // 2
        fitted, kept = order[: min(half, _FITTED)], order[half:]
        half_log_snr = _levels(model, levels)
        places = kept[torch.arange(levels * n) % len(kept)].reshape(levels, n)
        x = x.detach().cpu()
        x_0, known = x[places].double(), x[fitted].double()
        noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        linear, mean = LinearDenoiser.of(known), known.mean(0)
        variance = (known - mean).square().mean().item() * len(known) / (len(known) - 1)
        alpha, sigma = _path(model.sde, half_log_snr)
        baselines = [], []  # type: tuple[list[Tensor], list[Tensor]]
        for k in range(levels):
            x_t = alpha[k] * x_0[k] + sigma[k] * noise[k]
            gain = alpha[k] * variance / (alpha[k] ** 2 * variance + sigma[k] ** 2)
            guesses = mean + gain * (x_t - alpha[k] * mean), linear(x_t, alpha[k], sigma[k])
            for found, guess in zip(baselines, guesses, strict=True):
                found.append(_squares(guess - x_0[k]))
        size = known.square().mean().sqrt().item()
        trivial, best = (torch.stack(found) for found in baselines)
        return cls(model, half_log_snr, x_0, noise, places, condition, size, variance, trivial, best)

    def part(self, levels: slice, n: int) -> Trial:
        """Some of the levels, and the first n samples of each."""
        return replace(
            self,
            half_log_snr=self.half_log_snr[levels],
            x_0=self.x_0[levels, :n],
            noise=self.noise[levels, :n],
            places=self.places[levels, :n],
            trivial=self.trivial[levels, :n],
            linear=self.linear[levels, :n],
        )

    def errors(self, manners: list[Manner]) -> list[Errors]:
        """Errors of manners of one question; NaN at levels that its SDE does not reach, ∞ for what is not finite."""
        first = manners[0]
        found = torch.full((len(manners), *self.x_0.shape[:2]), math.nan, dtype=torch.float64)
        variant = self._variant(first)
        if variant is None:
            return list(found)
        low, high = (first.sde.half_log_snr(end).item() for end in (1.0, 0.0))
        wanted = self.half_log_snr - math.log(first.scale)
        reached = torch.nonzero((wanted >= low) & (wanted <= high)).flatten()
        if len(reached) == 0:
            return list(found)
        step = (self.half_log_snr[0] - self.half_log_snr[-1]).item() / max(1, len(self.half_log_snr) - 1)
        told = (wanted - first.later * step).clamp(max(low, wanted.min().item()), min(high, wanted.max().item()))
        t, told_t = (first.sde.inverse_half_log_snr(level[reached]) for level in (wanted, told))
        try:
            inputs = variant.network_inputs(told_t)[0], *variant.network_inputs(t)[1:]
        except ArgumentError:  # a time that is not finite there
            return list(found)
        x_0 = (self.x_0[reached] - first.shift) * first.scale
        alpha, sigma = (_over(c, x_0) for c in (first.sde.alpha(t), first.sde.sigma(t)))
        x_t = alpha * x_0 + sigma * self.noise[reached]
        try:
            y = self._answers(variant, x_t, inputs, self.places[reached])
        except Exception:  # whatever a network raises that is asked in a way that it was not made for
            if first.question == Manner.of(self.model).question:
                raise
            return list(found)
        for i, manner in enumerate(manners):
            m, n = (_over(c, x_0) for c in Readout(manner.sde, manner.prediction, t, manner.sigma_data).view("x0"))
            error = _squares(m * x_t + manner.sign * n * y - x_0, 2) / first.scale**2
            found[i, reached] = torch.nan_to_num(error, nan=math.inf, posinf=math.inf)
        return list(found)

    def worst_sensible(self) -> Tensor:
        """Mean square errors (levels,) of a network of the declared kind that always answers the mean of its target."""
        model = self.model
        t = model.sde.inverse_half_log_snr(self.half_log_snr)
        readout = model.readout(t)
        (a, b), (_, n) = readout.basis(model.prediction), readout.view("x0")
        return n**2 * (a**2 * self.variance + b**2)

    def _variant(self, manner: Manner) -> ScoreModel | None:
        """A model that asks the network so; None where there can be none."""
        key = manner.question
        if key not in self.variants:
            model = self.model
            try:
                self.variants[key] = ScoreModel(
                    model.network,
                    manner.sde,
                    "edm" if manner.prediction == "edm" else "x0",
                    time_input=manner.time_input,
                    sigma_data=manner.sigma_data,
                    learned_variance=model.learned_variance,
                    condition_name=model.condition_name,
                )
            except ArgumentError:
                self.variants[key] = None
        return self.variants[key]

    def _conditions(self, places: Tensor) -> Any:
        """Those of the samples at these places in the data."""

        def chosen(rows: Tensor) -> Tensor:
            return rows[places.to(rows.device)]

        return None if self.condition is None else map_rows(self.condition, chosen)

    @torch.no_grad()
    def _answers(self, model: ScoreModel, x_t: Tensor, inputs: tuple[Tensor, ...], places: Tensor) -> Tensor:
        """The network's answers to x_t (levels, n, *event), inputs (levels,), in float64, in bounded batches."""
        levels, n = x_t.shape[:2]
        device = device_of(model)
        dtype = torch.float64 if dtype_of(model.network) == torch.float64 else torch.float32
        flat = x_t.reshape(levels * n, *x_t.shape[2:])
        inputs = tuple(c.to(dtype).repeat_interleave(n) for c in inputs)
        places = places.flatten()
        answers = []
        for rows in torch.arange(len(flat)).split(max(1, _ELEMENTS // max(1, flat[0].numel()))):
            told = self._conditions(places[rows])
            y = model.output(flat[rows].to(device, dtype), tuple(c[rows].to(device) for c in inputs), told)
            answers.append(y.cpu().double())
        return torch.cat(answers).reshape(x_t.shape)


def device_of(model: ScoreModel) -> torch.device:
    """Where the network is, also where it is a function around a module."""
    for _, module in modules_of(model, "model"):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")


def _over(column: Tensor, x: Tensor) -> Tensor:
    return column.reshape(-1, *(1,) * (x.ndim - 1))


def _levels(model: ScoreModel, levels: int) -> Tensor:
    """Equal steps in λ, from clean to noisy, half a step inside the range of the SDE."""
    middle = -math.log(model.sigma_data)
    low, high = (model.sde.half_log_snr(end).item() for end in (1.0, 0.0))
    low, high = max(low, middle - _WIDEST), min(high, middle + _WIDEST)
    share = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    return high + share * (low - high)


def _path(sde: SDE, half_log_snr: Tensor) -> tuple[Tensor, Tensor]:
    t = sde.inverse_half_log_snr(half_log_snr)
    return sde.alpha(t), sde.sigma(t)


def _squares(difference: Tensor, axes: int = 1) -> Tensor:
    """Mean squares over all axes but the first ones."""
    return difference.reshape(*difference.shape[:axes], -1).square().mean(-1)
