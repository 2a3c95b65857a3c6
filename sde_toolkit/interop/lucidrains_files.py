"""Checkpoints of the package denoising-diffusion-pytorch (``model-1.pt``, ``model-2.pt``, ...), versions 1.0 to 2.3.

file                                    here
model, ema.ema_model                    weights="raw", "ema"
betas, alphas_cumprod                   DiscreteVPSDE
loss_weight                             the prediction: each objective has a weighting of its own
Unet, Unet1D                            LinearAttentionUNet
twice the channels going in             self-conditioning; the network is told zeros
twice the channels coming out           a learned variance (LearnedGaussianDiffusion)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.interop.loading import Reader
from sde_toolkit.interop.lucidrains_unet import unet_of
from sde_toolkit.interop.state_dicts import check_weights_name, content_of, fill, peek, tensors_under
from sde_toolkit.models.prediction import Kind
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import DiscreteIndex
from sde_toolkit.sde import DiscreteVPSDE
from sde_toolkit.transforms import Affine, Transform

__all__ = ["READER"]

_UNIT_TO_MODEL = Affine(shift=0.5, scale=2.0, low=0.0, high=1.0)
_OBJECTIVES: dict[Kind, str] = {"epsilon": "pred_noise", "x0": "pred_x0", "v": "pred_v"}


def _recognises(path: Path) -> bool:
    found = peek(path)
    return {"step", "model", "ema"} <= found.keys() and "betas" in _mapping(found["model"])


def _read(
    path: Path,
    *,
    weights: Literal["ema", "raw"] = "ema",
    prediction: Literal["epsilon", "x0", "v"] | None = None,
    transform: Transform | None = None,
    event_shape: tuple[int, ...] | None = None,
    network: nn.Module | None = None,
    groups: int = 8,
    heads: int | None = None,
    max_period: float = 10000.0,
) -> ScoreModel:
    """The model in a ``model-N.pt``.

    Args:
        path: the file.
        weights: the moving average or the raw weights.
        prediction: the ``objective``, where the file does not show it: ``loss_weight`` of versions before 1.5.
        transform: from the caller's data to [−1, 1]. None: data in [0, 1], as with ``auto_normalize``.
        event_shape: (channels, height, width), which the file does not hold.
        network: the package's own network, where it is none that :class:`~sde_toolkit.networks.LinearAttentionUNet`
            can be.
        groups: ``resnet_block_groups`` of versions before 2.0.
        heads: ``attn_heads`` of networks without memory whose attentions are not of 128 channels.
        max_period: ``sinusoidal_pos_emb_theta``.
    """
    check_weights_name(weights)
    found = content_of(path)
    state = _mapping(found.get("ema")) if weights == "ema" else _mapping(found["model"])
    prefix = "ema_model." if weights == "ema" else ""
    buffers = tensors_under({k: v for k, v in state.items() if "." not in str(k).removeprefix(prefix)}, prefix, path)
    sde = DiscreteVPSDE(tuple(_betas(buffers, path).tolist()))
    kind = _prediction(buffers, prediction)
    tensors = tensors_under(state, f"{prefix}model.", path)
    options: dict[str, Any] = {"transform": transform or _UNIT_TO_MODEL, "event_shape": event_shape}
    if network is None:
        network = unet_of(path, tensors, found.get("version"), groups=groups, heads=heads, max_period=max_period)
        given = network.hyperparameters
        options["learned_variance"] = "range" if given["out_channels"] == 2 * given["in_channels"] else False
    else:
        fill(network, tensors, path)
        if getattr(network, "out_dim", None) == 2 * getattr(network, "channels", 0):
            options["learned_variance"] = "range"
    return ScoreModel(network, sde, kind, time_input=DiscreteIndex(sde.N), **options).eval()


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _betas(buffers: Mapping[str, Tensor], path: Path) -> Tensor:
    """β_1, ..., β_N in float64.

    The file has β and ᾱ in float32. That loses 1 − β near 1 and 1 − ᾱ near 0, so log ᾱ is computed from √ᾱ and
    √(1 − ᾱ), whichever is the smaller.

    Raises:
        CheckpointError: if it is no schedule.
    """
    names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    if any(name not in buffers or buffers[name].ndim != 1 for name in names):
        raise CheckpointError(path, f"it lacks a schedule ({', '.join(names)})", "Is it of a GaussianDiffusion?")
    alpha, sigma = (buffers[name].double() for name in names)
    if alpha.shape != sigma.shape or not bool(((alpha > 0) & (sigma > 0)).all()):
        raise CheckpointError(path, "its schedule is none", "Is it of a GaussianDiffusion?")
    log_alpha_bar = torch.where(alpha > sigma, torch.log1p(-(sigma**2)), 2 * alpha.log())
    betas = -torch.expm1(log_alpha_bar.diff(prepend=torch.zeros(1, dtype=torch.float64)))
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise CheckpointError(path, "its schedule is none: ᾱ does not decrease", "Is it of a GaussianDiffusion?")
    return betas


def _prediction(buffers: Mapping[str, Tensor], told: Kind | None) -> Kind:
    """The parameterisation, from ``loss_weight``: min(SNR, γ) times 1/SNR for ε, 1 for x_0, 1/(1 + SNR) for v.

    Without min-SNR weighting γ is infinite.

    Raises:
        ArgumentError: if the file does not show it and it was not told; if the file shows another than was told.
    """
    if told is not None and told not in _OBJECTIVES:
        raise ArgumentError("prediction", told, "there is no such objective", f"Pass one of {list(_OBJECTIVES)}.")
    shown = _shown_by_weights(buffers)
    if told is not None and told not in (shown or _OBJECTIVES):
        problem = f"the loss weights in the file are those of {' or '.join(repr(_OBJECTIVES[k]) for k in shown)}"
        raise ArgumentError("prediction", told, problem, "Leave it out.")
    if told is not None:
        return told
    if len(shown) == 1:
        return shown[0]
    choices = ", ".join(f'"{kind}" for objective={name!r}' for kind, name in _OBJECTIVES.items())
    problem = "the file does not say what the network predicts"
    raise ArgumentError("prediction", None, problem, f"Look into the training script, and pass {choices}.")


def _shown_by_weights(buffers: Mapping[str, Tensor]) -> list[Kind]:
    """The parameterisations whose loss weights are those in the file. None in files before version 1.5."""
    names = ("loss_weight", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
    if any(name not in buffers for name in names):
        return []
    weight, alpha, sigma = (buffers[name].double() for name in names)
    if not weight.shape == alpha.shape == sigma.shape:
        return []
    ratio = (alpha / sigma) ** 2
    clipped: dict[Kind, Tensor] = {"epsilon": weight * ratio, "x0": weight, "v": weight * (ratio + 1)}
    return [k for k, w in clipped.items() if torch.allclose(w, ratio.clamp(max=float(w.max())), rtol=1e-3, atol=0.0)]


READER = Reader("model-N.pt of denoising-diffusion-pytorch", _recognises, _read)
