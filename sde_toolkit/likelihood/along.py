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

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Statistics
from sde_toolkit.likelihood.divergence import Divergence
from sde_toolkit.likelihood.jacobian import Field, Mode, check_differentiable, check_repeatable, fastest, reverse, sized
from sde_toolkit.likelihood.joint import JointEquation
from sde_toolkit.likelihood.path_ends import prior_cost, roughness, truncation
from sde_toolkit.likelihood.paths import FlowPath, Upwards
from sde_toolkit.likelihood.prior import Prior
from sde_toolkit.likelihood.quadrature import Ladder, Nodes
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.evaluation_mode import refuse_random_numbers
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.sampling.loop import rows_of

__all__ = ["Batch", "Work", "choose_mode"]

_ELEMENTS_AT_ONCE, _ON_AN_ACCELERATOR = 2**14, 2**20  # of states whose divergence is evaluated together
_CAUTION = 2.0  # times the difference of two solves: where a network is rough in time, both may err alike


@dataclass(frozen=True, eq=False)
class Batch:
    """What one batch gave; ``replicates`` (P, B), ``latent`` (B, *event), ``roughness`` (Q, B), the others (B,)."""

    replicates: Tensor
    prior: Tensor
    latent: Tensor
    quadrature_error: Tensor
    solver_error: Tensor | None
    truncation: Tensor
    prior_cost: Tensor
    roughness: Tensor
    divergences: Tensor
    nfe: int
    statistics: Statistics | None

    @classmethod
    def of_all(cls, parts: list[Batch]) -> Batch:
        """The tensors of all batches, one after another."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("prior", "latent", "quadrature_error", "truncation", "prior_cost", "divergences")
        }
        errors = [part.solver_error for part in parts if part.solver_error is not None]
        for name in ("replicates", "roughness"):
            joined[name] = torch.cat([getattr(part, name) for part in parts], 1)
        return cls(solver_error=torch.cat(errors) if errors else None, nfe=0, statistics=None, **joined)


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of all samples at ``nodes``: states (Q, B, *event), y at the first two, mean traces (Q, B)."""

    nodes: Nodes
    states: Tensor
    outputs: Tensor
    traces: Tensor


