"""The only loop: a solver steps a batch along times, down to the data or up to the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.broadcasting import map_rows
from sde_toolkit.compilation import CompiledSteps
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators import Integrator, Row, Statistics
from sde_toolkit.noise import Noise
from sde_toolkit.progress import progress_bar
from sde_toolkit.solvers import Solver
from sde_toolkit.watching import FiniteWatch, Meter

__all__ = ["Solved", "Start", "Step", "rows_of", "solve"]

_ROWS_AT_ONCE = 64  # of a table that are taken apart together: cheaper than one by one, and no longer than a long grid

Start = Callable[[int, int], tuple[Tensor, Callable[[int], Noise]]]
"""(first, last) of a batch to its x at the first time, and the noise of each step."""


@dataclass(frozen=True, eq=False)
class Step:
    """What a callback is told after step ``index`` from ``t`` to ``s``; ``first`` is the batch's first sample."""

    index: int
    t: float
    s: float
    x: Tensor
    first: int = 0


@dataclass(frozen=True, eq=False)
class Solved:
    """Where all batches ended, and what was counted and measured on the way."""

    x: Tensor
    nfe: int
    network_seconds: float
    trajectory: Tensor | None
    statistics: Statistics | None


def solve(
    equation: ReverseEquation,
    solver: Solver,
    times: Tensor,
    n: int,
    start: Start,
    *,
    batch_size: int | None,
    tweedie: bool,
    trajectory: bool,
    callback: Callable[[Step], None] | None,
    check_finite: bool,
    progress: bool,
    compile: bool | str,
    dtype: torch.dtype,
    device: torch.device,
) -> Solved:
    """Step ``n`` samples, batch by batch, along ``times``, strictly decreasing or strictly increasing float64.

    Everything but the batches' starts is refused here, by ``prepare``, before any evaluation.
    """
    integrator = solver.integrator
    integrator.check(equation)
    table = integrator.prepare(equation, times).to(device, dtype)
    batches = list(_batches(n, batch_size))
    meter = Meter(equation.model, device)
    take = _eager(solver) if compile is False else CompiledSteps(integrator, meter, _backend(compile))
    repeatable = equation.eta == 0 and compile is False
    bar = progress_bar(len(table) * len(batches), solver.name, enabled=progress)

    def told(step: Step) -> None:
        bar.update(1)
        if callback is not None:
            callback(step)

    finished: list[Tensor] = []
    paths: list[Tensor] = []
    statistics: list[Statistics] = []
    listed = times.tolist()
    for first, last in batches:
        meter.restart()
        x, noise_of = start(first, last)
        bare = replace(equation, condition=rows_of(equation.condition, first, last))
        counted = replace(bare, evaluate=meter.evaluate)
        again = partial(_again, integrator, bare, table, noise_of) if repeatable else None
        watch = FiniteWatch(times, check_finite, x, again)
        state: Any = None
        path = [x]
        for i, row in enumerate(_rows(table) if compile is False else table):
            x, state = take(bare, counted, x, row, state, noise_of(i))
            watch(i, x, state)
            if trajectory:
                path.append(x)
            if progress or callback is not None:
                told(Step(i, listed[i], listed[i + 1], x, first))
        paths += [torch.stack(path)] if trajectory else []
        if tweedie:
            x = _denoise(counted, x, times[-1])
            watch(len(table), x, state)
        watch.read()
        finished.append(x)
        statistics += [state.statistics] if hasattr(state, "statistics") else []
    bar.close()
    network_seconds = meter.seconds() if compile is False else math.nan  # waits for the device
    return Solved(
        torch.cat(finished),
        meter.nfe,
        network_seconds,
        torch.cat(paths, dim=1) if paths else None,
        Statistics.of_all(statistics) if statistics else None,
    )


def _eager(solver: Solver) -> Callable[..., tuple[Tensor, Any]]:
    step = solver.integrator.step
    return lambda bare, counted, x, row, state, noise: step(counted, x, row, state, noise)


def _again(
    integrator: Integrator,
    equation: ReverseEquation,
    table: Tensor,
    noise_of: Callable[[int], Noise],
    i: int,
    x: Tensor,
    state: Any,
) -> tuple[Tensor, Any]:
    """Step i once more, uncounted."""
    return integrator.step(equation, x, table[i].unbind(), state, noise_of(i))


def _backend(compile: bool | str) -> str:
    return compile if isinstance(compile, str) else "inductor"


def _rows(table: Tensor) -> Iterator[Row]:
    """The table as tuples of 0-dim tensors."""
    k = table.shape[1]
    for part in table.split(_ROWS_AT_ONCE):
        cells = part.flatten().unbind()
        yield from (cells[i : i + k] for i in range(0, len(cells), k))


def _denoise(equation: ReverseEquation, x: Tensor, t: Tensor) -> Tensor:
    """Tweedie's formula: x̂_0 at (x, t)."""
    m, n = (c.to(x.device, x.dtype) for c in equation.view("x0", t))
    inputs = tuple(c.to(x.device, x.dtype) for c in equation.inputs(t))
    return m * x + n * equation.output(x, inputs)


def _batches(n: int, batch_size: int | None) -> Iterator[tuple[int, int]]:
    size = n if batch_size is None else batch_size
    for first in range(0, n, size):
        yield first, min(n, first + size)


def rows_of(condition: Any, first: int, last: int) -> Any:
    """The rows of a condition that belong to a batch."""
    return map_rows(condition, lambda rows: rows[first:last])
