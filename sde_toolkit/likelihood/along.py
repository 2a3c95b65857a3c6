"""The divergence along a path: traces at the nodes, and what they add up to; for a batch at a time.

A vector-Jacobian product holds the graph of its forward pass, most of the memory that a likelihood takes. Rows are
independent, so that large batches go through in parts, and small ones many nodes together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.broadcasting import map_rows
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Statistics
from sde_toolkit.likelihood.divergence import Divergence
from sde_toolkit.likelihood.jacobian import Field, Mode, check_differentiable, check_repeatable, fastest, reverse
from sde_toolkit.likelihood.joint import JointEquation
from sde_toolkit.likelihood.paths import Path, Upwards
from sde_toolkit.likelihood.prior import Prior
from sde_toolkit.likelihood.quadrature import Ladder
from sde_toolkit.loop import rows_of
from sde_toolkit.score_model import Inputs

__all__ = ["Batch", "Work", "choose_mode"]

_ELEMENTS_AT_ONCE, _ON_AN_ACCELERATOR = 2**14, 2**20  # of states whose divergence is evaluated together


@dataclass(frozen=True, eq=False)
class Batch:
    """What one batch gave; ``replicates`` (P, B), ``latent`` (B, *event), the others (B,)."""

    replicates: Tensor
    prior: Tensor
    latent: Tensor
    quadrature_error: Tensor
    solver_error: Tensor | None
    truncation: Tensor
    roughness: Tensor
    divergences: Tensor
    nfe: int
    statistics: Statistics | None

    @classmethod
    def of_all(cls, parts: list[Batch]) -> Batch:
        """The tensors of all batches, one after another."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("prior", "latent", "quadrature_error", "truncation", "roughness", "divergences")
        }
        errors = [part.solver_error for part in parts if part.solver_error is not None]
        replicates = torch.cat([part.replicates for part in parts], 1)
        return cls(
            replicates=replicates, solver_error=torch.cat(errors) if errors else None, nfe=0, statistics=None, **joined
        )


