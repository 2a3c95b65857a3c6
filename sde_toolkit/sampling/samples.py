"""``sample``: from noise to data. The reverse equation is solved from any time, and the result says how."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import Statistics
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.brownian import BrownianPath
from sde_toolkit.noise.streams import Noise, per_sample_noise, shared_noise
from sde_toolkit.sampling.arguments import (
    check_generator,
    check_model,
    check_parts,
    check_path,
    check_run,
    check_shape,
    check_tensor,
    state_dtype,
    warn_outside,
)
from sde_toolkit.sampling.automatic import Plan, auto_for_run, usual_plan
from sde_toolkit.sampling.loop import Callback, Options, Step, solve
from sde_toolkit.solvers import Solver
from sde_toolkit.transforms import Identity, Transform

__all__ = ["Sample", "Step", "sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Samples and how they came about.

    Attributes:
        data: (n, *event), in the caller's space.
        x: the same in model space.
        nfe: network evaluations per sample, counted where the network is called. Where samples differ it is the largest
            number.
        products: vector-Jacobian products with the network per sample, which some wrappers take; the largest number.
        budget: the ``nfe`` that was asked for, or None. Whole steps may not spend all of it.
        seconds, network_seconds: wall time of the whole call, and of the network in it (NaN if both were compiled
            into one graph; on a CUDA device from one evaluation in sixteen).
        trajectory: (len(grid), n, *event) in model space, if it was kept, without the Tweedie step.
        seed: None if a generator was given.
        statistics: of an integrator with steps per sample: what each sample took.
        transform: the model's.
    """

    x: Tensor
    nfe: int
    products: int
    grid: Tensor
    solver: Solver
    seed: int | None
    tweedie: bool
    seconds: float
    network_seconds: float
    trajectory: Tensor | None = None
    statistics: Statistics | None = None
    budget: int | None = None
    transform: Transform = field(default_factory=Identity)

    @property
    def data(self) -> Tensor:
        """The samples in the caller's space: ``model.transform.inverse(x)``."""
        return self.transform.inverse(self.x)


