"""The network inside a compiled or parallel one, and the names that its tensors have there.

``torch.compile(network)``, ``DataParallel`` and others wrap the network in a module. The wrapper adds a part
(``_orig_mod.``, ``module.``) to the names of the tensors and hides the attributes of the network. The functions here
find the network inside, its hyperparameters, and the names without the added parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["hyperparameters_of", "inner_network", "own_names", "without_wrappers"]

# The attribute in which a wrapper holds the network.
_CHILDREN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # compile, FSDP, checkpointing
_PARALLEL = "module"  # data parallel


def inner_network(network: Any) -> Any:
    """The network inside any number of wrappers; ``network`` itself if it is not a wrapper."""
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
    """The constructor arguments that a network keeps in ``.hyperparameters``; empty if it has no such attribute."""
    found = getattr(inner_network(network), "hyperparameters", None)
    return found if isinstance(found, Mapping) else {}


def own_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Maps each name in a state dict of ``module`` to the name without the parts that wrappers add."""
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
    """A tensor's name from a file, without all parts that a wrapper may have added."""
    return ".".join(part for part in name.split(".") if part not in (*_CHILDREN, _PARALLEL))
