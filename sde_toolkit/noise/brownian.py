"""Noise from a Brownian path: a finer grid refines the same path, and does not draw another.

W is a standard Brownian motion in a clock v(t), one for each sample and element. The step from t to s gets

    z = (W(s) − W(t)) / √|v(s) − v(t)|        Var(W(s) − W(t)) = |v(s) − v(t)|

For Euler-Maruyama the clock is t. The exponential integrator's noise composes exactly in v = exp(2η²λ): with that
clock and x̂_0 constant in time, every grid ends in the same sample.

The path is a virtual Brownian tree. W = 0 at t = 1; from there to t = 1/2, 1/4, 1/8, ... by independent increments;
inside [2⁻ᵏ⁻¹, 2⁻ᵏ] by halving t ``levels`` times, each midpoint by a Brownian bridge (Lévy's construction) in the
clock. Inside the last cells, of width 2⁻ˡᵉᵛᵉˡˢ relative to t, all points share one normal: every increment has the
exact law if no two times of a grid lie in one cell. The number of the draw (:mod:`.keyed_draws`) names the node, so
batch, split, grid and order of calls have no influence. The tree is on the device of the samples, in float64. In
memory are only the nodes from the root to the cell of the last time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive, is_count
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Noise, Purpose, check_noise_dtype, check_stream
from sde_toolkit.sde import SDE, check_sde

__all__ = ["BrownianPath", "Clock", "ExponentialClock", "time_clock"]

Clock = Callable[[SDE, Tensor], Tensor]
"""(sde, times) to the clock there: float64, strictly monotone in t, finite for 0 < t <= 1."""

_OCTAVES = 40  # below 2⁻⁴⁰, one increment leads to t = 0


def time_clock(sde: SDE, t: Tensor) -> Tensor:
    """v = t: W is the w̄ of the reverse SDE itself, for integrators in t such as ``Euler()``."""
    return t


@dataclass(frozen=True)
class ExponentialClock:
    """v = exp(2η²λ), in which the noise of ``Exponential()`` at stochasticity ``eta`` composes exactly.

    Raises:
        ArgumentError: unless ``eta`` is positive.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_positive("eta", self.eta, "Pass the solver's eta.")

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.exp(2 * self.eta**2 * sde.half_log_snr(t))


