"""What a compiled or parallel network has inside, and what its tensors are called there.

``torch.compile(network)``, ``DataParallel`` and their like are modules around the network: its tensors get names with
one more part (``_orig_mod.``, ``module.``), and its attributes are out of sight. What is said of a network here is said
of the one inside, and its tensors are written under its own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["hyperparameters_of", "inner_network", "own_names", "without_wrappers"]

# The child of a wrapper that is the network: torch.compile, sharding (FSDP), activation checkpointing, data parallel.
_CHILDREN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PARALLEL = "module"


def inner_network(network: Any) -> Any:
    """The network inside any number of wrappers; what is no wrapper, as it is."""
    name = _child(network)
    while name is not None:
        network = getattr(network, name)
        name = _child(network)
    return network


def _child(module: Any) -> str | None:
    """The name of the network inside, if ``module`` is a wrapper."""
    if not isinstance(module, nn.Module):
        return None
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _PARALLEL
    return next((name for name in _CHILDREN if name in module._modules), None)


def hyperparameters_of(network: Any) -> Mapping[str, Any]:
    """The constructor arguments that a network keeps in ``.hyperparameters``; nothing, if it keeps none."""
    found = getattr(inner_network(network), "hyperparameters", None)
    return found if isinstance(found, Mapping) else {}


def own_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """For each name of a state dict of ``module``, the name without the parts that wrappers add."""
    return {name: _own_name(module, name) for name in names}


def _own_name(module: Any, name: str) -> str:
    kept = []
    for part in name.split("."):
        wrapper = _child(module)
        if part != wrapper:
            kept.append(part)
        module = module._modules.get(part) if isinstance(module, nn.Module) else None
    return ".".join(kept)


def without_wrappers(name: str) -> str:
    """A name from a file, without every part that may come from a wrapper."""
    return ".".join(part for part in name.split(".") if part not in (*_CHILDREN, _PARALLEL))
