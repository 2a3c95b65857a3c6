"""Methods of posterior sampling, ours and those of azula and deepinv, against the exact posterior.

    python benchmarks/posteriors_against_peers.py                      # twenty minutes; pip install azula deepinv
    python benchmarks/posteriors_against_peers.py --problem mnist-inpaint --mnist PATH

Everybody has the same denoiser, the same measurements and the same noise levels. A budget is of evaluations plus
vector-Jacobian products, counted in the denoiser; each row takes as many steps as fit into it.

W2 is the mean over four measurements. In 2 dimensions it is between the samples and as many exact ones, by optimal
transport (POT). In more dimensions that estimator favours samples that are too narrow; there W2 is between the
Gaussians with the moments of samples and posterior (Bures), and for mixtures the weights of the modes stand beside it.
The floor is W2 of as many exact samples.
"""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import ot
import torch
from peers import posteriors_ours
from peers.posterior_problems import NAMES, PosteriorMethodRow, PosteriorProblem, load
from report import Report, parser
from torch import Tensor

from sde_toolkit.errors import NonFiniteError

_MANY: dict[tuple[str, int], Tensor] = {}


@dataclass
class Measured:
    """What a row came to: the means over the measurements."""

    row: PosteriorMethodRow
    steps: int
    evaluations: float
    products: float
    seconds: float
    distance: float  # W2, or the RMSE of the mean to the truth where no posterior is known
    variance: float  # over that of the posterior; without one the mean standard deviation
    offset: float  # of the mean, in standard deviations of the posterior; without one the misfit ‖y − A x‖/(σ_y √m)
    coverage: float  # of 90 % intervals, over the elements of the truths
    modes: float  # total variation of the weights of the components; NaN where there is one, or none is known


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problem", choices=NAMES, action="append", help="default: those with an exact posterior")
    options.add_argument("--budgets", type=int, nargs="+", default=[20, 50, 100])
    options.add_argument("--mnist", type=Path, help="mnist.npz with x_test")
    options.add_argument("--n", type=int, help="samples per measurement; default: 300, for images 8")
    options.add_argument(
        "--only", nargs="+", default=[""], help="rows whose library, name and grid contain all words of one"
    )
    options.add_argument("--show", type=int, default=3, help="rows of each library in the table")
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in given.problem or NAMES[:3]:
        problem = load(name, given.mnist)
        problem.n = given.n or problem.n
        report = Report(given.results, f"posteriors-{name}", f"Posterior sampling: {name}", _installed())
        rows = [row for row in rows_of(problem) if any(_named(row, words) for words in given.only)]
        compare(problem, rows, given.budgets, given.show, report)
        report.save()


