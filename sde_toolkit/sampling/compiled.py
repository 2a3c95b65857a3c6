"""A step as one graph: integrator and network compiled together, once for all steps of a grid.

The coefficients of a step are a tensor, its row, so that a step is not compiled again because its numbers differ.
Steps come in *kinds*: the shape and dtype of x, and the structure of the state that a step is given (None at the first
step, for example). The first step of a kind runs without compilation, and its network evaluations and draws are
counted. Later steps run as the graph. A graph has no branch that depends on data, and whatever else a step could branch
on is part of its kind. So a later step makes as many evaluations and draws as the first. Noise is drawn outside.

A kind that leads to another one, as the first step of a multistep method does, occurs once per batch and is never
compiled. So one batch shape needs one graph, for any number of steps and batches. Graphs live as long as the model.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree

from sde_toolkit.checks import without_branches_on_data
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Integrator
from sde_toolkit.integrators.tables import Layout
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sampling.monitors import Meter

__all__ = ["CompiledSteps", "Place", "kind_of", "one_step"]

_NUMBERS = itertools.count()
_GRAPHS: WeakKeyDictionary[ScoreModel, dict[Hashable, Callable[..., Any]]] = WeakKeyDictionary()


class _Known(NamedTuple):
    """What the first step of a kind did; ``recurs``: whether the next step is of the same kind."""

    evaluations: int
    products: int
    draws: int
    recurs: bool


class Place(NamedTuple):
    """A row of a table's values (steps, k)."""

    values: Tensor
    position: int


class CompiledSteps:
    """``integrator.step`` for one run, compiled by ``backend``; every evaluation is credited to ``meter``.

    Raises:
        ArgumentError: from the first compiled step, if torch.compile cannot make one graph of it.
    """

    def __init__(self, integrator: Integrator, layout: Layout, meter: Meter, backend: str) -> None:
        self.integrator, self.layout, self.meter, self.backend = integrator, layout, meter, backend
        self._known: dict[Hashable, _Known] = {}

    def __call__(
        self, equation: ReverseEquation, counted: ReverseEquation, x: Tensor, place: Place, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """One step, by the row at ``place``; ``counted`` is the same equation, with its evaluations counted."""
        kind = self.kind(x, state)
        known = self._known.get(kind)
        if known is None or not known.recurs:
            return self._as_it_is(counted, x, place, state, noise, kind)
        draws = tuple(noise() for _ in range(known.draws))
        self.meter.calls += known.evaluations
        self.meter.products += known.products
        return self.repeat(equation, x, place, state, draws, kind)

    def kind(self, x: Tensor, state: Any) -> Hashable:
        """The kind of the step from x and state."""
        return kind_of(x, state)

    def repeat(
        self, equation: ReverseEquation, x: Tensor, place: Place, state: Any, draws: tuple[Tensor, ...], kind: Hashable
    ) -> tuple[Tensor, Any]:
        """A step of a kind that was seen before, by its graph."""
        arguments = (self.integrator, self.layout, equation, x, place.values[place.position], state, draws)
        try:
            end: tuple[Tensor, Any] = self._graph(equation, x)(*arguments)
        except _limit_reached():  # too many values of a number in the network that is not a tensor
            end = self._graph(equation, x, anew=True)(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ArgumentError(
                "compile",
                self.backend,
                f"the step of {self.integrator} did not become one graph: {reason}",
                'Leave compile out; without a C++ compiler try compile="aot_eager".',
            ) from error
        return end

    def _as_it_is(
        self, counted: ReverseEquation, x: Tensor, place: Place, state: Any, noise: Noise, kind: Hashable
    ) -> tuple[Tensor, Any]:
        meter, draws = self.meter, 0
        calls, products = meter.calls, meter.products

        def draw() -> Tensor:
            nonlocal draws
            draws += 1
            return noise()

        with without_branches_on_data():  # the graph has none, and this step is counted for its steps
            row = self.layout.read(place.values[place.position].unbind())
            x, state = self.integrator.step(counted, x, row, state, draw)
        self._known[kind] = _Known(
            meter.calls - calls, meter.products - products, draws, recurs=kind_of(x, state) == kind
        )
        return x, state

    def _graph(self, equation: ReverseEquation, x: Tensor, anew: bool = False) -> Callable[..., Any]:
        """The graph of this integrator, η and batch shape. Each has a function of its own, since torch limits how often
        one function is compiled.

        A network that holds a number which is not a tensor, such as a guidance scale, is compiled again for every value
        of it. Where torch's limit is reached, ``anew`` drops the graphs of earlier values.
        """
        graphs = _GRAPHS.setdefault(equation.model, {})
        key = (self.integrator, self.layout, equation.eta, self.backend, x.shape, x.dtype, x.device)
        if anew or key not in graphs:
            own = types.FunctionType(one_step.__code__.replace(co_name=f"step_{next(_NUMBERS)}"), one_step.__globals__)
            graphs[key] = torch.compile(own, fullgraph=True, dynamic=False, backend=self.backend)
        return graphs[key]


def one_step(
    integrator: Integrator,
    layout: Layout,
    equation: ReverseEquation,
    x: Tensor,
    row: Tensor,
    state: Any,
    draws: tuple[Tensor, ...],
) -> tuple[Tensor, Any]:
    """A step with its draws made."""
    left = iter(draws)
    return integrator.step(equation, x, layout.read(row.unbind()), state, lambda: next(left))


def _limit_reached() -> tuple[type[Exception], ...]:
    """What torch raises when one function has been compiled too often. Older versions have another name for it."""
    names = ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")
    return tuple(getattr(torch._dynamo.exc, name) for name in names if hasattr(torch._dynamo.exc, name))


def kind_of(x: Tensor, state: Any) -> Hashable:
    """Everything about a step's arguments but the numbers in tensors."""
    leaves, structure = _pytree.tree_flatten((x, state))  # whose description torch 2.4 cannot hash
    return repr(structure), *((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
