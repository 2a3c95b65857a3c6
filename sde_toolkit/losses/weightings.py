"""Weightings of the loss, and the parameterisation whose error each of them multiplies.

The errors in all parameterisations are one error at different scales. With y = a x_0 + b ε
(:mod:`sde_toolkit.models.prediction`) and D = a σ − α b, the same prediction in two parameterisations A and B has

    |ŷ_A − y_A|² = (D_A/D_B)² |ŷ_B − y_B|²        D:   x0: σ   epsilon: −α   score: α/σ   v: −(α² + σ²)
                                                       velocity: α′σ − ασ′   edm: √(σ² + α²σ_d²)/σ_d

So w_A |ŷ_A − y_A|² and w_B |ŷ_B − y_B|² are the same loss if w_A D_A² = w_B D_B². A published weighting belongs to the
error in one parameterisation, its ``multiplies``. :class:`Converted` is the weight of the same loss for another one.

    weighting            multiplies    w                                    (SNR = α²/σ² = e^(2λ))
    constant             the target    1                                    Ho et al. 2020, eq. 14 (target epsilon)
    sigma_squared        the target    σ²                                   Song et al. 2021, section 3.3 (score)
    g_squared            the target    g²                                   Song, Durkan et al. 2021, eq. 7 (score)
    EDMWeighting         x0            (τ² + σ_d²)/(τ σ_d)²,  τ = σ/α       Karras et al. 2022, eq. 8, table 1
    MinSNR               x0            min(SNR, γ)                          Hang et al. 2023, section 3.4
    P2                   epsilon       1/(k + SNR)^γ                        Choi et al. 2022, eq. 8
    SigmoidWeighting     epsilon       g²/(2σ²) · sigmoid(b − log SNR)      Kingma & Gao 2023; Hoogeboom et al. 2024

A weighting is any function (sde, t) that returns a tensor of the shape of t, computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.prediction import Kind, Readout, check_kind
from sde_toolkit.sde import SDE, Time

__all__ = [
    "P2",
    "Anchored",
    "Converted",
    "EDMWeighting",
    "MinSNR",
    "SigmoidWeighting",
    "Weighting",
    "check_weighting",
    "constant",
    "error_ratio",
    "g_squared",
    "sigma_squared",
]

Weighting: TypeAlias = Callable[[SDE, Time], Tensor]
"""(sde, t) -> w(t), of the shape of t. An attribute ``multiplies`` names the parameterisation of the error."""


def constant(sde: SDE, t: Time) -> Tensor:
    """w = 1. With the target ``epsilon`` it is L_simple (Ho et al. 2020, eq. 14)."""
    return torch.ones_like(t)


def sigma_squared(sde: SDE, t: Time) -> Tensor:
    """w = σ_t². With the target ``score`` it is λ(t) of Song et al. (2021, section 3.3), and equal to L_simple."""
    return sde.sigma(t) ** 2


def g_squared(sde: SDE, t: Time) -> Tensor:
    """w = g(t)². With the target ``score`` it is likelihood weighting (Song, Durkan et al. 2021, eq. 7).

    The loss is then twice the variational bound in nats.
    """
    return sde.g(t) ** 2


def error_ratio(sde: SDE, t: Tensor, of: Kind, to: Kind, sigma_data: float = 1.0) -> Tensor:
    """|ŷ_of − y_of|² / |ŷ_to − y_to|² = (D_of/D_to)² at the times t, float64 of the shape of t; exactly 1 if of = to.

    ``sigma_data``: σ_d, for ``edm``. The ratio is not finite where one of the errors does not exist: where α or σ is 0,
    for example.

    Raises:
        ArgumentError: if ``of`` or ``to`` is not a parameterisation, or ``sigma_data`` is not positive.
    """
    check_kind(of, "of")
    check_kind(to, "to")
    check_positive("sigma_data", sigma_data, "Leave it out for the paper's own value.")
    t = torch.as_tensor(t, dtype=torch.float64)
    if of == to:
        return torch.ones_like(t)
    alpha, sigma = sde.alpha(t), sde.sigma(t)

    def scale(kind: Kind) -> Tensor:
        a, b = Readout(sde, kind, t, sigma_data).basis(kind)
        return a * sigma - alpha * b

    return (scale(of) / scale(to)) ** 2


@dataclass(frozen=True)
class Anchored:
    """``weighting`` with the fixed parameterisation ``multiplies``, whatever the target of the loss is.

    Raises:
        ArgumentError: if ``multiplies`` is not a parameterisation, or the weighting cannot be called or multiplies
            another error.
    """

    weighting: Weighting
    multiplies: Kind

    def __post_init__(self) -> None:
        check_kind(self.multiplies, "multiplies")
        check_weighting(self.weighting)
        own = getattr(self.weighting, "multiplies", self.multiplies)
        if own != self.multiplies:
            problem = f"{self.weighting} multiplies the error of {own}"
            remedy = f"Use Converted(weighting, {own!r}, {self.multiplies!r}) for the same loss on this error."
            raise ArgumentError("multiplies", self.multiplies, problem, remedy)

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return self.weighting(sde, t)


@dataclass(frozen=True)
class Converted:
    """The weight w (D_of/D_multiplies)²: the loss of ``weighting`` on the error of ``of``, for that of ``multiplies``.

    The two losses and their gradients are equal.

    Args:
        weighting: w.
        of: the parameterisation whose error ``weighting`` multiplies.
        multiplies: the parameterisation whose error the new weight multiplies.
        sigma_data: σ_d, used if one of the two is ``edm``.

    Raises:
        ArgumentError: if one of the two is not a parameterisation, or the weighting cannot be called or multiplies
            another error than that of ``of``.
    """

    weighting: Weighting
    of: Kind
    multiplies: Kind
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        Anchored(self.weighting, self.of)
        check_kind(self.multiplies, "multiplies")
        check_positive("sigma_data", self.sigma_data, "Leave it out for the paper's own value.")

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        ratio = error_ratio(sde, t, self.of, self.multiplies, self.sigma_data)
        return self.weighting(sde, t) * ratio


@dataclass(frozen=True)
class EDMWeighting:
    """w = (τ² + σ_d²)/(τ σ_d)² on |x̂_0 − x_0|², τ = σ/α (Karras et al. 2022, eq. 8 and table 1).

    It is the same loss as the target ``edm`` with :func:`constant`, for a network of this σ_d. The paper has
    σ_d = 0.5, and times with lognormal τ: :class:`~sde_toolkit.losses.LogNormal`.
    """

    sigma_data: float = 0.5
    multiplies: ClassVar[Kind] = "x0"

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data, "Leave it out for the paper's own value.")

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return torch.exp(2 * sde.half_log_snr(t)) + self.sigma_data**-2


@dataclass(frozen=True)
class MinSNR:
    """w = min(SNR, γ) on |x̂_0 − x_0|² (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR", section 3.4).

    If the variance is preserved, the same loss has the weight min(1, γ/SNR) on ε and min(SNR, γ)/(SNR + 1) on v, as in
    the paper. The default is for data of size 1; for data of standard deviation σ_d divide γ by σ_d².
    """

    gamma: float = 5.0
    multiplies: ClassVar[Kind] = "x0"

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma, "Leave it out for the paper's own value.")

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return torch.exp(2 * sde.half_log_snr(t)).clamp(max=self.gamma)


@dataclass(frozen=True)
class P2:
    """w = 1/(k + SNR)^γ on |ε̂ − ε|² (Choi et al. 2022, "Perception Prioritized Training", eq. 8).

    The default k is for data of size 1; for data of standard deviation σ_d divide k by σ_d².
    """

    k: float = 1.0
    gamma: float = 1.0
    multiplies: ClassVar[Kind] = "epsilon"

    def __post_init__(self) -> None:
        check_positive("k", self.k, "Leave it out for the paper's own value.")
        if not (is_number(self.gamma) and self.gamma >= 0):
            raise ArgumentError("gamma", self.gamma, "must be finite and not negative", "The paper uses 0.5 and 1.")

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        return (self.k + torch.exp(2 * sde.half_log_snr(t))) ** -self.gamma


@dataclass(frozen=True)
class SigmoidWeighting:
    """w = g²/(2σ²) · sigmoid(b − log SNR) on |ε̂ − ε|² (Kingma & Gao 2023, section 2; Hoogeboom et al. 2024, SiD2).

    Their losses are integrals over log SNR. Here all weights are for uniform t, so that the factor
    g²/(2σ²) = −½ d log SNR/dt enters. Without the sigmoid (b → ∞) the loss is the variational bound, in nats. The
    default is for data of size 1; for data of standard deviation σ_d subtract 2 log σ_d from b.
    """

    b: float = 2.0
    multiplies: ClassVar[Kind] = "epsilon"

    def __post_init__(self) -> None:
        if not is_number(self.b):
            raise ArgumentError("b", self.b, "not a finite log SNR", "Kingma & Gao's best is 2, SiD2 has -3 to 0.")

    def __call__(self, sde: SDE, t: Time) -> Tensor:
        rate = 0.5 * (sde.g(t) / sde.sigma(t)) ** 2
        return rate * torch.sigmoid(self.b - 2 * sde.half_log_snr(t))


def check_weighting(weighting: Any) -> None:
    """Check that ``weighting`` can be called, and that its ``multiplies``, if any, is a parameterisation.

    Raises:
        ArgumentError: if not.
    """
    if not callable(weighting) or isinstance(weighting, type):
        raise ArgumentError("weighting", weighting, "not a function (sde, t)", "Pass constant, MinSNR(), or your own.")
    multiplies = getattr(weighting, "multiplies", None)
    if multiplies is not None:
        check_kind(multiplies, "weighting.multiplies")
