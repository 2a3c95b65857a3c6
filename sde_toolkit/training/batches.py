"""The samples that a step sees, and their random numbers. They depend on the number of the step, not on earlier steps.

With batch size B, step k takes the positions k B, …, k B + B − 1 of an endless sequence of epochs. Every epoch has an
order of its own. Process r of R takes the r-th contiguous share of a batch, in passes of equal size. Reading ahead in
other processes changes nothing. (The samples of a stream are those that follow its present place.)
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sde_toolkit.data import Dataset, ParallelStream, Stream
from sde_toolkit.data.parallel import outlive_signals
from sde_toolkit.errors import DataError, SDEToolkitError
from sde_toolkit.losses import low_discrepancy
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose
from sde_toolkit.training.draws import UndrawnNoise, epoch_order
from sde_toolkit.training.feeding import KeptSamples

__all__ = [
    "Portion",
    "ReadInputs",
    "Recipe",
    "check_labels",
    "held_out_inputs",
    "inputs_from_data",
    "inputs_from_stream",
    "share_of_stream",
]


class ReadInputs(NamedTuple):
    """What is read for one forward pass of n samples: x (n, *event) in data space, u (n,), and the noise to be drawn.

    ``labels`` (n,), and the draws ``uniform`` and ``normal`` of the augmentation, (n, k) each, may be None. All are on
    the CPU, except for x if the data set is kept on the device.
    """

    x: Tensor
    u: Tensor
    noise: UndrawnNoise
    labels: Tensor | None
    uniform: Tensor | None
    normal: Tensor | None


class Portion(NamedTuple):
    """The samples ``first``, …, ``first + n − 1`` of the batch of a step."""

    step: int
    first: int
    n: int


@dataclass(frozen=True)
class Recipe:
    """How the random numbers of a sample are drawn: its time, noise, augmentation, and whether its label is hidden."""

    seed: int
    batch_size: int
    low_discrepancy: bool = True
    uniforms: int = 0
    normals: int = 0
    label_dropout: float = 0.0
    no_class: int | None = None

    def complete(self, portion: Portion, x: Tensor, labels: Tensor | None) -> ReadInputs:
        """The samples of a portion with their times, noise and augmentation draws."""
        step, first, n = portion
        times = KeyedDraws(self.seed, Purpose.TRAINING_TIME)
        if self.low_discrepancy:
            offset = times.uniform(step, 0, (1, 1))
            u = low_discrepancy(self.batch_size, offset)[first : first + n]
        else:
            u = times.uniform(step, first, (n,))
        noise = UndrawnNoise(self.seed, step, first, tuple(x.shape))
        of_augmentation = KeyedDraws(self.seed, Purpose.TRAINING_AUGMENTATION)
        uniform = of_augmentation.uniform(step, first, (n, self.uniforms)) if self.uniforms else None
        normal = of_augmentation.normal(step, first, (n, self.normals)) if self.normals else None
        if labels is not None and self.label_dropout:
            hidden = KeyedDraws(self.seed, Purpose.TRAINING_LABEL).uniform(step, first, (n,)) < self.label_dropout
            labels = torch.where(hidden, self.no_class or 0, labels)
        return ReadInputs(x, u, noise, labels, uniform, normal)


@dataclass
class _Portions(torch.utils.data.Dataset[Any]):
    """A map from portions to batches, for torch's DataLoader and its reading processes."""

    source: Any
    labels: Tensor | None
    recipe: Recipe
    orders: dict[int, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, portion: Portion) -> ReadInputs | SDEToolkitError:
        """The inputs of a portion. An error is returned, not raised: torch would put a traceback into its message."""
        chosen = torch.from_numpy(self._chosen(portion))
        labels = None if self.labels is None else self.labels[chosen]
        try:
            return self.recipe.complete(portion, self.source[chosen], labels)
        except SDEToolkitError as error:
            return error

    def _chosen(self, portion: Portion) -> np.ndarray:
        size = len(self.source)
        positions = portion.step * self.recipe.batch_size + portion.first + np.arange(portion.n)
        chosen = np.empty(portion.n, np.int64)
        for epoch in np.unique(positions // size).tolist():
            here = positions // size == epoch
            chosen[here] = self._order(epoch)[positions[here] % size]
        return chosen

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:
            if len(self.orders) > 1:
                self.orders.pop(min(self.orders))
            self.orders[epoch] = epoch_order(self.recipe.seed, epoch, len(self.source))
        return self.orders[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "orders": {}}


def inputs_from_data(
    dataset: Dataset,
    recipe: Recipe,
    portions: Iterator[Portion],
    *,
    use_labels: bool,
    workers: int = 0,
    pin: bool = False,
    kept: KeptSamples | None = None,
) -> Generator[ReadInputs, None, None]:
    """The inputs of the given portions, in order.

    Args:
        workers: number of processes that read ahead.
        pin: whether their batches are copied to pinned memory.
        kept: the training samples, if they are kept on a device. Nothing is read ahead then.

    Raises:
        DataError: if a sample cannot be read.
    """
    labels = dataset.train_labels if use_labels else None
    source: Any = dataset.train if kept is None else kept
    read = _Portions(source, labels, recipe)
    batches: Iterable[ReadInputs | SDEToolkitError]
    if kept is not None or workers == 0:
        batches = (read[portion] for portion in portions)
    else:
        batches = DataLoader(
            read,
            batch_size=None,
            sampler=portions,
            num_workers=workers,
            pin_memory=pin,
            generator=torch.Generator(),  # without it the loader draws from the global one
            worker_init_fn=outlive_signals,
        )
    for batch in batches:
        if isinstance(batch, SDEToolkitError):
            raise batch
        yield batch


def share_of_stream(stream: Stream | None, workers: int, accelerator: Any) -> Stream | None:
    """This process's share of a stream. ``workers`` processes read ahead."""
    if stream is None:
        return None
    share = stream.shard(accelerator.process_index, accelerator.num_processes)
    return ParallelStream(share, workers) if workers else share


def inputs_from_stream(
    stream: Stream, recipe: Recipe, portions: Iterator[Portion], *, classes: int | None
) -> Generator[ReadInputs, None, None]:
    """The inputs of the given portions, from the present place of the stream. A batch is read when it is asked for.

    Raises:
        DataError: if a label is not one of the network's ``classes``.
    """
    for portion in portions:
        x, labels = stream.next_batch(portion.n)
        if classes and labels is not None:
            check_labels("dataset.stream", "the stream", labels, classes)
        yield recipe.complete(portion, x, labels if classes else None)


def check_labels(argument: str, owner: str, labels: Tensor, classes: int) -> None:
    """Refuse labels that are not classes of the network, 0 to ``classes`` − 1. ``owner``: what has these labels.

    Raises:
        DataError: naming the argument and the range of the labels.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        problem = f"labels of {owner} span {low}..{high}, the network has classes 0..{classes - 1}"
        remedy = f"Build the network with num_classes={high + 1} or more." if low >= 0 else "Number the labels from 0."
        raise DataError(argument, f"{low}..{high}", problem, remedy)


def held_out_inputs(
    dataset: Dataset, recipe: Recipe, count: int, size: int, rank: int, processes: int, *, use_labels: bool
) -> Iterator[ReadInputs]:
    """The first ``count`` test samples in batches of ``size``. This process takes every ``processes``-th batch.

    Times and noise depend on a sample's place only, so that the held-out loss changes with the network alone.
    """
    known = dataset.test_labels if use_labels else None
    for first in range(rank * size, count, processes * size):
        n = min(size, count - first)
        labels = None if known is None else known[first : first + n]
        yield recipe.complete(Portion(0, first, n), dataset.test[first : first + n], labels)
