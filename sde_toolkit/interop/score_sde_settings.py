"""How a network of score_sde was built and trained, as far as its checkpoint does not say it.

The words are those of score_sde's configurations: ``sde`` and ``continuous`` of ``config.training``, ``centered`` and
``image_size`` of ``config.data``, the others of ``config.model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sde_toolkit.checks import check_count, check_positive
from sde_toolkit.errors import ArgumentError
from sde_toolkit.interop.score_sde_networks import Structure

__all__ = ["PUBLISHED", "Settings", "settings_of"]

SDES = ("vpsde", "subvpsde", "vesde")


@dataclass(frozen=True)
class Settings:
    """What has to be known beside the tensors; ``image_size`` may be left open."""

    sde: str
    continuous: bool
    centered: bool
    fir: bool
    skip_rescale: bool
    scale_by_sigma: bool
    beta_min: float = 0.1
    beta_max: float = 20.0
    image_size: int | None = None


def _published(kind: str, sde: str, continuous: bool, image_size: int) -> tuple[str, Settings]:
    """A published configuration: the kind of its network, and the settings that were the same in all of that kind."""
    ve, fir, song = sde == "vesde", kind.startswith("ncsnpp"), kind != "ddpm"
    return kind, Settings(sde, continuous, not ve, fir, song, scale_by_sigma=ve, image_size=image_size)


_LARGE = "ncsnpp of large images"
_DEEP = ("", "_deep")
PUBLISHED: dict[str, tuple[str, Settings]] = {
    "vp/ddpm/cifar10": _published("ddpm", "vpsde", False, 32),
    "vp/ddpm/cifar10_continuous": _published("ddpm", "vpsde", True, 32),
    **{f"vp/ddpm/{data}": _published("ddpm", "vpsde", False, 256) for data in ("bedroom", "church", "celebahq")},
    "vp/cifar10_ddpmpp": _published("ddpmpp", "vpsde", False, 32),
    "vp/cifar10_ncsnpp": _published("ncsnpp", "vpsde", False, 32),
    **{f"vp/cifar10_ddpmpp{deep}_continuous": _published("ddpmpp", "vpsde", True, 32) for deep in _DEEP},
    **{f"vp/cifar10_ncsnpp{deep}_continuous": _published("ncsnpp", "vpsde", True, 32) for deep in _DEEP},
    "subvp/cifar10_ddpm_continuous": _published("ddpm", "subvpsde", True, 32),
    **{f"subvp/cifar10_ddpmpp{deep}_continuous": _published("ddpmpp", "subvpsde", True, 32) for deep in _DEEP},
    **{f"subvp/cifar10_ncsnpp{deep}_continuous": _published("ncsnpp", "subvpsde", True, 32) for deep in _DEEP},
    "ve/cifar10_ddpm": _published("ddpm", "vesde", False, 32),
    "ve/cifar10_ncsnpp": _published("ncsnpp", "vesde", False, 32),
    "ve/celeba_ncsnpp": _published("ncsnpp", "vesde", False, 64),
    **{f"ve/cifar10_ncsnpp{deep}_continuous": _published("ncsnpp", "vesde", True, 32) for deep in _DEEP},
    **{
        f"ve/{data}_ncsnpp_continuous": _published(_LARGE, "vesde", True, 256)
        for data in ("bedroom", "church", "celebahq_256", "ffhq_256")
    },
    **{f"ve/{data}_ncsnpp_continuous": _published(_LARGE, "vesde", True, 1024) for data in ("celebahq", "ffhq")},
}
"""The configurations of score_sde by their names in its folder ``configs``: the kind of network, and the settings.

