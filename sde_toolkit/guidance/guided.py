"""How strongly each sample is guided: a scale that travels with its condition, since batches cut conditions by rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError

__all__ = ["Guided", "checked_scale", "guided_by", "in_words", "scale_of"]


@dataclass(frozen=True, eq=False)
class Guided:
    """A condition and how it is guided, sample by sample: pass it as ``condition=``.

    Attributes:
        condition: the network's, as without guidance.
        scale: γ of each sample, (n,), or a number; None for that of the guidance.
        no_class: what stands for "no class" for each sample, in the structure and with the rows of ``condition``: a
            negative prompt, for example. None for that of the guidance.
    """

    condition: Any
    scale: Tensor | float | None = None
    no_class: Any = None


def guided_by(condition: Any) -> Guided:
    """The caller's condition as a :class:`Guided`, whichever it passed."""
    return condition if isinstance(condition, Guided) else Guided(condition)


def checked_scale(scale: Any) -> float | Tensor:
    """A scale of guidance: a number, or a 0-dim tensor.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(scale, Tensor) and scale.ndim == 0:
        return scale
    if isinstance(scale, Tensor):
        remedy = "Pass one number; a scale for each sample goes with the condition: condition=Guided(labels, scale)."
        raise ArgumentError("scale", tuple(scale.shape), "its rows would not go with the samples", remedy)
    if not is_number(scale):
        raise ArgumentError("scale", scale, "not a finite number", "Pass 1 for the conditional model, 3.0 for more.")
    return float(scale)


def scale_of(told: Guided, usual: float | Tensor, x_t: Tensor) -> float | Tensor:
    """γ as a number, or as a tensor that multiplies x_t."""
    scale = usual if told.scale is None else told.scale
    if not isinstance(scale, Tensor):
        return scale if told.scale is None else checked_scale(scale)
    if scale.ndim > 1 or (scale.ndim == 1 and scale.shape != x_t.shape[:1]):
        problem = f"not one number for each of {x_t.shape[0]} samples"
        raise ArgumentError("condition.scale", tuple(scale.shape), problem, "Pass a tensor (n,), or a number.")
    return expand_to(scale.to(x_t.device, x_t.dtype), x_t)


def in_words(scale: float | Tensor) -> str:
    """A scale for a sentence."""
    return f"{scale:g}" if not isinstance(scale, Tensor) else "of a tensor"
