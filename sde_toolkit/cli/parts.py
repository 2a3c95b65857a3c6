"""What the commands build from their configuration: model, solvers, grids, real data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.checks import MOST, check_amount, is_count
from sde_toolkit.cli.setup import instantiate
from sde_toolkit.cli.user_files import is_user_file, load_made, solver_of_user
from sde_toolkit.data import Dataset, digits, mnist_test_images
from sde_toolkit.errors import ArgumentError, CheckpointError, DataError
from sde_toolkit.evaluation.candidates import Candidate
from sde_toolkit.interop.loading import load, reader_of
from sde_toolkit.models.checkpoint import DESCRIPTION, checkpoint_folders, embedded_models
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE, VPSDE
from sde_toolkit.solvers import GridBuilder

__all__ = [
    "build_grids",
    "build_solvers",
    "check_room",
    "choose_labels",
    "dataset_of",
    "discrete_grid",
    "find_dataset",
    "load_model",
    "load_models",
    "model_name",
    "number_of_evaluations",
    "ring_mixture",
    "whole_number",
]

MIXTURE = "mixture"


def ring_mixture() -> GaussianMixture:
    """Eight Gaussians on a ring of radius 4/√8, standard deviation 0.1, under VPSDE. Its score is exact."""
    angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = 4 / math.sqrt(8) * torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(means, VPSDE(), std=0.1)


def model_name(config: DictConfig) -> str:
    """``model`` as it was given: a name, a path, or ``{path: ...}``; of a list its names together."""
    if isinstance(config.model, ListConfig):
        return ", ".join(map(str, config.model))
    given = config.model.get("path") if isinstance(config.model, DictConfig) else config.model
    if not isinstance(given, str) or not given:
        raise ArgumentError("model", given, "not a name or a path", f"Give a checkpoint, or {_names()}.")
    return given


def load_models(config: DictConfig) -> dict[str, tuple[ScoreModel, str | None]]:
    """``model=[a,b]``: the models by their names, each with its weights. One that is no list is called ``""``.

    A path is called by its last part, a function in a file by its own name.

    Raises:
        ArgumentError: for an empty list, and for two models of one name.
    """
    if not isinstance(config.model, ListConfig):
        return {"": load_model(config)}
    found: dict[str, tuple[ScoreModel, str | None]] = {}
    for given in config.model:
        one = config.copy()
        one.model = given
        text = model_name(one)
        name = text.rsplit(":", 1)[1] if is_user_file(text) else Path(text).name
        if name in found:
            problem = f"two of them are called {name!r}"
            raise ArgumentError("model", list(config.model), problem, "Give folders or functions of different names.")
        found[name] = load_model(one)
    if not found:
        raise ArgumentError("model", [], "there is no model", f"Give a checkpoint, or {_names()}.")
    return found


def load_model(config: DictConfig) -> tuple[ScoreModel, str | None]:
    """The model and which of its weights were loaded (None where there is no such choice).

    ``model`` is a name, a checkpoint of any family that :func:`sde_toolkit.interop.load` reads, or ``my_file.py:name``,
    a function that returns a score model. ``model={path: ..., key: ...}`` adds what a file does not say.

    Raises:
        CheckpointError: naming the embedded models if there is no such file or folder.
    """
    name = model_name(config)
    if name == MIXTURE:
        if (Path(name) / DESCRIPTION).is_file() or checkpoint_folders(name):
            print(f"model={name} means the exact mixture. For the model in the folder of that name give model=./{name}")
        return ring_mixture(), None
    if is_user_file(name):
        return _of_user(name), None
    if name not in embedded_models() and not Path(name).exists():
        remedy = f"Pass a checkpoint, my_file.py:my_function, or one of {_names()}."
        raise CheckpointError(name, "there is no such file or folder", remedy)
    given = OmegaConf.to_container(config.model) if isinstance(config.model, DictConfig) else {}
    told: dict[str, Any] = {str(key): value for key, value in dict(given).items() if key != "path"}  # type: ignore[arg-type]
    arguments = reader_of(name).arguments
    if "weights" in arguments:
        told = {"weights": config.weights, **told}
    try:
        return load(name, **told), told.get("weights")
    except ArgumentError as error:
        if error.argument not in arguments or error.problem is None:
            raise
        remedy = f"{error.remedy} Write it so: 'model={{path: {name}, {error.argument}: ...}}'."
        if error.argument == "network":
            remedy = "Give a function that builds it and loads this file into it: model=my_file.py:my_function."
        raise ArgumentError(error.argument, error.value, error.problem, remedy) from None


def _of_user(name: str) -> ScoreModel:
    """The score model that a user's file makes."""
    return load_made("model", name, ScoreModel, "Return ScoreModel(network, sde, ...), or ScoreModel.from_denoiser.")


def _names() -> str:
    return ", ".join((*embedded_models(), MIXTURE))


