"""The stages of a calibration and the clock they share: candidates, dynamic programming, gradients or search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sde_toolkit.calibration.gradient import Descending, optimise, with_ones
from sde_toolkit.calibration.knots import dynamic_grids
from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.search import fitted_weights, pattern_search, score
from sde_toolkit.calibration.starts import Contender, of_different_solvers
from sde_toolkit.integrators import FrozenX0
from sde_toolkit.solvers import Solver

__all__ = ["Stages"]

# shares of the time limit by which stages end
_SHORT, _PATTERN, _FIRST, _WORKING = 0.5, 0.58, 0.7, 0.9
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

    def dynamic(self, fit: NoiseSet, ranked: Sequence[Contender], count: int) -> list[Contender]:
        """The grids of dynamic programming under the best solvers, best first."""
        if self.problem.eta > 0:
            return []
        found = []
        for start in of_different_solvers(ranked, count):
            integrator = start.solver.integrator
            steps = self.steps(start.solver)
            if steps < 2 or not start.tweedie or integrator.first_evaluation is not None:
                continue
            for label, times in dynamic_grids(self.problem, fit, integrator.frozen_quantity or FrozenX0(), steps):
                plan = Contender(start.solver, times, label, start.tweedie)
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
            starts = of_different_solvers(ranked, 4)
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
        known = [*self.dynamic(fit, ranked, 2 if self.cheap else 1), *ranked[:2]]
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
