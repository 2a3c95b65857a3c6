"""The checkpoints of score_sde_pytorch (Song et al. 2021): DDPM, DDPM++ and NCSN++.

    training               the network is told           its output              here
    VP, sub-VP             999 t                         ε = −std · score        VPSDE or SubVPSDE, ScaledTime(999)
    VP at N steps          i − 1 at step i               ε                       DiscreteVPSDE, DiscreteIndex(N)
    VE                     σ, and embeds log σ           −ε/σ = score            VESDE, NoiseLevel(1)
    VE at N steps          (N − 1)(1 − t), rounded       −ε/σ = score            VESDE, RemainingTime(N − 1)

With ``scale_by_sigma`` the network itself divides by σ. Here this division is left out: the output is −ε. A network
that was trained at steps is told fractions between them. Data that are not ``centered`` lie in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.errors import CheckpointError
from sde_toolkit.interop.filling import filled
from sde_toolkit.interop.loading import Reader
from sde_toolkit.interop.score_sde_networks import OTHER_NETWORKS, Structure, layers_of, structure_of
from sde_toolkit.interop.score_sde_settings import Settings, settings_of
from sde_toolkit.interop.state_dicts import check_weights_name, content_of, peek, tensors_under
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, RemainingTime, ScaledTime
from sde_toolkit.networks import PublishedUNet
from sde_toolkit.sde import VESDE, VPSDE, DiscreteVPSDE, SubVPSDE
from sde_toolkit.transforms import Affine, eight_bit

__all__ = ["READER"]

_DIGITS = 6  # of σ_min and σ_max: the table holds exp(log σ)
_MOST_STEPS = 2**17


def recognises(path: Path) -> bool:
    """Whether a file holds ``model`` with layers named ``all_modules``, and ``ema``. Its numbers are not read."""
    found = peek(path)
    model, ema = found.get("model"), found.get("ema")
    if not isinstance(model, Mapping) or not isinstance(ema, Mapping) or "shadow_params" not in ema:
        return False
    return any("all_modules.0." in str(name) for name in model)


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

    The file says widths, depths, attention, pyramids, the embedding of time, N, σ_min and σ_max. Other settings that
    matter are asked for.

    Args:
        path: the file.
        config: the published configuration that it was trained with, such as "ve/cifar10_ncsnpp_continuous". It answers
            all that follows; arguments given beside it replace single answers.
        weights: the moving average ("ema"), or the weights of the last step ("raw").
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
    state = _state(path, weights)
    structure = structure_of(path, layers_of(path, state))
    told: dict[str, Any] = {"sde": sde, "continuous": continuous, "centered": centered, "fir": fir}
    told |= {"skip_rescale": skip_rescale, "scale_by_sigma": scale_by_sigma}
    told |= {"beta_min": beta_min, "beta_max": beta_max, "image_size": image_size}
    settings = settings_of(structure, config, told)
    levels = next((t for name, t in state.items() if name.removeprefix("module.") == "sigmas"), None)
    arguments = _conventions(path, settings, levels)
    channels, size = structure.arguments["in_channels"], settings.image_size
    return ScoreModel(
        _network(path, structure, settings),
        **arguments,
        sigma_data=sigma_data,
        transform=eight_bit() if settings.centered else Affine(0.0, 1 / 255, low=0.0, high=255.0),
        event_shape=None if size is None else (channels, size, size),
    ).eval()


def _state(path: Path, weights: str) -> dict[str, Tensor]:
    """The state dict in the file, with the averages in place of the parameters if these are asked for."""
    found = content_of(path)
    model, ema = found.get("model"), found.get("ema")
    averages = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(averages, Sequence):
        raise CheckpointError(path, "it has no 'model', or no 'ema' with 'shadow_params'", OTHER_NETWORKS)
    state = dict(model)
    if check_weights_name(weights) == "ema":
        state |= _averages_by_name(path, state, averages)
    return tensors_under(state, "", path)


def _averages_by_name(path: Path, state: Mapping[str, Any], averages: Sequence[Any]) -> dict[str, Any]:
    """The averages stand in the order of the parameters, without the fixed frequencies."""
    names = [name for name in state if str(name).removeprefix("module.") not in ("sigmas", "all_modules.0.W")]
    shapes, wanted = ([getattr(t, "shape", None) for t in part] for part in (averages, map(state.get, names)))
    if shapes != wanted:
        problem = f"its {len(averages)} averages ('shadow_params') do not fit its {len(names)} parameters"
        raise CheckpointError(path, problem, 'Pass weights="raw" for the weights of the last step.')
    return dict(zip(names, averages, strict=True))


def _network(path: Path, structure: Structure, settings: Settings) -> PublishedUNet:
    """The network of ours, with the weights of the file."""

    def construct() -> PublishedUNet:
        return PublishedUNet(
            **structure.arguments,
            embedding_scale=16.0 if structure.fourier else 1.0,
            attention_gain=0.1,
            taps=(1, 3, 3, 1) if settings.fir else (1, 1),
            skip_scale=math.sqrt(0.5) if settings.skip_rescale else 1.0,
            groups=32,
            group_width=1 if structure.kind == "ddpm" else 4,
            centred=settings.centered,
        )

    return filled(path, construct, structure.tensors)


def _conventions(path: Path, settings: Settings, levels: Tensor | None) -> dict[str, Any]:
    """How the network is told the time and read, and its SDE: arguments of ``ScoreModel``."""
    if settings.sde == "vesde":
        table = _levels(path, levels)
        told = NoiseLevel(1.0) if settings.continuous else RemainingTime(len(table) - 1.0)
        score = {"prediction": "epsilon", "sign": -1} if settings.scale_by_sigma else {"prediction": "score"}
        return {"sde": _variance_exploding(path, table), "time_input": told, **score}
    low, high = settings.beta_min, settings.beta_max
    if settings.continuous:
        kind = VPSDE if settings.sde == "vpsde" else SubVPSDE
        return {"sde": kind(low, high), "prediction": "epsilon", "time_input": ScaledTime(999.0)}
    N = len(_levels(path, levels))
    betas = torch.linspace(low / N, high / N, N, dtype=torch.float64)
    return {"sde": DiscreteVPSDE(tuple(betas.tolist())), "prediction": "epsilon", "time_input": DiscreteIndex(N)}


def _levels(path: Path, levels: Tensor | None) -> Tensor:
    """The table of σ, in float64."""
    usual = levels is not None and levels.ndim == 1 and levels.is_floating_point() and 2 <= len(levels) <= _MOST_STEPS
    if levels is None or not usual:
        raise CheckpointError(path, "it has no table 'sigmas', whose length is the number of steps", OTHER_NETWORKS)
    return levels.double()


def _variance_exploding(path: Path, table: Tensor) -> VESDE:
    """The SDE with these levels, from the greatest to the least."""
    low, high = (float(f"{table[end].item():.{_DIGITS}g}") for end in (-1, 0))
    if not 0 < low < high < math.inf:
        raise CheckpointError(path, f"its table 'sigmas' goes from {high:g} to {low:g}", OTHER_NETWORKS)
    sde = VESDE(low, high)
    meant = sde.sigma(torch.linspace(1, 0, len(table), dtype=torch.float64))
    if not torch.allclose(table, meant, rtol=1e-4, atol=0):
        raise CheckpointError(path, "its table 'sigmas' is not geometric, as that of score_sde is", OTHER_NETWORKS)
    return sde


READER = Reader("score_sde's checkpoints", recognises, read)
