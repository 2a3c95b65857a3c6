"""``sde-toolkit evaluate``: how good samples are, against real data, as a record that can be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_toolkit.checkpoint import embedded_models
from sde_toolkit.cli.parts import MIXTURE, dataset_of, load_model, whole_number
from sde_toolkit.cli.sample import draw
from sde_toolkit.cli.setup import Place, command_words, instantiate, join
from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.evaluation.drawing import Drawn
from sde_toolkit.evaluation.extractors import as_extractor
from sde_toolkit.evaluation.features import Reference
from sde_toolkit.evaluation.files import read_samples
from sde_toolkit.evaluation.quality import evaluate_samples, usual_metrics
from sde_toolkit.evaluation.records import Quality, compare_records
from sde_toolkit.exact import GaussianMixture
from sde_toolkit.transforms import Transform

__all__ = ["run"]

_DRAWS = 10_000  # of an exact mixture, unless told otherwise


def run(config: DictConfig) -> None:
    """Read or draw the samples, measure them, write ``evaluation.json``."""
    place = join(config)
    against = None if config.against is None else Quality.load(str(config.against))
    if against is not None and place.main:
        _leave_alone(Path(str(config.against)), place.directory)
    samples, source, drawn, model = _samples(config, place)
    reference, levels, transform = _reference(config, tuple(samples.shape[1:]), model)
    metrics = config.metrics
    if metrics == "auto":
        metrics = usual_metrics(tuple(samples.shape[1:]))
    quality = evaluate_samples(
        samples,
        reference,
        as_extractor(instantiate(config.extractor), tuple(samples.shape[1:]), transform),
        metrics=list(metrics) if isinstance(metrics, ListConfig | tuple) else [metrics],
        levels=levels,
        kid_subsets=whole_number(config, "kid.subsets", 1),
        kid_subset_size=whole_number(config, "kid.subset_size", 2),
        neighbours=whole_number(config, "neighbours", 1),
        seed=whole_number(config, "seed", 0),
        batch_size=whole_number(config, "batch_size", 1),
        source=source,
        against=against,
        device=place.device,
        team=place.team,
        directory=place.directory / "features",
        progress=bool(config.progress),
    )
    if quality is not None:
        about = {
            **quality.about,
            "command": " ".join(command_words()),
            "samples_record": _record_of(config, drawn, place),
        }
        about["config"] = OmegaConf.to_container(config, resolve=True)
        quality = replace(quality, about=about)
        OmegaConf.save(config, place.directory / "config.yaml", resolve=True)
        quality.save(place.directory / "evaluation.json")
        if drawn is not None and drawn.store is not None:
            drawn.store.clear()
        _print(quality, against, place.directory / "evaluation.json")
    place.team.leave()


def _leave_alone(record: Path, directory: Path) -> None:
    """The record that is compared with may not be the one that is about to be written."""
    if record.resolve() == (directory / "evaluation.json").resolve():
        problem = "it is the file that this command writes"
        raise ArgumentError("against", str(record), problem, "Name another output.")


def _samples(config: DictConfig, place: Place) -> tuple[Tensor, str, Drawn | None, Any]:
    """The samples in data space, where they are from, and, if they had to be drawn, how and of which model."""
    given = config.samples.get("path") if isinstance(config.samples, DictConfig) else config.samples
    if not isinstance(given, str) or not given:
        raise ArgumentError("samples", given, "not a path or a name", "Give a file, a folder, or a checkpoint.")
    path = Path(given)
    model_there = given == MIXTURE or (given in embedded_models() and not path.exists()) or _is_checkpoint(path)
    if not model_there:
        samples = read_samples(path, config.key)
        return samples if config.n is None else samples[: whole_number(config, "n", 2)], given, None, None
    if config.n is None:
        raise ArgumentError("n", None, f"{given} is a model, to draw samples from", "Say how many, such as n=10000.")
    config.model = {"path": given}
    drawn = draw(config, place, keep=True)
    place.team.wait()
    return read_samples(place.directory / "samples.npz"), f"drawn from {given}", drawn, load_model(config)[0]


def _is_checkpoint(path: Path) -> bool:
    from sde_toolkit import checkpoint
    from sde_toolkit.errors import CheckpointError

    if not path.is_dir() or (path / "samples.npz").is_file():
        return False
    try:
        return (checkpoint.locate(path) / checkpoint.DESCRIPTION).is_file()
    except CheckpointError:
        return False


def _reference(
    config: DictConfig, event_shape: tuple[int, ...], model: Any
) -> tuple[Reference, int | None, Transform | None]:
    """The real samples, the levels that their values can have, and the way to model space."""
    most = None if config.reference.n is None else whole_number(config, "reference.n", 2)
    seed = whole_number(config, "reference.seed", 0)
    if isinstance(model, GaussianMixture) and config.get("data") is None:
        real = model.draw(most or _DRAWS, generator=torch.Generator().manual_seed(seed))
        return Reference(real, "exact draws of the mixture", f"seed {seed}"), config.levels, None
    dataset: Dataset | None = dataset_of(config, event_shape)
    if dataset is None:
        raise DataError("data", None, f"no data of shape {event_shape} ship with the package", "Choose data=....")
    split = config.reference.split
    if split == "auto":
        split = "train" if len(dataset.train) >= len(dataset.test) else "test"
    if split not in ("train", "test"):
        raise ArgumentError("reference.split", split, "there is no such part", "Choose train, test or auto.")
    values = dataset.train if split == "train" else dataset.test
    if len(values) < 2:
        raise DataError("data", dataset.name, f"its {split} part has {len(values)} samples", "Choose the other part.")
    index = None
    if most is not None and most < len(values):
        index = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:most]
    levels = dataset.levels if config.levels is None else config.levels
    return Reference(values, dataset.name, split, index), levels, dataset.transform


def _record_of(config: DictConfig, drawn: Drawn | None, place: Place) -> Any:
    """What ``sample`` wrote beside the samples, without its configuration."""
    given = config.samples.get("path") if isinstance(config.samples, DictConfig) else config.samples
    folder = place.directory if drawn is not None else Path(given) if Path(given).is_dir() else Path(given).parent
    file = folder / "samples.json"
    if not file.is_file():
        return None
    try:
        return {k: v for k, v in json.loads(file.read_text(encoding="utf-8")).items() if k not in ("config", "machine")}
    except ValueError:
        return None


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.2g}"


def _print(quality: Quality, against: Quality | None, file: Path) -> None:
    conditions = quality.conditions
    of, real = conditions["samples"], conditions["reference"]
    print(f"{of['count']} samples against {real['count']} of {real['name']} ({real['split']}), "
          f"features: {conditions['extractor']['name']}")  # fmt: skip
    difference = {} if against is None else compare_records(against, quality)
    for name, value in quality.values.items():
        if value is not None:
            line = f"  {name:<20}{value:>12.5g}" + _error(quality.errors.get(name))
            if name in quality.floors:
                floor, error = quality.floors[name]
                line += f"   as many real samples: {floor:.5g}{_error(error)}"
            print(line + (f"   difference {difference[name]:+.4g}" if name in difference else ""))
    for note in quality.about["notes"]:
        print(note)
    print(f"written to {file}")
