"""``sample_particles``: ensembles of weighted particles, for laws that no change of x̂_0 draws from exactly.

As the number of particles grows, weighted averages tend to those of the law aimed at, whatever the prior. The price is
that the samples of an ensemble depend on one another. An ensemble depends on no other.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_amount, check_count, is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, NonFiniteError, warn_caller
from sde_toolkit.grids import check_grid, uniform_lambda
from sde_toolkit.guidance.class_guidance import ClassifierFree
from sde_toolkit.guidance.ensemble_weights import Weights, doubled, evidence_error, log_mean
from sde_toolkit.guidance.ensembles import Ensemble
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.pigdm import PiGDM
from sde_toolkit.guidance.posterior_model import Posterior
from sde_toolkit.guidance.tds import TDS
from sde_toolkit.guidance.tilt_rule import Tilt
from sde_toolkit.guidance.tilted_class import TiltedClass
from sde_toolkit.guidance.weight_rules import WeightRule
from sde_toolkit.guidance.weighted_step import EnsembleNoise, WeightedStep, repeated
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose, per_sample_noise
from sde_toolkit.sampling.arguments import check_model, check_run, check_shape
from sde_toolkit.sampling.automatic import usual_plan
from sde_toolkit.sampling.loop import Options, rows_of, solve
from sde_toolkit.solvers import Solver

__all__ = ["sample_particles"]


def sample_particles(
    model: ScoreModel,
    target: WeightRule | Measurement | Callable[[Tensor], Tensor] | None = None,
    grid: Tensor | None = None,
    *,
    particles: int,
    shape: tuple[int, ...],
    steps: int | None = None,
    eta: float = 1.0,
    order: int = 2,
    resample_below: float = 0.5,
    condition: Any = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int | None = None,
    check_finite: bool = True,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Ensemble:
    """Draw n ensembles of K weighted particles from the law that ``target`` aims at.

    Args:
        model: in evaluation mode. ``posterior(model, A, y, noise_std)``: the law is the posterior (:class:`TDS`).
            ``classifier_free(model, scale)``: the law is p(x | class)^γ p(x)^(1 − γ) (:class:`TiltedClass`).
            Any other score model, with a ``target``.
        target: a weight rule, such as :class:`TDS` with its settings; a measurement in model space: the posterior, by
            :class:`PiGDM`; a function of data (B, *event) to log-weights (B,): the law is p(x) exp(log-weight)
            (:class:`Tilt`).
        grid: decreasing times. None: ``steps`` of equal length in λ.
        particles: K, of each ensemble.
        shape: (n, *event): n ensembles.
        steps: of the usual grid.
        eta: η of the exponential steps, above 0.
        order: 1 or 2, the weak order of the reference path, which is what the sampler draws without a target: ancestral
            sampling, or DPM-Solver++ 2M. In both the error of weights and evidence tends to 0 with the number of steps.
        resample_below: an ensemble is resampled where its effective size is at most this part of K. 0: never.
        condition: as of the model, with one row per ensemble.
        seed, first_index: ensemble i draws from its own streams (seed, first_index + i), whatever the batch.
        batch_size: ensembles that go through the network together, with all their particles; all by default.
        check_finite, progress, dtype, device: as in :func:`~sde_toolkit.sample`.

    Warns where an ensemble has collapsed (:attr:`Ensemble.collapsed`).

    Raises:
        ArgumentError, GridError: before any evaluation, for whatever does not fit together.
        NonFiniteError: where the state is no longer finite, or all weights of an ensemble vanish.
    """
    began = time.perf_counter()
    check_model(model)
    check_evaluation_mode(model)
    model, rule = _model_and_rule(model, target)
    shape = _checked_shape(model, shape, particles)
    rule.check(model, shape, condition)
    solver = _solver_of(rule, eta, resample_below, order)
    grid = _grid_of(model, solver, grid, steps)
    options = check_run(
        model, solver, grid, shape, ("x_start", None), condition=condition, differentiable=False,
        dtype=dtype, device=device, batch_size=batch_size, check_finite=check_finite, progress=progress,
    )  # fmt: skip
    states: list[Weights] = []
    starts = _EnsembleStarts(model, grid, (shape[0], particles, *shape[1:]), seed, first_index, options)
    with torch.no_grad():
        equation = ReverseEquation(model, eta, condition)
        solved = solve(equation, solver, grid, shape[0], starts, options, keep_state=states.append)
        weights = _at_the_data(rule, model, states, solved.x, condition)
    _check_weights(weights, len(grid))
    ensemble = Ensemble(
        solved.x,
        torch.log_softmax(weights.log_weights, dim=1),
        weights.log_evidence,
        evidence_error(weights),
        torch.stack(weights.sizes, dim=1),
        weights.resamplings,
        _distinct(weights.starts),
        nfe=solved.nfe,
        products=solved.products,
        grid=grid,
        eta=float(eta),
        rule=rule,
        seed=seed,
        first_index=first_index,
        seconds=time.perf_counter() - began,
        transform=model.transform,
    )
    _report_collapse(ensemble)
    return ensemble


def _checked_shape(model: ScoreModel, shape: Any, particles: Any) -> tuple[int, ...]:
    """(n, *event) of the ensembles, once it and K are known to be such numbers."""
    check_count("particles", particles, "Pass particles=256, for example.")
    if not isinstance(shape, (tuple, list)):
        raise ArgumentError("shape", shape, "not a shape", "Pass (n, *event).")
    shape = tuple(shape)
    check_shape(model, "shape", shape, None)
    check_amount("particles", particles, particles * math.prod(shape))
    return shape


def _solver_of(rule: WeightRule, eta: float, resample_below: Any, order: int) -> Solver:
    if not (is_number(resample_below) and 0 <= resample_below <= 1):
        raise ArgumentError("resample_below", resample_below, "a part of K lies between 0 and 1", "0.5 is usual.")
    return Solver("particles", eta, WeightedStep(rule, float(resample_below), order), uniform_lambda)


def _grid_of(model: ScoreModel, solver: Solver, grid: Tensor | None, steps: int | None) -> Tensor:
    if grid is None:
        return usual_plan(model, solver, steps=steps).grid
    if steps is not None:
        problem = "a grid was given, which says how many steps there are"
        raise ArgumentError("steps", steps, problem, "Pass one of the two.")
    solver.integrator.check(ReverseEquation(model, solver.eta))
    return check_grid(grid)


def _check_weights(weights: Weights, steps: int) -> None:
    """Refuse ensembles without any weight."""
    finite = weights.log_evidence.isfinite()
    if not bool(finite.all()):
        i = int((~finite).int().argmax())
        problem = f"the weights of ensemble {i} all vanish, or are not finite,"
        remedy = "Use more particles, a larger noise_std, or a log-weight that is finite."
        raise NonFiniteError(problem, step=steps, remedy=remedy)


@dataclass(frozen=True, eq=False)
class _EnsembleStarts:
    """The particles at ``grid[0]`` of a batch of ensembles, and their noise. ``shape``: (n, K, *event)."""

    model: ScoreModel
    grid: Tensor
    shape: tuple[int, ...]
    seed: int
    first_index: int
    options: Options

    def __call__(self, first: int, last: int) -> tuple[Tensor, Callable[[int], EnsembleNoise]]:
        dtype, device = self.options.dtype, self.options.device
        index, shape = self.first_index + first, (last - first, *self.shape[1:])
        normal = per_sample_noise(self.seed, index, shape, dtype=dtype, device=device)
        noise = _Noise(normal, KeyedDraws(self.seed, Purpose.RESAMPLING, device), index, last - first, device)
        return self.model.sde.sigma(self.grid[0]).to(device, dtype) * normal(), lambda step: noise


@dataclass(frozen=True, eq=False)
class _Noise:
    """See :class:`EnsembleNoise`."""

    normal: Callable[[], Tensor]
    draws: KeyedDraws
    first_index: int
    n: int
    device: torch.device
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self) -> Tensor:
        return self.normal()

    def offsets(self) -> Tensor:
        uniform = self.draws.uniform(next(self.numbers), self.first_index, (self.n,))
        return doubled(uniform.to(self.device, torch.float32 if self.device.type == "mps" else None, non_blocking=True))


def _model_and_rule(model: ScoreModel, target: Any) -> tuple[ScoreModel, WeightRule]:
    """The model of the reference path, and what its particles are weighted with."""
    if target is None:
        if isinstance(model, Posterior):
            return model.network, TDS(model)
        if isinstance(model, ClassifierFree):
            return model.network, TiltedClass(model)
        remedy = "Pass a target, or posterior(model, A, y, noise_std) or classifier_free(model, scale) as the model."
        raise ArgumentError("target", None, f"a {type(model).__name__} does not say what it is guided to", remedy)
    if isinstance(target, Measurement):
        return model, TDS(Posterior(model, target, PiGDM()))
    if isinstance(target, WeightRule):
        return model, target
    if callable(target):
        return model, Tilt(target)
    remedy = "Pass a Measurement, a function of data to log-weights, or a rule such as TDS(posterior(...))."
    raise ArgumentError("target", target, "neither a measurement nor a function nor a weight rule", remedy)


def _at_the_data(rule: WeightRule, model: ScoreModel, states: list[Weights], x: Tensor, condition: Any) -> Weights:
    """The weights of all batches, with the potential itself in place of its last estimate."""
    parts, first = [], 0
    for state in states:
        n, K = state.log_weights.shape
        rows = repeated(rows_of(condition, first, first + n), K)
        parts.append(state.told(rule.log_potential(x[first : first + n].flatten(0, 1), model, rows)))
        first += n
    weights = Weights.joined(parts)
    return replace(weights, log_evidence=weights.log_evidence + log_mean(weights.log_weights))


def _distinct(starts: Tensor) -> Tensor:
    """How many different numbers are in each row of (n, K) integers from 0 to K − 1."""
    seen = torch.zeros_like(starts).scatter_(1, starts, 1)
    return seen.sum(1)


def _report_collapse(ensemble: Ensemble) -> None:
    collapsed = ensemble.collapsed
    if ensemble.particles == 1 or not bool(collapsed.any()):
        return
    i = int(collapsed.int().argmax())
    size, starts = ensemble.effective_size[i].item(), int(ensemble.starts[i])
    warn_caller(
        f"{int(collapsed.sum())} of {len(collapsed)} ensembles have collapsed. Number {i} has an effective size of "
        f"{size:.3g} of {ensemble.particles} particles, which descend from {starts} of as many starts. Its spread "
        "and its standard error mean little. Use more particles, more steps, or a rule whose estimates are better."
    )
