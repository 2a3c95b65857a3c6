"""One update of the weights: passes, clipping, optimizer. The host never waits for the device."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.training.feeding import PassInputs
from sde_toolkit.training.logbook import Tally

__all__ = ["Update"]


@dataclass
class Update:
    """An update as it is, kernel after kernel.

    Args:
        objective: the :class:`~sde_toolkit.training.objective.Objective`, as accelerate prepared it.
        weights: the parameters that are trained.
        optimizer: torch's. ``prepared_optimizer``: the same, as accelerate prepared it.
        passes: number of passes of one update.
        max_gradient_norm: larger gradients are scaled down to it.
        tally: receives losses, norms and skipped steps.
    """

    objective: nn.Module
    weights: list[Tensor]
    optimizer: torch.optim.Optimizer
    prepared_optimizer: Any
    passes: int
    max_gradient_norm: float
    tally: Tally
    accelerator: Any

    def __post_init__(self) -> None:
        self.loss = torch.zeros((), device=self.tally.edges.device)
        # accelerate's own calls add checks of every step that one process without a scaler does not need
        self._alone = self.accelerator.scaler is None and self.accelerator.distributed_type == "NO"

    def add_pass(self, inputs: PassInputs, last: bool) -> None:
        """Add the gradient of a pass. ``last``: whether it is the last one of the update."""
        together = contextlib.nullcontext() if last or self._alone else self.accelerator.no_sync(self.objective)
        with together:
            mean, losses = self.objective(inputs)
            value = mean if self.passes == 1 else mean / self.passes
            if self._alone:
                value.backward()
            else:
                self.accelerator.backward(value)
        self.loss += value.detach()
        self.tally.add_losses(losses, inputs.lambdas)

    def finish(self) -> None:
        """Clip the gradient and change the weights. If it is not finite, weights and optimizer stay as they are."""
        clip = torch.nn.utils.clip_grad_norm_ if self._alone else self.accelerator.clip_grad_norm_
        norm = clip(self.weights, self.max_gradient_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients
        bad = (norm < math.inf).logical_not()  # infinite, or NaN
        if self.accelerator.scaler is None:  # torch's fused Adam leaves everything as it is where found_inf is 1
            self.optimizer.grad_scale, self.optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
        (self.optimizer if self._alone else self.prepared_optimizer).step()
        self.clear_gradients()
        self.tally.add_step(self.loss, norm, bad)
        self.loss.zero_()

    def clear_gradients(self) -> None:
        """Begin the next update."""
        self.optimizer.zero_grad(set_to_none=True)
