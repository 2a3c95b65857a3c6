"""The likelihood of a data set: computed in parts by one process or several. An interrupted evaluation continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.density.density_jobs import Job, Rehearsal, Worker, plan_jobs, rehearse
from sde_toolkit.evaluation.density.density_request import LikelihoodRequest, fingerprint
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.declaration import warn_if_wrong
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.arguments import check_model, check_shape, device_of

__all__ = ["DatasetLikelihood", "EndTime", "evaluate_likelihood"]

_SUMMED = ("seconds", "elbo_seconds", "discrete_seconds")  # of the scalars; the others are the same in all parts


@dataclass(frozen=True, eq=False)
class EndTime:
    """The first samples at one end time, nats of the first draw (k,) each.

    ``truncation``: the estimate of log p_end(x) − log p_0(x) there; ``shift``: ``nats`` less those at the request's own
    end, the same noise and probes throughout.
    """

    end: float
    nats: np.ndarray
    truncation: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class DatasetLikelihood:
    """Everything that was found. Values in nats; log P of integers where there are levels, log densities otherwise.

    Attributes:
        values: per sample, (n, ...): ``nats`` (n, K) from every draw, ``importance_weighted``, ``probe_error``,
            ``dequantisation_error``, ``quadrature_error``, ``truncation``, ``prior_cost``, ``rejected``; of the bounds
            ``elbo_nats``, ``elbo_error``, the terms ``elbo_prior``, ``elbo_diffusion``, ``elbo_reconstruction``, and
            the same of ``discrete``. Only what the request asked for is there.
        numbers: of all parts together: evaluations ``nfe``, ``divergence_nfe``, ``elbo_nfe``, ``discrete_nfe`` per
            sample, and seconds of computing.
        ends: the end times, the largest first.
        finer: the same samples at the request's own end with twice the evaluations and nodes; None if not asked for.
        found: parts that were there already; ``computed``: parts that were not.
    """

    model: ScoreModel
    x: Tensor
    request: LikelihoodRequest
    rehearsal: Rehearsal
    divergence: Any
    values: Arrays
    numbers: dict[str, float]
    ends: tuple[EndTime, ...]
    finer: EndTime | None
    found: int
    computed: int
    processes: int
    seconds: float

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.x)

    @property
    def dimension(self) -> int:
        """Elements of a sample."""
        return self.x[0].numel()


def evaluate_likelihood(
    model: ScoreModel,
    x: Tensor,
    request: LikelihoodRequest,
    directory: str | Path,
    *,
    team: Team | None = None,
    device: torch.device | str | None = None,
    check_declaration: bool = True,
    progress: bool = False,
    say: Callable[[str], None] = print,
    name: str = "directory",
) -> DatasetLikelihood | None:
    """Evaluate the data x (n, *event), in data space; None in all processes but the main one.

    Args:
        directory: gets ``request.json`` and ``parts/``. Parts that are there already are used, see :class:`PartStore`.
        team: the processes that share the work; alone by default.
        device: where to compute, the model's own by default; the model is moved there.
        check_declaration: warn if the model's declaration does not fit the data (:meth:`ScoreModel.check`).
        say: gets messages about parts that were found or damaged.
        name: what the directory is called in error messages.

    The result does not depend on the number of processes or on interruptions: samples have streams of their own, and
    the parts are always the same.

    Raises:
        ArgumentError: for arguments that do not fit together, and for a directory with parts of another request.
    """
    began = time.perf_counter()
    check_model(model)
    check_shape(model, "data", tuple(x.shape), None)
    _check_levels(x, request)
    check_condition(request.condition, len(x))
    check_evaluation_mode(model)
    team = team or Team()
    place = torch.device(device) if device is not None else device_of(model, None)
    model = model.to(place)
    store = PartStore(Path(directory), fingerprint(model, x, request), name)
    jobs = plan_jobs(len(x), request, model)
    decided: dict[str, Any] | None = None
    missing: list[int] = []
    if team.main:
        decided = store.claim(lambda: asdict(rehearse(model, x, request, place)))
        missing = [job.number for job in jobs if store.read(job.number, job.first, job.last, say) is None]
        if len(missing) < len(jobs):
            say(f"{len(jobs) - len(missing)} of {len(jobs)} parts are there already, {len(missing)} to compute")
        if missing and check_declaration:
            warn_if_wrong(model, x, condition=request.condition)
    decided, missing = team.agree((decided, missing))
    rehearsal = _rehearsal(decided, store)
    worker = Worker(model, x, request, place, rehearsal.mode)
    _work(worker, [jobs[k] for k in missing[team.rank :: team.size]], store, team, progress)
    team.wait()
    if not team.main:
        return None
    parts = [(job, store.must_read(job.number, job.first, job.last, say)) for job in jobs]
    values, numbers = _merge([arrays for job, arrays in parts if not job.again])
    own = [arrays for job, arrays in parts if job.finer]
    return DatasetLikelihood(
        model=model,
        x=x,
        request=request,
        rehearsal=rehearsal,
        divergence=worker.divergence,
        values=values,
        numbers=numbers,
        ends=_end_times(parts, values, request, model),
        finer=_solved_again(request.end_of(model), own, values) if own else None,
        found=len(jobs) - len(missing),
        computed=len(missing),
        processes=team.size,
        seconds=time.perf_counter() - began,
    )


def _check_levels(x: Tensor, request: LikelihoodRequest) -> None:
    if request.levels is not None:
        request.levels.check(x, "data")
    elif not x.is_floating_point():
        problem = "they are integers, which have no density, and nothing says what their levels are"
        raise ArgumentError("levels", None, problem, "Give levels.count=256 for 8-bit data, or float data.")
    elif request.draws > 1:
        problem = "there is nothing to dequantise in data without levels"
        raise ArgumentError("draws", request.draws, problem, "Leave it at 1, or give levels.")


def _rehearsal(decided: Any, store: PartStore) -> Rehearsal:
    try:
        return Rehearsal(**decided)
    except TypeError:
        problem = "its request.json does not say how products with the Jacobian are taken"
        raise ArgumentError(store.name, str(store.directory), problem, "Name another folder.") from None


def _work(worker: Worker, jobs: Sequence[Job], store: PartStore, team: Team, progress: bool) -> None:
    total = sum(sum(worker.work(job)) for job in jobs)
    bar = progress_bar(total, "likelihood", enabled=progress and team.main and bool(jobs))
    for job in jobs:
        store.write(job.number, job.first, job.last, worker.run(job, bar.update), team.rank)
    bar.close()


def _merge(parts: Sequence[Arrays]) -> tuple[Arrays, dict[str, float]]:
    """Per-sample values one after another; seconds added up, other numbers their largest."""
    values, numbers = {}, {}
    for name, first in parts[0].items():
        of_all = [part[name] for part in parts]
        if first.ndim > 0:
            values[name] = np.concatenate(of_all)
        else:
            numbers[name] = float(np.sum(of_all) if name in _SUMMED else np.max(of_all))
    return values, numbers


def _end_times(
    parts: Sequence[tuple[Job, Arrays]], values: Arrays, request: LikelihoodRequest, model: ScoreModel
) -> tuple[EndTime, ...]:
    k, found = min(len(values["nats"]), request.ends_n), []
    for end in request.end_times(model):
        if end == request.end_of(model):
            own = values["nats"][:k, 0]
            found.append(EndTime(end, own, values["first_truncation"][:k], own - own))
        else:
            found.append(_solved_again(end, [arrays for job, arrays in parts if job.end == end], values))
    return tuple(found)


def _solved_again(end: float, parts: Sequence[Arrays], values: Arrays) -> EndTime:
    """Parts of samples that were solved again, beside what they were."""
    merged, _ = _merge(parts)
    nats = merged["nats"][:, 0]
    return EndTime(end, nats, merged["truncation"], nats - values["nats"][: len(nats), 0])
