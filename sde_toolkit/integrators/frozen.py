"""What an exponential integrator freezes: the denoised estimate, the noise, or EDM's mixture of the two.

Let c² = σ² + α² σ_d², tan φ = σ/(α σ_d). The scaled state is x/c = cos φ x̂_0/σ_d + sin φ ε̂. In it the reverse
equation is linear except for F = sin φ x̂_0/σ_d − cos φ ε̂, the raw output of EDM's preconditioning:

    d(x/c) = [η² tan φ (x/c) − (1+η²) F] dφ + noise

    x_s/c_s = q^(η²) x_t/c_t − (1+η²) ∫_{φ_t}^{φ_s} (cos φ/cos φ_s)^(η²) F dφ + √(1 − q^(2η²)) z,   q = cos φ_t/cos φ_s

The two limits of this family are well known. σ_d → 0: F becomes x̂_0 (data prediction, DPM-Solver++); σ_d → ∞: F becomes
−ε̂ (noise prediction, DPM-Solver, DEIS). σ_d = 1 on a VP path is v prediction. For data N(0, σ_d² I) F is 0, and the
step at η = 0 is exact. The first-order step holds F constant from t to s:

    x_s = u x̂_0 + w ε̂ + κ z

Higher orders add the differences to earlier values, with the weights ∫ density(λ) L_j dλ (:mod:`multistep`).

Karras et al. 2022 (EDM), eq. 7; Lu et al. 2022 (DPM-Solver), eq. 3.4; Lu et al. 2022b (DPM-Solver++), eq. 8 and 15.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.exponential import eta_family
from sde_toolkit.models.prediction import Combination, edm_input_scale
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE
from sde_toolkit.sde.derive import gauss_legendre

__all__ = ["Frozen", "FrozenEDM", "FrozenNoise", "FrozenX0"]


class Frozen(Protocol):
    """The quantity F that a step freezes, and the step that freezing it makes exact."""

    def is_output_of(self, model: ScoreModel) -> bool:
        """Whether F is the network's output itself."""

    def view(self, equation: ReverseEquation, t: Tensor) -> Combination:
        """(m, n) with F = m x_t + n y."""

    def first_order(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(u, w, κ) of the step from t to s."""

    def carry(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> Tensor:
        """The coefficient of x_t in x_s when F is a term of its own: the linear part of the step."""

    def density(self, sde: SDE, eta: float, lambda_u: Tensor, s: Tensor) -> Tensor:
        """What F at λ_u adds to x_s, per unit of λ."""


@dataclass(frozen=True)
class FrozenX0:
    """Data prediction: F = x̂_0, density (1+η²) α_s e^(−(1+η²)(λ_s−λ)). Steps down to σ_s = 0 land on x̂_0."""

    def is_output_of(self, model: ScoreModel) -> bool:
        return model.prediction == "x0"

    def view(self, equation: ReverseEquation, t: Tensor) -> Combination:
        return equation.view("x0", t)

    def first_order(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rho, kappa = eta_family(eta, sde.half_log_snr(t) - sde.half_log_snr(s))
        return sde.alpha(s), sde.sigma(s) * rho, sde.sigma(s) * kappa

    def carry(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> Tensor:
        rho, _ = eta_family(eta, sde.half_log_snr(t) - sde.half_log_snr(s))
        return sde.sigma(s) / sde.sigma(t) * rho

    def density(self, sde: SDE, eta: float, lambda_u: Tensor, s: Tensor) -> Tensor:
        rate = 1 + eta**2
        return sde.alpha(s) * rate * torch.exp(-rate * (sde.half_log_snr(s) - lambda_u))


@dataclass(frozen=True)
class FrozenNoise:
    """Noise prediction: F = ε̂, density −(1+η²) σ_s e^(λ_s−λ). With η > 0 and large steps it overshoots."""

    def is_output_of(self, model: ScoreModel) -> bool:
        return model.prediction == "epsilon"

    def view(self, equation: ReverseEquation, t: Tensor) -> Combination:
        return equation.view("epsilon", t)

    def first_order(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha_s, sigma_s = sde.alpha(s), sde.sigma(s)
        if eta == 0:
            return alpha_s, sigma_s, torch.zeros_like(sigma_s)
        tau_t, tau_s = torch.exp(-sde.half_log_snr(t)), torch.exp(-sde.half_log_snr(s))
        kappa = eta * alpha_s * torch.sqrt((tau_t - tau_s) * (tau_t + tau_s))
        return alpha_s, sigma_s - eta**2 * alpha_s * (tau_t - tau_s), kappa

    def carry(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> Tensor:
        return sde.alpha(s) / sde.alpha(t)

    def density(self, sde: SDE, eta: float, lambda_u: Tensor, s: Tensor) -> Tensor:
        return -(1 + eta**2) * sde.alpha(s) * torch.exp(-lambda_u)


@dataclass(frozen=True)
class FrozenEDM:
    """EDM's F at ``sigma_data`` = σ_d, density (1+η²) c_s (cos φ/cos φ_s)^(η²) sin φ cos φ.

    Raises:
        ArgumentError: unless ``sigma_data`` is positive and finite.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data, "Pass √E[x_0²] of the data, or use FrozenX0().")

    def is_output_of(self, model: ScoreModel) -> bool:
        return model.prediction == "edm" and model.sigma_data == self.sigma_data

    def view(self, equation: ReverseEquation, t: Tensor) -> Combination:
        sin, cos, _ = self._polar(equation.sde, t)
        x_0, epsilon = equation.view("x0", t), equation.view("epsilon", t)
        return Combination(*(sin / self.sigma_data * a - cos * b for a, b in zip(x_0, epsilon, strict=True)))

    def first_order(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (sin_t, cos_t, _), (sin_s, cos_s, c_s) = self._polar(sde, t), self._polar(sde, s)
        if eta == 0:
            q_eta, kappa = torch.ones_like(c_s), torch.zeros_like(c_s)
            turn = torch.atan2(sin_t * cos_s - cos_t * sin_s, cos_t * cos_s + sin_t * sin_s)  # φ_t − φ_s
        else:
            q_eta = (cos_t / cos_s) ** (eta**2)
            kappa = c_s * torch.sqrt(-torch.expm1(2 * eta**2 * torch.log(cos_t / cos_s)))
            turn = self._weighted_turn(eta, torch.atan2(sin_t, cos_t), torch.atan2(sin_s, cos_s))
        u = c_s * (q_eta * cos_t + turn * sin_t) / self.sigma_data
        return u, c_s * (q_eta * sin_t - turn * cos_t), kappa

    def carry(self, sde: SDE, eta: float, t: Tensor, s: Tensor) -> Tensor:
        (_, cos_t, c_t), (_, cos_s, c_s) = self._polar(sde, t), self._polar(sde, s)
        return c_s / c_t * (1.0 if eta == 0 else (cos_t / cos_s) ** (eta**2))

    def density(self, sde: SDE, eta: float, lambda_u: Tensor, s: Tensor) -> Tensor:
        cos_s, c_s = self._polar(sde, s)[1:]
        phi = torch.atan(torch.exp(-lambda_u) / self.sigma_data)
        return (1 + eta**2) * c_s * (torch.cos(phi) / cos_s) ** (eta**2) * torch.sin(phi) * torch.cos(phi)

    def _polar(self, sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sin φ, cos φ, c)."""
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        c = 1 / edm_input_scale(alpha, sigma, self.sigma_data)
        return sigma / c, alpha * self.sigma_data / c, c

    @staticmethod
    def _weighted_turn(eta: float, phi_t: Tensor, phi_s: Tensor) -> Tensor:
        """(1+η²) ∫ (cos φ/cos φ_s)^(η²) dφ from φ_s to φ_t."""
        nodes, weights = gauss_legendre()
        phi = phi_s.unsqueeze(-1) + (phi_t - phi_s).unsqueeze(-1) * nodes
        values = (torch.cos(phi) / torch.cos(phi_s).unsqueeze(-1)) ** (eta**2)
        return (1 + eta**2) * (phi_t - phi_s) * (values * weights).sum(-1)
