"""The stages of a calibration and the clock they share: candidates, dynamic programming, gradients or search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sde_toolkit.calibration.gradient import Descending, optimise, with_ones
from sde_toolkit.calibration.knots import dynamic_grids
from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.search import fitted_weights, pattern_search, score
from sde_toolkit.calibration.starts import Contender, usual_grids
from sde_toolkit.integrators import FrozenX0
from sde_toolkit.solvers import Solver

__all__ = ["Stages"]

_SCORING, _SHORT, _PATTERN, _FIRST, _WORKING = 0.25, 0.4, 0.5, 0.65, 0.9  # shares of the time limit by which stages end
_ITERATIONS, _RUNS = (600, 300), (300, 150)  # of descents and of pattern searches: for cheap models, for others
_LOST = 0.1  # of the data's size: the softened descent weighs errors above it less


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages, and the clock they share."""

    problem: Problem
    steps: Callable[[Solver], int]
    weights: bool
    cheap: bool
    cost: float
    began: float
    time_limit: float
    tell: Callable[[str, float], None]

    def until(self, share: float) -> float:
        return self.began + share * self.time_limit

    def affordable(self, nfe: int, batch: int) -> int:
        """Iterations of gradient descent that fit into the time; a backward pass costs about two forward ones."""
        return int((self.until(_WORKING) - time.monotonic()) / max(3 * nfe * batch * self.cost, 1e-9))

    @property
    def probes(self) -> int:
        """Noises that a candidate is scored on."""
        return 512 if self.cheap else 24

    def scored(
        self, fit: NoiseSet, solvers: Sequence[Solver], starting: Tensor | None, more: Sequence[Contender] = ()
    ) -> list[Contender]:
        """Uncalibrated plans that can run, best first: all solvers on the best grids, the best solvers on all grids.

        ``more``: plans that are tried besides, on their own grids.
        """
        problem, deadline = self.problem, self.until(_SCORING)
        sde = problem.model.sde

        def grids(solver: Solver) -> list[tuple[str, Tensor]]:
            if starting is not None:
                return [("the given grid", starting)]
            return usual_grids(
                sde,
                self.steps(solver),
                start=problem.start,
                earliest=problem.earliest,
                sigma_data=problem.model.sigma_data,
            )

        known: dict[tuple[int, str], tuple[float, Contender]] = {}

        def run(k: int, label: str, times: Tensor) -> None:
            late = bool(known) and time.monotonic() > deadline
            if (k, label) not in known and not late:
                plan = Contender(solvers[k], times, label)
                known[k, label] = (score(problem, plan, fit, self.probes), plan)
                self.tell("candidates", 0.0)

        def best_of(keys: list[Any], place: int, count: int) -> list[Any]:
            errors = {key: min([e for at, (e, _) in known.items() if at[place] == key] or [math.inf]) for key in keys}
            return sorted(keys, key=lambda key: errors[key])[:count]

        for k in range(min(2 if self.cheap else 1, len(solvers))):
            for label, times in grids(solvers[k]):
                run(k, label, times)
        labels = best_of(list({label for _, label in known}), 1, 3 if self.cheap else 2)
        for k, solver in enumerate(solvers):
            for label, times in grids(solver):
                if label in labels:
                    run(k, label, times)
        leaders = best_of(list(range(len(solvers))), 0, 3 if self.cheap else 1)
        for k in leaders:
            for label, times in grids(solvers[k]):
                run(k, label, times)
        tried = [*known.values(), *((score(problem, plan, fit, self.probes), plan) for plan in more)]
        finite = [(e, plan) for e, plan in tried if math.isfinite(e)]
        return [plan for _, plan in sorted(finite, key=lambda pair: pair[0])]

    def dynamic(self, fit: NoiseSet, ranked: Sequence[Contender], count: int) -> list[Contender]:
        """The grids of dynamic programming under the best solvers, best first."""
        if self.problem.eta > 0:
            return []
        found = []
        for start in _of_different_solvers(ranked, count):
            integrator = start.solver.integrator
            steps = self.steps(start.solver)
            if steps < 2 or not start.tweedie:
                continue
            for label, times in dynamic_grids(self.problem, fit, integrator.frozen_quantity or FrozenX0(), steps):
                plan = Contender(start.solver, times, label)
                found.append((score(self.problem, plan, fit, self.probes), plan))
                self.tell("dynamic programming", 0.0)
        finite = [pair for pair in found if math.isfinite(pair[0])]
        return [plan for _, plan in sorted(finite, key=lambda pair: pair[0])]

    def by_gradient(self, fit: NoiseSet, select: NoiseSet, ranked: list[Contender]) -> list[Contender]:
        """Short descents from the best starts, then long ones from the best results: softened, and in e² if cheap."""
        problem = self.problem
        how = self.descending(fit, ranked[0])
        found: list[Contender] = []
        if self.cheap:
            starts = _of_different_solvers(ranked, 4)
        else:  # one descent, from the best result of a search that takes half the time
            found = self.by_search(fit, select, ranked)
            starts = [min([ranked[0], *found], key=lambda plan: score(problem, plan, select))]
        if self.weights:
            starts = [with_ones(plan) for plan in starts]
        short = replace(how, iterations=max(how.iterations // 5, 1))
        if len(starts) > 1:
            share = (self.until(_SHORT) - time.monotonic()) / len(starts)
            for plan in starts:
                deadline = time.monotonic() + share
                found.append(
                    optimise(
                        problem,
                        fit,
                        plan,
                        short,
                        weights=self.weights,
                        deadline=deadline,
                        tell=lambda done: self.tell("gradient, short", done),
                    )
                )
            starts = [min(found, key=lambda plan: score(problem, plan, select))]
        ways = [math.inf] if problem.eta > 0 else [math.inf, _LOST] if self.cheap else [_LOST]
        for plan, lost in [(plan, lost) for plan in starts for lost in ways]:
            found.append(
                optimise(
                    problem,
                    fit,
                    plan,
                    replace(how, number=1, lost=lost),
                    weights=self.weights,
                    deadline=self.until(_WORKING if lost == ways[-1] else _FIRST),
                    tell=lambda done: self.tell("gradient", done),
                )
            )
        return found

    def descending(self, fit: NoiseSet, plan: Contender) -> Descending:
        if self.cheap:
            finer = min(1.0, 15 / len(plan.grid))  # with many steps a rate of 0.1 diverges (seen at 50)
            iterations = _ITERATIONS[0]
            return Descending(iterations, min(1024, len(fit)), 0.1 * finer, 0.02 * finer)
        batch = min(16, len(fit))
        iterations = max(1, min(_ITERATIONS[1], self.affordable(plan.nfe, batch)))
        return Descending(iterations, batch, 0.02, 0.004)

    def by_search(self, fit: NoiseSet, select: NoiseSet, ranked: list[Contender]) -> list[Contender]:
        """Dynamic programming, pattern search, least squares."""
        problem = self.problem
        known = [*self.dynamic(fit, ranked, 2), *ranked[:2]]
        known = sorted(known, key=lambda plan: score(problem, plan, fit, self.probes))[: 2 if self.cheap else 1]
        found = list(known)
        m = min(len(fit), 1024 if self.cheap else 32)
        for k, plan in enumerate(known):
            now = time.monotonic()
            deadline = now + (self.until(_PATTERN) - now) / (len(known) - k)
            found.append(
                pattern_search(
                    problem,
                    fit,
                    plan,
                    n=m,
                    deadline=deadline,
                    runs=_RUNS[0] if self.cheap else _RUNS[1],
                    tell=lambda done: self.tell("pattern search", done),
                )
            )
        if self.weights:
            for plan in sorted(found, key=lambda plan: score(problem, plan, select))[:2]:
                for tuned in fitted_weights(problem, fit, plan):
                    self.tell("least squares", 0.0)
                    found.append(tuned)
                    if time.monotonic() > self.until(_WORKING):
                        return found
        return found


def _of_different_solvers(plans: Sequence[Contender], count: int) -> list[Contender]:
    """The first plan of each of the first ``count`` solvers."""
    first: dict[str, Contender] = {}
    for plan in plans:
        first.setdefault(repr(plan.solver), plan)
    return list(first.values())[:count]
