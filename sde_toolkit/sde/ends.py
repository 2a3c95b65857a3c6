"""How ∫f and ∫g² go on beyond the outermost octaves of time, where f or g may grow without bound.

Over octaves of the distance d from an end the integral of a power of d falls by a constant factor q:

    q < 1       they add up: q/(1 − q) times the last octave lies beyond, and within d a part d^p, p = −log₂ q
    q ≥ 1       they do not

A regular end has p = 1, and zeros of f and g² have other whole p: nothing is special there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.errors import DefinitionError

__all__ = ["End", "noise_from_start", "noise_towards_end"]

_LARGEST = 5.0  # of a tail
_TERMS = 48  # of the series below: enough for |2 log α| up to 10 within a tail


@dataclass(frozen=True)
class End:
    """One integral at one end: the factor between octaves, and ``power`` p, or None where it diverges."""

    ratio: float
    power: float | None

    @classmethod
    def of(cls, last: float, previous: float, negligible: float, name: str, what: str) -> End:
        """From the two octaves next to the end.

        Raises:
            DefinitionError: where they fall too slowly to tell whether, or to what, the rest adds up.
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
        """Whether a polynomial continues the integrand."""
        return self.power is not None and abs(self.power - round(self.power)) < 1e-5 and self.power < 9

    def tail(self, last: Tensor) -> Tensor:
        """What lies beyond the last octave, whose integral is ``last``."""
        return last * (self.ratio / (1 - self.ratio))

    def beyond(self, last: Tensor, distance: Tensor) -> Tensor:
        """A diverging integral from the last octave to ``distance``."""
        growth = math.log2(self.ratio)
        if growth < 2e-3:
            return -last * torch.log2(distance)
        return last * self.ratio / (self.ratio - 1) * (distance**-growth - 1)


def noise_from_start(a: Tensor, p: float, v: Tensor, q: float, d: Tensor) -> Tensor:
    """∫₀^d g² exp(2 ∫ᵤ^d f) du where ∫₀^d f = a d^p and ∫₀^d g² = v d^q."""
    return v * torch.exp(2 * a * d**p) * _series(-2 * a, p, q, d)


def noise_towards_end(a: Tensor, p: float, v: Tensor, q: float, d: Tensor) -> Tensor:
    """The same from a distance 1 to the distance d of an end, within which ∫f is a d^p and ∫g² is v d^q."""
    return v * torch.exp(-2 * a * d**p) * (_series(2 * a, p, q, torch.ones_like(d)) - _series(2 * a, p, q, d))


def _series(b: Tensor, p: float, q: float, d: Tensor) -> Tensor:
    """∫₀^d q u^(q−1) exp(b u^p) du = Σₙ bⁿ/n! · q/(q + n p) d^(q + n p)."""
    n = torch.arange(_TERMS, dtype=torch.float64, device=d.device)
    factors = torch.cumprod(torch.cat([torch.ones_like(b).reshape(1), b / n[1:]]), 0)
    return (factors * q / (q + n * p) * d.unsqueeze(-1) ** (q + n * p)).sum(-1)
