"""What is minimised: the error at the endpoint, on noises that are kept apart for three purposes.

    η = 0    |x − x*|²/D over samples, its mean and its median; x* is where the flow takes the same noise
    η > 0    a distance of distributions (:mod:`distributions`) to endpoints of the flow from other noises, since the
             flow has the same marginals; all runs share the noise of their steps

A search minimises on ``fit``; ``select`` chooses between its results; ``fresh`` judges once, at the end. Each has
noises, directions and residual noise of its own. :func:`~sde_toolkit.sample` draws none of them.

Gradients descend log mean e² and mean log e² in equal parts (:func:`balanced`): plans are ranked by nearly the same. A
noise that ends in another mode stays lost under small moves of the grid, and its large e² would outweigh all others; in
the logarithm it counts as one. Bespoke solvers (Shaul et al. 2024) descend mean log e² alone, the PSNR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.calibration.descent import CommonNoise, Descent
from sde_toolkit.calibration.distributions import Likeness
from sde_toolkit.calibration.plan_errors import Measured
from sde_toolkit.calibration.reference import FineSolve, fine_grid, reference_end, solve_finely
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.integrators import Integrator, Table
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import Once, Purpose, generator_for, per_sample_noise

__all__ = ["Measured", "NoiseSet", "Problem", "balanced"]

_PROJECTIONS = 64
_FLOOR = 1e-12  # of squares over the data's mean square, so that an error of 0 has a logarithm


@dataclass(eq=False)
class NoiseSet:
    """Noises ``first``, ``first`` + 1, ... of a seed, and their targets (η > 0: ``likeness`` to a set of targets).

    ``steps``: of the fine solve that found the targets.
    """

    first: int
    noise: CommonNoise
    target: Tensor
    likeness: Likeness | None = None
    steps: int = 0

    def __len__(self) -> int:
        return len(self.target)

    @cached_property
    def size(self) -> Tensor:
        """Mean square of the targets; 1 if all of them are zero."""
        size = self.target.square().mean().to(torch.float64)
        return torch.where(size > 0, size, 1.0)


@dataclass(eq=False)
class Problem:
    """A model, a stochasticity and a seed; :meth:`noise_set` makes its sets, one after another."""

    model: ScoreModel
    eta: float
    seed: int
    event_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    batch_size: int | None = None
    condition: object = None
    fine_steps: int = 96
    start: float = 1.0
    used: int = field(default=0, init=False)
    _known: dict[tuple[Contender, NoiseSet, int, int], Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.descent = Descent(self.model, self.eta, self.condition)
        self.flow = self.descent if self.eta == 0 else Descent(self.model, 0.0, self.condition)
        self.earliest = reference_end(self.model)
        self.times = self.fine_times(self.fine_steps)

    def fine_times(self, steps: int) -> Tensor:
        return fine_grid(self.model.sde, steps, start=self.start, end=self.earliest, sigma_data=self.model.sigma_data)

    @property
    def evaluations(self) -> int:
        return self.descent.evaluations + (self.flow.evaluations if self.flow is not self.descent else 0)

    def _draws(self, n: int) -> tuple[int, CommonNoise]:
        first, self.used = self.used, self.used + n
        how: dict[str, Any] = {"dtype": self.dtype, "device": self.device, "purpose": Purpose.CALIBRATION}
        return first, CommonNoise(per_sample_noise(self.seed, first, (n, *self.event_shape), **how))

    def starts(self, noise: CommonNoise, rows: slice | Tensor = slice(None), at: Tensor | None = None) -> Tensor:
        """The states from which runs start: at the time ``at``, by default where the flow's own solve starts."""
        sigma = self.model.sde.sigma(self.start if at is None else at)
        return sigma.to(self.device, self.dtype) * noise[0][rows]

    @torch.no_grad()
    def noise_set(self, n: int) -> NoiseSet:
        """The next ``n`` noises, with their targets."""
        first, noise = self._draws(n)
        source = noise if self.eta == 0 else self._draws(n)[1]
        target = self._ends(source, n, self.times)
        likeness = None
        if self.eta > 0:
            likeness = Likeness.of(self.descent.equation, target, self.earliest, self.seed, first)
        return NoiseSet(first, noise, target, likeness, self.fine_steps)

    def _ends(self, noise: CommonNoise, n: int, times: Tensor) -> Tensor:
        """Where the flow takes ``n`` noises."""
        x = self.starts(noise)
        return torch.cat([solve_finely(self.flow, x[rows], times).end for rows in self.batches(n)])

    @torch.no_grad()
    def refine(self, chosen: NoiseSet) -> Tensor:
        """Find the targets of a set again, with twice the steps: the squares (n,) of what they moved by. For η = 0."""
        finer = self._ends(chosen.noise, len(chosen), self.fine_times(2 * chosen.steps))
        moved = _squares(finer, chosen.target)
        chosen.target, chosen.steps = finer, 2 * chosen.steps
        return moved

    @torch.no_grad()
    def path(self, chosen: NoiseSet, n: int, times: Tensor) -> FineSolve:
        """The first ``n`` fine trajectories of a set, with all their states."""
        return solve_finely(self.flow, self.starts(chosen.noise, slice(0, n)), times, keep=True)

    @torch.no_grad()
    def reference_error(self, chosen: NoiseSet, n: int) -> Measured:
        """The change by a solve with twice the steps; for η > 0, where it is that of the flow."""
        n = min(n, len(chosen))
        x = self.starts(chosen.noise, slice(0, n))
        ends = [solve_finely(self.flow, x, self.fine_times(k * self.fine_steps)).end for k in (1, 2)]
        return Measured.of(_squares(*ends))

    def batches(self, n: int) -> Iterator[slice]:
        size = self.batch_size or n
        for first in range(0, n, size):
            yield slice(first, min(n, first + size))

    def squares(self, plan: Contender, chosen: NoiseSet, n: int | None = None) -> Tensor:
        """Squared errors of a plan, (n,) per sample (η > 0: per block of samples). Infinite where it diverges.

        They are kept until the targets are refined: the same plans are compared several times.
        """
        n = len(chosen) if n is None else min(n, len(chosen))
        key = (plan, chosen, chosen.steps, n)
        if key not in self._known:
            self._known[key] = self._squares(plan, chosen, n)
        return self._known[key]

    @torch.no_grad()
    def _squares(self, plan: Contender, chosen: NoiseSet, n: int) -> Tensor:
        table = plan.solver.integrator.prepare(self.descent.equation, plan.grid)
        ends = [
            self.descent.run(
                plan.solver.integrator,
                plan.grid,
                self.starts(chosen.noise, rows, plan.grid[0]),
                chosen.noise.after_start(rows),
                tweedie=plan.tweedie,
                table=table,
            )[0]
            for rows in self.batches(n)
        ]
        x = torch.cat(ends)
        if chosen.likeness is None:
            squares = _squares(x, chosen.target[:n])
        else:
            directions = self.directions(generator_for(self.seed, Once.DIRECTIONS, chosen.first))
            squares = chosen.likeness.blocks(self.descent.equation, x, directions, self.earliest)
        return torch.nan_to_num(squares, nan=torch.inf, posinf=torch.inf)

    def directions(self, generator: torch.Generator) -> Tensor:
        """Random unit vectors (D, P)."""
        D = math.prod(self.event_shape)
        drawn = torch.randn(D, _PROJECTIONS, generator=generator, dtype=torch.float64)
        return (drawn / drawn.norm(dim=0)).to(self.device, self.dtype)

    def loss(
        self,
        integrator: Integrator,
        grid: Tensor,
        table: Table,
        chosen: NoiseSet,
        rows: Tensor,
        directions: Tensor,
        *,
        tweedie: bool,
        share: float = 0.5,
    ) -> Tensor:
        """The objective on some samples. Differentiable in ``grid`` and ``table``.

        ``tweedie``: whether a last evaluation denoises. ``share``: of the root mean square in it (:func:`balanced`).
        """
        x, _ = self.descent.run(
            integrator,
            grid,
            self.starts(chosen.noise, rows, grid[0].detach()),
            chosen.noise.after_start(rows),
            tweedie=tweedie,
            table=table,
        )
        if chosen.likeness is None:
            return balanced(_squares(x, chosen.target[rows]) / chosen.size, share)
        return chosen.likeness.loss(self.descent.equation, x, rows, directions, self.earliest)


def balanced(squares: Tensor, share: float = 0.5) -> Tensor:
    """``share`` log mean e² + (1 − ``share``) mean log e², of squares e² in units of the data's mean square."""
    return share * torch.log(squares.mean() + _FLOOR) + (1 - share) * torch.log(squares + _FLOOR).mean()


def _squares(x: Tensor, target: Tensor) -> Tensor:
    return (x - target).reshape(len(x), -1).square().mean(1).to(torch.float64)
