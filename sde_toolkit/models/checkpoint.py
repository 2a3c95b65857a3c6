"""A checkpoint is a folder: ``model.yaml`` says what the model is, ``ema.safetensors`` and ``raw.safetensors``
hold its weights. Nothing in it is ever unpickled, and no code is loaded by name from outside this package.

    format: sde_toolkit/1
    sde: {class: VPSDE, beta_min: 0.1, beta_max: 20.0}
    network: {class: UNet, widths: [16, 48, 96], ...}
    prediction: edm
    ...

A part of your own (a network, an SDE) is noted as such, ``{own class: MyNetwork}``, and has to be passed when the
model is loaded. The tensors of a compiled or parallel network are written under the names that they have in the network
inside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.plain import yaml_text
from sde_toolkit.files.tensors import (
    check_tensors,
    load_tensors,
    match_names,
    save_tensors,
    specs_in_file,
    specs_of,
    tensors_metadata,
)
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.models.rebuilding import DESCRIPTION, FORMAT, check_fit, read_description, rebuild
from sde_toolkit.networks.inside import own_names

__all__ = [
    "DESCRIPTION",
    "best_checkpoint",
    "check_plain",
    "check_writable",
    "checked_tensors",
    "checkpoint_folders",
    "embedded_models",
    "is_best_mark",
    "load_tensors",
    "load_weights",
    "locate",
    "model_arguments",
    "save",
    "save_tensors",
    "state_of",
    "tensors_metadata",
]

WEIGHTS = ("ema", "raw")
CHECKPOINTS = "checkpoints"  # of a training run: one folder for each step that was kept
BEST = "best"  # of a training run: a file that names one of them


def check_writable(description: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Refuse what :func:`save` could not write. Training calls this before its first step.

    Raises:
        ArgumentError: naming the argument or the tensor.
    """
    check_plain("description", description)
    check_tensors(weights)


def check_plain(name: str, content: Mapping[str, Any]) -> str:
    """Plain data as the text of a YAML file that reads back equal.

    Raises:
        ArgumentError: if there is none.
    """
    try:
        return yaml_text(content)
    except ValueError as error:
        remedy = "Use numbers, texts, and lists and dictionaries of them."
        raise ArgumentError(name, content, f"it cannot be written as YAML ({error})", remedy) from None


def state_of(module: torch.nn.Module) -> dict[str, Any]:
    """The state dict, its tensors named as in the networks inside compiled and parallel ones."""
    state = module.state_dict()
    names = own_names(module, state)
    return {names[name]: value for name, value in state.items()}


