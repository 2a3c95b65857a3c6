"""Is the declaration of a score model right? The error of x̂_0 on perturbed data says so.

1. The network is asked as declared, at twenty noise levels. Its answers are read in every way that they could be meant:
   other predictions, other signs.
2. It is asked in other ways too: other times, paths, sizes and ranges of the data. What looks best on a few samples is
   tried again on others, beside the declaration (:mod:`sde_toolkit.models.evidence`).
3. The declaration is wrong if another one fits better, if the network denoises better when it is told the time of
   another level, or if it is worse than no answer.

A network that was trained for a short time is bad in every reading, but it is not better in a wrong one. To be worse
than a linear denoiser is a note, and by itself no sign of a wrong declaration.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import is_count
from sde_toolkit.errors import ArgumentError, warn_caller
from sde_toolkit.models.alternatives import few_questions, other_questions
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.declaration_report import DeclarationReport, report_on, without_trial
from sde_toolkit.models.evaluation_mode import check_evaluation_mode, refuse_random_numbers
from sde_toolkit.models.evidence import SURE, Evidence, best_of, worse_than_no_answer
from sde_toolkit.models.perturbed_trial import Manner, Outcome, Trial, device_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.networks.inside import inner_network

__all__ = ["DeclarationWarning", "check_declaration", "warn_if_wrong"]

_LEVELS = 20
_SCREENED = slice(0, None, 2)  # the levels at which other questions are tried first
_SCREENED_N, _FEW_N = 8, 6  # samples there
_FINALISTS = 6
_TRIED_N = 16  # samples per level with which these are tried next
_LATER = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)
_FEWEST = 16  # samples of data from which anything can be told
_SUSPECTED = 0.01, 0.75  # the mean gain in skill in a quick check, and the same in its standard errors


class DeclarationWarning(UserWarning):
    """A model's declaration looks wrong."""


def check_declaration(
    model: ScoreModel, data: Tensor, *, condition: Any = None, n: int | None = None, seed: int = 0, quick: bool = False
) -> DeclarationReport:
    """See :meth:`sde_toolkit.ScoreModel.check`.

    ``quick``: at most twenty evaluations of small batches, more only if these speak against the declaration.
    """
    model = innermost(model)
    _check_arguments(model, data, condition, n, seed)
    try:
        check_evaluation_mode(model)
    except ArgumentError as error:
        return without_trial(model, str(error))
    x = model.transform.forward(data.detach().cpu())
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if x.std().item() == 0:
        raise ArgumentError("data", tuple(data.shape), "all values are the same", "Pass samples that differ.")
    D = max(1, data[0].numel())
    n = min(256, max(8, 2**16 // D)) if n is None else n
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if quick:
            trial = Trial.of(model, x, condition, _LEVELS, min(16, n), seed, 256)
            try:
                with refuse_random_numbers(device, model.network):
                    outcomes = trial.ask(Manner.of(model))
            except ArgumentError as error:
                return without_trial(model, str(error))
            if not _suspicious(trial, outcomes):
                return report_on(trial, outcomes[0])
        trial = Trial.of(model, x, condition, _LEVELS, n, seed, 1024)
        screen = Trial.of(model, x, condition, _LEVELS, _SCREENED_N, seed + 1, 64).part(_SCREENED, _SCREENED_N)
        try:
            with refuse_random_numbers(device, model.network):
                outcomes = trial.ask(Manner.of(model), fit=True)
        except ArgumentError as error:
            return without_trial(model, str(error))
        return _judged(trial, outcomes, screen, x)


def warn_if_wrong(model: ScoreModel, data: Tensor, *, condition: Any = None) -> None:
    """A quick check; a :class:`DeclarationWarning` with its finding if the declaration looks wrong.

    Nothing is done with fewer than 16 samples, with samples that are all the same, and for exact scores.
    """
    if len(data) < _FEWEST or innermost(model).has_exact_score or not bool((data != data[:1]).any()):
        return
    report = check_declaration(model, data, condition=condition, quick=True)
    if not report.ok:
        instead = "" if report.better is None else f" Better: {report.better}."
        remedy = "model.check(data) says more; check_declaration=False leaves this check out."
        text = f"The model's declaration looks wrong: {report.finding}{instead} {remedy}"
        warn_caller(text, DeclarationWarning)


def innermost(model: ScoreModel) -> ScoreModel:
    """The score model around the network itself, inside all wrappers."""
    inside = inner_network(model.network)
    while isinstance(inside, ScoreModel):
        model, inside = inside, inner_network(inside.network)
    return model


def _check_arguments(model: ScoreModel, data: Any, condition: Any, n: Any, seed: Any) -> None:
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
    if not is_count(seed, least=0):
        raise ArgumentError("seed", seed, "not a seed of random numbers", "Pass a whole number from 0 on.")


def _suspicious(trial: Trial, outcomes: list[Outcome]) -> bool:
    """Whether few samples speak against the declaration: other readings of the answers, and other questions."""
    declared, *others = outcomes
    if worse_than_no_answer(trial, declared) is not None:
        return True
    if any(Evidence(trial, declared, other).is_better(0.6 * SURE) for other in others):
        return True
    few, own = trial.part(_SCREENED, _FEW_N), declared.part(_SCREENED, _FEW_N)
    for manner in few_questions(trial.model, trial.data, cautious=device_of(trial.model).type == "cuda"):
        _, overall, error = best_of(few, own, few.ask(manner))
        if overall > max(_SUSPECTED[0], _SUSPECTED[1] * error):
            return True
    return False


def _judged(trial: Trial, outcomes: list[Outcome], screen: Trial, x: Tensor) -> DeclarationReport:
    declared, *others = outcomes
    some, own = trial.part(slice(None), _TRIED_N), declared.part(slice(None), _TRIED_N)
    for manner in _finalists(screen, declared.manner, x):
        best, overall, error = best_of(some, own, some.ask(manner))
        if overall > -error:
            others += trial.ask(best.manner, fit=True)
    evidence = [Evidence(trial, declared, other) for other in others]
    fitting = [one for one in evidence if one.is_better()]
    if fitting:
        most = max(fitting, key=lambda one: one.overall)
        alike = [one for one in fitting if one.overall > most.overall - SURE * most.error]
        return report_on(trial, declared, better=min(alike, key=lambda one: _changes(declared, one)).other)
    for later in _LATER:
        manner = replace(declared.manner, later=later)
        if Evidence(some, own, some.ask(manner)[0]).gains.max() > 0.02:
            told = trial.ask(manner, fit=True)[0]
            if Evidence(trial, declared, told).is_better_later():
                return report_on(trial, declared, told=told)
    return report_on(trial, declared, of_no_answer=worse_than_no_answer(trial, declared))


def _changes(declared: Outcome, one: Evidence) -> tuple[int, float]:
    """How many parts of the declaration differ; of as many, the better fit comes first."""
    own, other = (vars(outcome.manner).values() for outcome in (declared, one.other))
    return sum(a is not b and a != b for a, b in zip(own, other, strict=True)), -one.overall


def _finalists(screen: Trial, own: Manner, x: Tensor) -> list[Manner]:
    """Other questions, in the best of their readings: those that do best on few samples, and better than declared."""
    declared = screen.ask(own)[0]
    tried: list[tuple[float, Manner]] = []
    for manner in other_questions(screen.model, x):
        if manner.question == own.question:
            continue
        best, overall, error = best_of(screen, declared, screen.ask(manner))
        if overall > -error:
            tried.append((overall, best.manner))
    tried.sort(key=lambda pair: -pair[0])
    return [manner for _, manner in tried[:_FINALISTS]]
