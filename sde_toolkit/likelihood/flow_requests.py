"""What :func:`log_likelihood` is asked: what it chooses where nothing was said, and what it refuses before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count, check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import check_grid, sech
from sde_toolkit.integrators import DenseIntegrator
from sde_toolkit.likelihood.adams import Adams
from sde_toolkit.likelihood.divergence import Divergence, ExactTrace, Hutchinson
from sde_toolkit.likelihood.jacobian import mode_name, reverse
from sde_toolkit.likelihood.joint import Joint
from sde_toolkit.likelihood.prior import Prior
from sde_toolkit.likelihood.quadrature import Quadrature, Refined, Rule
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import check_stream
from sde_toolkit.ranges import check_range
from sde_toolkit.sampling.arguments import (
    check_batches,
    check_deterministic,
    check_model,
    check_noise_level,
    check_parts,
    check_shape,
    check_space,
    device_of,
)
from sde_toolkit.solvers import Solver

__all__ = [
    "FlowRequest",
    "choose_detail",
    "choose_divergence",
    "choose_flow",
    "default_flow",
    "into_model_space",
]

_EXACT_UP_TO = 64  # dimensions
_SMOOTH, _GREY_LEVEL = 0.22, 1 / 400  # finest structure in units of σ_d: of few dimensions, of images


@dataclass(frozen=True, eq=False)
class FlowRequest:
    """One call of :func:`log_likelihood`, whose docstring says what the fields mean; nothing is left open.

    ``usual_solver``: whether solver and grid are the default ones.
    """

    model: ScoreModel
    x: Tensor
    solver: Solver
    grid: Tensor
    usual_solver: bool
    divergence: Divergence
    quadrature: Rule
    detail: float
    prior: Prior | None
    space: str
    condition: Any
    richardson: bool
    differentiable: bool
    seed: int
    first_index: int
    batch_size: int | None
    progress: bool
    dtype: torch.dtype
    device: torch.device | str | None

    def check(self) -> None:
        """Refuse whatever does not fit together, without an evaluation.

        Raises:
            ArgumentError: naming the argument.
        """
        self._check_data()
        self._check_parts()
        self.divergence.check(math.prod(self.x.shape[1:]))
        check_evaluation_mode(self.model)
        check_batches(self.batch_size, self.dtype)
        check_noise_level(self.model, self.grid[0])
        check_condition(self.condition, len(self.x))
        if self.solver.integrator.evals_per_step is not None:  # others choose their times themselves
            self.model.check_times(self.grid)
        dense, mode = isinstance(self.solver.integrator, DenseIntegrator), self.divergence.mode
        if self.richardson and (dense or len(self.grid) % 2 == 0):
            problem = "the estimate compares a grid of an even number of steps with every second time of it"
            remedy = "Use a fixed-step solver and an even number of steps."
            raise ArgumentError("richardson", self.richardson, problem, remedy)
        if self.differentiable and mode not in (None, reverse):
            problem = "gradients go through reverse mode"
            raise ArgumentError("differentiable", mode_name(mode), problem, "Leave mode out.")
        check_stream(self.seed, self.first_index)

    def _check_data(self) -> None:
        x: Any = self.x
        if not isinstance(x, Tensor):
            raise ArgumentError("x", x, "not a tensor", "Pass a tensor (n, *event).")
        if x.is_complex():
            raise ArgumentError("x", x.dtype, "densities here are of real data", "Pass a real tensor (n, *event).")
        if not x.is_floating_point():
            problem = "integers have no density"
            raise ArgumentError("x", x.dtype, problem, "Use bits_per_dim(model, x, levels), which dequantises them.")
        check_shape(self.model, "x", tuple(x.shape), x)
        check_space(self.space)

    def _check_parts(self) -> None:
        divergence: Any = self.divergence
        quadrature: Any = self.quadrature
        if not isinstance(divergence, Divergence):
            raise ArgumentError(
                "divergence", divergence, "not a divergence", "Pass ExactTrace() or Hutchinson(probes=4)."
            )
        if not (divergence.mode is None or callable(divergence.mode)):
            raise ArgumentError("mode", divergence.mode, "not a mode", "Pass reverse, forward or finite_differences.")
        if not isinstance(quadrature, Rule):
            raise ArgumentError("quadrature", quadrature, "not a quadrature", "Pass Quadrature(nodes=25).")
        if isinstance(quadrature, Joint) and not isinstance(self.solver.integrator, DenseIntegrator):
            problem = "state and log-density together are for a solver with error control"
            raise ArgumentError("quadrature", quadrature, problem, "Pass solver=probability_flow(PerSample()), too.")
        if not (self.prior is None or callable(self.prior)):
            problem = "not a function (x_T, T) to log densities"
            remedy = "Pass GaussianPrior.of_data(model, data), or a mixture's log_prob."
            raise ArgumentError("prior", self.prior, problem, remedy)

    def in_model_space(self) -> tuple[Tensor, float]:
        """x where the network lives, and what its change of variables adds, in nats per sample."""
        return into_model_space(self.model, self.x, self.space, self.dtype)

    def place(self) -> torch.device:
        """The device to compute on."""
        return device_of(self.model, self.x) if self.device is None else torch.device(self.device)


def choose_divergence(
    x: Any, divergence: Divergence | None, quadrature: Rule | None, solver: Solver | None = None
) -> tuple[Divergence, Rule]:
    """Exact in few dimensions, Hutchinson's in many; 25 nodes, or what a solver's tolerances ask of an exact trace."""
    dimension = math.prod(x.shape[1:]) if isinstance(x, Tensor) else 1
    divergence = divergence or (ExactTrace() if dimension <= _EXACT_UP_TO else Hutchinson())
    if quadrature is None and isinstance(divergence, ExactTrace) and solver is not None:
        tolerances = [getattr(solver.integrator, name, None) or 0.0 for name in ("rtol", "atol")]
        quadrature = Refined(max(tolerances)) if isinstance(solver.integrator, DenseIntegrator) else None
    return divergence, quadrature or Quadrature()


def choose_detail(model: Any, x: Any, detail: Any) -> float:
    """The size of the data's finest structure in model space; more than 64 dimensions are taken for images."""
    check_model(model)
    if detail is None:
        few = not isinstance(x, Tensor) or math.prod(x.shape[1:]) <= _EXACT_UP_TO
        return model.sigma_data * (_SMOOTH if few else _GREY_LEVEL)
    check_positive("detail", detail, "Pass the width of a grey level, or the scale of a mode, in model space.")
    return float(detail)


