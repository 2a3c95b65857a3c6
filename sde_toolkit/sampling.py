"""The only loop: a solver steps a batch down a grid, and the result carries its evidence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checking import is_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import Integrator, Row
from sde_toolkit.noise import Noise, per_sample_noise, shared_noise
from sde_toolkit.progress import progress_bar
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.solvers import Solver
from sde_toolkit.watching import FiniteWatch, Meter

__all__ = ["Sample", "Step", "sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Samples and how they came about.

    ``x``: (n, *event) in model space; ``model.transform.inverse(x)`` is the caller's data space. ``nfe``:
    network evaluations that each sample went through, counted. ``seconds`` and ``network_seconds``: wall
    time of the whole call and of the network in it. ``trajectory``: (len(grid), n, *event) if it was kept;
    the Tweedie step, if any, is not part of it. ``seed`` is None when a generator was given.
    """

    x: Tensor
    nfe: int
    grid: Tensor
    solver: Solver
    seed: int | None
    tweedie: bool
    seconds: float
    network_seconds: float
    trajectory: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """What a callback is told after step ``index`` from ``t`` to ``s``; ``first`` is the batch's first sample."""

    index: int
    t: float
    s: float
    x: Tensor
    first: int = 0


@torch.no_grad()
def sample(
    model: ScoreModel,
    solver: Solver,
    grid: Tensor,
    *,
    shape: tuple[int, ...] | None = None,
    x_start: Tensor | None = None,
    condition: Any = None,
    seed: int = 0,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    tweedie: bool = False,
    trajectory: bool = False,
    callback: Callable[[Step], None] | None = None,
    check_finite: bool = True,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Sample:
    """Solve the reverse equation of ``model`` from ``grid[0]`` down to ``grid[-1]``.

    Args:
        model: any score model. It is evaluated as it is: call ``model.eval()`` yourself.
        solver: an equation × integrator pair, such as ``ddim()``.
        grid: decreasing times, from :mod:`sde_toolkit.grids`.
        shape: (n, *event) of samples to draw; they start from N(0, σ² I) at ``grid[0]``.
        x_start: where to start instead, (n, *event), in model space.
        condition: handed to the network; tensors in it (one, or a dict of them) have one row per sample.
        seed, first_index: sample i has its own noise stream (seed, first_index + i), whatever the batch. Its
            first draw is the start, also where x_start replaces it.
        generator: draws all noise instead, faster, and dependent on the batch.
        batch_size: samples that go through the network together; all by default.
        tweedie: after the last step replace x by the denoised estimate x̂_0 there, one more evaluation.
        trajectory: keep the state at every grid time.
        callback: called once after each step.
        check_finite: watch for NaN and infinity, without a host synchronisation per step.
        progress: show a bar.
        dtype, device: of the state. The device is the model's own by default.

    Raises:
        ArgumentError, GridError: before any evaluation, for whatever does not fit together.
        NonFiniteError: naming the first step and time at which the state was no longer finite.
        MaxEvaluationsError: from an adaptive integrator that reached its ``max_nfe``.
    """
    began = time.perf_counter()
    _check_parts(model, solver)
    grid = check_grid(grid)
    shape = _check_start(model, shape, x_start, grid, batch_size, dtype)
    _check_condition(condition, shape[0])
    device = torch.device(device) if device is not None else _device_of(model, x_start)
    equation = ReverseEquation(model, solver.eta)
    solver.integrator.check(equation)
    rows = _rows(solver.integrator.prepare(equation, grid).to(device, dtype))
    batches = list(_batches(shape[0], batch_size))
    meter = Meter(model, device)
    bar = progress_bar(len(rows) * len(batches), solver.name, enabled=progress)

    def told(step: Step) -> None:
        bar.update(1)
        if callback is not None:
            callback(step)

    finished: list[Tensor] = []
    paths: list[Tensor] = []
    for first, last in batches:
        meter.restart()
        noise = _noise(generator, seed, first_index + first, (last - first, *shape[1:]), dtype, device)
        x = _start(model, grid, None if x_start is None else x_start[first:last], noise, dtype, device)
        part = replace(equation, condition=_rows_of(condition, first, last), evaluate=meter.evaluate)
        watch = FiniteWatch(grid, check_finite)
        tell = told if progress or callback is not None else None
        x, path = _descend(part, solver.integrator, grid, rows, x, noise, watch, tell, first, trajectory)
        if tweedie:
            x = _denoise(part, x, grid[-1])
            watch(len(rows), x)
        watch.read()
        finished.append(x)
        paths += path
    bar.close()
    network_seconds = meter.seconds()  # waits for the device
    return Sample(
        x=torch.cat(finished),
        nfe=meter.nfe,
        grid=grid,
        solver=solver,
        seed=seed if generator is None else None,
        tweedie=tweedie,
        seconds=time.perf_counter() - began,
        network_seconds=network_seconds,
        trajectory=torch.cat(paths, dim=1) if paths else None,
    )


def _descend(
    equation: ReverseEquation,
    integrator: Integrator,
    grid: Tensor,
    rows: list[Row],
    x: Tensor,
    noise: Noise,
    watch: FiniteWatch,
    tell: Callable[[Step], None] | None,
    first: int,
    trajectory: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Step one batch down the grid: its end, and its whole path in a list of one if that is wanted."""
    state, path = None, [x]
    times = grid.tolist()
    for i, row in enumerate(rows):
        x, state = integrator.step(equation, x, row, state, noise)
        watch(i, x)
        if trajectory:
            path.append(x)
        if tell is not None:
            tell(Step(i, times[i], times[i + 1], x, first))
    return x, [torch.stack(path)] if trajectory else []


def _rows(table: Tensor) -> list[Row]:
    """The table as tuples of 0-dim tensors, unbound all at once: cheaper than row by row."""
    cells, k = table.flatten().unbind(), table.shape[1]
    return [cells[i : i + k] for i in range(0, len(cells), k)]


def _denoise(equation: ReverseEquation, x: Tensor, t: Tensor) -> Tensor:
    """Tweedie's formula: x̂_0 at (x, t)."""
    m, n = (c.to(x.device, x.dtype) for c in equation.view("x0", t))
    inputs = tuple(c.to(x.device, x.dtype) for c in equation.inputs(t))
    return m * x + n * equation.output(x, inputs)


def _check_parts(model: Any, solver: Any) -> None:
    if not isinstance(model, ScoreModel):
        raise ArgumentError("model", model, "not a ScoreModel", "Wrap the network: ScoreModel(network, sde, ...).")
    if not isinstance(solver, Solver):
        raise ArgumentError("solver", solver, "not a Solver", "Call the preset, ddim(), or build Solver(...).")


def _check_condition(condition: Any, n: int) -> None:
    parts = condition.items() if isinstance(condition, dict) else [("condition", condition)]
    for name, part in parts:
        if isinstance(part, Tensor) and part.ndim > 0 and len(part) != n:
            problem = f"it has {len(part)} rows for {n} samples"
            raise ArgumentError(
                str(name), tuple(part.shape), problem, "Give one row per sample; expand what is shared."
            )


def _check_start(
    model: ScoreModel,
    shape: tuple[int, ...] | None,
    x_start: Tensor | None,
    grid: Tensor,
    batch_size: int | None,
    dtype: torch.dtype,
) -> tuple[int, ...]:
    """The shape of all samples, after everything about the start has been found in order."""
    if (shape is None) == (x_start is None):
        given = {"shape": shape, "x_start": None if x_start is None else tuple(x_start.shape)}
        raise ArgumentError("shape, x_start", given, "exactly one of them is needed", "Pass shape=(n, *event).")
    if x_start is not None and not isinstance(x_start, Tensor):
        raise ArgumentError("x_start", x_start, "not a tensor", "Pass a tensor (n, *event), in model space.")
    if x_start is None and not isinstance(shape, (tuple, list)):
        raise ArgumentError("shape", shape, "not a shape", "Pass (n, *event).")
    shape = tuple(shape) if x_start is None else tuple(x_start.shape)  # type: ignore[arg-type]
    if not shape or not all(map(is_count, shape)):
        raise ArgumentError("shape", shape, "no samples", "Pass (n, *event) with n >= 1.")
    if model.event_shape is not None and shape[1:] != model.event_shape:
        problem = f"the model was made for events of shape {model.event_shape}"
        raise ArgumentError("shape", shape, problem, f"Pass {(shape[0], *model.event_shape)}.")
    if x_start is not None and not bool(x_start.isfinite().all()):
        raise ArgumentError("x_start", tuple(x_start.shape), "it holds NaN or infinity", "Clean it first.")
    if batch_size is not None and not is_count(batch_size):
        raise ArgumentError("batch_size", batch_size, "must be a whole number, at least 1", "Use None for all at once.")
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(
            "dtype",
            dtype,
            "the state is float32 or float64",
            "For a fast network use torch.autocast around sample().",
        )
    if not math.isfinite(model.sde.sigma(grid[0]).item()):
        raise ArgumentError("grid", grid[0].item(), "σ is not finite at the first time", "Start later.")
    return shape


def _device_of(model: ScoreModel, x_start: Tensor | None) -> torch.device:
    if x_start is not None:
        return x_start.device
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _batches(n: int, batch_size: int | None) -> Iterator[tuple[int, int]]:
    size = n if batch_size is None else batch_size
    for first in range(0, n, size):
        yield first, min(n, first + size)


def _noise(
    generator: torch.Generator | None,
    seed: int,
    first_index: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Noise:
    if generator is not None:
        return shared_noise(generator, shape, dtype=dtype, device=device)
    return per_sample_noise(seed, first_index, shape, dtype=dtype, device=device)


def _start(
    model: ScoreModel,
    grid: Tensor,
    x_start: Tensor | None,
    noise: Noise,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    z = noise()  # drawn in any case: the noise of the steps must not repeat that of a start from the same seed
    if x_start is not None:
        return x_start.to(device, dtype)
    return model.sde.sigma(grid[0]).to(device, dtype) * z


def _rows_of(condition: Any, first: int, last: int) -> Any:
    """The rows of a condition that belong to a batch; whatever is no tensor of rows goes whole."""
    if isinstance(condition, dict):
        return {key: _rows_of(value, first, last) for key, value in condition.items()}
    if isinstance(condition, Tensor) and condition.ndim > 0:
        return condition[first:last]
    return condition
