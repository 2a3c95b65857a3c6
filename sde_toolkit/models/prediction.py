"""The output of a network at (x_t, t), read in every parameterisation in use.

With x_t = α x_0 + σ ε, every parameterisation is one linear combination y = a x_0 + b ε:

    kind        a                      b
    x0          1                      0
    epsilon     0                      1
    score       0                     −1/σ                  ∇ log p_t(x_t)
    v          −σ                      α                    Salimans & Ho 2022, section 4 (any α, σ)
    velocity    α′                     σ′                   dx/dt along the path: flow matching's target
    edm         σ/(σ_d c)             −α σ_d/c              c = √(σ² + α² σ_d²): EDM's raw output F

so that one formula reads the network for all of them, with D = a σ − α b:

    x̂_0 = (σ y − b x_t)/D        ε̂ = (a x_t − α y)/D        y′ = a′ x̂_0 + b′ ε̂

EDM's preconditioning (Karras et al. 2022, eq. 7 and table 1), written for any α and σ: its network sees
x_t/c, and its D(x) = c_skip x + c_out F is x̂_0. For σ_d = 1, F is −v/√(α²+σ²).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde import SDE, Time

__all__ = ["KINDS", "Combination", "Kind", "Prediction", "Readout", "check_kind", "edm_input_scale"]

Kind: TypeAlias = Literal["epsilon", "x0", "v", "score", "velocity", "edm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def check_kind(kind: str, argument: str = "prediction") -> None:
    """Refuse a parameterisation that does not exist.

    Raises:
        ArgumentError: naming the ones that do.
    """
    if kind not in KINDS:
        raise ArgumentError(argument, kind, "unknown parameterisation", f"Choose one of {', '.join(KINDS)}.")


class Combination(NamedTuple):
    """Two coefficients: of (x_0, ε) where a parameterisation is defined, of (x_t, y) where it is read."""

    first: Tensor
    second: Tensor


def edm_input_scale(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """c_in = 1/c = 1/√(σ² + α² σ_d²), what EDM's network sees x_t multiplied by."""
    return torch.rsqrt(sigma**2 + (alpha * sigma_data) ** 2)


_BASES: dict[Kind, Callable[[SDE, Time, Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "x0": lambda sde, t, alpha, sigma, sigma_data: (torch.ones_like(alpha), torch.zeros_like(alpha)),
    "epsilon": lambda sde, t, alpha, sigma, sigma_data: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    "score": lambda sde, t, alpha, sigma, sigma_data: (torch.zeros_like(alpha), -1 / sigma),
    "v": lambda sde, t, alpha, sigma, sigma_data: (-sigma, alpha),
    "velocity": lambda sde, t, alpha, sigma, sigma_data: (sde.d_alpha(t), sde.d_sigma(t)),
    "edm": lambda sde, t, alpha, sigma, sigma_data: (
        sigma / sigma_data * edm_input_scale(alpha, sigma, sigma_data),
        -alpha * sigma_data * edm_input_scale(alpha, sigma, sigma_data),
    ),
}


@dataclass(frozen=True)
class Readout:
    """How the output of one parameterisation is read at given times: float64 coefficients, shape of ``t``."""

    sde: SDE
    kind: Kind
    t: Tensor
    sigma_data: float = 1.0

    def basis(self, kind: Kind) -> Combination:
        """(a, b) with y_kind = a x_0 + b ε."""
        t = self.t.to(torch.float64)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return Combination(*_BASES[kind](self.sde, t, alpha, sigma, self.sigma_data))

    def view(self, kind: Kind) -> Combination:
        """(m, n) with y_kind = m x_t + n y: x̂_0 and ε̂ of the module's header put into y = a x_0 + b ε."""
        return self.views(kind)[0]

    def views(self, *kinds: Kind) -> list[Combination]:
        """The view of every kind; the schedules are asked once for all."""
        t = self.t.to(torch.float64)
        native = Combination(torch.zeros_like(t), torch.ones_like(t))  # the output itself, also where D vanishes
        if all(kind == self.kind for kind in kinds):
            return [native for _ in kinds]
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        a, b = _BASES[self.kind](self.sde, t, alpha, sigma, self.sigma_data)
        D = a * sigma - alpha * b

        def read(kind: Kind) -> Combination:
            a_wanted, b_wanted = _BASES[kind](self.sde, t, alpha, sigma, self.sigma_data)
            return Combination((a * b_wanted - b * a_wanted) / D, (a_wanted * sigma - b_wanted * alpha) / D)

        return [native if kind == self.kind else read(kind) for kind in kinds]


@dataclass(frozen=True)
class Prediction:
    """A network's ``output`` at (x_t, t) with lazy views; each is computed when it is asked for.

    Shapes: ``x_t``, ``output`` and every view are (B, *event). The view in the network's own
    parameterisation is the output itself. ``variance_fraction``: v (B, *event) of a network that learned the variance
    of its steps, else None (:meth:`sde_toolkit.ScoreModel.outputs`).
    """

    x_t: Tensor
    output: Tensor
    readout: Readout
    variance_fraction: Tensor | None = None

    def view(self, kind: Kind) -> Tensor:
        """The prediction as ``kind``, one of ``epsilon, x0, v, score, velocity, edm``."""
        if kind == self.readout.kind:
            return self.output
        of_x, of_y = (expand_to(c.to(self.x_t.device, self.x_t.dtype), self.x_t) for c in self.readout.view(kind))
        return of_x * self.x_t + of_y * self.output

    @property
    def x_0(self) -> Tensor:
        """The denoised estimate E[x_0 | x_t]."""
        return self.view("x0")

    @property
    def epsilon(self) -> Tensor:
        """The noise estimate E[ε | x_t] = −σ score."""
        return self.view("epsilon")

    @property
    def score(self) -> Tensor:
        """∇ log p_t(x_t)."""
        return self.view("score")

    @property
    def v(self) -> Tensor:
        """α ε − σ x_0."""
        return self.view("v")

    @property
    def velocity(self) -> Tensor:
        """α′ x_0 + σ′ ε = dx/dt of the probability flow."""
        return self.view("velocity")

    @property
    def edm(self) -> Tensor:
        """EDM's raw network output F."""
        return self.view("edm")
