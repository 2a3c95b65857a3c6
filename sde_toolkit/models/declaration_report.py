"""What :meth:`sde_toolkit.ScoreModel.check` found, as numbers, words and a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sde_toolkit.models.alternatives import words_of
from sde_toolkit.models.evidence import SURE, behind_linear, gain
from sde_toolkit.models.perturbed_trial import Manner, Outcome, Trial
from sde_toolkit.models.score_model import ScoreModel

__all__ = ["DeclarationReport", "LevelErrors", "report_on", "without_trial"]


@dataclass(frozen=True)
class LevelErrors:
    """Root mean square errors of x̂_0 at one noise level, in units of the spread of the data.

    As declared, of the best linear denoiser, and as the better declaration reads it (None without one).
    """

    t: float
    half_log_snr: float
    error: float
    linear: float
    better: float | None = None


@dataclass(frozen=True)
class DeclarationReport:
    """What a check found.

    Attributes:
        ok: whether nothing speaks against the declaration.
        finding: what was found, in a sentence or two.
        better: the declaration that fits better, as one writes it; None if none is known.
        note: where the network is worse than a linear denoiser; "" if nowhere.
        rows: the errors at each noise level, from clean to noisy.
        declared: the declaration that was tried.
        spread: standard deviation of an element of the data about its mean, in the model's space.
        n: samples per level.
    """

    ok: bool
    finding: str
    better: str | None
    note: str
    rows: tuple[LevelErrors, ...]
    declared: str
    spread: float
    n: int

    def __str__(self) -> str:
        lines = [f"declared: {self.declared}"]
        if self.rows:
            other = any(row.better is not None for row in self.rows)
            lines.append(
                f"error of x̂_0 in units of {self.spread:.4g}, the spread of the data; {self.n} samples a level"
            )
            lines.append("       t       λ   error  best linear" + "  better" * other)
            for row in self.rows:
                last = "" if row.better is None else f"{_shown(row.better):>8}"
                line = f"{row.t:8.4f}{row.half_log_snr:8.2f}{_shown(row.error):>8}{_shown(row.linear):>13}{last}"
                lines.append(line)
        lines.append(("right as far as can be told: " if self.ok else "WRONG: ") + self.finding)
        if self.better is not None:
            lines.append(f"better: {self.better}")
        if self.note:
            lines.append(f"note: {self.note}")
        return "\n".join(lines)


def without_trial(model: ScoreModel, problem: str) -> DeclarationReport:
    """Of a network that cannot be tried."""
    return DeclarationReport(False, problem, None, "", (), words_of(model, Manner.of(model)), math.nan, 0)


def report_on(
    trial: Trial,
    declared: Outcome,
    *,
    better: Outcome | None = None,
    told: Outcome | None = None,
    of_no_answer: Tensor | None = None,
) -> DeclarationReport:
    """The report on a trial, with what speaks against the declaration, if anything does.

    ``better``: of a declaration that fits better. ``told``: of the network told the times of other levels.
    ``of_no_answer``: the ratio (levels,) to the errors of a network that always answers the mean of its target.
    """
    finding, ok = "no other reading, sign, time, path or range of the data fits better", False
    if better is not None:
        finding = f"with another declaration the error of x̂_0 is {_compared(trial, declared, better)}"
    elif told is not None:
        level = "noisier" if told.manner.later > 0 else "cleaner"
        finding = (
            f"the network denoises better when it is told the time of a {level} level: the error of x̂_0 is then "
            f"{_compared(trial, declared, told)}. The SDE's schedule or the time input is not what it was trained with"
        )
    elif of_no_answer is not None:
        finding = _worse_than_nothing(trial, of_no_answer)
    else:
        ok = True
    t = trial.model.sde.inverse_half_log_snr(trial.half_log_snr)
    columns = [(e.mean(1).sqrt() / trial.spread).tolist() for e in (declared.errors, trial.linear)]
    last = [None] * len(t) if better is None else (better.errors.mean(1).sqrt() / trial.spread).tolist()
    return DeclarationReport(
        ok=ok,
        finding=f"{finding}.",
        better=None if better is None else words_of(trial.model, better.manner),
        note=_note(trial, declared),
        rows=tuple(map(LevelErrors, t.tolist(), trial.half_log_snr.tolist(), *columns, last)),
        declared=words_of(trial.model, declared.manner),
        spread=trial.spread,
        n=trial.places.shape[1],
    )


def _compared(trial: Trial, declared: Outcome, other: Outcome) -> str:
    """The two errors at the level where the other one is better by most."""
    gains, errors = gain(declared.errors, other.errors)
    k = int((gains - SURE * errors).nan_to_num(nan=-math.inf).argmax())
    before, after = (math.sqrt(e[k].mean().item()) / trial.spread for e in (declared.errors, other.errors))
    return f"{_shown(after)} instead of {_shown(before)} at λ = {trial.half_log_snr[k].item():.2f}"


def _worse_than_nothing(trial: Trial, ratio: Tensor) -> str:
    k = int(ratio.argmax())
    return (
        f"at λ = {trial.half_log_snr[k].item():.2f} its error is {ratio[k].item():.3g} times that of a network that "
        "always answers the mean of its target. The prediction, the time input, the SDE or the range of the data is "
        "not what it was trained with, or it has learned nothing yet"
    )


def _note(trial: Trial, declared: Outcome) -> str:
    behind = behind_linear(trial, declared)
    if len(behind) == 0:
        return ""
    first, last = (trial.half_log_snr[k].item() for k in (behind[0], behind[-1]))
    where = f"at λ = {first:.2f}" if len(behind) == 1 else f"at {len(behind)} levels, λ = {first:.2f} to {last:.2f}"
    return f"it is worse than a linear denoiser {where}: undertrained there, or wrongly declared."


def _shown(error: float) -> str:
    return f"{error:.3f}" if error < 100 else f"{error:.3g}"
