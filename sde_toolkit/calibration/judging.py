"""The last step of a calibration: is what was found better than the start, on noises that nothing was chosen on?

The verdict comes with its record: plain data that says what was calibrated, on what, and what it took.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.calibration.calibrated import Calibration
from sde_toolkit.calibration.calibration_files import model_digest, sde_fingerprint
from sde_toolkit.calibration.problem import Measured, NoiseSet, Problem
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["Verdict", "judge", "on_which_noises", "what_it_took", "what_was_calibrated", "where_it_began"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """``kept``: the better of start and best. ``before``, ``after``: errors of the start and of what is kept."""

    kept: Contender
    before: Measured
    after: Measured
    improved: bool
    reason: str

    def calibration(self, record: Mapping[str, Any]) -> Calibration:
        """The result, with its record."""
        return Calibration(
            solver=self.kept.solver,
            grid=self.kept.grid,
            tweedie=self.kept.tweedie,
            nfe=self.kept.nfe,
            before=self.before,
            after=self.after,
            improved=self.improved,
            reason=self.reason,
            record=record,
        )


def judge(
    problem: Problem, start: Contender, best: Contender, fresh: NoiseSet, own_error: Measured, note: str
) -> Verdict:
    """``best`` against ``start`` on ``fresh`` noises; the start is kept where nothing better is certain.

    Args:
        problem: what is calibrated.
        start: the best candidate without calibration.
        best: what was found, or the start again.
        fresh: noises that neither was chosen on.
        own_error: of the fine solve. Below twice that, an error of the start cannot be told from it.
        note: added to the reason.
    """
    before, after = (problem.squares(plan, fresh) for plan in (start, best))
    gain = before - after
    by_pairs = problem.eta == 0  # distances of distributions feel the reference's error less
    resolved = not by_pairs or Measured.of(before).value > 2 * own_error.value
    improved = best is not start and resolved and gain.mean().item() > 0
    reason = _reason(improved, best is start, resolved, gain, Measured.of(after)) + note
    kept = best if improved else start
    return Verdict(kept, Measured.of(before), Measured.of(after if improved else before), improved, reason)


def _reason(improved: bool, is_start: bool, resolved: bool, gain: Tensor, after: Measured) -> str:
    if not resolved:
        return "The uncalibrated start is as good as the reference can tell: this is that start. Raise reference_steps."
    if is_start:
        return (
            "Nothing that was tried beat the uncalibrated start on the noises kept for selection: this is that start."
        )
    if not improved:
        return f"What was found did not beat the start on fresh noise ({after}): this is the uncalibrated start."
    spread = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
    certain = gain.mean().item() / spread if spread > 0 else math.inf
    return f"Better on fresh noise by {certain:.1f} standard errors of the paired difference of squares."


def what_was_calibrated(problem: Problem, nfe: int) -> dict[str, Any]:
    """The model, its SDE, the budget and what was minimised."""
    flow = problem.eta == 0
    return {
        "sde": sde_fingerprint(problem.model.sde),
        "model": _describe_model(problem.model),
        "nfe": nfe,
        "eta": problem.eta,
        "objective": "RMSE to the flow" if flow else "distance of distributions to endpoints of the flow",
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
    }


def what_it_took(problem: Problem, own_error: Measured, began: float) -> dict[str, Any]:
    """The fine solve, precision, evaluations, time and versions."""
    return {
        "reference": {
            "method": "Corrected(Multistep(3)), a grid mixed of t and λ, then Tweedie",
            "steps": problem.fine_steps,
            "end": problem.earliest,
            "own_error": vars(own_error),
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
