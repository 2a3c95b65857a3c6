"""The divergence along paths that are known: traces at the nodes, and what they add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.broadcasting import map_rows
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Statistics
from sde_toolkit.likelihood.divergence import Divergence
from sde_toolkit.likelihood.jacobian import Field, Mode, check_differentiable, fastest, reverse
from sde_toolkit.likelihood.paths import Path, Upwards
from sde_toolkit.likelihood.prior import Prior
from sde_toolkit.likelihood.quadrature import Nodes
from sde_toolkit.loop import rows_of

__all__ = ["Batch", "Work", "choose_mode"]

_ELEMENTS_AT_ONCE = 2**14  # of states whose divergence is evaluated together, if one node's are not more


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
    nfe: int
    statistics: Statistics | None

    @classmethod
    def of_all(cls, parts: list[Batch]) -> Batch:
        """The tensors of all batches, one after another."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("prior", "latent", "quadrature_error", "truncation", "roughness")
        }
        errors = [part.solver_error for part in parts if part.solver_error is not None]
        replicates = torch.cat([part.replicates for part in parts], 1)
        return cls(
            replicates=replicates, solver_error=torch.cat(errors) if errors else None, nfe=0, statistics=None, **joined
        )


@dataclass(frozen=True, eq=False)
class Work:
    """Everything that is the same for all batches."""

    nodes: Nodes
    flows: list[Upwards]
    divergence: Divergence
    mode: Mode
    prior: Prior | None
    seed: int
    first_index: int
    differentiable: bool

    def batch(self, equation: ReverseEquation, x: Tensor, first: int) -> Batch:
        """The likelihood of x (B, *event), the samples from ``first`` on."""
        D = math.prod(x.shape[1:])
        probes = self.divergence.directions(tuple(x.shape), self.seed, self.first_index + first).to(x)
        paths = [flow.solve(equation, x) for flow in self.flows]
        traces, truncation, roughness = self._traces(equation, paths[0], probes)
        integral, prior = self.nodes.integrate(traces, D), self._log_prior(equation, paths[0])
        error = None
        if len(paths) > 1:
            coarse, *_ = self._traces(equation, paths[1], probes)
            difference = (prior + integral).mean(0) - (
                self._log_prior(equation, paths[1]) + self.nodes.integrate(coarse, D)
            ).mean(0)
            order = self.flows[0].solver.integrator.order or 1
            error = difference.abs() / (2**order - 1)
        return Batch(
            replicates=integral,
            prior=prior,
            latent=paths[0].latent,
            quadrature_error=self.nodes.error(traces.mean(0), D),
            solver_error=error,
            truncation=truncation,
            roughness=roughness,
            nfe=sum(path.nfe for path in paths),
            statistics=paths[0].statistics,
        )

    def _log_prior(self, equation: ReverseEquation, path: Path) -> Tensor:
        start = self.flows[0].times[-1].item()
        density = self.prior or equation.sde.prior_logp
        value = density(path.latent.to(torch.float64), start)
        if not (isinstance(value, Tensor) and value.shape == path.latent.shape[:1]):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                "prior", found, "it must answer one log density per sample, (B,)", "Sum over the event."
            )
        return value

    def _traces(self, equation: ReverseEquation, path: Path, probes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tr ∂y/∂x at all nodes, (P, Q, B) float64, and what the first node says of the data."""
        Q, B = path.states.shape[:2]
        repeatable = equation.condition is None or isinstance(equation.condition, Tensor | dict)
        at_once = max(1, _ELEMENTS_AT_ONCE // path.states[0].numel()) if repeatable else 1
        traces, outputs = [], []
        for first in range(0, Q, at_once):
            output, trace = self._at_nodes(equation, path.states[first : first + at_once], first, probes)
            outputs += [output[:B]] if first == 0 else []
            traces.append(trace)
        found = torch.cat(traces, 1).to(torch.float64)
        return found, *self._at_the_data(equation, path.states[0], outputs[0], found[:, 0].mean(0))

    def _at_nodes(self, equation: ReverseEquation, states: Tensor, first: int, probes: Tensor) -> tuple[Tensor, Tensor]:
        """Output (q B, *event) and traces (P, q, B) at the nodes from ``first`` on; the graph goes with the call."""
        q, B = states.shape[:2]
        x = states.flatten(0, 1)
        output, products = self.mode(self._field(equation, first, q, B), x, self.differentiable)
        trace = self.divergence.traces(products, x, probes.repeat(1, q, *(1,) * (x.ndim - 1)))
        return output, trace.reshape(len(trace), q, B)

    def _field(self, equation: ReverseEquation, first: int, q: int, B: int) -> Field:
        """The network at the nodes first, ..., first + q − 1, every node's B rows after another's."""
        columns = [column[first : first + q] for column in self.nodes.inputs]
        rows = [column[0] if q == 1 else column.repeat_interleave(B) for column in columns]
        condition = equation.condition if q == 1 else map_rows(equation.condition, lambda rows: torch.cat([rows] * q))
        model = equation.model

        def field(x: Tensor) -> Tensor:
            return model.output(x, tuple(row.to(x.device, x.dtype) for row in rows), condition)

        return field

    def _at_the_data(self, equation: ReverseEquation, x: Tensor, output: Any, trace: Tensor) -> tuple[Tensor, Tensor]:
        """½ (|ε̂|² − σ ∇·ε̂) − D log α − (1/α − 1) x·ε̂/σ, the effect of truncation, and σ ∇·ε̂/D, which is (σ/s)²
        where the density changes on the scale s > σ.
        """
        end = self.nodes.times[0]
        m, n = equation.view("epsilon", end)
        epsilon = (m.to(x) * x + n.to(x) * output).to(torch.float64).reshape(len(x), -1)
        D, log_alpha, sigma = epsilon.shape[1], equation.sde.log_alpha(end), equation.sde.sigma(end)
        smaller = torch.where(log_alpha == 0, 0.0, torch.expm1(-log_alpha) / sigma)  # α is 1 where σ vanishes
        along = (epsilon * x.to(torch.float64).reshape(len(x), -1)).sum(1)
        curvature = sigma * (m * D + n * trace)  # σ ∇·ε̂
        return 0.5 * (epsilon.square().sum(1) - curvature) - D * log_alpha - smaller * along, curvature / D


def choose_mode(
    divergence: Divergence, equation: ReverseEquation, nodes: Nodes, x: Tensor, differentiable: bool
) -> tuple[Mode, dict[str, float]]:
    """How products are taken: as asked for, reverse for gradients, or else what is fastest on a few rows."""
    middle = tuple(column[len(column) // 2].to(x.device, x.dtype) for column in nodes.inputs)
    condition = rows_of(equation.condition, 0, len(x))

    def field(rows: Tensor) -> Tensor:
        return equation.model.output(rows, middle, condition)

    check_differentiable(field, x, divergence.mode, type(equation.model.network).__name__)
    if divergence.mode is not None:
        return divergence.mode, {}
    return (reverse, {}) if differentiable else fastest(field, x)
