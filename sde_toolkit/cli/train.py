"""``sde-toolkit train``: train a network into a run folder. The same command again continues where it stopped."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from sde_toolkit.cli.classes import fill_in_classes
from sde_toolkit.cli.folders import CONFIG, holding, output_folder, save_config
from sde_toolkit.cli.setup import choose_device, instantiate, listed, set_threads, switch
from sde_toolkit.cli.signals import Stopped
from sde_toolkit.data import Dataset
from sde_toolkit.errors import CheckpointError, MissingDependencyError, SDEToolkitError
from sde_toolkit.files.plain import UnreadableFileError, read_yaml
from sde_toolkit.jobs.fingerprints import differences
from sde_toolkit.models import checkpoint
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.models.rescheduled import reschedule
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE
from sde_toolkit.training import Interrupted, TrainingOptions, train
from sde_toolkit.training.logbook import LOG

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Load the data, fill in what depends on them, train, and write the resolved config beside the checkpoints."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependencyError("accelerate", "sde-toolkit train", "train", error) from None
    set_threads(config.threads)
    device = choose_device(config.device)
    directory = output_folder(config)
    progress = switch(config, "progress")
    main = PartialState(cpu=device.type == "cpu").is_main_process  # of those that a launcher started
    with (
        holding(directory, "train", [] if _has_config(directory) else [CONFIG], main=main),
        _reporting_stops(directory),
    ):
        _train(config, directory, device, main, progress)


def _train(config: DictConfig, directory: Path, device: torch.device, main: bool, progress: bool) -> None:
    dataset: Dataset = instantiate(config.data)
    if config.transform is not None:
        dataset = dataclasses.replace(dataset, transform=instantiate(config.transform))
    config.event_shape = list(dataset.event_shape)
    if config.model.sigma_data is None:
        config.model.sigma_data = round(_root_mean_square(dataset), 4)
    fill_in_classes(config, dataset)
    model = _model(config, dataset)
    before, had_config = checkpoint_folders(directory), (directory / CONFIG).exists()
    if config.initial is not None and not before:
        _start_from(config.initial, model)
    options, parts = instantiate(config.options), {name: instantiate(config[name]) for name in PARTS}
    watchers = [instantiate(watcher) for watcher in config.watchers or []]
    if main:
        _announce(dataset, model, options)
        if before:
            print(f"continuing from step {before[-1][0]} of {options.steps}: {before[-1][1]}")
        else:
            save_config(config, directory)
    given = {**parts, "watchers": watchers, "trackers": listed(config.trackers), "device": device, "progress": progress}
    with _removed_if_refused(directory / CONFIG, directory / LOG, new=main and not before and not had_config):
        train(model, dataset, directory, options, **given)
    if main:
        save_config(config, directory)
        print(f"last checkpoint: {checkpoint.locate(directory)}")
        print(f"use it: ScoreModel.from_pretrained({str(directory)!r})")
        if checkpoint.best_checkpoint(directory) is not None:
            print(f"the best one: {str(directory / 'best')!r}")


@contextmanager
def _removed_if_refused(file: Path, log: Path, new: bool) -> Iterator[None]:
    """Remove a ``new`` file if the code inside is refused before it logs anything."""
    logged = log.stat().st_mtime_ns if log.exists() else None
    try:
        yield
    except SDEToolkitError:
        if new and logged == (log.stat().st_mtime_ns if log.exists() else None):
            file.unlink(missing_ok=True)
        raise


def _announce(dataset: Dataset, model: ScoreModel, options: TrainingOptions) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    count = len(dataset.train) if dataset.stream is None else "a stream of"
    print(f"{dataset.name}: {count} training samples of shape {dataset.event_shape}")
    print(f"{type(model.network).__name__} with {parameters:,} parameters on {model.sde}")
    if model.num_classes:
        print(f"{model.num_classes} classes; {options.label_dropout:.0%} of the labels are hidden")
    print(f"the average of the weights (ema) is worth using from step {options.average_from} on")


def _has_config(directory: Path) -> bool:
    """Whether the folder holds the config.yaml of a run. (Earlier versions did not note it among their files.)"""
    if not checkpoint_folders(directory):
        return False
    try:
        found = read_yaml(directory / CONFIG)
    except (OSError, UnreadableFileError):
        return False
    return isinstance(found, dict) and {"options", "network", "sde", "model"} <= found.keys()


@contextmanager
def _reporting_stops(directory: Path) -> Iterator[None]:
    """If Ctrl-C or SIGTERM ends the run, say which step is saved."""
    try:
        yield
    except Interrupted as stop:
        where = f"stopped at step {stop.step}, which is saved in {directory}"
        raise Stopped(f"{where}: the same command continues from there.", stop.status) from None
    except KeyboardInterrupt as stop:
        kept = "Nothing was saved yet."
        for step, _ in checkpoint_folders(directory)[-1:]:
            kept = f"The last checkpoint in {directory} is of step {step}: the same command continues from there."
        raise Stopped.of(stop, kept) from None


PARTS = ("loss", "times", "augmentation")


def _model(config: DictConfig, dataset: Dataset) -> ScoreModel:
    torch.manual_seed(config.seed)  # the network's initial weights
    outputs = {"out_channels": 2 * dataset.event_shape[0]} if switch(config, "model.learned_variance") else {}
    return ScoreModel(
        instantiate(config.network, **outputs),
        instantiate(config.sde),
        config.model.prediction,
        time_input=instantiate(config.model.time_input),
        sigma_data=config.model.sigma_data,
        transform=dataset.transform,
        event_shape=dataset.event_shape,
        learned_variance=config.model.learned_variance,
    )


def _start_from(path: str, model: ScoreModel) -> None:
    """Load the EMA weights of another checkpoint, if they mean the same in this model.

    Raises:
        CheckpointError: if the other network predicts something else or is told the time in another way; if the SDEs
            differ and its answers at equal σ/α change by more than 2 %; or if the weights do not fit.
    """
    folder = checkpoint.locate(path)
    theirs = ScoreModel.from_pretrained(folder)
    there, here = theirs.description(), model.description()
    fixed, sde = ([{name: side[name] for name in names} for side in (there, here)] for names in (_MEANING, ("sde",)))
    found, off = differences(*fixed), 0.0
    if not found and differences(*sde):
        off = _answers_off(theirs, model.sde)
        found = differences(*sde) if off > _NEGLIGIBLE else []
    if found:
        why = f": at equal noise its answers would be {100 * off:.2g} % off" if off else ""
        why = ": the two SDEs have no noise level in common" if math.isinf(off) else why
        problem = f"it differs from this run in {', '.join(found)}, and its weights mean something else here{why}"
        remedy = "Choose the same settings. (In Python, a run starts from the weights of any model that you pass.)"
        raise CheckpointError(folder, problem, remedy)
    checkpoint.load_weights(folder, model, "ema")


_MEANING = ("prediction", "time_input")
_NEGLIGIBLE = 0.02


@torch.no_grad()
def _answers_off(model: ScoreModel, sde: SDE) -> float:
    """The error of x̂_0 if the network's SDE is replaced by ``sde``: the largest root mean square at a few noise levels.

    Its unit is min(1, σ/α), about the largest error possible. It is zero for networks that scale x_t themselves and are
    told σ/α, as EDM's are. It is infinite if the SDEs have no noise level in common.
    """
    told = copy.copy(model)
    told.sde = sde
    ends = [float(path.half_log_snr(t)) for path in (model.sde, sde) for t in (1.0, path.likelihood_end)]
    low, high = max(ends[0], ends[2], -3.0), min(ends[1], ends[3], 4.0)
    if not low < high:
        return math.inf
    right = reschedule(model, sde)
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 8, *(model.event_shape or ()), generator=generator)
    labels = torch.zeros(8, dtype=torch.long) if model.num_classes else None
    found = []
    for half_log_snr in torch.linspace(low, high, 7, dtype=torch.float64)[1:-1]:
        t = sde.inverse_half_log_snr(half_log_snr)
        x = sde.perturb(x_0, t, noise)
        error = told(x, t, labels).x_0 - right(x, t, labels).x_0
        found.append(float(error.square().mean().sqrt() / torch.exp(-half_log_snr).clamp(max=1)))
    return max(found)


def _root_mean_square(dataset: Dataset) -> float:
    """√E[x_0²] in model space, over some thousand samples. As σ_d it gives EDM's input and target second moment 1."""
    return dataset.transform.forward(dataset.sample()).double().square().mean().sqrt().item()
