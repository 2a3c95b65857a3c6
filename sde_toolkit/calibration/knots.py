"""Grid times (knots) by dynamic programming over the local errors of one fine trajectory.

The states X_k and outputs Y_k of a fine trajectory are known at the times T_0 > ... > T_K; no further evaluation is
needed. A step of the second-order exponential multistep method from T_k to T_j, with T_i before it, misses X_j by

    e = A X_k + B Y_k + w (F_i − F_k) − X_j,        F = m X + n Y

and |e|² is a quadratic form in the Gram matrix of all X and Y. The N steps with the smallest sum of propagated errors

    Σ growth_j |e_(i,k,j)|^q,        growth_j = α_j^(−q) (1 + τ_j²)^(−γ q/2),    τ = σ/(α σ_d)

plus the error of the Tweedie step, are found by dynamic programming over pairs (previous knot, knot). How errors grow
(γ) and add up (q) is unknown, so a few values of each are tried. Related: Li et al. 2023 (AutoDiffusion),
Xue et al. 2024 (DM-NonUniform), Chen et al. 2024 (GITS, the same idea for first-order steps).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.calibration.problem import NoiseSet, Problem
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import HalfLogSNR
from sde_toolkit.integrators.frozen import Frozen
from sde_toolkit.integrators.interpolation import difference_weights
from sde_toolkit.sde import SDE

__all__ = ["StepErrors", "best_knots", "dynamic_grids", "gram_matrix", "local_errors"]

_KNOTS = 64
_ELEMENTS = 2**25  # of the trajectory that is kept in memory
_GROWTH = (0.0, 0.5, 1.0, 1.5)
_POWERS = (1.0, 2.0)


@dataclass(frozen=True, eq=False)
class StepErrors:
    """Mean squares over elements: ``first[k]`` of the step 0 → k, ``step[i, k, j]`` of the step k → j after i → k,
    ``last[k]`` of the Tweedie step from k. Infinite where there is no such step."""

    first: Tensor
    step: Tensor
    last: Tensor


def best_knots(first: Tensor, step: Tensor, last: Tensor, steps: int) -> list[int]:
    """The knots 0 = k_0 < ... < k_steps that minimise first[k_1] + Σ step[k_(i−1), k_i, k_(i+1)] + last[k_steps].

    Raises:
        ValueError: if there is no such chain of finite cost.
    """
    best = torch.full_like(step[0], torch.inf)  # best[i, k]: the cheapest chain that ends with i, k
    best[0] = first
    came: list[Tensor] = []
    for _ in range(steps - 1):
        best, origin = (best.unsqueeze(-1) + step).min(0)
        came.append(origin)
    total = best + last
    if not bool(total.min().isfinite()):
        raise ValueError("no chain of finite cost")
    i, k = divmod(int(total.argmin()), total.shape[1])
    knots = [k, i]
    for origin in reversed(came):
        i, k = int(origin[i, k]), i
        knots.append(i)
    return knots[::-1]


def gram_matrix(states: Tensor, outputs: Tensor, end: Tensor) -> Tensor:
    """Mean products of X_0 ... X_K, Y_0 ... Y_K and the endpoint, float64: (2K + 3, 2K + 3)."""
    vectors = torch.cat([v.reshape(len(v), -1) for v in (states, outputs, end.unsqueeze(0))]).to(torch.float64)
    return vectors @ vectors.T / vectors.shape[1]


def local_errors(equation: ReverseEquation, frozen: Frozen, times: Tensor, gram: Tensor) -> StepErrors:
    """The errors of all steps of the exponential multistep method of order 2 (order 1 in the first step)."""
    sde, K = equation.sde, len(times) - 1
    m, n = frozen.view(equation, times)
    x_0, epsilon = equation.view("x0", times), equation.view("epsilon", times)
    lambdas = sde.half_log_snr(times)
    step = torch.full((K + 1, K + 1, K + 1), torch.inf, dtype=torch.float64)
    first = torch.full((K + 1,), torch.inf, dtype=torch.float64)

    def of_first_order(k: int, j: Tensor) -> tuple[Tensor, Tensor]:
        t = times[k].expand(len(j))
        u, w, _ = frozen.first_order(sde, 0.0, t, times[j])
        return u * x_0.first[k] + w * epsilon.first[k], u * x_0.second[k] + w * epsilon.second[k]

    def squares(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Σ c_a c_b <V_a, V_b> for (vector, coefficient) pairs."""
        index, c = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        value = (c.unsqueeze(0) * c.unsqueeze(1) * gram[index.unsqueeze(0), index.unsqueeze(1)]).sum((0, 1))
        return torch.where(value.isfinite(), value.clamp(min=0.0), torch.inf)

    for k in range(K):
        j = torch.arange(k + 1, K + 1)
        A, B = of_first_order(k, j)
        here, one = torch.full_like(j, k), -torch.ones_like(A)
        if k == 0:
            first[j] = squares([(here, A), (here + K + 1, B), (j, one)])
            continue
        i = torch.arange(k).repeat_interleave(len(j))
        j, A, B, here, one = (v.repeat(k) for v in (j, A, B, here, one))
        nodes = [lambdas[here], lambdas[i]]
        w = difference_weights(sde, 0.0, frozen, HalfLogSNR(), None, nodes[0], times[j], nodes)[0]
        step[i, here, j] = squares(
            [
                (here, A - w * m[k]),
                (here + K + 1, B - w * n[k]),
                (i, w * m[i]),
                (i + K + 1, w * n[i]),
                (j, one),
            ]
        )
    each = torch.arange(K + 1)
    end = torch.full_like(each, 2 * K + 2)
    last = squares([(each, x_0.first), (each + K + 1, x_0.second), (end, -torch.ones_like(m))])
    return StepErrors(first, step, last)


def dynamic_grids(problem: Problem, chosen: NoiseSet, frozen: Frozen, steps: int) -> Iterator[tuple[str, Tensor]]:
    """A name and a grid for each γ and q, without repeats."""
    times = problem.fine_times(max(_KNOTS, steps + 2))
    per_sample = chosen.target[0].numel() * 2 * len(times)
    n = max(1, min(len(chosen), 256, _ELEMENTS // per_sample))
    outputs: list[Tensor] = []
    problem.flow.listen = outputs.append
    try:
        path = problem.path(chosen, n, times)
    finally:
        problem.flow.listen = None
    if path.states is None:
        return
    gram = gram_matrix(path.states, torch.stack(outputs), path.end).cpu()
    errors = local_errors(problem.flow.equation, frozen, times, gram)
    seen = []
    for q in _POWERS:
        for gamma in _GROWTH:
            growth = _growth(problem.model.sde, times, gamma, problem.model.sigma_data)
            first, step, last = (v.pow(q / 2) for v in (errors.first * growth, errors.step * growth, errors.last))
            try:
                knots = best_knots(first, step, last, steps)
            except ValueError:
                continue
            if knots not in seen:
                seen.append(knots)
                yield f"dynamic programming, γ={gamma:g}, q={q:g}", check_grid(times[knots])


def _growth(sde: SDE, times: Tensor, gamma: float, sigma_data: float) -> Tensor:
    tau_squared = torch.exp(-2 * sde.half_log_snr(times)) / sigma_data**2
    growth = sde.alpha(times) ** -2 * (1 + tau_squared) ** -gamma
    return torch.where(growth.isfinite(), growth, 0.0)  # α = 0 is the start only, where no step ends
