"""The equation of a solver: the reverse-time equation with a stochasticity η.

For any η ≥ 0 it has the same marginals as the forward process:

    dx = [ f x − ½(1+η²) g² ∇log p_t(x) ] dt + η g dw̄        η = 1: reverse SDE     η = 0: probability flow ODE

With x_t = α x̂_0 + σ ε̂ and ∇log p = −ε̂/σ the drift is α′ x̂_0 + (σ′ + ½η² g²/σ) ε̂. Both x̂_0 and ε̂ are linear in x_t
and the network's output y, and so is the drift. Integrators use these linear coefficients, computed once per grid. They
do not depend on the model's parameterisation.

Song et al. 2021, eq. 6 and 13; η as in Zhang & Chen 2023 (DEIS), eq. 5 (their λ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating, columns_like, expand_to
from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.prediction import Combination, Kind
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.sde import SDE, Time

__all__ = ["ReverseEquation", "check_eta"]


def check_eta(eta: Any) -> None:
    """Refuse a stochasticity that is not a number, at least 0, with a finite square.

    Raises:
        ArgumentError: naming it.
    """
    if not (is_number(eta) and eta >= 0 and math.isfinite(float(eta) * float(eta))):
        problem = "stochasticity must be finite, its square too, and not negative"
        raise ArgumentError("eta", eta, problem, "0 is the ODE, 1 the SDE.")


@dataclass(frozen=True)
class ReverseEquation:
    """The reverse-time equation of a score model at stochasticity ``eta``.

    ``condition`` is passed to the network. ``evaluate`` replaces ``model.output`` if evaluations are counted or
    timed.

    Raises:
        ArgumentError: if ``eta`` is negative, or it or its square is not finite.
    """

    model: ScoreModel
    eta: float = 1.0
    condition: Any = None
    evaluate: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_eta(self.eta)
        object.__setattr__(self, "eta", float(self.eta))  # torch takes no whole number beyond 64 bits

    @property
    def sde(self) -> SDE:
        """The forward process."""
        return self.model.sde

    def inputs(self, t: Tensor) -> Inputs:
        """The network's inputs at the times ``t`` for :meth:`output`, float64: columns of an integrator's table."""
        return self.model.network_inputs(t)

    def output(self, x_t: Tensor, inputs: Inputs) -> Tensor:
        """The network's output y for prepared inputs: one evaluation."""
        y: Tensor = (self.evaluate or self.model.output)(x_t, inputs, self.condition)
        return y

    def outputs(self, x_t: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """The output y, and v if the network learned variances, else None: one evaluation."""
        call = self.model.outputs
        if self.evaluate is None:
            return call(x_t, inputs, self.condition)
        both: tuple[Tensor, Tensor | None] = self.evaluate(x_t, inputs, self.condition, call)
        return both

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Tweedie's formula: x̂_0 at (x_t, t), one evaluation. Shapes: x_t (B, *event), t 0-dim float64."""
        m, n = (c.to(x_t.device, x_t.dtype) for c in self.view("x0", t))
        inputs = columns_like(x_t, self.inputs(t))
        return m * x_t + n * self.output(x_t, inputs)

    def view(self, kind: Kind, t: Tensor) -> Combination:
        """(m, n) at the times ``t`` with ŷ_kind = m x_t + n y, float64."""
        return self.views(t, kind)[0]

    def views(self, t: Tensor, *kinds: Kind) -> list[Combination]:
        """The :meth:`view` of every kind at the times ``t``; the schedules are asked once for all."""
        return self.model.readout(t).views(*kinds)

    def drift_coefficients(self, t: Tensor) -> Combination:
        """(p, q) with drift = p x_t + q y, float64."""
        sde, (x_0, epsilon) = self.sde, self.views(t, "x0", "epsilon")
        of_x_0, of_epsilon = sde.d_alpha(t), sde.d_sigma(t)
        if self.eta > 0:  # g may be infinite where α = 0; the flow does not need g
            of_epsilon = of_epsilon + 0.5 * self.eta**2 * sde.g(t) ** 2 / sde.sigma(t)
        return Combination(*(of_x_0 * a + of_epsilon * b for a, b in zip(x_0, epsilon, strict=True)))

    def drift(self, x_t: Tensor, t: Time) -> Tensor:
        """The drift at (x_t, t), one network evaluation. Shapes: x_t (B, *event), t scalar or (B,)."""
        x_t = as_floating(x_t, "x_t")
        t64 = torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
        inputs = columns_like(x_t, self.inputs(t64))
        p, q = (expand_to(c.to(x_t.dtype), x_t) for c in self.drift_coefficients(t64))
        return p * x_t + q * self.output(x_t, inputs)

    def diffusion(self, t: Time) -> Tensor:
        """η g(t); zero for η = 0, also where g is infinite."""
        g = self.sde.g(t)
        return self.eta * g if self.eta > 0 else torch.zeros_like(g)
