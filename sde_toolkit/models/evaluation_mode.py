"""One rule for everything that evaluates a network: the same question has one answer, and no sample sees its batch.

Training mode by itself is accepted. These layers are refused before the first evaluation:

    dropout of every kind, in attention and recurrent layers too; RReLU    in training mode: they draw random numbers
    BatchNorm                        in training mode, or without running statistics: it sees the batch
    InstanceNorm                     in training mode with running statistics: they change with every evaluation

They are found inside networks that are functions, too (:mod:`sde_toolkit.models.inspection`). What is not a layer, such
as the function ``torch.nn.functional.dropout``, shows at the first evaluation: a network that draws from torch's global
random numbers there is refused then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.inspection import modules_of, name_of

__all__ = ["check_evaluation_mode", "refuse_random_numbers"]

_MANY_ANSWERS = "so that the same question has many answers"


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse layers that draw random numbers, or that let a sample see its batch.

    Raises:
        ArgumentError: naming the layer.
    """
    for name, layer in modules_of(model, "model"):
        problem = _problem(layer)
        if problem is not None:
            raise ArgumentError(name, type(layer).__name__, problem, _remedy(model, layer))


def _remedy(model: nn.Module, layer: nn.Module) -> str:
    if not layer.training:
        return "model.eval() does not help: build it with track_running_stats=True, or use GroupNorm."
    if any(layer is known for known in model.modules()):
        return "Call model.eval() first."
    return "model.eval() does not reach into a function: call .eval() of the module itself first."


def _problem(layer: nn.Module) -> str | None:
    """What makes the answers of this layer depend on chance or on the batch."""
    if layer.training and _drops(layer):
        kind = "dropout" if not isinstance(layer, nn.RReLU) else "it"
        return f"in training mode {kind} draws random numbers, {_MANY_ANSWERS}"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
        return "it normalises with the samples of the batch, so that a sample depends on its neighbours"
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.training and layer.track_running_stats:
        return "in training mode every evaluation changes its running statistics"
    return None


def _drops(layer: nn.Module) -> bool:
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, nn.RReLU):
        return layer.lower < layer.upper
    if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)):
        return layer.dropout > 0
    return False


@contextmanager
def refuse_random_numbers(device: torch.device, network: Any) -> Iterator[None]:
    """Refuse ``network`` if its evaluation in this context draws from torch's global random numbers.

    Their states are kept on the host, so that nothing waits for the device.

    Raises:
        ArgumentError: naming the network.
    """
    before = _states(device)
    yield
    if any(not torch.equal(*pair) for pair in zip(before, _states(device), strict=True)):
        problem = f"it draws random numbers of its own, {_MANY_ANSWERS}"
        remedy = "If this is dropout, call model.eval() first. If it draws weights at its first call, call it before."
        raise ArgumentError("model.network", name_of(network), problem, remedy)


def _states(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        states.append(torch.cuda.get_rng_state(device))
    return states