def _installed() -> list[str]:
    found = []
    for name in ("azula", "deepinv"):
        try:
            importlib.metadata.version(name)
            found.append(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed; its rows are left out")
    return found


def rows_of(problem: PosteriorProblem) -> list[PosteriorMethodRow]:
    """The rows of all libraries that are installed."""
    rows = posteriors_ours.rows(problem)
    for name in _installed():
        module = __import__(f"peers.posteriors_{name}", fromlist=["rows"])
        rows += module.rows(problem)
    return rows


def _named(row: PosteriorMethodRow, words: str) -> bool:
    return all(word in f"{row.library} {row.name}, {row.grid}" for word in words.split())


def compare(
    problem: PosteriorProblem, rows: list[PosteriorMethodRow], budgets: list[int], show: int, report: Report
) -> None:
    """Tables of a problem, one per budget."""
    if problem.exact:
        floors = [_floor(problem, y, 11 + i) for i, y in enumerate(problem.measurements)]
        floor, spread = _mean(floors), float(torch.tensor(floors).std()) / len(floors) ** 0.5
        report.line(f"{len(rows)} rows. The floor of W2 is {floor:.3f} ± {spread:.3f}.")
    for budget in budgets:
        found = [m for m in (measure(problem, row, budget) for row in rows) if m is not None]
        found.sort(key=lambda m: m.distance)
        report.line(f"## At most {budget} evaluations and products")
        _table(problem, found, show, report)
        if problem.exact and len({m.row.library for m in found}) > 1:
            ours, theirs = (
                min(m.distance for m in found if (m.row.library == "ours") is mine) for mine in (True, False)
            )
            excess = [max(d - floor, spread) for d in (ours, theirs)]
            report.line(f"Excess of the best of ours over that of the best of theirs: {excess[0] / excess[1]:.2f}.")


def _table(problem: PosteriorProblem, found: list[Measured], show: int, report: Report) -> None:
    columns = ("W2", "variance / exact", "mean offset, sd") if problem.exact else ("RMSE of mean", "sd", "misfit")
    report.table("library", "row", *columns, "90 % covers", "modes", "steps", "evaluations", "products", "s")
    shown: dict[str, int] = {}
    for m in found:
        shown[m.row.library] = shown.get(m.row.library, 0) + 1
        if shown[m.row.library] > show and not m.row.default:
            continue
        name = f"{m.row.name}, {m.row.grid}" + " (default)" * m.row.default
        numbers = (f"{m.distance:.3f}", f"{m.variance:.2f}", f"{m.offset:.2f}", f"{m.coverage:.2f}")
        numbers += ("" if m.modes != m.modes else f"{m.modes:.3f}",)
        report.row(
            m.row.library, name, *numbers, m.steps, f"{m.evaluations:.0f}", f"{m.products:.0f}", f"{m.seconds:.2f}"
        )


def measure(problem: PosteriorProblem, row: PosteriorMethodRow, budget: int) -> Measured | None:
    """A row at the most steps that fit into the budget; None where even one does not, or where it fails."""
    problem.grid = row.grid
    steps = _steps_within(problem, row, budget)
    while steps > 0:  # a method that stops by a tolerance may take more products with more samples
        found = _at(problem, row, steps)
        spent = found.evaluations + found.products
        if spent <= budget:
            return found
        steps = min(steps - 1, int(steps * budget / spent))
    return None


def _at(problem: PosteriorProblem, row: PosteriorMethodRow, steps: int) -> Measured:
    cells, evaluations, products, seconds = [], 0, 0, 0.0
    for i, (y, truth) in enumerate(zip(problem.measurements, problem.truths, strict=True)):
        problem.calls = problem.products = 0
        began = time.perf_counter()
        drawn = _drawn(problem, row, y, steps, 100 + i).double()
        seconds += time.perf_counter() - began
        evaluations, products = evaluations + problem.calls, products + problem.products
        cells.append(_judge(problem, y, truth.double(), drawn, 11 + i))
    M = len(cells)
    columns = [_mean(list(cell)) for cell in zip(*cells, strict=True)]
    return Measured(row, steps, evaluations / M, products / M, seconds / M, *columns)


def _drawn(problem: PosteriorProblem, row: PosteriorMethodRow, y: Tensor, steps: int, seed: int) -> Tensor:
    """The samples of a row; NaN where our solvers stop because a state is not finite."""
    try:
        return row.run(problem, y, steps, seed).detach()
    except NonFiniteError:
        problem.calls += steps
        return torch.full((problem.n, *problem.A.event_shape), torch.nan)


def _steps_within(problem: PosteriorProblem, row: PosteriorMethodRow, budget: int) -> int:
    """By bisection, on a few samples: how many products a step takes is known when it was taken."""
    n, problem.n = problem.n, 2
    try:
        low, high = 0, budget
        while low < high:
            middle = (low + high + 1) // 2
            problem.calls = problem.products = 0
            _drawn(problem, row, problem.measurements[0], middle, 1)
            low, high = (middle, high) if problem.calls + problem.products <= budget else (low, middle - 1)
    finally:
        problem.n = n
    return low


def _judge(problem: PosteriorProblem, y: Tensor, truth: Tensor, drawn: Tensor, seed: int) -> tuple[float, ...]:
    flat, truth = drawn.flatten(1), truth.flatten()
    low, high = flat.quantile(0.05, dim=0), flat.quantile(0.95, dim=0)
    covered = ((truth >= low) & (truth <= high)).double().mean().item()
    if not problem.exact:
        misfit = (problem.A.apply(drawn) - y.double()).flatten(1).square().mean(1).sqrt().mean() / problem.noise_std
        rmse = (flat.mean(0) - truth).square().mean().sqrt()
        return rmse.item(), flat.std(0).mean().item(), misfit.item(), covered, float("nan")
    if not bool(flat.isfinite().all()):
        return float("inf"), float("inf"), float("inf"), covered, float("nan")
    exact = _many(problem, y, seed)
    distance = _distance(flat, problem, y, seed)
    variance = (flat.var(0) / exact.var(0)).mean().item()
    offset = ((flat.mean(0) - exact.mean(0)) / exact.std(0)).abs().mean().item()
    return distance, variance, offset, covered, _mode_error(problem, y, flat)


def _many(problem: PosteriorProblem, y: Tensor, seed: int) -> Tensor:
    """Exact samples, enough for moments; drawn once."""
    key = (problem.name, seed)
    if key not in _MANY:
        parts = [problem.posterior_draws(y, 1000, 1000 * (seed + 1) + i) for i in range(20)]
        _MANY[key] = torch.cat(parts).double().flatten(1)
    return _MANY[key]


def _floor(problem: PosteriorProblem, y: Tensor, seed: int) -> float:
    return _distance(problem.posterior_draws(y, problem.n, seed + 500).double().flatten(1), problem, y, seed)


def _distance(x: Tensor, problem: PosteriorProblem, y: Tensor, seed: int) -> float:
    if x.shape[1] > 2:
        return _bures(x, _many(problem, y, seed))
    exact = problem.posterior_draws(y, problem.n, seed).double().flatten(1)
    return float(ot.emd2([], [], torch.cdist(x, exact).square().numpy(), numItermax=10**6)) ** 0.5


def _bures(x: Tensor, y: Tensor) -> float:
    """W2 between the Gaussians with the moments of the rows of x and of y."""
    root = _root(y.mT.cov())
    cross = _root(root @ x.mT.cov() @ root)
    squared = (x.mean(0) - y.mean(0)).square().sum() + (x.mT.cov() + y.mT.cov() - 2 * cross).trace()
    return float(squared.clamp(min=0)) ** 0.5


def _root(C: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(C)
    return axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.mT


def _mode_error(problem: PosteriorProblem, y: Tensor, x: Tensor) -> float:
    """Total variation between the shares of the samples that belong to each component, and the exact weights."""
    parts = problem.model.posterior(problem.A.apply, y, problem.noise_std).network.components()
    if len(parts.log_weights) == 1:
        return float("nan")
    roots = parts.roots()
    covariances = roots @ roots.mT + problem.sigma_min**2 * torch.eye(x.shape[1], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(parts.means, covariances)
    shares = torch.softmax(parts.log_weights + normal.log_prob(x.unsqueeze(1)), dim=1).mean(0)
    return 0.5 * float((shares - parts.log_weights.exp()).abs().sum())


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


if __name__ == "__main__":
    main()
