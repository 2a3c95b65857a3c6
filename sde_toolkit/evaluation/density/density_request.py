"""The request for a likelihood evaluation, and its fingerprint: everything that its numbers depend on.

A fingerprint is plain data (model, data, settings), so a difference between two of them can be named. It leaves out
what changes numbers by round-off only (device, threads, number of processes).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.jobs.fingerprints import (
    behaviour,
    digits_of,
    fingerprint_data,
    fixed_events,
    model_fingerprint,
    tensor_digest,
)
from sde_toolkit.jobs.provenance import toolkit_version
from sde_toolkit.likelihood import Divergence, ExactTrace, Levels, Quadrature
from sde_toolkit.likelihood.flow_requests import default_flow
from sde_toolkit.likelihood.prior import Prior
from sde_toolkit.models.descriptions import CLASS
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["LikelihoodRequest", "finer_how", "fingerprint"]

FORMAT = "sde_toolkit likelihood/1"


@dataclass(frozen=True, eq=False)
class LikelihoodRequest:
    """The settings of an evaluation; ``None`` for ``levels`` means data with a density, answered in nats.

    Attributes:
        levels: what integer data are; bits per dimension are counted of them.
        nfe: evaluations along each path; the grid of a given solver takes as many steps as they allow.
        end: the time that stands for data, ``likelihood_end`` of the SDE by default.
        solver, grid: a deterministic solver and, if its steps are fixed, the builder of its grid; None: those of
            :func:`~sde_toolkit.log_likelihood`.
        divergence, quadrature, detail: as for :func:`~sde_toolkit.log_likelihood`.
        draws: of the dequantisation noise, per sample.
        prior: p_T, None for the model's own; ``prior_name`` is its name in reports.
        elbo_draws: times per sample of the continuous bound; 0 leaves it out.
        discrete_steps, discrete_draws: grid i/N of the DDPM bound and how many random terms per sample stand for all
            of them (None: all); 0 steps leave it out.
        ends, ends_n: the end times at which the first ``ends_n`` samples are solved once more; None: a hundred
            times ``end`` and ten times. The same samples are solved to ``end`` with twice the evaluations and nodes.
        condition: handed to the network; tensors in it have one row per sample.
        seed: of probes, dequantisation and bounds.
        chunk: samples that are computed, written and sent through the network together.

    Raises:
        ArgumentError: naming the setting.
    """

    levels: Levels | None = None
    nfe: int = 50
    end: float | None = None
    solver: Solver | None = None
    grid: GridBuilder | None = None
    divergence: Divergence | None = None
    quadrature: Quadrature = field(default_factory=Quadrature)
    detail: float | None = None
    draws: int = 1
    prior: Prior | None = None
    prior_name: str = "N(0, σ² I), the model's own"
    elbo_draws: int = 32
    discrete_steps: int = 1000
    discrete_draws: int | None = 32
    ends: tuple[float, ...] | None = None
    ends_n: int = 32
    condition: Any = None
    seed: int = 0
    chunk: int = 32
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        least = {"draws": 1, "chunk": 1, "elbo_draws": 0, "discrete_steps": 0, "ends_n": 0, "seed": 0, "nfe": 1}
        for name, low in least.items():
            most = None if name == "seed" else MOST
            check_count(name, getattr(self, name), f"Pass {name}={max(low, 1)}.", least=low, most=most)
        if self.discrete_draws is not None:
            check_count("discrete_draws", self.discrete_draws, "Use None for every step.")
        times = [("end", self.end)] + [("ends", t) for t in self.ends or ()]
        for name, t in times:
            if t is not None and not (is_number(t) and 0 <= t < 1):
                raise ArgumentError(name, t, "the end is a time in [0, 1)", "1e-5 is a usual end.")
        if len(set(self.ends or ())) < len(self.ends or ()):
            raise ArgumentError("ends", list(self.ends or ()), "an end time is there twice", "Name each one once.")

    def end_of(self, model: ScoreModel) -> float:
        """The time that stands for data."""
        return model.sde.likelihood_end if self.end is None else self.end

    def end_times(self, model: ScoreModel) -> tuple[float, ...]:
        """All end times at which a part of the data is solved, the largest first, ``end_of`` among them."""
        end = self.end_of(model)
        given = self.ends
        if given is None:
            given = (1e-3, 1e-4) if end == 0 else tuple(t for t in (100 * end, 10 * end) if t < 0.5)
        return tuple(sorted({*given, end}, reverse=True)) if self.ends_n and given else ()

    def flow(self, model: ScoreModel, end: float) -> dict[str, Any]:
        """Solver and grid down to ``end``, as options of :func:`~sde_toolkit.log_likelihood`."""
        if self.solver is None and self.grid is None:
            return {"nfe": self.nfe, "end": end}
        solver = self.solver or default_flow(model, 4, 0.5, model.sigma_data)[0]
        per_step = solver.integrator.evals_per_step
        if per_step is None:
            if self.grid is not None:
                raise ArgumentError("grid", self.grid, f"{solver.name} chooses its own steps", "Leave grid out.")
            return {"solver": solver, "end": end}
        if self.grid is None:
            problem = f"{solver.name} takes the steps of a grid"
            raise ArgumentError("grid", None, problem, "Choose one, such as uniform_lambda.")
        if self.nfe < per_step:
            raise ArgumentError("nfe", self.nfe, f"{solver.name} needs {per_step} for a step", "Raise nfe.")
        try:
            grid = self.grid(model.sde, self.nfe // per_step, end=end)  # type: ignore[call-arg]
        except TypeError:
            raise ArgumentError("grid", self.grid, "its end cannot be chosen", "Use uniform_lambda.") from None
        return {"solver": solver, "grid": grid}

    def finer(self) -> LikelihoodRequest:
        """The same with twice the evaluations (tolerances a thirtieth, where they choose the steps) and nodes."""
        solver = self.solver
        if solver is not None and solver.integrator.evals_per_step is None:
            given = {name: getattr(solver.integrator, name) for name in ("rtol", "atol")}
            tolerances = {name: value / 30 for name, value in given.items() if value is not None}
            finer = dataclasses.replace(solver.integrator, **tolerances)
            solver = dataclasses.replace(solver, integrator=finer)
        nodes = dataclasses.replace(self.quadrature, nodes=2 * self.quadrature.nodes)
        return dataclasses.replace(self, nfe=2 * self.nfe, quadrature=nodes, solver=solver)


def finer_how(request: LikelihoodRequest) -> str:
    """How :meth:`LikelihoodRequest.finer` differs, in words."""
    adaptive = request.solver is not None and request.solver.integrator.evals_per_step is None
    return f"{'tolerances divided by 30' if adaptive else 'twice the evaluations'} and twice the nodes"


def fingerprint(model: ScoreModel, x: Tensor, request: LikelihoodRequest) -> dict[str, Any]:
    """Plain data that differ between different evaluations."""
    settings = {f.name: fingerprint_data(getattr(request, f.name)) for f in dataclasses.fields(request)}
    if request.condition is None:
        del settings["condition"]  # as in folders written before there were conditions
    if isinstance(request.divergence, ExactTrace):
        settings["divergence"][CLASS] = "Exact"  # the name of this class in folders written before it was renamed
    settings |= {"end": request.end_of(model), "ends": fingerprint_data(request.end_times(model))}
    content = {
        "format": f"{FORMAT}, {toolkit_version()}",
        "model": model_fingerprint(model),
        "behaviour": _behaviour(model, x, request),
        "data": {"n": len(x), "event_shape": list(x.shape[1:]), "dtype": str(x.dtype), "sha256": tensor_digest(x)},
        "settings": settings,
    }
    return json.loads(json.dumps(content))


def _behaviour(model: ScoreModel, x: Tensor, request: LikelihoodRequest) -> list[str]:
    """Answers of functions whose parameters cannot be read: a network that is no module, a prior."""
    event_shape = tuple(x.shape[1:])
    found = behaviour(model, event_shape, request.dtype)
    return found if request.prior is None else found + digits_of(request.prior(fixed_events(event_shape), 1.0))
