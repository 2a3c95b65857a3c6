"""Extrapolation of ∫f and ∫g² to t=0 and t=1, beyond the outermost octaves of time. f or g may be unbounded there.

Let d be the distance from the end, and let f (or g²) be a power of d. From one octave of d to the next one towards the
end, its integral changes by a constant factor q:

    q < 1       the integral converges. Beyond the last octave lies q/(1 − q) times that octave's integral. The part of
                it within d is proportional to d^p, with p = −log₂ q
    q ≥ 1       the integral diverges

f with a finite, non-zero value at the end has p = 1; a zero of f there has another whole number p. Both are regular:
a polynomial continues f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.errors import DefinitionError

__all__ = ["End", "noise_from_start", "noise_towards_end"]

_LARGEST = 5.0  # the largest tail that is extrapolated
_TERMS = 48  # terms of the series below: enough for |2 log α| up to 10 within a tail


@dataclass(frozen=True)
class End:
    """One integral at one end: ``ratio`` is the factor q between octaves; ``power`` is p, or None if it diverges."""

    ratio: float
    power: float | None

    @classmethod
    def of(cls, last: float, previous: float, negligible: float, name: str, what: str) -> End:
        """From the integrals over the last octave before the end and the one before it.

        Args:
            last: integral over the last octave.
            previous: integral over the octave before it.
            negligible: an integral up to this size counts as 0.
            name: of the SDE's class, for the error.
            what: what is extrapolated, for the error.

        Raises:
            DefinitionError: if the integrals fall so slowly that convergence, or the limit, cannot be decided.
        """
        if abs(last) <= negligible or last * previous <= 0:
            return cls(0.5, 1.0)
        ratio = last / previous
        if 0.95 < ratio < 0.999 or (ratio <= 0.95 and abs(last) * ratio / (1 - ratio) > _LARGEST):
            raise DefinitionError(
                f"class {name}: {what} cannot be told from f and g, which grow too fast there. "
                "Give alpha(t) and sigma(t) instead."
            )
        if ratio >= 0.999:
            return cls(ratio, None)
        return cls(ratio, -math.log2(ratio))

    @property
    def is_regular(self) -> bool:
        """Whether a polynomial continues the integrand to the end."""
        return self.power is not None and abs(self.power - round(self.power)) < 1e-5 and self.power < 9

    def tail(self, last: Tensor) -> Tensor:
        """The integral from the last octave to the end; ``last`` is that over the last octave."""
        return last * (self.ratio / (1 - self.ratio))

    def beyond(self, last: Tensor, distance: Tensor) -> Tensor:
        """A diverging integral from the last octave up to a relative ``distance`` from the end."""
        growth = math.log2(self.ratio)
        if growth < 2e-3:
            return -last * torch.log2(distance)
        return last * self.ratio / (self.ratio - 1) * (distance**-growth - 1)


def noise_from_start(a: Tensor, p: float, v: Tensor, q: float, d: Tensor) -> Tensor:
    """∫₀^d g² exp(2 ∫ᵤ^d f) du, for ∫₀^d f = a d^p and ∫₀^d g² = v d^q."""
    return v * torch.exp(2 * a * d**p) * _series(-2 * a, p, q, d)


def noise_towards_end(a: Tensor, p: float, v: Tensor, q: float, d: Tensor) -> Tensor:
    """The same integral from the distance 1 to the distance d of an end, for ∫f = a d^p and ∫g² = v d^q within d."""
    return v * torch.exp(-2 * a * d**p) * (_series(2 * a, p, q, torch.ones_like(d)) - _series(2 * a, p, q, d))


def _series(b: Tensor, p: float, q: float, d: Tensor) -> Tensor:
    """∫₀^d q u^(q−1) exp(b u^p) du = Σₙ bⁿ/n! · q/(q + n p) d^(q + n p)."""
    n = torch.arange(_TERMS, dtype=torch.float64, device=d.device)
    factors = torch.cumprod(torch.cat([torch.ones_like(b).reshape(1), b / n[1:]]), 0)
    return (factors * q / (q + n * p) * d.unsqueeze(-1) ** (q + n * p)).sum(-1)
