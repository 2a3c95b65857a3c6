"""``sde-toolkit train``: from a configuration to a run folder; the same command again goes on where it stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sde_toolkit import checkpoint
from sde_toolkit.checkpoint import checkpoint_folders
from sde_toolkit.cli.setup import choose_device, instantiate, set_threads
from sde_toolkit.data import Dataset
from sde_toolkit.errors import CheckpointError, MissingDependencyError
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.training import train

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Load the data, fill in what depends on them, train, and leave the resolved config beside the checkpoints."""
    try:
        from accelerate import PartialState
    except ImportError:
        raise MissingDependencyError("accelerate", "sde-toolkit train", "train") from None
    set_threads(config.threads)
    device = choose_device(config.device)
    processes = PartialState(cpu=device.type == "cpu")  # those that a launcher started; one, if none did
    main = processes.is_main_process
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
        if (directory / "best").exists():
            print(f"the best one: {str(directory / 'best')!r}")
    processes.destroy_process_group()


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
        CheckpointError: if that network is read, or told the time, in another way; or if the weights do not fit.
    """
    folder = checkpoint.locate(path)
    there, here = ScoreModel.from_pretrained(folder).description(), model.description()
    for name in ("prediction", "time_input"):
        if there[name] != here[name]:
            problem = f"its {name} is {there[name]!r}, that of this run {here[name]!r}: the weights mean something else"
            raise CheckpointError(folder, problem, f"Choose the same {name}.")
    checkpoint.load_weights(folder, model, "ema")


def _root_mean_square(dataset: Dataset) -> float:
    """√E[x_0²] in model space, over some thousand samples: what gives EDM's input and target unit second moment."""
    return dataset.transform.forward(dataset.sample()).double().square().mean().sqrt().item()
