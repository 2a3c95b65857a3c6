"""``calibrate``: the grid, the weights and the method with the smallest error, for one model and one budget.

1. A fine solve says where noises should end. The noises are divided into three sets: fit, select and fresh.
2. All candidates run uncalibrated on the usual grids. The best of them is the start: it has to be beaten.
3. ``gradient``: Adam through the solver, on grid and weights. ``search``: dynamic programming over the local errors of
   one fine trajectory, a pattern search around the best, and weights by least squares.
4. The best on ``select`` is compared with the start on ``fresh``, and must win there. Otherwise the start is returned.

The idea is that of Watson et al. 2021 (dynamic programming), Xia et al. 2023, Sabour et al. 2024 (AYS) and Tong et al.
2025 (LD3), for any SDE, score model and solver of fixed steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.calibration.calibrated import Calibration
from sde_toolkit.calibration.gradient import differentiable
from sde_toolkit.calibration.judging import judge, on_which_noises, what_it_took, what_was_calibrated, where_it_began
from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.refusals import check_calibration, check_start_grid
from sde_toolkit.calibration.search import score
from sde_toolkit.calibration.stages import Stages
from sde_toolkit.calibration.starts import Contender, default_solvers
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import check_condition, map_rows
from sde_toolkit.models.declaration import warn_if_wrong
from sde_toolkit.models.evaluation_mode import refuse_random_numbers
from sde_toolkit.models.inspection import modules_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.solvers import Solver

__all__ = ["calibrate"]

Strategy = Literal["gradient", "search"]

_CHEAP = 1e-4  # seconds per sample and evaluation


def calibrate(
    model: ScoreModel,
    solver: Solver | Sequence[Solver] | None = None,
    nfe: int = 10,
    *,
    grid: Tensor | None = None,
    strategy: Strategy | None = None,
    weights: bool = True,
    n: int | None = None,
    seed: int = 0,
    time_limit: float = 300.0,
    reference_steps: int | None = None,
    event_shape: tuple[int, ...] | None = None,
    condition: Any = None,
    data: Tensor | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[str, float], None] | None = None,
) -> Calibration:
    """Find the grid, and weights where they help, with the smallest error at the endpoint within ``nfe`` evaluations.

    Args:
        model: any score model in evaluation mode, on its own device.
        solver: what to calibrate; of several the best. By default multistep methods of order 2 and 3 in noise, data
            and EDM prediction, with and without UniPC's corrector. With η > 0 the distance of the distributions is
            minimised instead of the distance to the flow's endpoint.
        nfe: evaluations per sample, the last of them for Tweedie's formula where the grid ends above t=0.
        grid: start from this grid alone, instead of the usual ones. It may end at t=0.
        strategy: ``gradient`` or ``search``; None takes gradients if 60 iterations fit into the time limit.
        weights: tune multistep weights as well, for integrators that have them.
        n: noises to fit to, half as many to select with, and as many again to judge with. Default: up to 4096 for
            a model that costs less than 0.1 ms per sample, else 64.
        seed: of the noises. They are streams of their own, which ``sample`` does not draw at any seed. The result is
            repeatable as far as the time limit does not cut it short.
        time_limit: seconds, about; the search stops in time to be judged.
        reference_steps: of the fine solve. Default: 400 for exact scores, 200 for cheap networks, 96 for others.
        event_shape: of one sample, where the model does not tell.
        condition: handed to the network, the same for all samples: every tensor in it has one row.
        data: samples (N, *event) in the caller's space, on which the model's declaration is tried; nothing else depends
            on them. A warning says if it looks wrong (:meth:`sde_toolkit.ScoreModel.check`).
        batch_size: samples that go through the network together.
        dtype: of the state. Default: float64 for networks with float64 parameters and for exact scores; else float32,
            in which ``sample`` asks a network, too.
        progress, callback: a bar; or a function told (stage, share done).

    Raises:
        ArgumentError: for adaptive solvers, too small a budget, or solvers with different η.
        GridError: for a start grid with another number of steps than the budget has.
    """
    began = time.monotonic()
    solvers, steps, shape = check_calibration(model, solver, nfe, n, seed, event_shape, strategy, time_limit=time_limit)
    check_condition(condition, 1)
    if data is not None:
        told = map_rows(condition, lambda rows: rows.expand(len(data), *rows.shape[1:]))
        warn_if_wrong(model, data, condition=told)
    starting = None if grid is None else check_start_grid(grid, nfe, solvers)
    eta = 0.0 if solvers is None else solvers[0].eta
    dtype, device = _dtype_and_device(model, dtype)
    problem = Problem(model, eta, seed, shape, dtype, device, batch_size, condition)
    if starting is not None:
        problem.start = starting[0].item()
    cost = _cost(problem)
    cheap = cost < _CHEAP
    n = n or _default_n(cheap, math.prod(shape))
    usual = (400 if model.has_exact_score else 200) if cheap else 96
    problem.fine_steps = usual if reference_steps is None else reference_steps
    problem.times = problem.fine_times(problem.fine_steps)
    with _Telling(began, time_limit, progress, callback) as tell:
        stages = Stages(problem, steps, weights, cheap, cost, began, time_limit, tell)
        tell("reference", 0.0)
        fit, select, fresh = problem.noise_set(n), problem.noise_set(max(n // 2, 2)), problem.noise_set(n)
        own_error = problem.reference_error(fresh, 128 if cheap else 8)
        candidates = solvers or default_solvers(_size(fit.target, model.sigma_data), nfe)
        ranked = stages.scored(fit, candidates, starting)
        if not ranked:
            said = "none of them can run on any grid that was tried"
            raise ArgumentError("solver", [s.name for s in candidates], said, "Give a start with grid=...")
        start = min(ranked[:4], key=lambda plan: score(problem, plan, select) + score(problem, plan, fit))
        chosen, note = _choose(strategy, stages, fit, start)
        descend = stages.by_gradient if chosen == "gradient" else stages.by_search
        found = [start, *descend(fit, select, [start, *(p for p in ranked if p is not start)])]
        best = min(found, key=lambda plan: score(problem, plan, select))
        tell("validation", 0.0)
        verdict = judge(problem, start, best, fresh, own_error, note)
        record = {
            **what_was_calibrated(problem, nfe),
            **where_it_began(start, candidates),
            "method": chosen if cheap or chosen == "search" else "search, then gradient",
            "seed": seed,
            **on_which_noises(problem, (fit, select, fresh), start, best),
            **what_it_took(problem, own_error, began),
        }
    return verdict.calibration(record)


class _Telling:
    """The progress bar, and the caller's callback: called with a stage and the share of it that is done."""

    def __init__(
        self, began: float, time_limit: float, progress: bool, callback: Callable[[str, float], None] | None
    ) -> None:
        self.began, self.time_limit, self.callback = began, time_limit, callback
        self.bar = progress_bar(100, "calibrate", enabled=progress)
        self.shown = 0

    def __call__(self, stage: str, done: float) -> None:
        now = min(99, int(100 * (time.monotonic() - self.began) / self.time_limit))
        self.bar.set_postfix_str(stage)
        self._advance(now)
        if self.callback is not None:
            self.callback(stage, done)

    def _advance(self, percent: int) -> None:
        self.bar.update(max(0, percent - self.shown))
        self.shown = max(self.shown, percent)

    def __enter__(self) -> _Telling:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self._advance(100)
        self.bar.close()


