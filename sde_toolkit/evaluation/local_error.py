"""Where on the grid the error is made: each step of a solver against the exact flow, on the user's own model.

With X_k the solver's states, Φ(t → s) the exact flow and T the end of the grid:

    local error of step k      d_k = X_{k+1} − Φ(t_k → t_{k+1}) X_k
    its part of the endpoint   c_k = Φ(t_{k+1} → T) X_{k+1} − Φ(t_k → T) X_k

d_k is the local error along the numerical solution (Hairer, Nørsett & Wanner 1993, section II.3; their figure 3.1 is
"Lady Windermere's fan", and c_k its k-th rib). Every step starts from the solver's own state, the memory of a multistep
method included. The c_k add up to the error at the endpoint exactly, because the sum telescopes. d_k is the error that
a step makes; c_k is the part of it that is left at the end. A step with a large d_k may have a small c_k, and the
reverse.

The exact flow is approximated by the classical Runge-Kutta method, with ``refine`` steps for each step of the grid. Its
own error is estimated with twice as many steps, and reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.data.blank_figures import INK, new_figure
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.figure_style import style_axes
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import RungeKutta4
from sde_toolkit.metrics.distances import rmse
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.models.conditions import repeat_rows
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.arguments import check_deterministic, check_parts
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import Solver, probability_flow

__all__ = ["LocalErrors", "local_errors"]


@dataclass(frozen=True, eq=False)
class LocalErrors:
    """The error of every step of a solver. All errors are root mean squares per element, in model space.

    ``local``: of each step, against the exact flow from where the step began. ``contributions``: what is left of each
    at the end of the grid; ``shares``: their part of the squared endpoint error, (Σ ⟨c_k, e⟩)/(Σ ⟨e, e⟩) over the
    samples, positive or negative, adding up to 1. Both are None where they were not asked for, and the shares where
    there is no error. ``endpoint``: of the solver at the end of the grid. ``reference``: of the exact flow there.
    ``errors``: (steps, n, *event), the c_k themselves.
    """

    grid: Tensor
    solver: Solver
    local: tuple[Estimate, ...]
    contributions: tuple[Estimate, ...] | None
    shares: tuple[float, ...] | None
    endpoint: Estimate
    reference: Estimate
    errors: Tensor | None = None

    def text_table(self) -> str:
        """One line per step, and the endpoint."""
        times = self.grid.tolist()
        lines = [f"{'step':>4}  {'from t':>9}  {'to':>9}  {'local error':>19}"]
        if self.contributions is not None:
            lines[0] += f"  {'left at the end':>19}  {'share':>7}"
        for k, error in enumerate(self.local):
            line = f"{k:>4}  {times[k]:>9.4g}  {times[k + 1]:>9.4g}  {error!s:>19}"
            if self.contributions is not None:
                share = math.nan if self.shares is None else self.shares[k]
                line += f"  {self.contributions[k]!s:>19}  {share:>7.1%}"
            lines.append(line)
        lines.append(f"error at t={times[-1]:.4g}: {self.endpoint} (of the reference: {self.reference})")
        return "\n".join(lines)

    def figure(self, path: str | Path | None = None) -> Any:
        """Both errors against t, as a matplotlib figure; written to ``path`` if one is given.

        Raises:
            MissingDependencyError: without matplotlib.
        """
        drawn = new_figure(6.2, 4.2)
        axes = drawn.subplots()
        self._curve(axes, self.local, "made in the step", "#0072B2", "o")
        if self.contributions is not None:
            self._curve(axes, self.contributions, "left of it at the end", "#D55E00", "s")
        values = [e.value for e in (*self.local, *(self.contributions or ()))]
        if min(values, default=0.0) > 0:
            axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("t at the end of the step (noise to data)", fontsize=9, color=INK)
        axes.set_ylabel("RMS error per element", fontsize=9, color=INK)
        axes.set_title(f"{self.solver.name}, {len(self.local)} steps", fontsize=10.5, color=INK)
        style_axes(axes)
        axes.legend(fontsize=8, frameon=False)
        if path is not None:
            drawn.savefig(path, dpi=120)
        return drawn

    def _curve(self, axes: Any, errors: tuple[Estimate, ...], label: str, colour: str, marker: str) -> None:
        bars = [0.0 if math.isnan(e.error) else e.error for e in errors]
        axes.errorbar(
            self.grid[1:].tolist(), [e.value for e in errors], yerr=bars, label=label, color=colour, marker=marker,
            linewidth=1.6, markersize=5, capsize=2, elinewidth=1,
        )  # fmt: skip


@torch.no_grad()
def local_errors(
    model: ScoreModel,
    solver: Solver,
    grid: Tensor,
    *,
    n: int | None = None,
    x_start: Tensor | None = None,
    condition: Any = None,
    seed: int = 0,
    propagate: bool = True,
    refine: int = 4,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> LocalErrors:
    """The error of each step of a deterministic ``solver`` on ``grid``, for this model.

    Args:
        n: number of samples, started as :func:`~sde_toolkit.sample` starts them from ``seed``.
        x_start: where to start instead, (n, *event).
        condition: handed to the network, as in :func:`~sde_toolkit.sample`.
        propagate: also carry every step's state to the end of the grid, which costs 2 refine N (N+1) evaluations per
            sample for N steps instead of 8 refine N.
        refine: steps of the Runge-Kutta method for each step of the grid.
        batch_size: states that go through the network together.
        dtype: float32 errors are bounded by its round-off, about 1e-6 of the state.

    Raises:
        ArgumentError: for a stochastic solver, a ``refine`` that is no count, a model whose event shape is unknown.
        GridError: where the solver, or the Runge-Kutta method, has no finite coefficients.
    """
    check_parts(model, solver)
    check_deterministic(solver, "a local error")
    grid = check_grid(grid)
    check_count("refine", refine, "4 is usual.", most=MOST)
    if (n is None) == (x_start is None):
        raise ArgumentError("n, x_start", n, "exactly one of them is needed", "Pass n=16, for example.")
    shape = None
    if x_start is None:
        n = check_count("n", n, "16 is usual.")
        if model.event_shape is None:
            raise ArgumentError("model", model, "it has no event_shape to start from", "Pass x_start.")
        shape = (n, *model.event_shape)
    run = sample(
        model, solver, grid, shape=shape, x_start=x_start, condition=condition, seed=seed, trajectory=True,
        batch_size=batch_size, dtype=dtype,
    )  # fmt: skip
    path: Tensor = run.trajectory  # type: ignore[assignment]
    flow = _ExactFlow(model, grid, condition, batch_size, dtype)
    local, chains, finer = [], path[:1], path[:1]
    for k in range(len(grid) - 1):
        if propagate:
            chains = flow(chains, k, refine)
            begun = chains[-1]
        else:
            pair = flow(torch.stack([chains[0], path[k]]), k, refine)
            chains, begun = pair[:1], pair[1]
        finer = flow(finer, k, 2 * refine)
        local.append(_rms(path[k + 1] - begun))
        if propagate:
            chains = torch.cat([chains, path[k + 1 : k + 2]])
    errors = chains.diff(dim=0) if propagate else None
    whole = path[-1] - chains[0]
    return LocalErrors(
        grid=grid,
        solver=solver,
        local=tuple(local),
        contributions=None if errors is None else tuple(map(_rms, errors)),
        shares=None if errors is None else _shares(errors, whole),
        endpoint=_rms(whole),
        reference=_rms(finer[0] - chains[0]),
        errors=errors,
    )


@dataclass(frozen=True, eq=False)
class _ExactFlow:
    """The probability flow between neighbouring times of a grid, by the classical Runge-Kutta method."""

    model: ScoreModel
    grid: Tensor
    condition: Any
    batch_size: int | None
    dtype: torch.dtype

    def __call__(self, chains: Tensor, k: int, refine: int) -> Tensor:
        """States (chains, n, *event) at grid[k], moved to grid[k + 1] in ``refine`` steps."""
        count = len(chains)
        done = sample(
            self.model,
            probability_flow(RungeKutta4()),
            _between(self.grid[k], self.grid[k + 1], refine),
            x_start=chains.flatten(0, 1),
            condition=repeat_rows(self.condition, count),
            batch_size=self.batch_size,
            dtype=self.dtype,
        )
        return done.x.unflatten(0, (count, -1))


def _between(t: Tensor, s: Tensor, refine: int) -> Tensor:
    """``refine`` steps from t to s, equal in √t: fine at the data, whatever the SDE, and good at s = 0."""
    u = torch.linspace(0, 1, refine + 1, dtype=torch.float64)
    times = (t.sqrt() + u * (s.sqrt() - t.sqrt())) ** 2
    times[0], times[-1] = t, s
    return times


def _rms(x: Tensor) -> Estimate:
    return rmse(x.double().cpu(), torch.zeros_like(x, dtype=torch.float64, device="cpu"))


def _shares(errors: Tensor, whole: Tensor) -> tuple[float, ...] | None:
    total = whole.double().square().sum()
    if not bool(total > 0):
        return None
    return tuple(((errors.double() * whole.double()).flatten(1).sum(1) / total).tolist())