def save(directory: str | Path, description: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write ``model.yaml`` and one safetensors file for each named set of weights (``ema``, ``raw``).

    Every file is written beside its place and then moved there, so that a kill leaves the old one whole.

    Raises:
        ArgumentError: for what cannot be written, before the folder is touched.
    """
    for name, tensors in weights.items():
        _check_weights_name(name)
        check_tensors(tensors)
    text = check_plain("description", {"format": FORMAT, **description})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensors in weights.items():
        save_tensors(directory / f"{name}.safetensors", tensors)
    write_atomically(directory / DESCRIPTION, text.encode("utf-8"))


def embedded_models() -> tuple[str, ...]:
    """Names of the models that ship with the package."""
    root = resources.files("sde_toolkit") / "pretrained"
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and (p / DESCRIPTION).is_file()))


def checkpoint_folders(directory: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints of a training run, in order of steps."""
    found = []
    for folder in (Path(directory) / CHECKPOINTS).glob("step-*"):
        number = re.fullmatch(r"step-(\d+)", folder.name)
        if number and (folder / DESCRIPTION).is_file():
            found.append((int(number[1]), folder))
    return sorted(found)


def best_checkpoint(directory: str | Path) -> Path | None:
    """The checkpoint that the file ``best`` of a run names, None if there is none. (Older runs have a link.)"""
    mark = Path(directory) / BEST
    if mark.is_dir():
        return mark.resolve()
    name = _marked(mark)
    folder = Path(directory) / CHECKPOINTS / str(name)
    return folder if name is not None and (folder / DESCRIPTION).is_file() else None


def is_best_mark(mark: Path) -> bool:
    """Whether a file is what a training run says its best checkpoint in, or the link of an older run."""
    if mark.is_symlink():
        return re.fullmatch(rf"(.*[/\\])?{CHECKPOINTS}[/\\]step-\d+[/\\]?", os.readlink(mark)) is not None
    return _marked(mark) is not None


def _marked(mark: Path) -> str | None:
    """The name of a checkpoint in a file that holds ``checkpoints/step-...`` and nothing else."""
    if not mark.is_file():
        return None
    with mark.open("rb") as file:
        text = file.read(200).decode("utf-8", "replace")
    found = re.fullmatch(rf"{CHECKPOINTS}/(step-\d+)\s*", text)
    return found[1] if found else None


def locate(path: str | Path) -> Path:
    """The folder of a checkpoint: a path on disk, or the name of a model that ships with the package.

    The folder of a training run stands for its last checkpoint, ``best`` in it for that with the lowest held-out loss.
    A folder without a checkpoint does not hide a model of the package that has its name.

    Raises:
        CheckpointError: if there is no such folder.
    """
    place, embedded = Path(path), str(path) in embedded_models()
    if place.name == BEST and _marked(place) is not None:
        best = best_checkpoint(place.parent)
        if best is None:
            problem = f"it names {CHECKPOINTS}/{_marked(place)}, which is not there"
            raise CheckpointError(path, problem, f"Restore that folder, or pass {str(place.parent)!r}.")
        return best
    if place.is_dir():
        of_run = [] if (place / DESCRIPTION).is_file() else checkpoint_folders(place)
        if of_run or (place / DESCRIPTION).is_file() or not embedded:
            return of_run[-1][1] if of_run else place
    if embedded:
        return Path(str(resources.files("sde_toolkit") / "pretrained" / str(path)))
    names = ", ".join(embedded_models()) or "none"
    if place.is_file():
        raise CheckpointError(
            path,
            "this is a file, not a checkpoint folder of this package",
            f"Pass the folder that holds {DESCRIPTION}. Files of other codes: sde_toolkit.interop.load(path).",
        )
    raise CheckpointError(path, "no such folder", f"Pass a checkpoint folder, or an embedded model: {names}.")


def model_arguments(directory: Path, weights: str, **own: Any) -> dict[str, Any]:
    """The arguments of a score model, rebuilt from ``model.yaml``; ``own`` replaces parts of it by objects.

    The network has random weights yet: :func:`load_weights`.

    Raises:
        CheckpointError: missing, unreadable, foreign or incomplete description, a part of the user's own
            that was not passed, or a network that the weights do not fit.
    """
    description = read_description(directory)
    file = _weights_file(directory, weights)
    return rebuild(directory, description, file.name, specs_in_file(file), own)


def load_weights(directory: Path, module: torch.nn.Module, weights: str) -> None:
    """Load ``<weights>.safetensors`` into ``module``; every tensor must fit and be finite.

    The numbers may have another floating precision in the file: they are rounded to that of the module. Integers are no
    floats, and complex numbers no real ones.

    Raises:
        CheckpointError: missing or truncated file, tensors that do not fit, NaN or infinity.
    """
    file = _weights_file(directory, weights)
    state = module.state_dict()
    chosen, problems = match_names(specs_of(state), specs_in_file(file))
    check_fit(directory, file.name, problems)
    tensors = load_tensors(file)
    fitting = {name: tensors[there].to(state[name].dtype) for name, there in chosen.items()}
    _check_finite(file, fitting)
    try:
        module.load_state_dict(fitting)
    except RuntimeError as error:
        check_fit(directory, file.name, [" ".join(str(error).split())[:300]])


def checked_tensors(directory: Path, weights: str) -> dict[str, Tensor]:
    """The tensors of ``<weights>.safetensors``, all finite.

    Raises:
        CheckpointError: missing or truncated file, NaN or infinity.
    """
    file = _weights_file(directory, weights)
    tensors = load_tensors(file)
    _check_finite(file, tensors)
    return tensors


def _check_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            problem = f"{file.name} holds NaN or infinity in {name!r}"
            raise CheckpointError(file.parent, problem, "The training diverged; use an earlier one.")


def _weights_file(directory: Path, weights: str) -> Path:
    _check_weights_name(weights)
    file = directory / f"{weights}.safetensors"
    if not file.exists():
        there = ", ".join(name for name in WEIGHTS if (directory / f"{name}.safetensors").is_file()) or "none"
        raise CheckpointError(directory, f"it has no {file.name}", f"Weights that are there: {there}.")
    return file


def _check_weights_name(name: str) -> None:
    if name not in WEIGHTS:
        raise ArgumentError("weights", name, "a checkpoint names its weights", "Choose 'ema' or 'raw'.")
