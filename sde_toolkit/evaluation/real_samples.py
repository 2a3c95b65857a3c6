"""Real samples that a comparison is held against: from a tensor, an array or a data set, and the judge made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.metrics.judge import Features, Judge, classifier_features, exact_features, flat_features
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.ranges import check_range
from sde_toolkit.transforms import Transform

__all__ = ["RealSamples", "check_split", "judge_of_data", "part_of", "some_of", "usual_features"]

_LEAST = 4  # real samples
_DIGITS = (1, 28, 28)


@dataclass(frozen=True, eq=False)
class RealSamples:
    """``x`` (N, *event) in data space, their source in words, and the transform that comes with them, if one does."""

    x: Tensor
    source: str
    transform: Transform | None = None


def judge_of_data(
    model: ScoreModel,
    data: Any,
    n: int,
    *,
    features: Features | str = "auto",
    n_real: int = 2000,
    split: str = "auto",
    seed: int = 0,
) -> Judge:
    """The judge of sets of n samples of a model against data: a tensor, an array, or a :class:`Dataset`.

    Args:
        features: the space to compare in; or "classifier" for the MNIST classifier, "data" for the data themselves,
            "auto" for the one that is usual, see :func:`usual_features`.
        n_real: so many samples at most, chosen with ``seed``.
        split: of a data set: "train", "test", or "auto", see :func:`part_of`.

    Raises:
        DataError, ArgumentError: for data that are not those of the model.
    """
    check_count("n_real", n_real, "2000 is the default.", least=_LEAST)
    real = _real_samples(data, n_real, split, seed)
    shape = tuple(real.x.shape[1:])
    if shape != tuple(model.event_shape or ()):
        problem = f"its samples have shape {shape}, the model's {model.event_shape}"
        raise DataError("data", tuple(real.x.shape), problem, "Give (N, *event) real samples, as the model draws them.")
    if len(real.x) < _LEAST:
        raise DataError("data", len(real.x), f"fewer than {_LEAST} samples", "Give more of them.")
    remedy = "Pass real data as the model was trained on."
    check_range(model.transform, real.x, real.transform, name="data", remedy=remedy)
    space = usual_features(model, real.x, features) if isinstance(features, str) else features
    return Judge(real.x, n, space, source=real.source, seed=seed)


def _real_samples(data: Any, n_real: int, split: str, seed: int) -> RealSamples:
    if isinstance(data, Dataset):
        part, values, _ = part_of(data, split)
        index = some_of(torch.arange(len(values)), n_real, seed)
        return RealSamples(values[index], f"{part} part of {data.name} ({data.source})", data.transform)
    try:
        x = torch.as_tensor(data if isinstance(data, Tensor) else np.asarray(data)).detach().cpu()
    except (TypeError, ValueError):
        remedy = "Give a tensor or an array (N, *event), or a Dataset of sde_toolkit.data."
        raise DataError("data", type(data).__name__, "not real samples", remedy) from None
    if x.ndim == 0 or x.is_complex() or not bool(x.isfinite().all()):
        remedy = "Give (N, *event) finite real numbers."
        raise DataError("data", f"{tuple(x.shape)}, {x.dtype}", "not samples of finite real numbers", remedy)
    return RealSamples(x[some_of(torch.arange(len(x)), n_real, seed)], "given real samples")


def part_of(dataset: Dataset, split: str = "auto", name: str = "split") -> tuple[str, Any, Tensor | None]:
    """Name, values and labels of a part of a data set: "train", "test", or "auto".

    "auto" is the test part, or the training part if the test part has fewer than 4 samples. ``name``: of the argument.

    Raises:
        ArgumentError: for another word.
    """
    check_split(split, name)
    if split == "train" or (split == "auto" and len(dataset.test) < _LEAST):
        return "train", dataset.train, dataset.train_labels
    return "test", dataset.test, dataset.test_labels


def check_split(split: str, name: str = "split") -> None:
    """Refuse what is no part of a data set.

    Raises:
        ArgumentError: naming the parts.
    """
    if split not in ("auto", "train", "test"):
        raise ArgumentError(name, split, "there is no such part", "Choose train, test or auto.")


def some_of(index: Tensor, n: int, seed: int) -> Tensor:
    """At most n of these places, chosen with ``seed``; all of them in order if there are no more."""
    if len(index) <= n:
        return index
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:n]]


def usual_features(model: ScoreModel, real: Tensor, name: str = "auto") -> Features:
    """The space in which a model's samples are compared with real ones, in data space.

    "auto": an exact mixture's own data with their density; the MNIST classifier for images (1, 28, 28); or the data
    themselves. "classifier" and "data" ask for one of them.

    Raises:
        ArgumentError: for another name, and for the classifier where the images are not its own.
    """
    shape = tuple(real.shape[1:])
    if name == "classifier" and shape != _DIGITS:
        problem = f"the classifier sees images of shape {_DIGITS}, these have {shape}"
        raise ArgumentError("features", name, problem, "Use features=data.")
    if name not in ("auto", "classifier", "data"):
        raise ArgumentError("features", name, "there are no such features", "Choose auto, classifier or data.")
    if model.has_exact_score and hasattr(model, "log_prob"):
        return exact_features(cast(Any, model), real)
    return classifier_features() if shape == _DIGITS and name != "data" else flat_features(model.transform, real)
