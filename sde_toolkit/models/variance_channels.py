"""Networks that learned the variance of their steps answer with twice the channels (axis 1): y, then the variance.

Nichol & Dhariwal 2021, eq. 15: log Σ = v log β + (1 − v) log β̃, with v in [0, 1] for every element. The integrator that
uses v is :class:`~sde_toolkit.integrators.LearnedVariance`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor

from sde_toolkit.errors import ArgumentError

__all__ = ["LearnedVarianceKind", "check_learned_variance", "split_channels", "twice_the_channels"]

LearnedVarianceKind: TypeAlias = Literal["fraction", "range"]
"""What the second half of a network's channels holds: v, or 2 v − 1."""


def check_learned_variance(kind: Any) -> None:
    """Refuse what is neither a kind of learned variance nor True nor False.

    Raises:
        ArgumentError: naming the kinds.
    """
    if not isinstance(kind, bool) and kind not in ("fraction", "range"):
        problem, remedy = "unknown", 'Use "range" for values in [−1, 1], "fraction" (or True) for 0 to 1, or False.'
        raise ArgumentError("learned_variance", kind, problem, remedy)


def twice_the_channels(x: Tensor) -> tuple[int, ...]:
    """The shape of the answer for x (B, *event). A scalar event counts as one channel."""
    return (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else (x.shape[0], 2)


def split_channels(answer: Tensor, x: Tensor, kind: LearnedVarianceKind) -> tuple[Tensor, Tensor]:
    """(y, v), both of the shape of x, from an answer of the shape :func:`twice_the_channels`."""
    y, v = (half.reshape(x.shape) for half in answer.chunk(2, dim=1))
    return y, 0.5 * (v + 1) if kind == "range" else v
