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

__all__ = ["Ending", "References", "ending_of", "solve_references"]

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
    wanted = pieces_of(request) if team.main else []
    keys = {piece: piece_key(request, piece, n) for piece in wanted}
    found = {}
    for piece, key in keys.items():
        known = None if key is None else kept.read(key, request.all_models[piece.model].transform)
        if known is not None:
            found[piece] = known
    n, missing = team.agree((n, [piece for piece in wanted if piece not in found]))
    if missing:
        solved = _Work(request, n, grouped(missing)).run(team, store_in, progress)
        for piece, x in solved.items():
            if piece in keys:
                found[piece] = x, "computed"
                kept.write(keys[piece], x)
    return _of_models(found, time.perf_counter() - began) if team.main else None


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


def _joined(done: Parts, solve: ReferenceSolve) -> dict[ReferencePiece, Tensor]:
    """The sets of a solve, all batches together."""
    batches, offset = done.of(solve), 0 if solve.start == 1.0 else 1  # the first is the whole flow from that start
    return {
        piece: torch.cat([torch.from_numpy(batch[f"x{k + offset}"]) for batch in batches])
        for k, piece in enumerate(solve.pieces())
    }


def _flow(model: ScoreModel, solve: ReferenceSolve, steps: int, how: Mapping[str, Any]) -> list[Tensor]:
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
