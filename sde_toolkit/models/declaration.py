"""Is the declaration of a score model right? The error of x̂_0 on perturbed data says so.

1. The network is asked once at every noise level, as declared. Its answers are read in every way that they could be
   meant: other predictions, other signs.
2. It is asked in other ways as well: other times, paths, ranges of the data. A quick check does so only if something
   looks wrong.
3. A declaration is wrong if another one is better at some level by more than chance allows, and nowhere worse; if the
   network is better when it is told the time of another level; or if it is worse than a network that always answers
   the mean.

A network that was trained for a short time is bad in every reading. It is not better in another than the right one.
Errors above that of the best multiple of x_t count as that: noise is no skill.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from sde_toolkit.checks import is_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.alternatives import other_questions, other_times, words_of
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode, refuse_random_numbers
from sde_toolkit.models.perturbed_trial import Errors, Manner, Trial, device_of, readings
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.networks.inside import inner_network

__all__ = ["DeclarationReport", "LevelErrors", "check_declaration", "warn_if_wrong"]

_LEVELS = 20
_BETTER = 0.05  # of an error: what another declaration must be better by, and what "worse" is
_SURE = 3.5  # standard errors
_SUSPECTED = 0.02  # of the mean log error
_SHIFTED = 0.07  # of an error, at two levels: what the time of another level must be better by
_WORSE_THAN_NOTHING = 0.10
_SCREENED = slice(1, None, 3)  # the levels at which all alternatives are tried
_SCREENED_N = 8
_FINALISTS = 5
_TRIED_N = 16  # samples per level with which these are tried first
_LATER = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)
_FEWEST = 16  # samples of data from which anything can be told


@dataclass(frozen=True)
class LevelErrors:
    """Root mean square errors at one noise level, in units of σ_d: of x̂_0 as declared, of the best linear denoiser, and
    as the better declaration reads it (None without one)."""

    t: float
    half_log_snr: float
    error: float
    linear: float
    better: float | None = None


@dataclass(frozen=True)
class DeclarationReport:
    """What :meth:`ScoreModel.check` found.

    Attributes:
        ok: whether nothing speaks against the declaration.
        finding: what was found, in a sentence or two.
        better: the declaration that fits better, as one writes it; None if none is known.
        rows: the errors at each noise level, from clean to noisy.
        declared: the declaration that was tried.
        data_size: σ_d = √E[x_0²] of the data, in the model's space.
        n: samples per level.
    """

    ok: bool
    finding: str
    better: str | None
    rows: tuple[LevelErrors, ...]
    declared: str
    data_size: float
    n: int

    def __str__(self) -> str:
        lines = [f"declared: {self.declared}"]
        if self.rows:
            other = any(row.better is not None for row in self.rows)
            lines.append(f"error of x̂_0 in units of σ_d = {self.data_size:.4g}, {self.n} samples per level")
            lines.append("       t       λ   error  best linear" + "  better" * other)
            for row in self.rows:
                last = "" if row.better is None else f"{_shown(row.better):>8}"
                line = f"{row.t:8.4f}{row.half_log_snr:8.2f}{_shown(row.error):>8}{_shown(row.linear):>13}{last}"
                lines.append(line)
        lines.append(("right as far as can be told: " if self.ok else "WRONG: ") + self.finding)
        if self.better is not None:
            lines.append(f"better: {self.better}")
        return "\n".join(lines)


def check_declaration(
    model: ScoreModel, data: Tensor, *, condition: Any = None, n: int | None = None, seed: int = 0, quick: bool = False
) -> DeclarationReport:
    """See :meth:`sde_toolkit.ScoreModel.check`. ``quick``: as ``compare_solvers`` and the others do at their start."""
    model = innermost(model)
    _check_data(model, data, condition, n, quick)
    declared = words_of(model, Manner.of(model))
    try:
        check_evaluation_mode(model)
    except ArgumentError as error:
        return DeclarationReport(False, f"{error}", None, (), declared, math.nan, 0)
    D = max(1, data[0].numel())
    sizes = [min(256, max(48, 2**15 // D)) if n is None else n]
    if quick:
        sizes.insert(0, min(16, max(8, 2**16 // D)))
    x = model.transform.forward(data.detach())
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for size in sizes[:-1]:
            found = _judged(Trial.of(model, x, condition, _LEVELS, size, seed), x, declared, True, device)
            if found is not None:
                return found
        last = _judged(Trial.of(model, x, condition, _LEVELS, sizes[-1], seed), x, declared, False, device)
        return cast(DeclarationReport, last)  # it is no quick one


def warn_if_wrong(model: ScoreModel, data: Tensor, *, condition: Any = None, stacklevel: int = 3) -> None:
    """A quick check; a warning with its finding if the declaration looks wrong.

    Nothing is done with fewer than 16 samples, and for exact scores.
    """
    if len(data) < _FEWEST or innermost(model).has_exact_score:
        return
    report = check_declaration(model, data, condition=condition, quick=True)
    if not report.ok:
        instead = "" if report.better is None else f" Better: {report.better}."
        remedy = "model.check(data) says more."
        warnings.warn(f"The model's declaration looks wrong: {report.finding}{instead} {remedy}", stacklevel=stacklevel)


def innermost(model: ScoreModel) -> ScoreModel:
    """The score model around the network itself, inside all wrappers."""
    inside = inner_network(model.network)
    while isinstance(inside, ScoreModel):
        model, inside = inside, inner_network(inside.network)
    return model


def _check_data(model: ScoreModel, data: Any, condition: Any, n: Any, quick: bool) -> None:
    if not isinstance(data, Tensor) or data.ndim < 1 or len(data) < _FEWEST:
        found = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ArgumentError("data", found, f"fewer than {_FEWEST} samples", "Pass samples (N, *event), 1,000 or so.")
    if model.event_shape is not None and tuple(data.shape[1:]) != model.event_shape:
        problem = f"the model's samples have shape {model.event_shape}"
        raise ArgumentError("data", tuple(data.shape), problem, "Pass samples of the model's shape.")
    if not bool(torch.isfinite(data).all()):
        raise ArgumentError("data", tuple(data.shape), "some values are not finite", "Leave those samples out.")
    check_condition(condition, len(data))
    if n is not None and not is_count(n, least=4):
        raise ArgumentError("n", n, "not a number of samples per level, at least 4", "Leave it out.")


def _judged(trial: Trial, x: Tensor, declared: str, quick: bool, device: torch.device) -> DeclarationReport | None:
    """The report; None if the trial is a quick one and something looks wrong, so that a larger one has to tell."""
    own = Manner.of(trial.model)
    manners = [own, *(manner for manner in readings(own) if manner != own)]
    try:
        with refuse_random_numbers(device, trial.model.network):
            errors, *others = trial.errors(manners)
    except ArgumentError as error:
        return DeclarationReport(False, str(error), None, (), declared, trial.data_size, trial.x_0.shape[1])
    if quick:
        return None if _suspicious(trial, own, errors, others) else _report(trial, declared, errors, None, "")
    found = [*zip(manners[1:], others, strict=True), *_asked_otherwise(trial, own, errors, x)]
    fitting = [(manner, e) for manner, e in found if manner.later == 0 and _fits_better(trial, errors, e)]
    if fitting:
        manner, e = min(fitting, key=lambda pair: _skill(trial, pair[1]))
        return _report(trial, declared, errors, (manner, e), _of_better(trial, errors, e))
    shifted = [(manner, e) for manner, e in found if manner.later and _better_later(trial, errors, e)]
    if shifted:
        manner, e = min(shifted, key=lambda pair: _skill(trial, pair[1]))
        return _report(trial, declared, errors, None, _of_shift(trial, errors, manner, e))
    worse = _worse_than_nothing(trial, errors)
    return _report(trial, declared, errors, None, worse)


def _suspicious(trial: Trial, own: Manner, errors: Errors, others: list[Errors]) -> bool:
    """Whether it is worth while to ask the network in other ways; free but for a few evaluations at other times."""
    if _worse_than_nothing(trial, errors) or not bool(errors.isfinite().all()):
        return True
    if any(_fits_better(trial, errors, e, 0.5) for e in others):
        return True
    gain, error = _gain(trial.linear, errors)
    if bool((gain < -0.05 - 2 * error).any()):
        return True
    for levels, n, manners in (
        (slice(None, None, 2), 4, [replace(own, later=later) for later in (-2.0, 2.0)]),
        (_SCREENED, 3, [replace(own, time_input=time) for time in other_times(trial.model)]),
    ):
        few, as_declared = trial.part(levels, n), errors[levels, :n]
        least = _skill(few, as_declared) - _SUSPECTED
        if any(_skill(few, e) < least for manner in manners for e in few.errors([manner])):
            return True
    return False


def _asked_otherwise(trial: Trial, own: Manner, errors: Errors, x: Tensor) -> list[tuple[Manner, Errors]]:
    """Errors of the best alternatives, found with few samples at few levels; and of being told other levels' times."""
    few = trial.part(_SCREENED, _SCREENED_N)
    tried: list[tuple[float, Manner]] = []
    seen = {own.question}
    for manner in other_questions(trial.model, x):
        if manner.question not in seen:
            seen.add(manner.question)
            manners = list(readings(manner))
            tried += [(_skill(few, e), one) for one, e in zip(manners, few.errors(manners), strict=True)]
    tried.sort(key=lambda pair: pair[0])
    best = [manner for skill, manner in tried[:_FINALISTS] if skill < 0]
    found, some = [], trial.part(slice(None), _TRIED_N)
    for manner in (*best, *(replace(own, later=steps) for steps in _LATER)):
        (e,) = some.errors([manner])
        gain, _ = _gain(errors[:, :_TRIED_N], e)
        if bool((gain > 0.02).any()):
            found.append((manner, e if e.shape == errors.shape else trial.errors([manner])[0]))
    return found


