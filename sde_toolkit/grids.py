"""Time grids: strictly decreasing float64 tensors, built by pure functions and checked once.

Every builder returns ``steps + 1`` times from ``start`` down to ``end`` (by default the SDE's ``sampling_end``).
Solvers step by position, not by time. ``end=0`` is the data: exponential integrators reach it exactly if σ(0) = 0.
Methods that evaluate the drift there refuse it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count, check_positive, is_number
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.sde import SDE, check_sde

__all__ = ["check_grid", "discrete", "from_sigmas", "karras", "quadratic", "sech", "uniform", "uniform_lambda"]


_SLACK = 1e-6  # in t: the rounding of float32 times


def check_grid(grid: Any) -> Tensor:
    """The grid as a float64 tensor on the CPU.

    Times outside [0, 1] by at most a millionth, as in a float32 list, are moved to 0 or 1.

    Raises:
        GridError: unless it is 1-D with at least two strictly decreasing times inside [0, 1].
    """
    remedy = "Use a builder from sde_toolkit.grids, or torch.linspace(1, end, steps + 1)."
    try:
        times = torch.as_tensor(grid, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise GridError("grid", grid, "not a sequence of times", remedy) from None
    if times.ndim != 1 or len(times) < 2:
        raise GridError("grid", tuple(times.shape), "a grid is a 1-D sequence of at least two times", remedy)
    if not bool(times.isfinite().all()):
        raise GridError("grid", times.tolist(), "it holds NaN or infinity", remedy)
    if not bool(((times >= -_SLACK) & (times <= 1 + _SLACK)).all()):
        raise GridError("grid", times.tolist(), "it leaves [0, 1]; a discrete index i of N is the time i/N", remedy)
    times = times.clamp(0.0, 1.0)
    steps = times.diff()
    if not bool((steps < 0).all()):
        i = int((steps >= 0).int().argmax())
        what = "repeats a time" if steps[i] == 0 else "is not decreasing"
        raise GridError("grid", times[i : i + 2].tolist(), f"it {what} between positions {i} and {i + 1}", remedy)
    return times


def uniform(sde: SDE, steps: int, *, start: float = 1.0, end: float | None = None) -> Tensor:
    """Equal steps in t."""
    return check_grid(_blend(sde, steps, start, end, lambda t: t, lambda u: u))


def quadratic(sde: SDE, steps: int, *, start: float = 1.0, end: float | None = None) -> Tensor:
    """Equal steps in √t: dense near the data (Song et al. 2021a, DDIM, appendix D.2)."""
    return check_grid(_blend(sde, steps, start, end, torch.sqrt, torch.square))


def uniform_lambda(sde: SDE, steps: int, *, start: float = 1.0, end: float | None = None) -> Tensor:
    """Equal steps in λ = log(α/σ) (Lu et al. 2022, DPM-Solver, section 3.4)."""
    return check_grid(_blend(sde, steps, start, end, sde.half_log_snr, _time_of(sde)))


def karras(sde: SDE, steps: int, *, rho: float = 7.0, start: float = 1.0, end: float | None = None) -> Tensor:
    """Equal steps in (σ/α)^(1/ρ) (Karras et al. 2022, EDM, eq. 5).

    Raises:
        ArgumentError: if ``rho`` is not positive.
    """
    check_positive("rho", rho, "Karras et al. use 7.")

    def coordinate(t: Tensor) -> Tensor:
        return torch.exp(-sde.half_log_snr(t) / rho)

    def time(u: Tensor) -> Tensor:
        return _time_of(sde)(-rho * torch.log(u))

    return check_grid(_blend(sde, steps, start, end, coordinate, time))


def sech(
    sde: SDE,
    steps: int,
    *,
    center: float = 0.75,
    width: float = 1.5,
    sigma_data: float = 1.0,
    start: float = 1.0,
    end: float | None = None,
) -> Tensor:
    """Times of density sech((λ − center)/width) in λ: dense where the data's structure appears, sparse at both ends.

    Equal steps in gd((λ − center)/width), with the Gudermannian gd(v) = 2 atan(tanh(v/2)). Finite where α = 0 or
    σ = 0. ``width=2, center=0``: equal steps of s in σ/(α + σ) = sin²(πs/2). ``width=1, center=0``: equal steps in
    atan(σ/α).

    ``center`` is meant for data of size 1. For data of another size pass ``sigma_data=model.sigma_data``: the times are
    then those for data of size 1 under the noise σ/σ_d.

    Raises:
        ArgumentError: if ``width`` or ``sigma_data`` is not positive, or ``center`` is not a number.
    """
    if not (is_number(width) and width > 0 and is_number(center)):
        problem = "the center is a half log-SNR, the width positive"
        raise ArgumentError("center, width", (center, width), problem, "0.75 and 1.5 are the defaults.")
    check_positive("sigma_data", sigma_data, "Pass model.sigma_data.")
    center = center - math.log(sigma_data)

    def coordinate(t: Tensor) -> Tensor:
        return 2 * torch.atan(torch.tanh((sde.half_log_snr(t) - center) / (2 * width)))

    def time(u: Tensor) -> Tensor:
        return _time_of(sde)(center + 2 * width * torch.atanh(torch.tan(u / 2).clamp(-1.0, 1.0)))

    return check_grid(_blend(sde, steps, start, end, coordinate, time))


def discrete(N: int, steps: int | None = None) -> Tensor:
    """DDPM's own grid i/N, i = N, ..., 0, or its "trailing" subset of ``steps`` steps.

    The subset keeps i = round(N k/steps) for k = steps, ..., 0: it starts at N and ends at 0 for any
    number of steps (Lin et al. 2024, "Common diffusion noise schedules ... are flawed", table 2).

    Raises:
        ArgumentError: unless 1 <= steps <= N.
    """
    steps = N if steps is None else steps
    check_count("N", N, "DDPM has 1000.")
    check_count("steps", steps, f"Pass {N} or fewer.", most=MOST)
    if steps > N:
        raise ArgumentError("steps", steps, f"more than N={N}, of which the grid is a subset", f"Pass {N} or fewer.")
    return check_grid(torch.round(torch.arange(steps, -1, -1, dtype=torch.float64) * (N / steps)) / N)


def from_sigmas(sde: SDE, sigmas: Any) -> Tensor:
    """The times at which the noise level σ(t)/α(t) has the given values: a published list of sigmas as a grid.

    ``sigmas``: strictly decreasing, any sequence of numbers. σ/α is the standard deviation of the noise on data of
    unit scale. EDM, k-diffusion and diffusers call it sigma; under variance-preserving schedules it is √((1 − ᾱ)/ᾱ).
    The "sigmas" of flow-matching schedules in diffusers are times t: such a list is a grid already. A last 0 is t=0. If
    σ(0) > 0 there is no such time: leave the 0 out, and sample with ``tweedie=True``.

    Published lists are rounded. A value beyond an end of the schedule is moved to that end if rounding explains it: by
    at most half a unit of its last written digit, and at most a thousandth of the value.

    >>> from sde_toolkit import EDMSDE
    >>> from_sigmas(EDMSDE(sigma_min=0.002, sigma_max=80.0), [80.0, 2.5, 0.002]).numpy().round(4).tolist()
    [1.0, 0.4829, 0.0]

    Raises:
        GridError: unless the list is strictly decreasing and inside the SDE's range, which is named.
    """
    check_sde(sde)
    levels = _as_levels(sigmas)
    low, high = torch.exp(-sde.half_log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))).tolist()
    for i in (0, len(levels) - 1):
        value = levels[i].item()
        slack = max(min(_last_digit(value) / 2, 1e-3 * value), 1e-6 * value)
        if not low - slack <= value <= high + slack:
            digits = next((n for n in range(6, 17) if f"{value:.{n}g}" not in (f"{low:.{n}g}", f"{high:.{n}g}")), 17)
            problem = f"σ/α of {sde} runs from {high:.{digits}g} at t=1 to {low:.{digits}g} at t=0"
            remedy = "Pass values inside this range."
            if value == 0:
                remedy = "Leave the 0 out: sample(..., tweedie=True) makes the last step, to the data."
            raise GridError(f"sigmas[{i}]", value, problem, remedy)
    return check_grid(_time_of(sde)(-torch.log(levels.clamp(low, high))))


def _as_levels(sigmas: Any) -> Tensor:
    remedy = "Pass noise levels from the largest to the smallest; turn a rising list round with reversed(...)."
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise GridError("sigmas", sigmas, "not a sequence of numbers", remedy) from None
    if levels.ndim != 1 or len(levels) < 2:
        raise GridError("sigmas", tuple(levels.shape), "a grid has at least two noise levels, in one row", remedy)
    if bool(levels[1:].isinf().any() | levels.isnan().any() | (levels < 0).any()):
        raise GridError("sigmas", levels.tolist(), "noise levels are finite (but the first) and not negative", remedy)
    falls = levels.diff() < 0
    if not bool(falls.all()):
        i = int((~falls).int().argmax())
        problem = f"they do not strictly decrease between positions {i} and {i + 1}"
        raise GridError("sigmas", levels[i : i + 2].tolist(), problem, remedy)
    return levels


def _last_digit(value: float) -> float:
    """The unit of the last written decimal digit of a number; a float32 value is written with float32 digits."""
    if not math.isfinite(value):
        return 0.0
    single = torch.tensor(value, dtype=torch.float32).numpy()[()]
    written = Decimal(str(single) if float(single) == value else repr(value))
    return 10.0 ** int(written.as_tuple().exponent)


def _time_of(sde: SDE) -> Callable[[Tensor], Tensor]:
    """The inverse of λ, for values that rounding may have carried past λ(0) or λ(1)."""
    low, high = sde.half_log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64))
    return lambda lambda_t: sde.inverse_half_log_snr(torch.minimum(torch.maximum(lambda_t, low), high))


def _blend(sde: SDE, steps: int, start: float, end: float | None, coordinate, time) -> Tensor:  # type: ignore[no-untyped-def]
    """Times at equal steps of ``coordinate``; both ends are met exactly."""
    check_sde(sde)
    check_count("steps", steps, "Pass steps=20, for example.", most=MOST)
    end = sde.sampling_end if end is None else end
    if not (is_number(start) and is_number(end) and 0 <= end < start <= 1):
        raise GridError("start, end", (start, end), "times must satisfy 0 <= end < start <= 1", "Correct them.")
    ends = coordinate(torch.tensor([start, end], dtype=torch.float64))
    if not bool(ends.isfinite().all()):
        problem = "this spacing is infinite there, because α = 0 or σ = 0"
        late, early = (bool(value.isfinite()) for value in ends)
        remedies = [] if late else ["Start a little below t=1: pass start=0.999, for example."]
        remedies += [] if early else ["Stop short of t=0: leave end out, and finish with tweedie=True."]
        raise GridError("start, end", (start, end), problem, " ".join(remedies))
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = time(ends[0] + u * (ends[1] - ends[0]))
    times[0], times[-1] = start, end
    return times
