"""The ``.pt`` files of openai/guided-diffusion and improved-diffusion: state dicts of ADM's network, without a config.

    read from shapes and names       widths, depth, attention levels, classes, learned variance, kind of resampling
    asked for                        heads, attention order, noise schedule, number of steps, rescaled time steps

``config=`` answers all of it for the published files. The data are images of 0..255 that training scaled to [−1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import check_grid
from sde_toolkit.interop.adm_trunk import adm_unet, shape_of
from sde_toolkit.interop.loading import Reader
from sde_toolkit.interop.state_dicts import content_of, peek, tensors_under
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import DiscreteIndex
from sde_toolkit.sde import DiscreteVPSDE
from sde_toolkit.sde.beta_schedules import cosine_betas, linear_betas
from sde_toolkit.transforms import eight_bit

__all__ = ["READER", "adm_grid"]

_KEYS = {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight", "out.2.weight"}
_USUAL: dict[str, Any] = {"attention_order": "old", "noise_schedule": "linear", "steps": 1000}
_WIDE = {**_USUAL, "head_width": 64, "width": 256}
_LSUN = {**_WIDE, "image_size": 256, "classes": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "64x64_diffusion": {
        **_USUAL,
        "head_width": 64,
        "attention_order": "new",
        "noise_schedule": "cosine",
        "image_size": 64,
        "width": 192,
        "classes": True,
    },
    "128x128_diffusion": {**_USUAL, "heads": 4, "image_size": 128, "width": 256, "classes": True},
    "256x256_diffusion": {**_WIDE, "image_size": 256, "classes": True},
    "256x256_diffusion_uncond": {**_WIDE, "image_size": 256, "classes": False},
    "512x512_diffusion": {**_WIDE, "image_size": 512, "classes": True},
    "lsun_bedroom": _LSUN,
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN,
    "lsun_horse_nodropout": _LSUN,
}
"""The published files by their names: what the README of guided-diffusion says of them."""

_QUESTIONS = {
    "heads": "heads=4 (--num_heads), or head_width=64 (--num_head_channels)",
    "attention_order": 'attention_order="old" (heads, then queries, keys, values: their default), or "new" '
    "(--use_new_attention_order True)",
    "noise_schedule": 'noise_schedule="linear" or "cosine" (--noise_schedule), or a list of betas',
    "steps": "steps=1000 (--diffusion_steps)",
    "rescale_timesteps": "rescale_timesteps=True if the network was told index · 1000/steps, else False",
}


def recognises(path: Path) -> bool:
    """Whether a file is a state dict with the names of ADM's layers."""
    return peek(path).keys() >= _KEYS


def read(
    path: Path,
    *,
    config: str | None = None,
    heads: int | None = None,
    head_width: int | None = None,
    attention_order: Literal["old", "new"] | None = None,
    noise_schedule: Literal["linear", "cosine"] | Sequence[float] | None = None,
    steps: int | None = None,
    rescale_timesteps: bool | None = None,
    prediction: Literal["epsilon", "x0"] = "epsilon",
    image_size: int | None = None,
) -> ScoreModel:
    """The network of a file, in evaluation mode, for data of 0..255.

    A network with classes needs one for every sample: ``condition``, (B,) integers.

    Args:
        path: the file.
        config: the name of a published file, ``"256x256_diffusion_uncond"`` for example. It answers what follows.
        heads: attention heads of every layer (``--num_heads``).
        head_width: channels of a head (``--num_head_channels``), instead.
        attention_order: how a layer's rows are ordered: "old", heads before queries, keys and values, or "new"
            (``--use_new_attention_order``).
        noise_schedule: "linear", "cosine", or β_1, ..., β_N.
        steps: N (``--diffusion_steps``).
        rescale_timesteps: whether the network is told index · 1000/N. With N = 1000 it makes no difference.
        prediction: "x0" for networks that were trained with ``--predict_xstart True``.
        image_size: the side of the images, which a checkpoint keeps as ``event_shape``. None: any size.

    Raises:
        CheckpointError: if the file is damaged, or of an upsampler or of another network.
        ArgumentError: naming all that is missing, with the choices.
    """
    told = {
        "heads": heads,
        "head_width": head_width,
        "attention_order": attention_order,
        "noise_schedule": noise_schedule,
        "steps": steps,
        "rescale_timesteps": rescale_timesteps,
        "image_size": image_size,
    }
    found = {**_config(config), **{name: value for name, value in told.items() if value is not None}}
    if isinstance(found.get("noise_schedule"), Sequence) and not isinstance(found["noise_schedule"], str):
        found.setdefault("steps", len(found["noise_schedule"]))
    _check(found, prediction)
    tensors = tensors_under(content_of(path), "", path)
    seen = shape_of(path, tensors)
    if config is not None and (seen.embedding_width, seen.classes is not None) != (found["width"], found["classes"]):
        problem = f"this file has {seen.embedding_width} channels and {seen.classes or 'no'} classes"
        raise ArgumentError("config", config, problem, f"Pass another one of {', '.join(CONFIGS)}, or none.")
    betas = _betas(found["noise_schedule"], found["steps"])
    scale = 1000 / len(betas) if found.get("rescale_timesteps") else 1.0
    network = adm_unet(path, tensors, seen, found, embedding_scale=scale)
    side = found.get("image_size")
    return ScoreModel(
        network,
        DiscreteVPSDE(tuple(betas)),
        prediction,
        time_input=DiscreteIndex(len(betas)),
        transform=eight_bit(),
        event_shape=None if side is None else (seen.channels, side, side),
        learned_variance="range" if seen.outputs == 2 * seen.channels else False,
    ).eval()


