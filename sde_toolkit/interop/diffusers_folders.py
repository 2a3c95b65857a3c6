"""Folders and files of diffusers, read without running anything that is in them.

    model_index.json, unet/ or transformer/, scheduler/, vae/     a pipeline; its other parts are not opened
    config.json, diffusion_pytorch_model.safetensors              a network alone
    one .safetensors file                                         a network in diffusers' own names, or in those of the
                                                                  code that it was trained with; its config comes apart

Classes are looked up by name in diffusers, and nowhere else: a repository that brings code of its own is refused. A
config that asks for more memory than its weights have is refused before any is taken. Links lead inside the folder, or
inside the hub's cache where that holds the folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.tensors import specs_in_file
from sde_toolkit.interop.diffusers_configs import OUR_SCHEDULER, SCHEDULER, described_class, read_config, scheduler_from
from sde_toolkit.interop.diffusers_weights import (
    CONFIG,
    WEIGHTS,
    check_links,
    network_from_file,
    network_in_folder,
    root_of,
)

__all__ = [
    "AUTOENCODERS",
    "NETWORKS",
    "PipelineParts",
    "is_file_of_diffusers",
    "is_folder_of_diffusers",
    "read_file",
    "read_folder",
]

INDEX = "model_index.json"
NETWORKS = ("unet", "transformer")
AUTOENCODERS = ("vae", "vqvae", "movq")
_FOREIGN = ("model.diffusion_model.", "joint_blocks.", "double_blocks.", "double_layers.")  # names in single files
_OWN = ("time_embedding.linear_1.weight", "time_text_embed.timestep_embedder.linear_1.weight")


@dataclass(frozen=True, eq=False)
class PipelineParts:
    """What a pipeline is made of, as far as a score model needs it.

    Attributes:
        network: the network.
        scheduler: an object of diffusers; None where there is none.
        pipeline: the name of the pipeline's class; None for a network alone.
        load_autoencoder: loads the autoencoder of a latent model; None where the network sees the data.
    """

    network: nn.Module
    scheduler: Any = None
    pipeline: str | None = None
    load_autoencoder: Callable[[], nn.Module] | None = None


def is_folder_of_diffusers(path: Path) -> bool:
    """Whether it is the folder of a pipeline or of a network."""
    return path.is_dir() and any(described_class(path / name) is not None for name in (INDEX, CONFIG))


def is_file_of_diffusers(path: Path) -> bool:
    """Whether it is a safetensors file of a network that diffusers has."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    if path.name.startswith(WEIGHTS) and described_class(path.parent / CONFIG) is not None:
        return True
    try:
        names = specs_in_file(path)
    except CheckpointError:
        return False
    return any(name.startswith(_FOREIGN) for name in names) or any(name in names for name in _OWN)


def read_folder(path: Path, variant: str | None = None) -> PipelineParts:
    """A pipeline, or a network alone.

    Args:
        path: the folder. That of the network inside a pipeline stands for the pipeline.
        variant: which of several sets of weights is read, ``"fp16"`` for example; None for the one without a name.

    Raises:
        CheckpointError: for a folder that is damaged, brings code of its own, or has links that lead out of it.
        ArgumentError: naming the variants, where there is no set of weights without a name.
    """
    if path.name in NETWORKS and described_class(path.absolute().parent / INDEX) is not None:
        path = path.absolute().parent
    root = root_of(path)
    if described_class(path / INDEX) is None:
        return PipelineParts(network_in_folder(path, root, None, variant))
    check_links(path, root)
    index = read_config(path / INDEX)
    part = next((name for name in NETWORKS if _is_listed(index, name)), None)
    if part is None:
        problem = f"{INDEX} lists neither {' nor '.join(NETWORKS)}"
        raise CheckpointError(path, problem, "Pass the folder of its network, and a scheduler.")
    network = network_in_folder(path / part, root, _listed(path, index, part), variant)
    scheduler = None
    if _is_listed(index, "scheduler"):
        check_links(path / "scheduler", root)
        config = read_config(path / "scheduler" / SCHEDULER)
        scheduler = scheduler_from({**config, "_class_name": _listed(path, index, "scheduler")}, config)
    latent = next((name for name in AUTOENCODERS if _is_listed(index, name)), None)
    load: Callable[[], nn.Module] | None = None
    if latent is not None:
        place, kind = path / latent, _listed(path, index, latent)
        load = lambda: network_in_folder(place, root, kind, variant)  # noqa: E731
    return PipelineParts(network, scheduler, str(index["_class_name"]), load)


def read_file(path: Path, config: str | Path | None) -> PipelineParts:
    """A network from one safetensors file, its config from another place.

    Args:
        path: the file.
        config: a folder of diffusers with the config of the network, whatever weights it has or has not.

    Raises:
        CheckpointError: for a file that is damaged, or does not fit the config.
        ArgumentError: if the config is not given.
    """
    if path.name.startswith(WEIGHTS) and config is None and described_class(path.parent / CONFIG) is not None:
        found = re.fullmatch(rf"{WEIGHTS}(?:\.([\w-]+))?\.safetensors", path.name)
        return read_folder(path.parent, found[1] if found else None)
    place = _config_folder(config)
    index = place / INDEX
    part = next((p for p in NETWORKS if described_class(place / p / CONFIG) is not None), "")
    network = network_from_file(path, place / part)
    scheduler = place / "scheduler" / SCHEDULER
    return PipelineParts(
        network,
        scheduler_from(read_config(scheduler)) if scheduler.is_file() else None,
        described_class(index),
        None,
    )


def _config_folder(config: str | Path | None) -> Path:
    remedy = (
        "Pass the folder of a diffusers model of the same kind. Its config.json is read (in unet/ or transformer/ of a "
        "pipeline), and its weights are not."
    )
    if config is None:
        raise ArgumentError("config", None, "the file holds weights alone, and not how the network is built", remedy)
    place = Path(config)
    if not is_folder_of_diffusers(place):
        raise ArgumentError("config", str(config), "not a folder of diffusers", remedy)
    return place


def _is_listed(index: Mapping[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and entry != [None, None]


def _listed(path: Path, index: Mapping[str, Any], part: str) -> str:
    """The name of the class of a part, which is one of diffusers' own."""
    library, name = index[part]
    if (library != "diffusers" and (library, name) != OUR_SCHEDULER) or not isinstance(name, str):
        problem = f"its {part} is {name!r} of {library!r}, code that is not in diffusers"
        raise CheckpointError(path, problem, "Code of a file is not run. Build it yourself, and pass the pipeline.")
    return name
