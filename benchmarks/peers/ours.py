"""Our own rows, to be filled in: what they return is measured beside the peers, on the same noise."""

from __future__ import annotations

from collections.abc import Callable

from problems import Problem
from torch import Tensor

__all__ = ["rows", "stochastic_rows"]


def rows(problem: Problem, nfe: int) -> dict[str, Callable[[], Tensor]]:
    """Deterministic rows at a budget of ``nfe`` evaluations.

    Args:
        problem: ``problem.model`` and ``problem.sde`` to sample with, ``problem.x_start`` the float64 state at t=1 to
            sample from, (n, *event); for VP and SubVP x at t=0 is compared with ``problem.reference``.
        nfe: the budget. ``problem.model`` does not count: a row adds its evaluations to ``problem.calls`` (from
            ``Sample.nfe``, say), and one that goes over the budget is then recorded as failed.

    Returns:
        For each row its name and a callable without arguments that returns x at t≈0, (n, *event), any float dtype.
    """
    return {}


def stochastic_rows(problem: Problem, nfe: int) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Stochastic rows at a budget of ``nfe`` evaluations.

    Returns:
        For each row its name and a callable of the state at t=1, float32 (n, *event), and of a seed for the noise of
        its steps, that returns x at t≈0.
    """
    return {}
