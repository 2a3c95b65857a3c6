"""What is measured and watched while a solver runs, without making the host wait for the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import NonFiniteError
from sde_toolkit.score_model import Inputs, ScoreModel

__all__ = ["FiniteWatch", "Meter"]

_STEPS_BETWEEN_READS = 16  # of the finiteness of the state, which is recorded on the device


class Meter:
    """Counts the evaluations of a network and the time they take, without waiting for the device."""

    def __init__(self, model: ScoreModel, device: torch.device) -> None:
        self.model = model
        self.on_cuda = device.type == "cuda"
        self.calls = 0
        self._most_calls = 0
        self._elapsed = 0.0
        self._events: list[tuple[Any, Any]] = []

    def restart(self) -> None:
        """A new batch begins."""
        self._most_calls = self.nfe
        self.calls = 0

    @property
    def nfe(self) -> int:
        """What each sample went through: the largest number of evaluations over the batches."""
        return max(self._most_calls, self.calls)

    def evaluate(self, x_t: Tensor, inputs: Inputs, condition: Any, call: Callable[..., Any] | None = None) -> Any:
        """``model.output``, or another way to ``call`` the network once."""
        call = call or self.model.output
        self.calls += 1
        if self.on_cuda:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            y = call(x_t, inputs, condition)
            after.record()
            self._events.append((before, after))
            return y
        start = time.perf_counter()
        y = call(x_t, inputs, condition)
        self._elapsed += time.perf_counter() - start
        return y

    def seconds(self) -> float:
        if self._events:
            torch.cuda.synchronize()
            self._elapsed += sum(before.elapsed_time(after) for before, after in self._events) / 1000
            self._events = []
        return self._elapsed


class FiniteWatch:
    """One number per step whose finiteness is the state's; read on the host every few steps only."""

    def __init__(self, grid: Tensor, enabled: bool) -> None:
        self.grid = grid
        self.enabled = enabled
        self.first = 0
        self.sums: list[Tensor] = []

    def __call__(self, step: int, x: Tensor) -> None:
        if not self.enabled:
            return
        if not self.sums:
            self.first = step
        self.sums.append(x.sum())
        if len(self.sums) == _STEPS_BETWEEN_READS:
            self.read()

    def read(self) -> None:
        """Raise if a state since the last reading was not finite."""
        if not self.sums:
            return
        finite = torch.stack(self.sums).isfinite().tolist()
        self.sums = []
        if not all(finite):
            step = self.first + finite.index(False)
            last = len(self.grid) - 1
            where = "the final Tweedie step" if step == last else f"the step to t={self.grid[step + 1].item():.6g}"
            raise NonFiniteError(
                f"the state is not finite after {where}",
                step=step,
                t=self.grid[min(step, last)].item(),
                remedy="Look for NaN in the network's weights or output; a finer grid helps if the solver diverged.",
            )