@dataclass(frozen=True)
class BrownianPath:
    """One Brownian path per (seed, sample index), in the clock v: pass it to ``sample(path=...)``.

    ``clock``: (sde, t) to v. ``levels``: halvings of every octave of t, so that a grid whose neighbouring times
    differ by more than 2⁻ˡᵉᵛᵉˡˢ of their size gets increments that are exact in law. One more level costs up to one
    more draw per step.

    Raises:
        ArgumentError: if ``clock`` is not a function, or ``levels`` is outside 1..40.
    """

    clock: Clock = time_clock
    levels: int = 16

    def __post_init__(self) -> None:
        if not callable(self.clock):
            raise ArgumentError("clock", self.clock, "not a function (sde, t) -> Tensor", "Pass ExponentialClock().")
        if not (is_count(self.levels) and self.levels <= 40):
            raise ArgumentError("levels", self.levels, "a tree has between 1 and 40 levels", "16 is usual.")

    def values(self, sde: SDE, times: Tensor, shape: tuple[int, ...], *, seed: int = 0, first_index: int = 0) -> Tensor:
        """W at the times (n,) for the samples ``first_index, ..., first_index + B − 1``, float64.

        Shapes: ``shape`` is (B, *event), the result (n, B, *event).

        Raises:
            ArgumentError: a negative seed or index; a clock that is not finite and strictly monotone.
            GridError: times outside [0, 1], or between 0 and 2⁻⁴⁰.
        """
        tree = _Tree(self, sde, times, shape, seed, first_index)
        if not all(math.isfinite(tree.clock[t]) for t in tree.times):
            raise ArgumentError("times", 0.0, "the clock is infinite at t=0, and so is W", "Stop short of t=0.")
        return torch.stack([tree.value(t) for t in tree.times])

    def step_noise(
        self,
        sde: SDE,
        grid: Tensor,
        shape: tuple[int, ...],
        *,
        seed: int = 0,
        first_index: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Callable[[int], Noise]:
        """The noise of every step of the grid, one draw (B, *event) each; ``shape`` is (B, *event).

        A step to a time at which the clock is infinite (with :class:`ExponentialClock`, t=0 if σ(0) = 0) gets a normal
        of its own. A second draw in a step is refused: a path has one increment per step.

        Raises:
            ArgumentError, GridError: as :meth:`values`.
        """
        check_noise_dtype(dtype)
        tree = _Tree(self, sde, grid, shape, seed, first_index, device)

        def noise_of(step: int) -> Noise:
            draws = iter([tree.times[step : step + 2]])

            def draw() -> Tensor:
                ends = next(draws, None)
                if ends is None:
                    problem = "the integrator draws more than once per step, and a path has one increment per step"
                    raise ArgumentError("path", self, problem, "Leave path out, or take an integrator of one draw.")
                return tree.normal(*ends).to(device, dtype)

            return draw

        return noise_of


class _Tree:
    """The trees of B samples.

    A node is (octave, place). Octave k spans [2⁻ᵏ⁻¹, 2⁻ᵏ), the last one [0, 2⁻⁴⁰). Place 0 is its lower end, 1 its
    middle, 2i and 2i + 1 are the middles of the two halves of the interval of i (at the last level: its two cells).
    """

    def __init__(
        self,
        path: BrownianPath,
        sde: SDE,
        times: Tensor,
        shape: tuple[int, ...],
        seed: int,
        first_index: int,
        device: torch.device | str = "cpu",
    ) -> None:
        check_sde(sde)
        check_stream(seed, first_index)
        self.levels, self.shape, self.times = path.levels, tuple(shape), _checked_times(times)
        self.clock = _clock_table(path.clock, sde, {u for t in self.times for u in self._asked(t)})
        self.first_index, self.draws = first_index, KeyedDraws(seed, Purpose.PATH, device)
        at_1 = torch.zeros(self.shape, dtype=torch.float64, device=self.draws.device)
        self.ends = [at_1]  # W at 1, 1/2, 1/4, ... as far as asked for
        self.line: dict[tuple[int, int], Tensor] = {}  # W at the midpoints above the cell asked for last
        self.latest: tuple[float, Tensor] | None = None

    def normal(self, t: float, s: float) -> Tensor:
        """(W(s) − W(t)) / √|v(s) − v(t)|."""
        if math.isinf(self.clock[s]):
            return self._draw(_OCTAVES, 0)
        begin, end = self.value(t), self.value(s)
        return (end - begin) / math.sqrt(abs(self.clock[s] - self.clock[t]))

    def value(self, t: float) -> Tensor:
        """W(t), (B, *event)."""
        if self.latest is None or self.latest[0] != t:
            self.latest = (t, self._value(t))
        return self.latest[1]

    def _value(self, t: float) -> Tensor:
        k = _octave(t)
        if k < 0:
            return self.ends[0]
        while len(self.ends) < k + 2:
            j = len(self.ends) - 1
            upper, lower = 2.0**-j, _lower_end(j)
            std = math.sqrt(abs(self.clock[lower] - self.clock[upper]))
            self.ends.append(self.ends[j] + std * self._draw(j, 0))
        low, high, w_low, w_high, place = _lower_end(k), 2.0**-k, self.ends[k + 1], self.ends[k], 1
        line: dict[tuple[int, int], Tensor] = {}
        for level in range(self.levels + 1):
            if t == low:
                break
            middle = t if level == self.levels else (low + high) / 2
            w = self.line.get((k, place)) if level < self.levels else None
            if w is None:
                w = self._bridge(low, middle, high, w_low, w_high, self._draw(k, place))
            if level == self.levels:
                w_low = w
                break
            line[k, place] = w
            if t >= middle:
                low, w_low, place = middle, w, 2 * place + 1
            else:
                high, w_high, place = middle, w, 2 * place
        self.line = line
        return w_low

    def _bridge(self, low: float, middle: float, high: float, w_low: Tensor, w_high: Tensor, z: Tensor) -> Tensor:
        a, m, b = (self.clock[u] for u in (low, middle, high))
        weight = (m - a) / (b - a)
        return w_low + weight * (w_high - w_low) + math.sqrt(abs((m - a) * (1 - weight))) * z

    def _draw(self, octave: int, place: int) -> Tensor:
        """The standard normals of one node, float64."""
        return self.draws.normal((octave << 48) + place, self.first_index, self.shape).to(torch.float64)

    def _asked(self, t: float) -> list[float]:
        """The times at which the clock must be known to find W(t)."""
        k = _octave(t)
        times = [1.0, *(_lower_end(j) for j in range(k + 1)), t]
        low, high = (_lower_end(k), 2.0**-k) if k >= 0 else (1.0, 1.0)
        for _ in range(self.levels if low < t < high else 0):
            middle = (low + high) / 2
            times.append(middle)
            low, high = (middle, high) if t >= middle else (low, middle)
        return times


def _octave(t: float) -> int:
    """k with 2⁻ᵏ⁻¹ <= t < 2⁻ᵏ; −1 for t = 1."""
    return -math.frexp(t)[1] if t > 0 else _OCTAVES


def _lower_end(octave: int) -> float:
    return 2.0 ** -(octave + 1) if octave < _OCTAVES else 0.0


def _checked_times(times: Tensor) -> list[float]:
    listed: list[float] = torch.as_tensor(times, dtype=torch.float64).flatten().tolist()
    for t in listed:
        if not (t == 0 or 2.0**-_OCTAVES <= t <= 1):
            raise GridError("times", t, f"a path is defined at 0 and from 2^-{_OCTAVES} to 1", "Choose other times.")
    return listed


def _clock_table(clock: Clock, sde: SDE, times: set[float]) -> dict[float, float]:
    ordered = sorted(times)
    table = clock(sde, torch.tensor(ordered, dtype=torch.float64)).tolist()
    inner = table[1:] if ordered[0] == 0 else table  # at the data a clock may be infinite
    steps = [b - a for a, b in pairwise(table)]
    monotone = all(step > 0 for step in steps) or all(step < 0 for step in steps)
    if not (monotone and all(map(math.isfinite, inner))):
        problem = f"it is not finite and strictly monotone between t={ordered[0]:.4g} and t={ordered[-1]:.4g}"
        raise ArgumentError("clock", clock, problem, "Pass a clock like time_clock or ExponentialClock().")
    return dict(zip(ordered, table, strict=True))
