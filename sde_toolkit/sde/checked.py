"""The check of a user's SDE on a grid of times, once, before anything is computed with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, DefinitionError, SDEToolkitError
from sde_toolkit.sde.base import SDE
from sde_toolkit.sde.kept import PerObject

__all__ = ["check_sde"]

_CHECKED = PerObject()
_UNIT = 0.01  # how far α(0) may be from 1
_AGREE = 0.02  # relative difference allowed between finite differences of α, σ² and what f and g say
_REVERSED = (
    "Here t=0 is data and t=1 noise: call your own functions at 1 - t, as in def alpha(self, t): return mine(1 - t)."
)


def check_sde(sde: Any) -> None:
    """Check that ``sde`` is a forward process from data at t=0 to noise at t=1. Each object is checked once.

    The conditions, on a grid of times:

        α is finite, positive before t=1, and within 1 % of 1 at t=0 (samples are α(0) times the data)
        σ is positive after t=0 and finite before t=1
        λ = log(α/σ) is strictly decreasing
        f and g satisfy α′ = f α and (σ²)′ = 2 f σ² + g²

    Every score model, :func:`~sde_toolkit.reschedule`, every grid and every distribution of training times check
    their SDE with this function.

    Raises:
        ArgumentError: naming the condition that fails, the time, and what to write instead.
        DefinitionError: from the SDE's own methods.
    """
    if not isinstance(sde, SDE):
        raise ArgumentError("sde", sde, "not an SDE", "Pass an instance of one, for example VPSDE().")
    if _CHECKED.get(sde):
        return
    with torch.no_grad():
        inner = torch.linspace(0, 1, 65, dtype=torch.float64)[1:-1]
        ends = torch.tensor([0.0, 1e-4, 1e-3], dtype=torch.float64)
        t = torch.cat([ends, inner, 1 - ends.flip(0)])
        _check_path(sde, t)
        _check_coefficients(sde, inner[2::4])
    _CHECKED.put(sde, True)


def _check_path(sde: SDE, t: Tensor) -> None:
    alpha, sigma, lam = sde.alpha(t), sde.sigma(t), sde.half_log_snr(t)
    if bool(lam[-3] > lam[2]):
        problem = (
            f"its time runs backwards: λ = log(α/σ) rises from {lam[2]:.6g} at t=0.001 to {lam[-3]:.6g} at t=0.999"
        )
        raise ArgumentError("sde", sde, problem, _REVERSED)
    first, last = t == 0, t == 1
    _refuse_any(
        sde, "α", alpha, t, ~alpha.isfinite() | (alpha < 0) | ((alpha == 0) & ~last), "finite, and positive before t=1"
    )
    of_sigma = sigma.isnan() | (sigma < 0) | ((sigma == 0) & ~first) | (sigma.isinf() & ~last)
    _refuse_any(sde, "σ", sigma, t, of_sigma, "finite before t=1, and positive after t=0")
    if abs(alpha[0].item() - 1) > _UNIT:
        problem = f"α(0) is {alpha[0].item():.6g}, so that samples at t=0 would be the data times this factor"
        raise ArgumentError("sde", sde, problem, "Divide alpha and sigma by it, so that α(0) = 1.")
    expected = torch.log(alpha) - torch.log(sigma)
    far = (lam - expected).abs() > _AGREE * (1 + expected.abs())
    _refuse_any(sde, "half_log_snr", lam, t, far & ~first & ~last, "log(α/σ)")
    if bool((lam.diff() < 0).all()):
        return
    i = int((~(lam.diff() < 0)).int().argmax())
    (before, after), (start, end) = lam[i : i + 2].tolist(), t[i : i + 2].tolist()
    problem = f"λ = log(α/σ) goes from {before:.6g} to {after:.6g} between t={start:.6g} and t={end:.6g}"
    raise ArgumentError("sde", sde, problem, "It must strictly decrease: noise grows against the signal at every time.")


def _check_coefficients(sde: SDE, t: Tensor) -> None:
    """Check α′ = f α and (σ²)′ = 2 f σ² + g² by finite differences, at most of the times: coefficients may jump."""
    try:
        f, g_squared = sde.f(t), sde.g(t) ** 2
    except SDEToolkitError:
        raise
    except Exception as error:
        raise DefinitionError(
            f"class {type(sde).__name__}: f and g cannot be derived from alpha(t) and sigma(t), because torch cannot "
            f"differentiate them ({type(error).__name__}). Write them in torch operations, or define f(t) and g(t)."
        ) from error
    h = 2e-3 * t * (1 - t)

    def slope(values: Tensor) -> Tensor:
        return (values[1] - values[0]) / (2 * h)

    around = torch.stack([t - h, t + h])
    alpha, variance = sde.alpha(t), sde.sigma(t) ** 2
    found = slope(sde.alpha(around)), slope(sde.sigma(around) ** 2)
    parts = ("α′", "f α", (f * alpha,)), ("(σ²)′", "2 f σ² + g²", (2 * f * variance, g_squared))
    for (what, formula, terms), by_differences in zip(parts, found, strict=True):
        size = by_differences.abs() + torch.stack(terms).abs().sum(0) + 1e-6
        total = torch.stack(terms).sum(0)
        wrong = ~((total - by_differences).abs() <= _AGREE * size)
        if 2 * int(wrong.sum()) > len(t):
            i = int(wrong.int().argmax())
            problem = (
                f"f and g do not belong to α and σ: at t={t[i].item():.6g}, {what} is "
                f"{by_differences[i].item():.6g} and {formula} is {total[i].item():.6g}"
            )
            remedy = "Correct one of them, or define one pair only. All methods must be torch operations on t."
            raise ArgumentError("sde", sde, problem, remedy)


def _refuse_any(sde: SDE, what: str, values: Tensor, t: Tensor, wrong: Tensor, wanted: str) -> None:
    if bool(wrong.any()):
        i = int(wrong.int().argmax())
        value = values[i].item()
        remedy = (
            "A square root of what rounding made negative? Use clamp(min=0)." if math.isnan(value) else "Correct it."
        )
        raise ArgumentError("sde", sde, f"{what} is {value:.6g} at t={t[i].item():.6g}; it must be {wanted}", remedy)
