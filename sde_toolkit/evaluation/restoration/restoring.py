"""The work of a restoration, cut into parts: one method after one measurement."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sde_toolkit.errors import ArgumentError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.evaluation.restoration.restoration_request import RestorationRequest
from sde_toolkit.evaluation.restoration.restoration_results import Restoration, Restored
from sde_toolkit.jobs.fingerprints import behaviour, fingerprint_data, model_fingerprint, tensor_digest
from sde_toolkit.jobs.sharing import Part, Parts, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample

__all__ = ["restore", "restore_in_team"]

_PILOT = 2  # samples on which the products of an evaluation are counted
_PILOT_STEPS = 10
_FAILURES = (NonFiniteError, MaxEvaluationsError)


def restore(request: RestorationRequest, *, progress: bool = False) -> Restoration:
    """Restore every measurement by every method, in this process."""
    return cast(Restoration, restore_in_team(request, progress=progress))  # a team of one is its own main process


def restore_in_team(
    request: RestorationRequest,
    *,
    team: Team | None = None,
    store_in: str | Path | None = None,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> Restoration | None:
    """:func:`restore`, its parts shared by the processes of ``team``; None in all but the main one.

    Parts do not depend on the number of processes. ``store_in``: the folder for finished parts; an interrupted
    restoration continues from them.
    """
    began, team = time.perf_counter(), team or Team()
    work = _Work(request, team.agree(_evaluations(request)))
    store = None if store_in is None else PartStore(Path(store_in), work.fingerprint(), "output")
    done = do_parts(
        work.parts(),
        work.compute,
        store=store,
        team=team,
        begin=lambda own: work.begin(own, progress and team.main),
        say=say,
    )
    work.bar.close()
    if done is None:
        return None
    restored = tuple(_restored(request, name, done) for name in request.methods)
    return Restoration(
        request=request,
        restored=restored,
        seconds=time.perf_counter() - began,
        processes=team.size,
        store=store,
    )


def _evaluations(request: RestorationRequest) -> dict[str, int]:
    """For each method its evaluations: as asked, or as many as the cost allows, by a short run.

    Raises:
        ArgumentError: for a cost that is too small for a step.
    """
    if request.cost is None:
        return dict.fromkeys(request.methods, request.steps.nfe)
    return {name: _within_cost(request, name, request.cost) for name in request.methods}


def _within_cost(request: RestorationRequest, name: str, cost: int) -> int:
    nfe = min(_PILOT_STEPS * request.run(name, 0)[1].evals_per_step, cost)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            done = _sampled(request, name, 0, nfe, _PILOT)
        except _FAILURES:  # and so it will in the work, which reports it
            return cost
    found = max(1, int(cost / (1 + done.products / done.nfe)))
    try:
        request.run(name, 0, found)
    except ArgumentError as error:
        problem = f"{name} takes {done.products} products for {done.nfe} evaluations ({error})".rstrip(".")
        raise ArgumentError("cost", cost, problem, "Raise it.") from None
    return found


def _sampled(
    request: RestorationRequest,
    name: str,
    i: int,
    nfe: int,
    n: int,
    callback: Callable[[Any], None] | None = None,
) -> Any:
    """n samples of one method after measurement i."""
    model, run = request.run(name, i, nfe)
    return sample(
        model,
        run.solver,
        run.grid,
        shape=(n, *request.truth.shape[1:]),
        seed=request.seed,
        first_index=i * request.n,
        condition=rows_of(request.condition, 0, n),
        tweedie=run.tweedie,
        device=request.device,
        callback=callback,
    )


@dataclass(eq=False)
class _Work:
    """The parts; ``evaluations``: of each method."""

    request: RestorationRequest
    evaluations: dict[str, int]
    failed: set[str] = field(default_factory=set)
    bar: Any = None

    def fingerprint(self) -> dict[str, Any]:
        """What the parts depend on."""
        request, steps = self.request, self.request.steps
        settings = {name: getattr(request, name) for name in ("n", "seed", "condition", "noise_std", "task")}
        runs = {name: request.run(name, 0, nfe)[1] for name, nfe in self.evaluations.items()}
        planned = {name: [request.methods[name], run.grid, run.solver, run.tweedie] for name, run in runs.items()}
        return {
            "work": "restoration/2",
            "model": model_fingerprint(request.model),
            "behaviour": behaviour(request.model, tuple(request.truth.shape[1:])),
            "truth": tensor_digest(request.truth),
            "settings": fingerprint_data({**settings, "solver": steps.name, "grid": steps.grid_name}),
            "methods": fingerprint_data(planned),
        }

    def parts(self) -> list[Part]:
        """Every method after every measurement; ``what`` is both."""
        found: list[Part] = []
        for name, nfe in self.evaluations.items():
            for i in range(len(self.request.truth)):
                found.append(Part(len(found), 0, self.request.n, (name, i), nfe))
        return found

    def begin(self, own: Sequence[Part], progress: bool) -> None:
        """Sample once coarsely, so that the first row's wall time has no one-time costs."""
        total = sum(self._steps(part) for part in own)
        self.bar = progress_bar(total, "restoring", enabled=progress)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of this run is said of the whole one, too
            for name in dict.fromkeys(part.what[0] for part in own):
                few = min(1 + 4 * self.request.run(name, 0)[1].evals_per_step, self.evaluations[name])
                with contextlib.suppress(*_FAILURES, ArgumentError):
                    _sampled(self.request, name, 0, few, _PILOT)

    def _steps(self, part: Part) -> int:
        name, i = part.what
        return len(self.request.run(name, i, self.evaluations[name])[1].grid) - 1

    def compute(self, part: Part) -> Arrays:
        """The samples of a part and what they took; for a method that fails, the reason."""
        name, i = part.what
        if name in self.failed:
            return {"failure": np.array("it failed after an earlier measurement")}
        self.bar.set_postfix_str(f"{name}, {i + 1} of {len(self.request.truth)}")
        nfe, n = self.evaluations[name], self.request.n
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                done = _sampled(self.request, name, i, nfe, n, lambda step: self.bar.update(1))
        except _FAILURES as error:
            self.failed.add(name)
            return {"failure": np.array(str(error))}
        numbers = {key: np.array(getattr(done, key)) for key in ("nfe", "products", "seconds", "network_seconds")}
        return {"x": done.x.cpu().numpy(), "notes": np.array("\n".join(_different(caught))), **numbers}


def _different(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """The messages of warnings, one of those that differ in their numbers alone."""
    messages = [" ".join(str(warning.message).split()) for warning in caught]
    return list({re.sub(r"\d+", "", message): message for message in reversed(messages)}.values())


def _restored(request: RestorationRequest, name: str, done: Parts) -> Restored:
    """What a method has restored after all measurements."""
    arrays = [done.of((name, i))[0] for i in range(len(request.truth))]
    failures = [str(part["failure"]) for part in arrays if "failure" in part]
    if failures:
        return Restored(name, torch.empty(0, request.n, *request.truth.shape[1:]), 0, 0, 0.0, 0.0, failures[0])
    x = torch.stack([torch.from_numpy(part["x"]) for part in arrays])
    return Restored(
        name,
        x,
        nfe=max(int(part["nfe"]) for part in arrays),
        products=max(int(part["products"]) for part in arrays),
        seconds=sum(float(part["seconds"]) for part in arrays),
        network_seconds=sum(float(part["network_seconds"]) for part in arrays),
        notes=tuple(dict.fromkeys(note for part in arrays for note in str(part["notes"]).splitlines())),
    )
