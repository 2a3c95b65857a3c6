"""State and log-density integrated together, so that the divergence drives the steps as well.

    dx/dt = v,        dℓ/dt = ∇·v,        log p_0(x_0) = log p_T(x_T) + ℓ_T

Grathwohl et al. 2019 (FFJORD), eq. 4. Every evaluation of the field also evaluates its divergence, which costs several
times as much; in return the error of ℓ is controlled like that of x. An adaptive method accepts a step by the root mean
square of error/(atol + rtol |value|) over all numbers of a sample. ℓ/D, in nats per dimension, is therefore carried as
often as x has dimensions: both halves weigh the same, and a step is rejected for either of them. It is carried times
σ_d, the size of x, so that the absolute tolerance of x does for it in any units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.likelihood.quadrature import NestedRules, Nodes, Quadrature, Rule
from sde_toolkit.models.prediction import Combination
from sde_toolkit.models.score_model import Inputs

__all__ = ["Joint", "JointEquation"]

_ERROR_NODES = [0, 1, 2, 4, 7, 11, 15, 18, 20, 22, 24]  # of 25 nodes, for the estimates at both ends

Traces = Callable[[ReverseEquation, Tensor, Inputs], tuple[Tensor, Tensor]]
"""(equation, x (B, *event), inputs) to the network's output and tr ∂y/∂x (replicates, B)."""


@dataclass(frozen=True)
class Joint(Rule):
    """State and log-density together, for solvers with error control: the divergence drives the steps, too.

    The divergence is evaluated once more at a few nodes, most of them near the ends. They have no weight in the
    integral; the estimates of the result (``truncation``, ``prior_cost``, ``finest``) are read from them.
    """

    def prepare(
        self, equation: ReverseEquation, end: float, start: float, detail: float, stretch: float = 1.0
    ) -> NestedRules:
        """Some nodes of the default rule, without weight."""
        whole = Quadrature().prepare(equation, end, start, detail).finest
        none = torch.zeros(len(_ERROR_NODES), dtype=torch.float64)
        return NestedRules(
            (
                Nodes(
                    times=whole.times[_ERROR_NODES],
                    inputs=tuple(column[_ERROR_NODES] for column in whole.inputs),
                    of_dimension=none,
                    of_trace=none,
                    weights=none,
                    coefficients=none * none[:, None],
                    log_volume=0.0,
                    caution=0,
                ),
            )
        )


@dataclass(frozen=True)
class JointEquation(ReverseEquation):
    """The flow of z = (x, σ_d ℓ_1/D, ..., σ_d ℓ_P/D), each repeated; ``event`` is the shape of x, ``replicates`` P.

    z is (B, D + P k), k = ⌈D/P⌉. The inputs include the drift's coefficients p and q: the drift of x is p x + q y.
    :meth:`output` returns the drift of z itself: p x + q y, and σ_d (p D + q tr ∂y/∂x)/D.
    """

    event: tuple[int, ...] = ()
    replicates: int = 1
    traces: Traces = field(kw_only=True)

    def inputs(self, t: Tensor) -> Inputs:
        p, q = (c.expand_as(t) for c in super().drift_coefficients(t))
        return (*super().inputs(t), p, q)

    def drift_coefficients(self, t: Tensor) -> Combination:
        return Combination(torch.zeros_like(t), torch.ones_like(t))

    def output(self, x_t: Tensor, inputs: Inputs) -> Tensor:
        *own, p, q = (column.expand(len(x_t)) for column in inputs)
        x, D = x_t[:, : self.dimension], self.dimension
        y, trace = self.traces(self, x.reshape(-1, *self.event), tuple(own))
        along = p.unsqueeze(1) * x + q.unsqueeze(1) * y.reshape(len(x), D)
        growth = p + q * trace.to(x) / D  # (P, B)
        return torch.cat([along, self.model.sigma_data * growth.T.repeat_interleave(self.copies, 1)], 1)

    @property
    def dimension(self) -> int:
        """D."""
        return math.prod(self.event)

    @property
    def copies(self) -> int:
        """How often each ℓ/D is carried."""
        return -(-self.dimension // self.replicates)

    def start(self, x: Tensor) -> Tensor:
        """z at the data: ℓ = 0."""
        return torch.cat([x.reshape(len(x), -1), x.new_zeros(len(x), self.replicates * self.copies)], 1)

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, *event), and ℓ (P, B) float64."""
        growth = z[:, self.dimension :: self.copies].to(torch.float64) / self.model.sigma_data
        return z[:, : self.dimension].reshape(-1, *self.event), self.dimension * growth.T
