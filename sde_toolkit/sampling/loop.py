"""The only loop over the steps of a grid: down to the data, or up to the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Integrator, Statistics, Table
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.noise.streams import Noise
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.captured import CapturedSteps, copied
from sde_toolkit.sampling.compiled import CompiledSteps, Place
from sde_toolkit.sampling.cuda_graphs import CUDA_GRAPH
from sde_toolkit.sampling.monitors import FiniteWatch, Meter
from sde_toolkit.solvers import Solver

__all__ = ["Callback", "Options", "Solved", "Start", "Step", "no_noise", "rows_of", "solve"]

Start = Callable[[int, int], tuple[Tensor, Callable[[int], Noise]]]
"""From the samples first to last of a batch: its x at the first time, and a function from a step to its noise."""


@dataclass(frozen=True, eq=False)
class Step:
    """What a callback is told after step ``index`` from ``t`` to ``s``; ``first`` is the batch's first sample."""

    index: int
    t: float
    s: float
    x: Tensor
    first: int = 0


Callback: TypeAlias = Callable[[Step], Tensor | None]
"""Called after each step. A tensor that it returns replaces the state, and the solver starts anew from it."""


@dataclass(frozen=True, eq=False)
class Solved:
    """The end states of all batches, and what was counted and measured.

    ``nfe``: network evaluations per sample. ``products``: with its Jacobian, per sample. Where samples differ it is the
    largest number.
    """

    x: Tensor
    nfe: int
    products: int
    network_seconds: float
    trajectory: Tensor | None
    statistics: Statistics | None


@dataclass(frozen=True, eq=False)
class Options:
    """How a solve is run, for any solver. :func:`sde_toolkit.sample` explains each option."""

    dtype: torch.dtype
    device: torch.device
    batch_size: int | None = None
    tweedie: bool = False
    trajectory: bool = False
    callback: Callback | None = None
    check_finite: bool = True
    progress: bool = False
    compile: bool | str = False


def solve(
    equation: ReverseEquation,
    solver: Solver,
    times: Tensor,
    n: int,
    start: Start,
    options: Options,
    table: Table | None = None,
    keep_state: Callable[[Any], None] | None = None,
) -> Solved:
    """Step ``n`` samples, batch by batch, along ``times``, strictly decreasing or strictly increasing float64.

    ``prepare`` refuses what it cannot run before any evaluation. ``table`` replaces what ``prepare`` would compute:
    calibration differentiates through it. Whether torch records a graph is up to the caller. An equation's own
    ``evaluate`` is used, and the network's evaluations in it are counted. ``keep_state`` is called with the state that
    the integrator kept after the last step of each batch.
    """
    run = _Run(equation, solver, times, start, options, table)
    batches = list(_batches(n, options.batch_size))
    bar = progress_bar(len(run.table) * len(batches), solver.name, enabled=options.progress)
    done = []
    for first, last in batches:
        done.append(run.batch(first, last, bar))
        if keep_state is not None:
            keep_state(done[-1].state)
    bar.close()
    statistics = [batch.statistics for batch in done if batch.statistics is not None]
    return Solved(
        torch.cat([batch.x for batch in done]),
        run.meter.nfe,
        run.meter.most_products,
        run.meter.seconds() if options.compile is False else math.nan,  # waits for the device
        torch.cat([batch.path for batch in done if batch.path is not None], dim=1) if options.trajectory else None,
        Statistics.of_all(statistics) if statistics else None,
    )


class _Batch(NamedTuple):
    """The end of a batch: x; all x, if they were kept; what an adaptive integrator did; what the integrator kept."""

    x: Tensor
    path: Tensor | None
    statistics: Statistics | None
    state: Any


