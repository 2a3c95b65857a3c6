"""The only loop: a solver steps a batch down a grid, and the result carries its evidence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, NonFiniteError
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import Row
from sde_toolkit.noise import Noise, per_sample_noise, shared_noise
from sde_toolkit.progress import progress_bar
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["Sample", "Step", "sample"]

_STEPS_BETWEEN_READS = 16  # of the non-finite flags, which live on the device


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
        condition: handed to the network; a tensor, or a dict of tensors, with one row per sample.
        seed, first_index: sample i has its own noise stream (seed, first_index + i), whatever the batch.
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
    grid = check_grid(grid)
    device = torch.device(device) if device is not None else _device_of(model, x_start)
    shape = _check_start(model, shape, x_start, grid, batch_size, dtype)
    meter = _Meter(model, device)
    solver.integrator.check(ReverseEquation(model, solver.eta))
    table = solver.integrator.prepare(ReverseEquation(model, solver.eta), grid)
    rows = _rows(table.to(device, dtype))
    batches = list(_batches(shape[0], batch_size))
    bar = progress_bar(len(rows) * len(batches), solver.name, enabled=progress)
    finished, paths = [], []
    for first, last in batches:
        part = (last - first, *shape[1:])
        noise = _noise(generator, seed, first_index + first, part, dtype, device)
        x = _start(model, grid, x_start, first, last, noise, dtype, device)
        equation = ReverseEquation(model, solver.eta, _rows_of(condition, first, last, shape[0]), meter.evaluate)
        meter.restart()
        path = [x] if trajectory else None
        watch = _FiniteWatch(grid, check_finite)
        draws = solver.integrator.draws_noise(equation)
        state = None
        for i, row in enumerate(rows):
            x, state = solver.integrator.step(equation, x, row, state, noise() if draws else None)
            watch(i, x)
            if path is not None:
                path.append(x)
            if callback is not None:
                callback(Step(i, grid[i].item(), grid[i + 1].item(), x, first))
            bar.update(1)
        if tweedie:
            x = _denoise(equation, x, grid[-1])
            watch(len(rows), x)
        watch.read()
        finished.append(x)
        if path is not None:
            paths.append(torch.stack(path))
    bar.close()
    network_seconds = meter.seconds()
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


def _rows(table: Tensor) -> list[Row]:
    """The table as tuples of 0-dim tensors, unbound all at once: cheaper than row by row."""
    cells, k = table.flatten().unbind(), table.shape[1]
    return [cells[i : i + k] for i in range(0, len(cells), k)]


def _denoise(equation: ReverseEquation, x: Tensor, t: Tensor) -> Tensor:
    """Tweedie's formula: x̂_0 at (x, t)."""
    m, n = (c.to(x.device, x.dtype) for c in equation.view("x0", t))
    time_input, scale = (c.to(x.device, x.dtype) for c in equation.model.network_inputs(t))
    return m * x + n * equation.output(x, time_input, scale)


class _Meter:
    """Counts the evaluations of a network and the time they take, without waiting for the device."""

    def __init__(self, model: ScoreModel, device: torch.device) -> None:
        self.model = model
        self.on_cuda = device.type == "cuda"
        self.nfe = 0  # the largest over the batches: what each sample went through
        self.calls = 0
        self._elapsed = 0.0
        self._events: list[tuple[Any, Any]] = []

    def restart(self) -> None:
        self.calls = 0

    def evaluate(self, x_t: Tensor, time_input: Tensor, scale: Tensor, condition: Any) -> Tensor:
        self.calls += 1
        self.nfe = max(self.nfe, self.calls)
        if self.on_cuda:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            y = self.model.output(x_t, time_input, scale, condition)
            after.record()
            self._events.append((before, after))
            return y
        start = time.perf_counter()
        y = self.model.output(x_t, time_input, scale, condition)
        self._elapsed += time.perf_counter() - start
        return y

    def seconds(self) -> float:
        if self._events:
            torch.cuda.synchronize()
            self._elapsed += sum(before.elapsed_time(after) for before, after in self._events) / 1000
            self._events = []
        return self._elapsed


class _FiniteWatch:
    """One number per step whose finiteness is the state's; read on the host every few steps only."""

    def __init__(self, grid: Tensor, enabled: bool) -> None:
        self.grid = grid
        self.enabled = enabled
        self.first = 0
        self.sums: list[Tensor] = []

    def __call__(self, step: int, x: Tensor) -> None:
        if not self.enabled:
            return
        if not self.sums:
            self.first = step
        self.sums.append(x.sum())
        if len(self.sums) == _STEPS_BETWEEN_READS:
            self.read()

    def read(self) -> None:
        """Raise if a state since the last reading was not finite."""
        if not self.sums:
            return
        finite = torch.stack(self.sums).isfinite().tolist()
        self.sums = []
        if not all(finite):
            step = self.first + finite.index(False)
            last = len(self.grid) - 1
            where = "the final Tweedie step" if step == last else f"the step to t={self.grid[step + 1].item():.6g}"
            raise NonFiniteError(
                f"the state is not finite after {where}",
                step=step,
                t=self.grid[min(step, last)].item(),
                remedy="Look for NaN in the network's weights or output; a finer grid helps if the solver diverged.",
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
    shape = tuple(shape) if x_start is None else tuple(x_start.shape)  # type: ignore[arg-type]
    if not shape or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise ArgumentError("shape", shape, "no samples", "Pass (n, *event) with n >= 1.")
    if model.event_shape is not None and shape[1:] != model.event_shape:
        problem = f"the model was made for events of shape {model.event_shape}"
        raise ArgumentError("shape", shape, problem, f"Pass {(shape[0], *model.event_shape)}.")
    if x_start is not None and not bool(x_start.isfinite().all()):
        raise ArgumentError("x_start", tuple(x_start.shape), "it holds NaN or infinity", "Clean it first.")
    if batch_size is not None and batch_size < 1:
        raise ArgumentError("batch_size", batch_size, "must be at least 1", "Use None for all at once.")
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
    if isinstance(model, nn.Module):
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
    first: int,
    last: int,
    noise: Noise,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    if x_start is not None:
        return x_start[first:last].to(device, dtype)
    return model.sde.sigma(grid[0]).to(device, dtype) * noise()


def _rows_of(condition: Any, first: int, last: int, n: int) -> Any:
    """The part of a condition that belongs to a batch; whatever has no row per sample goes whole."""
    if isinstance(condition, dict):
        return {key: _rows_of(value, first, last, n) for key, value in condition.items()}
    if isinstance(condition, Tensor) and condition.ndim > 0 and len(condition) == n:
        return condition[first:last]
    return condition
