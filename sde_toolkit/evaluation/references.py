"""Samples without a solver's error: the exact flow and the reverse SDE of a network, solved finely once and kept.

    flow      the probability flow from the noise of sample i, followed to the end: paired with deterministic rows
    sde       the reverse SDE (η = 1) in many steps from the same start; the noise of its steps is its own
    ends      the flow begun and stopped where a row begins and stops, with the row's own last evaluation

The end is t → 0 for exact scores, and the SDE's ``sampling_end`` for networks, which are not followed further; a
Tweedie step finishes. The flow of a network is solved as in :mod:`sde_toolkit.evaluation.endpoint`, that of exact
scores by UniPC of order 3 in float64, the SDE by SA-Solver; both on grids that are dense in t and in λ.
"""

from __future__ import annotations

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
from sde_toolkit.evaluation.reference_cache import ReferenceCache
from sde_toolkit.evaluation.reference_pieces import (
    EXACT_STEPS,
    SDE_STEPS,
    Ending,
    ReferencePiece,
    ReferenceSolve,
    answers_asked,
    ending_of,
    grouped,
    piece_key,
    pieces_of,
)
from sde_toolkit.integrators import Corrected, FrozenX0, Multistep
from sde_toolkit.jobs.fingerprints import (
    digest,
    fingerprint_data,
    model_fingerprint,
)
from sde_toolkit.jobs.sharing import Part, Parts, cut, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import Solver, sa_solver

__all__ = ["Ending", "ReferencePlan", "References", "ending_of", "plan_references", "solve_references"]

_NEAR = 1e-9  # times this close are one time


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


@dataclass(frozen=True, eq=False)
class ReferencePlan:
    """What is left to do for the references of a comparison: ``found`` are those that are kept, with their source.

    ``n``: samples of each set. ``keys``: of every set that is wanted, None for one that cannot be kept. ``solves``:
    what finds the others. ``asked``: evaluations, of one sample each, that the keys took.
    """

    n: int
    keys: Mapping[ReferencePiece, Mapping[str, Any] | None]
    found: Mapping[ReferencePiece, tuple[Tensor, str]]
    solves: tuple[ReferenceSolve, ...]
    asked: int = 0

    def evaluations(self, request: ComparisonRequest) -> int:
        """Evaluations of the network, of one sample each: those of the keys, and of the solves."""
        return self.asked + self.n * sum(solve_cost(request, solve) for solve in self.solves)


def plan_references(request: ComparisonRequest, cache: str | Path | bool = True) -> ReferencePlan:
    """Look up what is kept of the references of a comparison, for the first seed.

    As many samples as the judge compares; without a judge as many as the comparison's endpoints, and no ``sde``.
    Nothing is wanted if ``request.references`` is false, or if no flow is (``endpoint_n=0``).

    Args:
        cache: where references are kept: the user's cache folder, another folder, or nowhere (False).

    Raises:
        ArgumentError: for a ``cache`` of the caller's choice that cannot be written.
    """
    kept = ReferenceCache.at(cache)
    n = min(request.n, request.endpoint_n) if request.judge is None else request.judge.n
    wanted = pieces_of(request) if request.references and request.endpoint_n > 0 else []
    keys, found = {}, {}
    for piece in wanted:
        keys[piece] = key = piece_key(request, piece, n)
        known = None if key is None else kept.read(key, request.all_models[piece.model].transform)
        if known is not None:
            found[piece] = known
    solves = tuple(grouped([piece for piece in wanted if piece not in found]))
    return ReferencePlan(n, keys, found, solves, sum(answers_asked(request.all_models[p.model]) for p in wanted))


