"""``conditional=true`` of ``sde-toolkit train``: the classes of the data, and how often a label is hidden."""

from __future__ import annotations

from omegaconf import DictConfig

from sde_toolkit.cli.setup import switch
from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError, DataError

__all__ = ["fill_in_classes"]

_HIDDEN = 0.1  # of the labels, as usual for classifier-free guidance (Ho & Salimans 2022)


def fill_in_classes(config: DictConfig, dataset: Dataset) -> None:
    """With ``conditional``, set ``network.num_classes`` to the number of classes of the data where it is null.

    ``options.label_dropout`` is set where it is null: 0.1 with ``conditional``, 0 without.

    Raises:
        DataError: with ``conditional``, for data without labels, and for a stream that does not name its classes.
        ArgumentError: with ``conditional``, for a network that takes no classes.
    """
    conditional = switch(config, "conditional")
    if config.options.label_dropout is None:
        config.options.label_dropout = _HIDDEN if conditional else 0.0
    if not conditional:
        return
    if not dataset.labelled:
        remedy = "Choose data with labels (docs/data.md), or conditional=false."
        raise DataError("conditional", True, f"{dataset.name} has no labels", remedy)
    if "num_classes" not in config.network:
        remedy = "Choose one that has num_classes: network=unet, for example."
        raise ArgumentError("conditional", True, "this network takes no classes", remedy)
    if config.network.num_classes is None:
        config.network.num_classes = _number_of_classes(dataset)


def _number_of_classes(dataset: Dataset) -> int:
    """As many as the data name, and as their largest label needs."""
    named = len(dataset.classes or ())
    largest = [
        int(part.max()) for part in (dataset.train_labels, dataset.test_labels) if part is not None and len(part)
    ]
    if not named and dataset.stream is not None:
        remedy = "Give network.num_classes: the number of classes."
        raise DataError(
            "conditional", True, f"the stream of {dataset.name} does not say how many classes it has", remedy
        )
    return max([named, *(label + 1 for label in largest)])
