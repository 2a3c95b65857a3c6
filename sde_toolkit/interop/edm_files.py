"""The pickles of NVlabs/edm and edm2: networks in the four preconditionings of Karras et al. 2022, table 1.

    class            D(x; σ) of x = x_0 + σ ε, with F the network                     here
    VPPrecond        x − σ F(x/√(1 + σ²), (M − 1) t)                                  VPSDE, ε, ScaledTime(M − 1)
    VEPrecond        x + σ F(x, log ½σ)                                               VESDE, −ε, NoiseLevel(1, unit=2)
    iDDPMPrecond     x − σ F(x/√(1 + σ²), M − 1 − j), j the index of σ in its table   DiscreteVPSDE, ε, DiscreteIndex(M)
    EDMPrecond       c_skip x + c_out F(c_in x, ¼ log σ)                              EDMSDE, edm
    Precond          the same, of EDM2                                                EDMSDE, edm

The network of iDDPMPrecond has twice the channels: the second half is the variance of a step. Its levels σ are a table,
and EDM's code rounds every σ to the nearest entry; here the index is fractional in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.interop.edm2_trunk import edm2_unet
from sde_toolkit.interop.edm_trunks import dhariwal_unet, song_unet
from sde_toolkit.interop.inert_pickle import PERSISTENT, Built, class_of, read_pickle, refused, state_dict, state_of
from sde_toolkit.interop.loading import Reader
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, ScaledTime
from sde_toolkit.sde import EDMSDE, SDE, VESDE, VPSDE, DiscreteVPSDE
from sde_toolkit.transforms import Identity, eight_bit

__all__ = ["READER"]

_TRUNKS = {"SongUNet": song_unet, "DhariwalUNet": dhariwal_unet, "UNet": edm2_unet}  # by the name of the class
_HEAD = 2**20  # bytes in which a file of this family names the function that restores its objects
_RANGE = (0.002, 80.0)  # EDM's sampler, for networks that say of themselves that they take any σ


def recognises(path: Path) -> bool:
    """Whether a file is a pickle that names the function by which NVIDIA's code restores its objects."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return head[:1] == b"\x80" and all(word.encode() in head for word in PERSISTENT.rsplit(".", 1))


def read(path: Path, *, sigma_min: float | None = None, sigma_max: float | None = None) -> ScoreModel:
    """The averaged network ("ema") of a pickle, in evaluation mode, for data of 0..255.

    Networks of EDM2 for four channels work on latents. They are taken as they come from EDM2's encoder, of size 1/2.

    A condition is a class, (B,) integers; the label K of K classes, and none, mean "no class".

    Args:
        path: the file.
        sigma_min, sigma_max: the noise levels that are used. None: what the file says; for EDMPrecond, which says that
            any can be, the range of EDM's sampler, 0.002 to 80.

    Raises:
        CheckpointError: if it is damaged, or holds anything but networks of EDM. Nothing in it is run.
        ArgumentError: for levels that are none, or where the file has levels of its own.
    """
    found = read_pickle(path)
    items = found if isinstance(found, dict) else found.items if isinstance(found, Built) else {}
    precond = found if class_of(found) in _MODELS else items.get("ema")
    kind, state = class_of(precond), state_of(precond)
    if kind not in _MODELS:
        remedy = f"Read are {', '.join(_MODELS)}. Build any other network yourself, and pass it to ScoreModel."
        raise CheckpointError(path, f"its network 'ema' is {kind or 'nothing'!r}", remedy)
    try:
        tensors = state_dict(precond)
        place = "unet" if kind == "Precond" else "model"
        trunk = (state.get("_modules") or {})[place]
        name, options = class_of(trunk), dict(state_of(trunk)["_init_kwargs"])
        if name not in _TRUNKS or state_of(trunk).get("_init_args"):
            raise ValueError(f"its network is {name!r}; known are {', '.join(_TRUNKS)}")
        inner = {k.removeprefix(f"{place}."): t for k, t in tensors.items() if k.startswith(f"{place}.")}
        network = _TRUNKS[name](path, options, inner)
        levels = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        arguments = _MODELS[kind](state, tensors, levels)
        shape = (state["img_channels"], state["img_resolution"], state["img_resolution"])
        transform = Identity() if kind == "Precond" and shape[0] != 3 else eight_bit()
        return ScoreModel(network, **arguments, transform=transform, event_shape=shape).eval()
    except CheckpointError:
        raise
    except Exception as error:  # a forged option raises any kind
        if isinstance(error, ArgumentError) and (sigma_min, sigma_max) != (None, None):
            raise
        raise refused(path, error) from None


def _vp(state: Mapping[str, Any], tensors: Mapping[str, Tensor], levels: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_levels(levels)
    sde = VPSDE(state["beta_min"], state["beta_min"] + state["beta_d"])
    return {"sde": sde, "prediction": "epsilon", "time_input": ScaledTime(state["M"] - 1)}


def _ve(state: Mapping[str, Any], tensors: Mapping[str, Tensor], levels: Mapping[str, Any]) -> dict[str, Any]:
    sde: SDE = VESDE(*_range(levels, state["sigma_min"], state["sigma_max"]))
    return {"sde": sde, "prediction": "epsilon", "sign": -1, "time_input": NoiseLevel(1.0, unit=2.0)}


def _iddpm(state: Mapping[str, Any], tensors: Mapping[str, Tensor], levels: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_levels(levels)
    squares = tensors["u"].double().flip(0) ** 2  # of σ at t = 0, 1/M, ..., 1
    betas = squares.diff() / (1 + squares[1:])
    sde = DiscreteVPSDE(tuple(betas.tolist()))
    index = DiscreteIndex(state["M"])
    return {"sde": sde, "prediction": "epsilon", "time_input": index, "learned_variance": "range"}


def _edm(state: Mapping[str, Any], tensors: Mapping[str, Tensor], levels: Mapping[str, Any]) -> dict[str, Any]:
    low, high = _range(levels, *_RANGE)
    own_low, own_high = state.get("sigma_min", 0.0), state.get("sigma_max", math.inf)
    sde: SDE = EDMSDE(max(low, own_low), min(high, own_high))
    return {"sde": sde, "prediction": "edm", "sigma_data": state["sigma_data"]}


def _range(levels: Mapping[str, Any], low: float, high: float) -> tuple[float, float]:
    for name, value in levels.items():
        if value is not None and not (is_number(value) and value > 0):
            raise ArgumentError(name, value, "a noise level is a positive number", "Leave it out for the file's own.")
    return tuple(own if told is None else told for told, own in zip(levels.values(), (low, high), strict=True))  # type: ignore[return-value]


def _refuse_levels(levels: Mapping[str, Any]) -> None:
    for name, value in levels.items():
        if value is not None:
            problem = "the noise levels of this network follow from its schedule, which is in the file"
            raise ArgumentError(name, value, problem, "Leave it out. A grid of your own may end earlier.")


_MODELS = {"VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm, "EDMPrecond": _edm, "Precond": _edm}

READER = Reader("EDM's pickle", recognises, read)