def _gain(before: Errors, after: Errors) -> tuple[Tensor, Tensor]:
    """log of the ratio of the root mean squares, and its standard error (levels,); NaN where one is not known."""
    a, b = before.mean(1), after.mean(1)
    spread = before / a.unsqueeze(1) - after / b.unsqueeze(1)
    error = 0.5 * spread.std(1) / math.sqrt(before.shape[1])
    gain = 0.5 * torch.log(a / b)
    return gain, torch.where(gain.abs().isinf(), 0.0, error)


def _clipped(trial: Trial, errors: Errors) -> Errors:
    """Errors where they are below those of the best multiple of x_t in the mean, otherwise those of that."""
    worse = ~(errors.mean(1) < trial.trivial.mean(1)) & ~errors.isnan().any(1)
    return torch.where(worse.unsqueeze(1), trial.trivial, errors)


def _skill(trial: Trial, errors: Errors) -> float:
    """Mean over the levels of the log of the clipped error over the trivial one: 0 is none, −0.5 is much.

    A level that an SDE does not reach counts as none.
    """
    gain, _ = _gain(_clipped(trial, errors), trial.trivial)
    return torch.nan_to_num(gain, nan=0.0).mean().item()


def _fits_better(trial: Trial, errors: Errors, other: Errors, sureness: float = 1.0) -> bool:
    """Whether another declaration is better at some level, worse at none, and knows more than nothing."""
    if _skill(trial, other) > -0.02:
        return False
    sensible = other.mean(1) < (1 + _BETTER) ** 2 * trial.trivial.mean(1)
    pairs = ((_clipped(trial, errors), _clipped(trial, other)), (errors, other))
    for (before, after), fewest in zip(pairs, (1, 2), strict=True):
        gain, error = _gain(before, after)
        known = ~gain.isnan()
        better = known & sensible & (gain > _BETTER * sureness) & (gain > _SURE * sureness * error)
        worse = known & (gain < -_BETTER) & (gain < -2 * error)
        if int(better.sum()) >= fewest and not bool(worse.any()):
            return True
    return False


