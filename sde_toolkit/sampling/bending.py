"""How strongly the flow of a model bends at each noise level, measured once per model by a few evaluations.

A multistep method of order 2 that integrates F (:mod:`sde_toolkit.integrators.frozen`) by steps of length h in λ makes
an error of rate(λ) h² per unit of λ, up to a constant:

    rate = growth · sin φ cos φ · rms |d²F/dλ²|            tan φ = σ/(α σ_d),  F = sin φ x̂_0/σ_d − cos φ ε̂

The factor sin φ cos φ = −dφ/dλ is what F adds to the scaled state x/√(σ² + α² σ_d²) per unit of λ. ``growth`` says how
many times larger an error of the scaled state is at the data than at λ, and is 1 where errors shrink. It matters for
networks whose x̂_0 is inaccurate at high noise. The sum of the errors of N steps is least for steps of density
rate^(1/3) in λ (de Boor 1973, "Good approximation by splines with variable knots").

The measurement solves the flow of a few noises once, with equal steps in λ, and takes second differences of F. Some of
the noises have a twin, which starts a little farther in the direction of the first F: errors begin in it. The growth is
that of the distance between the two. All this needs the outputs of the network alone, and holds for every SDE,
parameterisation and unit of the data. The last x̂_0 show the size of the data. If they are far from σ_d, the measurement
is repeated with their size.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sde_toolkit.batching import columns_like, expand_to
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import FrozenEDM, Multistep
from sde_toolkit.models.conditions import map_rows, tensors_of
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.sampling.arguments import device_of
from sde_toolkit.sampling.loop import Options, no_noise, solve
from sde_toolkit.sde import SDE
from sde_toolkit.solvers import Solver

__all__ = ["LAMBDA_FIRST", "Bending", "assumed_bending", "least_time", "measured_bending"]

_LEVELS, _NOISES, _TWINS, _SEED = 20, 2, 1, 0  # evaluations, of so many samples and twins, from this seed
_APART = 0.02  # twins at the start, in standard deviations
_FAR = 4.0  # σ_d is not believed if it is off by this factor
LAMBDA_FIRST, _LAST = -7.0, 6.0  # λ + log σ_d at the ends of the measurement, at most
_FLOOR = 0.02  # the least density, over the largest
_DIGITS = 3  # of the densities: rounding errors of a device do not move the grid
_POINTS = 4001  # of the numerical integral of the density


@dataclass(frozen=True, eq=False)
class Bending:
    """Density of steps over λ + log σ_d, for data of size ``sigma_data``.

    ``levels`` (K,), increasing, and ``density`` (K,), positive, in any unit. ``evaluations``: of one sample each, that
    measuring took; 0 if the density is assumed.
    """

    levels: Tensor
    density: Tensor
    sigma_data: float
    evaluations: int = 0

    def grid(self, sde: SDE, steps: int, end: float) -> Tensor:
        """``steps`` + 1 times from t = 1 to t = ``end``, at equal shares of the density."""
        shift = math.log(self.sigma_data)
        first, last = (value + shift for value in sde.half_log_snr(torch.tensor([1.0, end], dtype=torch.float64)))
        levels = torch.linspace(max(first.item(), LAMBDA_FIRST), last.item(), _POINTS, dtype=torch.float64)
        heights = _interpolated(levels, self.levels, self.density)
        shares = torch.cat([torch.zeros(1, dtype=torch.float64), (heights[1:] + heights[:-1]).cumsum(0)])
        wanted = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        lambdas = _interpolated(wanted, shares / shares[-1], levels) - shift
        low, high = sde.half_log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64))
        times = sde.inverse_half_log_snr(torch.minimum(torch.maximum(lambdas, low), high))
        times[0], times[-1] = 1.0, end
        return check_grid(times)


def assumed_bending(model: ScoreModel) -> Bending:
    """What mixtures have on average, for a model that cannot be measured: the density of ``grids.sech(width=2)``."""
    levels = torch.linspace(LAMBDA_FIRST, 10.0, 200, dtype=torch.float64)
    return Bending(levels, 1 / torch.cosh((levels - 0.75) / 2), model.sigma_data)


def measured_bending(
    model: ScoreModel, event_shape: tuple[int, ...], condition: Any = None, dtype: torch.dtype = torch.float32
) -> Bending | None:
    """The bending of the flow of ``model`` with this condition; None if it is not finite, or the flow does not bend.

    It costs 20 evaluations of a batch of 3, and one more of 2; twice as many if ``model.sigma_data`` is off by a factor
    of 4. The result is kept with the model, for each condition, until a weight changes. The noise has a seed of its
    own. Of a condition with rows the first two are used, or the only one. ``dtype``: of the state.

    Whatever the network raises is raised.
    """
    rows = _few_rows(condition)
    key, state = (event_shape, _digest(rows), dtype), _state_of(model)
    kept = _KEPT.get(model)
    if kept is None or kept[0] != state:
        kept = _KEPT[model] = (state, {})
    if key not in kept[1]:
        pilot = _solve_pilot(model, event_shape, rows, dtype, model.sigma_data)
        size = pilot.size_instead()
        if size is not None:
            before = pilot.evaluations
            pilot = _solve_pilot(model, event_shape, rows, dtype, size)
            pilot.evaluations += before
        kept[1][key] = pilot.bending()
    return kept[1][key]


_KEPT: WeakKeyDictionary[ScoreModel, tuple[object, dict[object, Bending | None]]] = WeakKeyDictionary()


def _state_of(model: ScoreModel) -> object:
    """What changes with the model: the versions of its weights, and their first numbers, which ``.data`` changes."""
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()]
    firsts: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        firsts.setdefault(tensor.device, []).append(tensor[(0,) * tensor.ndim].float())
    numbers = [tuple(torch.stack(values).tolist()) for values in firsts.values()]  # one wait for each device
    versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    return (model.sde, model.prediction, model.sigma_data, numbers, versions)


def _few_rows(condition: Any) -> Any:
    """The condition of as many samples as are measured: noises, then twins."""
    which = torch.cat([torch.arange(_NOISES), torch.arange(_TWINS)])
    return map_rows(condition, lambda rows: rows[which.to(rows.device) % len(rows)])


def _digest(condition: Any) -> str:
    """Of the values of a condition."""
    if condition is None:
        return ""
    shared = map_rows(condition, lambda rows: rows[:0])
    numbers = [tensor.detach().cpu().tolist() for tensor in tensors_of(condition)]
    return hashlib.sha256(repr((shared, numbers)).encode()).hexdigest()


@dataclass(eq=False)
class _Pilot:
    """The states and outputs at the levels of one solve, float64 on the CPU: of noises, and then of their twins."""

    model: ScoreModel
    times: Tensor
    sigma_data: float
    evaluations: int
    states: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def evaluate(self, x: Tensor, inputs: Inputs, condition: object, call: object = None) -> Tensor:
        """The model's output, noted."""
        y = self.model.output(x, inputs, condition)
        self.states.append(x.flatten(1).to("cpu", torch.float64))
        self.outputs.append(y.flatten(1).to("cpu", torch.float64))
        return y

    def size_instead(self) -> float | None:
        """The root mean square of the last x̂_0, if σ_d is off by a factor of 4 and by two standard errors."""
        m, n = self.model.readout(self.times[-1:]).view("x0")
        squares = (m * self.states[-1] + n * self.outputs[-1])[:_NOISES].square().mean(1)
        size = squares.mean().sqrt().item()
        if not (math.isfinite(size) and size > 0):
            return None
        error = (squares.std() / (2 * squares.mean() * len(squares) ** 0.5)).item()  # of log size
        return size if abs(math.log(size / self.sigma_data)) > max(math.log(_FAR), 2 * error) else None

    def bending(self) -> Bending | None:
        """None if the states are not finite, or F does not change."""
        equation = ReverseEquation(self.model, 0.0)
        m, n = FrozenEDM(self.sigma_data).view(equation, self.times)
        states, outputs = torch.stack(self.states), torch.stack(self.outputs)  # (levels, samples, elements)
        frozen = expand_to(m, states) * states + expand_to(n, outputs) * outputs
        levels = self.model.sde.half_log_snr(self.times) + math.log(self.sigma_data)
        changes = frozen.diff(dim=0)
        slopes = changes / expand_to(levels.diff(), changes)
        bends = slopes.diff(dim=0)
        seconds = bends / expand_to((levels[2:] - levels[:-2]) / 2, bends)
        middle = levels[1:-1]
        rate = seconds.square().mean((1, 2)).sqrt() / (2 * torch.cosh(middle))  # sin φ cos φ, of λ + log σ_d
        density = (rate * self._growth(states)[1:-1]) ** (1 / 3)
        if not bool(density.isfinite().all()) or density.max() == 0:
            return None
        for _ in range(2):
            around = torch.cat([density[:1], density, density[-1:]])
            density = (around[:-2] + 2 * around[1:-1] + around[2:]) / 4
        density = density / density.max() + _FLOOR
        return Bending(middle, density.round(decimals=_DIGITS), self.sigma_data, self.evaluations)

    def _growth(self, states: Tensor) -> Tensor:
        """From each level to the last, of the distance between twins in the scaled state; at least 1. (levels,)"""
        scale = _state_size(self.model.sde, self.times, self.sigma_data)
        apart = (states[:, _NOISES:] - states[:, :_TWINS]).square().mean(2).sqrt() / scale.unsqueeze(1)
        return torch.log(apart[-1:] / apart).mean(1).exp().nan_to_num(nan=1.0).clamp(min=1.0)


