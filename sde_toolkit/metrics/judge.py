"""How generated samples are judged against real ones, and how well real ones would have done.

N real samples are split at random, several times, into a set B_r of N − n and a held-out set A_r of n. Generated
sets have n samples too, so that for every distance D

    a row is      mean_r D(G, B_r)       its error: jackknife over G and over B_1
    the floor is  mean_r D(A_r, B_r)     its error: the standard deviation over r

and the floor's error says by how much n *real* samples differ from one another in the same test. A distance is
"at the floor" when it exceeds it by less than two standard errors of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.metrics.classifier import MNISTClassifier
from sde_toolkit.metrics.distances import (
    Array,
    Estimate,
    Kernel,
    cubic,
    kernel_diagonal,
    kernel_sums,
    rational_quadratic,
    share,
    sliced_wasserstein,
    unbiased_mmd,
    within_sums,
)
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.transforms import Transform

__all__ = [
    "Features",
    "Judge",
    "Plausible",
    "Scores",
    "at_floor",
    "classifier_features",
    "exact_features",
    "flat_features",
    "plausible_at_floor",
]


@dataclass(frozen=True)
class Plausible:
    """A question asked of each sample by itself: ``heading`` (short) and ``meaning`` (a sentence's part)."""

    heading: str
    meaning: str


@dataclass(frozen=True)
class Features:
    """The space in which samples are compared.

    ``extract`` maps data (n, *event) to features (n, d) and to one truth value per sample, the answers to
    ``plausible`` (both None where nothing is asked). ``kernel`` is that of the kernel distance.
    """

    name: str
    extract: Callable[[Tensor], tuple[Array, np.ndarray | None]]
    kernel: Kernel
    kernel_name: str
    plausible: Plausible | None = None


@dataclass(frozen=True)
class Scores:
    """Distances to real data, and the share of plausible samples (None where that is not asked)."""

    sliced_wasserstein: Estimate
    kernel_distance: Estimate
    plausible: Estimate | None


def classifier_features(confidence: float = 0.9) -> Features:
    """The 64 penultimate activations of the shipped MNIST classifier, for images (n, 1, 28, 28) in 0..255.

    Images are first clamped to 0..255 and rounded, as they would be when written to a file. Plausible is an
    image that the classifier gives a class with probability ``confidence`` or more.
    """
    classifier = MNISTClassifier.from_pretrained()

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Array, np.ndarray]:
        features, clear = [], []
        for part in images.detach().cpu().float().clamp(0, 255).round().split(256):
            features.append(classifier.features(part))
            clear.append(classifier.classify(features[-1]).softmax(1).amax(1) >= confidence)
        return torch.cat(features).double().numpy(), torch.cat(clear).numpy()

    return Features(
        f"the {classifier.n_features} features of the package's MNIST classifier (images as 8-bit files)",
        extract,
        cubic,
        "(x·y/d + 1)³, that of KID",
        Plausible(
            f"p ≥ {confidence:g}",
            f"share of images to which the package's MNIST classifier gives a class with probability {confidence:g} "
            "or more (it was trained to be unsure about noise; it does not see diversity)",
        ),
    )


def flat_features(transform: Transform, real: Tensor) -> Features:
    """The data themselves, in model space and flattened; the kernel's length comes from the distances in ``real``."""

    def extract(data: Tensor) -> tuple[Array, None]:
        return _flat(transform, data), None

    return Features("the data themselves (model space, flattened)", extract, *_kernel_for(_flat(transform, real)))


def exact_features(model: GaussianMixture, real: Tensor, quantile: float = 0.01) -> Features:
    """The data themselves; plausible is what is at least as probable as all but ``quantile`` of the real data.

    ``real``: draws of the model. The density is exact, and asks what distances in few dimensions hardly see:
    whether a sample lies where the data are, and not between them.
    """
    least = torch.quantile(model.log_prob(real.double()), quantile).item()

    def extract(data: Tensor) -> tuple[Array, np.ndarray]:
        flat = _flat(model.transform, data)
        return flat, (model.log_prob(data.detach().cpu().double()) >= least).numpy()

    return Features(
        "the data themselves",
        extract,
        *_kernel_for(_flat(model.transform, real)),
        Plausible(
            "in region",
            f"share of samples where the exact density is at least what {1 - quantile:.0%} of the real data have",
        ),
    )


def _flat(transform: Transform, data: Tensor) -> Array:
    flat: Array = transform.forward(data.detach().cpu()).reshape(len(data), -1).double().numpy()
    return flat


