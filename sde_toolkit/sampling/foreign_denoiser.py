"""What a foreign solver is given: the denoiser D(x/α, σ/α), and noise with a stream for each sample.

In y = x/α and r = σ/α the probability flow of every affine SDE is one equation, dy/dr = (y − D(y, r))/r. diffusers,
k-diffusion and azula write their samplers in these coordinates, or in a scaled form of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sde_toolkit.batching import columns_like
from sde_toolkit.checks import is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, MaxEvaluationsError
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose, per_sample_noise

__all__ = ["Denoiser", "GaussianDenoiser", "ModelDenoiser", "SampleNoise", "noise_of_samples"]

_SAME_LEVEL = 1e-6  # relative: a level of the grid that went through float32 is that level


class SampleNoise:
    """Standard normal noise for the samples ``first_index``, ..., each from its own stream, whatever the batch.

    ``rng()`` and ``rng(x)`` give the next draw, shape (B, *event), in the dtype and on the device of the state (of
    ``x``). The streams are those of :func:`sde_toolkit.sample`; the first draw was the start.
    """

    def __init__(
        self, seed: int, first_index: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.seed, self.first_index, self.shape = seed, first_index, tuple(shape)
        self._draw = per_sample_noise(seed, first_index, self.shape, dtype=dtype, device=device)

    def __call__(self, like: Tensor | None = None) -> Tensor:
        if like is not None and tuple(like.shape) != self.shape:
            remedy = "Call rng() for noise of the whole batch, and take a part of it."
            raise ArgumentError("rng(x)", tuple(like.shape), f"the batch has shape {self.shape}", remedy)
        noise = self._draw()
        return noise if like is None else noise.to(like.device, like.dtype)

    def seeds(self, n: int | None = None) -> list[int]:
        """A whole number for each sample (of the first n), for code that seeds generators of its own."""
        return KeyedDraws(self.seed, Purpose.FOREIGN).integers(0, self.first_index, n or self.shape[0])


class _NoiseOfSamples(TorchFunctionMode):
    """``torch.randn_like`` and ``torch.randn`` of the batch's shape draw from ``rng``, unless a generator is given."""

    def __init__(self, rng: SampleNoise) -> None:
        super().__init__()
        self.rng = rng

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        draws = func in (torch.randn_like, torch.randn) and told.get("generator") is None
        if not draws or _shape_asked(args, told) != self.rng.shape:
            return func(*args, **told)
        noise = self.rng(args[0] if args and isinstance(args[0], Tensor) else told.get("input"))
        return noise.to(told.get("device") or noise.device, told.get("dtype") or noise.dtype)


def _shape_asked(args: Any, told: Any) -> tuple[int, ...] | None:
    first = args[0] if args else told.get("input", told.get("size"))
    if isinstance(first, Tensor):
        return tuple(first.shape)
    return tuple(args) if isinstance(first, int) else None if first is None else tuple(first)


@contextmanager
def noise_of_samples(rng: SampleNoise, denoiser: Denoiser, device: torch.device, draws: bool) -> Iterator[None]:
    """Torch's random numbers begin at a seed of the batch's first sample, and are as they were afterwards.

    Where foreign code ``draws`` noise, its ``torch.randn_like(x)`` gets numbers from the samples' streams. Every
    operation of torch then takes a microsecond more, but for those in the denoiser.
    """
    on_card = device.type == "cuda"
    with torch.random.fork_rng([device] if on_card else []):
        seed = rng.seeds(1)[0]
        torch.default_generator.manual_seed(seed)
        if on_card:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if not draws:
            yield
            return
        with _NoiseOfSamples(rng) as mode:
            denoiser.pause = mode
            try:
                yield
            finally:
                denoiser.pause = None


