"""The checkpoints of score_sde_pytorch (Song et al. 2021): DDPM, DDPM++ and NCSN++.

    training               the network is told           its output              here
    VP, sub-VP             999 t                         ε = −std · score        VPSDE or SubVPSDE, ScaledTime(999)
    VP at N steps          i − 1 at step i               ε                       DiscreteVPSDE, DiscreteIndex(N)
    VE                     σ, and embeds log σ           −ε/σ = score            VESDE, NoiseLevel(1)
    VE at N steps          (N − 1)(1 − t), rounded       −ε/σ = score            VESDE, RemainingTime(N − 1)

The network divides by σ if it was trained with ``scale_by_sigma``; here the division is left out, and its output is −ε.
Trained at steps, networks are here told fractions between these. Data that are not ``centered`` lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.tensors import check_dense, load_torch_file
from sde_toolkit.interop.filling import filled
from sde_toolkit.interop.loading import Reader
from sde_toolkit.interop.score_sde_networks import FOREIGN, Structure, layers_of, structure_of
from sde_toolkit.interop.score_sde_training import Training, training_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, RemainingTime, ScaledTime
from sde_toolkit.networks import PublishedUNet
from sde_toolkit.sde import VESDE, VPSDE, DiscreteVPSDE, SubVPSDE
from sde_toolkit.transforms import Affine, eight_bit

__all__ = ["READER"]

_DIGITS = 6  # of σ_min and σ_max: the table holds exp(log σ)
_MOST_STEPS = 2**17


def recognises(path: Path) -> bool:
    """Whether a file holds ``model``, ``ema`` and layers by the name of ``all_modules``. Its numbers are not read."""
    if not path.is_file():
        return False
    try:
        found = load_torch_file(path, mapped=True)
    except (CheckpointError, OSError):
        return False
    if not isinstance(found, Mapping) or not isinstance(found.get("model"), Mapping):
        return False
    ours = any("all_modules.0." in name for name in found["model"] if isinstance(name, str))
    return ours and isinstance(found.get("ema"), Mapping) and "shadow_params" in found["ema"]


def read(
    path: Path,
    *,
    config: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    sde: Literal["vpsde", "subvpsde", "vesde"] | None = None,
    continuous: bool | None = None,
    centered: bool | None = None,
    fir: bool | None = None,
    skip_rescale: bool | None = None,
    scale_by_sigma: bool | None = None,
    beta_min: float | None = None,
    beta_max: float | None = None,
    image_size: int | None = None,
    sigma_data: float = 1.0,
) -> ScoreModel:
    """The network of a checkpoint, in evaluation mode, for data of 0..255. Activations are SiLU, as published.

    Widths, depths, attention, pyramids, the embedding of time, N, σ_min and σ_max are read from the file. The other
    settings are asked for, as far as they matter.

    Args:
        path: the file.
        config: the published configuration that it was trained with, such as "ve/cifar10_ncsnpp_continuous": it says
            all that follows. What is told besides takes its place.
        weights: the moving average ("ema"), or those of the last step.
        sde: "vpsde", "subvpsde" or "vesde".
        continuous: whether it was trained at all times, not at N steps.
        centered: whether its data lie in [−1, 1], not in [0, 1].
        fir: whether its blocks halve and double sizes with the filter (1, 3, 3, 1), not with (1, 1).
        skip_rescale: whether its residual sums are divided by √2.
        scale_by_sigma: whether its output is divided by σ.
        beta_min, beta_max: of VP and sub-VP; 0.1 and 20 unless told.
        image_size: height and width of its images; None: they are not fixed.
        sigma_data: the size of the data in model space, as for ``ScoreModel``.

    Raises:
        CheckpointError: if it is damaged, or its network is none of score_sde's DDPM and NCSNpp.
        ArgumentError: naming what the file does not say, with the choices; or what contradicts the file.
    """
    if weights not in ("ema", "raw"):
        raise ArgumentError("weights", weights, "there are no such weights", 'Pass "ema" or "raw".')
    state, averages = _states(path)
    if weights == "ema":
        state = {**state, **_averaged(path, state, averages)}
    structure = structure_of(path, layers_of(path, state))
    told: dict[str, Any] = {"sde": sde, "continuous": continuous, "centered": centered, "fir": fir}
    told |= {"skip_rescale": skip_rescale, "scale_by_sigma": scale_by_sigma}
    told |= {"beta_min": beta_min, "beta_max": beta_max, "image_size": image_size}
    training = training_of(structure, config, told)
    levels = next((t for name, t in state.items() if name.removeprefix("module.") == "sigmas"), None)
    arguments = _conventions(path, training, levels)
    channels, size = structure.arguments["in_channels"], training.image_size
    return ScoreModel(
        _network(path, structure, training),
        **arguments,
        sigma_data=sigma_data,
        transform=eight_bit() if training.centered else Affine(0.0, 1 / 255, low=0.0, high=255.0),
        event_shape=None if size is None else (channels, size, size),
    ).eval()


def _states(path: Path) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The state dict of the model, and the list of averages. Both are checked to be tensors that the file holds."""
    found = load_torch_file(path, mapped=True)
    try:
        state, averages = dict(found["model"]), list(found["ema"]["shadow_params"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(path, "it has no 'model', or no 'ema' with 'shadow_params'", FOREIGN) from None
    tensors = [*state.values(), *averages]
    if not all(isinstance(t, Tensor) for t in tensors) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(path, "its 'model' or its 'shadow_params' holds what is no tensor", FOREIGN)
    check_dense(path, tensors)
    return state, averages


def _averaged(path: Path, state: Mapping[str, Tensor], averages: list[Tensor]) -> dict[str, Tensor]:
    """The averages by name: they stand in the order of the parameters, without the fixed frequencies."""
    names = [name for name in state if name.removeprefix("module.") not in ("sigmas", "all_modules.0.W")]
    if [state[name].shape for name in names] != [average.shape for average in averages]:
        problem = f"its {len(averages)} averages ('shadow_params') do not fit its {len(names)} parameters"
        raise CheckpointError(path, problem, 'Pass weights="raw" for the weights of the last step.')
    return dict(zip(names, averages, strict=True))


def _network(path: Path, structure: Structure, training: Training) -> PublishedUNet:
    """The network of ours, with the weights of the file."""

    def construct() -> PublishedUNet:
        return PublishedUNet(
            **structure.arguments,
            embedding_scale=16.0 if structure.fourier else 1.0,
            attention_gain=0.1,
            taps=(1, 3, 3, 1) if training.fir else (1, 1),
            skip_scale=math.sqrt(0.5) if training.skip_rescale else 1.0,
            groups=32,
            group_width=1 if structure.kind == "ddpm" else 4,
            centred=training.centered,
        )

    return filled(path, construct, len(structure.tensors), lambda: structure.tensors)


def _conventions(path: Path, training: Training, levels: Tensor | None) -> dict[str, Any]:
    """How the network is told the time and read, and its SDE: arguments of ``ScoreModel``."""
    if training.sde == "vesde":
        table = _levels(path, levels)
        told = NoiseLevel(1.0) if training.continuous else RemainingTime(len(table) - 1.0)
        score = {"prediction": "epsilon", "sign": -1} if training.scale_by_sigma else {"prediction": "score"}
        return {"sde": _variance_exploding(path, table), "time_input": told, **score}
    low, high = training.beta_min, training.beta_max
    if training.continuous:
        kind = VPSDE if training.sde == "vpsde" else SubVPSDE
        return {"sde": kind(low, high), "prediction": "epsilon", "time_input": ScaledTime(999.0)}
    N = len(_levels(path, levels))
    betas = torch.linspace(low / N, high / N, N, dtype=torch.float64)
    return {"sde": DiscreteVPSDE(tuple(betas.tolist())), "prediction": "epsilon", "time_input": DiscreteIndex(N)}


def _levels(path: Path, levels: Tensor | None) -> Tensor:
    """The table of σ, in float64."""
    usual = levels is not None and levels.ndim == 1 and levels.is_floating_point() and 2 <= len(levels) <= _MOST_STEPS
    if levels is None or not usual:
        raise CheckpointError(path, "it has no table 'sigmas', whose length is the number of steps", FOREIGN)
    return levels.double()


def _variance_exploding(path: Path, table: Tensor) -> VESDE:
    """The SDE with these levels, from the greatest to the least."""
    low, high = (float(f"{table[end].item():.{_DIGITS}g}") for end in (-1, 0))
    if not 0 < low < high < math.inf:
        raise CheckpointError(path, f"its table 'sigmas' goes from {high:g} to {low:g}", FOREIGN)
    sde = VESDE(low, high)
    meant = sde.sigma(torch.linspace(1, 0, len(table), dtype=torch.float64))
    if not torch.allclose(table, meant, rtol=1e-4, atol=0):
        raise CheckpointError(path, "its table 'sigmas' is not geometric, as that of score_sde is", FOREIGN)
    return sde


READER = Reader("score_sde's checkpoints", recognises, read)
