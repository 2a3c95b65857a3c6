"""``guidance=3`` and ``interval=[0.2,5]``: classifier-free guidance of the commands that draw or judge samples."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import classifier_free
from sde_toolkit.models.score_model import ScoreModel

__all__ = ["guided_model", "guided_models"]


def guided_model(config: DictConfig, model: ScoreModel, labels: Tensor | None) -> ScoreModel:
    """The model under the one guidance of the configuration; itself without any.

    Raises:
        ArgumentError: as :func:`guided_models`; for several guidances.
    """
    found = guided_models(config, model, labels)
    if len(found) > 1:
        raise ArgumentError("guidance", list(config.guidance), "one is wanted here", "Use compare for several.")
    return next(iter(found.values()), model)


def guided_models(config: DictConfig, model: ScoreModel, labels: Tensor | None) -> dict[str, ScoreModel]:
    """The model under every guidance of the configuration by the name of its rows; none without any.

    Raises:
        ArgumentError: for a network without classes, or whose class is not given; for a guidance that is not a number;
            for an interval without a guidance, and one that is none.
    """
    given, interval = config.guidance, config.interval
    if given is None:
        if interval is not None:
            remedy = "Give guidance=3, for example, or leave interval out."
            raise ArgumentError("interval", interval, "it says where guidance acts, and there is no guidance", remedy)
        return {}
    scales = list(given) if isinstance(given, ListConfig) else [given]
    if not scales or not all(map(is_number, scales)) or len(set(scales)) != len(scales):
        raise ArgumentError("guidance", given, "not a number, or different numbers", "Give guidance=3, or [1,2,4].")
    if model.num_classes is None:
        remedy = "Leave it out, or choose a network with classes, such as model=digits_classes."
        raise ArgumentError("guidance", given, "the network was built without classes", remedy)
    if labels is None:
        remedy = "Give class=3, for example, or leave guidance out."
        raise ArgumentError("guidance", given, "it leads away from samples without a class, towards one", remedy)
    levels: Any = tuple(interval) if isinstance(interval, ListConfig) else interval
    return {f"guidance={scale:g}": classifier_free(model, scale, levels) for scale in scales}
