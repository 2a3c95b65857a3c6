"""The path of an SDE that is given by f and g: log α = ∫₀ᵗ f and σ² = α² (σ(0)² + ∫₀ᵗ g²/α²), with error control.

Everything between the ends comes from :mod:`sde_toolkit.sde.panels`, what is next to t=0 and t=1 from
:mod:`sde_toolkit.sde.ends`. Where ∫f is −∞ at t=1, α(1) = 0, and σ² tends to g²/(−2f), since σ²′ = 2fσ² + g².

The coefficients are asked again at every call, at places that tell a change: learned ones are never out of date, and
gradients reach their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import is_differentiated
from sde_toolkit.errors import DefinitionError
from sde_toolkit.sde.derive import pick
from sde_toolkit.sde.ends import End, noise_from_start, noise_towards_end
from sde_toolkit.sde.kept import PerObject
from sde_toolkit.sde.panels import (
    FIRST,
    LAST,
    Panels,
    adapted_panels,
    first_panel,
    in_order_of_time,
    last_panel,
    octaves,
    panel_integrals,
)

__all__ = ["integrated_path"]

_PROBES = 2048


@dataclass(frozen=True)
class _Shape:
    """What stays the same while parameters learn: panels, and how (∫f, ∫g²) go on beyond them at irregular ends."""

    panels: Panels
    probes: Tensor
    early: tuple[End, End] | None
    late: tuple[End, End] | None


@dataclass(frozen=True)
class _Table:
    """log α and the variance of the noise where each panel begins, and the octaves next to the ends."""

    log_alpha: Tensor
    variance: Tensor
    early: tuple[Tensor, Tensor]
    """∫f and ∫g² from t=0 to the first octave."""

    late: tuple[Tensor, Tensor]
    """∫f and ∫g² over the last octave."""

    last: Tensor
    """σ²(1) where α(1) = 0."""


_KEPT = PerObject()


def integrated_path(sde: Any, t: Tensor, *, with_variance: bool = True) -> tuple[Tensor, Tensor]:
    """log α and, if asked for, the variance of the noise that g has added, without σ(0); shapes of ``t``.

    Raises:
        DefinitionError: where f and g cannot be integrated.
    """

    shape, table = _current(sde, t.device, with_variance)
    return _path_at(shape, table, sde, t, with_variance)


def _coefficients(sde: Any, t: Tensor, with_g: bool = True) -> tuple[Tensor, Tensor]:
    """f and g², the latter 0 where nobody asks for it."""
    f = sde.f(t)
    return f, sde.g(t) ** 2 if with_g else torch.zeros_like(f)


def _current(sde: Any, device: torch.device, with_variance: bool) -> tuple[_Shape, _Table]:
    kept = _KEPT.get(sde, device)
    if kept is None:
        kept = _build(sde, device)
    shape, seen, table = kept
    now = torch.stack(_coefficients(sde, shape.probes, with_variance))
    known = len(now) if with_variance else 1
    if not torch.equal(now[:known].detach(), seen[:known]):
        shape, seen, table = _build(sde, device)
    return shape, _tabulated(shape, sde) if is_differentiated(now) else table


@torch.no_grad()
def _build(sde: Any, device: torch.device) -> tuple[_Shape, Tensor, _Table]:
    name = type(sde).__name__
    panels = adapted_panels(lambda t: _coefficients(sde, t), name, device)
    early, late = (None if all(end.is_regular for end in ends) else ends for ends in _both_ends(sde, name, device))
    if early is None:
        panels = in_order_of_time([panels, first_panel(device)])
    if late is None:
        panels = in_order_of_time([panels, last_panel(device)])
    t = panels.nodes()[0].flatten()
    probes = t[:: max(1, len(t) // _PROBES)].clone()
    shape = _Shape(panels, probes, early, late)
    table = _tabulated(shape, sde)
    if late is not None and late[0].power is None:
        _check_limit(name, table)
    kept = shape, torch.stack(_coefficients(sde, probes)), table
    _KEPT.put(sde, kept, device)
    return kept


def _both_ends(sde: Any, name: str, device: torch.device) -> tuple[tuple[End, End], tuple[End, End]]:
    """How ∫f and ∫g² behave towards t=0 and t=1."""
    whole = octaves(device)
    outer_a, outer_v = (v.tolist() for v in _integrals(sde, whole[torch.tensor([0, 1, -2, -1])], kernel=False))
    early = (
        End.of(outer_a[0], outer_a[1], 1e-300, name, "∫f from t=0"),
        End.of(outer_v[0], outer_v[1], 1e-300, name, "∫g² from t=0"),
    )
    late = (
        End.of(outer_a[3], outer_a[2], 1e-14, name, "log α(1)"),
        End.of(outer_v[3], outer_v[2], 1e-14 * _integrals(sde, whole, kernel=False)[1].sum().item(), name, "σ(1)"),
    )
    for end, what in zip(early, ("f", "g²"), strict=True):
        if end.power is None:
            raise DefinitionError(
                f"class {name}: the integral of {what} from t=0 is infinite, so that no time is left near the data. "
                f"Let {what} grow slower than 1/t there."
            )
    if late[0].power is None and outer_a[3] > 0:
        raise DefinitionError(f"class {name}: ∫f is +∞ at t=1, and α(1) with it. α falls where f is negative.")
    return early, late


def _check_limit(name: str, table: _Table) -> None:
    limit, before = table.last.item(), table.variance[-1].item()
    if not (limit > 0 and abs(limit - before) <= 1e-2 * limit):
        raise DefinitionError(
            f"class {name}: ∫f is −∞ at t=1, so that α(1) = 0, and σ² tends to no positive limit there: it is "
            f"{before:.6g} just before, and g²/(−2f) tends to {limit:.6g}. Give alpha(t) and sigma(t) instead."
        )


def _tabulated(shape: _Shape, sde: Any) -> _Table:
    A, V = _integrals(sde, shape.panels)
    outer_a, outer_v = _integrals(sde, octaves(A.device)[torch.tensor([0, -1])], kernel=False)
    begin, early = A.new_zeros(2, 1), (outer_a[0], outer_v[0])
    if shape.early is not None:
        of_f, of_g = shape.early
        early = of_f.tail(outer_a[0]), of_g.tail(outer_v[0])
        noise = noise_from_start(early[0], _power(of_f), early[1], _power(of_g), A.new_ones(()))
        begin = torch.stack([early[0], noise]).unsqueeze(1)
    log_alpha = torch.cat([begin[0], A]).cumsum(0)
    added = torch.cat([begin[1], V]).clamp(min=1e-300)
    variance = torch.exp(torch.logcumsumexp(added.log() - 2 * log_alpha, 0) + 2 * log_alpha)
    variance = torch.where(variance > 1e-290, variance, 0.0)
    return _Table(log_alpha, variance, early, (outer_a[1], outer_v[1]), _limit(sde, A))


def _power(end: End) -> float:
    return 1.0 if end.power is None else end.power


def _integrals(
    sde: Any, panels: Panels, length: Tensor | None = None, *, with_g: bool = True, kernel: bool = True
) -> tuple[Tensor, Tensor]:
    """(A, V) of the panels, or of their first parts; ``kernel=False``: ∫g² for V. A pole under a node is left out."""
    t, stretch = panels.nodes(length)
    f, g_squared = (torch.where(v.isfinite(), v, 0.0) * stretch for v in _coefficients(sde, t, with_g))
    length = panels.length if length is None else length
    if not kernel:
        return panel_integrals(f, torch.zeros_like(f), length)[0], panel_integrals(
            g_squared, torch.zeros_like(f), length
        )[0]
    return panel_integrals(f, g_squared, length)


def _limit(sde: Any, like: Tensor) -> Tensor:
    """The limit of g²/(−2f) at t=1, extrapolated from three distances as a constant and a power."""
    distances = 2.0 ** -torch.arange(19, 22, dtype=torch.float64, device=like.device)
    f, g_squared = _coefficients(sde, 1 - distances)
    a, b, c = (g_squared / (-2 * f)).unbind()
    ratio = (c - b) / (b - a)
    ratio = torch.where((ratio > 0) & (ratio < 0.95) & ((c - b).abs() > 1e-9 * c.abs()), ratio, 0.5)
    return c + (c - b) * ratio / (1 - ratio)


def _path_at(shape: _Shape, table: _Table, sde: Any, t: Tensor, with_variance: bool) -> tuple[Tensor, Tensor]:
    panels = shape.panels
    times = panels.times
    is_early, is_late = t < times[0], t > 1 - (panels.begin[-1] - panels.length[-1])
    k = (torch.searchsorted(times, t.detach().contiguous(), right=True) - 1).clamp(0, len(panels) - 1)
    here = panels.at(k)
    inside = torch.where(is_early | is_late, pick(times, k), t)
    length = torch.where(here.from_end, here.begin - (1 - inside), inside - here.begin)
    A, V = _integrals(sde, here, length, with_g=with_variance)
    path = torch.stack([pick(table.log_alpha, k) + A, pick(table.variance, k) * torch.exp(2 * A) + V])
    if shape.early is not None:
        path = torch.where(is_early, _path_before_octaves(shape.early, table, (t / FIRST).clamp(max=1.0)), path)
    if shape.late is not None:
        path = torch.where(is_late, _path_after_octaves(shape.late, table, ((1 - t) / LAST).clamp(max=1.0)), path)
    log_alpha, variance = path.unbind()
    return log_alpha, variance


def _path_before_octaves(ends: tuple[End, End], table: _Table, distance: Tensor) -> Tensor:
    """log α and the variance between t=0 and the first octave, at ``distance`` from 0 in units of its end."""
    (a, v), (p, q) = table.early, (_power(end) for end in ends)
    return torch.stack([a * distance**p, noise_from_start(a, p, v, q, distance)])


def _path_after_octaves(ends: tuple[End, End], table: _Table, distance: Tensor) -> Tensor:
    """log α and the variance between the last octave and t=1, at ``distance`` from 1 in units of the octave's end."""
    log_alpha, variance, (a, v) = table.log_alpha[-1], table.variance[-1], table.late
    of_f, of_g = ends
    if of_f.power is None:
        return torch.stack([log_alpha + of_f.beyond(a, distance), table.last + (variance - table.last) * distance])
    a, p = of_f.tail(a), of_f.power
    gained = a * (1 - distance**p)
    if of_g.power is None:
        added = of_g.beyond(v, distance)
    else:
        added = noise_towards_end(a, p, of_g.tail(v), of_g.power, distance)
    return torch.stack([log_alpha + gained, variance * torch.exp(2 * gained) + added])
