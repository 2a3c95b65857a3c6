"""Embedded Runge-Kutta pairs for the probability flow in λ, with a step size per sample.

    k_i = v(λ + c_i h, x + h Σ_j a_ij k_j)        x_new = x + h Σ_j b_j k_j        error = h Σ_j e_j k_j

A step of a sample is accepted when the root mean square of error / (atol + rtol max(|x|, |x_new|)) over that
sample is at most one. Other samples have no influence. The next step is h times (PI controller; Gustafsson
1991; Hairer, Nørsett & Wanner 1993, "Solving ODEs I", section IV.2 of volume II, with β = 1/(5q))

    0.9 · r^(−(1/q − ¾β)) · r_previous^β     within [1/5, 10],      r the ratio, q the order of the error

and the first comes from Hairer's rule (volume I, section II.4), one evaluation. The last stage of an accepted
step is the first of the next. Every sample ends at the last λ exactly. Samples that have arrived leave the batch
that the network sees. Inside an accepted step, at λ + θ h (volume I, section II.6; k_0 and k_s at its two ends),

    x(θ) = x + θ²(3 − 2θ) (x_new − x) + h [ θ(1−θ)² k_0 − θ²(1−θ) k_s + θ²(1−θ)² Σ_j d_j k_j ]

This is Hermite's cubic, and for Dormand-Prince it includes Shampine's correction to order 4. Gradients are those of the
steps that were taken: the step lengths are not differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.integrator import DenseIntegrator
from sde_toolkit.integrators.stepping import (
    PerSampleField,
    Stage,
    Statistics,
    absolute_tolerance,
    check_tolerances,
    root_mean_square,
)
from sde_toolkit.integrators.tables import StepRow
from sde_toolkit.noise.streams import Noise

__all__ = ["PerSample", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """An embedded pair whose last stage is the new state: nodes ``c``, rows ``a`` (the last are the weights b),
    weights ``e`` of the error estimate, and q, the power of h in that estimate (the lower order plus one).
    ``d``: weights that the interpolant adds to Hermite's cubic; none if the cubic is as accurate as the pair.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    e: tuple[float, ...]
    q: int
    d: tuple[float, ...] = ()


