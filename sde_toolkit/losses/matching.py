"""Denoising score matching: one regression, in any parameterisation and with any weighting.

    L = E_t w(t) E |ŷ(x_t, t) − y|² / D,   x_t = α x_0 + σ ε,   y = a x_0 + b ε   (:mod:`sde_toolkit.models.prediction`)

    target       w        name
    epsilon      1        L_simple (Ho et al. 2020, eq. 14)
    score        σ²       the same (Song et al. 2021, section 3.3)
    score        g²       likelihood weighting (Song, Durkan et al. 2021, eq. 7)
    edm          1        EDM's loss (Karras et al. 2022, eq. 8), except for the times: theirs are lognormal in σ
    velocity     1        flow matching (Lipman et al. 2023, eq. 6)

The target need not be what the network predicts. The error is computed in the parameterisation of the network, and its
square is then scaled exactly: |ŷ − y|² = (D_target/D_network)² |error|² (:mod:`sde_toolkit.losses.weightings`).
Converting the output to the target first would lose digits at both ends of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError
from sde_toolkit.losses.weightings import Weighting, check_weighting, constant, error_ratio
from sde_toolkit.models.prediction import KINDS, Kind, Prediction, check_kind
from sde_toolkit.models.score_model import ScoreModel

__all__ = ["DenoisingScoreMatching", "check_batch", "native_error", "scale_time"]

_INSIDE = 1e-9  # weights are computed at least this far from t=0 and t=1, where they may be 0 · ∞


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """The loss of each sample, shape (B,): the mean over its D elements.

    Args:
        target: the parameterisation whose error ``weighting`` multiplies. It has no effect if the weighting has an
            attribute ``multiplies``, which then names the parameterisation.
        weighting: a function (sde, t) -> w(t), (B,).

    Raises:
        ArgumentError: if ``target`` is not a parameterisation, or ``weighting`` cannot be called.
    """

    target: Kind = "epsilon"
    weighting: Weighting = constant

    def __post_init__(self) -> None:
        check_kind(self.target, "target")
        check_weighting(self.weighting)

    @property
    def multiplies(self) -> Kind:
        """The parameterisation whose error the weighting multiplies."""
        kind: Kind = getattr(self.weighting, "multiplies", self.target)
        return kind

    def __call__(self, model: ScoreModel, x_0: Tensor, t: Tensor, noise: Tensor, condition: Any = None) -> Tensor:
        """Shapes: x_0 and noise (B, *event) in model space, t (B,). One network evaluation.

        Raises:
            ArgumentError: if the shapes do not fit.
        """
        check_batch(x_0, t, noise)
        t = t.to(torch.float64)
        return self.of(model(model.sde.perturb(x_0, t, noise), t, condition), x_0, noise)

    def of(self, prediction: Prediction, x_0: Tensor, noise: Tensor) -> Tensor:
        """The loss of a ``prediction`` that was made at x_t = α x_0 + σ noise, (B,)."""
        readout = prediction.readout
        kind, error = native_error(prediction, x_0, noise)
        t = scale_time(readout.t)
        weight = self.weighting(readout.sde, t) * error_ratio(readout.sde, t, self.multiplies, kind, readout.sigma_data)
        return weight.to(error.dtype) * error.square().reshape(x_0.shape[0], -1).mean(1)


def native_error(prediction: Prediction, x_0: Tensor, noise: Tensor) -> tuple[Kind, Tensor]:
    """The network's parameterisation, and ŷ − y in it, (B, *event).

    It is "x0" if the network's own one is not of ``KINDS`` (a network that was made for another path).
    """
    readout = prediction.readout
    kind: Kind = readout.kind if readout.kind in KINDS else "x0"
    a, b = (expand_to(c.to(x_0.device, x_0.dtype), x_0) for c in readout.basis(kind))
    return kind, prediction.view(kind) - (a * x_0 + b * noise)


def scale_time(t: Tensor) -> Tensor:
    """The times at which weights are computed: at least 1e-9 from t=0 and t=1."""
    return t.clamp(_INSIDE, 1 - _INSIDE)


def check_batch(x_0: Any, t: Any, noise: Any) -> None:
    """Check data (B, *event), one time per sample (B,), and noise of the shape of the data.

    Raises:
        ArgumentError: if one of them is not a floating-point tensor, or its shape does not fit.
    """
    for name, value in (("x_0", x_0), ("t", t), ("noise", noise)):
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            found = value.dtype if isinstance(value, Tensor) else value
            remedy = "Pass floating-point tensors; x_0 is in model space."
            raise ArgumentError(name, found, "not a floating-point tensor", remedy)
    if x_0.ndim == 0 or t.shape != x_0.shape[:1]:
        problem = f"x_0 has shape {tuple(x_0.shape)}"
        raise ArgumentError("t", tuple(t.shape), problem, "Pass x_0 (B, *event) and one time per sample, (B,).")
    if noise.shape != x_0.shape:
        raise ArgumentError("noise", tuple(noise.shape), f"x_0 has shape {tuple(x_0.shape)}", "Pass randn_like(x_0).")
