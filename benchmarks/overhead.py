"""What a sampling step costs beyond its network: ratios, measured in turn in one process.

    python benchmarks/overhead.py            # two minutes

1. A network that returns its input, at 16×3×32×32, against a bare torch loop of the fewest operations that any
   implementation needs: two products and a sum; with noise one draw, one product and one sum more.
2. Multistep and several-stage steps, against a bare loop of as many products and sums as their formulas have (plain),
   and one of fused multiply-adds (fused); without and with the finite check, the coefficients of the grid included.
3. The embedded MNIST network: wall time of a ``sample`` call over that of its network evaluations alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from report import Report, parser

from sde_toolkit import (
    VPSDE,
    ReverseEquation,
    ScoreModel,
    ddim,
    ddpm,
    dpm_solver_2,
    dpmpp_2m,
    dpmpp_3m,
    euler_maruyama,
    grids,
    heun,
    probability_flow,
    rk4,
    sample,
    unipc,
)
from sde_toolkit.integrators import Euler

SHAPE = (16, 3, 32, 32)


def interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task, all of them run in turn ``repeats`` times after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def trivial_network(report: Report, steps: int, repeats: int) -> None:
    """Microseconds per step over a network that returns its input."""

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x

    model = ScoreModel(network, VPSDE(), "epsilon")
    grid = grids.uniform(model.sde, steps)
    x = torch.randn(SHAPE)
    A, B, K = (0.5 * torch.rand(steps) for _ in range(3))
    generator = torch.Generator().manual_seed(0)

    def bare(noisy: bool) -> None:
        state, time_batch = x, torch.zeros(SHAPE[0])
        for a, b, k in zip(A.unbind(), B.unbind(), K.unbind(), strict=True):
            state = a * state + b * network(state, time_batch)
            if noisy:
                state = state + k * torch.randn(SHAPE, generator=generator)

    def ours(solver, **options):  # type: ignore[no-untyped-def]
        return lambda: sample(model, solver, grid, x_start=x, **options)

    tasks: dict[str, Callable[[], object]] = {"bare loop": lambda: bare(False)}
    for name, solver in (("ddim", ddim()), ("probability_flow(Euler)", probability_flow(Euler()))):
        tasks[name] = ours(solver, check_finite=False)
        tasks[f"{name}, finite check"] = ours(solver)
    tasks["bare loop with noise"] = lambda: bare(True)
    for name, solver in (("ddpm", ddpm()), ("euler_maruyama", euler_maruyama())):
        tasks[f"{name}, generator"] = ours(solver, generator=generator, check_finite=False)
        tasks[f"{name}, generator, finite check"] = ours(solver, generator=generator)
        tasks[f"{name}, per-sample streams"] = ours(solver)
    medians = interleaved(tasks, repeats)
    report.line(f"A network that returns its input, {'×'.join(map(str, SHAPE))}, {steps} steps.")
    report.table("loop", "µs/step", "× bare")
    floor = medians["bare loop"]
    for name, seconds in medians.items():
        floor = seconds if name.startswith("bare") else floor
        report.row(name, f"{1e6 * seconds / steps:.1f}", f"{seconds / floor:.2f}")


def more_solvers(report: Report, steps: int, repeats: int) -> None:
    """Microseconds per step of the other fixed-step rows, over as many terms as their formulas need."""

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x

    x, other = torch.randn(SHAPE), torch.randn(SHAPE)
    model = ScoreModel(network, VPSDE(), "x0")
    coefficients = (0.5 * torch.rand(steps)).unbind()

    def plain(terms: int) -> None:
        state = x
        for c in coefficients:
            state = c * state
            for _ in range(terms - 1):
                state = state + c * other

    def fused(terms: int) -> None:
        state = x
        for c in coefficients:
            state = c * state
            for _ in range(terms - 1):
                state = torch.addcmul(state, c, other)

    # terms: x, y and earlier values; the corrector's and the predictor's; stages of a one-step method
    rows = {
        "dpmpp_2m": (dpmpp_2m(), 3),
        "dpmpp_3m": (dpmpp_3m(), 4),
        "unipc(2)": (unipc(2), 8),
        "heun": (heun(), 5),
        "probability_flow": (probability_flow(), 5),
        "dpm_solver_2": (dpm_solver_2(), 5),
        "rk4": (rk4(), 14),
    }
    tasks: dict[str, Callable[[], object]] = {}
    grid = grids.uniform(model.sde, steps)
    for name, (solver, terms) in rows.items():
        tasks[f"{name}, plain"] = lambda k=terms: plain(k)  # type: ignore[misc]
        tasks[f"{name}, fused"] = lambda k=terms: fused(k)  # type: ignore[misc]
        tasks[name] = lambda s=solver: sample(model, s, grid, x_start=x, check_finite=False)  # type: ignore[misc]
        tasks[f"{name}, finite check"] = lambda s=solver: sample(model, s, grid, x_start=x)  # type: ignore[misc]
        equation = ReverseEquation(model, solver.eta)
        tasks[f"{name}, coefficients"] = lambda s=solver, e=equation: s.integrator.prepare(e, grid)  # type: ignore[misc]
    medians = interleaved(tasks, repeats)
    report.line("Other steps over the same network.")
    report.table(
        "solver", "terms", "µs/step", "× plain", "with check", "× fused", "with check", "of these the grid, µs/step"
    )
    for name, (_, terms) in rows.items():
        what = ("", ", finite check", ", plain", ", fused", ", coefficients")
        alone, checked, plain_seconds, fused_seconds, coefficients = (medians[name + part] for part in what)
        ratios = (alone / plain_seconds, checked / plain_seconds, alone / fused_seconds, checked / fused_seconds)
        cells = [f"{ratio:.2f}" for ratio in ratios]
        report.row(f"`{name}`", terms, f"{1e6 * alone / steps:.1f}", *cells, f"{1e6 * coefficients / steps:.1f}")


def mnist_network(report: Report, batch: int, steps: int, repeats: int) -> None:
    """Wall time of a whole ``sample`` call over NFE × the time of one network evaluation."""
    model = ScoreModel.from_pretrained("mnist")
    grid = grids.uniform(model.sde, steps)
    x = torch.randn(batch, *(model.event_shape or ()))
    inputs = tuple(c.float() for c in model.network_inputs(grid[0]))

    @torch.no_grad()
    def network_alone() -> None:
        for _ in range(steps):
            model.output(x, inputs)

    medians = interleaved(
        {
            "network alone": network_alone,
            "ddim": lambda: sample(model, ddim(), grid, x_start=x),
            "ddpm, per-sample streams": lambda: sample(model, ddpm(), grid, x_start=x),
        },
        repeats,
    )
    report.line(f"The embedded MNIST network, batch {batch}, {steps} steps.")
    report.table("call", "seconds", "× network alone", "evaluations of an image/s")
    for name, seconds in medians.items():
        rate = f"{batch * steps / seconds:.0f}"
        report.row(name, f"{seconds:.3f}", f"{seconds / medians['network alone']:.3f}", rate)


if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--steps", type=int, default=1000, help="steps over the trivial network")
    words.add_argument("--network-steps", type=int, default=50, help="steps over the MNIST network")
    words.add_argument("--repeats", type=int, default=11)
    given = words.parse_args()
    report = Report(given.results, "overhead", "What a sampling step costs beyond its network")
    trivial_network(report, given.steps, given.repeats)
    more_solvers(report, given.steps, given.repeats)
    mnist_network(report, batch=64, steps=given.network_steps, repeats=max(1, given.repeats // 3))
    report.save()