TABLEAUS = {
    # Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae", table 2
    "dopri5": Tableau(
        c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        a=(
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        e=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        q=5,
        # Shampine 1986, "Some practical Runge-Kutta formulas"
        d=(
            -12715105075 / 11282082432,
            0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
    # Bogacki & Shampine 1989, "A 3(2) pair of Runge-Kutta formulas"
    "bosh3": Tableau(
        c=(0, 1 / 2, 3 / 4, 1),
        a=((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        e=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
        q=3,
    ),
}


@dataclass(frozen=True, eq=False)
class _PerSampleState:
    """What the next interval starts with, per sample: step size, last ratio, velocity at its beginning, and counts."""

    h: Tensor
    ratio: Tensor
    velocity: Tensor
    statistics: Statistics


class _InteriorStates:
    """The solution at the λ that are ``wanted`` (K,), float64, inside the interval: ``values`` (K, B, *event)."""

    def __init__(self, pair: Tableau, x: Tensor, wanted: Tensor) -> None:
        self._pair, self._wanted = pair, wanted[:, None]
        self.values = x.new_empty(len(wanted), *x.shape)

    def fill(
        self,
        rows: Tensor,
        good: Tensor,
        at: Tensor,
        h: Tensor,
        target: Tensor,
        ends: tuple[Tensor, Tensor],
        k: list[Tensor],
    ) -> None:
        """Every value inside the accepted (``good``) steps of these rows from ``at`` to ``target``, (B,) each."""
        inside = good & ((self._wanted - at) * h > 0) & ((self._wanted - target) * h <= 0)
        if not bool(inside.any()):
            return
        places, columns = inside.nonzero().unbind(1)
        h = h[columns]
        theta = (self._wanted[places, 0] - at[columns]) / h
        rest = 1 - theta
        weights = [theta**2 * (3 - 2 * theta), h * theta * rest**2, -h * theta**2 * rest, h * (theta * rest) ** 2]
        here = columns.to(ends[0].device)
        x, new, first, last = (v[here] for v in (*ends, k[0], k[-1]))
        along, of_first, of_last, of_bend = (expand_to(w.to(x.device, x.dtype), x) for w in weights)
        value = torch.addcmul(torch.addcmul(x, along, new - x), of_first, first)
        value = torch.addcmul(value, of_last, last)
        if self._pair.d:
            value = torch.addcmul(value, of_bend, _combined(self._pair.d, k)[here])
        self.values[places.to(x.device), rows[columns].to(x.device)] = value


@dataclass(frozen=True)
class PerSample(DenseIntegrator):
    """An embedded Runge-Kutta pair in λ with a step size per sample, by default Dormand-Prince 5(4).

    ``method``: ``"dopri5"`` or ``"bosh3"``. ``rtol``, ``atol``: tolerances of a step, ``atol`` in the units of x;
    None is rtol · σ_d, σ_d being the model's ``sigma_data``. ``max_nfe``: evaluations
    that every sample may take, over the whole solve. The state carries :class:`Statistics`, one entry per
    sample. Unlike with :class:`TorchDiffEq` and :class:`Scipy`, a sample does not depend on its batch: with an
    elementwise score it is bit for bit the same, with a network to the network's rounding. It costs the evaluations
    that it needs alone.

    Intermediate grid times only say where the solution is wanted. The batch waits there for its slowest sample.

    Raises:
        ArgumentError: unknown method, tolerances that are not positive, no evaluation allowed.
        MaxEvaluationsError: if a sample has used its ``max_nfe`` evaluations.
        NonFiniteError: if the network's velocity is not finite; it names the samples.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float | None = None
    max_nfe: int = 10_000

    methods: ClassVar[tuple[str, ...]] = tuple(TABLEAUS)

    def __post_init__(self) -> None:
        if self.method not in self.methods:
            raise ArgumentError("method", self.method, "not an embedded pair", f"Use one of {self.methods}.")
        check_tolerances(self.rtol, self.atol, self.max_nfe)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        lambdas = torch.stack(row).to("cpu", torch.float64)
        _, arrived, state = self._solve(equation, x, lambdas, state)
        return arrived, state

    def states(self, equation: ReverseEquation, x: Tensor, times: Tensor) -> tuple[Tensor, Statistics]:
        between, arrived, state = self._solve(equation, x, self.lambdas(equation, times), None)
        return torch.cat([x[None], between, arrived[None]]), state.statistics

    def _solve(
        self, equation: ReverseEquation, x: Tensor, lambdas: Tensor, state: _PerSampleState | None
    ) -> tuple[Tensor, Tensor, _PerSampleState]:
        """(solution at the inner ``lambdas``, solution at the last, state for the next interval)."""
        start, end = lambdas[0].item(), lambdas[-1].item()
        done = Statistics.none(len(x)) if state is None else state.statistics
        accepted, rejected, used = (c.clone() for c in (done.accepted, done.rejected, done.evaluations))
        field = PerSampleField(equation, (start, end), self.max_nfe, used)
        at = torch.full((len(x),), start, dtype=torch.float64)
        if state is None:
            state = self._first(field, x, at, end, absolute_tolerance(self, equation))
        pair, h, ratio, k = TABLEAUS[self.method], state.h, state.ratio, state.velocity
        atol = absolute_tolerance(self, equation)
        retry = torch.zeros(len(x), dtype=torch.bool)
        ends = _PerSampleState(h.clone(), ratio.clone(), torch.empty_like(x), Statistics(accepted, rejected, used))
        arrived, between = torch.empty_like(x), _InteriorStates(pair, x, lambdas[1:-1])
        while len(field.active):
            left = end - at
            last = h.abs() >= left.abs()
            tried = torch.where(last, left, h)
            target = torch.where(last, end, at + tried)
            new, velocities, stages = self._attempt(pair, field, x, k, at, tried, target)
            found = self._ratio(pair, x, new, tried, velocities, atol)
            if not bool(found.isfinite().all()):
                field.blame(velocities[1:], stages)
                found = found.nan_to_num(nan=torch.inf)
            good = found <= 1
            accepted[field.active] += good
            rejected[field.active] += ~good
            between.fill(field.active, good, at, tried, target, (x, new), velocities)
            # The end of an interval shortens its last step: the next interval may begin with a longer one.
            proposed = tried * _change(found, ratio, good, retry, pair.q)
            h = torch.where(last & good, torch.where(proposed.abs() > h.abs(), proposed, h), proposed)
            ratio, at, retry = torch.where(good, found, ratio), torch.where(good, target, at), ~good
            if bool(good.all()):
                x, k = new, velocities[-1]
            else:
                chosen = expand_to(good.to(x.device), x)
                x, k = torch.where(chosen, new, x), torch.where(chosen, velocities[-1], k)
            over = good & last
            if bool(over.any()):
                rows, here = field.active[over], over.to(x.device)
                arrived[rows.to(x.device)], ends.velocity[rows.to(x.device)] = x[here], k[here]
                ends.h[rows], ends.ratio[rows] = h[over], ratio[over]
                stay = (~over).nonzero().flatten()
                field.keep(stay)
                h, ratio, at, retry = h[stay], ratio[stay], at[stay], retry[stay]
                x, k = x[stay.to(x.device)], k[stay.to(x.device)]
        return between.values, arrived, ends

    def _attempt(
        self, pair: Tableau, field: PerSampleField, x: Tensor, k: Tensor, at: Tensor, h: Tensor, target: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Stage]]:
        """(x_new, all velocities, the stages of all but the first) of one step of every active sample."""
        nodes = torch.tensor(pair.c[1:], dtype=torch.float64)[:, None]
        stages = field.stages(torch.where(nodes == 1, target, at + nodes * h), x)
        length, velocities, new = expand_to(h.to(x.device, x.dtype), x), [k], x
        for stage, weights in zip(stages, pair.a, strict=True):
            new = torch.addcmul(x, length, _combined(weights, velocities))
            velocities.append(field(new, stage))
        return new, velocities, stages

    @torch.no_grad()
    def _ratio(self, pair: Tableau, x: Tensor, new: Tensor, h: Tensor, velocities: list[Tensor], atol: float) -> Tensor:
        """Error over tolerance of every sample, on the CPU: the one wait for the device in an attempt."""
        error = expand_to(h.to(x.device, x.dtype), x) * _combined(pair.e, velocities)
        scale = atol + self.rtol * torch.maximum(x.abs(), new.abs())
        return root_mean_square(error / scale).cpu().double()

    def _first(self, field: PerSampleField, x: Tensor, at: Tensor, end: float, atol: float) -> _PerSampleState:
        """A first step whose error is about a hundredth, from a short Euler step; two evaluations."""
        (here,) = field.stages(at[None], x)
        k = field(x, here)
        with torch.no_grad():
            h = self._first_length(field, x, k, at, end, here, atol)
        return _PerSampleState(h, torch.ones_like(h), k, Statistics.none(0))

    def _first_length(
        self, field: PerSampleField, x: Tensor, k: Tensor, at: Tensor, end: float, here: Stage, atol: float
    ) -> Tensor:
        q, left, scale = TABLEAUS[self.method].q, end - at, atol + self.rtol * x.abs()
        size, speed = (root_mean_square(v / scale).cpu().double() for v in (x, k))
        field.blame([k], [here])
        short = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed.clamp(min=1e-300))
        short = torch.minimum(short, left.abs()) * left.sign()
        (there,) = field.stages((at + short)[None], x)
        moved = field(torch.addcmul(x, expand_to(short.to(x.device, x.dtype), x), k), there)
        field.blame([moved], [there])
        bend = root_mean_square((moved - k) / scale).cpu().double() / short.abs()
        fastest = torch.maximum(speed, bend).clamp(min=1e-15)
        return torch.minimum(100 * short.abs(), _elementwise_power(0.01 / fastest, 1 / q)) * left.sign()


def _combined(weights: tuple[float, ...], velocities: list[Tensor]) -> Tensor:
    total = weights[0] * velocities[0]
    for weight, velocity in zip(weights[1:], velocities[1:], strict=True):
        if weight:
            total = torch.add(total, velocity, alpha=weight)
    return total


def _change(ratio: Tensor, previous: Tensor, good: Tensor, retry: Tensor, q: int) -> Tensor:
    """The factor of the step size: at most 1 for a rejected step and for the step after it."""
    beta = 1 / (5 * q)
    ratio, previous = ratio.clamp(1e-10, 1e10), previous.clamp(min=1e-4)
    steady = _elementwise_power(ratio, -(1 / q - 0.75 * beta)) * _elementwise_power(previous, beta)
    factor = 0.9 * torch.where(good, steady, _elementwise_power(ratio, -1 / q))
    return torch.where(good & ~retry, factor.clamp(0.2, 10.0), factor.clamp(0.2, 1.0))


def _elementwise_power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent by functions that round the same way at every position of a vector."""
    return torch.exp(exponent * torch.log(base))
