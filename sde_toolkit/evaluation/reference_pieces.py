"""Which reference samples a comparison needs, what each set depends on, and which are solved together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sde_toolkit.calibration.reference import reference_end
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.planned_run import PlannedRun
from sde_toolkit.jobs.fingerprints import behaviour, digits_of, fingerprint_data, fixed_events, model_fingerprint
from sde_toolkit.models.descriptions import OWN, OWN_FUNCTION
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import per_sample_noise
from sde_toolkit.sampling.loop import rows_of

__all__ = [
    "EXACT_STEPS",
    "SDE_STEPS",
    "Ending",
    "ReferencePiece",
    "ReferenceSolve",
    "answers_asked",
    "ending_of",
    "grouped",
    "piece_key",
    "pieces_of",
]

SDE_STEPS = 100
EXACT_STEPS = 200  # of the flow of exact scores: within 4e-6 of dopri5 at 1e-9 on a ring of eight modes
_NEAR = 1e-9  # times this close are one time
_ASKED_EVENTS, _ASKED_TIMES = 2, (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Ending:
    """Where a row's grid starts and ends, and whether one more evaluation denoises there."""

    start: float
    end: float
    tweedie: bool


def ending_of(run: PlannedRun, model: ScoreModel) -> Ending | None:
    """Where the flow begins and stops for a run; None where that is the whole flow.

    A run that goes on to t = 0, or past the end of the flow of a network, stops with that flow.
    """
    start, end, last = run.times[0], run.times[-1], reference_end(model)
    whole = end == 0 or end < last - _NEAR or (run.tweedie and end <= last + _NEAR)
    if whole and abs(start - 1) <= _NEAR:
        return None
    return Ending(start, last if whole else end, run.tweedie or whole)


@dataclass(frozen=True)
class ReferencePiece:
    """One set of samples: ``flow``, ``sde``, or the flow of an ending."""

    model: str
    kind: str
    ending: Ending | None = None

    @property
    def start(self) -> float:
        return 1.0 if self.ending is None else self.ending.start

    @property
    def label(self) -> str:
        return self.kind if self.ending is None else f"{self.kind} {self.ending}"


def pieces_of(request: ComparisonRequest) -> list[ReferencePiece]:
    """The sets that the rows need."""
    found = []
    for run in request.runs:
        if not run.samples_the_model:  # it has no flow of its own
            continue
        name, model = run.model_name, request.model_of(run)
        found.append(ReferencePiece(name, "flow"))
        if not run.deterministic and request.judge is not None:
            found.append(ReferencePiece(name, "sde"))
        ending = ending_of(run, model)
        if ending is not None:
            found.append(ReferencePiece(name, "end", ending))
    return list(dict.fromkeys(found))


def piece_key(request: ComparisonRequest, piece: ReferencePiece, n: int) -> dict[str, Any] | None:
    """All that a set of samples depends on; None if part of the model is a plain function, which no hash knows.

    Of somebody's own class the weights are known and a few answers: see :func:`answers_asked`.
    """
    model = request.all_models[piece.model]
    described = model_fingerprint(model)
    text = json.dumps(described)
    if f'"{OWN_FUNCTION}"' in text or behaviour(model, request.event_shape):
        return None
    noise = per_sample_noise(request.seed, 0, (2, 4))  # whatever the streams are made of
    draws = [[round(1000 * number) for number in noise().flatten().tolist()] for _ in range(3)]
    steps = EXACT_STEPS if model.has_exact_score else request.endpoint_steps
    method = {"sde": SDE_STEPS} if piece.kind == "sde" else {"flow": steps}
    return {
        "work": "references/1",
        "model": described,
        "answers": _answers(request, model) if f'"{OWN}"' in text and not model.has_exact_score else None,
        "noise": draws,
        "seed": request.seed,
        "n": n,
        "condition": fingerprint_data(rows_of(request.condition, 0, n)),
        "set": fingerprint_data(piece.ending) or piece.kind,
        "method": method,
    }


def answers_asked(model: ScoreModel) -> int:
    """Evaluations, of one sample each, that a key of this model takes."""
    if model.has_exact_score or f'"{OWN}"' not in json.dumps(model_fingerprint(model)):
        return 0
    return _ASKED_EVENTS * len(_ASKED_TIMES) * model.evaluations_inside


@torch.no_grad()
def _answers(request: ComparisonRequest, model: ScoreModel) -> list[list[str]]:
    """What a model answers at two events, early, midway and late."""
    events = fixed_events(request.event_shape).float().to(request.device)
    condition = rows_of(request.condition, 0, _ASKED_EVENTS)
    return [digits_of(model(events, t, condition).output) for t in _ASKED_TIMES]


@dataclass(frozen=True)
class ReferenceSolve:
    """Sets that one solve finds: the SDE alone, or the flow from one start with all that it passes."""

    model: str
    kind: str
    start: float
    endings: tuple[Ending, ...] = ()

    def pieces(self) -> list[ReferencePiece]:
        ends = [ReferencePiece(self.model, "end", ending) for ending in self.endings]
        return [ReferencePiece(self.model, self.kind), *ends] if self.start == 1.0 else ends


def grouped(missing: Sequence[ReferencePiece]) -> list[ReferenceSolve]:
    """As few solves as there are starts."""
    solves = [ReferenceSolve(piece.model, "sde", 1.0) for piece in missing if piece.kind == "sde"]
    flows = [piece for piece in missing if piece.kind != "sde"]
    for model, start in dict.fromkeys((piece.model, piece.start) for piece in flows):
        own = [piece.ending for piece in flows if (piece.model, piece.start) == (model, start)]
        solves.append(ReferenceSolve(model, "flow", start, tuple(ending for ending in own if ending is not None)))
    return solves
