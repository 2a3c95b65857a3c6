"""State dicts in files of ``torch.save``: looked at without reading their tensors, checked, put into networks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.tensors import load_torch_file, match_names, specs_of

__all__ = ["check_weights_name", "content_of", "fill", "peek", "tensors_under"]

_ENDINGS = (".pt", ".pth", ".ckpt", ".bin")
_RECORDS = (argparse.Namespace,)  # training scripts keep their options in one


def peek(path: Path) -> dict[Any, Any]:
    """What is in a file of ``torch.save``, no tensor read. Empty for every other file, and for no dictionary."""
    if path.suffix not in _ENDINGS or not path.is_file():
        return {}
    try:
        return content_of(path)
    except (CheckpointError, OSError):
        return {}


def content_of(path: Path) -> dict[Any, Any]:
    """The dictionary in a file of ``torch.save``. Its tensors are read when they are looked at.

    Raises:
        CheckpointError: for anything else, and for a file that holds objects of other classes.
    """
    found = load_torch_file(path, mapped=True, allowed=_RECORDS)
    if not isinstance(found, dict):
        raise CheckpointError(path, f"it holds a {type(found).__name__}, not a dictionary", "Is it the right file?")
    return found


def tensors_under(found: Any, prefix: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict whose names begin with ``prefix``, without it.

    Raises:
        CheckpointError: if there are none; for a tensor that has fewer numbers in the file than its shape says, or NaN
            and infinity.
    """
    state = found if isinstance(found, Mapping) else {}
    kept = {k[len(prefix) :]: v for k, v in state.items() if isinstance(k, str) and k.startswith(prefix)}
    kept = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
    if not kept:
        raise CheckpointError(path, f"it has no tensors named {prefix}...", "Was it written by this code?")
    for name, value in kept.items():
        if value.layout != torch.strided or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            problem = f"{name!r} of shape {tuple(value.shape)} has fewer numbers in the file"
            raise CheckpointError(path, problem, "Copy the file again.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            problem = f"{name!r} holds NaN or infinity"
            raise CheckpointError(path, problem, "The training diverged; use an earlier one.")
    return kept


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The caller's network with these tensors, in evaluation mode.

    Raises:
        ArgumentError: if they do not fit it: it is left as it was.
    """
    if not isinstance(network, nn.Module):
        raise ArgumentError("network", network, "it is no torch.nn.Module", "Build the network that was trained.")
    chosen, problems = match_names(specs_of(network.state_dict()), specs_of(tensors))
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        problem = f"the weights in {path.name} do not fit it: {'; '.join(problems[:3])}{more}"
        raise ArgumentError("network", type(network).__name__, problem[:600], "Build it with the options of training.")
    network.load_state_dict({name: tensors[there] for name, there in chosen.items()})
    return network.eval()


def check_weights_name(weights: Any) -> Literal["ema", "raw"]:
    """Refuse any other name of weights.

    Raises:
        ArgumentError: naming the two.
    """
    if weights not in ("ema", "raw"):
        remedy = 'Pass "ema" for their moving average, "raw" for the weights themselves.'
        raise ArgumentError("weights", weights, "a checkpoint holds two sets of weights", remedy)
    named: Literal["ema", "raw"] = weights
    return named