def solve_references(
    request: ComparisonRequest,
    team: Team | None = None,
    *,
    plan: ReferencePlan | None = None,
    store_in: str | Path | None = None,
    cache: str | Path | bool = True,
    progress: bool = False,
) -> dict[str, References] | None:
    """The references of every model of a comparison, by its name; None in all but the main process.

    Args:
        team, store_in: processes that share the work, and the folder for finished parts that they need.
        plan: from :func:`plan_references`; made here by default.
        cache: where references are kept: the user's cache folder, another folder, or nowhere (False).

    Raises:
        ArgumentError: for a ``cache`` of the caller's choice that cannot be written.
    """
    began, team = time.perf_counter(), team or Team()
    if team.main and plan is None:
        plan = plan_references(request, cache)
    n, solves = team.agree((plan.n, plan.solves) if plan is not None else (0, ()))
    solved = _Work(request, n, solves).run(team, store_in, progress) if solves else {}
    if plan is None:
        return None
    kept, found = ReferenceCache.at(cache), dict(plan.found)
    for piece, x in solved.items():
        if piece in plan.keys:
            found[piece] = x, "computed"
            kept.write(plan.keys[piece], x)
    return _of_models(found, time.perf_counter() - began)


def _of_models(found: Mapping[ReferencePiece, tuple[Tensor, str]], seconds: float) -> dict[str, References]:
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


@dataclass(eq=False)
class _Work:
    """Solves in batches, which processes share."""

    request: ComparisonRequest
    n: int
    solves: Sequence[ReferenceSolve]
    bar: Any = None

    def run(self, team: Team, store_in: str | Path | None, progress: bool) -> dict[ReferencePiece, Tensor]:
        """The sets that were solved; nothing in all processes but the main one."""
        parts: list[Part] = []
        for solve in self.solves:
            cost = solve_cost(self.request, solve)
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
            fine = _fine_sde(model)
            sets = [sample(model, fine.solver, fine.times, tweedie=True, **how).x]
        else:
            sets = _flow(model, solve, request.endpoint_steps, how)
        self.bar.update(round(part.cost))
        return {f"x{k}": x.float().cpu().numpy() for k, x in enumerate(sets)}


def _joined(done: Parts, solve: ReferenceSolve) -> dict[ReferencePiece, Tensor]:
    """The sets of a solve, all batches together."""
    batches, offset = done.of(solve), 0 if solve.start == 1.0 else 1  # the first is the whole flow from that start
    return {
        piece: torch.cat([torch.from_numpy(batch[f"x{k + offset}"]) for batch in batches])
        for k, piece in enumerate(solve.pieces())
    }


@dataclass(frozen=True, eq=False)
class _FineRun:
    """A solver, its times, and the precision of the states."""

    solver: Solver
    times: Tensor
    dtype: torch.dtype = torch.float32

    @property
    def nfe(self) -> int:
        """Evaluations of the model, the last one included, which denoises."""
        return (self.solver.integrator.evals_per_step or 1) * (len(self.times) - 1) + 1


def _fine_sde(model: ScoreModel) -> _FineRun:
    times = fine_grid(model.sde, SDE_STEPS, end=reference_end(model), sigma_data=model.sigma_data)
    return _FineRun(sa_solver(), times)


def _fine_flow(model: ScoreModel, solve: ReferenceSolve, steps: int) -> _FineRun:
    """The times of all endings are among those of the flow."""
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
    return _FineRun(solver, times.sort(descending=True).values, dtype)


def solve_cost(request: ComparisonRequest, solve: ReferenceSolve) -> int:
    """Evaluations of networks for each sample of a solve."""
    model = request.all_models[solve.model]
    if solve.kind == "sde":
        return model.evaluations_inside * _fine_sde(model).nfe
    fine = _fine_flow(model, solve, request.endpoint_steps)
    return model.evaluations_inside * (fine.nfe + sum(ending.tweedie for ending in solve.endings))


def _flow(model: ScoreModel, solve: ReferenceSolve, steps: int, how: Mapping[str, Any]) -> list[Tensor]:
    """The flow from a start to its end, and where it is stopped for each ending."""
    fine = _fine_flow(model, solve, steps)
    keep = bool(solve.endings)
    done = sample(model, fine.solver, fine.times, tweedie=True, trajectory=keep, dtype=fine.dtype, **how)
    found = [done.x]
    for ending in solve.endings:
        place = int((fine.times - ending.end).abs().argmin())
        x = cast(Tensor, done.trajectory)[place]
        with torch.no_grad():
            found.append(model(x, fine.times[place], how["condition"]).x_0 if ending.tweedie else x)
    return found