@dataclass(frozen=True, eq=False)
class Work:
    """Everything that is the same for all batches; ``joint``: the log-density is part of the state."""

    ladder: Ladder
    flows: list[Upwards]
    divergence: Divergence
    mode: Mode
    prior: Prior | None
    seed: int
    first_index: int
    differentiable: bool
    joint: bool = False

    def batch(self, equation: ReverseEquation, x: Tensor, first: int) -> Batch:
        """The likelihood of x (B, *event), the samples from ``first`` on; Richardson's estimate from a second path."""
        probes = self.divergence.directions(tuple(x.shape), self.seed, self.first_index + first).to(x)
        solve = self._together if self.joint else self._one_after_the_other
        fine, *coarse = [solve(equation, flow, x, probes) for flow in self.flows]
        if not coarse:
            return fine
        difference = (fine.prior + fine.replicates).mean(0) - (coarse[0].prior + coarse[0].replicates).mean(0)
        return replace(
            fine,
            solver_error=difference.abs() / (2 ** (self.flows[0].solver.integrator.order or 1) - 1),
            divergences=fine.divergences + coarse[0].divergences,
            nfe=fine.nfe + coarse[0].nfe,
        )

    def _one_after_the_other(self, equation: ReverseEquation, flow: Upwards, x: Tensor, probes: Tensor) -> Batch:
        path = flow.solve(equation, x)
        integral, error, divergences, output, trace = self._climb(equation, path.states, probes)
        return self._answer(equation, flow, x, path, path.latent, integral, error, divergences, output, trace)

    def _together(self, equation: ReverseEquation, flow: Upwards, x: Tensor, probes: Tensor) -> Batch:
        """The path of state and log-density; the node at the data end apart."""

        def at(now: ReverseEquation, rows: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
            bare = replace(equation, condition=now.condition["network"])
            return self._evaluate(bare, rows, inputs, now.condition["probes"].movedim(1, 0))

        condition = {"network": equation.condition, "probes": probes.movedim(0, 1)}  # rows that go with the samples
        event, replicates = tuple(x.shape[1:]), self.divergence.replicates
        both = JointEquation(equation.model, 0.0, condition, event=event, replicates=replicates, traces=at)
        path = flow.solve(both, both.start(x))
        latent, integral = both.parts(path.latent)
        output, trace = self._traces(equation, x.unsqueeze(0), [0], probes)
        unknown = torch.full_like(integral[0], math.nan)
        taken = path.evaluations(len(x)).to(x.device) + 1
        return self._answer(equation, flow, x, path, latent, integral, unknown, taken, output, trace[:, 0])

    def _answer(
        self, equation: ReverseEquation, flow: Upwards, x: Tensor, path: Path, latent: Tensor, integral: Tensor,
        error: Tensor, divergences: Tensor, output: Tensor, trace: Tensor,
    ) -> Batch:  # fmt: skip
        truncation, roughness = self._at_the_data(equation, x, output, trace.mean(0))
        return Batch(
            replicates=integral,
            prior=self._log_prior(equation, latent, flow.times[-1].item()),
            latent=latent,
            quadrature_error=error,
            solver_error=None,
            truncation=truncation,
            roughness=roughness,
            divergences=divergences,
            nfe=path.nfe,
            statistics=path.statistics,
        )

    def _log_prior(self, equation: ReverseEquation, latent: Tensor, start: float) -> Tensor:
        density = self.prior or equation.sde.prior_logp
        value = density(latent.to(torch.float64), start)
        if not (isinstance(value, Tensor) and value.shape == latent.shape[:1]):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                "prior", found, "it must answer one log density per sample, (B,)", "Sum over the event."
            )
        return value

    def _climb(
        self, equation: ReverseEquation, states: Tensor, probes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The integral (P, B), its error and the nodes it took (B,), and output and trace at the data.

        From rung to rung of the rule, with the samples that need it.
        """
        (Q, B), D = states.shape[:2], math.prod(states.shape[2:])
        rows = torch.arange(B, device=states.device)
        traces = torch.zeros(self.divergence.replicates, Q, B, dtype=torch.float64, device=states.device)
        integral, error, taken = traces[:, 0], traces[0, 0], torch.zeros_like(rows)
        output = states[0]
        places: list[int] = []
        for k, nodes in enumerate(self.ladder.rungs):
            known, places = set(places), self.ladder.places(k)
            new = [place for place in places if place not in known]
            whole = len(rows) == B
            found = self._traces(
                equation if whole else _of_rows(equation, rows),
                states[new] if whole else states[new][:, rows],
                new,
                probes if whole else probes[:, rows],
            )
            output = found[0] if k == 0 else output
            at = torch.tensor(new, device=rows.device)
            traces = traces.movedim(0, 2).index_put((at[:, None], rows), found[1].movedim(0, 2)).movedim(2, 0)
            seen = traces[:, places][:, :, rows]
            integral = integral.index_copy(1, rows, nodes.integrate(seen, D))
            estimate = nodes.error(seen.mean(0), D)
            error, taken = error.index_copy(0, rows, estimate), taken.index_fill(0, rows, len(places))
            open_ = self.ladder.call_for_more(estimate, D, states.dtype)
            if len(open_) == 0:
                break
            rows = rows[open_] if _has_rows(equation.condition) else rows
        return integral, error, taken, output, traces[:, 0]

    def _traces(
        self, equation: ReverseEquation, states: Tensor, places: Sequence[int], probes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """y (B, *event) at the first of the nodes, and tr ∂y/∂x (P, q, B) float64 at all; states (q, B, *event).

        Of small batches several nodes go through the network together.
        """
        B = states.shape[1]
        columns = [column[list(places)] for column in self.ladder.finest.inputs]
        together = max(1, _rows_at_once(states[0]) // B) if _has_rows(equation.condition) else 1
        traces, output = [], states[0]
        for first in range(0, len(places), together):
            part = states[first : first + together]
            q = len(part)
            inputs = [column[first : first + q] for column in columns]
            inputs = [column[0] if q == 1 else column.repeat_interleave(B) for column in inputs]
            repeated = _repeated(equation.condition, q)
            of_rows = probes if q == 1 else probes.repeat(1, q, *(1,) * (part.ndim - 2))
            y, trace = self._evaluate(
                replace(equation, condition=repeated),
                part.flatten(0, 1),
                tuple(column.to(part.device, part.dtype) for column in inputs),
                of_rows,
            )
            output = y[:B] if first == 0 else output
            traces.append(trace.reshape(len(trace), q, B))
        return output, torch.cat(traces, 1).to(torch.float64)

    def _evaluate(self, equation: ReverseEquation, x: Tensor, inputs: Inputs, probes: Tensor) -> tuple[Tensor, Tensor]:
        """y (R, *event) and tr ∂y/∂x (P, R) at the rows x; a part's graph goes with it."""
        R = len(x)
        parts = -(-R // _rows_at_once(x)) if _has_rows(equation.condition) else 1
        size = -(-R // parts)
        outputs, traces = [], []
        for first in range(0, R, size):
            last = min(R, first + size)
            times = tuple(column[first:last] if column.ndim else column for column in inputs)
            condition = rows_of(equation.condition, first, last)

            def field(rows: Tensor, times: Inputs = times, condition: Any = condition) -> Tensor:
                return equation.model.output(rows, times, condition)

            output, products = self.mode(field, x[first:last], self.differentiable)
            outputs.append(output)
            traces.append(self.divergence.traces(products, x[first:last], probes[:, first:last]))
        return torch.cat(outputs), torch.cat(traces, 1)

    def _at_the_data(
        self, equation: ReverseEquation, x: Tensor, output: Tensor, trace: Tensor
    ) -> tuple[Tensor, Tensor]:
        """½ (|ε̂|² − σ ∇·ε̂) − D log α − (1/α − 1) x·ε̂/σ, the effect of truncation, and σ ∇·ε̂/D, which is (σ/s)²
        where the density changes on the scale s > σ.
        """
        end = self.ladder.finest.times[0]
        m, n = equation.view("epsilon", end)
        epsilon = (m.to(x) * x + n.to(x) * output).to(torch.float64).reshape(len(x), -1)
        D, log_alpha, sigma = epsilon.shape[1], equation.sde.log_alpha(end), equation.sde.sigma(end)
        smaller = torch.where(log_alpha == 0, 0.0, torch.expm1(-log_alpha) / sigma)  # α is 1 where σ vanishes
        along = (epsilon * x.to(torch.float64).reshape(len(x), -1)).sum(1)
        curvature = sigma * (m * D + n * trace)  # σ ∇·ε̂
        return 0.5 * (epsilon.square().sum(1) - curvature) - D * log_alpha - smaller * along, curvature / D


def _of_rows(equation: ReverseEquation, rows: Tensor) -> ReverseEquation:
    """The equation for these rows of its batch."""
    return replace(equation, condition=map_rows(equation.condition, lambda part: part[rows.to(part.device)]))


def _repeated(condition: Any, times: int) -> Any:
    """The rows of a condition, one copy after another."""
    return map_rows(condition, lambda part: torch.cat([part] * times)) if times > 1 else condition


def _has_rows(condition: Any) -> bool:
    """Whether a condition can be taken apart, and repeated."""
    return condition is None or isinstance(condition, Tensor | dict)


def _rows_at_once(x: Tensor) -> int:
    return max(1, (_ELEMENTS_AT_ONCE if x.device.type == "cpu" else _ON_AN_ACCELERATOR) // x[0].numel())


def choose_mode(
    divergence: Divergence, equation: ReverseEquation, inputs: Inputs, x: Tensor, differentiable: bool
) -> tuple[Mode, dict[str, float]]:
    """How products are taken: as asked for, reverse for gradients, or else what is fastest on a few rows.

    Before that, the network answers half of the rows twice: it must be differentiable, and answer the same.
    """

    def asked(condition: Any) -> Field:
        return lambda rows: equation.model.output(rows, inputs, condition)

    name, few = type(equation.model.network).__name__, (len(x) + 1) // 2
    condition = rows_of(equation.condition, 0, few)
    twice = _repeated(condition, 2)
    check_repeatable(check_differentiable(asked(twice), torch.cat([x[:few]] * 2), divergence.mode, name), name)
    if divergence.mode is not None:
        return divergence.mode, {}
    return (reverse, {}) if differentiable else fastest(asked(rows_of(equation.condition, 0, len(x))), x)
