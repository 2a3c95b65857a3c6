"""Panels of [0, 1] on which f and g² are polynomials to rounding: short where they jump, bend or grow without bound.

Two quantities follow from the coefficients on a panel from a to b,

    A = ∫ₐᵇ f du        V = ∫ₐᵇ g² exp(2 ∫ᵤᵇ f) du        so that  log α(b) = log α(a) + A,  σ²(b) = σ²(a) e^(2I) + V

by Gauss's rule. Panels shrink by octaves towards both ends of time, and are halved where a rule on a panel and those on
its halves differ. Next to t=1 places are kept as distances from 1, since t itself has lost their digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import DefinitionError
from sde_toolkit.sde.derive import pick

__all__ = [
    "FIRST",
    "LAST",
    "TOLERANCE",
    "Panels",
    "adapted_panels",
    "first_panel",
    "in_order_of_time",
    "last_panel",
    "octaves",
    "panel_integrals",
]

Coefficients = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t to (f, g²)."""

TOLERANCE = 1e-7
"""What is left of the error in log α and, relative, in σ² where f or g have a singularity inside (0, 1)."""

_EARLY, _LATE = 52, 24
FIRST, LAST = 2.0**-_EARLY, 2.0**-_LATE
"""How near to t=0 and t=1 the octaves go. Nearer to 1, a function of t has too few digits left of 1 − t."""

_POINTS = 16
_LOCAL = 1e-11  # of one panel; smooth coefficients meet it at once, to rounding
_SHORTEST = 2.0**-49  # of t: a panel is not halved below it
_POLE = 2.0**-30  # on a shorter panel several nodes may meet one pole
_MOST = 200_000


@lru_cache(maxsize=1)
def _rule() -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights on [0, 1], and the matrix of ∫₀^(x_j) of the polynomial through values at the nodes."""
    legendre = np.polynomial.legendre
    nodes, weights = legendre.leggauss(_POINTS)
    basis = np.linalg.inv(legendre.legvander(nodes, _POINTS - 1))  # columns: Lagrange polynomials
    inner = legendre.legval(nodes, legendre.legint(basis, lbnd=-1)).T / 2
    return tuple(torch.from_numpy(np.ascontiguousarray(v)) for v in ((nodes + 1) / 2, weights / 2, inner))  # type: ignore[return-value]


@dataclass(frozen=True)
class Panels:
    """Panels in the order of time, all (P,): ``length``, and where they begin, as t or as 1 − t if ``from_end``."""

    begin: Tensor
    length: Tensor
    from_end: Tensor

    def __len__(self) -> int:
        return len(self.begin)

    def __getitem__(self, chosen: Tensor) -> Panels:
        return Panels(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def at(self, i: Tensor) -> Panels:
        """Those at the positions ``i``, of any shape."""
        return Panels(*(pick(getattr(self, field.name), i) for field in fields(self)))

    @property
    def times(self) -> Tensor:
        """Where they begin."""
        return torch.where(self.from_end, 1 - self.begin, self.begin)

    @property
    def rounding(self) -> Tensor:
        """The relative error of coefficients that grow like 1/(1 − t), from rounding t."""
        least = torch.where(self.from_end, self.begin - self.length, 1.0)
        return 2.0**-50 / least

    def nodes(self, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Times (P, n) of the rule on a first part of ``length``, and what a value there is multiplied by.

        A time next to 1 is rounded: the factor mends what that does to a coefficient that grows like 1/(1 − t).
        """
        along = (self.length if length is None else length).unsqueeze(-1) * _rule()[0].to(self.begin.device)
        begin, from_end = self.begin.unsqueeze(-1), self.from_end.unsqueeze(-1)
        t = torch.where(from_end, 1 - (begin - along), begin + along)
        stretch = torch.where(from_end, (1 - t) / (begin - along), 1.0)
        return t, stretch.detach()

    def halves(self) -> tuple[Panels, Panels]:
        """Each one's first and second half."""
        half = self.length / 2
        middle = torch.where(self.from_end, self.begin - half, self.begin + half)
        return Panels(self.begin, half, self.from_end), Panels(middle, half, self.from_end)


def in_order_of_time(parts: list[Panels]) -> Panels:
    """All of them, in the order of time."""
    whole = Panels(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Panels)))
    return whole[torch.argsort(whole.times, stable=True)]


def octaves(device: torch.device) -> Panels:
    """[2⁻ᵏ⁻¹, 2⁻ᵏ] from t = 2⁻⁵² on, and the same in 1 − t up to t = 1 − 2⁻²⁴."""
    early = torch.arange(-_EARLY, -1, dtype=torch.float64, device=device)
    late = torch.arange(-1, -_LATE, -1, dtype=torch.float64, device=device)
    return Panels(
        torch.cat([2**early, 2**late]),
        torch.cat([2**early, 2 ** (late - 1)]),
        torch.cat([torch.zeros_like(early), torch.ones_like(late)]).bool(),
    )


