"""Samples without a solver's error: the exact flow and the reverse SDE of a network, solved finely once and kept.

    flow      the probability flow from the noise of sample i, followed to the end: paired with deterministic rows
    sde       the reverse SDE (η = 1) in many steps from the same start; the noise of its steps is its own
    ends      the flow begun and stopped where a row begins and stops, with the row's own last evaluation

The end is t → 0 for exact scores, and the SDE's ``sampling_end`` for networks, which are not followed further; a
Tweedie step finishes. The flow of a network is solved as in :mod:`sde_toolkit.evaluation.endpoint`, that of exact
scores by UniPC of order 3 in float64, the SDE by SA-Solver; both on grids that are dense in t and in λ.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.calibration.reference import fine_grid, reference_end
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.endpoint import endpoint_solver
from sde_toolkit.evaluation.planned_run import PlannedRun
from sde_toolkit.evaluation.reference_cache import ReferenceCache
from sde_toolkit.integrators import Corrected, FrozenX0, Multistep
from sde_toolkit.jobs.fingerprints import (
    behaviour,
    digest,
    digits_of,
    fingerprint_data,
    fixed_events,
    model_fingerprint,
)
from sde_toolkit.jobs.sharing import Part, Parts, cut, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.models.descriptions import OWN, OWN_FUNCTION
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import per_sample_noise
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import Solver, sa_solver

__all__ = ["Ending", "References", "ending_of", "solve_references"]

SDE_STEPS = 100
EXACT_STEPS = 200  # of the flow of exact scores: within 4e-6 of dopri5 at 1e-9 on a ring of eight modes
_NEAR = 1e-9  # times this close are one time


@dataclass(frozen=True)
class Ending:
    """Where a row's grid starts and ends, and whether one more evaluation denoises there."""

    start: float
    end: float
    tweedie: bool


@dataclass(frozen=True, eq=False)
class References:
    """Reference samples (n, *event) of one model, in model space; None for those that no row needs.

    ``ends``: the flow of rows that begin or stop elsewhere than ``flow``, by their endings. ``sources``: where each set
    is from: ``package``, ``cache`` or ``computed``.
    """

    flow: Tensor | None
    sde: Tensor | None
    ends: Mapping[Ending, Tensor] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


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
class _Piece:
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


def solve_references(
    request: ComparisonRequest,
    team: Team | None = None,
    *,
    store_in: str | Path | None = None,
    cache: str | Path | bool = True,
    progress: bool = False,
) -> dict[str, References] | None:
    """The references of every model of a comparison, by its name, for the first seed; None in all but the main process.

    As many samples as the judge compares; without a judge as many as the comparison's endpoints, and no ``sde``.
    Nothing is solved if ``request.references`` is false, or if no flow is wanted (``endpoint_n=0``).

    Args:
        team, store_in: processes that share the work, and the folder for finished parts that they need.
        cache: where references are kept: the user's cache folder, another folder, or nowhere (False).

    Raises:
        ArgumentError: for a ``cache`` of the caller's choice that cannot be written.
    """
    began, team = time.perf_counter(), team or Team()
    kept = ReferenceCache.at(cache)
    if not request.references or request.endpoint_n < 1:
        return {} if team.main else None
    n = min(request.n, request.endpoint_n) if request.judge is None else request.judge.n
    wanted = _pieces(request) if team.main else []
    keys = {piece: _key(request, piece, n) for piece in wanted}
    found = {}
    for piece, key in keys.items():
        known = None if key is None else kept.read(key, request.all_models[piece.model].transform)
        if known is not None:
            found[piece] = known
    n, missing = team.agree((n, [piece for piece in wanted if piece not in found]))
    if missing:
        solved = _Work(request, n, _grouped(missing)).run(team, store_in, progress)
        for piece, x in solved.items():
            if piece in keys:
                found[piece] = x, "computed"
                kept.write(keys[piece], x)
    return _of_models(found, time.perf_counter() - began) if team.main else None


def _of_models(found: Mapping[_Piece, tuple[Tensor, str]], seconds: float) -> dict[str, References]:
    """Sets of samples put together by their models."""
    together: dict[str, References] = {}
    for name in dict.fromkeys(piece.model for piece in found):
        own = {piece: known for piece, known in found.items() if piece.model == name}
        together[name] = References(
            flow=next((x for piece, (x, _) in own.items() if piece.kind == "flow"), None),
            sde=next((x for piece, (x, _) in own.items() if piece.kind == "sde"), None),
            ends={piece.ending: x for piece, (x, _) in own.items() if piece.ending is not None},
            sources={piece.label: source for piece, (_, source) in own.items()},
            seconds=seconds,
        )
    return together


def _pieces(request: ComparisonRequest) -> list[_Piece]:
    """The sets that the rows need."""
    found = []
    for run in request.runs:
        name, model = run.model_name, request.model_of(run)
        found.append(_Piece(name, "flow"))
        if not run.deterministic and request.judge is not None:
            found.append(_Piece(name, "sde"))
        ending = ending_of(run, model)
        if ending is not None:
            found.append(_Piece(name, "end", ending))
    return list(dict.fromkeys(found))


