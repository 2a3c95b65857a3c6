"""An update of the weights as two CUDA graphs: one of a pass, one of clipping and optimizer.

A small network spends most of a step on launching kernels. A recorded pass launches once, however many kernels it has.
The recordings have tensors of their own: the inputs are copied into them, gradients and sums stay where they are, and
the learning rate is a tensor. Kernels are those of the update as it is, so that its results are, too; dropout draws
from the seed of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sde_toolkit.errors import ArgumentError
from sde_toolkit.sampling.cuda_graphs import (
    CUDA_GRAPH,
    Launch,
    cannot_be_recorded,
    on_recording_stream,
    record_kernels,
    tensors_in,
)
from sde_toolkit.training.feeding import PassInputs
from sde_toolkit.training.options import TrainingOptions
from sde_toolkit.training.update import Update

__all__ = ["RecordedUpdate", "check_recorded"]

_WARM_UPS = 3  # updates before the recording: libraries choose their kernels, and the optimizer makes its state


def check_recorded(options: TrainingOptions, accelerator: Any) -> None:
    """Refuse to record where a CUDA graph cannot be made, or would not hold the whole update.

    Raises:
        ArgumentError: without a CUDA device, for several processes, and for float16.
    """
    if options.compile != CUDA_GRAPH:
        return
    if accelerator.device.type != "cuda":
        problem, remedy = f"it needs a CUDA device, and this run is on {accelerator.device}", "Pass compile=False."
    elif accelerator.distributed_type != "NO":
        problem, remedy = "the processes exchange gradients in the middle of an update", "Pass compile=True."
    elif accelerator.scaler is not None:
        problem, remedy = "the scale of float16 changes from step to step", 'Pass precision="bfloat16".'
    else:
        return
    raise ArgumentError("compile", options.compile, problem, remedy)


@dataclass
class RecordedUpdate(Update):
    """An update that is recorded after three that run as they are.

    Raises:
        ArgumentError: when it is recorded, if the network or the loss waits for the device.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._done = 0
        self._inputs: PassInputs | None = None
        self._repeat_pass, self._repeat_end = _unrecorded, _unrecorded

    @property
    def _warm(self) -> bool:
        return self._done >= _WARM_UPS

    def add_pass(self, inputs: PassInputs, last: bool) -> None:
        if not self._warm:
            with on_recording_stream(self.loss.device):
                super().add_pass(inputs, last)
            return
        if self._inputs is None:
            own: tuple[Any, ...] = tuple(None if part is None else part.clone() for part in inputs)
            self._inputs = PassInputs(*own)
            self._settle()
            self._repeat_pass = self._recorded(partial(Update.add_pass, self, self._inputs, True))
        torch._foreach_copy_(tensors_in(self._inputs), tensors_in(inputs))
        self._repeat_pass()

    def finish(self) -> None:
        if not self._warm:
            with on_recording_stream(self.loss.device):
                super().finish()
            self._done += 1
            return
        if self._repeat_end is _unrecorded:
            self._repeat_end = self._recorded(partial(Update.finish, self))
        self._repeat_end()

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self._warm)

    def _recorded(self, work: Callable[[], None]) -> Launch:
        remedy = "Pass compile=True or False; or keep network and loss from reading the device: no .item(), no if."
        with cannot_be_recorded("the update", remedy):
            return record_kernels(work, self.loss.device)

    def _settle(self) -> None:
        """Give the gradients and the learning rate their tensors."""
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(float(group["lr"]), device=self.loss.device)
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)


def _unrecorded() -> None:
    """In the place of a recording that is not made yet."""