def build_solvers(config: DictConfig) -> dict[str, Candidate]:
    """The chosen solvers, or planners such as ``auto``, by the names of their files; a user's own come last."""
    found: dict[str, Candidate] = {}
    for name, part in _chosen(config, "solver").items():
        file = part.get("file") if "_target_" not in part else None
        found[str(name)] = instantiate(part) if file is None else solver_of_user(str(name), str(file))
    return found


def build_grids(config: DictConfig) -> dict[str, GridBuilder]:
    """The chosen grid builders by the names of their files."""
    return {str(name): instantiate(part) for name, part in _chosen(config, "grid").items()}


def _chosen(config: DictConfig, group: str) -> Mapping[Any, Any]:
    chosen = config.get(f"{group}s")
    if not isinstance(chosen, DictConfig) or not chosen:
        raise ArgumentError(f"{group}s", chosen, f"no {group} was chosen", f"Choose some with {group}=[name,name].")
    for key, part in chosen.items():
        name = str(key)
        of_user = isinstance(part, DictConfig) and group == "solver" and is_user_file(str(part.get("file")))
        if not of_user and (not isinstance(part, DictConfig) or "_target_" not in part):
            problem = "not a part that can be built"
            raise ArgumentError(f"{group}s.{name}", part, problem, f"Choose {group}={name}, or give its _target_.")
    return chosen


def discrete_grid(sde: SDE, steps: int, *, N: int = 1000) -> Tensor:
    """:func:`sde_toolkit.grids.discrete` with the arguments of the other builders."""
    return grids.discrete(N, steps)


def whole_number(config: DictConfig, name: str, least: int, most: int = 2**63 - 1) -> int:
    """The whole number at ``name`` (``group.key``) of the configuration, from ``least`` to ``most``."""
    value = OmegaConf.select(config, name)
    if not is_count(value, least) or value > most:
        upper = f" and at most {most}" if is_count(value, least) else ""
        problem = f"not a whole number of at least {least}{upper}"
        raise ArgumentError(name, value, problem, f"Give {name}={min(max(least, 1), most)}.")
    return value


def number_of_evaluations(config: DictConfig, name: str = "nfe", least: int = 1) -> int:
    """A number of network evaluations; so many that their grid would fill the memory are refused."""
    return whole_number(config, name, least, MOST)


def check_room(name: str, n: int, event_shape: tuple[int, ...], sets: int = 1) -> None:
    """Refuse ``sets`` sets of n samples, in model space and in data space, that the machine's memory cannot hold.

    Raises:
        ArgumentError: naming the argument.
    """
    check_amount(name, n, 2 * n * sets * math.prod(event_shape))


def choose_labels(config: DictConfig, model: ScoreModel, n: int, first_index: int = 0) -> Tensor | None:
    """``class=3``, ``class=none``, ``labels=[0,1]`` or ``labels=all`` as one label per sample, (n,) long.

    A list is repeated: sample i, counted with ``first_index``, has labels[i mod length].

    Raises:
        ArgumentError: for labels, if the network has no classes; for no labels, if it has some. Only some conditional
            networks were trained without labels too, so ``class=none`` has to be asked for.
    """
    one, many = config["class"], config.labels
    many = list(many) if isinstance(many, ListConfig) else many
    classes, name = model.num_classes, "class" if many is None else "labels"
    given = one if many is None else many
    if classes is None:
        if given is not None:
            raise ArgumentError(name, given, "the network was built without classes", "Leave it out.")
        return None
    if (one is None) == (many is None):
        problem = f"the network has {classes} classes, and exactly one of class and labels says which are wanted"
        remedy = (
            "Give class=3, labels=[0,1] (repeated), labels=all, or class=none if it was trained without labels too."
        )
        raise ArgumentError("class, labels", (one, many), problem, remedy)
    if many is None and str(one).lower() == "none":
        return None
    wanted: list[Any] = list(range(classes)) if many == "all" else many if isinstance(many, list) else [given]
    if not wanted or not all(is_count(label, 0) and label < classes for label in wanted):
        raise ArgumentError(name, given, f"labels are whole numbers 0..{classes - 1}", "Give class=3, or labels=[0,1].")
    return torch.tensor(wanted)[(first_index + torch.arange(n)) % len(wanted)]


def find_dataset(config: DictConfig, model: ScoreModel) -> Dataset | None:
    """``data=...``, or the images of the package that have the model's event shape, or None."""
    return dataset_of(config, model.event_shape)


def dataset_of(config: DictConfig, event_shape: tuple[int, ...] | None) -> Dataset | None:
    """``data=...``, or the images of the package that have this event shape, or None.

    Raises:
        DataError: for data of another shape.
    """
    if config.get("data") is not None:
        dataset: Dataset = instantiate(config.data)
        if event_shape is not None and dataset.event_shape != event_shape:
            problem = f"its samples have shape {dataset.event_shape}, the model's {event_shape}"
            raise DataError("data", dataset.name, problem, "Choose the data that the model was trained on.")
        return dataset
    if event_shape == (1, 28, 28):
        return mnist_test_images()
    return digits() if event_shape == (1, 8, 8) else None
