"""From what is read to what a pass takes: a data set kept on the device, and copies that no step waits for.

On a CUDA device a batch is copied from pinned memory on a stream of its own, and its noise is drawn there, while the
step before it still runs. On the CPU nothing is copied, and nothing is done ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError

__all__ = ["KeptSamples", "PassInputs", "fed", "kept_samples", "sent"]

_MOST_IN_FLIGHT = 8  # passes that the host may be ahead of the device: the memory of each is held until it has run
_LARGEST_SHARE = 4  # a data set is kept on its own if it takes at most one of so many parts of the device's free memory


class PassInputs(NamedTuple):
    """What one forward pass of n samples needs, on the device of the network.

    ``x`` (n, *event) in data space. ``t``, ``importance`` and ``lambdas``, (n,): times, their importance weights, λ.
    ``noise`` (n, *event). ``labels`` (n,), and the draws ``uniform`` and ``normal`` of the augmentation, (n, k) each,
    may be None.
    """

    x: Tensor
    t: Tensor
    importance: Tensor
    lambdas: Tensor
    noise: Tensor
    labels: Tensor | None
    uniform: Tensor | None
    normal: Tensor | None


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on a device. The host does not wait for the copy: it is made from pinned memory."""
    device = torch.device(device)
    if values.device.type == device.type:
        return values
    if device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class KeptSamples:
    """Samples (N, *event) that stay on a device, in their own dtype. They are indexed there."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.values = values.to(device)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The samples at ``index`` (n,), int64 on the CPU."""
        return self.values.index_select(0, sent(index, self.values.device))


def kept_samples(dataset: Dataset, device: torch.device, wanted: bool | None) -> KeptSamples | None:
    """The training samples on the device; None if they are read batch by batch.

    ``wanted``: the option ``data_on_device``.

    Raises:
        ArgumentError: if they are wanted there, but are not one tensor in memory.
    """
    values = dataset.train
    if dataset.stream is not None or not isinstance(values, Tensor):
        if wanted:
            problem = f"the samples of {dataset.name} are read when they are needed"
            remedy = "Leave it out, and let options.workers read ahead; or load the samples as one tensor."
            raise ArgumentError("data_on_device", wanted, problem, remedy)
        return None
    if wanted is None:
        wanted = device.type == "cuda" and _LARGEST_SHARE * values.nbytes <= torch.cuda.mem_get_info(device)[0]
    return KeptSamples(values, device) if wanted else None


def fed(
    read: Generator[Any, None, None], prepared: Callable[[Any], PassInputs], device: torch.device, *, ahead: bool
) -> Generator[PassInputs, None, None]:
    """``prepared(batch)`` for every batch read. With ``ahead``, on a CUDA device, one batch is prepared in advance."""
    try:
        if ahead and device.type == "cuda":
            yield from _one_ahead(read, prepared, device)
        else:
            for batch in read:
                yield prepared(batch)
    finally:
        read.close()


def _one_ahead(
    read: Iterator[Any], prepared: Callable[[Any], PassInputs], device: torch.device
) -> Generator[PassInputs, None, None]:
    aside, waiting = torch.cuda.Stream(device), None
    begun: deque[Any] = deque()  # events, one for each pass that has been given out
    for batch in read:
        if len(begun) == _MOST_IN_FLIGHT:
            begun.popleft().synchronize()
        with torch.cuda.stream(aside):
            following = prepared(batch), aside.record_event()
        if waiting is not None:
            yield _claimed(*waiting)
            begun.append(torch.cuda.current_stream(device).record_event())
        waiting = following
    if waiting is not None:
        yield _claimed(*waiting)


def _claimed(inputs: PassInputs, ready: Any) -> PassInputs:
    """Inputs of another stream, for the present one: it waits for them, and their memory is not reused before."""
    here = torch.cuda.current_stream()
    here.wait_event(ready)
    for part in inputs:
        if part is not None:
            part.record_stream(here)
    return inputs
