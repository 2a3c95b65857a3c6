"""``sde-toolkit evaluate``: measure samples against real data, and write the values with their conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_toolkit.checks import is_count
from sde_toolkit.cli.folders import CONFIG, save_config
from sde_toolkit.cli.parts import MIXTURE, choose_labels, dataset_of, whole_number
from sde_toolkit.cli.sample import FILES, SampleRequest, draw, prepare
from sde_toolkit.cli.setup import Workplace, command_words, instantiate, join, listed, switch
from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError, DataError, warn_caller
from sde_toolkit.evaluation.drawing import Drawn
from sde_toolkit.evaluation.page import require_report_packages
from sde_toolkit.evaluation.quality_report import quality_table, write_quality_report
from sde_toolkit.evaluation.sample_files import has_samples, read_samples
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.metrics.extractors import Extractor, as_extractor
from sde_toolkit.metrics.features import Reference
from sde_toolkit.metrics.fid import FID, KID
from sde_toolkit.metrics.manifolds import Precision, Recall
from sde_toolkit.metrics.metric import Metric
from sde_toolkit.metrics.quality import check_evaluation, evaluate_samples, metrics_with_floor, usual_metrics
from sde_toolkit.metrics.records import Quality
from sde_toolkit.models.checkpoint import embedded_models
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import require_progress
from sde_toolkit.ranges import range_problems
from sde_toolkit.transforms import Transform

__all__ = ["run"]

WRITTEN = ("evaluation.json", "report.html")
_DRAWS = 10_000  # from an exact mixture, by default


def run(config: DictConfig) -> None:
    """Read or draw the samples, measure them, write ``evaluation.json`` and ``report.html``."""
    require_report_packages()
    place = join(config)
    against = None if config.against is None else Quality.load(str(config.against))
    if against is not None and place.main:
        _check_against(Path(str(config.against)), place.directory)
    seed, batch_size = _settings(config)
    given, source = _given(config)
    if isinstance(given, Tensor):
        model, size = None, tuple(given.shape)
    else:
        model, size = given.model, (given.n, *(given.model.event_shape or ()))
    reference, levels, transform = _reference(config, size[1:], model)
    extractor = as_extractor(instantiate(config.extractor), size[1:], transform)
    metrics = check_evaluation(
        size, reference, _metrics(config, size[1:], extractor, seed), levels=levels, seed=seed, batch_size=batch_size
    )
    if isinstance(given, Tensor) and transform is not None:
        _doubt_range(given, source, transform)
    with place.holding("evaluate", [*WRITTEN, *((CONFIG,) if model is None else FILES)]):
        drawn = None
        if not isinstance(given, Tensor):
            drawn = draw(config, place, given, keep=True)
            place.team.wait()
            given = read_samples(place.directory / "samples.npz")
        quality = evaluate_samples(
            given,
            reference,
            extractor,
            metrics=metrics,
            levels=levels,
            seed=seed,
            batch_size=batch_size,
            source=source,
            against=against,
            device=place.device,
            team=place.team,
            directory=place.directory / "features",
            progress=switch(config, "progress"),
        )
        if quality is not None:
            _write(config, place, quality, metrics, against, drawn)
    if quality is not None:
        _print(quality, metrics, against, place.directory / WRITTEN[0])
    place.team.leave()


def _metrics(config: DictConfig, event_shape: tuple[int, ...], extractor: Extractor, seed: int) -> tuple[Metric, ...]:
    """``metrics=[fid,my_package.Mine]``: the metrics of these names, or classes of the user's own by their paths."""
    given = config.metrics
    if given == "auto":
        return usual_metrics(event_shape, extractor, seed)
    neighbours = config.neighbours
    named: dict[str, tuple[Metric, ...]] = {
        "fid": (FID(),),
        "kid": (KID(config.kid.subsets, config.kid.subset_size, seed),),
        "precision_recall": (Precision(neighbours), Recall(neighbours)),
        "distance": metrics_with_floor(extractor, seed),
    }
    found: list[Metric] = []
    for name in listed(given):
        parts = str(name).split(".")
        if name not in named and not (len(parts) > 1 and all(part.isidentifier() for part in parts)):
            problem = f"metrics are {', '.join(named)}, or classes such as my_package.Mine"
            raise ArgumentError("metrics", given, problem, "Use metrics=[fid,kid,precision_recall].")
        found += named[name] if name in named else (instantiate(DictConfig({"_target_": str(name)})),)
    return tuple(found)


