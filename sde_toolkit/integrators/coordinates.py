"""Coordinates in which the probability flow is integrated, for Runge-Kutta and multistep methods alike.

A coordinate is an independent variable u, and the scaled state x̃ = x/c whose slope against u is smooth:

    Time              u = t                     x̃ = x                      dx̃/du = drift
    HalfLogSNR        u = λ = log(α/σ)          x̃ = x/α                    dx̃/du = −(σ/α) ε̂
    NoiseToSignal     u = τ = σ/α               x̃ = x/α                    dx̃/du = ε̂
    Angle             u = φ = atan(τ/σ_d)       x̃ = x/√(σ² + α² σ_d²)      dx̃/du = −F

F is EDM's raw output at σ_d (:mod:`~sde_toolkit.integrators.frozen`). Only α and σ enter the last three: in
them all SDEs follow one curve, and kinks of a schedule in t do no harm. τ is finite at the data, φ at both ends.

Karras et al. 2022 (EDM), eq. 1, 7 and section 3 (τ and F); Lu et al. 2022a (DPM-Solver), section 3.1 (λ).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.integrators.frozen import FrozenEDM
from sde_toolkit.integrators.linear_step import Form, PathPoint, RecordedEvaluation
from sde_toolkit.models.prediction import edm_input_scale
from sde_toolkit.sde import SDE

__all__ = ["Angle", "Coordinate", "HalfLogSNR", "NoiseToSignal", "Time"]


@dataclass(frozen=True)
class Coordinate(ABC):
    """An independent variable of the flow, and the scaled state that is integrated against it.

    Multistep methods use :meth:`position` alone: the variable that their polynomial is in.

    ``sees_alpha_sigma_only``: whether the flow in this coordinate depends on α and σ alone, not on how fast they
    change with t.
    """

    sees_alpha_sigma_only: ClassVar[bool] = True

    @abstractmethod
    def position(self, sde: SDE, half_log_snr: Tensor) -> Tensor:
        """u where λ has this value."""

    @abstractmethod
    def half_log_snr(self, sde: SDE, position: Tensor) -> Tensor:
        """λ where u has this value."""

    @abstractmethod
    def scale(self, point: PathPoint) -> Tensor:
        """c = x/x̃ at the point."""

    @abstractmethod
    def rate(self, evaluation: RecordedEvaluation) -> Form:
        """dx̃/du at the evaluation."""

    def position_of(self, sde: SDE, point: PathPoint) -> Tensor:
        """u at the point."""
        return self.position(sde, point.half_log_snr)

    def point(self, sde: SDE, position: Tensor) -> PathPoint:
        """The SDE's own point where u has this value."""
        return PathPoint.at_half_log_snr(sde, self.half_log_snr(sde, position))


@dataclass(frozen=True)
class Time(Coordinate):
    """u = t, and x itself. f and g enter: all times of the grid must lie where they are finite."""

    sees_alpha_sigma_only: ClassVar[bool] = False

    def position(self, sde: SDE, half_log_snr: Tensor) -> Tensor:
        return sde.inverse_half_log_snr(half_log_snr)

    def half_log_snr(self, sde: SDE, position: Tensor) -> Tensor:
        return sde.half_log_snr(position)

    def scale(self, point: PathPoint) -> Tensor:
        return torch.ones_like(point.time)

    def rate(self, evaluation: RecordedEvaluation) -> Form:
        return evaluation.drift()

    def position_of(self, sde: SDE, point: PathPoint) -> Tensor:
        return point.time

    def point(self, sde: SDE, position: Tensor) -> PathPoint:
        return PathPoint.at(sde, position)


@dataclass(frozen=True)
class HalfLogSNR(Coordinate):
    """λ = log(α/σ), and x/α; the variable of DPM-Solver++ and UniPC."""

    def position(self, sde: SDE, half_log_snr: Tensor) -> Tensor:
        return half_log_snr

    def half_log_snr(self, sde: SDE, position: Tensor) -> Tensor:
        return position

    def scale(self, point: PathPoint) -> Tensor:
        return point.alpha

    def rate(self, evaluation: RecordedEvaluation) -> Form:
        return -torch.exp(-evaluation.equation.sde.half_log_snr(evaluation.t)) * evaluation.view("epsilon")


@dataclass(frozen=True)
class NoiseToSignal(Coordinate):
    """τ = σ/α, EDM's and k-diffusion's σ, and x/α; DEIS's ρ (Zhang & Chen 2023, section 3.3)."""

    def position(self, sde: SDE, half_log_snr: Tensor) -> Tensor:
        return torch.exp(-half_log_snr)

    def half_log_snr(self, sde: SDE, position: Tensor) -> Tensor:
        return -torch.log(position)

    def scale(self, point: PathPoint) -> Tensor:
        return point.alpha

    def rate(self, evaluation: RecordedEvaluation) -> Form:
        return evaluation.view("epsilon")


@dataclass(frozen=True)
class Angle(Coordinate):
    """φ = atan(σ/(α σ_d)), and x/√(σ² + α² σ_d²); for data N(0, σ_d² I) the scaled state does not move.

    ``sigma_data``: σ_d, the size of the data in model space.

    Raises:
        ArgumentError: unless ``sigma_data`` is positive and finite.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        FrozenEDM(self.sigma_data)

    def position(self, sde: SDE, half_log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-half_log_snr) / self.sigma_data)

    def half_log_snr(self, sde: SDE, position: Tensor) -> Tensor:
        return -torch.log(self.sigma_data * torch.tan(position))

    def scale(self, point: PathPoint) -> Tensor:
        return 1 / edm_input_scale(point.alpha, point.sigma, self.sigma_data)

    def rate(self, evaluation: RecordedEvaluation) -> Form:
        m, n = FrozenEDM(self.sigma_data).view(evaluation.equation, evaluation.t)
        return -(m * evaluation.x + n * evaluation.y)
