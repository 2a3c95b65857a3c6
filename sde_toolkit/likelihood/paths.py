"""The path of the flow from data to noise, solved for a batch, and the density that is read along it.

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

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import DenseIntegrator, Statistics
from sde_toolkit.likelihood.flow_requests import FlowRequest
from sde_toolkit.likelihood.jacobian import choose_mode
from sde_toolkit.likelihood.joint import Joint, JointEquation
from sde_toolkit.likelihood.path_ends import prior_cost, roughness, truncation
from sde_toolkit.likelihood.polynomials import Interpolation
from sde_toolkit.likelihood.quadrature import NestedRules, Nodes
from sde_toolkit.likelihood.traces import Integrated, Tracer
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sampling.loop import Options, solve
from sde_toolkit.solvers import Solver

__all__ = ["BatchDensity", "FlowDensity"]

_TIGHTER = 0.25  # tolerances of the path, in units of those that were asked for
_TWICE = 2.0  # the difference of two solves: where a network is rough in time, both may err alike
_ROWS_TIMED = 8  # on which the modes are compared
_ELSEWHERE = 0.8  # the scale of the nodes of the second solve: as many, at other times


@dataclass(frozen=True, eq=False)
class BatchDensity:
    """What one batch gave; ``replicates`` (P, B), ``latent`` (B, *event), ``roughness`` (Q, B), the others (B,)."""

    replicates: Tensor
    prior: Tensor
    latent: Tensor
    quadrature_error: Tensor
    solver_error: Tensor | None
    truncation: Tensor
    prior_cost: Tensor
    roughness: Tensor
    divergences: Tensor
    nfe: int
    statistics: Statistics | None

    @classmethod
    def of_all(cls, parts: list[BatchDensity]) -> BatchDensity:
        """All batches, one after another; ``nfe`` is the largest."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("prior", "latent", "quadrature_error", "truncation", "prior_cost", "divergences")
        }
        errors = [part.solver_error for part in parts if part.solver_error is not None]
        for name in ("replicates", "roughness"):
            joined[name] = torch.cat([getattr(part, name) for part in parts], 1)
        statistics = [part.statistics for part in parts if part.statistics is not None]
        return cls(
            solver_error=torch.cat(errors) if errors else None,
            nfe=max(part.nfe for part in parts),
            statistics=Statistics.of_all(statistics) if statistics else None,
            **joined,
        )


