"""What adaptive integrators share: tolerances, the flow in λ with one λ per sample, and their statistics.

In λ = log(α/σ) the reverse equation reads

    dx = (drift / λ′) dλ + η √2 σ dw,        λ′ = −g²/(2σ²)

The solution is smooth in λ for every SDE, even where α and σ have kinks in t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import check_count, check_positive
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import MaxEvaluationsError, NonFiniteError
from sde_toolkit.models.calls import counted
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.sde import SDE

__all__ = [
    "PerSampleField",
    "Stage",
    "Statistics",
    "absolute_tolerance",
    "check_tolerances",
    "lambda_range",
    "root_mean_square",
]

_LANES = 16  # float64 lanes of the widest unrolled vector loop


@dataclass(frozen=True, eq=False)
class Statistics:
    """What an adaptive integrator did, (n,) int64 on the CPU each: per sample, the steps it ``accepted`` and
    ``rejected`` and the network ``evaluations`` it took part in.

    Where the batch shares its steps, all samples have the same numbers. ``rejected`` is NaN (float64) if the
    method does not report it.
    """

    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor

    @classmethod
    def none(cls, n: int) -> Statistics:
        """Nothing done yet."""
        return cls(*(torch.zeros(n, dtype=torch.int64) for _ in range(3)))

    @classmethod
    def shared(cls, n: int, accepted: int, rejected: int | None, evaluations: int) -> Statistics:
        """Those of ``n`` samples that took every step together; ``rejected`` None if it is not known."""
        unknown = torch.full((n,), torch.nan, dtype=torch.float64)
        of_all, of_none, of_each = (torch.full((n,), count or 0) for count in (accepted, rejected, evaluations))
        return cls(of_all, unknown if rejected is None else of_none, of_each)

    @classmethod
    def of_all(cls, parts: Sequence[Statistics]) -> Statistics:
        """Those of several batches, one after another."""
        names = ("accepted", "rejected", "evaluations")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def in_turn(cls, parts: Sequence[Statistics]) -> Statistics:
        """Those of the same samples, solved in several pieces one after another."""
        names = ("accepted", "rejected", "evaluations")
        return cls(*(torch.stack([getattr(part, name) for part in parts]).sum(0) for name in names))


def check_tolerances(rtol: Any, atol: Any, max_nfe: Any) -> None:
    """Refuse tolerances that are not positive and limits that allow no evaluation. ``atol`` may be None.

    Raises:
        ArgumentError: naming the one at fault.
    """
    check_positive("rtol", rtol, "A tolerance of 1e-5 is usual.")
    if atol is not None:
        check_positive("atol", atol, "Leave it out: then it follows the size of the data.")
    check_count("max_nfe", max_nfe, "10,000 is the default.")


def absolute_tolerance(integrator: Any, equation: ReverseEquation) -> float:
    """The ``atol`` of an adaptive integrator, in the units of x: rtol · σ_d where none was given.

    So data and noise of twice the size are solved in the same steps.
    """
    given: float | None = integrator.atol
    return float(integrator.rtol * equation.model.sigma_data) if given is None else given


def lambda_range(sde: SDE, ends: tuple[float, float]) -> tuple[float, float]:
    """The range of λ in which the field is defined. Rounding may carry a stage, or a float32 end, past it."""
    return max(min(ends), sde.half_log_snr(1.0).item()), min(max(ends), sde.half_log_snr(0.0).item())


def root_mean_square(x: Tensor) -> Tensor:
    """Root mean square of every sample, (B, *event) to (B,).

    Summed by folding halves, with elementwise additions only: the rounding depends on the sample alone, not on the
    batch, the device or its threads.
    """
    squares = x.reshape(len(x), -1).square()
    size = squares.shape[1]
    while squares.shape[1] > 1:
        half, odd = divmod(squares.shape[1], 2)
        folded = squares[:, :half] + squares[:, half : 2 * half]
        squares = torch.cat([folded, squares[:, -1:]], 1) if odd else folded
    return (squares[:, 0] / size).sqrt()


class Stage(NamedTuple):
    """Everything but x that the field needs at one λ per sample; all of shape (B,)."""

    t: Tensor
    inputs: Inputs
    of_x: Tensor
    of_y: Tensor
    diffusion: Tensor


class PerSampleField:
    """dx/dλ of the samples that have not reached the end, with one λ per sample.

    Evaluations are counted per sample in ``used`` (n,) and limited. Samples that have reached the end leave the
    batch that the network sees.
    """

    def __init__(self, equation: ReverseEquation, ends: tuple[float, float], max_nfe: int, used: Tensor) -> None:
        self._whole = equation
        self._equation = equation
        self._ends = lambda_range(equation.sde, ends)
        self._max_nfe = max_nfe
        self.used = used
        self.active = torch.arange(len(used))

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the active samples only."""
        self.active = self.active[rows]
        condition = map_rows(self._whole.condition, lambda rows: rows[self.active.to(rows.device)])
        self._equation = replace(self._whole, condition=condition)

    def stages(self, lambdas: Tensor, x: Tensor) -> list[Stage]:
        """The stages at ``lambdas`` (stages, B), float64: computed together in float64, returned in x's dtype."""
        flat, places = lambdas.clamp(*self._ends).unique(return_inverse=True)  # schedules may be slow
        # Vector loops and the scalar loop for the remainder may round differently: pad, so that there is no remainder.
        flat = torch.cat([flat, flat[-1:].expand(-len(flat) % _LANES)])
        sde, equation = self._equation.sde, self._equation
        t = sde.inverse_half_log_snr(flat)
        sigma = sde.sigma(t)
        rate = -(sde.g(t) ** 2) / (2 * sigma**2)
        p, q = equation.drift_coefficients(t)
        noise = equation.eta * 2**0.5 * sigma
        columns = [c.expand_as(t) for c in (*equation.inputs(t), p / rate, q / rate, noise)]

        cells = [column[places].to(x.device, x.dtype).unbind() for column in columns]
        stages = zip(t[places].unbind(), *cells, strict=True)
        return [Stage(times, tuple(row[:-3]), *row[-3:]) for times, *row in stages]

    def __call__(self, x: Tensor, stage: Stage) -> Tensor:
        """dx/dλ of every active sample, one evaluation of the model.

        Raises:
            MaxEvaluationsError: if one of them has none left.
        """
        spent = self.used[self.active] >= self._max_nfe
        if bool(spent.any()):
            raise MaxEvaluationsError(self._max_nfe, stage.t[int(spent.int().argmax())].item())
        y, (evaluations, _) = counted(self._equation.output, x, stage.inputs)
        self.used[self.active] += evaluations
        return torch.addcmul(expand_to(stage.of_x, x) * x, expand_to(stage.of_y, x), y)

    def blame(self, velocities: Sequence[Tensor], stages: Sequence[Stage]) -> None:
        """Name the samples whose velocity is not finite, at the first stage that has any.

        Raises:
            NonFiniteError: if there are any. If there are none, the step was only too long.
        """
        for velocity, stage in zip(velocities, stages, strict=True):
            bad = (~velocity.isfinite()).reshape(len(velocity), -1).any(1).cpu().nonzero().flatten()
            if len(bad):
                first = int(self.active[bad[0]])
                raise NonFiniteError(
                    f"the velocity is not finite for {len(bad)} of {len(self.used)} samples (first: {first})",
                    step=int(self.used[first]),
                    t=stage.t[bad[0]].item(),
                    remedy="Check the network's weights and output; the step size is not to blame.",
                )
