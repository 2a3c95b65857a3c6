"""Other people's solvers: a function ``run(denoise, sigmas, x, rng)``, from the same noise and counted as ours are.

    def euler(denoise, sigmas, x, rng):
        for r, s in zip(sigmas[:-1], sigmas[1:]):
            x = x + (s - r) * (x - denoise(x, r)) / r
        return x

    denoise     D(x, sigma): the denoised estimate x̂_0 of x at the noise level sigma. A network is evaluated
    sigmas      the levels σ/α, decreasing, float64 on the CPU; the last one is 0
    x           the state x_t/α at sigmas[0], (B, *event)
    rng         rng(): the next standard normal noise of x's shape, with a stream for each sample

It returns x at the last level. A rehearsal without the network finds out how many evaluations it makes in so many
steps, and whether it draws noise.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.grids import check_grid, karras
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import first_time
from sde_toolkit.sampling.foreign_denoiser import (
    Denoiser,
    GaussianDenoiser,
    ModelDenoiser,
    SampleNoise,
    noise_of_samples,
)
from sde_toolkit.sampling.monitors import Meter
from sde_toolkit.solvers import GridBuilder

__all__ = ["ForeignPlan", "ForeignSample", "ForeignSolver", "is_run_function", "plan_foreign", "run_foreign"]

RunFunction: TypeAlias = Callable[[Any, Tensor, Tensor, Any], Tensor]
"""run(denoise, sigmas, x, rng) -> x."""

_REHEARSAL_SAMPLES = 2  # samples in a rehearsal


def is_run_function(value: Any) -> bool:
    """Whether it is a function of exactly four positional arguments, as ``run(denoise, sigmas, x, rng)`` is."""
    if not callable(value) or isinstance(value, type):
        return False
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return False
    for count in (3, 4):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count == 4
    return False


@dataclass(frozen=True)
class ForeignSolver:
    """A solver of someone else: a function that steps from noise to data.

    Args:
        name: of the row.
        run: ``run(denoise, sigmas, x, rng) -> x``, see :mod:`sde_toolkit.sampling.foreign_solver`.
        library: where it comes from; "" for code of your own.
        grid: builds the times whose σ/α are ``sigmas``: (sde, steps) to decreasing times, as
            :mod:`sde_toolkit.grids` has them. A last level 0 follows where the grid leaves noise.

    Raises:
        ArgumentError: for a ``run`` that is not a function of four arguments, or a name or grid that is none.
    """

    name: str
    run: RunFunction
    library: str = ""
    grid: GridBuilder = karras

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ArgumentError("name", self.name, "not a name", 'Pass the name of its row, "mine" for example.')
        if not isinstance(self.library, str):
            raise ArgumentError("library", self.library, "not a name", 'Leave it out, or pass "diffusers" or the like.')
        if not is_run_function(self.run):
            problem = "not a function of four arguments: the denoiser, the noise levels, the state and the noise"
            raise ArgumentError("run", self.run, problem, "Write def run(denoise, sigmas, x, rng), which returns x.")
        if not callable(self.grid) or isinstance(self.grid, type):
            problem = "not a function of an SDE and a number of steps"
            raise ArgumentError("grid", self.grid, problem, "Pass grids.karras, for example.")


@dataclass(frozen=True, eq=False)
class ForeignPlan:
    """A foreign solver on noise levels that its budget allows.

    Attributes:
        sigmas: decreasing float64 levels σ/α; the last one is 0.
        times: those of the levels above 0, and t = 0 where the grid itself ends there.
        nfe: evaluations of networks that it made in the rehearsal.
        stochastic: whether other noise led to another result there.
        budget: evaluations of networks that are allowed.
    """

    solver: ForeignSolver
    sigmas: Tensor
    times: Tensor
    nfe: int
    stochastic: bool
    budget: int


class ForeignSample(NamedTuple):
    """What a foreign solver returned, in model space (B, *event), and what was counted and measured."""

    x: Tensor
    nfe: int
    seconds: float
    network_seconds: float


def plan_foreign(
    model: ScoreModel,
    solver: ForeignSolver,
    nfe: int,
    build: GridBuilder | None = None,
    *,
    device: torch.device | str = "cpu",
) -> ForeignPlan:
    """The most steps of a foreign solver that ``nfe`` evaluations of networks allow, found by rehearsals.

    A rehearsal runs the solver on two samples, with the exact denoiser of a Gaussian of the data's size in place of the
    model. An error that the solver raises in it passes through.

    Args:
        model: with an ``event_shape``.
        build: another grid than ``solver.grid``.
        device: of the rehearsals.

    Raises:
        ArgumentError: if one step needs more than ``nfe`` evaluations, or the solver returns no state.
        GridError: for a grid without a finite first level.
    """
    allowed = check_count("nfe", nfe, "Pass nfe=20, for example.", most=MOST)
    rehearsal = _Rehearsal(model, solver, build or solver.grid, allowed, torch.device(device))
    steps, needed = allowed // model.evaluations_inside, 0
    while steps >= 1 and (needed := rehearsal.count(steps)) > allowed:
        steps = min(steps - 1, steps * allowed // needed)
    if steps < 1:
        problem = f"{solver.name} makes {needed or model.evaluations_inside} evaluations in one step"
        raise ArgumentError("nfe", nfe, problem, "Raise the number, or leave the solver out.")
    needed = rehearsal.count(steps)
    while steps < allowed and (more := rehearsal.count_if_possible(steps + 1)) <= allowed:
        steps, needed = steps + 1, more
    times, sigmas = rehearsal.levels(steps)
    return ForeignPlan(solver, sigmas, times, needed, rehearsal.draws_noise(steps), allowed)


@dataclass(eq=False)
class _Rehearsal:
    """Runs of a solver on a Gaussian."""

    model: ScoreModel
    solver: ForeignSolver
    build: GridBuilder
    allowed: int
    device: torch.device
    known: dict[tuple[int, int], tuple[Tensor, int]] = field(default_factory=dict)
    found: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def levels(self, steps: int) -> tuple[Tensor, Tensor]:
        """(times, sigmas) of so many steps: steps + 1 levels, the last of them 0."""
        if steps not in self.found:
            self.found[steps] = self._levels(steps)
        return self.found[steps]

    def _levels(self, steps: int) -> tuple[Tensor, Tensor]:
        one = self._built(1)
        if self._ratio(one[-1:]).item() == 0:
            times = one if steps == 1 else self._built(steps)
            return times, self._ratio(times)
        times = one[:1] if steps == 1 else self._built(steps - 1)
        return times, torch.cat([self._ratio(times), torch.zeros(1, dtype=torch.float64)])

    def _built(self, steps: int) -> Tensor:
        """The grid from t = 1, or from where its noise level is finite."""
        sde = self.model.sde
        takes_start = "start" in inspect.signature(self.build).parameters
        try:
            times = check_grid(self.build(sde, steps))
        except ArgumentError:
            if sde.alpha(1.0) > 0 or not takes_start:
                raise
            times = None
        if times is None or (takes_start and bool(self._ratio(times[:1]).isinf())):
            times = check_grid(self.build(sde, steps, start=first_time(self.model)))  # type: ignore[call-arg]
        if len(times) != steps + 1:
            problem = f"for {steps} steps it gave {len(times)} times"
            raise GridError("grid", self.build, problem, f"Return {steps + 1} decreasing times.")
        if bool(self._ratio(times[:1]).isinf()):
            problem = "σ/α is infinite at the first time, because α = 0 there"
            raise GridError("grid", times[0].item(), problem, "Give the function an argument start=, and begin there.")
        return times

    def _ratio(self, times: Tensor) -> Tensor:
        return torch.exp(-self.model.sde.half_log_snr(times))

    def count(self, steps: int) -> int:
        """Evaluations of networks in so many steps; where they are far too many, a number that is too large."""
        return self._rehearse(steps, seed=0)[1]

    def count_if_possible(self, steps: int) -> int:
        """The same; a number that is too large if the solver cannot do it."""
        try:
            return self.count(steps)
        except Exception:  # whatever foreign code raises; the steps before are known to work
            return self.allowed + 1

    def draws_noise(self, steps: int) -> bool:
        """Whether other noise leads to another result from the same start."""
        return not torch.equal(self._rehearse(steps, seed=0)[0], self._rehearse(steps, seed=1)[0])

    def _rehearse(self, steps: int, seed: int) -> tuple[Tensor, int]:
        """The result, and the evaluations of networks."""
        if (steps, seed) not in self.known:
            model, (_, sigmas) = self.model, self.levels(steps)
            shape = (_REHEARSAL_SAMPLES, *(model.event_shape or ()))
            denoise = GaussianDenoiser(model.sigma_data, shape, 4 * self.allowed, model.evaluations_inside)
            start = SampleNoise(0, 0, shape, torch.float32, self.device)()
            noise = SampleNoise(seed, _REHEARSAL_SAMPLES, shape, torch.float32, self.device)
            try:
                result = _result_of(self.solver, denoise, sigmas, start, noise)
            except MaxEvaluationsError:
                result = start
            self.known[steps, seed] = result, denoise.nfe
        return self.known[steps, seed]


def _result_of(
    solver: ForeignSolver, denoise: Denoiser, sigmas: Tensor, z: Tensor, noise: SampleNoise, draws: bool = True
) -> Tensor:
    """What the solver makes of standard normal ``z``, checked.

    Raises:
        ArgumentError: unless it is a tensor of the shape of z.
    """
    with torch.no_grad(), noise_of_samples(noise, denoise, z.device, draws):
        x = solver.run(denoise, sigmas.clone(), sigmas[0].to(z.dtype).to(z.device) * z, noise)
    if not isinstance(x, Tensor) or x.shape != z.shape or not x.is_floating_point():
        found = f"shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        problem = f"it returned {found}, and the state is a floating-point tensor of shape {tuple(z.shape)}"
        raise ArgumentError(f"solver {solver.name!r}", solver.run, problem, "Return the state at the last level.")
    return x.to(z.device, z.dtype)


def run_foreign(
    model: ScoreModel,
    plan: ForeignPlan,
    first: int,
    last: int,
    *,
    seed: int = 0,
    condition: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    callback: Callable[[], object] | None = None,
) -> ForeignSample:
    """The samples ``first`` to ``last`` (exclusive) of a foreign solver, from the starts of ``sample(seed=seed)``.

    Args:
        condition: handed to the network; tensors in it have one row for each of these samples.
        callback: called after each evaluation of the model.

    Raises:
        MaxEvaluationsError: if it makes more evaluations of networks than ``plan.budget``.
        NonFiniteError: if it returns what is not finite; ``step`` counts evaluations.
        ArgumentError: if it returns no state. Errors of the solver's own code pass through as they are.
    """
    began, where = time.perf_counter(), torch.device(device)
    shape = (last - first, *(model.event_shape or ()))
    noise = SampleNoise(seed, first, shape, dtype, where)
    meter = Meter(model, where)
    equation = ReverseEquation(model, 0.0, condition, meter.evaluate)
    denoise = ModelDenoiser(equation, plan.times, meter, shape, plan.budget, callback)
    x = _result_of(plan.solver, denoise, plan.sigmas, noise(), noise, draws=plan.stochastic)
    if not bool(x.isfinite().all()):
        fault = denoise.first_not_finite()
        what = "the state that it gives to" if fault < len(denoise.looked_at) else "its result after"
        problem = f"{plan.solver.name}: {what} the network is not finite"
        remedy = "Look for NaN in the network's output; a finer grid helps if the solver diverged."
        raise NonFiniteError(problem, step=fault, remedy=remedy)
    return ForeignSample(x, meter.calls, time.perf_counter() - began, meter.seconds())