def _better_later(trial: Trial, errors: Errors, other: Errors) -> bool:
    gain, error = _gain(_clipped(trial, errors), _clipped(trial, other))
    return int(((gain > _SHIFTED) & (gain > _SURE * error)).sum()) >= 2


def _worse_than_nothing(trial: Trial, errors: Errors) -> str:
    """The levels at which the network is worse than one that always answers the mean of its target, in words."""
    limit = trial.worst_sensible() * (1 + _WORSE_THAN_NOTHING) ** 2
    mean = errors.mean(1)
    spread = errors.std(1) / math.sqrt(errors.shape[1])
    beyond = (mean > limit) & ~(mean - _SURE * spread < limit)
    if int(beyond.sum()) < 2:
        return ""
    k = int((mean / limit).argmax())
    ratio = math.sqrt((mean[k] / limit[k]).item()) * (1 + _WORSE_THAN_NOTHING)
    return (
        f"at λ = {trial.half_log_snr[k].item():.2f} its error is {ratio:.3g} times that of a network that always "
        "answers the mean of its target. The prediction, the time input, the SDE or the range of the data is not what "
        "it was trained with, or it has learned nothing yet"
    )


def _of_better(trial: Trial, errors: Errors, other: Errors) -> str:
    gain, error = _gain(errors, other)
    k = int(torch.nan_to_num(gain - error, nan=-math.inf).argmax())
    before, after = (math.sqrt(e[k].mean().item()) / trial.data_size for e in (errors, other))
    level = f"λ = {trial.half_log_snr[k].item():.2f}"
    return f"with another declaration the error of x̂_0 is {_shown(after)} instead of {_shown(before)} σ_d at {level}"


def _of_shift(trial: Trial, errors: Errors, manner: Manner, other: Errors) -> str:
    k = int(torch.nan_to_num(_gain(_clipped(trial, errors), _clipped(trial, other))[0], nan=-math.inf).argmax())
    before, after = (math.sqrt(e[k].mean().item()) / trial.data_size for e in (errors, other))
    level = "noisier" if manner.later > 0 else "cleaner"
    return (
        f"the network denoises better when it is told the time of a {level} level: "
        f"{_shown(after)} instead of {_shown(before)} σ_d at λ = {trial.half_log_snr[k].item():.2f}. "
        "The SDE's schedule or the time input is not what it was trained with"
    )


def _report(
    trial: Trial, declared: str, errors: Errors, better: tuple[Manner, Errors] | None, problem: str
) -> DeclarationReport:
    t = trial.model.sde.inverse_half_log_snr(trial.half_log_snr)
    other = None if better is None else better[1]
    columns = [(e.mean(1).sqrt() / trial.data_size).tolist() for e in (errors, trial.linear)]
    last = [None] * len(t) if other is None else (other.mean(1).sqrt() / trial.data_size).tolist()
    rows = map(LevelErrors, t.tolist(), trial.half_log_snr.tolist(), *columns, last)
    words = None if better is None else words_of(trial.model, better[0])
    fine = "no other reading, sign, time, path or range of the data fits better"
    finding = f"{problem or fine}."
    return DeclarationReport(not problem, finding, words, tuple(rows), declared, trial.data_size, trial.x_0.shape[1])


def _shown(error: float) -> str:
    return f"{error:.3f}" if error < 100 else f"{error:.3g}"