def _config(name: str | None) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name not in CONFIGS:
        raise ArgumentError("config", name, "no published file has this name", f"Use one of {', '.join(CONFIGS)}.")
    return CONFIGS[name]


def _check(found: Mapping[str, Any], prediction: str) -> None:
    """Refuse answers that are none, and ask for those that are missing, all at once."""
    if prediction not in ("epsilon", "x0"):
        remedy = 'Pass "epsilon", or "x0" for networks of --predict_xstart True.'
        raise ArgumentError("prediction", prediction, "guided-diffusion has no such networks", remedy)
    for name in ("heads", "head_width", "image_size", "steps"):
        check_count(name, 1 if found.get(name) is None else found[name], "Pass a whole number, as in the flags.")
    order = found.get("attention_order")
    if order not in (None, "old", "new"):
        raise ArgumentError("attention_order", order, "there is no such order", 'Pass "old" or "new".')
    missing = [name for name in _QUESTIONS if found.get(name) is None]
    if found.get("head_width") is not None and "heads" in missing:
        missing.remove("heads")
    if found.get("steps") in (None, 1000) and "rescale_timesteps" in missing:
        missing.remove("rescale_timesteps")  # it makes no difference, or is asked for later
    if missing:
        asked = "; ".join(_QUESTIONS[name] for name in missing)
        remedy = f"Pass {asked}. For a published file pass config= one of {', '.join(CONFIGS)} instead."
        raise ArgumentError(missing[0], None, "the file does not say it", remedy)


def _betas(schedule: Any, steps: int) -> list[float]:
    if isinstance(schedule, str):
        if schedule == "cosine":
            return [float(beta) for beta in cosine_betas(steps)]
        if schedule == "linear":
            return [float(beta) for beta in linear_betas(steps, 0.1 / steps, 20 / steps)]
        remedy = 'Pass "linear", "cosine", or a list of betas.'
        raise ArgumentError("noise_schedule", schedule, "guided-diffusion has no such schedule", remedy)
    betas = [float(beta) for beta in schedule]
    if len(betas) != steps:
        raise ArgumentError("noise_schedule", schedule, f"{len(betas)} betas and steps={steps}", "Leave steps out.")
    return betas


def adm_grid(N: int, respacing: str | Sequence[int]) -> Tensor:
    """The grid of ``--timestep_respacing``: times (i + 1)/N of the indices i that it keeps, and 0.

    Args:
        N: ``--diffusion_steps``.
        respacing: "ddim25" for every N/25-th index from 0 on; "250" for 250 indices from the first to the last; numbers
            with commas in between, or a list of numbers, for as many indices in each of so many equal sections.

    Raises:
        ArgumentError: if there is no such grid.
    """
    check_count("N", N, "DDPM has 1000.")
    remedy = 'Pass "ddim25", "250", "10,15,20" or [10, 15, 20], for example.'
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        strides = [n for n in range(1, N + 1) if str(len(range(0, N, n))) == respacing.removeprefix("ddim")]
        if not strides:
            raise ArgumentError("respacing", respacing, f"no whole stride makes so many steps of {N}", remedy)
        kept = list(range(0, N, strides[0]))
    else:
        counts = respacing.split(",") if isinstance(respacing, str) else [str(count) for count in respacing]
        if not counts or not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
            raise ArgumentError("respacing", respacing, "not a list of numbers of steps", remedy)
        kept = _in_sections(N, [int(count) for count in counts])
    return check_grid((torch.tensor([*sorted(kept, reverse=True), -1], dtype=torch.float64) + 1) / N)


def _in_sections(N: int, counts: list[int]) -> list[int]:
    """So many indices of each section, from its first to its last; the first alone for one."""
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = N // len(counts) + (section < N % len(counts))
        if count > length:
            problem = f"section {section + 1} has {length} indices, fewer than {count}"
            raise ArgumentError("respacing", counts, problem, "Pass smaller numbers.")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        kept += [start + round(k * stride) for k in range(count)]
        start += length
    return kept


READER = Reader("guided-diffusion's .pt", recognises, read)