@dataclass(frozen=True, eq=False)
class FlowDensity:
    """The density along the flow, prepared once for all batches.

    ``solves``: how the path is solved and where its divergence is wanted, once or, for Richardson, twice.
    ``mode_seconds``: what each way to take products took, where it was measured.
    """

    request: FlowRequest
    solves: list[tuple[_PathSolver, NestedRules]]
    tracer: Tracer
    mode_seconds: dict[str, float]

    @classmethod
    def prepare(cls, request: FlowRequest, equation: ReverseEquation, x: Tensor) -> FlowDensity:
        """All coefficients, and the way to take products; a few rows of x (n, *event) go through the network.

        Raises:
            ArgumentError, GridError: for a solver or a network that does not fit.
        """
        grid, quadrature, detail = request.grid, request.quadrature, request.detail
        start, end = grid[0].item(), grid[-1].item()
        rules = quadrature.prepare(equation, end, start, detail)
        nodes = rules.finest
        solves = [(_PathSolver.prepare(equation, request.solver, grid, nodes.times), rules)]
        if request.richardson:
            other = quadrature.prepare(equation, end, start, detail, _ELSEWHERE)
            solves.append((_PathSolver.prepare(equation, request.solver, grid[::2], other.finest.times), other))
        few = x[:_ROWS_TIMED].to(request.place())
        middle = tuple(column[len(column) // 2].to(few.device, few.dtype) for column in nodes.inputs)
        asked = request.divergence.mode or request.divergence.default_mode
        mode, seconds = choose_mode(asked, equation, middle, few, request.differentiable)
        return cls(request, solves, Tracer(request.divergence, mode, request.differentiable), seconds)

    def batch(self, equation: ReverseEquation, x: Tensor, first: int) -> BatchDensity:
        """The density of x (B, *event), the samples from ``first`` on; Richardson's estimate from a second solve."""
        request = self.request
        events, index = tuple(x.shape), request.first_index + first
        probes = request.divergence.directions(events, request.seed, index, x.device).to(x)
        solve_one = self._together if isinstance(request.quadrature, Joint) else self._one_after_the_other
        fine, *coarse = [solve_one(equation, path, rules, x, probes) for path, rules in self.solves]
        if not coarse:
            return fine
        difference = (fine.prior + fine.replicates).mean(0) - (coarse[0].prior + coarse[0].replicates).mean(0)
        return replace(
            fine,
            solver_error=_TWICE * difference.abs(),
            divergences=fine.divergences + coarse[0].divergences,
            nfe=fine.nfe + coarse[0].nfe,
        )

    def _one_after_the_other(
        self, equation: ReverseEquation, solver: _PathSolver, rules: NestedRules, x: Tensor, probes: Tensor
    ) -> BatchDensity:
        """First the path, then the divergence along it."""
        path = solver.solve(equation, x)
        along = self.tracer.integrate(equation, rules, path.states, probes)
        seen = replace(path, states=path.states[rules.positions(0)])
        return self._density(equation, x, rules.rules[0], seen, along)

    def _together(
        self, equation: ReverseEquation, solver: _PathSolver, rules: NestedRules, x: Tensor, probes: Tensor
    ) -> BatchDensity:
        """The path of state and log-density; the nodes near the ends apart."""

        def at(now: ReverseEquation, rows: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
            bare = replace(equation, condition=now.condition["network"])
            return self.tracer.evaluate(bare, rows, inputs, now.condition["probes"].movedim(1, 0))

        condition = {"network": equation.condition, "probes": probes.movedim(0, 1)}  # rows that go with the samples
        event, replicates = tuple(x.shape[1:]), self.tracer.divergence.replicates
        both = JointEquation(equation.model, 0.0, condition, event=event, replicates=replicates, traces=at)
        path = solver.solve(both, both.start(x))
        latent, integral = both.parts(path.latent)
        states = torch.stack([both.parts(z)[0] for z in path.states])
        outputs, traces = self.tracer.at(equation, rules.finest, states, range(len(states)), probes)
        unknown = torch.full_like(integral[0], math.nan)
        evaluations = path.evaluations(len(x)).to(x.device) + len(states)
        along = Integrated(integral, unknown, evaluations, outputs, traces.mean(0))
        return self._density(equation, x, rules.finest, replace(path, states=states, latent=latent), along)

    def _density(
        self, equation: ReverseEquation, x: Tensor, nodes: Nodes, path: _Path, along: Integrated
    ) -> BatchDensity:
        """What the path (its states at the ``nodes``) and the divergence along it say of x."""
        D, start, times = math.prod(x.shape[1:]), self.request.grid[0], nodes.times
        rough = roughness(equation, times, along.traces, D)
        with torch.no_grad():
            cost = prior_cost(equation, times, path.states, along.traces, path.latent, start)
        return BatchDensity(
            replicates=along.integral,
            prior=self._log_prior(equation, path.latent, start.item()),
            latent=path.latent,
            quadrature_error=along.error,
            solver_error=None,
            truncation=truncation(equation, times, x, along.outputs, rough[:2]),
            prior_cost=cost,
            roughness=rough,
            divergences=along.evaluations,
            nfe=path.nfe,
            statistics=path.statistics,
        )

    def _log_prior(self, equation: ReverseEquation, latent: Tensor, start: float) -> Tensor:
        density = self.request.prior or equation.sde.prior_logp
        value = density(latent.to(torch.float64), start)
        if not (isinstance(value, Tensor) and value.shape == latent.shape[:1]):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            problem = "it must answer one log density per sample, (B,)"
            raise ArgumentError("prior", found, problem, "Sum over the event.")
        return value


@dataclass(frozen=True, eq=False)
class _Path:
    """``states`` (Q, B, *event) at the wanted times, the state ``latent`` at the last time, and what it took."""

    states: Tensor
    latent: Tensor
    nfe: int
    statistics: Statistics | None

    def evaluations(self, n: int) -> Tensor:
        """Of the network, by each of n samples, (n,)."""
        return torch.full((n,), self.nfe) if self.statistics is None else self.statistics.evaluations


@dataclass(frozen=True, eq=False)
class _PathSolver:
    """A solver and its times, from data up to noise, and the times at which the states are wanted.

    The steps themselves are those of :func:`sde_toolkit.sampling.loop.solve`, or the dense integrator's own.
    """

    solver: Solver
    times: Tensor
    wanted: Tensor
    interpolation: Interpolation | None

    @classmethod
    def prepare(cls, equation: ReverseEquation, solver: Solver, grid: Tensor, wanted: Tensor) -> _PathSolver:
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

    def solve(self, equation: ReverseEquation, x: Tensor) -> _Path:
        """Carry x (B, *event), of the first time, up to the last."""
        integrator = self.solver.integrator
        if isinstance(integrator, DenseIntegrator):
            states, statistics = integrator.states(equation, x, self.times)
            return _Path(states[: len(self.wanted)], states[-1], int(statistics.evaluations.max()), statistics)
        options = Options(x.dtype, x.device, trajectory=True)
        solved = solve(equation, self.solver, self.times, len(x), lambda first, last: (x, _noise_of_step), options)
        states = torch.empty(0)
        if self.interpolation is not None and solved.trajectory is not None:
            states = self.interpolation(solved.trajectory)
        return _Path(states, solved.x, solved.nfe, solved.statistics)


def _tighter(integrator: DenseIntegrator) -> DenseIntegrator:
    given = {name: getattr(integrator, name, None) for name in ("rtol", "atol")}  # an atol of None follows rtol
    return replace(integrator, **{name: _TIGHTER * value for name, value in given.items() if value is not None})


def _noise_of_step(step: int) -> Noise:
    return _refuse_noise


def _refuse_noise() -> Tensor:
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
