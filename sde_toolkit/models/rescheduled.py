"""A model trained under one path, sampled under another, exactly.

All affine paths are one curve of distributions, run through at different speeds and scales. A time t′ of the new
path (α′, σ′) and the time t of the old one with the same noise level, λ′(t′) = λ(t), belong together:

    x_t = c x′_t′,    c = √((α_t² + σ_t²)/(α′² + σ′²)) = α_t/α′ = σ_t/σ′,    x̂_0 and ε̂ are the same

so that a network's answer at (c x′, t) holds at (x′, t′). Karras et al. 2022, section 2 and appendix C, see all
samplers through this change of variables; flow matching and diffusion are compared by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import some_seen
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.models.prediction import Combination, Kind, Readout
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.models.wrapper import Wrapper
from sde_toolkit.sde import SDE, check_sde

__all__ = ["Rescheduled", "reschedule"]

_SLACK = 1e-9  # of λ, relative: times given by the error below, or rounded on their way, are inside


def reschedule(model: ScoreModel, sde: SDE) -> Rescheduled:
    """``model`` under the path of ``sde``: the same x̂_0 and ε̂ at equal λ. Nothing is trained.

    The new model is a score model like any other, its views (score, v, velocity, edm) those of the new path.
    Parameters, transform and event shape are shared. It can be used at the times whose λ the old path reaches;
    a grid beyond is refused with the first or last time that can be used.

    >>> from sde_toolkit import VPSDE, FlowMatching, gaussian
    >>> straight = reschedule(gaussian([1.0], VPSDE(), std=0.5), FlowMatching())
    >>> straight(torch.zeros(1, 1), 0.5).velocity.shape
    torch.Size([1, 1])

    Raises:
        ArgumentError: if ``model`` or ``sde`` is not one, or the two paths have no λ in common.
    """
    return Rescheduled(model, sde)


class Rescheduled(Wrapper):
    """See :func:`reschedule`. ``prediction`` is what the network outputs, on its own path."""

    def __init__(self, model: ScoreModel, sde: SDE) -> None:
        check_sde(sde)
        super().__init__(model, sde)
        self.prediction = model.prediction
        old, new = _lambda_range(model.sde), _lambda_range(sde)
        if not (old[0] < new[1] and new[0] < old[1]):
            problem = f"its half log-SNR runs from {new[1]:.6g} to {new[0]:.6g}, that of {model.sde} from {old[1]:.6g}"
            raise ArgumentError("sde", sde, f"{problem} to {old[0]:.6g}", "The two paths must share noise levels.")

    def _old_time(self, t: Tensor) -> Tensor:
        """The time of the old path at which λ is that of the new one at ``t``.

        Raises:
            GridError: naming the time that lies beyond, the range, and the first or last time that can be used.
        """
        wanted = self.sde.half_log_snr(t)
        low, high = _lambda_range(self.network.sde)
        beyond = (wanted < _lower(low)) | (wanted > -_lower(-high))
        if some_seen(beyond):
            raise self._refusal(t.flatten()[int(beyond.flatten().int().argmax())].item(), low, high)
        return self.network.sde.solve_half_log_snr(wanted.clamp(low, high)).clamp(0.0, 1.0)

    def _refusal(self, t: float, low: float, high: float) -> GridError:
        wanted = self.sde.half_log_snr(t).item()
        if wanted < low:
            remedy = f"Start the grid at t={self.sde.inverse_half_log_snr(low).item()!r} or below."
        else:
            remedy = f"End the grid at t={self.sde.inverse_half_log_snr(high).item()!r} or above."
        return GridError(
            "t",
            t,
            f"{self.sde} has half log-SNR {wanted:.6g} there; {self.network.sde}, which the network was trained "
            f"under, runs from {high:.6g} to {low:.6g}",
            remedy,
        )

    def network_inputs(self, t: Tensor) -> Inputs:
        """Those of the old model at the old times, and the scale c, last."""
        old = self._old_time(t)
        return *self.network.network_inputs(old), _scale_between(self.network.sde, old, self.sde, t)

    @property
    def in_words(self) -> str:
        """That of the model inside: a change of path changes no density."""
        return self.network.in_words

    def check_times(self, times: Tensor) -> None:
        """As the old model does, at its own times."""
        self.network.check_times(self._old_time(times))

    def output(self, x_t: Tensor, inputs: Inputs, condition: Any = None) -> Tensor:
        """The answer of the network itself: x̂_0 and ε̂ are read from it, each without loss, at both ends of time."""
        return self.outputs(x_t, inputs, condition)[0]

    def outputs(self, x_t: Tensor, inputs: Inputs, condition: Any = None) -> tuple[Tensor, Tensor | None]:
        *inner, c = inputs
        return self.network.outputs(expand_to(c, x_t) * x_t, tuple(inner), condition)

    def readout(self, t: Tensor) -> Readout:
        t = t.to(torch.float64)
        old = self._old_time(t)
        c = _scale_between(self.network.sde, old, self.sde, t)
        # x̂_0, ε̂ and EDM's F know nothing of scales; a v, score or velocity of the old path is none of the new.
        kind = self.prediction if self.prediction in ("x0", "epsilon", "edm") else cast(Kind, "on another path")
        return _RescheduledReadout(self.sde, kind, t, self.sigma_data, inner=self.network.readout(old), c=c)


@dataclass(frozen=True, kw_only=True)
class _RescheduledReadout(Readout):
    """The old readout's x̂_0 and ε̂, in terms of x′ = x/c, combined to the views of the new path."""

    inner: Readout
    c: Tensor

    def views(self, *kinds: Kind) -> list[Combination]:
        x_0, epsilon = (Combination(self.c * m, n) for m, n in self.inner.views("x0", "epsilon"))
        return [self._combined(kind, x_0, epsilon) for kind in kinds]

    def _combined(self, kind: Kind, x_0: Combination, epsilon: Combination) -> Combination:
        if kind in ("x0", "epsilon"):  # also where the other one is infinite
            return x_0 if kind == "x0" else epsilon
        if kind == self.kind:
            return Combination(torch.zeros_like(self.t), torch.ones_like(self.t))
        a, b = self.basis(kind)
        return Combination(*(a * of_x_0 + b * of_epsilon for of_x_0, of_epsilon in zip(x_0, epsilon, strict=True)))


def _scale_between(old: SDE, t: Tensor, new: SDE, new_t: Tensor) -> Tensor:
    """c of the module's header: finite and positive wherever both paths are."""
    squares = [sde.alpha(u) ** 2 + sde.sigma(u) ** 2 for sde, u in ((old, t), (new, new_t))]
    return torch.sqrt(squares[0] / squares[1])


def _lambda_range(sde: SDE) -> tuple[float, float]:
    """λ(1) and λ(0)."""
    return sde.half_log_snr(1.0).item(), sde.half_log_snr(0.0).item()


def _lower(bound: float) -> float:
    return bound - _SLACK * max(1.0, abs(bound))
