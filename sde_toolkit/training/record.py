"""The description of a run: everything that decides its weights, as plain data (``run.yaml``)."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from sde_toolkit.data import Dataset
from sde_toolkit.jobs.fingerprints import digest, fingerprint_data, tensor_digest
from sde_toolkit.training.draws import NOISE_VERSION
from sde_toolkit.training.objective import Objective
from sde_toolkit.training.options import TrainingOptions
from sde_toolkit.training.trial import held_numbers, try_parts

__all__ = ["describe_run", "free_keys"]

_FREE = (
    *("log_every", "evaluate_every", "checkpoint_every", "keep", "patience"),
    *("compile", "tf32", "channels_last", "data_on_device", "workers", "pass_size"),
)
_LOOKED_AT = 64  # samples of each part that identify a data set


def free_keys(dataset: Dataset, options: TrainingOptions) -> Set[str]:
    """The options that may differ between a checkpoint and the run that continues from it.

    They say how often the run logs, evaluates and saves, when it gives up, how it is computed on a device, and how the
    work is divided (not for streams, whose order depends on it). The number of steps is free if neither the learning
    rate nor an average depends on it.
    """
    free = set(_FREE)
    if dataset.stream is not None:
        free -= {"workers", "pass_size"}
    if not options.cosine_decay and not options.power_averages:
        free.add("steps")
    return {f"options.{name}" for name in free}


def describe_run(objective: Objective, dataset: Dataset, options: TrainingOptions) -> dict[str, Any]:
    """The options, the loss, the data (by some of their samples) and the model (by its description and shapes).

    A part of the user's own is described by its class only. Therefore the answers of the parts on a few values, and the
    numbers that the loss holds, are written too.
    """
    model = objective.model
    parts = {
        "options": options,
        "loss": objective.loss,
        "times": objective.times,
        "augmentation": objective.augmentation,
        "t_min": objective.t_min,
        "noise_version": NOISE_VERSION,
        "data": _describe_data(dataset),
        "model": model.description(),
        "held": {"loss": held_numbers(objective.loss)},
        "behaviour": try_parts(objective, dataset),
        "shapes": digest({name: list(value.shape) for name, value in model.state_dict().items()}),
    }
    return {name: fingerprint_data(part) for name, part in parts.items()}


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    stream = dataset.stream
    test = dataset.test[: min(_LOOKED_AT, len(dataset.test))]
    return {
        "name": dataset.name,
        "samples": len(dataset.train) if stream is None else "a stream",
        "event_shape": list(dataset.event_shape),
        "labelled": dataset.labelled,
        "stream": {name: getattr(stream, name, None) for name in ("seed", "buffer")},
        "notes": dataset.notes,
        "train": tensor_digest(dataset.sample(_LOOKED_AT)),
        "test": tensor_digest(test),
    }
