"""A checkpoint is a folder: ``model.yaml`` says what the model is, ``ema.safetensors`` and ``raw.safetensors``
hold its weights. Nothing in it is ever unpickled, and no code is loaded by name from outside this package.

    format: sde_toolkit/1
    sde: {class: VPSDE, beta_min: 0.1, beta_max: 20.0}
    network: {class: UNet, widths: [16, 48, 96], ...}
    prediction: edm
    ...

A part of your own (a network, an SDE) is noted by its name and has to be passed when the model is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sde_toolkit import networks, sde, time_inputs, transforms
from sde_toolkit.errors import ArgumentError, CheckpointError, SDEToolkitError

__all__ = [
    "best_checkpoint",
    "checkpoint_folders",
    "embedded_models",
    "is_best_mark",
    "load_description",
    "load_tensors",
    "load_weights",
    "locate",
    "save",
    "save_tensors",
    "tensors_metadata",
]

FORMAT = "sde_toolkit/1"
DESCRIPTION = "model.yaml"
WEIGHTS = ("ema", "raw")
CHECKPOINTS = "checkpoints"  # of a training run: one folder for each step that was kept
BEST = "best"  # of a training run: a file that names one of them

_HOMES: dict[str, ModuleType] = {
    "network": networks,
    "sde": sde,
    "time_input": time_inputs,
    "transform": transforms,
}


def describe(part: Any) -> dict[str, Any]:
    """The class and the constructor arguments of a network, SDE, time input or transform, as plain data."""
    if dataclasses.is_dataclass(part):
        arguments = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    else:
        arguments = dict(getattr(part, "hyperparameters", {}))
    return {"class": _name(part), **{k: _plain(v) for k, v in arguments.items()}}


def _name(part: Any) -> str:
    return str(getattr(part, "__qualname__", type(part).__qualname__))  # a function has a name of its own


def _plain(value: Any) -> Any:
    """An argument as plain data: a part of a part is described in its turn, a function is noted by its name."""
    if isinstance(value, tuple):
        return list(value)
    if dataclasses.is_dataclass(value):
        return describe(value)
    return _name(value) if callable(value) else value


def save(directory: str | Path, description: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write ``model.yaml`` and one safetensors file for each named set of weights (``ema``, ``raw``).

    Every file is written beside its place and then moved there, so that a kill leaves the old one whole.
    """
    import yaml

    for name in weights:
        _check_weights_name(name)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensors in weights.items():
        save_tensors(directory / f"{name}.safetensors", tensors)
    target = directory / DESCRIPTION
    partial = target.with_suffix(".partial")
    text = yaml.safe_dump({"format": FORMAT, **description}, sort_keys=False, default_flow_style=None, width=100)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)


def save_tensors(target: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, written beside its place and moved there; ``metadata`` stands in its header.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = target.with_suffix(".partial")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata)
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{target.name}: {error}") from None


