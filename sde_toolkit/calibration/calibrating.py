"""``calibrate``: the grid, the weights and the method with the smallest error, for one model and one budget.

1. A fine solve says where noises should end. The noises are divided into three sets: fit, select and fresh. Its steps
   are doubled until it is a fifth as far off as the errors that it measures, on all noises that judge.
2. What ``auto`` takes, what others publish, and all candidates on the usual grids run uncalibrated. The best that is
   not worse than ``auto`` is the start: it has to be beaten. Errors count in two senses, root mean square and median.
3. ``gradient``: Adam through the solver, on the grid and on all weights of a bespoke solver (of a given solver: on
   factors of its weights). ``search``: dynamic programming over the local errors of one fine trajectory, a pattern
   search around the best, and weights by least squares.
4. The best on ``select``, of those that do not lose to ``auto`` or the start, is compared with both on ``fresh``, and
   must surely win there. Otherwise the start is returned.

The idea is that of Watson et al. 2021 (dynamic programming), Xia et al. 2023, Sabour et al. 2024 (AYS), Shaul et al.
2024 (bespoke solvers) and Tong et al. 2025 (LD3), for any SDE, score model and solver of fixed steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.calibration.calibrated import Calibration
from sde_toolkit.calibration.gradient import differentiable
from sde_toolkit.calibration.judging import (
    Selection,
    on_which_noises,
    what_it_took,
    what_was_calibrated,
    where_it_began,
)
from sde_toolkit.calibration.probing import cost_of, default_n, dtypes_and_device, first_that_answers
from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.refining import Refining
from sde_toolkit.calibration.refusals import check_calibration, check_start_grid
from sde_toolkit.calibration.stages import Stages
from sde_toolkit.calibration.starts import Contender, auto_plan, default_solvers
from sde_toolkit.calibration.trials import Trials
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import check_condition, map_rows
from sde_toolkit.models.declaration import warn_if_wrong
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.solvers import Solver

__all__ = ["calibrate"]

Strategy = Literal["gradient", "search"]

_LEADERS = 8  # plans from which the start is chosen
_FINE_STEPS = 48  # of the fine solve, before its first doubling
_CHEAP = 1e-4  # seconds per sample and evaluation
_REFINING, _SPARE = 0.5, 0.25  # shares of the time limit: by which all targets are found; left to refine at the end


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
        n: noises to fit to, as many to select with, and as many again to judge with. Default: up to 4096 for
            a model that costs less than 0.1 ms per sample, up to 256 for others, 64 where the time limit is short.
        seed: of the noises. They are streams of their own, which ``sample`` does not draw at any seed. The result is
            repeatable as far as the time limit does not cut it short.
        time_limit: seconds, about; the search stops in time to be judged.
        reference_steps: of the fine solve before its first doubling. Default: 48.
        event_shape: of one sample, where the model does not tell.
        condition: handed to the network, the same for all samples: every tensor in it has one row.
        data: samples (N, *event) in the caller's space, on which the model's declaration is tried. A warning says if it
            looks wrong (:meth:`sde_toolkit.ScoreModel.check`). Gaussian starts take their mean and covariance; without
            data, those of the ends of the flow.
        batch_size: samples that go through the network together.
        dtype: of the state. Default: float64 for networks with float64 parameters and for exact scores; else float32,
            in which ``sample`` asks a network, too. A network that does not take its default is asked in the other one:
            a function may hold tensors of its own.
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
    dtypes, device = dtypes_and_device(model, dtype)
    problem = first_that_answers(
        [Problem(model, eta, seed, shape, dtype, device, batch_size, condition) for dtype in dtypes]
    )
    if starting is not None:
        problem.start = starting[0].item()
    cost = cost_of(problem)
    cheap = cost < _CHEAP
    problem.fine_steps = reference_steps or _FINE_STEPS
    n = n or default_n(problem, cheap, time_limit)
    problem.times = problem.fine_times(problem.fine_steps)
    with _Telling(began, time_limit, progress, callback) as tell:
        free = solvers is None and starting is None  # to take any solver
        stages = Stages(
            problem, steps, weights, cheap, cost, any_weights=free, began=began, time_limit=time_limit, tell=tell
        )
        tell("reference", 0.0)
        fit, select, fresh = (problem.noise_set(n) for _ in range(3))
        reference = Refining(problem, fresh) if eta == 0 else None
        candidates = solvers or default_solvers(_size(fit.target, model.sigma_data), nfe)
        standard = auto_plan(model, nfe, shape) if free else None
        ranked = _tried(Trials(stages, fit, candidates, starting), standard, nfe, _moments_of(model, data, fit.target))
        judge = Selection(problem, standard if standard in ranked else None)
        leaders = [*ranked[:_LEADERS], *(plan for plan in ranked[_LEADERS:] if plan is standard)]
        start = judge.best_start(leaders, fit, select)
        stages = _with_better_targets(stages, reference, start, (fit, select, fresh))
        start = judge.best_start(leaders, fit, select)  # again, by the better targets
        chosen, note = _choose(strategy, stages, fit, start)
        first = [start, *(p for p in ranked if p is standard), *ranked]
        if chosen == "gradient":
            found = stages.by_gradient(fit, select, first, lambda plan: judge.share(plan, start, select))
        else:
            found = stages.by_search(fit, select, first)
        found = [start, *leaders, *found]
        best = judge.best(found, start, select)
        tell("validation", 0.0)
        if reference is not None and not reference.until(lambda: problem.squares(best, fresh), began + time_limit):
            note += reference.complaint
        own_error = problem.reference_error(fresh, 128 if cheap else 8) if reference is None else reference.own_error
        verdict = judge.verdict(start, best, fresh, own_error, note)
        start = verdict.start
        record = {
            **what_was_calibrated(problem, nfe),
            **where_it_began(start, candidates),
            "method": chosen if cheap or free or chosen == "search" else "search, then gradient",
            "seed": seed,
            **on_which_noises(problem, (fit, select, fresh), start, best),
            **what_it_took(problem, reference.record() if reference else {"own_error": vars(own_error)}, began),
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


def _tried(trials: Trials, standard: Contender | None, nfe: int, samples: Tensor) -> list[Contender]:
    """All plans that can run, best first. With a ``standard`` also what is published, and other ends and beginnings.

    ``samples``: whose Gaussian a later beginning follows.

    Raises:
        ArgumentError: if there are none.
    """
    if standard is not None:
        trials.follow(standard)
        trials.publish(nfe)
    trials.run()
    if standard is not None:
        trials.vary(samples)
    if not trials.ranked:
        said = "none of them can run on any grid that was tried"
        raise ArgumentError("solver", [s.name for s in trials.solvers], said, "Give a start with grid=...")
    return trials.ranked


def _with_better_targets(
    stages: Stages, reference: Refining | None, start: Contender, sets: tuple[NoiseSet, NoiseSet, NoiseSet]
) -> Stages:
    """The stages, after all targets were refined until half the error of the start is resolved, within half the time.

    If a quarter of it is not resolved by then, the stages leave time to refine what judges once more.
    """
    if reference is None:
        return stages
    problem, (fit, select, fresh) = stages.problem, sets
    squares = problem.squares(start, fresh)
    reference.until(lambda: squares, stages.until(_REFINING), share=0.5)
    for chosen in (fit, select):
        while 2 * chosen.steps < fresh.steps and time.monotonic() + reference.seconds < stages.until(_REFINING):
            problem.refine(chosen)
    problem.fine_steps = fit.steps
    problem.times = problem.fine_times(fit.steps)
    spare = 0.0 if reference.resolves(squares / 16) else min(2 * reference.seconds, _SPARE * stages.time_limit)
    return replace(stages, time_limit=stages.time_limit - spare)


def _moments_of(model: ScoreModel, data: Tensor | None, ends: Tensor) -> Tensor:
    """The samples whose mean and covariance a start may follow: the data, or else the ends of the flow."""
    return ends if data is None else model.transform.forward(data)


def _choose(strategy: Strategy | None, stages: Stages, fit: NoiseSet, start: Contender) -> tuple[Strategy, str]:
    """The strategy, and a sentence about it for the result's reason."""
    if strategy == "search":
        return "search", ""
    affordable = stages.cheap or stages.affordable(start.nfe, 16) >= 60
    if strategy is None and not affordable:
        return "search", ""
    if differentiable(stages.problem, fit, stages.freed(start)):
        return "gradient", ""
    return "search", " Gradients do not pass through this solver or model; it was searched without them."


def _size(target: Tensor, otherwise: float) -> float:
    """√E[x_0²] of the targets; ``otherwise`` if all of them are zero."""
    return target.double().square().mean().sqrt().item() or otherwise
