"""The path of the flow from data to noise, and its states where they are wanted.

A fixed-step integrator leaves states at its grid; between them x/c is interpolated in φ by the polynomial through the
eight nearest ones (x/c and φ as in :mod:`quadrature`: both bounded, the path smooth in them). An adaptive integrator
has its own dense output. It is given a quarter of its tolerances: where data are dense, an error δ of the state at t is
one of δ·∇log p_t in the answer, and log-densities are steep near the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.grids import sech
from sde_toolkit.integrators import DenseIntegrator, Statistics
from sde_toolkit.likelihood.adams import Adams, lagrange
from sde_toolkit.likelihood.quadrature import angle
from sde_toolkit.models.prediction import edm_input_scale
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sampling.loop import Options, solve
from sde_toolkit.solvers import Solver

__all__ = ["FlowPath", "Interpolation", "Upwards", "default_flow"]

_POINTS = 8
_TIGHTER = 0.25


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


@dataclass(frozen=True, eq=False)
class FlowPath:
    """``states`` (Q, B, *event) at the wanted times, the state ``latent`` at the last time, and what it took."""

    states: Tensor
    latent: Tensor
    nfe: int
    statistics: Statistics | None

    def evaluations(self, n: int) -> Tensor:
        """Of the network, by each of n samples, (n,)."""
        return torch.full((n,), self.nfe) if self.statistics is None else self.statistics.evaluations


@dataclass(frozen=True, eq=False)
class Upwards:
    """A solver and its grid, from data up to noise, and the times at which the states are wanted."""

    solver: Solver
    times: Tensor
    wanted: Tensor
    interpolation: Interpolation | None

    @classmethod
    def prepare(cls, equation: ReverseEquation, solver: Solver, grid: Tensor, wanted: Tensor) -> Upwards:
        """``grid`` decreasing, its last time wanted[0]. All refusals of the solver come from here."""
        times, integrator = grid.flip(0), solver.integrator
        integrator.check(equation)
        if isinstance(integrator, DenseIntegrator):
            _check_lambda(equation, solver, times)
            times = wanted if wanted[-1] == times[-1] else torch.cat([wanted, times[-1:]])
            integrator.prepare(equation, times)
            return cls(replace(solver, integrator=_tighter(integrator)), times, wanted, None)
        if integrator.evals_per_step is None:
            problem = f"{integrator} steps by itself and has no dense output"
            raise ArgumentError("solver", solver.name, problem, "Use PerSample(), TorchDiffEq(), Scipy() or a grid.")
        integrator.prepare(equation, times)
        return cls(solver, times, wanted, Interpolation.prepare(equation, times, wanted))

    def solve(self, equation: ReverseEquation, x: Tensor) -> FlowPath:
        """Carry x (B, *event), of the first time, up to the last."""
        integrator = self.solver.integrator
        if isinstance(integrator, DenseIntegrator):
            states, statistics = integrator.states(equation, x, self.times)
            return FlowPath(states[: len(self.wanted)], states[-1], int(statistics.evaluations.max()), statistics)
        solved = solve(
            equation,
            self.solver,
            self.times,
            len(x),
            lambda first, last: (x, _no_noise),
            Options(
                batch_size=None,
                tweedie=False,
                trajectory=True,
                callback=None,
                check_finite=True,
                progress=False,
                compile=False,
                dtype=x.dtype,
                device=x.device,
            ),
        )
        return FlowPath(self._between(solved.trajectory), solved.x, solved.nfe, solved.statistics)

    def _between(self, trajectory: Tensor | None) -> Tensor:
        if self.interpolation is None or trajectory is None:
            return torch.empty(0)
        return self.interpolation(trajectory)


def _tighter(integrator: DenseIntegrator) -> DenseIntegrator:
    given = {name: getattr(integrator, name, None) for name in ("rtol", "atol")}  # an atol of None follows rtol
    return replace(integrator, **{name: _TIGHTER * value for name, value in given.items() if value is not None})


def _no_noise(step: int) -> Noise:
    return _silent


def _silent() -> Tensor:
    problem = "its integrator draws noise, and draws_noise says that it does not"
    raise ArgumentError("solver", "noise", problem, "Let draws_noise(eta) of the integrator say what its steps do.")


def _check_lambda(equation: ReverseEquation, solver: Solver, times: Tensor) -> None:
    """Refuse ends at which λ is infinite, for a method that steps in it."""
    for t, remedy in (
        (times[0], f"End the grid at likelihood_end={equation.sde.likelihood_end}"),
        (times[-1], "Start the grid a little below 1, at 0.999"),
    ):
        if not bool(equation.sde.half_log_snr(t).isfinite()):
            problem = f"{solver.name} steps in λ = log(α/σ), which is infinite there"
            raise GridError(
                "grid", t.item(), problem, f"{remedy}, or leave the solver out: the default reaches both ends."
            )


@dataclass(frozen=True, eq=False)
class Interpolation:
    """From states at the times ``grid``, (N + 1, B, *event) increasing in time, to states at ``wanted``."""

    weights: Tensor  # (Q, N + 1)
    shrink: Tensor  # 1/c at the grid
    stretch: Tensor  # c at the wanted times

    @classmethod
    def prepare(cls, equation: ReverseEquation, grid: Tensor, wanted: Tensor) -> Interpolation:
        """All coefficients, float64. ``grid`` is increasing and covers ``wanted``."""
        sde, scale = equation.sde, equation.model.sigma_data
        nodes, at = (angle(sde.half_log_snr(t), scale) for t in (grid, wanted))
        shrink, shrink_wanted = (edm_input_scale(sde.alpha(t), sde.sigma(t), scale) for t in (grid, wanted))
        return cls(_local_lagrange(nodes, at), shrink, 1 / shrink_wanted)

    def __call__(self, path: Tensor) -> Tensor:
        """(N + 1, B, *event) to (Q, B, *event)."""
        flat = path.reshape(len(path), -1)
        weights = expand_to(self.stretch, self.weights) * self.weights * self.shrink
        return (weights.to(path) @ flat).reshape(-1, *path.shape[1:])


def _local_lagrange(nodes: Tensor, at: Tensor) -> Tensor:
    """Weights (Q, N + 1) of the polynomials through the ``_POINTS`` nodes around each of ``at``; nodes increase."""
    N, k = len(nodes), min(_POINTS, len(nodes))
    first = (torch.searchsorted(nodes, at) - k // 2).clamp(0, N - k)
    chosen = first.unsqueeze(1) + torch.arange(k)  # (Q, k)
    weights = lagrange(nodes[chosen], at)
    return torch.zeros(len(at), N, dtype=nodes.dtype).scatter_(1, chosen, weights)
