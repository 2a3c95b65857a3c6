"""A last step that goes to the data, σ = 0, by the method of all other steps: it needs no evaluation of its own.

An SDE with σ(0) = 0 has such a step: its grid ends at t = 0. Where σ(0) > 0, as for VE and EDM's noise levels, the grid
can only end at σ(0). ``tweedie=True`` then spends one more evaluation there, and goes on to the data with order 1.
:class:`Landing` takes t = 0 for the data instead. The method's polynomial is continued to σ = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.adams_bashforth import AdamsBashforth
from sde_toolkit.integrators.around import IntegratorAround
from sde_toolkit.integrators.multistep import Corrected, Multistep
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sde import SDE

__all__ = ["Landing"]


@dataclass(frozen=True)
class _DataAtZero(SDE):
    """``path``, but at t = 0 the state is the data: α = 1, σ = 0."""

    path: SDE

    def alpha(self, t: Tensor) -> Tensor:
        return torch.where(t == 0, 1.0, self.path.alpha(t))

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.where(t == 0, 0.0, self.path.log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.where(t == 0, 0.0, self.path.sigma(t))

    def half_log_snr(self, t: Tensor) -> Tensor:
        return torch.where(t == 0, torch.inf, self.path.half_log_snr(t))


@dataclass(frozen=True)
class _DataAtZeroEquation(ReverseEquation):
    """The same equation, on the path that ends with the data."""

    @property
    def sde(self) -> SDE:
        return _DataAtZero(self.model.sde)


@dataclass(frozen=True)
class Landing(IntegratorAround):
    """``integrator``, for which t = 0 is the data: a grid that ends there ends at σ = 0, also where σ(0) > 0.

    Every step but that to t = 0 is the step of ``integrator``. The last one has the coefficients that ``integrator``
    would have if the noise of the SDE fell to 0. Its polynomial is continued beyond the last evaluation to σ = 0, and
    keeps its order if its coordinate is finite there (``NoiseToSignal``, ``Angle``); in λ the last step is of order 1.

    Args:
        integrator: an exponential multistep method, with or without the corrector, or iPNDM.

    Raises:
        ArgumentError: if ``integrator`` is something else, or if its coordinate is t.
    """

    integrator: Multistep | Corrected | AdamsBashforth = field(default_factory=Multistep)

    def __post_init__(self) -> None:
        if not (
            isinstance(self.integrator, (Multistep, Corrected, AdamsBashforth))
            and self.integrator.sees_alpha_sigma_only
        ):
            problem = "not a multistep method in α and σ alone: only their steps are known to reach σ = 0"
            remedy = "Pass Multistep(...) or Corrected(Multistep(...)), not in the coordinate Time()."
            raise ArgumentError("integrator", self.integrator, problem, remedy)

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """As ``integrator``, with σ = 0 at t = 0."""
        named = {name: getattr(equation, name) for name in ("model", "eta", "condition", "evaluate")}
        return self.integrator.prepare(_DataAtZeroEquation(**named), grid)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        return self.integrator.step(equation, x, row, state, noise)
