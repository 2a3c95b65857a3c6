"""The loss of a batch as one module, which data-parallel wrappers can take, and the checks of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sde_toolkit.data import Augmentation, Dataset
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.networks import Condition
from sde_toolkit.networks.inside import hyperparameters_of
from sde_toolkit.ranges import check_range
from sde_toolkit.sampling.arguments import check_model
from sde_toolkit.sde import SDE
from sde_toolkit.training.batches import ReadInputs, check_labels
from sde_toolkit.training.feeding import PassInputs, sent

__all__ = ["Loss", "Objective", "Times", "check_augmentation", "check_training_data", "modes_kept"]


class Loss(Protocol):
    """The loss of each sample, shape (B,): :mod:`sde_toolkit.losses`."""

    def __call__(self, model: ScoreModel, x_0: Tensor, t: Tensor, noise: Tensor, condition: Any = None) -> Tensor: ...


class Times(Protocol):
    """Maps uniform u (B,) to training times t (B,) and importance weights (B,)."""

    def __call__(self, sde: SDE, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]: ...


class Objective(nn.Module):
    """Maps a batch to its mean loss and the loss (B,) of each sample: it perturbs them, and calls network and loss.

    Times are found on the host, before the batch is sent to the device (:meth:`prepared`): they are a few numbers, and
    a distribution of times may compute with them as it likes.
    """

    times: Times

    def __init__(
        self, model: ScoreModel, loss: Loss, times: Times, t_min: float, augmentation: Augmentation | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.__dict__["times"] = times  # no submodule, even if it is one: it works on the host
        self.t_min = t_min
        self.augmentation = augmentation
        self._compiled: Callable[[PassInputs], tuple[Tensor, Tensor]] | None = None

    def compile_passes(self, **how: Any) -> None:
        """Compile the passes of training, as one graph if the parts allow it. ``how``: of ``torch.compile``.

        Evaluation stays as it is: its batches have other sizes, and each size would be compiled.
        """
        self._compiled = torch.compile(self._loss_of, **how)

    def prepared(self, read: ReadInputs, device: torch.device | str) -> PassInputs:
        """The inputs of a pass, on a device, with their times, λ and noise. The host does not wait for the device."""
        sde = self.model.sde
        t, importance = self.times(sde, read.u, self.t_min)
        t, importance, lambdas = (sent(part, device) for part in (t, importance, sde.half_log_snr(t)))
        others = (None if part is None else sent(part, device) for part in (read.labels, read.uniform, read.normal))
        return PassInputs(sent(read.x, device), t, importance, lambdas, read.noise.on(device), *others)

    def forward(self, inputs: PassInputs) -> tuple[Tensor, Tensor]:
        """The mean loss, and the losses (B,) without a gradient."""
        run = self._loss_of if self._compiled is None or not self.training else self._compiled
        return run(inputs)

    def _loss_of(self, inputs: PassInputs) -> tuple[Tensor, Tensor]:
        """The data are mapped to model space here, on the device of the inputs."""
        x_0 = self.model.transform.forward(inputs.x).to(torch.float32)
        x_0, condition = self._augmented(x_0, inputs)
        losses = self.loss(self.model, x_0, inputs.t, inputs.noise, condition)
        losses = inputs.importance.to(losses.dtype) * losses
        return losses.mean(), losses.detach()

    def _augmented(self, x_0: Tensor, inputs: PassInputs) -> tuple[Tensor, Any]:
        if self.augmentation is None or inputs.uniform is None or not self.training:
            return x_0, inputs.labels
        normal = x_0.new_zeros(len(x_0), 0) if inputs.normal is None else inputs.normal
        x_0, described = self.augmentation(x_0, inputs.uniform.to(x_0.dtype), normal)
        return x_0, inputs.labels if described is None else Condition(inputs.labels, described)


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """At the end of the block, put every module inside back into the mode (training, evaluation) that it had."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def check_augmentation(model: ScoreModel, augmentation: Augmentation | None) -> None:
    """Refuse an augmentation whose description the network does not take.

    Raises:
        ArgumentError: if a network of this package was built for another ``augmentation_width``.
    """
    width = 0 if augmentation is None else augmentation.width
    known = hyperparameters_of(model.network)
    takes = known.get("augmentation_width")
    if width and known and takes != width:
        problem = f"it describes what it did to a sample by {width} numbers, but the network takes {takes or 'none'}"
        raise ArgumentError(
            "augmentation", augmentation, problem, f"Build the network with augmentation_width={width}."
        )


_RANGE_SAMPLES = 256  # samples that the check of the range reads


def check_training_data(model: ScoreModel, dataset: Dataset) -> None:
    """Refuse data that this model cannot be trained on. Warn of data whose range is probably not the declared one.

    Raises:
        ArgumentError: if the model has no parameters to train.
        DataError: if ``dataset`` is not a ``Dataset``, has no training samples, holds NaN or infinity, has another
            event shape, has values outside of the range of the model's transform, or labels are missing or out of
            range.
    """
    if not isinstance(dataset, Dataset):
        problem = f"{type(dataset).__name__} is not a Dataset of this package"
        remedy = (
            'Wrap the tensors: sde_toolkit.data.Dataset("mine", train=x, test=x_test); tensors are (N, *event_shape).'
        )
        raise DataError("dataset", dataset, problem, remedy)
    check_model(model)
    if not any(p.requires_grad for p in model.parameters()):
        problem = "it has no parameters to train"
        raise ArgumentError("model", type(model.network).__name__, problem, "Pass a network that is a torch.nn.Module.")
    if dataset.stream is None and len(dataset.train) == 0:
        raise DataError("dataset", dataset.name, "it has no training samples", "Pass a data set that has some.")
    if model.event_shape is not None and dataset.event_shape != model.event_shape:
        problem = f"its samples have shape {dataset.event_shape}, the model's {model.event_shape}"
        raise DataError("dataset", dataset.name, problem, f"Build the model with event_shape={dataset.event_shape}.")
    for name, values in (("train", dataset.train), ("test", dataset.test)):
        if isinstance(values, Tensor) and values.is_floating_point() and not bool(values.isfinite().all()):
            raise DataError(f"dataset.{name}", dataset.name, "it holds NaN or infinity", "Remove these samples.")
    remedy = "Build the model with the transform that fits these data, such as dataset.transform."
    parts = (
        ("train", dataset.sample(_RANGE_SAMPLES), dataset.transform),
        ("test", dataset.test[:_RANGE_SAMPLES], None),
    )
    for name, values, recommended in parts:
        check_range(model.transform, values, recommended, name=f"dataset.{name}", remedy=remedy)
    classes = model.num_classes
    if not classes:
        return
    test_labelled = dataset.test_labels is not None or len(dataset.test) == 0
    _check_labels_of(dataset, "train", dataset.labelled, dataset.train_labels, classes)
    _check_labels_of(dataset, "test", test_labelled, dataset.test_labels, classes)


def _check_labels_of(dataset: Dataset, part: str, labelled: bool, labels: Tensor | None, classes: int) -> None:
    argument = f"dataset.{part}_labels"
    if not labelled:
        problem = f"the network is class-conditional (num_classes={classes}), but {dataset.name} has no labels"
        raise DataError(argument, None, problem, "Pass labels, or build the network with num_classes=None.")
    if labels is not None and len(labels):
        check_labels(argument, dataset.name, labels, classes)
