"""Adaptive steps for the reverse SDE, each sample its own: stochastic improved Euler in λ.

With D the drift in λ, b = η √2 σ the diffusion and W the sample's Brownian path, one step of length h is

    x′ = x + h D(x, λ) + b(λ) ΔW        x̃ = x + h D(x′, λ+h) + b(λ+h) ΔW        x″ = ½ (x′ + x̃)

x″ is kept if E = RMS((x′ − x″)/δ) <= 1 with δ = max(atol, rtol max(|x′|, |x′_previous|)), and the next step is
min(what is left, θ h E^(−r)): Jolicoeur-Martineau et al. 2021, "Gotta Go Fast When Generating Data with
Score-Based Models", algorithm 1.

Two things differ from the paper. Steps are taken in λ instead of t. And a rejected step keeps its noise: E depends on
the noise, so drawing anew after a rejection would favour small noise. The known values of the path stay; a shorter step
draws W between them from a Brownian bridge (Rackauckas & Nie 2017,
"Adaptive methods for stochastic differential equations via natural embeddings and rejection sampling with memory").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import check_positive
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.stepping import (
    PerSampleField,
    Statistics,
    check_tolerances,
    root_mean_square,
)
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise

__all__ = ["AdaptiveSDE", "KnownPath"]


GREY_LEVEL = 2 / 256
"""The usual absolute tolerance, in units of the data's size."""


class KnownPath:
    """The Brownian path of every sample beyond its present λ, at the points that rejected steps have drawn.

    ``ahead`` (K, B): the distance to each known point, infinite where a place is free. ``values``
    (K, B, *event): W at the known point minus W at the present λ.
    """

    def __init__(self, x: Tensor) -> None:
        self.ahead = torch.empty(0, len(x), dtype=torch.float64)
        self.values = x.new_empty(0, *x.shape)

    def increment(self, h: Tensor, z: Tensor) -> Tensor:
        """W at the distance h (B,) minus W here: a bridge between known points, free Brownian motion beyond."""
        here = torch.zeros(1, len(h), dtype=torch.float64)
        points = torch.cat([here, self.ahead])
        before, i = torch.where(points <= h, points, -torch.inf).max(0)
        after, j = torch.where(points >= h, points, torch.inf).min(0)
        gap = after - before
        weight = torch.where(gap.isfinite() & (gap > 0), (h - before) / gap, 0.0)
        std = torch.where(gap > 0, (h - before).clamp(min=0.0) * (1 - weight), 0.0).sqrt()
        if not len(self.ahead):
            return expand_to(std.to(z.device, z.dtype), z) * z
        values = torch.cat([torch.zeros_like(z)[None], self.values])
        columns = torch.arange(len(h), device=z.device)
        low, high = (values[k.to(z.device), columns] for k in (i, j))
        weight, std = (expand_to(c.to(z.device, z.dtype), z) for c in (weight, std))
        return torch.addcmul(torch.addcmul(low, weight, high - low), std, z)

    def move(self, h: Tensor, increment: Tensor, good: Tensor) -> None:
        """Move the ``good`` samples by h. The others stay, and remember W at distance h."""
        self.ahead = torch.where(good, self.ahead - h, self.ahead)
        self.ahead = torch.where(self.ahead > 0, self.ahead, torch.inf)
        chosen = expand_to(good.to(increment.device), increment)
        self.values = torch.where(chosen, self.values - increment, self.values)
        kept = self.ahead.isfinite().any(1)
        if not bool(kept.all()):
            self.ahead, self.values = self.ahead[kept], self.values[kept.to(self.values.device)]
        if bool(good.all()):
            return
        if not bool(self.ahead.isinf().any(0)[~good].all()):  # a sample has no free place
            self.ahead = torch.cat([self.ahead, torch.full_like(h, torch.inf)[None]])
            self.values = torch.cat([self.values, torch.zeros_like(increment)[None]])
        places = torch.arange(len(self.ahead))[:, None] == self.ahead.isinf().int().argmax(0)  # the first free ones
        places &= ~good
        self.ahead = torch.where(places, h, self.ahead)
        places = places.reshape(*places.shape, *(1,) * (increment.ndim - 1)).to(increment.device)
        self.values = torch.where(places, increment, self.values)

    def keep(self, rows: Tensor) -> None:
        """Keep these samples only."""
        self.ahead, self.values = self.ahead[:, rows], self.values[:, rows.to(self.values.device)]


class _Draws:
    """Draws of the whole batch, kept until every sample has used its own: the j-th attempt of a sample uses draw j.

    ``used`` (n,): how many draws each sample has used. ``first``: the number of the oldest draw in ``kept``.
    """

    def __init__(self, n: int) -> None:
        self.used = torch.zeros(n, dtype=torch.int64)
        self.kept: list[Tensor] = []
        self.first = 0

    def next_of(self, noise: Noise, rows: Tensor, keep_for_others: bool) -> Tensor:
        """The next draw of each sample in ``rows``.

        ``keep_for_others``: whether samples outside ``rows`` use older draws later, in another interval.
        """
        wanted = self.used[rows]
        while self.first + len(self.kept) <= int(wanted.max()):
            self.kept.append(noise())
        places = (wanted - self.first).tolist()
        device_rows = rows.to(self.kept[0].device)
        if len(set(places)) == 1:
            whole = self.kept[places[0]]
            z = whole if len(rows) == len(whole) else whole[device_rows]
        else:
            z = torch.stack([self.kept[place][row] for place, row in zip(places, device_rows, strict=True)])
        self.used[rows] += 1
        oldest = int((self.used if keep_for_others else self.used[rows]).min())
        while self.kept and self.first < oldest:
            self.kept.pop(0)
            self.first += 1
        return z