def _twins(equation: ReverseEquation, x: Tensor, t: Tensor, sigma_data: float) -> Tensor:
    """Starts a little beside the first rows of x_t, in the direction of their F. One evaluation; t is 0-dim."""
    m, n = (column.to(x) for column in FrozenEDM(sigma_data).view(equation, t))
    frozen = m * x + n * equation.output(x, columns_like(x, equation.inputs(t)))
    direction = frozen[:_TWINS].flatten(1)
    lengths = direction.square().mean(1, keepdim=True).sqrt()
    away = torch.where(lengths > 0, direction / lengths, 0.0).reshape(x[:_TWINS].shape)
    return x[:_TWINS] + _APART * _state_size(equation.sde, t, sigma_data).to(x) * away


def _state_size(sde: SDE, t: Tensor, sigma_data: float) -> Tensor:
    """√(σ² + α² σ_d²): x over it is the scaled state."""
    return torch.hypot(sde.sigma(t), sde.alpha(t) * sigma_data)


def _solve_pilot(
    model: ScoreModel, event_shape: tuple[int, ...], condition: Any, dtype: torch.dtype, sigma_data: float
) -> _Pilot:
    sde, shift = model.sde, math.log(sigma_data)
    first, last = (sde.half_log_snr(t).item() + shift for t in (1.0, least_time(model)))
    levels = torch.linspace(max(first, LAMBDA_FIRST), min(last, _LAST), _LEVELS + 1, dtype=torch.float64)
    times = check_grid(sde.inverse_half_log_snr(levels - shift))
    device, samples = device_of(model, None), _NOISES + _TWINS
    noise = torch.randn(_NOISES, *event_shape, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
    x = (sde.sigma(times[0]) * noise).to(device, dtype)
    evaluations = (_LEVELS * samples + _NOISES) * model.evaluations_inside
    pilot = _Pilot(model, times[:-1], sigma_data, evaluations)
    of_noises = ReverseEquation(model, 0.0, map_rows(condition, lambda rows: rows[:_NOISES]))
    solver = Solver("bending", 0.0, Multistep(2, FrozenEDM(sigma_data)))
    with torch.no_grad():
        x = torch.cat([x, _twins(of_noises, x, times[0], sigma_data)])
        solve(
            ReverseEquation(model, 0.0, condition, pilot.evaluate),
            solver,
            times,
            samples,
            lambda i, j: (x[i:j], lambda step: no_noise),
            Options(dtype, device),
        )
    return pilot


def least_time(model: ScoreModel) -> float:
    """The last time at which the model is evaluated: exact scores are known nearer to the data than networks are."""
    end = model.sde.likelihood_end if model.has_exact_score else model.sde.sampling_end
    return end if model.sde.sigma(0.0) > 0 else max(end, 1e-6)


def _interpolated(x: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """The straight lines through (nodes, values) at x, constant beyond the ends."""
    right = torch.searchsorted(nodes, x.contiguous()).clamp(1, len(nodes) - 1)
    share = ((x - nodes[right - 1]) / (nodes[right] - nodes[right - 1])).clamp(0.0, 1.0)
    return values[right - 1] + share * (values[right] - values[right - 1])