def _kernel_for(flat: Array) -> tuple[Kernel, str]:
    """Its length ℓ is the distance that a tenth of all pairs are within: that of neighbours, not of modes."""
    some = flat[:1000]
    apart = np.sqrt(((some[: len(some) // 2] - some[len(some) // 2 :][: len(some) // 2]) ** 2).sum(1))
    scale = float(np.quantile(apart, 0.1)) or 1.0
    return rational_quadratic(
        scale
    ), f"Σ_c (1 + |x − y|²/(2cℓ²))⁻ᶜ, rational quadratic, ℓ = {scale:.3g} (a tenth of all distances are shorter)"


class Judge:
    """Real samples, their features, and the floor that n of them set.

    Args:
        real: (N, *event) real samples in data space; N >= 4.
        n: size of the generated sets to be judged. At most N // 2 of them are (``self.n``), the first ones.
        features: the space to compare in.
        source: where the real samples come from, in words.
        splits: number R of random splits.
        projections: directions of the sliced distance.
        seed: of the splits and of the directions.
    """

    def __init__(
        self,
        real: Tensor,
        n: int,
        features: Features,
        *,
        source: str = "real data",
        splits: int = 8,
        projections: int = 128,
        seed: int = 0,
    ) -> None:
        if len(real) < 4:
            raise DataError("real", tuple(real.shape), "fewer than 4 real samples", "Give more of them.")
        if n < 2:
            raise ArgumentError("n", n, "distances between distributions need at least two samples", "Raise n.")
        if splits < 2:
            raise ArgumentError("splits", splits, "the floor's error needs at least two splits", "8 is usual.")
        self.real = real
        self.source = source
        self.features = features
        self.n = min(n, len(real) // 2)
        self.splits = splits
        self.projections = projections
        self.seed = seed
        self._values, plausible = features.extract(real)
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(len(real)) for _ in range(splits)]
        self._parts = [(order[: self.n], order[self.n :]) for order in orders]
        self._rest = np.stack([1.0 - np.isin(np.arange(len(real)), a) for a, _ in self._parts], axis=1)  # (N, splits)
        first, totals = kernel_sums(features.kernel, self._values, self._values, 1 - self._rest)
        rest, own = totals[:, None] - first, kernel_diagonal(features.kernel, self._values)
        self._within = [rest[b, r] - own[b] for r, (_, b) in enumerate(self._parts)]
        self.floor = self._floor(first, rest, own, plausible)

    def __call__(self, samples: Tensor) -> Scores:
        """Judge the first ``self.n`` of generated samples (n, *event), data space."""
        if len(samples) < self.n or samples.shape[1:] != self.real.shape[1:]:
            problem = f"expected at least {self.n} samples of shape {tuple(self.real.shape[1:])}"
            raise DataError("samples", tuple(samples.shape), problem, "Judge what was announced.")
        values, plausible = self.features.extract(samples[: self.n])
        within = within_sums(self.features.kernel, values)
        to_rest, to_values = kernel_sums(self.features.kernel, values, self._values, self._rest)
        sliced, kernel = [], []
        for r, (_, b) in enumerate(self._parts):
            sliced.append(self._sliced(values, self._values[b], blocks=0 if r else 8))
            kernel.append(unbiased_mmd(within, self._within[r], to_rest[:, r], to_values[b]))
        return Scores(
            Estimate(float(np.mean([e.value for e in sliced])), sliced[0].error),
            Estimate(float(np.mean([e.value for e in kernel])), kernel[0].error),
            None if plausible is None else share(plausible),
        )

    def _sliced(self, a: Array, b: Array, blocks: int) -> Estimate:
        return sliced_wasserstein(a, b, projections=self.projections, seed=self.seed, blocks=blocks)

    def _floor(self, first: Array, rest: Array, own: Array, plausible: np.ndarray | None) -> Scores:
        """Each split's first part against its rest, from all real samples' kernel sums to both, (N, splits)."""
        sliced, kernel = [], []
        for r, (a, b) in enumerate(self._parts):
            sliced.append(self._sliced(self._values[a], self._values[b], blocks=0).value)
            kernel.append(unbiased_mmd(first[a, r] - own[a], self._within[r], rest[a, r], first[b, r]).value)
        return Scores(
            Estimate(float(np.mean(sliced)), float(np.std(sliced, ddof=1))),
            Estimate(float(np.mean(kernel)), float(np.std(kernel, ddof=1))),
            None if plausible is None else share(plausible),
        )


def at_floor(row: Estimate | None, floor: Estimate | None) -> bool:
    """Whether a distance exceeds the floor by less than two standard errors of their difference."""
    if row is None or floor is None:
        return False
    return row.value - floor.value < 2 * math.hypot(row.error, floor.error)


def plausible_at_floor(row: Estimate | None, floor: Estimate | None) -> bool:
    """Whether a share falls short of the real data's by less than two standard errors of their difference."""
    if row is None or floor is None:
        return False
    return floor.value - row.value < 2 * math.hypot(row.error, floor.error)
