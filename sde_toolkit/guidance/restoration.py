"""Common measurements in plain words: a part of a picture, a small picture, a blurred one. All are in the data's space.

Each takes one picture, without a batch axis, and returns a model whose samples are whole, large or sharp pictures that
fit it: ``sample(inpaint(model, known, mask), dpmpp_2m(), steps=20, shape=(16, *known.shape)).data``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating
from sde_toolkit.checks import is_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.pixel_operators import Blur, Downsample, Mask
from sde_toolkit.guidance.posterior_method import PosteriorMethod
from sde_toolkit.guidance.posterior_model import Posterior, posterior
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.arguments import check_model

__all__ = ["deblur", "inpaint", "super_resolve"]


def inpaint(
    model: ScoreModel,
    known: Tensor,
    mask: Tensor,
    *,
    noise_std: float | Tensor = 0.0,
    method: PosteriorMethod | None = None,
) -> Posterior:
    """``model`` given the part of a picture where ``mask`` is 1.

    Args:
        known: a whole picture (*event), in data space; where the mask is 0 its values have no meaning, and may be NaN.
        mask: 1 or True where the picture is known; (*event), or broadcast to it.
        noise_std: of the known values, in their unit; 0: they are exact.
        method: default :class:`MMPS`, moment matching posterior sampling.

    Raises:
        ArgumentError: for a picture of another shape, a mask of other numbers than 0 and 1, and as :func:`posterior`.
    """
    known = _picture("known", known, _event_of(model, known))
    A = Mask(mask, tuple(known.shape))
    return posterior(model, A, A(known.unsqueeze(0))[0], noise_std, method=method)


def super_resolve(
    model: ScoreModel,
    low: Tensor,
    factor: int,
    *,
    noise_std: float | Tensor = 0.0,
    method: PosteriorMethod | None = None,
) -> Posterior:
    """``model`` given a picture in which each pixel is the mean of ``factor`` × ``factor`` pixels.

    Args:
        low: the small picture, (C, H/factor, W/factor), in data space; of a signal (D/factor,).
        factor: how much larger the samples are, along each of the last two axes.
        noise_std: of ``low``, in its unit; 0: it is exact.
        method: default :class:`MMPS`, moment matching posterior sampling.

    Raises:
        ArgumentError: for a small picture of another shape, and as :func:`posterior`.
    """
    check_model(model)
    if not is_count(factor):
        raise ArgumentError("factor", factor, "not a whole number, at least 1", "Pass 4, for example.")
    low = as_floating(low, "low")
    axes = min(low.ndim, 2)
    enlarged = (*low.shape[: low.ndim - axes], *(n * factor for n in low.shape[low.ndim - axes :]))
    A = Downsample(factor, model.event_shape or enlarged)
    return posterior(model, A, _picture("low", low, A.measured_shape), noise_std, method=method)


def deblur(
    model: ScoreModel,
    blurred: Tensor,
    kernel: Tensor,
    *,
    noise_std: float | Tensor,
    method: PosteriorMethod | None = None,
) -> Posterior:
    """``model`` given a picture convolved with a kernel, periodic at the edges (:class:`Blur`).

    Args:
        blurred: (*event), in data space.
        kernel: (k, l), or (k,) along the last axis.
        noise_std: of ``blurred``, in its unit. It has to be given: what a blur removes is found back only as far as
            the noise lets it.
        method: default :class:`MMPS`, moment matching posterior sampling.

    Raises:
        ArgumentError: for a picture of another shape, and as :class:`Blur` and :func:`posterior`.
    """
    blurred = _picture("blurred", blurred, _event_of(model, blurred))
    return posterior(model, Blur(kernel, tuple(blurred.shape)), blurred, noise_std, method=method)


def _event_of(model: ScoreModel, picture: Any) -> tuple[int, ...] | None:
    check_model(model)
    return model.event_shape or (tuple(picture.shape) if isinstance(picture, Tensor) else None)


def _picture(name: str, picture: Any, shape: tuple[int, ...] | None) -> Tensor:
    """One picture without a batch axis, floating-point numbers.

    Raises:
        ArgumentError: naming it.
    """
    picture = as_floating(picture, name)
    if tuple(picture.shape) != shape:
        remedy = "Pass one picture, without the batch. For one per sample: posterior(model, A, noise_std=...), and the "
        remedy += "measurements as the condition."
        raise ArgumentError(name, tuple(picture.shape), f"it must have shape {shape}", remedy)
    return picture.to(torch.float64) if picture.device.type != "mps" else picture
