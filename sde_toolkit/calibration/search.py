"""Calibration without gradients: pattern search over smooth warps of a grid, and weights by least squares.

The pattern search (Hooke & Jeeves 1961) moves along the first few cosines of the logarithms of the steps and along the
end of the grid. The weights follow one step at a time: on the actual run, x_s is linear in the factors of its step, and
they are fitted to the fine trajectory's state by least squares, drawn towards 1 by a ridge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sde_toolkit.calibration.increments import warp_modes
from sde_toolkit.calibration.plan_errors import combined
from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.calibration.reference import solve_finely
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import SDEToolkitError
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import Table
from sde_toolkit.integrators.tuned import Tuned, multiplied, tilt
from sde_toolkit.sampling.loop import no_noise

__all__ = ["fitted_weights", "pattern_search", "score"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_FINEST = 0.03


def score(problem: Problem, plan: Contender, chosen: NoiseSet, n: int | None = None, share: float = 0.5) -> float:
    """What plans are ranked by: mean square and median in one (η > 0: the distance); infinite if the plan cannot run.

    With the median, a few noises that change mode do not decide (:mod:`sde_toolkit.calibration.plan_errors`).
    """
    try:
        squares = problem.squares(plan, chosen, n)
    except SDEToolkitError:
        return torch.inf
    return combined(squares, share) if problem.eta == 0 else squares.mean().item()


def pattern_search(
    problem: Problem,
    chosen: NoiseSet,
    plan: Contender,
    *,
    n: int,
    deadline: float,
    runs: int = 150,
    modes: int = 4,
    tell: Callable[[float], None] = lambda done: None,
) -> Contender:
    """The best grid found within ``runs`` runs of ``n`` noises, or before ``deadline``."""
    steps = len(plan.evaluated) - 1
    a = plan.increments(problem.earliest)
    directions = warp_modes(a, steps, min(modes, max(steps - 1, 0)))
    sizes = torch.full((len(directions),), 0.4, dtype=a.dtype)
    best, value, done = plan, score(problem, plan, chosen, n), 1
    while len(directions) and bool(sizes.max() > _FINEST):
        for d, direction in enumerate(directions):
            for sign in (1.0, -1.0):
                if done >= runs or time.monotonic() > deadline:
                    return best
                b = a + sign * sizes[d] * direction
                grid = plan.grid_at(b, problem.earliest)
                done += 1
                tell(done / runs)
                tried = replace(plan, grid=grid)
                found = score(problem, tried, chosen, n) if bool((grid.diff() < 0).all()) else torch.inf
                if found < value:
                    best, value, a = replace(plan, grid=check_grid(grid)), found, b
                    sizes[d] *= 1.5
                    break
            else:
                sizes[d] *= 0.5
    return best


def fitted_weights(problem: Problem, chosen: NoiseSet, plan: Contender, *, n: int | None = None) -> Iterator[Contender]:
    """The plan with fitted factors, for ridges from weak to strong. None if it has no factors, or draws noise."""
    integrator = plan.solver.integrator
    count = integrator.tunable_weights
    if count is None or problem.eta > 0:
        return
    n = len(chosen) if n is None else min(n, len(chosen))
    if plan.tweedie:
        targets = _states_at(problem, chosen, plan.grid, n)
    else:  # the last step goes to the data, where the network need not be defined
        before = _states_at(problem, chosen, plan.grid[:-1], n)
        targets = torch.cat([before, chosen.target[None, :n]])
    for ridge in RIDGES:
        rows = _fit(problem, chosen, plan, count, targets, ridge)
        if rows is not None:
            yield replace(plan, solver=replace(plan.solver, integrator=Tuned(integrator, rows)))


def _states_at(problem: Problem, chosen: NoiseSet, grid: Tensor, n: int) -> Tensor:
    """The fine trajectory at the knots: its own times, and the grid's among them."""
    times = torch.unique(torch.cat([problem.times, grid])).flip(0)
    near = torch.cat([torch.tensor([False]), (times[:-1] - times[1:]) < 1e-9])  # a knot beside a fine time
    times = times[~near | torch.isin(times, grid)]
    where = [int(torch.nonzero(times == t)[0]) for t in grid]
    kept = []
    for rows in problem.batches(n):
        x = problem.starts(chosen.noise, rows)
        states = [x]
        last = times[: where[-1] + 1] if where[-1] else times
        path = _path_from(problem, x, last)
        states += [path[k] for k in where[1:]]
        kept.append(torch.stack(states))
    return torch.cat(kept, dim=1)


@torch.no_grad()
def _path_from(problem: Problem, x: Tensor, times: Tensor) -> Tensor:
    states = solve_finely(problem.flow, x, times, keep=True).states
    return x.unsqueeze(0) if states is None else states


@torch.no_grad()
def _fit(
    problem: Problem, chosen: NoiseSet, plan: Contender, count: int, targets: Tensor, ridge: float
) -> tuple[tuple[float, ...], ...] | None:
    """Factors of every step, fitted in turn: a step starts from the state that the fitted steps before it lead to.

    It loops over the steps by itself: a row is known only after the state before it, and each is tried many times.
    """
    integrator = plan.solver.integrator
    free = list(range(integrator.linear_weights or 0))
    x, n = targets[0], targets.shape[1]
    state = None
    found = []
    table = integrator.prepare(problem.descent.equation, plan.grid)
    tilts = tilt(problem.descent.equation, plan.grid, integrator.first_evaluation)
    for k, wanted in enumerate(targets[1:]):
        memory: list[Tensor] = []
        equation = _remembering(problem, memory)

        def stepped(factors: Tensor, k: int = k, equation: ReverseEquation = equation):  # type: ignore[no-untyped-def]
            row = Table(table.values[k : k + 1], table.layout)
            tuned = multiplied(integrator, row, factors[None], tilts[k : k + 1])
            return integrator.step(equation, x, tuned.to(x.device, x.dtype)[0], state, no_noise)  # noqa: B023

        ones = torch.ones(count, dtype=torch.float64)
        base = stepped(ones)[0]
        without = []
        for c in free:
            factors = ones.clone()
            factors[c] = 0.0
            without.append((base - stepped(factors)[0]).flatten())
        R, rest = torch.stack(without).double(), (wanted - base).flatten().double()
        normal = R @ R.T
        normal += ridge * torch.diag(normal.diagonal())
        # A factor without effect in this step gives a row of zeros. The usual driver would stop at it.
        change = torch.linalg.lstsq(normal.cpu(), (R @ rest).cpu().unsqueeze(1), driver="gelsd").solution[:, 0]
        ones[free] += change
        if not bool(ones.isfinite().all()):
            return None
        found.append(tuple(ones.tolist()))
        x, state = stepped(ones)
    return tuple(found) if n else None


def _remembering(problem: Problem, memory: list[Tensor]) -> ReverseEquation:
    """The equation with one network evaluation per step, which all trials of the step share."""

    def evaluate(*arguments: object) -> Tensor:
        if not memory:
            memory.append(problem.descent.equation.output(*arguments[:2]))  # type: ignore[arg-type]
        return memory[0]

    equation = problem.descent.equation
    return ReverseEquation(equation.model, equation.eta, equation.condition, evaluate)
