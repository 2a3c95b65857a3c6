"""The stages of a calibration and the clock they share: candidates, dynamic programming, gradients or search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sde_toolkit.calibration.gradient import Descending, bespoke, optimise, with_ones
from sde_toolkit.calibration.knots import dynamic_grids
from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.search import fitted_weights, pattern_search, score
from sde_toolkit.calibration.starts import Contender, of_different_solvers
from sde_toolkit.integrators import FrozenX0
from sde_toolkit.solvers import Solver

__all__ = ["Stages"]

# shares of the time limit by which stages end
_SHORT, _PATTERN, _FIRST, _WORKING = 0.4, 0.58, 0.75, 0.92
_ENOUGH = 300  # iterations of a network with more noises in each, before there are more of them
_ITERATIONS, _RUNS = (1200, 600), (300, 150)  # of descents and of pattern searches: for cheap models, for others
# noises in an iteration, step sizes of increments and of weights, for cheap models
_BESPOKE = (256, 0.015, 0.0015)  # with 0.04 more noises change mode
_FACTORS = (1024, 0.1, 0.02)
_SLOWER = 0.25  # step sizes of the second long descent, over those of the first


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages, and the clock they share."""

    problem: Problem
    steps: Callable[[Solver], int]
    weights: bool
    cheap: bool
    cost: float
    any_weights: bool
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

    def freed(self, plan: Contender) -> Contender:
        """The plan with its weights free: all of a bespoke solver's, or factors of its own."""
        if not self.weights:
            return plan
        free = bespoke(self.problem, plan) if self.any_weights and self.problem.eta == 0 else None
        return free or with_ones(plan)

    def by_gradient(
        self, fit: NoiseSet, select: NoiseSet, ranked: list[Contender], share_of: Callable[[Contender], float]
    ) -> list[Contender]:
        """Short descents from the best starts, then two long ones from the best results.

        ``share_of``: of the root mean square in the objective that would let a plan be taken (1/2 where it would be).
        """
        found: list[Contender] = []
        how = self.descending(fit, ranked[0])
        if self.cheap or self.any_weights:
            starts = of_different_solvers(ranked, 2)
        else:  # one descent, from the best result of a search that takes half the time
            found = self.by_search(fit, select, ranked)
            starts = [self.best([ranked[0], *found], select)]
        starts = [self.freed(plan) for plan in starts]
        if len(starts) > 1:
            short = replace(how, iterations=max(how.iterations // 5, 1))
            share = (self.until(_SHORT) - time.monotonic()) / len(starts)
            for plan in starts:
                found += self.descend(fit, plan, short, time.monotonic() + share, "gradient, short")
            starts = [self.best(found, select)]
        deadlines = [self.until(_FIRST), self.until(_WORKING)]
        for number, deadline in enumerate(deadlines, 1):
            plan, share, slower = starts[0], 0.5, 1.0
            if number > 1:  # towards the sense in which the best would lose; if it would not, on from there
                share = share_of(self.best(found, select))
                plan, slower = self.best(found, select, share), _SLOWER
            found += self.descend(fit, plan, how.again(number, share, slower), deadline)
        return found

    def best(self, plans: Sequence[Contender], select: NoiseSet, share: float = 0.5) -> Contender:
        return min(plans, key=lambda plan: score(self.problem, plan, select, share=share))

    def descend(
        self, fit: NoiseSet, plan: Contender, how: Descending, deadline: float, stage: str = "gradient"
    ) -> list[Contender]:
        return optimise(
            self.problem,
            fit,
            plan,
            how,
            weights=self.weights,
            deadline=deadline,
            tell=lambda done: self.tell(stage, done),
        )

    def descending(self, fit: NoiseSet, plan: Contender) -> Descending:
        batch, grid_rate, weight_rate = _BESPOKE if self.any_weights else _FACTORS
        if self.cheap:
            finer = min(1.0, 15 / len(plan.grid))  # with many steps a rate of 0.1 diverged (seen at 50)
            return Descending(_ITERATIONS[0], min(batch, len(fit)), grid_rate * finer, weight_rate * finer)
        batch = min(32 if self.affordable(plan.nfe, 32) > _ENOUGH else 16, len(fit))
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
