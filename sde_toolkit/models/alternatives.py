"""The declarations that people mean when they write another one, and the words in which a user pastes them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.models.perturbed_trial import Manner
from sde_toolkit.models.prediction import Kind
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, NoiseRatio, RemainingTime, ScaledTime
from sde_toolkit.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, DiscreteVPSDE, FlowMatching, SubVPSDE
from sde_toolkit.sde.beta_schedules import scaled_linear_betas
from sde_toolkit.transforms import Affine, Identity

__all__ = ["few_questions", "other_questions", "words_of"]

_OF_T = (ScaledTime(), ScaledTime(999.0), ScaledTime(1000.0))
_OF_NOISE = (NoiseRatio(), NoiseLevel(1.0), NoiseLevel(0.25))
_BACKWARDS = (RemainingTime(), RemainingTime(1000.0))
_INDEX = DiscreteIndex()
_USUAL_TIMES = (*_OF_T, _INDEX, *_OF_NOISE, *_BACKWARDS, NoiseLevel(-0.25))
_RARE = (_OF_T[1], _INDEX, _USUAL_TIMES[-1])  # like others, or rarely meant
_FEW = (VPSDE, VESDE, FlowMatching)


def few_questions(model: ScoreModel, x: Tensor, cautious: bool) -> Iterator[Manner]:
    """At most nineteen of :func:`other_questions`, those that tell most wrong declarations from right ones.

    ``cautious``: no times beyond those that are declared. A network that rounds its time itself and looks it up would
    break a CUDA device for good there.
    """
    declared = Manner.of(model)
    times = tuple(time for time in _other_times(model) if not (cautious and _beyond(model, time)))
    yield from (replace(declared, later=later) for later in (-2.0, 2.0))
    yield from (replace(declared, time_input=time) for time in times if time not in _RARE)
    if declared.prediction == "edm":
        yield replace(declared, prediction="x0")
        yield replace(declared, sigma_data=0.5 if declared.sigma_data != 0.5 else 1.0)
    elif times:
        yield replace(declared, prediction="edm", time_input=_OF_NOISE[-1], sigma_data=_size(x))
    for shift, scale in ((0.5, 2.0), (-1.0, 0.5), (127.5, 1 / 127.5), *_standards(x)[:1]):
        yield replace(declared, shift=shift, scale=scale)
    if declared.prediction != "edm":  # that means the same on every path
        yield from (replace(declared, sde=sde) for sde, _ in _paths() if type(sde) in _FEW and sde != model.sde)


def other_questions(model: ScoreModel, x: Tensor) -> Iterator[Manner]:
    """What else a network may have to be asked: other times, inputs, sizes and ranges of the data, paths.

    x (n, *event): data in model space. A manner stands for all readings of its answers.
    """
    declared = Manner.of(model)
    plain: Kind = "x0" if declared.prediction == "edm" else declared.prediction
    times = _other_times(model)
    steps = getattr(model.sde, "N", None)
    times += (DiscreteIndex(steps),) if times and steps not in (None, _INDEX.N) else ()
    for time in (declared.time_input, *times):
        yield replace(declared, time_input=time)
        if declared.prediction == "edm":
            yield replace(declared, prediction=plain, time_input=time)
    for size in sorted({_size(x), round(x.double().std().item(), 4), 0.5, 1.0}):
        for time in (declared.time_input, *(_OF_NOISE[-1:] if times else ())):
            yield replace(declared, prediction="edm", time_input=time, sigma_data=size)
    yield from (replace(declared, shift=shift, scale=scale) for shift, scale in _ranges(x))
    for sde, own in _paths():
        if sde != model.sde:
            for time in (declared.time_input, *(own if times else ())):
                yield replace(declared, sde=sde, prediction=plain, time_input=time)


def _size(x: Tensor) -> float:
    return round(x.double().square().mean().sqrt().item(), 4)


def _other_times(model: ScoreModel) -> tuple[Any, ...]:
    """The usual time inputs; none for a network that looks its time up in a table, which has no other rows."""
    looked_up = getattr(model.time_input, "whole", False) or model.takes_whole_times
    return () if looked_up else tuple(time for time in _USUAL_TIMES if time != model.time_input)


def _beyond(model: ScoreModel, time: Any) -> bool:
    """Whether a time input tells times that the declared one does not."""
    t = torch.linspace(0.001, 0.999, 9, dtype=torch.float64)
    own, other = model.time_input(model.sde, t), time(model.sde, t)
    return bool((other < own.min()).any() or (other > own.max()).any())


def _ranges(x: Tensor) -> Iterator[tuple[float, float]]:
    """(shift, scale) of the usual maps between [0, 1], [−1, 1], grey levels, and data of mean 0 and size 1."""
    yield from ((0.5, 2.0), (-1.0, 0.5), (127.5, 1 / 127.5), (0.0, 1 / 255), (-1.0, 127.5), (0.0, 255.0))
    yield from ((0.0, 127.5), (0.0, 1 / 127.5), (0.0, 2.0), (0.0, 0.5), (0.5, 1.0), (-0.5, 1.0))
    yield from _standards(x)


def _standards(x: Tensor) -> tuple[tuple[float, float], ...]:
    """To mean 0 and size 1 or 1/2, if the data are far from that: a network that has learned little likes any size."""
    mean, std = x.double().mean().item(), x.double().std().item()
    if abs(mean) < std and 0.5 < std < 2:
        return ()
    return (mean, 1 / std), (mean, 0.5 / std), (mean, 1.0)


@functools.cache
def _paths() -> tuple[tuple[SDE, tuple[Any, ...]], ...]:
    """The usual paths, and the times that networks are told there."""
    return (
        *((sde, _OF_T) for sde in (VPSDE(), SubVPSDE(), CosineVPSDE())),
        (VESDE(), (_OF_T[0], *_OF_NOISE[:2])),
        (EDMSDE(), _OF_NOISE),
        (FlowMatching(), (_OF_T[0], _OF_T[2], *_BACKWARDS)),
        *((discrete, (_INDEX,)) for discrete in (DiscreteVPSDE(), _scaled_linear())),
    )


@functools.cache
def _scaled_linear() -> DiscreteVPSDE:
    """The schedule of Stable Diffusion."""
    return DiscreteVPSDE(tuple(scaled_linear_betas(1000).tolist()))


def words_of(model: ScoreModel, other: Manner) -> str:
    """``ScoreModel(network, ...)`` with the arguments in which a declaration differs, and those that it keeps."""
    words = [f"ScoreModel(network, {_sde_words(model.sde, other.sde)}", f'prediction="{other.prediction}"']
    usual = NoiseLevel() if other.prediction == "edm" else ScaledTime()
    if other.time_input != usual:
        words.append(f"time_input={_name(other.time_input)}")
    if other.sigma_data != 1.0:
        words.append(f"sigma_data={other.sigma_data:.4g}")
    if other.sign != 1:
        words.append("sign=-1")
    if (other.shift, other.scale) != (0.0, 1.0):
        words.append(f"transform={_transform_words(model, other)}")
    return ", ".join(words) + ")"


def _sde_words(declared: SDE, other: SDE) -> str:
    if other == declared:
        return _short(other)
    if other == _scaled_linear():
        return "VPSDE.from_betas(scaled_linear_betas(1000))"
    return _short(other)


def _short(sde: SDE) -> str:
    """It as one writes it; ``sde`` where that is too long."""
    try:
        usual = repr(type(sde)()) == repr(sde)
    except TypeError:
        usual = False
    if usual:  # DDPM's schedule is not shown by repr
        return f"{type(sde).__name__}()" if sde == type(sde)() else "sde"
    return repr(sde) if len(repr(sde)) <= 60 else "sde"


def _name(time_input: Any) -> str:
    return repr(time_input) if type(time_input).__module__.startswith("sde_toolkit") else "the same"


def _transform_words(model: ScoreModel, other: Manner) -> str:
    own = model.transform
    if isinstance(own, Identity):
        return f"Affine({other.shift:.4g}, {other.scale:.4g})"
    if isinstance(own, Affine) and isinstance(own.scale, float) and isinstance(own.shift, float):
        return f"Affine({own.shift + other.shift / own.scale:.4g}, {own.scale * other.scale:.4g})"
    return f"what maps to (y - {other.shift:.4g}) * {other.scale:.4g}, y being what it maps to now"
