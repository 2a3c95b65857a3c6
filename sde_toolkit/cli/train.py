"""``sde-toolkit train``: from a configuration to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sde_toolkit import checkpoint
from sde_toolkit.cli.setup import choose_device, instantiate, set_threads
from sde_toolkit.data import Dataset
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.training import train

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Load the data, fill in what depends on them, train, and leave the resolved config beside the weights."""
    set_threads(config.threads)
    device = choose_device(config.device)
    directory = Path(HydraConfig.get().runtime.output_dir)
    dataset: Dataset = instantiate(config.data)
    config.event_shape = list(dataset.event_shape)
    if config.model.sigma_data is None:
        config.model.sigma_data = round(_root_mean_square(dataset), 4)
    OmegaConf.save(config, directory / "config.yaml", resolve=True)
    torch.manual_seed(config.seed)  # the network's initial weights
    model = ScoreModel(
        instantiate(config.network),
        instantiate(config.sde),
        config.model.prediction,
        time_input=instantiate(config.model.time_input),
        sigma_data=config.model.sigma_data,
        transform=dataset.transform,
        event_shape=dataset.event_shape,
    )
    if config.initial is not None:
        checkpoint.load_weights(checkpoint.locate(config.initial), model, "ema")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{dataset.name}: {len(dataset.train)} training samples of shape {dataset.event_shape}")
    print(f"{type(model.network).__name__} with {parameters:,} parameters on {model.sde}")
    train(
        model,
        dataset,
        directory,
        instantiate(config.options),
        loss=instantiate(config.loss),
        device=device,
        progress=config.progress,
    )
    print(f"checkpoint: {directory}  (ScoreModel.from_pretrained({str(directory)!r}))")


def _root_mean_square(dataset: Dataset) -> float:
    """√E[x_0²] in model space: what makes EDM's input and target have unit second moment."""
    return dataset.transform.forward(dataset.train).square().mean().sqrt().item()
