"""What score models that wrap another one have in common: its network, its transform, its event shape."""

from __future__ import annotations

from typing import Any

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.descriptions import plain_data
from sde_toolkit.models.prediction import Kind
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["Wrapper"]


class Wrapper(ScoreModel):
    """A score model whose network is a score model; its SDE and its parameterisation too, where none is given.

    Raises:
        ArgumentError: if ``model`` is not a score model.
    """

    network: ScoreModel

    def __init__(self, model: ScoreModel, sde: SDE | None = None, prediction: Kind | None = None) -> None:
        if not isinstance(model, ScoreModel):
            raise ArgumentError("model", model, "not a ScoreModel", "Wrap the network: ScoreModel(network, sde, ...).")
        super().__init__(
            model,
            model.sde if sde is None else sde,
            "x0",  # allowed under every SDE; what is true follows
            time_input=model.time_input,
            sigma_data=model.sigma_data,
            transform=model.transform,
            event_shape=model.event_shape,
        )
        self.prediction = model.prediction if prediction is None else prediction
        self.train(model.training)

    def description(self) -> dict[str, Any]:
        """What it is, for the record of a result: the wrapper, and the model inside."""
        return {"wrapper": type(self).__qualname__, **plain_data(self.settings()), **super().description()}

    def settings(self) -> dict[str, Any]:
        """What the wrapper was given besides the model, by name."""
        return {}

    def check_savable(self) -> None:
        """A checkpoint holds the model inside.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            "model",
            type(self).__name__,
            "a wrapped model is not written to a checkpoint",
            "Save the model inside, .network, and wrap it again after loading.",
        )