def choose_flow(
    model: ScoreModel, solver: Any, grid: Any, nfe: Any, end: Any, detail: float, richardson: bool
) -> tuple[Solver, Tensor]:
    """The solver and its grid, decreasing, whatever was left out."""
    if solver is not None:
        check_parts(model, solver)
    if end is not None and grid is not None:
        raise ArgumentError("end", end, "a grid ends where its last time says", "Pass one of end and grid.")
    end = model.sde.likelihood_end if end is None else end
    if not (is_number(end) and 0 <= end < 1):
        raise ArgumentError("end", end, "data are a time in [0, 1)", "Pass 1e-5, for example.")
    if solver is None:
        if grid is not None:
            raise ArgumentError("grid", grid, "a grid is for a solver", "Pass the solver too, or nfe in place of both.")
        nfe = 50 if nfe is None else nfe
        check_count("nfe", nfe, "50 is the default.", least=4, most=MOST)
        return default_flow(model, nfe, end, detail, richardson)
    check_deterministic(solver, "a likelihood")
    if nfe is not None:
        raise ArgumentError("nfe", nfe, "a solver of your own takes the steps of its grid", "Pass one of the two.")
    if grid is None:
        if not isinstance(solver.integrator, DenseIntegrator):
            problem = f"{solver.name} takes the steps of a grid"
            raise ArgumentError("grid", None, problem, f"Pass grids.sech(model.sde, 50, end={end:g}), for example.")
        grid = torch.tensor([1.0, end], dtype=torch.float64)
    return solver, check_grid(grid)


def default_flow(model: ScoreModel, nfe: int, end: float, detail: float, even: bool = False) -> tuple[Solver, Tensor]:
    """The solver and the (decreasing) grid for data of size σ_d whose finest structure has the size ``detail``.

    An Adams method of order 3, corrected to 4, in EDM's F and φ, one step less than evaluations, or two if the steps
    are to be ``even`` in number. Knots are densest where σ/α is √(σ_d · detail), detail at most σ_d, and spread with
    log(σ_d/detail): for 0.22 σ_d the best of a scan over random mixtures from 20 to 100 evaluations
    (benchmarks/choose_likelihood.py), for dequantised 8-bit images of one over the embedded MNIST network.
    """
    sigma_data = model.sigma_data
    span = max(0.0, math.log(sigma_data / detail))
    integrator, steps = Adams(3, sigma_data), nfe - 1
    steps -= steps % 2 if even else 0
    grid = sech(model.sde, steps, center=span / 2 - math.log(sigma_data), width=1 + span / 6, end=end)
    return Solver("likelihood", 0.0, integrator), grid


def into_model_space(model: ScoreModel, x: Tensor, space: str, dtype: torch.dtype) -> tuple[Tensor, float]:
    """x where the network lives, and what its change of variables adds, in nats per sample."""
    if space == "model":
        return x.to(dtype), 0.0
    check_range(model.transform, x)
    return model.transform.forward(x.to(torch.float64)).to(dtype), model.transform.log_abs_det(x.shape[1:])