class Denoiser:
    """D(x, sigma), the denoised estimate x̂_0 of x/α at the noise level σ/α. Every call is counted.

    Args of a call: ``x`` (B, *event), the whole batch. ``sigma``: a number, or a tensor of one value or of B equal
    ones. The answer has the dtype of ``x``.

    Args:
        shape: of the batch.
        most: evaluations of networks that are allowed.

    Raises:
        ArgumentError: when called, for another shape, or a ``sigma`` that is not one noise level.
        MaxEvaluationsError: when called too often.
    """

    def __init__(self, shape: tuple[int, ...], most: int) -> None:
        self.shape, self.most = tuple(shape), most
        self.looked_at: list[Tensor] = []  # a sum of each x: not finite if x is not
        self.pause: TorchFunctionMode | None = None

    @property
    def nfe(self) -> int:
        """Evaluations of networks so far."""
        raise NotImplementedError

    def answer(self, x: Tensor, sigma: float) -> Tensor:
        """x̂_0, in the dtype of x, which is float32 or float64."""
        raise NotImplementedError

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point() or tuple(x.shape) != self.shape:
            found = (tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x
            problem = f"the denoiser takes the whole batch, a floating-point tensor of shape {self.shape}"
            raise ArgumentError("denoise: x", found, problem, "Pass the state as the solver was given it.")
        level = _one_level(sigma, self.shape[0])
        if self.pause is None:
            return self._counted(x, level)
        mode = self.pause
        mode.__exit__(None, None, None)
        try:
            return self._counted(x, level)
        finally:
            mode.__enter__()

    def _counted(self, x: Tensor, level: float) -> Tensor:
        state = x if x.dtype == torch.float64 else x.to(torch.float32)
        self.looked_at.append(state.detach().sum())
        answer = self.answer(state, level).to(x.dtype)
        if self.nfe > self.most:
            raise MaxEvaluationsError(self.most, level, foreign=True)
        return answer

    def first_not_finite(self) -> int:
        """The first evaluation, from 0, whose x was not finite; the number of evaluations if there is none."""
        seen = [math.isfinite(total) for total in torch.stack(self.looked_at).tolist()] if self.looked_at else []
        return seen.index(False) if False in seen else len(seen)


def _one_level(sigma: Any, n: int) -> float:
    """The one noise level in a number or a tensor."""
    values = sigma.detach().flatten().tolist() if isinstance(sigma, Tensor) else [sigma]
    one = len(values) in (1, n) and all(value == values[0] for value in values)
    if not (one and is_number(values[0]) and values[0] >= 0):
        problem = "it is one noise level σ/α for the whole batch: a number of at least 0, or a tensor of B equal ones"
        raise ArgumentError("denoise: sigma", sigma, problem, "Pass sigmas[i].")
    return float(values[0])


class _Level(NamedTuple):
    """A noise level: α of its time, the network's inputs, and (m, n) of x̂_0 = m x_t + n y."""

    alpha: Tensor
    inputs: Inputs
    m: Tensor
    n: Tensor


class ModelDenoiser(Denoiser):
    """The denoiser of a score model: x̂_0 at x_t = α x and the time of ``sigma``.

    Levels outside of the SDE's range are evaluated at its nearest end, t = 1 or ``likelihood_end``.

    Args:
        equation: with the condition, and with ``evaluate`` of ``meter``.
        times: of the grid; levels are computed once for each.
        meter: counts the network's evaluations.
        callback: called after each evaluation.
    """

    def __init__(
        self,
        equation: ReverseEquation,
        times: Tensor,
        meter: Any,
        shape: tuple[int, ...],
        most: int,
        callback: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(shape, most)
        self.equation, self.meter, self.callback = equation, meter, callback
        sde = equation.sde
        ends = sde.half_log_snr(torch.tensor([1.0, sde.likelihood_end], dtype=torch.float64))
        self.lowest, self.highest = ends.tolist()  # of λ
        own = sde.half_log_snr(times)
        inside = own <= self.highest
        self.time_of = dict(zip(torch.exp(-own[inside]).tolist(), times[inside].tolist(), strict=True))
        self.levels: dict[tuple[float, torch.dtype], _Level] = {}

    @property
    def nfe(self) -> int:
        nfe: int = self.meter.calls
        return nfe

    def answer(self, x: Tensor, sigma: float) -> Tensor:
        level = self.levels.get((sigma, x.dtype))
        if level is None:
            level = self.levels[sigma, x.dtype] = self._level(sigma, x)
        x_t = level.alpha * x
        x_0 = level.m * x_t + level.n * self.equation.output(x_t, level.inputs)
        if self.callback is not None:
            self.callback()
        return x_0

    def _level(self, sigma: float, x: Tensor) -> _Level:
        t = torch.tensor(self._time(sigma), dtype=torch.float64)
        alpha, m, n = (c.to(x.device, x.dtype) for c in (self.equation.sde.alpha(t), *self.equation.view("x0", t)))
        return _Level(alpha, columns_like(x, self.equation.inputs(t)), m, n)

    def _time(self, sigma: float) -> float:
        near = min(self.time_of, key=lambda known: abs(known - sigma), default=math.nan)
        if abs(near - sigma) <= _SAME_LEVEL * sigma:
            return self.time_of[near]
        lambda_t = math.inf if sigma == 0 else -math.log(sigma)
        lambda_t = min(max(lambda_t, self.lowest), self.highest)
        return self.equation.sde.inverse_half_log_snr(torch.tensor(lambda_t, dtype=torch.float64)).item()


class GaussianDenoiser(Denoiser):
    """The denoiser of data N(0, size² I): no network, for rehearsals. Every call counts as ``inside`` evaluations."""

    def __init__(self, size: float, shape: tuple[int, ...], most: int, inside: int = 1) -> None:
        super().__init__(shape, most)
        self.size, self.inside = size, inside

    @property
    def nfe(self) -> int:
        return self.inside * len(self.looked_at)

    def answer(self, x: Tensor, sigma: float) -> Tensor:
        return x * (self.size**2 / (self.size**2 + sigma**2))
