"""``sde-toolkit train``: from a configuration to a run folder; the same command again goes on where it stopped."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sde_toolkit import checkpoint
from sde_toolkit.checkpoint import checkpoint_folders
from sde_toolkit.cli.setup import choose_device, instantiate, set_threads
from sde_toolkit.data import Dataset
from sde_toolkit.errors import CheckpointError, MissingDependencyError
from sde_toolkit.evaluation.fingerprints import differences
from sde_toolkit.rescheduled import reschedule
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.sde import SDE
from sde_toolkit.training import train

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Load the data, fill in what depends on them, train, and leave the resolved config beside the checkpoints."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependencyError("accelerate", "sde-toolkit train", "train", error) from None
    set_threads(config.threads)
    device = choose_device(config.device)
    main = PartialState(cpu=device.type == "cpu").is_main_process  # of those that a launcher started
    directory = Path(HydraConfig.get().runtime.output_dir)
    dataset: Dataset = instantiate(config.data)
    if config.transform is not None:
        dataset = dataclasses.replace(dataset, transform=instantiate(config.transform))
    config.event_shape = list(dataset.event_shape)
    if config.model.sigma_data is None:
        config.model.sigma_data = round(_root_mean_square(dataset), 4)
    model = _model(config, dataset)
    before = checkpoint_folders(directory)
    if config.initial is not None and not before:
        _start_from(config.initial, model)
    options, parts = instantiate(config.options), {name: instantiate(config[name]) for name in PARTS}
    watchers = [instantiate(watcher) for watcher in config.watchers or []]
    if main:
        parameters = sum(p.numel() for p in model.parameters())
        count = len(dataset.train) if dataset.stream is None else "a stream of"
        print(f"{dataset.name}: {count} training samples of shape {dataset.event_shape}")
        print(f"{type(model.network).__name__} with {parameters:,} parameters on {model.sde}")
        print(f"the average of the weights (ema) is worth using from step {options.average_from} on")
        if before:
            print(f"going on from step {before[-1][0]} of {options.steps}: {before[-1][1]}")
        else:
            OmegaConf.save(config, directory / "config.yaml", resolve=True)
    train(
        model,
        dataset,
        directory,
        options,
        **parts,
        watchers=watchers,
        trackers=[config.trackers] if isinstance(config.trackers, str) else list(config.trackers or []),
        device=device,
        progress=config.progress,
    )
    if main:
        OmegaConf.save(config, directory / "config.yaml", resolve=True)
        print(f"last checkpoint: {checkpoint.locate(directory)}")
        print(f"use it: ScoreModel.from_pretrained({str(directory)!r})")
        if checkpoint.best_checkpoint(directory) is not None:
            print(f"the best one: {str(directory / 'best')!r}")


PARTS = ("loss", "times", "augmentation")


def _model(config: DictConfig, dataset: Dataset) -> ScoreModel:
    torch.manual_seed(config.seed)  # the network's initial weights
    outputs = {"out_channels": 2 * dataset.event_shape[0]} if config.model.learned_variance else {}
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
    """The EMA weights of another checkpoint, if they mean the same in this model.

    Raises:
        CheckpointError: if that network is asked something else, told the time in another way, or, at equal σ/α, shown
            or told something else because the SDE is another one; or if the weights do not fit.
    """
    folder = checkpoint.locate(path)
    theirs = ScoreModel.from_pretrained(folder)
    there, here = theirs.description(), model.description()
    fixed, sde = ([{name: side[name] for name in names} for side in (there, here)] for names in (_MEANING, ("sde",)))
    found, off = differences(*fixed), 0.0
    if not found and differences(*sde):
        off = _moved(theirs, model.sde)
        found = differences(*sde) if off > _NEGLIGIBLE else []
    if found:
        why = f": at equal noise its answers would be {100 * off:.2g} % off" if off else ""
        why = ": the two SDEs have no noise level in common" if math.isinf(off) else why
        problem = f"it differs from this run in {', '.join(found)}, and its weights mean something else here{why}"
        remedy = "Choose the same. To start from its weights all the same, pass train() a model with the network of "
        raise CheckpointError(folder, problem, remedy + f"ScoreModel.from_pretrained({str(folder)!r}).")
    checkpoint.load_weights(folder, model, "ema")


_MEANING = ("prediction", "time_input")
_NEGLIGIBLE = 0.02


@torch.no_grad()
def _moved(model: ScoreModel, sde: SDE) -> float:
    """How far the network's answers are off if it is told that it stands under ``sde``: the largest root mean square of
    a few noise levels, for x̂_0 in units of min(1, σ/α), which is about how far off answers can be.

    Zero for networks that see x_t in their own scale and are told σ/α, as EDM's are. Infinite if no noise is common.
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
    """√E[x_0²] in model space, over some thousand samples: what gives EDM's input and target unit second moment."""
    return dataset.transform.forward(dataset.sample()).double().square().mean().sqrt().item()
