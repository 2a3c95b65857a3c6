"""What is measured and watched while a solver runs. The host does not wait for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import NonFiniteError
from sde_toolkit.models.calls import counted
from sde_toolkit.models.evaluation_mode import refuse_random_numbers
from sde_toolkit.models.score_model import Inputs, ScoreModel

__all__ = ["FiniteWatch", "Meter"]

_STEPS_BETWEEN_READS = 16  # of the finiteness of the state, and of the clock
_EVALUATIONS_TIMED = 4  # one by one: the first ones choose kernels and allocate

StepAgain = Callable[[int, Tensor, Any], tuple[Tensor, Any]]
"""(step, x, state) to the x and state after it, uncounted."""


class Meter:
    """Counts evaluations of a network and products with its Jacobian, and measures their time without waiting for the
    device.

    On a CUDA device the first four evaluations are timed, and then one in sixteen, which counts for sixteen: to time
    one takes as long as to launch two kernels.

    ``around``: an equation's own ``evaluate``, which calls the model.
    """

    def __init__(self, model: ScoreModel, device: torch.device, around: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.around = around
        self.device = device
        self.calls = self.products = 0
        self._most_calls = self._most_products = 0
        self._on_cuda = device.type == "cuda"
        self._evaluations = 0  # of all batches, each counted once
        self._elapsed = 0.0
        self._events: list[tuple[int, Any, Any]] = []

    def restart(self) -> None:
        """A new batch begins."""
        self._most_calls, self._most_products = self.nfe, self.most_products
        self.calls = self.products = 0

    @property
    def nfe(self) -> int:
        """Evaluations per sample: the largest number over the batches."""
        return max(self._most_calls, self.calls)

    @property
    def most_products(self) -> int:
        """Products with Jacobians per sample: the largest number over the batches."""
        return max(self._most_products, self.products)

    def evaluate(self, x_t: Tensor, inputs: Inputs, condition: Any, call: Callable[..., Any] | None = None) -> Any:
        """``model.output``, or another way to ``call`` the model, with the network's evaluations in it counted."""
        if self.around is not None:
            call = partial(self.around, call=call)
        elif call is None:
            call = self.model.output
        number = self._evaluations
        self._evaluations = number + 1
        if number == 0:
            call = self._watching(call)
        if not self._on_cuda:
            start = time.perf_counter()
            y, counts = counted(call, x_t, inputs, condition)
            self._elapsed += time.perf_counter() - start
        elif _stands_for(number):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            y, counts = counted(call, x_t, inputs, condition)
            after.record()
            self._events.append((number, before, after))
        else:
            y, counts = counted(call, x_t, inputs, condition)
        self.calls += counts.evaluations
        self.products += counts.products
        return y

    def _watching(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            with refuse_random_numbers(self.device, self.model.network):
                return call(*arguments)

        return watched

    def seconds(self) -> float:
        """The time of the network so far; the host waits for the device."""
        if self._events:
            torch.cuda.synchronize()
            for number, before, after in self._events:
                together = min(_stands_for(number), self._evaluations - number)
                self._elapsed += together * before.elapsed_time(after) / 1000
            self._events = []
        return self._elapsed


def _stands_for(number: int) -> int:
    """For how many evaluations the time of this one counts; 0 if it is not measured."""
    if number < _EVALUATIONS_TIMED:
        return 1
    return 0 if (number - _EVALUATIONS_TIMED) % _STEPS_BETWEEN_READS else _STEPS_BETWEEN_READS


class FiniteWatch:
    """Whether the state stays finite, read on the host every few steps only.

    A state that is not finite stays so, since every step is linear in x. With ``step_again`` only every sixteenth state
    is read. If it is not finite, the steps since the last reading are repeated to find the first at fault. Steps that
    drew noise cannot be repeated: then the sum of every state is kept until the next reading. A sum costs a third of
    the cheapest step.

    Args:
        grid: the times.
        enabled: whether to look at all.
        x: the state at the first of them.
        step_again: takes a step once more; None where steps cannot be repeated.
        own: copies (x, state), where the next step writes over them; None where it does not.
    """

    def __init__(
        self,
        grid: Tensor,
        enabled: bool,
        x: Tensor,
        step_again: StepAgain | None = None,
        own: Callable[[Any], Any] | None = None,
    ) -> None:
        self.grid = grid
        self.enabled = enabled
        self.step_again = step_again
        self.own = own if step_again is not None else None
        self.since: tuple[int, Tensor, Any] = (0, x, None)  # the next step, and what it starts from
        self.latest: tuple[int, Tensor, Any] = (-1, x, None)  # the step before, and what it led to
        self.sums: list[Tensor] = []

    def __call__(self, step: int, x: Tensor, state: Any) -> None:
        if not self.enabled:
            return
        self.latest = (step, x, state)
        if self.step_again is None:
            self.sums.append(x.detach().sum())
        if step - self.since[0] == _STEPS_BETWEEN_READS - 1:
            self.read()

    def read(self) -> None:
        """Raise if a state since the last reading was not finite."""
        step, x, state = self.latest
        if not self.enabled or _finite(x):
            x, state = (x, state) if self.own is None else self.own((x, state))
            self.since, self.sums = (step + 1, x, state), []
            return
        step = self._first()
        last = len(self.grid) - 1
        where = "the final Tweedie step" if step == last else f"the step to t={self.grid[step + 1].item():.6g}"
        raise NonFiniteError(
            f"the state is not finite after {where}",
            step=step,
            t=self.grid[min(step, last)].item(),
            remedy="Look for NaN in the network's weights or output; a finer grid helps if the solver diverged.",
        )

    def _first(self) -> int:
        """The first step since the last reading after which the state was not finite; the latest one is known to be."""
        first, x, state = self.since
        for step in range(first, self.latest[0]):
            if self.step_again is None:
                x = self.sums[step - first]
            else:
                x, state = self.step_again(step, x, state)
            if not _finite(x):
                return step
        return self.latest[0]


def _finite(x: Tensor) -> bool:
    """Whether all of ``x`` is finite. If an element is not, the sum is not; and a sum is cheaper than ``isfinite``."""
    return math.isfinite(x.detach().sum().item())
