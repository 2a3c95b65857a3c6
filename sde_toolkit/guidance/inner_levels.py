"""Levels between the two ends of a step, for step operators that take several steps inside one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.models.wrapper import Inside
from sde_toolkit.sde import SDE

__all__ = ["inner_level", "inner_times", "inside_at_level"]


def inner_times(sde: SDE, t: Tensor, s: Tensor, parts: int) -> list[Tensor]:
    """t, then the times between, and s: ``parts`` steps equal in λ; in t where λ is infinite at an end."""
    lambda_t, lambda_s = sde.half_log_snr(t), sde.half_log_snr(s)
    finite = lambda_t.isfinite() & lambda_s.isfinite()
    begin, length = torch.where(finite, lambda_t, 0.0), torch.where(finite, lambda_s - lambda_t, 0.0)
    times = [t]
    for k in range(1, parts):
        in_lambda = sde.inverse_half_log_snr(begin + k / parts * length)
        times.append(torch.where(finite, in_lambda, t + k / parts * (s - t)))
    return [*times, s]


def inner_level(equation: ReverseEquation, u: Tensor) -> tuple[Any, ...]:
    """Columns of a level at the times u with an evaluation: its inputs, view, time, α and σ."""
    return equation.inputs(u), equation.view("x0", u), u, equation.sde.alpha(u), equation.sde.sigma(u)


def inside_at_level(inside: Inside, x: Tensor, level: tuple[Any, ...]) -> Inside:
    """The model of ``inside`` at a row of :func:`inner_level`."""
    inputs, (m, n), time, alpha, sigma = level
    return Inside(inside.model, x.shape[0], inputs, m, n, time, alpha, sigma)