def load_tensors(file: Path) -> dict[str, Tensor]:
    """What a safetensors file holds.

    Raises:
        CheckpointError: if it is truncated or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        problem = f"{file.name} is truncated or not a safetensors file ({error})"
        raise CheckpointError(file.parent, problem, "Copy the file again.") from None


def tensors_metadata(file: Path) -> dict[str, str]:
    """What the header of a safetensors file says besides its tensors.

    Raises:
        CheckpointError: if it is truncated or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as found:
            return dict(found.metadata() or {})
    except (OSError, SafetensorError) as error:
        problem = f"{file.name} is truncated or not a safetensors file ({error})"
        raise CheckpointError(file.parent, problem, "Copy the file again.") from None


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

    Raises:
        CheckpointError: if there is no such folder.
    """
    place = Path(path)
    if place.name == BEST and _marked(place) is not None:
        best = best_checkpoint(place.parent)
        if best is None:
            problem = f"it names {CHECKPOINTS}/{_marked(place)}, which is not there"
            raise CheckpointError(path, problem, f"Restore that folder, or pass {str(place.parent)!r}.")
        return best
    if place.is_dir():
        of_run = [] if (place / DESCRIPTION).is_file() else checkpoint_folders(place)
        return of_run[-1][1] if of_run else place
    if str(path) in embedded_models():
        return Path(str(resources.files("sde_toolkit") / "pretrained" / str(path)))
    names = ", ".join(embedded_models()) or "none"
    if place.is_file():
        raise CheckpointError(
            path,
            "this is a file, not a checkpoint folder; pickled files (.pt, .ckpt, .pkl) are never unpickled",
            f"Pass the folder that holds {DESCRIPTION}, or build a ScoreModel around your network yourself.",
        )
    raise CheckpointError(path, "no such folder", f"Pass a checkpoint folder, or an embedded model: {names}.")


def load_description(directory: Path, **own: Any) -> dict[str, Any]:
    """The arguments of a score model, rebuilt from ``model.yaml``; ``own`` replaces parts of it by objects.

    Raises:
        CheckpointError: missing, unreadable, foreign or incomplete description, or a part of the user's own
            that was not passed.
    """
    import yaml

    file = directory / DESCRIPTION
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(directory, f"it has no {DESCRIPTION}", "Is this the right folder?") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = f"{DESCRIPTION} cannot be read ({type(error).__name__})"
        raise CheckpointError(directory, problem, "Restore the file.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        saw = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise CheckpointError(
            directory,
            f"{DESCRIPTION} has format {saw!r}, not {FORMAT!r}",
            "It was not written by this package.",
        )
    wanted = ("network", "sde", "prediction", "time_input", "sigma_data", "transform", "event_shape")
    missing = [key for key in wanted if key not in found]
    if missing:
        raise CheckpointError(directory, f"{DESCRIPTION} lacks {', '.join(missing)}", "Restore the file.")
    rebuilt = {key: found[key] for key in wanted}
    rebuilt["learned_variance"] = found.get("learned_variance", False)
    for key in _HOMES:
        rebuilt[key] = own[key] if own.get(key) is not None else _build(directory, key, found[key])
    return rebuilt


def _build(directory: Path, key: str, description: Any) -> Any:
    """Construct one part from its class name, looked up among the public names of its home only."""
    home = _HOMES[key]
    arguments = dict(description) if isinstance(description, dict) else {}
    name = arguments.pop("class", None)
    arguments = {k: _build(directory, key, v) if _is_part(v) else v for k, v in arguments.items()}
    if name not in home.__all__:
        raise CheckpointError(
            directory,
            f"its {key} is {name!r}, which is not a class of sde_toolkit",
            f"Pass your own: ScoreModel.from_pretrained(path, {key}=...).",
        )
    try:
        return getattr(home, name)(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except (TypeError, SDEToolkitError) as error:
        problem = f"its {key} cannot be rebuilt: {error}"
        raise CheckpointError(directory, problem, f"Check {key} in {DESCRIPTION}.") from None


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and "class" in value


def load_weights(directory: Path, module: torch.nn.Module, weights: str) -> None:
    """Load ``<weights>.safetensors`` into ``module``; every tensor must fit and be finite.

    Raises:
        CheckpointError: missing or truncated file, tensors that do not fit, NaN or infinity.
    """
    tensors = checked_tensors(directory, weights)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        problem = f"{weights}.safetensors does not fit the network: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(directory, problem, f"Is {DESCRIPTION} the one it was saved with?") from None


def checked_tensors(directory: Path, weights: str) -> dict[str, Tensor]:
    """The tensors of ``<weights>.safetensors``, all finite.

    Raises:
        CheckpointError: missing or truncated file, NaN or infinity.
    """
    _check_weights_name(weights)
    file = directory / f"{weights}.safetensors"
    if not file.is_file():
        there = ", ".join(name for name in WEIGHTS if (directory / f"{name}.safetensors").is_file()) or "none"
        raise CheckpointError(directory, f"it has no {file.name}", f"Weights that are there: {there}.")
    tensors = load_tensors(file)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                directory,
                f"{file.name} holds NaN or infinity in {name!r}",
                "The training diverged; use an earlier one.",
            )
    return tensors


def _check_weights_name(name: str) -> None:
    if name not in WEIGHTS:
        raise ArgumentError("weights", name, "a checkpoint names its weights", "Choose 'ema' or 'raw'.")
