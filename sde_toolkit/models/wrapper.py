"""Score models around a score model: what it says of x_0 is changed, and everything else follows.

A wrapper implements one method, :meth:`Wrapper.denoise`, from x_t and the model inside to a new x̂_0. ε̂, the score and
the rest follow from it, so that every solver, grid and η works with it, and evaluations are counted where the network
inside is called. docs/add-a-wrapper.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.calls import Counts, count_products, counted
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.descriptions import plain_data
from sde_toolkit.models.inspection import name_of
from sde_toolkit.models.prediction import Readout
from sde_toolkit.models.pullback import of_inference, ordinary, pullback
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["Inside", "Products", "Wrapper"]

Products: TypeAlias = Callable[[Tensor], Tensor]
"""u to uᵀ ∂x̂_0/∂x_t, both of the shape of x_t."""


@dataclass(eq=False)
class Inside:
    """The model inside a wrapper, at one time: ``inside(x_t, condition)`` is its x̂_0, by one evaluation.

    Attributes:
        model: the model inside.
        batch: the number of samples.
        inputs, m, n: what its output needs of the time, and x̂_0 = m x_t + n y with its output y.
        t, alpha, sigma: of this time, in the dtype and on the device of x_t; 0-dim, or (B, 1, ..., 1) beside x_t.
        own: what the wrapper around it has added in :meth:`Wrapper.inside_at`; None otherwise.
        v: what it said of the variance when it was first asked; None without a learned variance.
    """

    model: ScoreModel
    batch: int
    inputs: Inputs
    m: Tensor
    n: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    own: Any = None
    v: Tensor | None = field(default=None, init=False)
    _asked: bool = field(default=False, init=False)

    def __call__(self, x_t: Tensor, condition: Any = None) -> Tensor:
        """x̂_0 of the model inside at x_t, told ``condition``.

        x_t is (B, *event), or (k B, *event) for the batch k times over, ``torch.cat([x_t, x_t])`` for example; the
        condition has as many rows.

        Raises:
            ArgumentError: for another number of rows: it is not known which of them have which time.
        """
        times = self._times(x_t)
        y = self._output(x_t, times, condition)
        return torch.addcmul(_over(self.m, times) * x_t, _over(self.n, times), y)

    def vjp(self, x_t: Tensor, condition: Any = None) -> tuple[Tensor, Products]:
        """x̂_0 as by calling, and ``products(u)`` = uᵀ ∂x̂_0/∂x_t, of the shape of x_t; for any number of u.

        So (σ²/α) ``products(u)`` is V u, with V = (σ²/α) ∂x̂_0/∂x_t = Cov[x_0 | x_t] where the model is exact. Each
        product goes backwards through every evaluation once, and is counted as so many ``products`` of the result.

        Raises:
            ArgumentError: as by calling; if autograd finds no way through the model.
        """
        times = self._times(x_t)
        if any(map(of_inference, (x_t, *self.inputs))):
            outside = self._outside_inference()
            found = outside.vjp(ordinary(x_t), map_rows(condition, ordinary))
            self.v, self._asked = (self.v, True) if self._asked else (outside.v, True)
            return found
        m, n = _over(self.m, times), _over(self.n, times)

        def output(x: Tensor) -> Tensor:
            return self._output(x, times, condition)

        name = name_of(self.model.network)
        if torch.compiler.is_compiling():
            (y, pull), counts = pullback(output, x_t, name), Counts(0, 0)  # counted in the first step
        else:
            (y, pull), counts = counted(lambda x: pullback(output, x, name), x_t)

        def products(u: Tensor) -> Tensor:
            count_products(x_t.shape[0] * sum(counts))
            return m * u + pull(n * u)

        return torch.addcmul(m * x_t, n, y), products

    def _outside_inference(self) -> Inside:
        columns = map(ordinary, (self.m, self.n, self.t, self.alpha, self.sigma))
        return Inside(self.model, self.batch, tuple(map(ordinary, self.inputs)), *columns)

    def _times(self, x_t: Tensor) -> int:
        """How often the batch is in x_t."""
        times, rest = x_t.shape[0] // max(1, self.batch), x_t.shape[0] % max(1, self.batch)
        if rest or (times == 0 and self.batch > 0):
            problem = f"{x_t.shape[0]} rows are no multiple of the {self.batch} of the batch"
            remedy = "Pass the whole batch, or copies of it: torch.cat([x_t, x_t])."
            raise ArgumentError("x_t", tuple(x_t.shape), problem, remedy)
        return times

    def _output(self, x_t: Tensor, times: int, condition: Any) -> Tensor:
        inputs = self.inputs if times == 1 else tuple(_over(column, times) for column in self.inputs)
        y, v = self.model.outputs(x_t, inputs, condition)
        if not self._asked:
            self.v, self._asked = (v if v is None else v[: self.batch]), True
        return y


def _over(column: Tensor, times: int) -> Tensor:
    """A column for the batch so many times over."""
    return column if column.ndim == 0 or times == 1 else column.repeat(times, *(1,) * (column.ndim - 1))


def _unchanged(name: str, value: Any, given: dict[str, Any]) -> bool:
    """Whether an attribute is as it was given. Numbers and texts are compared, since pickling copies them."""
    if name not in given:
        return False
    return value is given[name] or (isinstance(value, (int, float, str, tuple)) and bool(value == given[name]))


class Wrapper(ScoreModel):
    """A score model around ``model``, with an x̂_0 of its own: see :meth:`denoise`.

    It shares the parameters, the transform, the event shape and the SDE of the model inside, which is ``network``.
    Attributes that a subclass sets are noted in the record of a result (:meth:`settings`). It natively predicts x_0,
    so that at t = 0, where σ may be 0, its ε̂ is not defined: end there by a Tweedie step.

    Args:
        model: any score model, a wrapper too.
        sde: another path, for a subclass that changes it.

    Raises:
        ArgumentError: if ``model`` is not a score model.
    """

    network: ScoreModel

    def __init__(self, model: ScoreModel, sde: SDE | None = None) -> None:
        if not isinstance(model, ScoreModel):
            raise ArgumentError("model", model, "not a ScoreModel", "Wrap the network: ScoreModel(network, sde, ...).")
        super().__init__(
            model,
            model.sde if sde is None else sde,
            "x0",
            time_input=model.time_input,
            sigma_data=model.sigma_data,
            transform=model.transform,
            event_shape=model.event_shape,
        )
        self.decoder = model.decoder
        self._given = {name: value for name, value in vars(self).items() if name[:1] != "_"}
        self.train(model.training)

    def denoise(self, x_t: Tensor, inside: Inside, condition: Any) -> Tensor:
        """The new x̂_0 (B, *event) at x_t: by default that of the model inside.

        Args:
            x_t: (B, *event).
            inside: the model inside, at the time of x_t: ``inside(x_t, condition)`` is its x̂_0. It may be evaluated as
                often as needed, at any x_t and under any condition.
            condition: what the caller of the wrapper passed.
        """
        return inside(x_t, condition)

    def network_inputs(self, t: Tensor) -> Inputs:
        """Those of the model inside; then t, α, σ and (m, n) with x̂_0 = m x_t + n y."""
        m, n = self.network.readout(t).view("x0")
        return *self.network.network_inputs(t), t, self.sde.alpha(t), self.sde.sigma(t), m, n

    def output(self, x_t: Tensor, inputs: Inputs, condition: Any = None) -> Tensor:
        """The new x̂_0."""
        return self.outputs(x_t, inputs, condition)[0]

    def outputs(self, x_t: Tensor, inputs: Inputs, condition: Any = None) -> tuple[Tensor, Tensor | None]:
        """The new x̂_0, and v as the model inside said it first."""
        inside = self.inside_at(x_t, inputs)
        return self.denoise(x_t, inside, condition), inside.v

    def inside_at(self, x_t: Tensor, inputs: Inputs) -> Inside:
        """The model inside, at the time of ``inputs``: those of :meth:`network_inputs`."""
        *inner, t, alpha, sigma, m, n = inputs
        columns = (expand_to(column, x_t) for column in (m, n, t, alpha, sigma))
        return Inside(self.network, x_t.shape[0], tuple(inner), *columns)

    @property
    def evaluations_inside(self) -> int:
        """Those of the model inside; a wrapper that asks it several times says so."""
        return self.network.evaluations_inside

    @property
    def in_words(self) -> str:
        """The model inside, and the wrapper by its name."""
        return f"{self.network.in_words}, changed by {type(self).__qualname__}"

    def check_times(self, times: Tensor) -> None:
        """As the model inside does, which is asked at the same times."""
        self.network.check_times(times)

    def readout(self, t: Tensor) -> Readout:
        return Readout(self.sde, "x0", t, self.sigma_data)

    def description(self) -> dict[str, Any]:
        """What it is, for the record of a result: the wrapper, and the model inside."""
        return {"wrapper": type(self).__qualname__, **plain_data(self.settings()), **super().description()}

    def settings(self) -> dict[str, Any]:
        """What the wrapper was given besides the model, by name: the attributes that a subclass has set or changed."""
        own = {name: value for name, value in vars(self).items() if name[:1] != "_" and name != "training"}
        return {name: value for name, value in own.items() if not _unchanged(name, value, self._given)}

    def check_savable(self) -> None:
        """A checkpoint holds the model inside.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            "model",
            type(self).__name__,
            "a wrapped model is not written to a checkpoint",
            "Save the model inside, .network, and wrap it again after loading.",
        )
