"""Guidance at an interval of noise levels only (Kynkäänniemi et al. 2024).

The noise level is σ/α. It does not depend on the path: the same interval means the same under every SDE. Whether a time
lies in it is decided once per grid, in float64.

In the steps of ``sample`` the host knows whether guidance acts, and nothing is evaluated in vain. In compiled steps,
and where many times are computed together (likelihood, adaptive solvers), everything is evaluated, and the estimate is
chosen on the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError, warn_caller
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.models.wrapper import Inside, Wrapper

__all__ = ["Interval", "WithinInterval", "chosen"]

_SLACK = 1e-9  # of the noise level, relative: an end that was read off a grid belongs to the interval

Interval: TypeAlias = tuple[float, float]
"""(lo, hi): noise levels σ/α. Both ends belong to it; hi may be infinite."""


class WithinInterval(Wrapper):
    """A wrapper that acts at the noise levels of ``interval`` only; None: at all of them.

    ``denoise`` reads from ``inside.own`` whether it acts at this time, and ends with :func:`chosen`.

    Raises:
        ArgumentError: unless 0 <= lo < hi; if ``model`` is not a score model.
    """

    def __init__(self, model: ScoreModel, interval: Interval | None = None) -> None:
        super().__init__(model)
        self.interval = None if interval is None else _checked(interval)

    def acts_at(self, t: Tensor) -> Tensor:
        """Whether it acts at the times ``t``: bool, of the shape of t."""
        low, high = self.interval or (0.0, math.inf)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        above = sigma >= low * (1 - _SLACK) * alpha
        return above if high == math.inf else above & (sigma <= high * (1 + _SLACK) * alpha)

    def network_inputs(self, t: Tensor) -> Inputs:
        """Those of any wrapper; then, with an interval, whether it acts."""
        inputs = super().network_inputs(t)
        return inputs if self.interval is None else (*inputs, self.acts_at(t))

    def inside_at(self, x_t: Tensor, inputs: Inputs) -> Inside:
        """The model inside; ``own`` is whether the wrapper acts: True or False where the host knows, else a tensor."""
        if self.interval is None:
            inside = super().inside_at(x_t, inputs)
            inside.own = True
            return inside
        *inputs_of_any, switch = inputs
        inside = super().inside_at(x_t, tuple(inputs_of_any))
        on_host = switch.dtype is torch.bool and switch.ndim == 0 and switch.device.type == "cpu"
        inside.own = bool(switch) if on_host and not torch.compiler.is_compiling() else expand_to(switch, x_t) > 0
        return inside

    @property
    def in_words(self) -> str:
        """The model inside, how it is guided, and where."""
        where = "" if self.interval is None else f", for σ/α from {self.interval[0]:g} to {self.interval[1]:g}"
        return f"{self.network.in_words}, guided by {self.guidance_in_words()}{where}"

    @abstractmethod
    def guidance_in_words(self) -> str:
        """The guidance and its scale: "a class at scale 3"."""

    def check_times(self, times: Tensor) -> None:
        """Warn of a run none of whose steps begins in the interval."""
        super().check_times(times)
        if not bool(self.acts_at(times).any()):
            levels = self.sde.sigma(times) / self.sde.alpha(times)
            warn_caller(
                f"interval={self.interval}: no step begins at such a noise level, and nothing is guided. The "
                f"{len(times)} steps begin at σ/α from {levels.max().item():.4g} to {levels.min().item():.4g}"
            )


def chosen(acts: bool | Tensor, guided: Tensor, plain: Tensor) -> Tensor:
    """The guided estimate where guidance acts, else the plain one, bit for bit."""
    if isinstance(acts, Tensor):
        return torch.where(acts, guided, plain)
    return guided if acts else plain


def _checked(interval: Any) -> Interval:
    remedy = "Pass (lo, hi), noise levels σ/α, such as (0.2, 3.0); hi may be math.inf."
    if not (isinstance(interval, (tuple, list)) and len(interval) == 2):
        raise ArgumentError("interval", interval, "not a pair of noise levels", remedy)
    low, high = interval
    if not (is_number(low) and (is_number(high) or high == math.inf) and 0 <= low < high):
        raise ArgumentError("interval", interval, "not an interval: 0 <= lo < hi", remedy)
    return float(low), float(high)