Left out are NCSN and NCSNv2, which are other networks, and ``vp/ddpm/cifar10_unconditional``, whose network the
published code does not build."""

_CHOICES = {
    "sde": 'Pass sde="vpsde" (β from beta_min=0.1 to beta_max=20), "subvpsde" (the same β) or "vesde"',
    "continuous": "Pass continuous=True if the network was trained at all times, False if at N steps",
    "centered": "Pass centered=True for data in [-1, 1] (usual for VP), False for data in [0, 1] (usual for VE)",
    "fir": "Pass fir=True if sizes are halved and doubled with the filter (1, 3, 3, 1), False as in DDPM++",
    "skip_rescale": "Pass skip_rescale=True if residual sums are divided by √2, as in all published networks of its "
    "kind, or False",
    "scale_by_sigma": "Pass scale_by_sigma=True if the output is divided by σ, as in all published networks for VE, or "
    "False",
}


def settings_of(structure: Structure, config: str | None, told: Mapping[str, Any]) -> Settings:
    """The settings of a network: what its structure shows, what the caller tells, and the configuration for the rest.

    Raises:
        ArgumentError: for an unknown value, a contradiction, or what is not told.
    """
    told = {name: value for name, value in told.items() if value is not None}
    _check_values(told)
    given = told if config is None else {**_published_settings(structure, config), **told}
    for name, (value, why) in _shown(structure, given).items():
        if told.get(name, value) != value:
            raise ArgumentError(name, told[name], why, f"Leave {name} out, or pass {value}.")
        given = {**given, name: value}
    for name, choice in _CHOICES.items():
        if name not in given:
            fitting = ", ".join(_fitting(structure))
            remedy = f"{choice}. Or name the published configuration that it was trained with, by config=: {fitting}."
            raise ArgumentError(name, None, "the file does not say it", remedy)
    return Settings(**given)


def _check_values(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name == "sde" and value not in SDES:
            raise ArgumentError(name, value, "there is no such SDE in score_sde", f"Pass one of {', '.join(SDES)}.")
        if name in _CHOICES and name != "sde" and not isinstance(value, bool):
            raise ArgumentError(name, value, "neither True nor False", f"{_CHOICES[name]}.")
        if name in ("beta_min", "beta_max"):
            check_positive(name, value, "The published values are 0.1 and 20.")
        if name == "image_size":
            check_count(name, value, "Pass 32 for images of 32 × 32, for example.")


def _published_settings(structure: Structure, config: str) -> dict[str, Any]:
    """What a published configuration says; it has to be one of such a network."""
    fitting = ", ".join(_fitting(structure)) or "none"
    if config not in PUBLISHED:
        problem, remedy = "there is no such configuration", f"These have such a network: {fitting}."
        raise ArgumentError("config", config, problem, remedy)
    if config not in _fitting(structure):
        time = "Fourier features of time" if structure.fourier else "sinusoids of time"
        problem = f"the file holds another network: {structure.kind} with {time}"
        raise ArgumentError("config", config, problem, f"These have such a network: {fitting}.")
    return dict(vars(PUBLISHED[config][1]))


def _fitting(structure: Structure) -> list[str]:
    """The names of the published configurations with such a network."""

    def is_fourier(settings: Settings) -> bool:
        return settings.sde == "vesde" and settings.continuous

    kind, fourier = structure.kind, structure.fourier
    return [name for name, (own, how) in PUBLISHED.items() if own == kind and is_fourier(how) == fourier]


def _shown(structure: Structure, given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """What need not be told: the value, and why it can be no other."""
    shown: dict[str, tuple[Any, str]] = {}
    if structure.kind == "ddpm":
        plain = "the file holds a network of the class DDPM, which has no such thing"
        shown |= {"fir": (False, plain), "skip_rescale": (False, plain)}
    elif structure.kind != "ddpmpp":
        shown["fir"] = (True, "the file holds the weights of filtered layers, or of pyramids that need the filter")
    if structure.fourier:
        why = "the network embeds log σ by Fourier features; under VP the published configurations have none"
        shown |= {"sde": ("vesde", why), "continuous": (True, "Fourier features are for training at all times")}
    elif given.get("sde") == "vesde":
        why = "the network embeds an index by sinusoids; networks for VE at all times have Fourier features"
        shown["continuous"] = (False, why)
    if given.get("sde") == "subvpsde":
        shown["continuous"] = (True, "score_sde trains networks for sub-VP at all times")
    if given.get("sde") in ("vpsde", "subvpsde"):
        shown["scale_by_sigma"] = (False, "the table of σ in the file is that of VE")
    return shown