@dataclass(frozen=True, eq=False)
class _AdaptiveSDEState:
    """What the next interval of the grid starts with, per sample: step size, last state, draws and counts."""

    h: Tensor
    previous: Tensor
    draws: _Draws
    statistics: Statistics


@dataclass(frozen=True)
class AdaptiveSDE(Integrator):
    """Stochastic improved Euler in λ with a step size per sample (Jolicoeur-Martineau et al. 2021, algorithm 1).

    ``rtol``, ``atol``: the paper's ε_rel and ε_abs, ``atol`` in the units of x; None is 2/256 · σ_d, σ_d being the
    model's ``sigma_data`` (the paper uses 2/256 for images in [−1, 1]). ``safety`` and
    ``exponent``: θ and r. ``first_step``: the first step tried, as a fraction of the first interval.
    ``max_nfe``: evaluations that every sample may take, over the whole solve. The state carries
    :class:`Statistics`. Every attempt costs two evaluations and one draw. The j-th attempt of a sample uses its j-th
    draw: with an elementwise score a sample is bit for bit the same in every batch.

    The orders are those of the scheme at equal steps; the noise is additive.

    Raises:
        ArgumentError: for settings out of range; for η = 0, where :class:`PerSample` is the better method.
        MaxEvaluationsError: if a sample has used its ``max_nfe`` evaluations.
        NonFiniteError: if the network's drift is not finite; it names the samples.
    """

    rtol: float = 0.01
    atol: float | None = None
    safety: float = 0.9
    exponent: float = 0.9
    first_step: float = 0.01
    max_nfe: int = 10_000

    order: ClassVar[int | None] = None
    strong_order: ClassVar[float | None] = 1.0
    weak_order: ClassVar[float | None] = 2.0
    evals_per_step: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.max_nfe)
        for name in ("safety", "exponent", "first_step"):
            value = getattr(self, name)
            check_positive(name, value, "Pass a number in (0, 1].")
            if value > 1:
                raise ArgumentError(name, value, "must be at most 1", "The paper's are 0.9, 0.9 and 0.01.")

    def check(self, equation: ReverseEquation) -> None:
        """Refuse the probability flow.

        Raises:
            ArgumentError: for η = 0.
        """
        if equation.eta == 0:
            problem = f"{self} integrates equations with noise only"
            raise ArgumentError("eta", equation.eta, problem, "Use PerSample() for the flow, or eta > 0.")

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """λ at the two ends of every interval, and whether it is the last."""
        lambdas, last = equation.sde.half_log_snr(grid), torch.zeros_like(grid[1:])
        last[-1] = 1
        return self.table(equation, grid, begin=lambdas[:-1], end=lambdas[1:], last=last)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        start, end, last_interval = (value.item() for value in row)
        if state is None:
            h = torch.full((len(x),), self.first_step * (end - start), dtype=torch.float64)
            state = _AdaptiveSDEState(h, x, _Draws(len(x)), Statistics.none(len(x)))
        done = state.statistics
        accepted, rejected, used = (c.clone() for c in (done.accepted, done.rejected, done.evaluations))
        field, path = PerSampleField(equation, (start, end), self.max_nfe, used), KnownPath(x)
        at = torch.full((len(x),), start, dtype=torch.float64)
        h, previous, draws = state.h, state.previous, state.draws
        ends = _AdaptiveSDEState(h.clone(), torch.empty_like(x), draws, Statistics(accepted, rejected, used))
        arrived = torch.empty_like(x)
        atol = GREY_LEVEL * equation.model.sigma_data if self.atol is None else self.atol
        while len(field.active):
            left = end - at
            last = h >= left
            tried = torch.where(last, left, h)
            target = torch.where(last, end, at + tried)
            here, there = field.stages(torch.stack([at, target]), x)
            dw = path.increment(tried, draws.next_of(noise, field.active, last_interval == 0))
            length = expand_to(tried.to(x.device, x.dtype), x)
            first = field(x, here)
            euler = torch.addcmul(torch.addcmul(x, length, first), expand_to(here.diffusion, x), dw)
            second = field(euler, there)
            other = torch.addcmul(torch.addcmul(x, length, second), expand_to(there.diffusion, x), dw)
            new = 0.5 * (euler + other)
            delta = (self.rtol * torch.maximum(euler.abs(), previous.abs())).clamp(min=atol)
            found = root_mean_square((euler - new) / delta).cpu().double()  # the one wait for the device
            if not bool(found.isfinite().all()):
                field.blame([first, second], [here, there])
                found = found.nan_to_num(nan=torch.inf)
            good = found <= 1
            accepted[field.active] += good
            rejected[field.active] += ~good
            path.move(tried, dw, good)
            change = self.safety * torch.exp(-self.exponent * torch.log(found.clamp(1e-10, 1e10)))
            proposed = tried * change
            h = torch.where(last & good, torch.maximum(proposed, h), proposed)  # the interval's end cut it short
            at = torch.where(good, target, at)
            chosen = expand_to(good.to(x.device), x)
            x, previous = torch.where(chosen, new, x), torch.where(chosen, euler, previous)
            over = good & last
            if bool(over.any()):
                rows, out = field.active[over], over.to(x.device)
                arrived[rows.to(x.device)], ends.previous[rows.to(x.device)] = x[out], previous[out]
                ends.h[rows] = h[over]
                stay = (~over).nonzero().flatten()
                field.keep(stay)
                path.keep(stay)
                h, at = h[stay], at[stay]
                x, previous = x[stay.to(x.device)], previous[stay.to(x.device)]
        return arrived, ends