def _key(request: ComparisonRequest, piece: _Piece, n: int) -> dict[str, Any] | None:
    """All that a set of samples depends on; None if part of the model is a plain function, which no hash knows.

    Of somebody's own class the weights are known and a few answers.
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


@torch.no_grad()
def _answers(request: ComparisonRequest, model: ScoreModel) -> list[list[str]]:
    """What a model answers at two events, early, midway and late."""
    events, condition = fixed_events(request.event_shape).float().to(request.device), rows_of(request.condition, 0, 2)
    return [digits_of(model(events, t, condition).output) for t in (0.05, 0.5, 0.95)]


@dataclass(frozen=True)
class _Solve:
    """Sets that one solve finds: the SDE alone, or the flow from one start with all that it passes."""

    model: str
    kind: str
    start: float
    endings: tuple[Ending, ...] = ()

    def pieces(self) -> list[_Piece]:
        ends = [_Piece(self.model, "end", ending) for ending in self.endings]
        return [_Piece(self.model, self.kind), *ends] if self.start == 1.0 else ends


def _grouped(missing: Sequence[_Piece]) -> list[_Solve]:
    """As few solves as there are starts."""
    solves = [_Solve(piece.model, "sde", 1.0) for piece in missing if piece.kind == "sde"]
    flows = [piece for piece in missing if piece.kind != "sde"]
    for model, start in dict.fromkeys((piece.model, piece.start) for piece in flows):
        own = [piece.ending for piece in flows if (piece.model, piece.start) == (model, start)]
        solves.append(_Solve(model, "flow", start, tuple(ending for ending in own if ending is not None)))
    return solves


@dataclass(eq=False)
class _Work:
    """Solves in batches, which processes share."""

    request: ComparisonRequest
    n: int
    solves: Sequence[_Solve]
    bar: Any = None

    def run(self, team: Team, store_in: str | Path | None, progress: bool) -> dict[_Piece, Tensor]:
        """The sets that were solved; nothing in all processes but the main one."""
        parts: list[Part] = []
        for solve in self.solves:
            cost = SDE_STEPS
            if solve.kind == "flow":
                exact = self.request.all_models[solve.model].has_exact_score
                cost = EXACT_STEPS if exact else 2 * self.request.endpoint_steps
            for first, last in cut(self.n, self.request.batch_size):
                parts.append(Part(len(parts), first, last, solve, (last - first) * cost))
        store = None
        if store_in is not None:
            work = {"work": "references/1", "n": self.n, "solves": fingerprint_data(list(self.solves))}
            model = [model_fingerprint(model) for model in self.request.all_models.values()]
            store = PartStore(Path(store_in) / "references", {**work, "model": digest({"models": model})}, "output")

        def begin(own: Sequence[Part]) -> None:
            total = round(sum(part.cost for part in own))
            self.bar = progress_bar(total, "exact flow and SDE", enabled=progress and team.main)

        done = do_parts(parts, self._compute, store=store, team=team, begin=begin)
        self.bar.close()
        if done is None:
            return {}
        if store is not None:
            store.clear()
        return {piece: x for solve in self.solves for piece, x in _joined(done, solve).items()}

    def _compute(self, part: Part) -> Arrays:
        request, solve, how = self.request, part.what, {}
        model = request.all_models[solve.model]
        how = {
            "shape": (part.last - part.first, *request.event_shape),
            "seed": request.seed,
            "first_index": part.first,
            "condition": rows_of(request.condition, part.first, part.last),
            "device": request.device,
        }
        if solve.kind == "sde":
            grid = fine_grid(model.sde, SDE_STEPS, end=reference_end(model), sigma_data=model.sigma_data)
            sets = [sample(model, sa_solver(), grid, tweedie=True, **how).x]
        else:
            sets = _flow(model, solve, request.endpoint_steps, how)
        self.bar.update(round(part.cost))
        return {f"x{k}": x.float().cpu().numpy() for k, x in enumerate(sets)}


def _joined(done: Parts, solve: _Solve) -> dict[_Piece, Tensor]:
    """The sets of a solve, all batches together."""
    batches, offset = done.of(solve), 0 if solve.start == 1.0 else 1  # the first is the whole flow from that start
    return {
        piece: torch.cat([torch.from_numpy(batch[f"x{k + offset}"]) for batch in batches])
        for k, piece in enumerate(solve.pieces())
    }


def _flow(model: ScoreModel, solve: _Solve, steps: int, how: Mapping[str, Any]) -> list[Tensor]:
    """The flow from a start to its end, and where it is stopped for each ending."""
    last = reference_end(model)
    if model.has_exact_score:
        solver, dtype = Solver("fine flow", 0.0, Corrected(Multistep(3, FrozenX0()))), torch.float64
        times = fine_grid(model.sde, EXACT_STEPS, start=solve.start, end=last, sigma_data=model.sigma_data)
    else:
        solver, intervals, dtype = endpoint_solver(model, steps)
        times = grids.quadratic(model.sde, intervals, start=solve.start, end=last)
    for ending in solve.endings:
        if (times - ending.end).abs().min() > _NEAR:
            times = torch.cat([times, torch.tensor([ending.end], dtype=times.dtype)])
    times = times.sort(descending=True).values
    done = sample(model, solver, times, tweedie=True, trajectory=bool(solve.endings), dtype=dtype, **how)
    found = [done.x]
    for ending in solve.endings:
        place = int((times - ending.end).abs().argmin())
        x = cast(Tensor, done.trajectory)[place]
        with torch.no_grad():
            found.append(model(x, times[place], how["condition"]).x_0 if ending.tweedie else x)
    return found
