"""Score models from diffusers: ``from_diffusers(network or pipeline or folder, scheduler)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sde_toolkit.errors import ArgumentError
from sde_toolkit.interop.diffusers_configs import scheduler_from
from sde_toolkit.interop.diffusers_folders import (
    AUTOENCODERS,
    NETWORKS,
    PipelineParts,
    is_file_of_diffusers,
    is_folder_of_diffusers,
    read_file,
    read_folder,
)
from sde_toolkit.interop.diffusers_networks import DiffusersNetwork
from sde_toolkit.interop.diffusers_pictures import PictureDecoder
from sde_toolkit.interop.diffusers_training import Training, training_of
from sde_toolkit.interop.loading import Reader
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import DiscreteIndex, RemainingTime, ScaledTime
from sde_toolkit.transforms import Affine, Transform, eight_bit

__all__ = ["READER", "from_diffusers"]

# What the pipelines of diffusers tell a network on the straight path at its time t. A negative scale: 1 − t, and it
# answers with x_0 − ε.
_TOLD_ON_FLOWS = {
    "AuraFlowTransformer2DModel": 1.0,
    "ChromaTransformer2DModel": 1.0,
    "CogView4Transformer2DModel": 1000.0,
    "FluxTransformer2DModel": 1.0,
    "Lumina2Transformer2DModel": -1.0,
    "LTXVideoTransformer3DModel": 1000.0,
    "QwenImageTransformer2DModel": 1.0,
    "SD3Transformer2DModel": 1000.0,
    "SanaTransformer2DModel": 1000.0,
    "UNet2DConditionModel": 1000.0,
    "UNet2DModel": 1000.0,
    "WanTransformer3DModel": 1000.0,
}

# Pipelines whose network sees pictures, not latents: what they make of pictures in 0..255.
_PICTURES = {
    "DDIMPipeline": eight_bit(),
    "DDPMPipeline": eight_bit(),
    "PNDMPipeline": eight_bit(),
    "ScoreSdeVePipeline": Affine(0.0, 1 / 255, low=0.0, high=255.0),
}


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    *,
    condition: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    condition_name: str | None = None,
    time_scale: float | None = None,
    config: str | Path | None = None,
    variant: str | None = None,
    transform: Transform | None = None,
    sigma_data: float | None = None,
    event_shape: tuple[int, ...] | None = None,
) -> ScoreModel:
    """The score model of a network of diffusers, with the SDE, the parameterisation and the time of its scheduler.

    ``model.network`` is the network, ``model.decoder`` makes pictures of latents where the pipeline has an autoencoder.

    Args:
        source: a network, a pipeline, the folder of one, or one safetensors file.
        scheduler: the scheduler that the network was trained with: an object, its config, a folder or file of it. It
            replaces that of a pipeline, which may be made for sampling alone.
        condition: what all samples are told, by the names of the network's arguments: tensors of one row, as in
            ``{"encoder_hidden_states": (1, tokens, channels)}``.
        arguments: further arguments of the network, passed as they are.
        condition_name: what a condition that comes with a call is; by default ``class_labels`` for networks that are
            told nothing else, and for all others "**": a dictionary of arguments.
        time_scale: on flow-matching paths the network is told ``time_scale`` · t at time t. It is known for the common
            transformers, and asked for with the others.
        config: for one file: a folder of diffusers that has the config of the network.
        variant: which of several sets of weights in a folder is read, ``"fp16"`` for example.
        transform: from the caller's data to what the network sees. By default grey levels 0..255 to [−1, 1] for the
            pipelines whose networks see pictures, and nothing for all others.
        sigma_data: the size of the data, where the scheduler does not say it. See ``ScoreModel``.
        event_shape: the shape of a sample, if another than ``sample_size`` of the network.

    Raises:
        ArgumentError: for what has to be told and is not, or is none of these.
        CheckpointError: for a folder or file that is damaged, or would run code of its own.
        MissingDependencyError: if a path is given, and diffusers is not installed.
    """
    parts = _parts(source, config, variant)
    chosen = parts.scheduler if scheduler is None else scheduler_from(scheduler)
    if chosen is None:
        remedy = "Pass the one that it was trained with: a folder or file of it, its config, or an object of diffusers."
        raise ArgumentError("scheduler", None, "a network alone does not say how it was trained", remedy)
    training = training_of(chosen)
    network = DiffusersNetwork(
        parts.network, condition=condition, arguments=arguments, keeps_variance=bool(training.learned_variance)
    )
    training = _with_time(training, network, time_scale)
    if training.sigma_data is not None and sigma_data not in (None, training.sigma_data):
        problem = f"the scheduler says {training.sigma_data}"
        raise ArgumentError("sigma_data", sigma_data, problem, "Leave it out, or pass another scheduler.")
    model = ScoreModel(
        network,
        training.sde,
        training.prediction,
        time_input=training.time_input,
        sigma_data=training.sigma_data or sigma_data or 1.0,
        transform=transform or _PICTURES.get(parts.pipeline or ""),
        event_shape=event_shape or network.event_shape,
        learned_variance=training.learned_variance if network.answers_with_halves else False,
        sign=training.sign,
        condition_name=condition_name or network.condition_name,
    )
    model.decoder = None if parts.load_autoencoder is None else PictureDecoder(parts.load_autoencoder)
    return model.train(parts.network.training)


def _parts(source: Any, config: str | Path | None, variant: str | None) -> PipelineParts:
    if isinstance(source, (str, Path)):
        path = Path(source)
        return read_file(path, config) if path.is_file() else read_folder(path, variant)
    if isinstance(source, nn.Module):
        return PipelineParts(source)
    network = next((part for name in NETWORKS if (part := getattr(source, name, None)) is not None), source)
    latent = next((part for name in AUTOENCODERS if (part := getattr(source, name, None)) is not None), None)
    load: Callable[[], nn.Module] | None = None if latent is None else lambda: latent
    return PipelineParts(network, getattr(source, "scheduler", None), type(source).__name__, load)


def _with_time(training: Training, network: DiffusersNetwork, time_scale: float | None) -> Training:
    """The training with what this network is told of the time."""
    embedding = network.config.get("time_embedding_type")
    if training.is_flow:
        scale = _TOLD_ON_FLOWS.get(network.kind) if time_scale is None else time_scale
        if scale is None:
            remedy = (
                "Pass 1000 if its pipeline calls it with timestep=timestep, 1 if with timestep=timestep / 1000. For "
                "another time or sign build a score model of the network yourself."
            )
            raise ArgumentError("time_scale", None, f"what a {network.kind} is told of the time is not known", remedy)
        if scale < 0:
            return replace(training, time_input=RemainingTime(-scale), sign=-1)
        return replace(training, time_input=ScaledTime(scale))
    if time_scale is not None:
        problem = "the scheduler is not one of flow matching, and says itself what the network is told"
        raise ArgumentError("time_scale", time_scale, problem, "Leave it out.")
    if not isinstance(training.time_input, DiscreteIndex):
        return training
    if embedding == "learned":
        return replace(training, time_input=DiscreteIndex(training.time_input.N, whole=True))
    if embedding == "fourier" and network.kind == "UNet2DModel":
        problem = "the network takes the logarithm of its time and divides by it, and the scheduler counts from 0"
        remedy = "Pass the scheduler that it was trained with: ScoreSdeVeScheduler, for example."
        raise ArgumentError("scheduler", type(training.sde).__name__, problem, remedy)
    return training


def _recognises(path: Path) -> bool:
    return is_folder_of_diffusers(path) or is_file_of_diffusers(path)


READER = Reader("folders and files of diffusers", _recognises, from_diffusers)
