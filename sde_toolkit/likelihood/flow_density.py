"""Exact log-likelihood through the probability flow.

    log p_0(x_0) = log p_T(x_T) + ∫ ∇·v dt along the path dx/dt = v from x_0 to x_T    (Song et al. 2021, eq. 39)

First the path, by any deterministic solver; then the divergence along it, at a few nodes (:mod:`quadrature`). The
divergence is not evaluated at every stage of every step, and its noise does not drive the step size. Nodes are
independent, so that many of them go through the network together.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import warn_caller
from sde_toolkit.likelihood.divergence import Divergence, ExactTrace
from sde_toolkit.likelihood.flow_requests import FlowRequest, choose_detail, choose_divergence, choose_flow
from sde_toolkit.likelihood.jacobian import mode_name
from sde_toolkit.likelihood.path_ends import finest_scale
from sde_toolkit.likelihood.paths import BatchDensity, FlowDensity
from sde_toolkit.likelihood.prior import Prior
from sde_toolkit.likelihood.quadrature import Rule
from sde_toolkit.likelihood.result import LogLikelihood
from sde_toolkit.likelihood.spread import standard_error
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.arguments import state_dtype
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.solvers import Solver

__all__ = ["log_likelihood"]

_MUCH_FINER = 8  # than the grid was chosen for: a warning


def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: Solver | None = None,
    grid: Tensor | None = None,
    nfe: int | None = None,
    end: float | None = None,
    divergence: Divergence | None = None,
    quadrature: Rule | None = None,
    detail: float | None = None,
    prior: Prior | None = None,
    space: Literal["data", "model"] = "data",
    condition: Any = None,
    richardson: bool = False,
    differentiable: bool = False,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LogLikelihood:
    """log p(x) of every sample, in nats, with error bars.

    Args:
        model: any score model, in evaluation mode.
        x: (n, *event), in the caller's data space (``space="data"``: it goes through ``model.transform``, whose
            log-determinant is added), or in model space.
        solver, grid: any deterministic solver and the decreasing grid that it takes, taken from its end; a solver
            with dense output (``probability_flow(PerSample())``, ``TorchDiffEq``, ``Scipy``) needs only the ends, and
            no grid at all for [1, ``end``]. By default the best known for ``nfe`` evaluations.
        nfe: evaluations along the path, where no solver is given; 50 by default. With ``richardson`` the number of
            steps, one less, is made even.
        end: the time that stands for data where no grid is given: ``model.sde.likelihood_end`` by default. x is taken
            as a state of that time, without noise added to it. 0 works for networks that say something finite there.
        divergence: ``ExactTrace()``, ``Hutchinson(probes)`` or ``HutchPlusPlus(rank, probes)``. By default the exact
            trace up to 64 dimensions, 4 Rademacher probes above. Probes are frozen for the whole solve.
        quadrature: the nodes at which the divergence is evaluated: ``Quadrature(25)`` by default, and for a solver with
            tolerances, where the trace is exact, ``Refined`` with the larger of them, as many nodes as a sample needs.
            ``Joint()``: none; the log-density is part of the state, and drives the steps of an adaptive solver, too.
        detail: the size of the data's finest structure in model space, a mode's standard deviation or a grey level; the
            grid and the nodes that are chosen for you depend on it. By default 0.22 σ_d up to 64 dimensions, and
            above, where data are mostly images, σ_d/400. Too large a value costs accuracy; a warning says so where
            ``result.finest`` is less than an eighth of it.
        prior: (x_T, T) to log p_T(x_T), by default that of the SDE, N(0, σ_T² I); :class:`GaussianPrior` knows the
            data's moments, a mixture's ``log_prob`` is exact.
        condition: handed to the network.
        richardson: solve once more on every second time of the grid, which must have an even number of steps, and
            with other nodes, and report twice the difference (``solver_error``).
        differentiable: keep the graph, so that ``result.nats`` can be differentiated by x and by parameters.
        seed, first_index: the probes of x[i] come from the stream (seed, first_index + i), whatever the batch.
        batch_size: samples that go through the network together; all by default.
        dtype, device: of the state. By default float64 for x in float64, else float32, on the device of x.

    Raises:
        ArgumentError, GridError: before the solve, for whatever does not fit together: integers without dequantisation
            (:func:`bits_per_dim`), NaN, an exact trace in too many dimensions, a network that is not differentiable.
        NonFiniteError, MaxEvaluationsError: from the solve.
    """
    began = time.perf_counter()
    detail = choose_detail(model, x, detail)
    chosen, grid = choose_flow(model, solver, grid, nfe, end, detail, richardson)
    divergence, quadrature = choose_divergence(x, divergence, quadrature, chosen)
    request = FlowRequest(
        model=model,
        x=x,
        solver=chosen,
        grid=grid,
        usual_solver=solver is None,
        divergence=divergence,
        quadrature=quadrature,
        detail=detail,
        prior=prior,
        space=space,
        condition=condition,
        richardson=richardson,
        differentiable=differentiable,
        seed=seed,
        first_index=first_index,
        batch_size=batch_size,
        progress=progress,
        dtype=state_dtype(dtype, x if isinstance(x, Tensor) else None),
        device=device,
    )
    request.check()
    y, log_abs_det = request.in_model_space()
    with torch.set_grad_enabled(differentiable):
        equation = ReverseEquation(model, 0.0, condition)
        density = FlowDensity.prepare(request, equation, y)
        whole = _all_batches(density, equation, y)
        return _result(density, whole, log_abs_det, began)


def _all_batches(density: FlowDensity, equation: ReverseEquation, y: Tensor) -> BatchDensity:
    """The density of y (n, *event), batch by batch."""
    request, device = density.request, density.request.place()
    size = request.batch_size or len(y)
    bar = progress_bar(len(y), "log-likelihood", enabled=request.progress)
    parts = []
    for first in range(0, len(y), size):
        last = min(len(y), first + size)
        of_batch = replace(equation, condition=rows_of(request.condition, first, last))
        parts.append(density.batch(of_batch, y[first:last].to(device), first))
        bar.update(last - first)
    bar.close()
    return BatchDensity.of_all(parts)


def _result(density: FlowDensity, whole: BatchDensity, log_abs_det: float, began: float) -> LogLikelihood:
    request = density.request
    replicates = whole.prior + whole.replicates + log_abs_det
    nats = replicates.mean(0)
    exact = isinstance(request.divergence, ExactTrace)
    return LogLikelihood(
        nats=nats,
        standard_error=torch.zeros_like(nats) if exact else standard_error(replicates),
        prior=whole.prior,
        integral=whole.replicates.mean(0),
        log_abs_det=log_abs_det,
        replicates=replicates,
        latent=whole.latent,
        quadrature_error=whole.quadrature_error,
        solver_error=whole.solver_error,
        truncation=whole.truncation,
        finest=_finest(density, whole),
        prior_cost=whole.prior_cost,
        nfe=whole.nfe,
        divergence_nfe=int(whole.divergences.max()),
        divergences=whole.divergences,
        products=request.divergence.products(math.prod(whole.latent.shape[1:])),
        statistics=whole.statistics,
        solver=request.solver,
        grid=request.grid,
        quadrature=request.quadrature,
        divergence=request.divergence,
        mode=mode_name(density.tracer.mode),
        mode_seconds=density.mode_seconds,
        space=request.space,
        seconds=time.perf_counter() - began,
        density_of=f"the probability flow of {request.model.in_words}",
    )


def _finest(density: FlowDensity, whole: BatchDensity) -> float:
    """The scale on which the density changes at the data end; warns where the usual grid is for a coarser one."""
    request, times = density.request, density.solves[0][1].rules[0].times
    tau = torch.exp(-request.model.sde.half_log_snr(times))
    finest = finest_scale(tau, whole.roughness.detach().mean(1))
    if request.usual_solver and finest < request.detail / _MUCH_FINER:
        warn_caller(
            f"at the data end the density changes on a scale of about {finest:.2g}, and the grid was chosen for "
            f"detail={request.detail:.2g}: the answer may be far off. Pass detail={finest:.2g}.",
        )
    return finest
