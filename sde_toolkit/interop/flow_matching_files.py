"""Checkpoints of flow matching around a network of the caller: flow_matching's image example, and torchcfm's.

    file                                              ema                            raw
    flow_matching: model, optimizer, lr_schedule      model.shadow_params.i          model.model.*
    torchcfm: net_model, ema_model, optim, sched      ema_model.*                    net_model.*

``shadow_params.i`` have no names: they are in the order of the network's parameters. Both codes have x = t x_1 +
(1 − t) x_0 with data at t = 1, and their network answers with x_1 − x_0.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.interop.loading import Reader
from sde_toolkit.interop.state_dicts import check_weights_name, content_of, fill, peek, tensors_under
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.transforms import Transform

__all__ = ["READER", "TimeFirst"]

_FLOW_MATCHING = {"model", "optimizer", "lr_schedule", "epoch"}
_TORCHCFM = {"net_model", "ema_model"}
_SHADOW = "shadow_params."


class TimeFirst(nn.Module):
    """A network whose arguments are (t, x), as torchcfm's are, called with (x, t)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, **condition: Any) -> Any:
        """What ``network(time, x, **condition)`` answers."""
        return self.network(time, x, **condition)


def _recognises(path: Path) -> bool:
    names = peek(path).keys()
    return names >= _FLOW_MATCHING or names >= _TORCHCFM


def _read(
    path: Path,
    *,
    network: nn.Module | None = None,
    weights: Literal["ema", "raw"] = "ema",
    condition_name: str | None = None,
    transform: Transform | None = None,
    sigma_data: float = 1.0,
    event_shape: tuple[int, ...] | None = None,
) -> ScoreModel:
    """The velocity in a checkpoint, on :class:`~sde_toolkit.FlowMatching`.

    Args:
        path: the file.
        network: the network that was trained, built as for training. Its arguments are (x, t), or named t and x.
        weights: the moving average or the raw weights.
        condition_name: its argument for a condition. None: ``extra``, ``label`` or ``y``, whichever it has.
        transform, sigma_data, event_shape: of ``ScoreModel``. Both codes train on images in [−1, 1].
    """
    check_weights_name(weights)
    if network is None:
        problem = "the file holds weights, and nothing of the network that they belong to"
        raise ArgumentError("network", None, problem, "Build it as for training, and pass it.")
    found = content_of(path)
    fill(network, _tensors(found, weights, network, path), path)
    arguments = list(inspect.signature(network.forward).parameters)
    if condition_name is None:
        condition_name = next((name for name in ("extra", "label", "y") if name in arguments), "condition")
    called = TimeFirst(network) if arguments[:2] == ["t", "x"] else network
    options: dict[str, Any] = {"transform": transform, "sigma_data": sigma_data, "event_shape": event_shape}
    return ScoreModel.from_velocity(called, noise_at=0, condition_name=condition_name, **options).eval()


def _tensors(found: Mapping[Any, Any], weights: str, network: nn.Module, path: Path) -> dict[str, Tensor]:
    """The chosen tensors under the names of the network."""
    if found.keys() >= _TORCHCFM:
        return tensors_under(found["ema_model" if weights == "ema" else "net_model"], "", path)
    state = found["model"]
    averaged = isinstance(state, Mapping) and any(str(name).startswith(_SHADOW) for name in state)
    if not averaged and weights == "ema":
        problem, remedy = "it was trained without a moving average", 'Pass weights="raw".'
        raise CheckpointError(path, problem, remedy)
    tensors = tensors_under(state, "model." if averaged else "", path)
    if weights == "raw":
        return tensors
    shadows = tensors_under(state, _SHADOW, path)
    names = [name for name, p in network.named_parameters() if p.requires_grad or len(shadows) == _count(network)]
    if len(names) != len(shadows):
        problem = f"it has {len(names)} parameters, the moving average in {path.name} {len(shadows)}"
        raise ArgumentError("network", type(network).__name__, problem, "Build it with the options of training.")
    try:
        return {**tensors, **{name: shadows[str(place)] for place, name in enumerate(names)}}
    except KeyError as error:
        raise CheckpointError(path, f"its moving average lacks {_SHADOW}{error.args[0]}", "Copy it again.") from None


def _count(network: nn.Module) -> int:
    return sum(1 for _ in network.parameters())


READER = Reader("checkpoints of flow_matching and torchcfm", _recognises, _read)