@dataclass(frozen=True, eq=False)
class Work:
    """Everything that is the same for all batches.

    ``solves``: how the path is solved and where its divergence is wanted, once or, for Richardson, twice. ``joint``:
    the log-density is part of the state.
    """

    solves: list[tuple[Upwards, Ladder]]
    divergence: Divergence
    mode: Mode
    prior: Prior | None
    seed: int
    first_index: int
    differentiable: bool
    joint: bool = False

    def batch(self, equation: ReverseEquation, x: Tensor, first: int) -> Batch:
        """The likelihood of x (B, *event), the samples from ``first`` on; Richardson's estimate from a second solve."""
        probes = self.divergence.directions(tuple(x.shape), self.seed, self.first_index + first).to(x)
        solve = self._together if self.joint else self._one_after_the_other
        fine, *coarse = [solve(equation, flow, ladder, x, probes) for flow, ladder in self.solves]
        if not coarse:
            return fine
        difference = (fine.prior + fine.replicates).mean(0) - (coarse[0].prior + coarse[0].replicates).mean(0)
        return replace(
            fine,
            solver_error=_CAUTION * difference.abs(),
            divergences=fine.divergences + coarse[0].divergences,
            nfe=fine.nfe + coarse[0].nfe,
        )

    def _one_after_the_other(
        self, equation: ReverseEquation, flow: Upwards, ladder: Ladder, x: Tensor, probes: Tensor
    ) -> Batch:
        path = flow.solve(equation, x)
        integral, error, divergences, outputs, traces = self._climb(equation, ladder, path.states, probes)
        seen = Seen(ladder.rungs[0], path.states[ladder.places(0)], outputs, traces)
        return self._answer(equation, flow, x, path, path.latent, integral, error, divergences, seen)

    def _together(self, equation: ReverseEquation, flow: Upwards, ladder: Ladder, x: Tensor, probes: Tensor) -> Batch:
        """The path of state and log-density; the nodes near the ends apart."""

        def at(now: ReverseEquation, rows: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
            bare = replace(equation, condition=now.condition["network"])
            return self._evaluate(bare, rows, inputs, now.condition["probes"].movedim(1, 0))

        condition = {"network": equation.condition, "probes": probes.movedim(0, 1)}  # rows that go with the samples
        event, replicates = tuple(x.shape[1:]), self.divergence.replicates
        both = JointEquation(equation.model, 0.0, condition, event=event, replicates=replicates, traces=at)
        path = flow.solve(both, both.start(x))
        latent, integral = both.parts(path.latent)
        states = torch.stack([both.parts(z)[0] for z in path.states])
        outputs, traces = self._traces(equation, ladder.finest, states, range(len(states)), probes)
        unknown = torch.full_like(integral[0], math.nan)
        taken = path.evaluations(len(x)).to(x.device) + len(states)
        seen = Seen(ladder.finest, states, outputs, traces.mean(0))
        return self._answer(equation, flow, x, path, latent, integral, unknown, taken, seen)

    def _answer(
        self, equation: ReverseEquation, flow: Upwards, x: Tensor, path: FlowPath, latent: Tensor, integral: Tensor,
        error: Tensor, divergences: Tensor, seen: Seen,
    ) -> Batch:  # fmt: skip
        D, start, times = math.prod(x.shape[1:]), flow.times[-1], seen.nodes.times
        rough = roughness(equation, times, seen.traces, D)
        with torch.no_grad():
            cost = prior_cost(equation, times, seen.states, seen.traces, latent, start)
        return Batch(
            replicates=integral,
            prior=self._log_prior(equation, latent, start.item()),
            latent=latent,
            quadrature_error=error,
            solver_error=None,
            truncation=truncation(equation, times, x, seen.outputs, rough[:2]),
            prior_cost=cost,
            roughness=rough,
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
        self, equation: ReverseEquation, ladder: Ladder, states: Tensor, probes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The integral (P, B), its error and the nodes it took (B,), outputs at the first two nodes, and the traces
        (q, B) at those of the first rung.

        From rung to rung of the rule, with the samples that need it.
        """
        (Q, B), D = states.shape[:2], math.prod(states.shape[2:])
        rows = torch.arange(B, device=states.device)
        traces = torch.zeros(self.divergence.replicates, Q, B, dtype=torch.float64, device=states.device)
        integral, error, taken = traces[:, 0], traces[0, 0], torch.zeros_like(rows)
        outputs = states[:2]
        places: list[int] = []
        for k, nodes in enumerate(ladder.rungs):
            known, places = set(places), ladder.places(k)
            new = [place for place in places if place not in known]
            whole = len(rows) == B
            found = self._traces(
                equation if whole else _of_rows(equation, rows),
                ladder.finest,
                states[new] if whole else states[new][:, rows],
                new,
                probes if whole else probes[:, rows],
            )
            outputs = found[0] if k == 0 else outputs
            at = torch.tensor(new, device=rows.device)
            traces = traces.movedim(0, 2).index_put((at[:, None], rows), found[1].movedim(0, 2)).movedim(2, 0)
            seen = traces[:, places][:, :, rows]
            integral = integral.index_copy(1, rows, nodes.integrate(seen, D))
            estimate = nodes.error(seen.mean(0), D)
            error, taken = error.index_copy(0, rows, estimate), taken.index_fill(0, rows, len(places))
            open_ = ladder.call_for_more(estimate, D, states.dtype)
            if len(open_) == 0:
                break
            rows = rows[open_]
        return integral, error, taken, outputs, traces[:, ladder.places(0)].mean(0)

    def _traces(
        self, equation: ReverseEquation, nodes: Nodes, states: Tensor, places: Sequence[int], probes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """y (2, B, *event) at the first two places, tr ∂y/∂x (P, q, B) float64 at all; states (q, B, *event).

        Of small batches several nodes go through the network together.
        """
        B = states.shape[1]
        columns = [column[list(places)] for column in nodes.inputs]
        together = max(1, _rows_at_once(states[0]) // B)
        traces, outputs = [], []
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
            if first < 2:
                outputs.append(y.reshape(part.shape)[: 2 - first])
            traces.append(trace.reshape(len(trace), q, B))
        return torch.cat(outputs), torch.cat(traces, 1).to(torch.float64)

    def _evaluate(self, equation: ReverseEquation, x: Tensor, inputs: Inputs, probes: Tensor) -> tuple[Tensor, Tensor]:
        """y (R, *event) and tr ∂y/∂x (P, R) at the rows x; a part's graph goes with it."""
        R = len(x)
        parts = -(-R // _rows_at_once(x))
        size = -(-R // parts)
        outputs, traces = [], []
        for first in range(0, R, size):
            last = min(R, first + size)
            times = tuple(column[first:last] if column.ndim else column for column in inputs)
            condition = rows_of(equation.condition, first, last)

            def field(rows: Tensor, times: Inputs = times, condition: Any = condition) -> Tensor:
                return equation.model.output(rows, times, condition)

            mode = sized(self.mode, equation.model.sigma_data)
            output, products = mode(field, x[first:last], self.differentiable)
            outputs.append(output)
            traces.append(self.divergence.traces(products, x[first:last], probes[:, first:last]))
        return torch.cat(outputs), torch.cat(traces, 1)


def _of_rows(equation: ReverseEquation, rows: Tensor) -> ReverseEquation:
    """The equation for these rows of its batch."""
    return replace(equation, condition=map_rows(equation.condition, lambda part: part[rows.to(part.device)]))


def _repeated(condition: Any, times: int) -> Any:
    """The rows of a condition, one copy after another."""
    return map_rows(condition, lambda part: torch.cat([part] * times)) if times > 1 else condition


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
    with refuse_random_numbers(x.device, equation.model.network):
        answers = check_differentiable(asked(twice), torch.cat([x[:few]] * 2), divergence.mode, name)
    check_repeatable(answers, name)
    if divergence.mode is not None:
        return divergence.mode, {}
    return (reverse, {}) if differentiable else fastest(asked(rows_of(equation.condition, 0, len(x))), x)
