"""The jobs of an evaluation: a chunk of samples, or some of them solved again to another end time.

Sample i draws from its own streams (seed, i) in every job, so no number depends on the order of the jobs or on the
process that computes them. All values are in nats: log P of the integers if there are levels, else a log density.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.density.density_request import LikelihoodRequest
from sde_toolkit.jobs.store import Arrays
from sde_toolkit.likelihood import Quadrature, bits_per_dim, finite_differences, forward, log_likelihood, reverse
from sde_toolkit.likelihood.bounds import Bound, discrete_bound, variational_bound
from sde_toolkit.likelihood.divergence import Divergence
from sde_toolkit.likelihood.flow_requests import choose_divergence
from sde_toolkit.likelihood.result import LogLikelihood
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.loop import rows_of

__all__ = ["Job", "Rehearsal", "Worker", "plan_jobs", "rehearse"]

_MODES = {mode.__name__: mode for mode in (reverse, forward, finite_differences)}
_REHEARSED = 8  # samples; the modes of Jacobian products are timed on them


@dataclass(frozen=True)
class Job:
    """Samples ``first`` to ``last`` − 1: a chunk with everything, or ``again``, the likelihood alone and of one draw.

    ``end``: the end time, None for the request's own; ``finer``: with twice the evaluations and twice the nodes.
    """

    number: int
    first: int
    last: int
    again: bool = False
    end: float | None = None
    finer: bool = False


def plan_jobs(n: int, request: LikelihoodRequest, model: ScoreModel) -> list[Job]:
    """The chunks in order, then the first samples to the other end times, and to their own end more finely."""
    jobs: list[Job] = []
    others = [{"end": t} for t in request.end_times(model) if t != request.end_of(model)]
    for how in ({}, *others, {"finer": True}):
        of = min(n, request.ends_n) if how else n
        for first in range(0, of, request.chunk):
            jobs.append(Job(len(jobs), first, min(of, first + request.chunk), bool(how), **how))  # type: ignore[arg-type]
    return jobs


@dataclass(frozen=True)
class Rehearsal:
    """How products with the Jacobian are taken. It is decided once, by measuring, for the whole evaluation."""

    mode: str
    mode_seconds: dict[str, float]


def rehearse(model: ScoreModel, x: Tensor, request: LikelihoodRequest, device: torch.device) -> Rehearsal:
    """Evaluate a few samples coarsely, so that errors appear before the work.

    Raises:
        SDEToolkitError: if the likelihood or a bound refuses.
    """
    x = x[:_REHEARSED]
    short = dataclasses.replace(
        request,
        quadrature=Quadrature(2, request.quadrature.scale),
        draws=1,
        elbo_draws=min(1, request.elbo_draws),
        discrete_draws=1,
    )
    worker = Worker(model, x, short, device, None)
    run = worker.likelihood(Job(0, 0, len(x)))[1][0]
    worker.bounds(Job(0, 0, len(x)))
    return Rehearsal(run.mode, {k: v for k, v in run.mode_seconds.items() if math.isfinite(v)})


@dataclass(frozen=True, eq=False)
class Worker:
    """A model, all data x (n, *event), and how they are evaluated; ``mode``: the name of the Jacobian's products."""

    model: ScoreModel
    x: Tensor
    request: LikelihoodRequest
    device: torch.device
    mode: str | None

    @property
    def divergence(self) -> Divergence:
        """As it is run."""
        chosen = choose_divergence(self.x, self.request.divergence, None)[0]
        if self.mode is None or chosen.mode is not None:
            return chosen
        if self.mode not in _MODES:
            raise ArgumentError("mode", self.mode, "there is no such mode", f"Known are {', '.join(_MODES)}.")
        return dataclasses.replace(chosen, mode=_MODES[self.mode])

    def work(self, job: Job) -> tuple[int, int]:
        """About how many evaluations of the network a job takes, all samples together: for the flow, for the bounds."""
        r, n = self.request, job.last - job.first
        products = self.divergence.products(math.prod(self.x.shape[1:]))
        flow = n * (r.nfe + r.quadrature.nodes * (1 + 1.5 * products))
        if job.again:
            return round(flow * (1 + job.finer)), 0
        discrete = (r.discrete_draws or r.discrete_steps) + (r.discrete_draws or 1)
        return round(r.draws * flow), n * (r.elbo_draws + (discrete if r.discrete_steps else 0))

    def run(self, job: Job, advance: Callable[[int], object]) -> Arrays:
        """The arrays of a job, per-sample ones (b, ...), the others (); ``advance`` gets the work done."""
        flow, bounds = self.work(job)
        arrays, _ = self.likelihood(job)
        advance(flow)
        if not job.again:
            arrays |= self.bounds(job)
            advance(bounds)
        return {name: np.asarray(value) for name, value in arrays.items()}

    def condition(self, job: Job) -> Any:
        """The rows of the condition that belong to a job, on the device."""
        rows = rows_of(self.request.condition, job.first, job.last)
        return map_rows(rows, lambda part: part.to(self.device))

    def likelihood(self, job: Job) -> tuple[dict[str, Any], tuple[LogLikelihood, ...]]:
        """Through the flow."""
        r, part = self.request, self.x[job.first : job.last]
        if job.finer:
            r = r.finer()
        options: dict[str, Any] = {
            **r.flow(self.model, r.end_of(self.model) if job.end is None else job.end),
            "divergence": self.divergence,
            "quadrature": r.quadrature,
            **({} if r.detail is None else {"detail": r.detail}),
            "prior": r.prior,
            "condition": self.condition(job),
            "seed": r.seed,
            "first_index": job.first,
            "dtype": r.dtype,
            "device": self.device,
        }
        found: dict[str, Any] = {}
        if r.levels is None:
            runs: tuple[LogLikelihood, ...] = (log_likelihood(self.model, part, **options),)
            found["nats"] = _numpy(runs[0].nats).reshape(-1, 1)
            found["probe_error"] = _numpy(runs[0].standard_error)
        else:
            bits = bits_per_dim(self.model, part, r.levels, draws=1 if job.again else r.draws, **options)
            runs, unit = bits.runs, bits.dimension * math.log(2)
            volume = self.model.transform.log_abs_det(part.shape[1:]) + bits.dimension * math.log(r.levels.width)
            found["nats"] = np.stack([_numpy(run.nats) for run in runs], 1) + volume
            found["importance_weighted"] = -unit * _numpy(bits.importance_weighted)
            found["probe_error"] = unit * _numpy(bits.probe_error)
            found["dequantisation_error"] = unit * _numpy(bits.dequantisation_error)
        found["first_truncation"] = _numpy(runs[0].truncation)  # of the draw that other end times are compared with
        for name in ("quadrature_error", "truncation", "prior_cost"):
            found[name] = np.stack([_numpy(getattr(run, name)) for run in runs]).mean(0)
        rejected = [run.rejected for run in runs]
        if rejected[0] is not None:
            found["rejected"] = np.stack([_numpy(v) for v in rejected if v is not None]).sum(0)
        found["nfe"] = sum(run.nfe for run in runs)
        found["divergence_nfe"] = sum(run.divergence_nfe for run in runs)
        found["products"] = runs[0].products
        found["seconds"] = sum(run.seconds for run in runs)
        return found, runs

    def bounds(self, job: Job) -> dict[str, Any]:
        """Lower bounds of the likelihood of the reverse SDE's model: in continuous time, and on DDPM's grid."""
        r, part = self.request, self.x[job.first : job.last]
        options: dict[str, Any] = {
            "levels": r.levels, "condition": self.condition(job), "seed": r.seed, "first_index": job.first,
            "dtype": r.dtype, "device": self.device,
        }  # fmt: skip
        found: dict[str, Any] = {}
        if r.elbo_draws:
            end = r.end_of(self.model)
            found |= _of_bound("elbo", variational_bound(self.model, part, draws=r.elbo_draws, end=end, **options))
        if r.discrete_steps:
            grid = grids.discrete(r.discrete_steps)
            found |= _of_bound("discrete", discrete_bound(self.model, part, grid, draws=r.discrete_draws, **options))
        return found


def _of_bound(name: str, bound: Bound) -> dict[str, Any]:
    terms = ("nats", "prior", "diffusion", "reconstruction")
    found = {f"{name}_{term}": _numpy(getattr(bound, term)) for term in terms}
    error, own = f"{name}_error", {f"{name}_nfe": bound.nfe, f"{name}_seconds": bound.seconds}
    return found | {error: _numpy(bound.standard_error), **own}


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float64).numpy()