def first_panel(device: torch.device) -> Panels:
    """What is left next to t=0."""
    ends = torch.tensor([[0.0], [FIRST]], dtype=torch.float64, device=device)
    return Panels(ends[0], ends[1], torch.zeros(1, dtype=torch.bool, device=device))


def last_panel(device: torch.device) -> Panels:
    """What is left next to t=1."""
    ends = torch.full((1,), LAST, dtype=torch.float64, device=device)
    return Panels(ends, ends, torch.ones(1, dtype=torch.bool, device=device))


def panel_integrals(f: Tensor, g_squared: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """(A, V) of panels (P,) from values (P, n) at the nodes."""
    _, weights, inner = (v.to(f.device) for v in _rule())
    whole = length * (f @ weights)
    before = length.unsqueeze(-1) * (f @ inner.T)
    kernel = torch.exp(2 * (whole.unsqueeze(-1) - before))
    return whole, length * ((g_squared * kernel) @ weights)


@dataclass(frozen=True)
class _Compared:
    """Panels with (A, V) by their halves, and the difference to those by one rule."""

    A: Tensor
    V: Tensor
    error_in_a: Tensor
    error_in_v: Tensor


def adapted_panels(coefficients: Coefficients, name: str, device: torch.device) -> Panels:
    """Octaves, halved until the rule is good enough.

    Raises:
        DefinitionError: naming a time where a coefficient is not finite, or cannot be integrated.
    """
    pending = octaves(device)
    judged = _compare_with_halves(coefficients, name, pending)
    level = _level(judged.A, judged.V)
    done, left = [], torch.zeros((), dtype=torch.float64, device=device)
    while True:
        allowed = (_LOCAL + pending.rounding) * (level + judged.V)
        good = (judged.error_in_a <= _LOCAL + pending.rounding * judged.A.abs()) & (judged.error_in_v <= allowed)
        short = pending.length <= _SHORTEST * torch.where(pending.from_end, 1.0, pending.begin)
        stuck = ~good & short
        relative = judged.error_in_v / (level + judged.V).clamp(min=1e-300)
        left = left + torch.where(stuck, judged.error_in_a + relative, 0.0).sum()
        if not bool(left <= TOLERANCE):
            raise _refusal(name, pending.times[stuck][0].item(), f"an error of {left.item():.1g} is left there")
        done.append(pending[good | stuck])
        wrong = ~(good | stuck)
        if not bool(wrong.any()):
            return in_order_of_time(done)
        pending, level = in_order_of_time(list(pending[wrong].halves())), level[wrong].repeat_interleave(2)
        if len(pending) + sum(map(len, done)) > _MOST:
            raise _refusal(name, pending.times[len(pending) // 2].item(), "they are too rough there")
        judged = _compare_with_halves(coefficients, name, pending)


def _level(A: Tensor, V: Tensor) -> Tensor:
    """The smaller variance at the two ends of each octave, roughly."""
    log_alpha = A.cumsum(0)
    after = torch.exp(2 * log_alpha + torch.logcumsumexp(V.clamp(min=1e-300).log() - 2 * log_alpha, 0))
    return torch.minimum(after, torch.cat([after[:1], after[:-1]]))


def _compare_with_halves(coefficients: Coefficients, name: str, panels: Panels) -> _Compared:
    first, second = panels.halves()
    A, V = _checked_integrals(coefficients, name, panels)
    (A_1, V_1), (A_2, V_2) = (_checked_integrals(coefficients, name, half) for half in (first, second))
    finer_A, finer_V = A_1 + A_2, V_1 * torch.exp(2 * A_2) + V_2
    return _Compared(finer_A, finer_V, (finer_A - A).abs(), (finer_V - V).abs())


def _checked_integrals(coefficients: Coefficients, name: str, panels: Panels) -> tuple[Tensor, Tensor]:
    """(A, V); a node that meets a pole of f or g is left out, which is found as an error of the panel."""
    t, stretch = panels.nodes()
    values = coefficients(t)
    poles = ~(values[0].isfinite() & values[1].isfinite())
    missing = (poles.sum(1) > 1) & (panels.length > _POLE)
    if bool(missing.any()):
        where = t[missing][poles[missing]][0].item()
        raise _refusal(name, where, "f or g is not finite there (the square root of a negative number, perhaps)")
    f, g_squared = (torch.where(poles, 0.0, v) * stretch for v in values)
    return panel_integrals(f, g_squared, panels.length)


def _refusal(name: str, t: float, problem: str) -> DefinitionError:
    return DefinitionError(
        f"class {name}: f and g cannot be integrated to {TOLERANCE:g} near t={t:.8g}: {problem}. "
        "Correct f(t) and g(t), or give alpha(t) and sigma(t) instead, whose derivatives are taken."
    )
