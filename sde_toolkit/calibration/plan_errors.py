"""Errors of a plan over noises: the root mean square, and the typical (median) error, which few noises cannot move.

A noise near the border between two modes may end in another mode. Its error is as large as the data, and a few of them
decide the root mean square; the median is blind to them, and to whatever happens to less than half of the noises.
A plan is compared with another in both senses, on the same noises (:func:`surely_worse`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Measured", "combined", "surely_better", "surely_worse", "worse"]

_SURE = 1.96  # standard errors: an interval of 95 %


@dataclass(frozen=True)
class Measured:
    """An error over samples (η > 0: a distance of distributions) with its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, squares: Tensor) -> Measured:
        """The root mean square."""
        mean = squares.mean().item()
        value = math.sqrt(max(mean, 0.0)) if math.isfinite(mean) else math.inf  # unbiased squares may be negative
        spread = squares.std().item() / math.sqrt(len(squares)) if len(squares) > 1 else math.nan
        return cls(value, 0.0 if value == 0 else spread / (2 * value))

    @classmethod
    def typical(cls, squares: Tensor) -> Measured:
        """The median of the errors √``squares``."""
        errors = squares.clamp(min=0.0).sqrt()
        value = _median(errors).item()
        influence = _influence(errors) if math.isfinite(value) else errors.new_full((1,), math.nan)
        return cls(value, influence.square().mean().sqrt().item() / math.sqrt(len(errors)))

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.1g}"


def combined(squares: Tensor, share: float = 0.5) -> float:
    """(mean square)^``share`` × (squared median)^(1 − ``share``): one number for both senses, in units of squares."""
    mean, median = squares.mean().item(), _median(squares).item()
    return max(mean, 0.0) ** share * max(median, 0.0) ** (1 - share) if math.isfinite(mean) else math.inf


def worse(squares: Tensor, than: Tensor) -> bool:
    """Whether the mean square or the median is larger than that of ``than``, however little."""
    return bool(squares.mean() > than.mean()) or bool(_median(squares) > _median(than))


def surely_worse(squares: Tensor, than: Tensor) -> bool:
    """Whether the mean square or the median error is larger by more than 1.96 standard errors of the paired difference.

    ``squares``, ``than``: (n,) squared errors of two plans on the same noises. The standard error of a difference of
    medians is that of the difference of their influence functions, with the density at the median from the spacing of
    the errors around it (Siddiqui 1960).
    """
    if not bool(squares.isfinite().all()):
        return bool(than.isfinite().all())
    gap = squares - than
    one, other = squares.clamp(min=0.0).sqrt(), than.clamp(min=0.0).sqrt()
    pairs = ((gap.mean(), gap - gap.mean()), (_median(one) - _median(other), _influence(one) - _influence(other)))
    return any(
        larger.item() > _SURE * influence.square().mean().sqrt().item() / math.sqrt(len(gap))
        for larger, influence in pairs
    )


def surely_better(squares: Tensor, than: Tensor) -> bool:
    """Whether :func:`combined` of ``squares`` is smaller by more than 1.96 standard errors of the paired log ratio."""
    one, other = combined(squares), combined(than)
    if not (0 < one < math.inf and 0 < other < math.inf):
        return one < other
    influence = _influence_on_log(squares) - _influence_on_log(than)
    return math.log(other / one) > _SURE * influence.square().mean().sqrt().item() / math.sqrt(len(squares))


def _influence_on_log(squares: Tensor) -> Tensor:
    """What each square moves the logarithm of :func:`combined` by, times n."""
    errors = squares.clamp(min=0.0).sqrt()
    return 0.5 * (squares / squares.mean() - 1) + _influence(errors) / _median(errors)


def _median(values: Tensor) -> Tensor:
    """The middle value; of an even number the mean of the middle two."""
    ordered, middle = values.sort().values, len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _influence(values: Tensor) -> Tensor:
    """(sign(v − median))/(2 density at the median): what each value moves the median by, times n."""
    ordered, n = values.sort().values, len(values)
    reach = max(1, round(math.sqrt(n)))
    low, high = max(0, (n - 1) // 2 - reach), min(n - 1, n // 2 + reach)
    sparsity = (ordered[high] - ordered[low]) * n / max(1, high - low)  # one over the density
    return torch.sign(values - _median(values)) * sparsity / 2
