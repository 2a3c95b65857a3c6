"""Exact log-likelihood through the probability flow.

    log p_0(x_0) = log p_T(x_T) + ∫ ∇·v dt along the path dx/dt = v from x_0 to x_T    (Song et al. 2021, eq. 39)

First the path, by any deterministic solver; then the divergence along it, at a few nodes (:mod:`quadrature`). The two
have nothing to do with each other: neither is the divergence evaluated at every stage of every step, nor does its
noise drive the step size. Nodes are independent, so that many of them go through the network together.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators import Statistics
from sde_toolkit.likelihood.along import Batch, Work, choose_mode
from sde_toolkit.likelihood.defaults import (
    check_request,
    choose_detail,
    choose_divergence,
    choose_flow,
    into_model_space,
)
from sde_toolkit.likelihood.divergence import Divergence, Exact
from sde_toolkit.likelihood.jacobian import mode_name
from sde_toolkit.likelihood.joint import Joint
from sde_toolkit.likelihood.path_ends import finest_scale
from sde_toolkit.likelihood.paths import Upwards
from sde_toolkit.likelihood.prior import Prior
from sde_toolkit.likelihood.quadrature import Rule
from sde_toolkit.likelihood.result import LogLikelihood
from sde_toolkit.likelihood.spread import standard_error
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import check_stream
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.arguments import device_of
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.solvers import Solver

__all__ = ["log_likelihood"]

_ROWS_TIMED = 8  # on which the modes are compared
_MUCH_FINER = 8  # than the grid was chosen for: a warning
_ELSEWHERE = 0.8  # the scale of the nodes of the second solve: as many, at other times


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
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LogLikelihood:
    """log p(x) of every sample, in nats, with error bars.

    Args:
        model: any score model, in evaluation mode.
        x: (n, *event), in the caller's data space (``space="data"``: it goes through ``model.transform``, whose
            log-determinant is added), or in model space.
        solver, grid: any deterministic solver and the decreasing grid that it takes, climbed from its end; a solver
            with dense output (``probability_flow(PerSample())``, ``TorchDiffEq``, ``Scipy``) needs only the ends, and
            no grid at all for [1, ``end``]. By default the best known for ``nfe`` evaluations.
        nfe: evaluations along the path, where no solver is given; 50 by default. With ``richardson`` the number of
            steps, one less, is made even.
        end: the time that stands for data where no grid is given: ``model.sde.likelihood_end`` by default. x is taken
            as a state of that time, without noise added to it. 0 works for networks that say something finite there.
        divergence: ``Exact()``, ``Hutchinson(probes)`` or ``HutchPlusPlus(rank, probes)``. By default exact up to 64
            dimensions and 4 Rademacher probes above. Probes are frozen for the whole solve.
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
        dtype, device: of the state. The device is that of x by default.

    Raises:
        ArgumentError, GridError: before the solve, for whatever does not fit together: integers without dequantisation
            (:func:`bits_per_dim`), NaN, an exact trace in too many dimensions, a network that is not differentiable.
        NonFiniteError, MaxEvaluationsError: from the solve.
    """
    began, chosen_here = time.perf_counter(), solver is None
    detail = choose_detail(model, x, detail)
    solver, grid = choose_flow(model, solver, grid, nfe, end, detail, richardson)
    divergence, quadrature = choose_divergence(x, divergence, quadrature, solver)
    check_request(
        model, x, solver, grid, divergence, quadrature, prior, space, condition, batch_size, dtype, richardson,
        differentiable,
    )  # fmt: skip
    check_stream(seed, first_index)
    y, log_abs_det = into_model_space(model, x, space, dtype)
    device = torch.device(device) if device is not None else device_of(model, x)
    equation = ReverseEquation(model, 0.0, condition)
    with torch.set_grad_enabled(differentiable):
        start, last_time = grid[0].item(), grid[-1].item()
        ladder = quadrature.prepare(equation, last_time, start, detail)
        nodes = ladder.finest
        solves = [(Upwards.prepare(equation, solver, grid, nodes.times), ladder)]
        if richardson:
            other = quadrature.prepare(equation, last_time, start, detail, _ELSEWHERE)
            solves.append((Upwards.prepare(equation, solver, grid[::2], other.finest.times), other))
        few = y[:_ROWS_TIMED].to(device)
        middle = tuple(column[len(column) // 2].to(few.device, few.dtype) for column in nodes.inputs)
        mode, mode_seconds = choose_mode(divergence, equation, middle, few, differentiable)
        joint = isinstance(quadrature, Joint)
        work = Work(solves, divergence, mode, prior, seed, first_index, differentiable, joint)
        size = len(y) if batch_size is None else batch_size
        bar = progress_bar(len(y), "log-likelihood", enabled=progress)
        parts = []
        for first in range(0, len(y), size):
            last = min(len(y), first + size)
            bare = replace(equation, condition=rows_of(condition, first, last))
            parts.append(work.batch(bare, y[first:last].to(device), first))
            bar.update(last - first)
        bar.close()
    statistics = [part.statistics for part in parts if part.statistics is not None]
    D = math.prod(y.shape[1:])
    with torch.set_grad_enabled(differentiable):
        whole = Batch.of_all(parts)
        replicates = whole.prior + whole.replicates + log_abs_det
        nats, integral = replicates.mean(0), whole.replicates.mean(0)
        exact = isinstance(divergence, Exact)
        error = torch.zeros_like(nats) if exact else standard_error(replicates)
    tau = torch.exp(-model.sde.half_log_snr(ladder.rungs[0].times))
    finest = finest_scale(tau, whole.roughness.detach().mean(1))
    if chosen_here and finest < detail / _MUCH_FINER:
        warnings.warn(
            f"at the data end the density changes on a scale of about {finest:.2g}, and the grid was chosen for "
            f"detail={detail:.2g}: the answer may be far off. Pass detail={finest:.2g}.",
            stacklevel=2,
        )
    return LogLikelihood(
        nats=nats,
        standard_error=error,
        prior=whole.prior,
        integral=integral,
        log_abs_det=log_abs_det,
        replicates=replicates,
        latent=whole.latent,
        quadrature_error=whole.quadrature_error,
        solver_error=whole.solver_error,
        truncation=whole.truncation,
        finest=finest,
        prior_kl=whole.prior_cost,
        nfe=max(part.nfe for part in parts),
        divergence_nfe=int(whole.divergences.max()),
        divergences=whole.divergences,
        products=divergence.products(D),
        statistics=Statistics.of_all(statistics) if statistics else None,
        solver=solver,
        grid=grid,
        quadrature=quadrature,
        divergence=divergence,
        mode=mode_name(mode),
        mode_seconds=mode_seconds,
        space=space,
        seconds=time.perf_counter() - began,
    )
