"""The last step of a calibration: is what was found better than the start, on noises that nothing was chosen on?

The verdict comes with its record: plain data that says what was calibrated, on what, and what it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.calibration.calibrated import Calibration
from sde_toolkit.calibration.calibration_files import model_digest, sde_fingerprint
from sde_toolkit.calibration.plan_errors import Measured, surely_better, surely_worse, worse
from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.search import score
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.errors import SDEToolkitError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["Selection", "Verdict", "on_which_noises", "what_it_took", "what_was_calibrated", "where_it_began"]


_TILT = 0.35  # of the objective, towards the sense in which a plan lost


@dataclass(frozen=True, eq=False)
class Verdict:
    """``kept``: what is returned. ``before``, ``after``: squared errors of the start and of it, on fresh noises."""

    problem: Problem
    start: Contender
    kept: Contender
    before: Tensor
    after: Tensor
    own_error: Measured
    improved: bool
    reason: str

    def calibration(self, record: Mapping[str, Any]) -> Calibration:
        """The result, with its record."""
        typical = self.problem.eta == 0  # there are no errors of single samples without pairs
        return Calibration(
            solver=self.kept.solver,
            grid=self.kept.grid,
            tweedie=self.kept.tweedie,
            nfe=self.kept.nfe,
            before=Measured.of(self.before),
            after=Measured.of(self.after),
            improved=self.improved,
            reason=self.reason,
            record=record,
            typical_before=Measured.typical(self.before) if typical else None,
            typical_after=Measured.typical(self.after) if typical else None,
            own_error=self.own_error,
        )


@dataclass(frozen=True, eq=False)
class Selection:
    """Chooses in two senses: mean square and median (η > 0: the distance alone).

    ``standard``: a plan that nothing may lose to, that of ``auto``; None if there is none.
    """

    problem: Problem
    standard: Contender | None

    def best_start(self, ranked: Sequence[Contender], fit: NoiseSet, select: NoiseSet) -> Contender:
        """Of the plans that are not worse than the standard in either sense, the best on both sets."""
        total = {plan: score(self.problem, plan, select) + score(self.problem, plan, fit) for plan in ranked}
        safe = self._not_worse(ranked, self.standard, select)
        return min(safe or ranked, key=lambda plan: total[plan])

    def best(self, found: Sequence[Contender], start: Contender, select: NoiseSet) -> Contender:
        """Of the plans that lose neither to the standard nor to the start, the best; ``start`` is one of ``found``.

        The start was chosen on these noises, so that its errors there are small by luck, too. A plan loses to it where
        it is surely worse in a sense. Without a standard it loses where it is worse at all.
        """
        if self.standard is None:
            safe = self._not_worse(found, start, select)
        else:
            bar = self.problem.squares(start, select)
            safe = [
                plan
                for plan in self._not_worse(found, self.standard, select)
                if plan is start or not self._loses(surely_worse, plan, bar, select)
            ]
        return min([start, *safe], key=lambda plan: score(self.problem, plan, select))

    def share(self, plan: Contender, start: Contender, select: NoiseSet) -> float:
        """The share of the mean square in an objective that leads ``plan`` to where it does not lose."""
        if self.problem.eta > 0:
            return 0.5
        errors, bar = (self.problem.squares(p, select) for p in (plan, self.standard or start))
        return 0.5 + _TILT * (bool(errors.mean() > bar.mean()) - bool(errors.median() > bar.median()))

    def _not_worse(self, plans: Sequence[Contender], than: Contender | None, select: NoiseSet) -> Sequence[Contender]:
        if than is None:
            return plans
        bar = self.problem.squares(than, select)
        return [plan for plan in plans if plan is than or not self._loses(worse, plan, bar, select)]

    def _loses(self, rule: Callable[[Tensor, Tensor], bool], plan: Contender, bar: Tensor, chosen: NoiseSet) -> bool:
        if self.problem.eta > 0:
            return False
        try:
            return rule(self.problem.squares(plan, chosen), bar)
        except SDEToolkitError:
            return True

    def verdict(
        self, start: Contender, best: Contender, fresh: NoiseSet, own_error: Measured, note: str = ""
    ) -> Verdict:
        """``best`` against ``start`` on ``fresh`` noises; the start is kept where nothing better is certain.

        Args:
            start: the best candidate without calibration.
            best: what was found, or the start again.
            fresh: noises that neither was chosen on.
            own_error: of the fine solve. Below twice that, an error of the start cannot be told from it.
            note: added to the reason.
        """
        problem, standard = self.problem, self.standard
        if standard is not None and self._loses(surely_worse, start, problem.squares(standard, fresh), fresh):
            note = " The best start on the other noises lost to auto on fresh ones." + note
            best, start = (standard if best is start else best), standard
        before, after = problem.squares(start, fresh), problem.squares(best, fresh)
        bars = [before] if standard in (None, start) else [before, problem.squares(standard, fresh)]
        resolved = problem.eta > 0 or Measured.of(before).value > 2 * own_error.value
        gains = surely_better(after, before) if problem.eta == 0 else bool(after.mean() < before.mean())
        improved = best is not start and resolved and gains
        improved = improved and not any(self._loses(surely_worse, best, bar, fresh) for bar in bars)
        reason = _reason(improved, best is start, resolved, before, after, problem.eta == 0) + note
        return Verdict(
            problem,
            start,
            best if improved else start,
            before,
            after if improved else before,
            own_error,
            improved,
            reason,
        )


def _reason(improved: bool, is_start: bool, resolved: bool, before: Tensor, after: Tensor, pairs: bool) -> str:
    if not resolved:
        return "The uncalibrated start is as good as the reference can tell: this is that start. Raise reference_steps."
    if is_start:
        return (
            "Nothing that was tried beat the uncalibrated start on the noises kept for selection: this is that start."
        )
    if not improved:
        found = Measured.of(after)
        return f"What was found did not beat the start on fresh noise ({found}): this is the uncalibrated start."
    if not pairs:
        return "Better on fresh noise."
    fewer = (after < before).double().mean().item()
    return f"Better on fresh noise: on {100 * fewer:.0f} % of the noises, and surely worse in neither sense."


def what_was_calibrated(problem: Problem, nfe: int) -> dict[str, Any]:
    """The model, its SDE, the budget and what was minimised."""
    flow = problem.eta == 0
    return {
        "sde": sde_fingerprint(problem.model.sde),
        "model": _describe_model(problem.model),
        "nfe": nfe,
        "eta": problem.eta,
        "objective": "RMSE and median error to the flow"
        if flow
        else "distance of distributions to endpoints of the flow",
    }


def where_it_began(start: Contender, candidates: Sequence[Solver]) -> dict[str, Any]:
    """The start, and what it was chosen from."""
    return {
        "start": {"solver": repr(start.solver.integrator), "grid": start.label, "times": start.grid.tolist()},
        "candidates": [s.name for s in candidates],
    }


def on_which_noises(
    problem: Problem, noises: tuple[NoiseSet, NoiseSet, NoiseSet], start: Contender, best: Contender
) -> dict[str, Any]:
    """How many noises there were, and the errors on those that were fitted to."""
    fit, select, fresh = noises
    pairs = (("before", start), ("after", best))
    return {
        "n": {"fit": len(fit), "select": len(select), "fresh": len(fresh), "first_fresh": fresh.first},
        "fit": {name: vars(Measured.of(problem.squares(plan, fit))) for name, plan in pairs},
        "select": {name: vars(Measured.of(problem.squares(plan, select))) for name, plan in pairs},
    }


def what_it_took(problem: Problem, reference: Mapping[str, Any], began: float) -> dict[str, Any]:
    """The fine solve, precision, evaluations, time and versions."""
    return {
        "reference": {
            "method": "Corrected(Multistep(3)), a grid mixed of t and λ, then Tweedie",
            "steps": problem.fine_steps,
            "end": problem.earliest,
            **reference,
        },
        "dtype": str(problem.dtype),
        "evaluations": problem.evaluations,
        "seconds": time.monotonic() - began,
        "versions": {"sde_toolkit": _version(), "torch": torch.__version__},
    }


def _describe_model(model: ScoreModel) -> dict[str, Any]:
    return {
        "class": type(model).__name__,
        "network": type(model.network).__name__,
        "prediction": model.prediction,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": model_digest(model),
    }


def _version() -> str:
    try:
        return metadata.version("sde-toolkit")
    except metadata.PackageNotFoundError:
        return "not installed"
