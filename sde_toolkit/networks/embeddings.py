"""How a trunk is given time, class and augmentation: sinusoids, a small MLP, and a learned row per class.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (sinusoidal embedding of the time index).
    Song et al. 2021, "Score-Based Generative Modeling through SDEs" (random Fourier features).
    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (the row for "no class").
    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (augmentations as an input
    of the network, appendix F.2).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from sde_toolkit.checks import check_positive
from sde_toolkit.errors import ArgumentError

__all__ = ["Condition", "ConditionLike", "Conditioning", "FourierEmbedding", "SinusoidalEmbedding"]


class Condition(NamedTuple):
    """What a trunk may be given besides time.

    Attributes:
        label: class labels, (B,) long; None for "no class".
        augmentation: how each sample was augmented, (B, augmentation_width) floating point, 0 for "not at all". None
            means the same as zeros; sampling passes None.
    """

    label: Tensor | None = None
    augmentation: Tensor | None = None


ConditionLike: TypeAlias = Tensor | Condition | None
"""Labels alone, labels and augmentation, or nothing."""


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines at fixed, geometrically spaced frequencies (Ho et al. 2020), ``(B,) -> (B, dim)``.

    The embedded number is ``scale * time``, with angular frequencies from 1 down to ``1 / max_period``. For a time
    input in [0, 1], ``scale=1000`` resolves time as finely as an index of 1000 steps.

    Args:
        dim: width of the embedding, even.
        scale: factor applied to the time input.
        max_period: ratio of the longest period to the shortest.
    """

    def __init__(self, dim: int, scale: float = 1.0, max_period: float = 10000.0) -> None:
        super().__init__()
        check_even(dim)
        check_positive("scale", scale, "Pass a finite value above 0.")
        check_positive("max_period", max_period, "Pass a finite value above 0.")
        self.dim = dim
        self.scale = float(scale)
        self.max_period = float(max_period)

    def forward(self, time: Tensor) -> Tensor:
        """Embed ``time`` of shape (B,) as (B, dim), in float32 or, for float64 times, float64."""
        check_time(time)
        half = self.dim // 2
        dtype = torch.promote_types(time.dtype, torch.float32)
        index = torch.arange(half, device=time.device, dtype=dtype)
        frequencies = torch.exp(index * (-math.log(self.max_period) / max(half - 1, 1)))
        angles = (time.to(dtype) * self.scale).unsqueeze(1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines at random Gaussian frequencies (Song et al. 2021), ``(B,) -> (B, dim)``.

    The frequencies are saved in the state dict of the model. They are drawn once from a separate generator: torch's
    global random state does not change.

    Args:
        dim: width of the embedding, even.
        scale: standard deviation of the frequencies, in cycles per unit of time input.
        seed: seed of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        check_even(dim)
        check_positive("scale", scale, "Pass a finite value above 0.")
        self.dim = dim
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(dim // 2, generator=generator, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", drawn.mul_(scale).to(torch.get_default_device()))

    def forward(self, time: Tensor) -> Tensor:
        """Embed ``time`` of shape (B,) as (B, dim), in float32 or, for float64 times, float64."""
        check_time(time)
        dtype = torch.promote_types(time.dtype, torch.float32)
        angles = time.to(dtype).unsqueeze(1) * (2.0 * math.pi * self.frequencies.to(dtype))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Conditioning(nn.Module):
    """The conditioning vector of a trunk, which every block receives: a function of time, class and augmentation.

        h      = embedding(time) + linear(augmentation)        this linear map has no bias: zeros change nothing
        vector = SiLU(linear(SiLU(linear(h))) + row of the label)

    With ``num_classes=K`` the label K, and no label, mean "no class".

    Args:
        width: width of the vector, even.
        embedding: "sinusoidal" or "fourier".
        scale: ``scale`` of the embedding.
        num_classes: number of classes, or None for a trunk without labels.
        features: width of the embedding, even; None for ``width``.
        augmentation_width: length of the augmentation vector, or None for a trunk without one.
        label_place: the row of the label is added to the "vector", as above, or to the "features" h (Karras et al.).
        no_class: "learned": the table has a row for "no class". "zero": that row is 0, and no parameter. "refused":
            the network knows no such class, and needs a label.
        max_period: of a sinusoidal embedding; None for its default.
    """

    def __init__(
        self,
        width: int,
        embedding: str,
        scale: float,
        num_classes: int | None,
        features: int | None = None,
        augmentation_width: int | None = None,
        label_place: Literal["vector", "features"] = "vector",
        no_class: Literal["learned", "zero", "refused"] = "learned",
        max_period: float | None = None,
    ) -> None:
        super().__init__()
        if label_place not in ("vector", "features"):
            raise ArgumentError("label_place", label_place, "there is no such place", 'Use "vector" or "features".')
        if embedding not in EMBEDDINGS:
            raise ArgumentError(
                "embedding", embedding, "there is no such embedding", f"Use one of {sorted(EMBEDDINGS)}."
            )
        check_positive("embedding_scale", scale, "Pass a finite value above 0.")
        if num_classes is not None and num_classes < 1:
            raise ArgumentError(
                "num_classes", num_classes, "there must be at least one class", "Pass None for no labels."
            )
        if augmentation_width is not None and augmentation_width < 1:
            problem = "the augmentation vector has at least one number"
            raise ArgumentError("augmentation_width", augmentation_width, problem, "Pass None for no such vector.")
        features = width if features is None else features
        self.num_classes = num_classes
        self.augmentation_width = augmentation_width
        self.label_place, self.no_class = label_place, no_class
        period = {} if max_period is None else {"max_period": max_period}
        self.embedding = EMBEDDINGS[embedding](features, scale, **period)
        self.enter = nn.Linear(features, width)
        self.leave = nn.Linear(width, width)
        rows, columns = (num_classes or 0) + (no_class == "learned"), width if label_place == "vector" else features
        self.labels = None if num_classes is None else nn.Embedding(rows, columns)
        self.augmentation = None if augmentation_width is None else nn.Linear(augmentation_width, features, bias=False)

    def forward(self, x: Tensor, time: Tensor, condition: ConditionLike) -> Tensor:
        """Return (B, width) for a batch ``x`` (B, ...), its ``time`` (B,) and its condition."""
        check_times(x, time)
        label, augmentation = parts_of(condition)
        embedded = self.embedding(time).to(self.enter.weight.dtype)
        row = self._row(x, label)
        if augmentation is not None:
            embedded = embedded + augmented(self.augmentation, x, augmentation)
        if row is not None and self.label_place == "features":
            embedded = embedded + row
        vector = self.leave(nn.functional.silu(self.enter(embedded)))
        if row is not None and self.label_place == "vector":
            vector = vector + row
        return nn.functional.silu(vector)

    def _row(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """The rows of the labels, (B, columns), or the one row of "no class"; None for a row of zeros."""
        if self.labels is None:
            if label is not None:
                remedy = "Build it with num_classes=K, or call it without labels."
                raise ArgumentError("condition", label, "this network was built without classes", remedy)
            return None
        if label is None:
            if self.no_class == "refused":
                remedy = f"Pass condition=labels, one of 0..{self.labels.num_embeddings - 1} for each sample."
                raise ArgumentError("condition", label, "this network knows only samples with a class", remedy)
            return self.labels.weight[-1] if self.no_class == "learned" else None
        classes = self.num_classes or 0
        check_labels(x, label, classes, classes - 1 if self.no_class == "refused" else classes)
        if self.no_class != "zero":
            row: Tensor = self.labels(label)
            return row
        known = label < self.labels.num_embeddings
        return torch.where(known[:, None], self.labels(torch.where(known, label, 0)), 0.0)


def augmented(layer: nn.Linear | None, x: Tensor, augmentation: Tensor) -> Tensor:
    """What ``layer`` makes of an augmentation vector (B, width) of the batch ``x`` (B, ...)."""
    if layer is None:
        problem = "this network was built without an augmentation vector"
        remedy = "Build it with augmentation_width=K, or leave augmentation out."
        raise ArgumentError("condition", augmentation, problem, remedy)
    wanted = (x.shape[0], layer.in_features)
    if tuple(augmentation.shape) != wanted or not augmentation.is_floating_point():
        problem = (
            f"the augmentation must be floating point of shape {wanted}, not {augmentation.dtype} of shape "
            f"{tuple(augmentation.shape)}"
        )
        raise ArgumentError(
            "condition", augmentation, problem, "Pass one vector per sample, zeros where nothing was done."
        )
    out: Tensor = layer(augmentation.to(layer.weight.dtype))
    return out


def check_labels(x: Tensor, label: Tensor, classes: int, last: int) -> None:
    """Refuse labels that are not whole numbers from 0 to ``last``, one for each sample of ``x``."""
    if label.dtype not in (torch.int64, torch.int32) or label.shape != x.shape[:1]:
        problem = f"labels must be integers of shape ({x.shape[0]},), not {label.dtype} of shape {tuple(label.shape)}"
        raise ArgumentError("condition", label, problem, "Pass one torch.long label per sample.")
    # Values are read on a CPU only: reading them would break a compiled graph, and make an accelerator wait.
    if torch.compiler.is_compiling() or label.device.type != "cpu" or label.numel() == 0:
        return
    if int(label.min()) < 0 or int(label.max()) > last:
        remedy = f"Use 0..{classes - 1} for the classes{'' if last < classes else f' and {classes} for no class'}."
        raise ArgumentError("condition", label, f"labels must lie in 0..{last}", remedy)


def check_times(x: Tensor, time: Tensor) -> None:
    """Refuse times that are not one number for each sample of ``x``."""
    check_time(time)
    if time.shape[0] != x.shape[0]:
        raise ArgumentError(
            "time",
            tuple(time.shape),
            f"x has {x.shape[0]} samples",
            "Pass one time per sample, of shape (B,); expand a single time with time.expand(B).",
        )


def parts_of(condition: ConditionLike) -> Condition:
    """A condition as label and augmentation, each a tensor or None."""
    label, augmentation = condition if isinstance(condition, Condition) else Condition(condition)
    _check_tensors(label, augmentation)
    return Condition(label, augmentation)


EMBEDDINGS: dict[str, Any] = {
    "sinusoidal": SinusoidalEmbedding,
    "fourier": FourierEmbedding,
}


def _check_tensors(label: Any, augmentation: Any) -> None:
    """Refuse labels and augmentations that are not tensors."""
    for given, wanted in ((label, "torch.tensor(labels)"), (augmentation, "torch.tensor(augmentation)")):
        if given is not None and not isinstance(given, Tensor):
            problem = f"this network takes a tensor, not a {type(given).__name__}"
            remedy = f"Pass {wanted}, one row per sample, or Condition(label=..., augmentation=...)."
            raise ArgumentError("condition", given, problem, remedy)


def check_even(dim: int) -> None:
    if dim < 2 or dim % 2:
        raise ArgumentError("dim", dim, "an embedding pairs sines with cosines", "Pass an even width of at least 2.")


def check_time(time: Tensor) -> None:
    if time.ndim != 1 or not time.is_floating_point():
        raise ArgumentError(
            "time",
            tuple(time.shape),
            f"the time input must be floating point of shape (B,), not {time.dtype} with {time.ndim} axes",
            "Pass one float per sample; expand a single time with time.expand(B).",
        )
