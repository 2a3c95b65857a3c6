"""Uncalibrated plans, tried on a few noises: which solver, which usual grid, which end and beginning.

A cheap model tries two solvers on all grids, all solvers on the best grids, and the best solvers on all grids. Others
look at one thing after another: the kind of grid, its end, the solver, and then kinds and ends for the best solver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from sde_toolkit.calibration.problem import NoiseSet
from sde_toolkit.calibration.published_plans import published_plans
from sde_toolkit.calibration.search import score
from sde_toolkit.calibration.starts import Contender, of_different_solvers, usual_grids
from sde_toolkit.calibration.variants import gaussian_starts, with_landing
from sde_toolkit.solvers import Solver

if TYPE_CHECKING:
    from sde_toolkit.calibration.stages import Stages

__all__ = ["Trials"]

_PUBLISHED, _SCORING, _VARYING = 0.12, 0.16, 0.22  # shares of the time limit by which they end


@dataclass(eq=False)
class Trials:
    """The plans that were tried on ``fit``, with their scores; ``solvers`` are those to choose from."""

    stages: Stages
    fit: NoiseSet
    solvers: Sequence[Solver]
    starting: Tensor | None = None
    known: dict[tuple[int, str], Contender] = field(default_factory=dict)
    scores: dict[Contender, float] = field(default_factory=dict)
    usual: dict[int, list[tuple[str, Tensor]]] = field(default_factory=dict)  # grids, by the number of their steps

    @property
    def ranked(self) -> list[Contender]:
        """All plans that can run, best first."""
        finite = [plan for plan, value in self.scores.items() if math.isfinite(value)]
        return sorted(finite, key=lambda plan: self.scores[plan])

    def add(self, plan: Contender, deadline: float = math.inf, stage: str = "candidates") -> None:
        """Try a plan, unless it is later than ``deadline`` and another one was tried."""
        if not self.scores or time.monotonic() < deadline:
            self.scores[plan] = score(self.stages.problem, plan, self.fit, self.stages.probes)
            self.stages.tell(stage, 0.0)

    def run(self) -> None:
        """All solvers on the usual grids, as far as they are promising."""
        if self.stages.cheap or self.starting is not None:
            self._solvers_and_grids(2 if self.stages.cheap else 1, 3 if self.stages.cheap else 2)
        else:
            self._one_after_another()

    def publish(self, nfe: int) -> None:
        """What others use (:mod:`.published_plans`)."""
        for plan in published_plans(self.stages.problem.model, nfe):
            self.add(plan, self.stages.until(_PUBLISHED))

    def follow(self, standard: Contender) -> None:
        """The plan of ``auto``, and all solvers on its grid."""
        self.add(standard)
        for solver in self.solvers:
            plan: Contender | None = Contender(solver, standard.grid, "auto's grid", standard.tweedie)
            if not standard.tweedie:
                plan = with_landing(self.stages.problem, Contender(solver, standard.grid[:-1], "auto's grid"))
            if plan is not None:
                self.add(plan, self.stages.until(_PUBLISHED))

    def vary(self, samples: Tensor) -> None:
        """Other ends and beginnings of the best plans of different solvers (:mod:`.variants`).

        ``samples``: data in model space, for the Gaussian that a start may follow.
        """
        problem, cheap, deadline = self.stages.problem, self.stages.cheap, self.stages.until(_VARYING)
        for plan in of_different_solvers(self.ranked, 8 if cheap else 5):
            landed = with_landing(problem, plan)
            if landed is not None:
                self.add(landed, deadline, "variants")
        for plan in of_different_solvers(self.ranked, 3 if cheap else 2):
            for begun in gaussian_starts(problem, plan, samples):
                self.add(begun, deadline, "variants")

    def _grids(self, k: int) -> list[tuple[str, Tensor]]:
        if self.starting is not None:
            return [("the given grid", self.starting)]
        problem, steps = self.stages.problem, self.stages.steps(self.solvers[k])
        if steps not in self.usual:
            self.usual[steps] = usual_grids(
                problem.model.sde,
                steps,
                start=problem.start,
                earliest=problem.earliest,
                sigma_data=problem.model.sigma_data,
            )
        return self.usual[steps]

    def _try(self, k: int, labels: Iterable[str] | None = None) -> None:
        """Solver ``k`` on the usual grids of these names; on all of them by default."""
        wanted = None if labels is None else set(labels)
        for label, times in self._grids(k):
            if (wanted is None or label in wanted) and (k, label) not in self.known:
                plan = self.known[k, label] = Contender(self.solvers[k], times, label)
                self.add(plan, self.stages.until(_SCORING))

    def _best_labels(self, count: int) -> list[str]:
        return [label for _, label in self._best(1, count)]

    def _best_solvers(self, count: int) -> list[int]:
        return [k for k, _ in self._best(0, count)]

    def _best(self, place: int, count: int) -> list[tuple[int, str]]:
        """Of the pairs (solver, label) with the smallest scores, those that differ in one of the two."""
        tried = [key for key, plan in self.known.items() if plan in self.scores]
        ordered = sorted(tried, key=lambda key: self.scores[self.known[key]])
        first: dict[int | str, tuple[int, str]] = {}
        for key in ordered:
            first.setdefault(key[place], key)
        return list(first.values())[:count]

    def _solvers_and_grids(self, few: int, many: int) -> None:
        every = range(len(self.solvers))
        for k in every[:few]:
            self._try(k)
        labels = self._best_labels(many)
        for k in every:
            self._try(k, labels)
        for k in self._best_solvers(3 if self.stages.cheap else 1):
            self._try(k)

    def _one_after_another(self) -> None:
        every = range(len(self.solvers))
        labels = [label for label, _ in self._grids(0)]
        ends = list(dict.fromkeys(map(_end, labels)))
        self._try(0, _of(labels, ends=[ends[len(ends) // 2]]))
        if not self._best_labels(1):  # no time was left for any
            return
        kinds = [_kind(label) for label in self._best_labels(2)]
        self._try(0, _of(labels, kinds=kinds[:1]))
        label, *_ = self._best_labels(1)
        for k in every:
            self._try(k, [label])
        end = _end(label)
        for k in self._best_solvers(4):
            self._try(k, _of(labels, kinds=kinds, ends=[end]))
        (k,) = self._best_solvers(1)
        self._try(k, _of(labels, ends=[end]))
        for label in self._best_labels(1):
            self._try(k, _of(labels, kinds=[_kind(label)]))


def _kind(label: str) -> str:
    return label.partition(" to t=")[0]


def _end(label: str) -> str:
    return label.partition(" to t=")[2]


def _of(labels: Sequence[str], kinds: Sequence[str] | None = None, ends: Sequence[str] | None = None) -> list[str]:
    """The labels of these kinds and ends; None for any."""
    chosen = [label for label in labels if kinds is None or _kind(label) in kinds]
    return [label for label in chosen if ends is None or _end(label) in ends]
