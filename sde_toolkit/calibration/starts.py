"""The solvers and grids that a calibration starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sde_toolkit.calibration.increments import grid_of, increments_of
from sde_toolkit.calibration.reference import fine_grid
from sde_toolkit.errors import SDEToolkitError
from sde_toolkit.grids import check_grid, karras, quadratic, sech, uniform, uniform_lambda
from sde_toolkit.integrators import (
    AdamsBashforth,
    Angle,
    Corrected,
    FrozenEDM,
    FrozenNoise,
    FrozenX0,
    Multistep,
    NoiseToSignal,
)
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import auto_for_run
from sde_toolkit.sde import SDE
from sde_toolkit.solvers import Solver

__all__ = ["Contender", "auto_plan", "default_solvers", "of_different_solvers", "usual_grids"]


@dataclass(frozen=True, eq=False)
class Contender:
    """A solver on a grid, with a label.

    ``tweedie``: whether a last evaluation denoises; None where the grid ends above t=0.
    """

    solver: Solver
    grid: Tensor
    label: str
    tweedie: bool = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.tweedie is None:
            object.__setattr__(self, "tweedie", self.grid[-1].item() > 0)

    @property
    def first_evaluation(self) -> float:
        """The time from which the network is asked: the grid's first, unless the integrator begins later."""
        first, begin = self.grid[0].item(), self.solver.integrator.first_evaluation
        return first if begin is None else min(first, begin)

    @property
    def evaluated(self) -> Tensor:
        """The times at which the network is asked; those of evaluations within steps left out."""
        first = self.grid.new_full((1,), self.first_evaluation)
        return torch.cat([first, self.grid[1:] if self.tweedie else self.grid[1:-1]])

    def _lowest(self, earliest: float) -> float:
        """How far the last of them may move."""
        return min(earliest, self.evaluated[-1].item())

    def increments(self, earliest: float) -> Tensor:
        """The steps between the evaluations, as unconstrained numbers."""
        return increments_of(self.evaluated, self._lowest(earliest))

    def grid_at(self, a: Tensor, earliest: float) -> Tensor:
        """The grid with these increments; differentiable in them. No evaluation is later than ``earliest``."""
        times = grid_of(a, self.first_evaluation, self._lowest(earliest), len(self.evaluated) - 1)
        last = self.grid[:0] if self.tweedie else self.grid[-1:]
        return torch.cat([self.grid[:1].to(a), times[1:], last.to(a)])

    @property
    def nfe(self) -> int:
        return (self.solver.integrator.evals_per_step or 0) * (len(self.grid) - 1) + self.tweedie


def auto_plan(model: ScoreModel, nfe: int, event_shape: tuple[int, ...]) -> Contender | None:
    """What ``auto`` takes for the flow; None if it takes nothing."""
    try:
        plan = auto_for_run(model, nfe, event_shape=event_shape)
    except SDEToolkitError:
        return None
    found = Contender(plan.solver, plan.grid, "auto", plan.tweedie)
    return found if found.nfe <= nfe else None


def default_solvers(sigma_data: float, nfe: int) -> list[Solver]:
    """Multistep methods in EDM, data and noise prediction, with and without a corrector; for few steps, low orders.

    And those whose polynomial reaches the data: of ε̂ in σ/α (Adams-Bashforth, DEIS's ρ), of F in the angle, and iPNDM.
    """
    found, orders = [], (2, 3) if nfe < 25 else (3, 4)
    for corrected in (True, False):
        for order in orders:
            for frozen in (FrozenEDM(sigma_data), FrozenX0(), FrozenNoise()):
                inner = Multistep(order, frozen)
                integrator = Corrected(inner) if corrected else inner
                name = f"{type(frozen).__name__.removeprefix('Frozen').lower()}-{order}{'c' if corrected else ''}"
                found.append(Solver(name, 0.0, integrator))
    for order in orders:
        found.append(Solver(f"noise-{order} in τ", 0.0, Multistep(order, FrozenNoise(), NoiseToSignal())))
        found.append(Solver(f"edm-{order} in φ", 0.0, Multistep(order, FrozenEDM(sigma_data), Angle(sigma_data))))
    return found + [Solver(f"ipndm-{values}", 0.0, AdamsBashforth(values)) for values in (2, 3, 4)]


_LAMBDA_ENDS = (2.0, 2.75, 3.5, 4.25, 5.0, 6.0)  # for data of size 1


def usual_grids(
    sde: SDE, steps: int, *, start: float, earliest: float, sigma_data: float = 1.0
) -> list[tuple[str, Tensor]]:
    """Grids: ``sech``, uniform in t, √t, λ, (σ/α)^(1/ρ), mixed of t and λ. Several ends, none below ``earliest``."""
    last = sde.half_log_snr(max(earliest, 0.0)).item()
    usual = [value - math.log(sigma_data) for value in _LAMBDA_ENDS]
    lambdas = [value for value in usual if sde.half_log_snr(start).item() < value < last - 0.2]
    ends = [sde.inverse_half_log_snr(torch.tensor(v, dtype=torch.float64)).item() for v in lambdas]
    if 0 < sde.sampling_end >= earliest and all(abs(end / sde.sampling_end - 1) > 0.1 for end in ends):
        ends.append(sde.sampling_end)
    return [
        (f"{name} to t={end:.3g}", grid)
        for end in ends
        for name, grid in _of_one_end(sde, steps, start, end, sigma_data)
    ]


def _of_one_end(sde: SDE, steps: int, start: float, end: float, sigma_data: float) -> Iterator[tuple[str, Tensor]]:
    def mixed(in_time: float) -> Tensor:
        return fine_grid(sde, steps, start=start, end=end, in_time=in_time, sigma_data=sigma_data)

    def built(build: Callable[..., Tensor], **how: float) -> Callable[[], Tensor]:
        return partial(build, sde, steps, start=start, end=end, **how)

    made: list[tuple[str, Callable[[], Tensor]]] = [
        *(
            (f"sech {c:g}, {w:g}", built(sech, center=c, width=w, sigma_data=sigma_data))
            for c, w in ((0.75, 1.5), (1.5, 2.0), (0.0, 2.0))
        ),
        ("uniform", built(uniform)),
        ("quadratic", built(quadratic)),
        ("mixed", lambda: mixed(in_time=0.3)),
    ]
    if bool(sde.half_log_snr(torch.tensor([start, end], dtype=torch.float64)).isfinite().all()):
        made.append(("uniform in λ", built(uniform_lambda)))
        made += [(f"karras {rho:g}", built(karras, rho=rho)) for rho in (3.0, 7.0)]
    else:
        made.append(("λ", lambda: mixed(in_time=0.05)))
    for name, make in made:
        try:
            yield name, check_grid(make())
        except SDEToolkitError:
            continue


def of_different_solvers(plans: Sequence[Contender], count: int) -> list[Contender]:
    """The first plan of each of the first ``count`` solvers."""
    first: dict[str, Contender] = {}
    for plan in plans:
        first.setdefault(repr(plan.solver), plan)
    return list(first.values())[:count]
