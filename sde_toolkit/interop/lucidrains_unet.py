"""``Unet`` and ``Unet1D`` of denoising-diffusion-pytorch as our ``LinearAttentionUNet``: options, and tensors by name.

    versions        blocks                                   attentions
    to 1.6          standardised convolution, GroupNorm      layer norm; linear attention to averaged values
    1.8             convolution, GroupNorm                   RMS norm
    1.9 to 1.11     convolution, GroupNorm                   RMS norm, four keys and values of their own (images)
    from 2.0 on     convolution, RMS norm                    the same

The version stands in the file. Versions 1.7.0 to 1.7.7, of two days of June 2023, differ among themselves and are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.interop.filling import filled
from sde_toolkit.networks import LinearAttentionUNet

__all__ = ["unet_of"]

_USUAL_WIDTH, _USUAL_HEADS = 128, 4  # of attentions, unless somebody changed them
_OTHER = "Build the network that was trained, and pass it as network=."

_NAMES = (
    (r"^time_mlp\.1\.", "time_enter."),
    (r"^time_mlp\.3\.", "time_leave."),
    (r"^init_conv\.", "enter."),
    (r"^final_conv\.", "leave."),
    (r"^final_res_block\.", "last."),
    (r"^mid_block1\.", "middle.0."),
    (r"^mid_attn\.", "middle.1."),
    (r"^mid_block2\.", "middle.2."),
    (r"^downs\.", "down."),
    (r"^ups\.", "up."),
    (r"\.mlp\.1\.", ".film."),
    (r"\.block1\.proj\.", ".enter."),
    (r"\.block1\.norm\.", ".enter_norm."),
    (r"\.block2\.proj\.", ".leave."),
    (r"\.block2\.norm\.", ".leave_norm."),
    (r"\.res_conv\.", ".skip."),
    (r"\.to_qkv\.", ".enter."),
    (r"\.to_out\.0\.", ".leave."),
    (r"\.to_out\.1\.", ".leave_norm."),
    (r"\.to_out\.", ".leave."),
    (r"\.mem_kv$", ".memory"),
    (r"\.g$", ".weight"),
    (r"\.3\.1\.", ".3.conv."),
)


def unet_of(
    path: Path, tensors: Mapping[str, Tensor], version: Any, *, groups: int, heads: int | None, max_period: float
) -> LinearAttentionUNet:
    """The network in evaluation mode.

    Args:
        path: the file, for the errors.
        tensors: the state dict of the ``Unet``.
        version: what the file says of the package.
        groups, heads, max_period: what its tensors do not show, as in the reader.

    Raises:
        CheckpointError: if it is no such network.
        ArgumentError: if its number of heads is to be told.
    """
    plain = {name.replace(".fn.fn.", ".").replace(".fn.norm.", ".norm."): value for name, value in tensors.items()}
    try:
        options = _options(plain, heads)
    except (KeyError, IndexError, ValueError) as error:
        problem = f"its network is no Unet of this package ({type(error).__name__}: {error})"
        raise CheckpointError(path, problem, _OTHER) from None
    options |= {"norms": _norms(path, plain, version), "groups": groups, "max_period": max_period}

    def renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_our_name(name, options): _in_our_shape(name, found) for name in found}

    return filled(path, lambda: LinearAttentionUNet(**options), plain, renamed)


def _norms(path: Path, tensors: Mapping[str, Tensor], version: Any) -> str:
    """Which norms it has."""
    if "downs.0.0.block1.norm.g" in tensors:
        return "rms"
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version) if isinstance(version, str) else None
    number = tuple(map(int, found.groups())) if found else None
    if number is None or number[:2] == (1, 7):
        said = "does not say of which version it is" if number is None else f"is of version {version}"
        raise CheckpointError(path, f"it {said}, and the norms differ between versions", _OTHER)
    return "standardised" if number < (1, 7, 0) else "group"


def _options(tensors: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    """The arguments of our network that the shapes of the tensors show."""
    first, last = tensors["init_conv.weight"], tensors["final_conv.weight"]
    entering, leaving = first.shape[1], last.shape[0]
    estimate = entering == 2 * leaving
    channels = leaving if estimate else entering
    if leaving not in (channels, 2 * channels) or "time_mlp.0.weights" in tensors:
        raise ValueError("it has other inputs or outputs")
    attentions: list[_Attention] = []
    widths: list[int] = []
    while f"downs.{len(widths)}.2.to_qkv.weight" in tensors:
        place = f"downs.{len(widths)}."
        attentions.append(_attention(tensors, f"{place}2.", heads))
        widths.append(tensors[f"{place}3.1.weight" if f"{place}3.1.weight" in tensors else f"{place}3.weight"].shape[0])
    memory = {attention.memory for attention in attentions}
    if len(memory) != 1:
        raise ValueError("it has no attentions, or attentions of unequal memory")
    return {
        "in_channels": channels,
        "out_channels": leaving,
        "enter_width": first.shape[0],
        "widths": widths,
        "embedding_width": tensors["time_mlp.1.weight"].shape[1],
        "full_attention_levels": [level for level, attention in enumerate(attentions) if attention.full],
        "heads": [attention.heads for attention in attentions],
        "head_width": [attention.head_width for attention in attentions],
        "memory": memory.pop(),
        "dims": first.ndim - 2,
        "self_conditioning": estimate,
    }


class _Attention(NamedTuple):
    """What the tensors of an attention show."""

    full: bool
    heads: int
    head_width: int
    memory: int


def _attention(tensors: Mapping[str, Tensor], place: str, told_heads: int | None) -> _Attention:
    width = tensors[f"{place}to_qkv.weight"].shape[0] // 3
    full, memory = _is_full(tensors, place), tensors.get(f"{place}mem_kv")
    if memory is not None:
        heads, known = memory.shape[1], memory.shape[2 if full else 3]
    else:
        heads, known = told_heads or (_USUAL_HEADS if width == _USUAL_WIDTH else 0), 0
    if heads < 1 or width % heads:
        problem = f"the file does not say how many heads its attentions of {width} channels have"
        raise ArgumentError("heads", told_heads, problem, "Pass attn_heads of the training script; the usual is 4.")
    return _Attention(full, heads, width // heads, known)


def _is_full(tensors: Mapping[str, Tensor], place: str) -> bool:
    """Whether an attention is full: linear ones have a norm after their last map."""
    return f"{place}to_out.weight" in tensors


def _our_name(name: str, options: Mapping[str, Any]) -> str:
    """The name of a tensor in our network."""
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    last = len(options["widths"]) - 1
    name = re.sub(r"^up\.(\d+)", lambda found: f"up.{last - int(found[1])}", name)
    halves = re.match(r"down\.(\d+)\.3\.(weight|bias)$", name)
    if halves and int(halves[1]) < last:  # in one dimension
        return f"down.{halves[1]}.3.conv.{halves[2]}"
    return name


def _in_our_shape(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """A tensor as our network has it: attentions have linear layers for their convolutions of one tap."""
    value = tensors[name]
    if name.endswith(".g"):
        return value.flatten()
    place, own, _ = name.rpartition("mem_kv")
    if own:
        return value if _is_full(tensors, place) else value.mT.contiguous()
    return value.flatten(1) if re.search(r"\.(to_qkv|to_out|to_out\.0)\.weight$", name) else value
