"""A model in a folder: its description and its weights, written and read back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from sde_toolkit.models import checkpoint
from sde_toolkit.sde import SDE, Time
from sde_toolkit.transforms import Transform

__all__ = ["Savable"]

Model = TypeVar("Model", bound="Savable")


class Savable(nn.Module):
    """What can be written into a folder, and rebuilt from it without further words."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Everything but the weights, as plain data: what ``model.yaml`` holds."""

    def check_savable(self) -> None:
        """Refuse a model that cannot be written to a checkpoint. Training calls this before its first step.

        Raises:
            ArgumentError: naming the argument of a part, or the tensor, that cannot be written.
        """
        checkpoint.check_writable(self.description(), checkpoint.state_of(self))

    def save_pretrained(self, directory: str | Path, weights: Literal["ema", "raw"] = "ema") -> None:
        """Write the model into a folder that :meth:`from_pretrained` reads, its weights under the name ``weights``.

        Numbers of numpy and torch in the arguments of its parts are written as plain numbers. If the network is
        compiled or parallel, the network inside is written.

        Raises:
            ArgumentError: for what cannot be written, before the folder is touched.
        """
        self.check_savable()
        checkpoint.save(directory, self.description(), {weights: checkpoint.state_of(self)})

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | Path,
        *,
        weights: Literal["ema", "raw"] = "ema",
        network: nn.Module | None = None,
        sde: SDE | None = None,
        time_input: Callable[[SDE, Time], Tensor] | None = None,
        transform: Transform | None = None,
    ) -> Model:
        """Rebuild a model, in evaluation mode, from a checkpoint folder or an embedded name such as ``"mnist"``.

        ``weights`` chooses the moving average or the raw weights. The other arguments replace parts of the description;
        parts that are not classes of this package must be passed. Floating-point weights are rounded to the precision
        of the network; other kinds of numbers are refused.

        Raises:
            CheckpointError: if the folder is missing, truncated, foreign, or does not fit.
        """
        directory = checkpoint.locate(path)
        own = {"network": network, "sde": sde, "time_input": time_input, "transform": transform}
        parts = checkpoint.model_arguments(directory, weights, **own)
        model = cls(**parts)
        checkpoint.load_weights(directory, model, weights)
        return model.eval()