def sample(
    model: ScoreModel,
    solver: Solver | Literal["auto"],
    grid: Tensor | None = None,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    shape: tuple[int, ...] | None = None,
    x_start: Tensor | None = None,
    condition: Any = None,
    seed: int = 0,
    first_index: int = 0,
    generator: torch.Generator | None = None,
    path: BrownianPath | None = None,
    batch_size: int | None = None,
    tweedie: bool | None = None,
    trajectory: bool = False,
    callback: Callback | None = None,
    check_finite: bool = True,
    progress: bool = False,
    compile: bool | str = False,
    differentiable: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Sample:
    """Solve the reverse equation of ``model`` from ``grid[0]`` down to ``grid[-1]``.

    Args:
        model: any score model, in evaluation mode: dropout and BatchNorm in training mode are refused
            (:mod:`sde_toolkit.models.evaluation_mode`).
        solver: an equation × integrator pair, such as ``ddim()``; or ``"auto"``, the best known pair and grid for
            ``nfe`` evaluations (:func:`sde_toolkit.auto`).
        grid: decreasing times, from :mod:`sde_toolkit.grids`. It may begin and end anywhere. None: the grid that is
            usual for the solver, ended as usual.
        steps: of that grid, the last denoising not counted.
        nfe: instead of ``steps``: network evaluations per sample, the last denoising counted. Whole steps may not spend
            all of it; ``result.nfe`` says what was spent.
        shape: (n, *event) of samples to draw; they start from N(0, σ² I) at ``grid[0]``.
        x_start: where to start instead, (n, *event), in model space: a state of time ``grid[0]``, such as
            ``model.sde.perturb(x, grid[0], noise)`` or ``encode(...).x``. Integers and complex numbers are refused. A
            warning names values far outside the range that the transform names for data.
        condition: handed to the network: tensors with one row per sample, in any nesting of dicts, lists, tuples and
            dataclasses; 0-dim tensors, numbers, strings and None are shared (:mod:`sde_toolkit.models.conditions`).
        seed, first_index: sample i has its own noise stream (seed, first_index + i), whatever the batch. Its first draw
            is the start; it is dropped where ``x_start`` is given. A run that continues another one needs another seed,
            or a ``path``, so that it does not use the same noise again.
        generator: draws all noise instead. The samples then depend on the batch.
        path: takes the noise of the steps from a Brownian path, so that a finer grid refines the same path.
        batch_size: samples that go through the network together; all by default.
        tweedie: after the last step replace x by the denoised estimate x̂_0, by one more evaluation. By default this is
            done where the usual grid leaves noise; on a grid of your own it is not.
        trajectory: keep the state at every grid time. Without it, memory does not grow with the steps.
        callback: called once after each step. A tensor that it returns, of the shape, dtype and device of ``step.x``,
            replaces the state. The solver then starts anew from it: what a multistep method remembers is dropped.
            ``step.x`` must not be changed in place.
        check_finite: watch for NaN and infinity, without a host synchronisation per step.
        progress: show a bar.
        compile: compile the whole step, network included, into one graph (:mod:`sde_toolkit.sampling.compiled`): by
            inductor, or by the torch.compile backend that is named. The first steps run as they are. "cuda_graph"
            compiles nothing: the kernels of a step are recorded on a CUDA device, and each later step is launched at
            one go (:mod:`sde_toolkit.sampling.captured`).
        differentiable: keep the graph, so that the samples can be differentiated by ``x_start``, the condition and
            the network's parameters. Memory grows with the number of evaluations.
        dtype, device: of the state. By default float64 for an x_start in float64 and float32 for any other, half
            precision included; the device of x_start, or else the model's own.

    Raises:
        ArgumentError, GridError: before any evaluation, for whatever does not fit together; for a step that does
            not compile, when it is compiled.
        NonFiniteError: naming the first step and time at which the state was no longer finite.
        MaxEvaluationsError: from an adaptive integrator that reached its ``max_nfe``.
    """
    began = time.perf_counter()
    check_model(model)
    shape = _check_start(model, shape, x_start)
    in_double = state_dtype(dtype, x_start) == torch.float64
    plan = _plan_of(
        model, solver, grid, steps, nfe, tweedie, shape[1:], in_double=in_double, conditional=condition is not None
    )
    solver, grid, tweedie = plan.solver, plan.grid, plan.tweedie
    check_generator(generator)
    check_path(path, solver, generator)
    options = check_run(
        model, solver, grid, shape, ("x_start", x_start), condition=condition,
        differentiable=differentiable, dtype=dtype, device=device, batch_size=batch_size, tweedie=tweedie,
        trajectory=trajectory, callback=callback, check_finite=check_finite,
        progress=progress, compile=compile,
    )  # fmt: skip
    if x_start is not None:
        warn_outside(model, "x_start", x_start, grid[0])

    start = _Starts(
        model=model, grid=grid, shape=shape, x_start=x_start, seed=seed, first_index=first_index, generator=generator,
        path=path, options=options,
    )  # fmt: skip
    with torch.set_grad_enabled(differentiable):
        solved = solve(ReverseEquation(model, solver.eta, condition), solver, grid, shape[0], start, options)
    return Sample(
        **vars(solved),
        grid=grid,
        solver=solver,
        seed=seed if generator is None else None,
        tweedie=tweedie,
        seconds=time.perf_counter() - began,
        budget=nfe,
        transform=model.transform,
    )


@dataclass(frozen=True, eq=False)
class _Starts:
    """The state at ``grid[0]`` of the samples of a batch, and the noise of their steps."""

    model: ScoreModel
    grid: Tensor
    shape: tuple[int, ...]
    x_start: Tensor | None
    seed: int
    first_index: int
    generator: torch.Generator | None
    path: BrownianPath | None
    options: Options

    def __call__(self, first: int, last: int) -> tuple[Tensor, Callable[[int], Noise]]:
        dtype, device = self.options.dtype, self.options.device
        events, index = (last - first, *self.shape[1:]), self.first_index + first
        given = self.x_start is not None
        if self.generator is not None:
            noise = shared_noise(self.generator, events, dtype=dtype, device=device)
        else:
            noise = per_sample_noise(self.seed, index, events, dtype=dtype, device=device, begin=int(given))
        if self.x_start is None:
            x = self.model.sde.sigma(self.grid[0]).to(device, dtype) * noise()
        else:  # a copy, which no network and no callback can change
            x = self.x_start[first:last].to(device, dtype, copy=True)
            if self.generator is not None:
                noise()  # as per sample: the steps do not reuse the noise of a start from the same seed
        if self.path is None:
            return x, lambda step: noise
        return x, self.path.step_noise(
            self.model.sde, self.grid, events, seed=self.seed, first_index=index, dtype=dtype, device=device
        )


def _plan_of(
    model: ScoreModel,
    solver: Any,
    grid: Tensor | None,
    steps: int | None,
    nfe: int | None,
    tweedie: bool | None,
    event_shape: tuple[int, ...],
    *,
    in_double: bool,
    conditional: bool,
) -> Plan:
    """Solver, grid and last step: as they were given, as usual for the solver, or by ``auto``."""
    if solver == "auto":
        check_evaluation_mode(model)
        for name, value in (("grid", grid), ("steps", steps), ("tweedie", tweedie)):
            if value is not None:
                problem = 'solver="auto" chooses the grid and the last step by itself'
                raise ArgumentError(name, value, problem, "Leave it out, and pass nfe.")
        if nfe is None:
            raise ArgumentError("nfe", None, 'solver="auto" needs a number of evaluations', "Pass nfe=20, for example.")
        dtype = torch.float64 if in_double else torch.float32
        return auto_for_run(model, nfe, event_shape=event_shape, dtype=dtype, conditional=conditional)
    check_parts(model, solver)
    check_evaluation_mode(model)
    if grid is not None:
        for name, value in (("steps", steps), ("nfe", nfe)):
            if value is not None:
                remedy = "Pass one of the two."
                raise ArgumentError(name, value, "a grid was given, which says how many steps there are", remedy)
        return Plan(solver, check_grid(grid), bool(tweedie))
    plan = usual_plan(model, solver, steps=steps, nfe=nfe)
    return plan if tweedie is None else replace(plan, tweedie=tweedie)


def _check_start(model: ScoreModel, shape: tuple[int, ...] | None, x_start: Tensor | None) -> tuple[int, ...]:
    """The shape of all samples. Refuses what is wrong with ``shape`` or ``x_start``."""
    if (shape is None) == (x_start is None):
        given = {"shape": shape, "x_start": None if x_start is None else tuple(x_start.shape)}
        raise ArgumentError("shape, x_start", given, "exactly one of them is needed", "Pass shape=(n, *event).")
    if x_start is not None:
        check_tensor("x_start", x_start)
        shape = tuple(x_start.shape)
    elif not isinstance(shape, (tuple, list)):
        raise ArgumentError("shape", shape, "not a shape", "Pass (n, *event).")
    shape = tuple(shape)
    check_shape(model, "x_start", shape, x_start)
    return shape
