"""Calibration by gradients through the solver: Adam on the increments of the grid and on the factors of its weights.

The integrator's own ``prepare`` is differentiated: coefficients follow the grid. Whether its derivative is right is
checked against a difference quotient first, since some schedules are inverted by bisection, which has none. The
mini-batches come from a large set of noises with known endpoints; the step size rises over a tenth of the iterations
and then falls along a cosine (Loshchilov & Hutter 2017). Gradients are clipped by their running size, because a few
noises near the border between two modes carry most of the error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.errors import SDEToolkitError
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import Integrator, Table
from sde_toolkit.integrators.bespoke import as_bespoke
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["Descending", "bespoke", "differentiable", "optimise", "with_ones"]

_LOOKS = 4  # plans of a long descent, the last one included, that may be selected
_MOST_BESPOKE = 20  # evaluations: a bespoke solver keeps as many states, and has half the square of it as weights
_STEPS = (1e-2, 3e-3, 1e-3, 1e-4)  # of differences: the error jumps where a noise changes mode, and float32 rounds


@dataclass(frozen=True)
class Descending:
    """How to descend: ``iterations`` mini-batches of ``batch`` noises, with these largest step sizes.

    ``number``: each number draws mini-batches of its own.
    ``share``: of the root mean square in the objective (:mod:`.problem`).
    ``looks``: plans on the way that are returned, too; the last of them is the end.
    """

    iterations: int = 300
    batch: int = 512
    grid_rate: float = 0.1
    weight_rate: float = 0.02
    number: int = 0
    share: float = 0.5
    looks: int = 1

    def again(self, number: int, share: float, slower: float) -> Descending:
        """A long descent with other mini-batches, another objective and smaller steps; plans on its way are kept."""
        a, b = self.grid_rate * slower, self.weight_rate * slower
        return replace(self, number=number, share=share, looks=_LOOKS, grid_rate=a, weight_rate=b)


def optimise(
    problem: Problem,
    chosen: NoiseSet,
    plan: Contender,
    how: Descending,
    *,
    weights: bool,
    deadline: float,
    tell: Callable[[float], None] = lambda done: None,
) -> list[Contender]:
    """Plans on the way of the descent and at its end.

    It stops early at ``deadline`` (``time.monotonic``) or after four failures.
    """
    integrator, factors = plan.solver.integrator, _factors(plan.solver.integrator)
    weights = weights and factors is not None
    a = plan.increments(problem.earliest).requires_grad_(True)
    groups = [{"params": [a], "rate": how.grid_rate}]
    if weights and factors is not None:
        factors = factors.requires_grad_(True)
        groups.append({"params": [factors], "rate": how.weight_rate})
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    generator = generator_for(problem.seed, Once.MINI_BATCHES, how.number)
    size = min(how.batch, len(chosen))
    sizes: dict[int, float] = {}
    began = time.monotonic()
    budget = max(deadline - began, 1e-9)
    failures = 0
    found: list[Contender] = []
    for i in range(how.iterations):
        late = (time.monotonic() - began) / budget
        if late >= 1 or failures > 3:
            break
        share = max(i / how.iterations, late) if i else 0.0  # so that the rates reach 0 at the deadline
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, 0.1 + 9 * share) * 0.5 * (1 + math.cos(math.pi * share))
        rows = torch.randperm(len(chosen), generator=generator)[:size].to(problem.device)
        before = [p.detach().clone() for p in parameters]
        try:
            grid = plan.grid_at(a, problem.earliest)
            table = _table(problem, integrator, factors, grid)
            where = (chosen, rows, problem.directions(generator))
            loss = problem.loss(integrator, grid, table, *where, tweedie=plan.tweedie, share=how.share)
            gradients = torch.autograd.grad(loss, parameters)  # the network's own parameters get none
        except SDEToolkitError:
            failures += 1
            continue
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        if not bool(loss.isfinite()) or not all(bool(p.grad.isfinite().all()) for p in parameters):
            failures += 1
            continue
        for k, p in enumerate(parameters):
            norm = p.grad.norm().item()
            usual = sizes.get(k, norm)
            sizes[k] = 0.9 * usual + 0.1 * min(norm, 30 * usual)
            p.grad.mul_(min(1.0, 10 * usual / max(norm, 1e-300)))
        optimizer.step()
        if not bool((plan.grid_at(a.detach(), problem.earliest).diff() < 0).all()):  # rounding made two times equal
            for p, old in zip(parameters, before, strict=True):
                p.data.copy_(old)
            failures += 1
        if share * how.looks >= len(found) + 1:
            found.append(_with_factors(plan, plan.grid_at(a.detach(), problem.earliest), factors))
        tell(share)
    return [*found, _with_factors(plan, plan.grid_at(a.detach(), problem.earliest), factors)]


def differentiable(problem: Problem, chosen: NoiseSet, plan: Contender, *, n: int = 16) -> bool:
    """Whether the gradient in the grid is right: differences along it, and along it with every second sign changed,
    agree with it to a tenth of its norm. In mean log e², on which a noise that changes mode has little weight."""
    integrator, factors = plan.solver.integrator, _factors(plan.solver.integrator)
    a = plan.increments(problem.earliest).requires_grad_(True)
    rows = torch.arange(min(n, len(chosen)), device=problem.device)
    directions = problem.directions(generator_for(problem.seed, Once.GRADIENT_CHECK))

    def loss(at: Tensor) -> Tensor:
        grid = plan.grid_at(at, problem.earliest)
        table = _table(problem, integrator, factors, grid)
        return problem.loss(integrator, grid, table, chosen, rows, directions, tweedie=plan.tweedie, share=0.0)

    try:
        (gradient,) = torch.autograd.grad(loss(a), a)
        slope = gradient.norm().item()
        if not (math.isfinite(slope) and slope > 0):
            return False
        signs = 1.0 - 2.0 * (torch.arange(len(gradient), device=gradient.device) % 2)
        for along in (gradient / slope, signs * gradient / slope):
            wanted = (gradient @ along).item()
            if not any(abs(_difference(loss, a, along, h) - wanted) <= 0.1 * slope for h in _STEPS):
                return False
        return True
    except (SDEToolkitError, RuntimeError):
        pass
    return False


@torch.no_grad()
def _difference(loss: Callable[[Tensor], Tensor], a: Tensor, along: Tensor, h: float) -> float:
    ahead, behind = (loss(a + sign * h * along).item() for sign in (1, -1))
    return (ahead - behind) / (2 * h)


def _factors(integrator: Integrator) -> Tensor | None:
    """What is learned, as a tensor; None where there is nothing."""
    factors = integrator.learned_factors
    return None if factors is None else torch.tensor(factors, dtype=torch.float64)


def _table(problem: Problem, integrator: Integrator, factors: Tensor | None, grid: Tensor) -> Table:
    equation = problem.descent.equation
    return integrator.prepare(equation, grid) if factors is None else integrator.apply(equation, grid, factors)


def with_ones(plan: Contender) -> Contender:
    """The same plan with factors of 1, where it can have factors."""
    integrator = plan.solver.integrator
    count = integrator.tunable_weights
    if count is None:
        return plan
    ones = ((1.0,) * count,) * (len(plan.grid) - 1)
    return replace(plan, solver=replace(plan.solver, integrator=Tuned(integrator, ones)))


def bespoke(problem: Problem, plan: Contender) -> Contender | None:
    """The same plan as a bespoke solver, all of whose weights are free; None where it is none."""
    grid, equation = plan.grid, problem.descent.equation
    if plan.solver.integrator.learned_factors is not None or plan.nfe > _MOST_BESPOKE:
        return None
    try:
        found = as_bespoke(plan.solver.integrator, equation, grid, tweedie=plan.tweedie)
    except SDEToolkitError:
        return None
    ended = torch.cat([grid, grid.new_zeros(1)]) if plan.tweedie else grid
    return replace(plan, solver=replace(plan.solver, integrator=found), grid=ended, tweedie=False)


def _with_factors(plan: Contender, grid: Tensor, factors: Tensor | None) -> Contender:
    integrator = plan.solver.integrator
    if factors is not None:
        integrator = integrator.relearned(tuple(tuple(row) for row in factors.detach().tolist()))
    return replace(plan, solver=replace(plan.solver, integrator=integrator), grid=check_grid(grid))
