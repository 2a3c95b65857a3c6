"""What to minimise: our objective against those of LD3 and of bespoke solvers, under one protocol.

    python benchmarks/calibration_objectives.py                    # three models, budget 6: ten minutes

All start from the same plan, ``auto``'s, descend by Adam for the same seconds of this process's own work on the same
noises, with the same mini-batches and rates, and are judged on the same fresh noises: root mean square and median of
the error to a fine solve. What differs is what is free and what is minimised:

    ours        every step any linear combination of the start and of all outputs so far, and the grid;
                ½ log mean e² + ½ mean log e²
    factors     grid and factors of the plan's own weights; the same objective
    soft        grid and factors; c² log(1 + e²/c²), c a tenth of the data's size
    square      grid and factors; e²
    log         grid and factors; log e², the PSNR of bespoke solvers (Shaul et al. 2024, BNS)
    LD3         grid alone; e² from a start that is learned, too, within r σ of the noise, r = 0.1 (Tong et al. 2025,
                the soft teacher; L2 instead of LPIPS)
    LD3+        grid and factors with LD3's objective, as S4S learns coefficients with it (Frankel et al. 2025)
    BNS         what is free in ours; log e²

LD3 learns a second time for each evaluation, and S4S alternates between times and coefficients; both are left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peers.problems import mixture_means, ring_means
from report import Report, parser
from torch import Tensor

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel, auto
from sde_toolkit.batching import columns_like
from sde_toolkit.calibration.plan_errors import Measured
from sde_toolkit.calibration.problem import NoiseSet, Problem, balanced
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.noise.streams import Once, generator_for
from sde_toolkit.sampling.loop import no_noise

MODELS: dict[str, Callable[[], ScoreModel]] = {
    "ring": lambda: GaussianMixture(ring_means(), VPSDE(), std=0.1),
    "64-D mixture": lambda: GaussianMixture(mixture_means(64), VPSDE(), std=0.2),
    "digits": lambda: ScoreModel.from_pretrained("digits"),
}
RADIUS = 0.1  # of LD3's ball, in units of the noise
GRID_RATE, WEIGHT_RATE = 0.05, 0.01


@dataclass(frozen=True)
class Way:
    """What is minimised, and what is free besides the grid: ``factors``, the ``starts``, or ``all`` coefficients."""

    objective: str = "balanced"
    factors: bool = True
    starts: bool = False
    all: bool = False


WAYS = {
    "ours": Way(factors=False, all=True),
    "factors": Way(),
    "soft": Way("soft"),
    "square": Way("square"),
    "log": Way("log"),
    "LD3": Way("square", factors=False, starts=True),
    "LD3+": Way("square", starts=True),
    "BNS": Way("log", factors=False, all=True),
}


class Descended:
    """A plan with free parameters, and its runs."""

    def __init__(self, problem: Problem, plan: Contender, fit: NoiseSet, way: Way) -> None:
        self.problem, self.plan, self.way = problem, plan, way
        self.integrator = plan.solver.integrator
        self.a = plan.increments(problem.earliest).requires_grad_(True)
        steps, count = len(plan.grid) - 1, self.integrator.tunable_weights or 0
        self.factors = torch.ones(steps, count, dtype=torch.float64, requires_grad=way.factors)
        self.moved = torch.zeros_like(fit.noise[0]).requires_grad_(way.starts)
        self.groups = [{"params": [self.a], "rate": GRID_RATE}]
        if way.factors:
            self.groups.append({"params": [self.factors], "rate": WEIGHT_RATE})
        if way.starts:
            self.groups.append({"params": [self.moved], "rate": WEIGHT_RATE})
        self.linear = self._unrolled() if way.all else None
        if self.linear is not None:
            self.linear.requires_grad_(True)
            self.groups.append({"params": [self.linear], "rate": WEIGHT_RATE})

    def table(self, grid: Tensor):  # type: ignore[no-untyped-def]
        ones = ((1.0,) * self.factors.shape[1],) * len(self.factors)
        return Tuned(self.integrator, ones).apply(self.problem.descent.equation, grid, self.factors)

    def end(self, chosen: NoiseSet, rows: Tensor, soft: bool = False) -> Tensor:
        grid = self.plan.grid_at(self.a, self.problem.earliest)
        x = self.problem.starts(chosen.noise, rows)
        if soft:  # at most r standard deviations per element away, as a root mean square
            shift = self.moved[rows]
            size = (shift.reshape(len(shift), -1).square().mean(1) + 1e-24).sqrt()  # with a gradient at 0
            within = torch.minimum(torch.ones_like(size), RADIUS / size.clamp(min=1e-12))
            x = x + self.problem.model.sde.sigma(1.0).to(x) * shift * within.reshape(-1, *[1] * (x.ndim - 1))
        if self.linear is not None:
            return self._combined(grid, x, self.linear)
        found, _ = self.problem.descent.run(self.integrator, grid, x, tweedie=self.plan.tweedie, table=self.table(grid))
        return found

    def _combined(self, grid: Tensor, x: Tensor, linear: Tensor, answers: Tensor | None = None) -> Tensor:
        """x_i = c_i0 x_T + Σ_j c_ij y_j, in units in which x_T and the outputs have size 1; c is ``linear``."""
        equation = self.problem.descent.equation
        start, known, state = x / self.problem.model.sde.sigma(1.0).to(x), [], x
        for i in range(len(linear)):
            if i < len(grid) - 1 or self.plan.tweedie:
                inputs = columns_like(state, equation.inputs(grid[i]))
                known.append(equation.output(state, inputs))
            row = linear[i].to(x)
            state = row[0] * start + sum(row[1 + j] * y for j, y in enumerate(known))
        return state

    @torch.no_grad()
    def _unrolled(self) -> Tensor:
        """The coefficients (evaluations, 1 + evaluations) of the plan itself: its steps applied to unit outputs."""
        evaluations = self.plan.nfe
        equation, grid = self.problem.descent.equation, self.plan.grid
        table = self.integrator.prepare(equation, grid)
        units = torch.eye(1 + evaluations, dtype=torch.float64)
        outputs = iter(units[1:])
        unit = type(equation)(equation.model, equation.eta, None, lambda *a, **k: next(outputs)[None])
        state, found = None, []
        x = self.problem.model.sde.sigma(grid[0]) * units[:1]
        for row in table:
            x, state = self.integrator.step(unit, x, row, state, no_noise)
            found.append(x[0])
        if self.plan.tweedie:
            m, n = equation.view("x0", grid[-1])
            found.append(m * x[0] + n * units[-1])
        return torch.stack(found)


def objective(way: Way, squares: Tensor, size: Tensor) -> Tensor:
    relative = squares / size
    if way.objective == "soft":
        return (0.01 * torch.log1p(relative / 0.01)).mean()
    return (
        relative.mean()
        if way.objective == "square"
        else balanced(relative, 0.5 if way.objective == "balanced" else 0.0)
    )


def squares_of(x: Tensor, target: Tensor) -> Tensor:
    return (x - target).reshape(len(x), -1).square().mean(1).double()


def descend(problem: Problem, plan: Contender, fit: NoiseSet, select: NoiseSet, way: Way, seconds: float) -> Descended:
    """Adam until the seconds are spent; of its states, the one that is best on ``select``, looked at twenty times."""
    made = Descended(problem, plan, fit, way)
    optimizer = torch.optim.Adam(made.groups, lr=0.0, betas=(0.9, 0.99))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    generator = generator_for(problem.seed, Once.MINI_BATCHES, 0)
    began, best, looked = time.process_time(), math.inf, 0
    kept = [p.detach().clone() for p in parameters]
    everything = torch.arange(len(select))
    while (share := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, 0.1 + 9 * share) * 0.5 * (1 + math.cos(math.pi * share))
        rows = torch.randperm(len(fit), generator=generator)[:64]
        squares = squares_of(made.end(fit, rows, way.starts), fit.target[rows])
        gradients = torch.autograd.grad(objective(way, squares, fit.size), parameters)
        if all(bool(g.isfinite().all()) for g in gradients):
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g * min(1.0, 1.0 / max(g.norm().item(), 1e-12))
            optimizer.step()
        if share * 20 >= looked:
            looked += 1
            with torch.no_grad():
                value = objective(way, squares_of(made.end(select, everything), select.target), select.size).item()
            if value < best:
                best, kept = value, [p.detach().clone() for p in parameters]
    for p, value in zip(parameters, kept, strict=True):
        p.data.copy_(value)
    return made


if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    words.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    words.add_argument("--budgets", nargs="+", type=int, default=[6])
    words.add_argument("--seconds", type=float, default=20.0, help="of descent, for each")
    words.add_argument("--n", type=int, default=256, help="noises to fit to, and to judge with; half as many to select")
    given = words.parse_args()
    report = Report(given.results, "calibration-objectives", "What a calibration minimises, under one protocol")
    report.table("model", "evaluations", "way", "RMSE", "median", "seconds")
    for name in given.models:
        model = MODELS[name]()
        dtype = torch.float64 if model.has_exact_score else torch.float32
        problem = Problem(model, 0.0, 0, model.event_shape, dtype, torch.device("cpu"), fine_steps=200)
        fit, select, fresh = (problem.noise_set(max(n, 2)) for n in (given.n, given.n // 2, given.n))
        for nfe in given.budgets:
            plan = auto(model, nfe)
            start = Contender(plan.solver, plan.grid, "auto", plan.tweedie)
            before = problem.squares(start, fresh)
            report.row(name, nfe, "auto", Measured.of(before), Measured.typical(before), "-")
            for way in given.ways:
                made = descend(problem, start, fit, select, WAYS[way], given.seconds)
                with torch.no_grad():
                    after = squares_of(made.end(fresh, torch.arange(len(fresh))), fresh.target)
                report.row(name, nfe, way, Measured.of(after), Measured.typical(after), f"{given.seconds:g}")
    report.save()