def _doubt_range(samples: Tensor, source: str, transform: Transform) -> None:
    """Warn if the samples are probably in another space than the real data, such as [0, 1] and grey levels.

    Nothing is refused, because bad samples may leave the range of the data.
    """
    low, high = (getattr(transform, name, None) or 0.0 for name in ("low", "high"))
    problem = next(filter(None, range_problems(transform, samples, slack=high - low)), "")
    if problem:
        found = f"they reach from {samples.min()} to {samples.max()}, and {problem}"
        warn_caller(f"samples={source}: {found}. Give samples in the space of the real data.")


def _settings(config: DictConfig) -> tuple[int, int]:
    """Seed and batch size. Other whole numbers are checked here, and so is the package for the progress bar."""
    require_progress(switch(config, "progress"))
    for name, least in (("kid.subsets", 1), ("kid.subset_size", 2), ("neighbours", 1)):
        whole_number(config, name, least)
    return whole_number(config, "seed", 0), whole_number(config, "batch_size", 1)


def _write(
    config: DictConfig,
    place: Workplace,
    quality: Quality,
    metrics: Sequence[Metric],
    against: Quality | None,
    drawn: Drawn | None,
) -> None:
    about = {
        **quality.about,
        "command": " ".join(command_words()),
        "samples_record": _record_of(config, drawn, place),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    record = {name: about[name] for name in ("command", "samples_record", "config")}
    write_quality_report(quality, metrics, place.directory, record, against=against)
    replace(quality, about=about).save(place.directory / WRITTEN[0])
    save_config(config, place.directory)
    if drawn is not None and drawn.store is not None:
        drawn.store.clear()


def _check_against(record: Path, directory: Path) -> None:
    """Refuse to overwrite the record that the samples are compared with."""
    if record.resolve() == (directory / WRITTEN[0]).resolve():
        problem = "it is the file that this command writes"
        raise ArgumentError("against", str(record), problem, "Name another output.")


def _given(config: DictConfig) -> tuple[Tensor | SampleRequest, str]:
    """The samples in data space, or the request that draws them; and their source in words."""
    given = config.samples.get("path") if isinstance(config.samples, DictConfig) else config.samples
    if not isinstance(given, str) or not given:
        raise ArgumentError("samples", given, "not a path or a name", "Give a file, a folder, or a checkpoint.")
    path = Path(given)
    if not _is_model(given):
        if not path.exists():
            problem = "there is no such file or folder, and no model of that name"
            raise ArgumentError("samples", given, problem, "Give a file, a folder, or a checkpoint.")
        samples = read_samples(path, config.key)
        return samples if config.n is None else samples[: whole_number(config, "n", 2)], given
    if config.n is None:
        raise ArgumentError("n", None, f"{given} is a model, and n samples are drawn", "Give n=10000, for example.")
    whole_number(config, "n", 2)
    config.model = {"path": given}
    return prepare(config), f"drawn from {given}"


def _is_model(given: str) -> bool:
    """Whether a name or a path means a model. A folder of that name that holds samples means the samples."""
    path = Path(given)
    if given in (MIXTURE, *embedded_models()):
        return not has_samples(path)
    return _is_checkpoint(path)


def _classes(config: DictConfig, model: ScoreModel | None) -> list[int] | None:
    """The classes that ``class`` or ``labels`` names, sorted; None for all classes, and for samples without a class."""
    if model is not None:
        chosen = choose_labels(config, model, whole_number(config, "n", 2), whole_number(config, "first_index", 0))
        found = None if chosen is None else chosen.unique().tolist()
        return None if found is None or len(found) == model.num_classes else found
    one, many = config["class"], config.labels
    many = list(many) if isinstance(many, ListConfig) else many
    if one is not None and many is not None:
        problem = "both name the classes of the samples"
        raise ArgumentError("class, labels", (one, many), problem, "Leave one out.")
    if many == "all" or (many is None and (one is None or str(one).lower() == "none")):
        return None
    name, value = ("class", one) if many is None else ("labels", many)
    wanted = value if isinstance(value, list) else [value]
    if not wanted or not all(is_count(label, 0) for label in wanted):
        raise ArgumentError(name, value, "labels are whole numbers from 0", "Give class=3, or labels=[0,1].")
    return sorted(set(wanted))


def _is_checkpoint(path: Path) -> bool:
    from sde_toolkit.errors import CheckpointError
    from sde_toolkit.models import checkpoint

    if not (path.is_dir() or checkpoint.is_best_mark(path)) or (path / "samples.npz").is_file():
        return False
    try:
        return (checkpoint.locate(path) / checkpoint.DESCRIPTION).is_file()
    except CheckpointError:
        return False


def _reference(
    config: DictConfig, event_shape: tuple[int, ...], model: ScoreModel | None
) -> tuple[Reference, int | None, Transform | None]:
    """The real samples, their number of levels (None: continuous), and the transform to model space."""
    most = None if config.reference.n is None else whole_number(config, "reference.n", 2)
    seed = whole_number(config, "reference.seed", 0)
    if isinstance(model, GaussianMixture) and config.get("data") is None:
        real = model.draw(most or _DRAWS, generator=torch.Generator().manual_seed(seed))
        return Reference(real, "exact draws of the mixture", f"seed {seed}"), config.levels, None
    dataset: Dataset | None = dataset_of(config, event_shape)
    if dataset is None:
        raise DataError("data", None, f"no data of shape {event_shape} ship with the package", "Choose data=....")
    if model is not None:
        dataset.check_range(model.transform)
    split = config.reference.split
    if split == "auto":
        split = "train" if len(dataset.train) >= len(dataset.test) else "test"
    if split not in ("train", "test"):
        raise ArgumentError("reference.split", split, "there is no such part", "Choose train, test or auto.")
    values = dataset.train if split == "train" else dataset.test
    if len(values) < 2:
        raise DataError("data", dataset.name, f"its {split} part has {len(values)} samples", "Choose the other part.")
    index, classes = None, _classes(config, model)
    if classes is not None:
        index = _of_classes(dataset, split, classes, config)
    count = len(values) if index is None else len(index)
    if most is not None and most < count:
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
        index = chosen if index is None else index[chosen]
    levels = dataset.levels if config.levels is None else config.levels
    only = None if classes is None else tuple(classes)
    return Reference(values, dataset.name, split, index, only), levels, dataset.transform


def _of_classes(dataset: Dataset, split: str, classes: list[int], config: DictConfig) -> Tensor:
    """The indices of the real samples of these classes."""
    name = "class" if config.labels is None else "labels"
    labels = dataset.train_labels if split == "train" else dataset.test_labels
    if labels is None:
        problem = f"the {split} part of {dataset.name} has no labels to find the real samples of a class"
        remedy = "Choose labelled data. To compare with all real data, give a file of samples and no class."
        raise DataError(name, config[name], problem, remedy)
    missing = [label for label in classes if not bool((labels == label).any())]
    if missing:
        problem = f"the {split} part of {dataset.name} has no samples of class {', '.join(map(str, missing))}"
        raise DataError(name, config[name], problem, f"Its classes are {labels.unique().tolist()}.")
    return torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0]


def _record_of(config: DictConfig, drawn: Drawn | None, place: Workplace) -> Any:
    """The samples.json beside the samples, without its configuration; None if there is none."""
    given = config.samples.get("path") if isinstance(config.samples, DictConfig) else config.samples
    folder = place.directory if drawn is not None else Path(given) if Path(given).is_dir() else Path(given).parent
    file = folder / "samples.json"
    try:
        return {k: v for k, v in read_json(file).items() if k not in ("config", "machine")}
    except (OSError, UnreadableFileError, AttributeError):  # missing, damaged, or something else of that name
        return None


def _print(quality: Quality, metrics: Sequence[Metric], against: Quality | None, file: Path) -> None:
    conditions = quality.conditions
    of, real = conditions["samples"], conditions["reference"]
    print(f"{of['count']} samples against {real['count']} of {real['name']} ({real['split']}), "
          f"features: {conditions['extractor']['name']}")  # fmt: skip
    print(f"\n{quality_table(quality, metrics, against).text()}\n")
    for note in quality.about["notes"]:
        print(note)
    print(f"written to {file}")
