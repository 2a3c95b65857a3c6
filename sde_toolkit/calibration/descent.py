"""Runs of one model for a calibration, by the loop of ``sample``; gradients may flow through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators import Integrator, Table
from sde_toolkit.models.calls import counted
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sampling.loop import Options, no_noise, solve
from sde_toolkit.solvers import Solver

__all__ = ["CommonNoise", "Descent"]


class CommonNoise:
    """Draws that are made once and used in every run, so that only the solver differs between runs.

    The first is the start, as in ``sample``.
    """

    def __init__(self, draw: Noise) -> None:
        self._draw = draw
        self._kept: list[Tensor] = []

    def __getitem__(self, i: int) -> Tensor:
        while len(self._kept) <= i:
            self._kept.append(self._draw())
        return self._kept[i]

    def after_start(self, rows: slice | Tensor) -> Noise:
        """The draws of the steps for some of the samples, from the first on."""
        place = 0

        def draw() -> Tensor:
            nonlocal place
            place += 1
            return self[place][rows]

        return draw


@dataclass
class Descent:
    """Runs of one model at one stochasticity. ``evaluations`` counts samples × network evaluations.

    ``condition``: handed to the network; its one row is for all samples. ``listen``: called with every output.
    """

    model: ScoreModel
    eta: float = 0.0
    condition: Any = None
    listen: Callable[[Tensor], None] | None = None
    evaluations: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.equation = ReverseEquation(self.model, self.eta, self.condition, self._counted)

    def _counted(self, x: Tensor, inputs: Inputs, condition: Any, call: Callable[..., Any] | None = None) -> Any:
        rows = map_rows(condition, lambda row: row.expand(len(x), *row.shape[1:]))
        found, (evaluations, _) = counted(call or self.model.output, x, inputs, rows)
        self.evaluations += len(x) * evaluations
        if self.listen is not None:
            self.listen(found if call is None else found[0])
        return found

    def run(
        self,
        integrator: Integrator,
        grid: Tensor,
        x: Tensor,
        noise: Noise = no_noise,
        *,
        tweedie: bool,
        keep: bool = False,
        table: Table | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The endpoint, and all states (len(grid), n, *event) if they are kept. ``table`` replaces the prepared one."""
        condition = map_rows(self.condition, lambda row: row.expand(len(x), *row.shape[1:]))
        solved = solve(
            replace(self.equation, condition=condition),
            Solver("calibrated", self.eta, integrator),
            grid,
            len(x),
            lambda first, last: (x[first:last], lambda step: noise),
            Options(x.dtype, x.device, tweedie=tweedie, trajectory=keep, check_finite=False),
            table,
        )
        return solved.x, solved.trajectory
