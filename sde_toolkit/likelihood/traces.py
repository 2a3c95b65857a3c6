"""Traces of the network's Jacobian at the nodes of a path, and what they add up to.

A vector-Jacobian product holds the graph of its forward pass, most of the memory that a likelihood takes. Rows are
independent. So large batches go through the network in parts, and of small batches several nodes go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.likelihood.divergence import Divergence
from sde_toolkit.likelihood.jacobian import Mode, sized
from sde_toolkit.likelihood.quadrature import NestedRules, Nodes
from sde_toolkit.models.conditions import map_rows, repeat_rows
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.sampling.loop import rows_of

__all__ = ["Integrated", "Tracer"]

_ELEMENTS_AT_ONCE, _ON_AN_ACCELERATOR = 2**14, 2**20  # of states whose divergence is evaluated together


@dataclass(frozen=True, eq=False)
class Integrated:
    """The divergence along the paths of a batch.

    Attributes:
        integral: (P, B), what it adds to log p by each of P probes.
        error: (B,), an estimate of what the nodes miss.
        evaluations: (B,), of the divergence.
        outputs: (2, B, *event), the network's outputs at the first two nodes.
        traces: (q, B), means over the probes at the q nodes of the first rule.
    """

    integral: Tensor
    error: Tensor
    evaluations: Tensor
    outputs: Tensor
    traces: Tensor


@dataclass(frozen=True)
class Tracer:
    """How traces are computed: by which estimator, by which products, and whether they are to have gradients."""

    divergence: Divergence
    mode: Mode
    differentiable: bool

    def integrate(self, equation: ReverseEquation, rules: NestedRules, states: Tensor, probes: Tensor) -> Integrated:
        """The integral along the paths that have the ``states`` (Q, B, *event) at all nodes of ``rules``.

        From rule to rule, with the samples whose error is still too large.
        """
        (Q, B), D = states.shape[:2], states[0, 0].numel()
        rows = torch.arange(B, device=states.device)
        traces = torch.zeros(self.divergence.replicates, Q, B, dtype=torch.float64, device=states.device)
        integral, error, evaluations = traces[:, 0], traces[0, 0], torch.zeros_like(rows)
        outputs = states[:2]
        positions: list[int] = []
        for k, nodes in enumerate(rules.rules):
            known, positions = set(positions), rules.positions(k)
            new = [position for position in positions if position not in known]
            whole = len(rows) == B
            found = self.at(
                equation if whole else _of_rows(equation, rows),
                rules.finest,
                states[new] if whole else states[new][:, rows],
                new,
                probes if whole else probes[:, rows],
            )
            outputs = found[0] if k == 0 else outputs
            at = torch.tensor(new, device=rows.device)
            traces = traces.movedim(0, 2).index_put((at[:, None], rows), found[1].movedim(0, 2)).movedim(2, 0)
            seen = traces[:, positions][:, :, rows]
            integral = integral.index_copy(1, rows, nodes.integrate(seen, D))
            estimate = nodes.error(seen.mean(0), D)
            error = error.index_copy(0, rows, estimate)
            evaluations = evaluations.index_fill(0, rows, len(positions))
            unsettled = rules.unsettled(estimate, D, states.dtype)
            if len(unsettled) == 0:
                break
            rows = rows[unsettled]
        return Integrated(integral, error, evaluations, outputs, traces[:, rules.positions(0)].mean(0))

    def at(
        self, equation: ReverseEquation, nodes: Nodes, states: Tensor, positions: Sequence[int], probes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """y (2, B, *event) at the first two of the ``positions`` among the nodes, tr ∂y/∂x (P, q, B) float64 at all.

        ``states`` (q, B, *event) are those at the positions.
        """
        B = states.shape[1]
        columns = [column[list(positions)] for column in nodes.inputs]
        together = max(1, _rows_at_once(states[0]) // B)
        traces, outputs = [], []
        for first in range(0, len(positions), together):
            part = states[first : first + together]
            q = len(part)
            inputs = [column[first : first + q] for column in columns]
            inputs = [column[0] if q == 1 else column.repeat_interleave(B) for column in inputs]
            of_rows = probes if q == 1 else probes.repeat(1, q, *(1,) * (part.ndim - 2))
            y, trace = self.evaluate(
                replace(equation, condition=repeat_rows(equation.condition, q)),
                part.flatten(0, 1),
                tuple(column.to(part.device, part.dtype) for column in inputs),
                of_rows,
            )
            if first < 2:
                outputs.append(y.reshape(part.shape)[: 2 - first])
            traces.append(trace.reshape(len(trace), q, B))
        return torch.cat(outputs), torch.cat(traces, 1).to(torch.float64)

    def evaluate(self, equation: ReverseEquation, x: Tensor, inputs: Inputs, probes: Tensor) -> tuple[Tensor, Tensor]:
        """y (R, *event) and tr ∂y/∂x (P, R) at the rows x, part by part; the graph of a part goes with it."""
        R = len(x)
        parts = -(-R // _rows_at_once(x))
        size = -(-R // parts)
        mode = sized(self.mode, equation.model.sigma_data)
        outputs, traces = [], []
        for first in range(0, R, size):
            last = min(R, first + size)
            times = tuple(column[first:last] if column.ndim else column for column in inputs)
            condition = rows_of(equation.condition, first, last)

            def field(rows: Tensor, times: Inputs = times, condition: Any = condition) -> Tensor:
                return equation.model.output(rows, times, condition)

            output, products = mode(field, x[first:last], self.differentiable)
            outputs.append(output)
            traces.append(self.divergence.traces(products, x[first:last], probes[:, first:last]))
        return torch.cat(outputs), torch.cat(traces, 1)


def _of_rows(equation: ReverseEquation, rows: Tensor) -> ReverseEquation:
    """The equation for these rows of its batch."""
    return replace(equation, condition=map_rows(equation.condition, lambda part: part[rows.to(part.device)]))


def _rows_at_once(x: Tensor) -> int:
    return max(1, (_ELEMENTS_AT_ONCE if x.device.type == "cpu" else _ON_AN_ACCELERATOR) // x[0].numel())
