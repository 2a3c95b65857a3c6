"""A trial of a network on perturbed data: how well it denoises when it is asked and read in one way or another.

Every way is tried on the same samples x_0 and noises ε, at the same relative noise levels. Errors are therefore paired:
their ratio is known better than either of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.inspection import dtype_of, modules_of
from sde_toolkit.models.linear_denoiser import LinearDenoiser
from sde_toolkit.models.prediction import KINDS, Kind, Readout
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["Manner", "Outcome", "Trial", "device_of", "readings"]

_WIDEST = 4.0  # |log(α s/σ)| of the levels, s the spread of the data: beyond, x_t is data or noise
_TOGETHER = 2**20  # elements of x_t that are made together
_ASKED = 2**18  # elements of x_t that go through the network together
_FITTED = 2**24  # elements of the data of which the linear denoiser is made


@dataclass(frozen=True)
class Manner:
    """How a network is asked and read.

    ``shift``, ``scale``: the data that it gets are (x − shift) · scale, x those in the model's space. ``later``: it is
    told the time of the level that is so many steps noisier.
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
        """What the network is asked: manners of the same question are read from the same answers.

        SDEs and time inputs count by identity: a user's own may know no other.
        """
        sigma_data = self.sigma_data if self.prediction == "edm" else None
        return id(self.sde), id(self.time_input), sigma_data, self.shift, self.scale, self.later


