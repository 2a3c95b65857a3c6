"""A network of diffusers, called as ``network(x, time, **condition)``; and what its config says of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import check_condition, map_rows
from sde_toolkit.networks.inside import inner_network

__all__ = ["DiffusersNetwork"]

_PICTURES = (  # what they are given has the shape (channels, sample_size, sample_size)
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
)
_LABELLED = ("UNet2DModel", "DiTTransformer2DModel")  # told nothing but a class


class DiffusersNetwork(nn.Module):
    """A network of diffusers as a score model calls it.

    Args:
        network: one whose ``forward`` takes x first, by any name, and ``timestep``. It may be compiled or parallel.
        condition: arguments of its ``forward`` that every sample is told: tensors of one row, repeated over the batch,
            in any nesting. A condition that comes with a call replaces them.
        arguments: further arguments of its ``forward``, passed as they are, such as the ``img_ids`` of Flux.
        keeps_variance: whether an answer of 2 C channels is passed on whole. Otherwise its second half is cut off.

    Raises:
        ArgumentError: for a network of another kind; one that is given more channels than it answers with.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        condition: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        keeps_variance: bool = False,
    ) -> None:
        super().__init__()
        inside = inner_network(network)
        config = getattr(inside, "config", None)
        if not isinstance(network, nn.Module) or not isinstance(config, Mapping):
            remedy = "Pass a UNet2DModel, for example, a pipeline, or the folder of one. For others: ScoreModel."
            raise ArgumentError("source", network, "neither a network, nor a pipeline or folder of diffusers", remedy)
        check_condition(dict(condition or {}), 1)
        self.inside = network
        self.condition, self.arguments = dict(condition or {}), dict(arguments or {})
        self.kind, self.config = type(inside).__name__, dict(config)
        self._sample_name, self._required = _parameters_of(inside)
        unknown = [name for name in (*self.condition, *self.arguments) if name not in _names_of(inside)]
        if unknown:
            known = ", ".join(sorted(_names_of(inside) - {"timestep", "return_dict", self._sample_name}))
            raise ArgumentError(unknown[0], None, f"{self.kind} has no such argument", f"It takes {known}.")
        if self.num_classes is not None:
            self._required |= {"class_labels"}
        self._cuts = self.answers_with_halves and not keeps_variance

    @property
    def answers_with_halves(self) -> bool:
        """Whether the network inside answers with 2 C channels for x of C channels."""
        given, answered = self.config.get("in_channels"), self.config.get("out_channels")
        if given is None or answered is None or given == answered:
            return False
        if answered == 2 * given:
            return True
        problem = f"it is given {given} channels and answers with {answered}: some of its input is no sample"
        remedy = "Write a function of (x, time) that adds these channels and calls it, and pass that to ScoreModel."
        raise ArgumentError("source", self.kind, problem, remedy)

    @property
    def num_classes(self) -> int | None:
        """The number of classes that it knows by number, None if it knows none."""
        if self.kind == "DiTTransformer2DModel":
            return self.config.get("num_embeds_ada_norm")
        return self.config.get("num_class_embeds") if self.config.get("class_embed_type") is None else None

    @property
    def no_class(self) -> str:
        """Whether the label K = ``num_classes`` has a row of its own: DiT's has, the tables of others end before."""
        return "learned" if self.kind == "DiTTransformer2DModel" else "refused"

    @property
    def condition_name(self) -> str:
        """What a condition is called: ``class_labels`` where it can be nothing else, otherwise any names ("**")."""
        return "class_labels" if self.kind in _LABELLED else "**"

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """The shape of a sample, where the config says it."""
        size, channels = self.config.get("sample_size"), self.config.get("in_channels")
        if self.kind not in _PICTURES or size is None or channels is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return channels, height, width

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What ``model.yaml`` says of it, so that a person can build it again."""
        classes = {} if self.num_classes is None else {"num_classes": self.num_classes}
        return {"network": self.kind, **classes, "config": self.config}

    def forward(self, x: Tensor, time: Tensor, **told: Any) -> Tensor:
        """The answer (B, C, ...) for x (B, C, ...) and time (B,)."""
        rows = map_rows(self.condition, lambda row: row.to(x.device).expand(x.shape[0], *row.shape[1:]))
        shared = map_rows(self.arguments, lambda value: value.to(x.device))
        named = {**shared, **rows, **told}
        if self.kind == "DiTTransformer2DModel" and named.get("class_labels") is None:  # its label of no class
            named["class_labels"] = torch.full((x.shape[0],), self.num_classes or 0, device=x.device)
        missing = sorted(name for name in self._required if named.get(name) is None)
        if missing:
            one = f'condition={{"{missing[0]}": ...}}'
            remedy = f"Pass it with one row per sample where the model is called, or {one} to from_diffusers for all."
            raise ArgumentError("condition", None, f"{self.kind} is told {', '.join(missing)}", remedy)
        answer: Tensor = self.inside(**{self._sample_name: x, "timestep": time, **named, "return_dict": False})[0]
        return answer.chunk(2, dim=1)[0] if self._cuts else answer


def _names_of(network: nn.Module) -> set[str]:
    return set(inspect.signature(network.forward).parameters)


def _parameters_of(network: nn.Module) -> tuple[str, set[str]]:
    """(what x is called, the other arguments that have no default) of a network.

    Raises:
        ArgumentError: if it is not told a ``timestep``.
    """
    named = inspect.signature(network.forward).parameters
    if "timestep" not in named or "return_dict" not in named:
        problem = f"the forward of a {type(network).__name__} takes {', '.join(named)}, and no timestep"
        remedy = "Write a function of (x, time) that calls it, and pass that to ScoreModel."
        raise ArgumentError("source", type(network).__name__, problem, remedy)
    first = next(iter(named))
    required = {name for name, p in named.items() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD}
    return first, required - {first, "timestep"}