def _choose(strategy: Strategy | None, stages: Stages, fit: NoiseSet, start: Contender) -> tuple[Strategy, str]:
    """The strategy, and a sentence about it for the result's reason."""
    if strategy == "search":
        return "search", ""
    affordable = stages.cheap or stages.affordable(start.nfe, 16) >= 60
    if strategy is None and not affordable:
        return "search", ""
    if differentiable(stages.problem, fit, start):
        return "gradient", ""
    return "search", " Gradients do not pass through this solver or model; it was searched without them."


def _size(target: Tensor, otherwise: float) -> float:
    """√E[x_0²] of the targets; ``otherwise`` if all of them are zero."""
    return target.double().square().mean().sqrt().item() or otherwise


def _default_n(cheap: bool, D: int) -> int:
    return max(256, min(4096, 2**18 // max(D, 1))) if cheap else 64


def _dtype_and_device(model: ScoreModel, dtype: torch.dtype | None) -> tuple[torch.dtype, torch.device]:
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    if dtype not in (None, torch.float32, torch.float64):
        raise ArgumentError("dtype", dtype, "the state is float32 or float64", "Leave it out.")
    return dtype or _own_dtype(model), device


def _own_dtype(model: ScoreModel) -> torch.dtype:
    """float64 if all parameters are float64 (all buffers, if there are no parameters); also for functions."""
    modules = [module for _, module in modules_of(model, "model")]
    parameters = [p.dtype for module in modules for p in module.parameters() if p.is_floating_point()]
    buffers = [b.dtype for module in modules for b in module.buffers() if b.is_floating_point()]
    return torch.float64 if set(parameters or buffers) == {torch.float64} else torch.float32


@torch.no_grad()
def _cost(problem: Problem) -> float:
    """Seconds per sample of one evaluation, after a first one that does not count."""
    size = 32
    x = torch.zeros(size, *problem.event_shape, dtype=problem.dtype, device=problem.device)
    equation = problem.descent.equation
    inputs = tuple(c.to(x.device, x.dtype) for c in equation.inputs(torch.tensor(0.5, dtype=torch.float64)))
    with refuse_random_numbers(x.device, problem.model.network):
        equation.output(x, inputs)
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        equation.output(x, inputs).sum().item()
        took.append(time.perf_counter() - begin)
    return min(took) / size