class _Run:
    """What all batches share: the table, the meter, and how a step is taken."""

    def __init__(
        self,
        equation: ReverseEquation,
        solver: Solver,
        times: Tensor,
        start: Start,
        options: Options,
        table: Table | None,
    ) -> None:
        self.equation, self.integrator, self.times = equation, solver.integrator, times
        self.start, self.options = start, options
        self.integrator.check(equation)
        self.table = self._prepared(times) if table is None else table.to(options.device, options.dtype)
        self.meter = Meter(equation.model, options.device, equation.evaluate)
        self.eager, how = options.compile is False, options.compile
        self.captured = how == CUDA_GRAPH
        layout, kept = self.table.layout, options.trajectory or options.callback is not None
        self.step: Callable[..., tuple[Tensor, Any]]
        if self.captured:
            self.step = CapturedSteps(self.integrator, layout, self.meter, len(self.table), kept=kept)
        else:
            self.step = (
                _eager(solver) if self.eager else CompiledSteps(self.integrator, layout, self.meter, _backend(how))
            )
        self.repeatable = equation.eta == 0 and (self.eager or self.captured) and options.callback is None

    def _rows(self, table: Table) -> Iterator[Any]:
        """By name, or by their places as a compiled step takes them."""
        return iter(table) if self.eager else (Place(table.values, i) for i in range(len(table)))

    def _prepared(self, times: Tensor) -> Table:
        return self.integrator.prepare(self.equation, times).to(self.options.device, self.options.dtype)

    def batch(self, first: int, last: int, bar: Any) -> _Batch:
        """Step the samples from ``first`` to ``last`` along all times."""
        options, times, table, meter = self.options, self.times, self.table, self.meter
        meter.restart()
        x, noise_of = self.start(first, last)
        bare = replace(self.equation, condition=rows_of(self.equation.condition, first, last))
        counted = replace(bare, evaluate=meter.evaluate)
        step_again = partial(_step_again, self.integrator, bare, table, noise_of) if self.repeatable else None
        own = copied if self.captured else None  # a recorded step writes over what it returned before
        watch = FiniteWatch(times, options.check_finite, x, step_again, own)
        listed, state = times.tolist(), None
        path, done = [x], []
        rows = self._rows(table)
        for i in range(len(table)):
            x, state = self.step(bare, counted, x, next(rows), state, noise_of(i))
            bar.update(1)
            if options.callback is not None:
                edited = _edited(options.callback, Step(i, listed[i], listed[i + 1], x, first))
                x = x if edited is None else edited
                if edited is not None and state is not None and i + 1 < len(table):
                    done += _statistics(state)
                    state = None  # what the solver remembers led to another state: it starts anew from this one
                    rows = self._rows(self._prepared(times[i + 1 :]))
            watch(i, x, state)
            if options.trajectory:
                path.append(x)
        before = meter.calls
        if options.tweedie:
            x = counted.denoise(x, times[-1])
            watch(len(table), x, state)
        watch.read()
        if self.captured:
            x, state = copied((x, state))
        done += _statistics(state)
        statistics = Statistics.in_turn(done) if done else None
        if statistics is not None:  # samples differ: the largest number is reported
            meter.calls = int(statistics.evaluations.max()) + meter.calls - before
        return _Batch(x, torch.stack(path) if options.trajectory else None, statistics, state)


def _statistics(state: Any) -> list[Statistics]:
    return [state.statistics] if hasattr(state, "statistics") else []


def _edited(callback: Callback, step: Step) -> Tensor | None:
    """The state that a callback returned in place of the solver's; None if it returned none.

    Raises:
        ArgumentError: if it is not such a state, or if the callback changed the state in place.
    """
    version = None if step.x.is_inference() else step.x._version
    x = callback(step)
    if version is not None and step.x._version != version:
        problem = "it changed step.x in place, and the solver still uses that tensor"
        raise ArgumentError("callback", callback, problem, "Return the new state instead: return 0.9 * step.x.")
    if x is None or x is step.x:
        return None
    if not isinstance(x, Tensor):
        problem = f"it returned a {type(x).__name__}"
        raise ArgumentError("callback", callback, problem, "Return None, or the tensor that replaces the state.")
    found, wanted = ((tuple(v.shape), v.dtype, v.device) for v in (x, step.x))
    if found != wanted:
        problem = "it returned a tensor of shape {}, {} on {}; the state is of shape {}, {} on {}"
        remedy = "Return the state in its own shape, dtype and device."
        raise ArgumentError("callback", callback, problem.format(*found, *wanted), remedy)
    return x


def _eager(solver: Solver) -> Callable[..., tuple[Tensor, Any]]:
    step = solver.integrator.step
    return lambda bare, counted, x, row, state, noise: step(counted, x, row, state, noise)


def _step_again(
    integrator: Integrator,
    equation: ReverseEquation,
    table: Table,
    noise_of: Callable[[int], Noise],
    i: int,
    x: Tensor,
    state: Any,
) -> tuple[Tensor, Any]:
    """Step i once more, uncounted."""
    return integrator.step(equation, x, table[i], state, noise_of(i))


def _backend(compile: bool | str) -> str:
    return compile if isinstance(compile, str) else "inductor"


def _batches(n: int, batch_size: int | None) -> Iterator[tuple[int, int]]:
    size = n if batch_size is None else batch_size
    for first in range(0, n, size):
        yield first, min(n, first + size)


def rows_of(condition: Any, first: int, last: int) -> Any:
    """The rows of a condition that belong to a batch."""
    return map_rows(condition, lambda rows: rows[first:last])


def no_noise() -> Tensor:
    """What a deterministic run hands to its integrator in place of noise.

    Raises:
        ArgumentError: always; the integrator asked for a draw.
    """
    problem = "it draws noise although eta is 0, so its steps cannot be undone"
    raise ArgumentError("solver", "its integrator", problem, "Use a deterministic integrator.")