def readings(manner: Manner) -> list[Manner]:
    """The manners of the same question, this one first: every prediction that fits it, with both signs.

    For data of another range only this one: to mistake that and the prediction is two mistakes.
    """
    if (manner.shift, manner.scale) != (0.0, 1.0):
        return [manner]
    kinds: tuple[Kind, ...] = ("edm",) if manner.prediction == "edm" else tuple(kind for kind in KINDS if kind != "edm")
    found = [replace(manner, prediction=kind, sign=sign) for kind in kinds for sign in (1, -1)]
    return [manner, *(other for other in found if other != manner)]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a manner leads to.

    Attributes:
        errors: mean squares over the elements of x̂_0 − x_0, (levels, n), in units of the model's space. NaN at levels
            that its SDE does not reach; ∞ where an answer is not finite.
        fitted: those of the best a x_t + b y + c μ + d at each level, y the network's answer and μ the mean of the
            data. They say what the answers know, however they are read. None if not asked for.
    """

    manner: Manner
    errors: Tensor
    fitted: Tensor | None = None

    def part(self, levels: slice, n: int) -> Outcome:
        """That for some of the levels and the first n samples of each."""
        return Outcome(self.manner, self.errors[levels, :n], None if self.fitted is None else self.fitted[levels, :n])


@dataclass(frozen=True, eq=False)
class Trial:
    """Noise levels ``half_log_snr`` (levels,), data and noises (levels, n, *event) there, and two baselines.

    Attributes:
        places: (levels, n), of the samples in ``data``. ``condition`` has a row for each of ``data``.
        mean, spread: of the data; the spread is the root of the variance of an element about its mean.
        trivial, linear: errors (levels, n) of the best a x_t + b μ with numbers a and b, and of the best A x_t + b.
    """

    model: ScoreModel
    data: Tensor
    condition: Any
    half_log_snr: Tensor
    noise: Tensor
    places: Tensor
    mean: Tensor
    spread: float
    step: float
    trivial: Tensor
    linear: Tensor

    @classmethod
    def of(cls, model: ScoreModel, data: Tensor, condition: Any, levels: int, n: int, seed: int, fitted: int) -> Trial:
        """A trial on data (N, *event) in the model's space.

        One half of them makes the baselines, ``fitted`` at most; the network is asked about the other.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data), generator=generator)
        half, D = len(data) // 2, max(1, data[0].numel())
        known = data[order[: max(8, min(half, fitted, _FITTED // D))]].double()
        places = order[half:][torch.arange(levels * n) % (len(data) - half)].reshape(levels, n)
        mean = known.mean(0)
        spread = math.sqrt((known - mean).square().mean().item() * len(known) / (len(known) - 1))
        half_log_snr, step = _levels(model.sde, spread, levels)
        noise = torch.randn((levels, n, *data.shape[1:]), generator=generator)
        trivial, linear = _baselines(LinearDenoiser.of(known), spread, model.sde, half_log_snr, data, places, noise)
        return cls(
            model=model, data=data, condition=condition, half_log_snr=half_log_snr, noise=noise, places=places,
            mean=mean, spread=spread, step=step, trivial=trivial, linear=linear,
        )  # fmt: skip

    def part(self, levels: slice, n: int) -> Trial:
        """Some of the levels, and the first n samples of each."""
        return replace(
            self,
            half_log_snr=self.half_log_snr[levels],
            noise=self.noise[levels, :n],
            places=self.places[levels, :n],
            trivial=self.trivial[levels, :n],
            linear=self.linear[levels, :n],
        )

    def ask(self, manner: Manner, fit: bool = False) -> list[Outcome]:
        """Outcomes of all readings of the answers to one question, that of ``manner`` first.

        ``fit``: with what the answers know, however they are read.
        """
        manners = readings(manner)
        found = torch.full((len(manners) + fit, *self.places.shape), math.nan, dtype=torch.float64)
        asked = self._variant(manner)
        low, high = (manner.sde.half_log_snr(end).item() for end in (1.0, 0.0))
        wanted = self.half_log_snr - math.log(manner.scale)
        told = wanted - manner.later * self.step
        told = told.clamp(max(low, wanted.min().item()), min(high, wanted.max().item()))
        reached = torch.nonzero((wanted >= low) & (wanted <= high)).flatten()
        together = max(1, _TOGETHER // max(1, self.noise[0].numel()))
        for levels in reached.split(together) if len(reached) else ():
            if asked is None:
                break
            t, told_t = (manner.sde.inverse_half_log_snr(level[levels]) for level in (wanted, told))
            x_0 = (self.data[self.places[levels]].double() - manner.shift) * manner.scale
            alpha, sigma = (_over(c, x_0) for c in (manner.sde.alpha(t), manner.sde.sigma(t)))
            x_t = alpha * x_0 + sigma * self.noise[levels]
            try:
                inputs = asked.network_inputs(told_t)[0], *asked.network_inputs(t)[1:]
                y = self._answers(asked, x_t, inputs, self.places[levels])
            except Exception:  # whatever a network raises that is asked in a way that it was not made for
                if manner.question == Manner.of(self.model).question:
                    raise
                break
            views = {
                kind: [_over(c, x_0) for c in Readout(manner.sde, kind, t, manner.sigma_data).view("x0")]
                for kind in {one.prediction for one in manners}
            }
            for i, one in enumerate(manners):
                m, n = views[one.prediction]
                found[i, levels] = _squares(m * x_t + one.sign * n * y - x_0) / manner.scale**2
            if fit:
                mean = (self.mean - manner.shift) * manner.scale
                found[-1, levels] = _errors_of_fit(x_0, [x_t, y, mean.expand_as(x_0)]) / manner.scale**2
        if asked is not None:
            found[:, reached] = torch.nan_to_num(found[:, reached], nan=math.inf, posinf=math.inf)
        return [Outcome(one, e, found[-1] if fit else None) for one, e in zip(manners, found, strict=False)]

    def of_no_answer(self, manner: Manner) -> Tensor:
        """Mean square errors (levels,) of a network that always answers the mean of what this manner takes it for."""
        low, high = (manner.sde.half_log_snr(end).item() for end in (1.0, 0.0))
        t = manner.sde.inverse_half_log_snr((self.half_log_snr - math.log(manner.scale)).clamp(low, high))
        readout = Readout(manner.sde, manner.prediction, t, manner.sigma_data)
        (a, b), (_, n) = readout.basis(manner.prediction), readout.view("x0")
        return n**2 * (a**2 * self.spread**2 + b**2 / manner.scale**2)

    def _variant(self, manner: Manner) -> ScoreModel | None:
        """A model that asks the network so, uncompiled, since the batches differ in size; None where there is none."""
        network = self.model.network
        try:
            return ScoreModel(
                getattr(network, "_orig_mod", network),
                manner.sde,
                "edm" if manner.prediction == "edm" else "x0",
                time_input=manner.time_input,
                sigma_data=manner.sigma_data,
                learned_variance=self.model.learned_variance,
                condition_name=self.model.condition_name,
            )
        except ArgumentError:
            return None

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
        for rows in torch.arange(len(flat)).split(max(1, _ASKED // max(1, flat[0].numel()))):
            told = self._conditions(places[rows])
            y = model.output(flat[rows].to(device, dtype), tuple(c[rows].to(device) for c in inputs), told)
            answers.append(y.cpu().double())
        return torch.cat(answers).reshape(x_t.shape)

    def _conditions(self, places: Tensor) -> Any:
        """Those of the samples at these places in the data."""

        def chosen(rows: Tensor) -> Tensor:
            return rows[places.to(rows.device)]

        return None if self.condition is None else map_rows(self.condition, chosen)


def device_of(model: ScoreModel) -> torch.device:
    """Where the network is, also where it is a function around a module."""
    for _, module in modules_of(model, "model"):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")


def _levels(sde: SDE, spread: float, levels: int) -> tuple[Tensor, float]:
    """Equal steps in λ, from clean to noisy, half a step inside the range of the SDE; and the step."""
    middle = -math.log(spread)
    low, high = (sde.half_log_snr(end).item() for end in (1.0, 0.0))
    low, high = max(low, middle - _WIDEST), min(high, middle + _WIDEST)
    if not low < high:  # the data are too small or too large for this SDE
        low, high = (sde.half_log_snr(end).item() for end in (0.999, 0.001))
    step = (high - low) / levels
    return high - step * (torch.arange(levels, dtype=torch.float64) + 0.5), step


def _baselines(
    linear: LinearDenoiser, spread: float, sde: SDE, half_log_snr: Tensor, data: Tensor, places: Tensor, noise: Tensor
) -> Iterator[Tensor]:
    t = sde.inverse_half_log_snr(half_log_snr)
    mean = linear.mean.reshape(data.shape[1:])
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for k, (alpha, sigma) in enumerate(zip(sde.alpha(t), sde.sigma(t), strict=True)):
        x_0 = data[places[k]].double()
        x_t = alpha * x_0 + sigma * noise[k]
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        for errors, guess in zip(found, (mean + gain * (x_t - alpha * mean), linear(x_t, alpha, sigma)), strict=True):
            errors.append(_squares((guess - x_0).unsqueeze(0))[0])
    return (torch.stack(errors) for errors in found)


def _errors_of_fit(x_0: Tensor, features: list[Tensor]) -> Tensor:
    """Errors (levels, n) of the best linear combination of features (levels, n, *event) and 1, one at each level."""
    levels = len(x_0)
    columns = [f.reshape(levels, -1) for f in (*features, torch.ones_like(x_0))]
    sizes = [c.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30) for c in columns]
    A = torch.stack([torch.nan_to_num(c / s) for c, s in zip(columns, sizes, strict=True)], dim=2)
    y = x_0.reshape(levels, -1, 1)
    weights = torch.linalg.pinv(A.mT @ A, hermitian=True, rtol=1e-9) @ (A.mT @ y)
    return _squares((A @ weights - y).reshape(x_0.shape))


def _over(column: Tensor, x: Tensor) -> Tensor:
    return column.reshape(-1, *(1,) * (x.ndim - 1))


def _squares(difference: Tensor) -> Tensor:
    """Mean squares over all axes but the first two."""
    return difference.reshape(*difference.shape[:2], -1).square().mean(-1)
