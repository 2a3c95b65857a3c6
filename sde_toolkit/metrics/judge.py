"""Generated samples beside real ones: the features in which they are compared, and the judge that compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import DataError
from sde_toolkit.jobs.fingerprints import tensor_digest, weights_digest_of
from sde_toolkit.metrics.classifier import MNISTClassifier
from sde_toolkit.metrics.distances import Plausible
from sde_toolkit.metrics.feature_cache import keep_features, kept_features
from sde_toolkit.metrics.kernels import Kernel, KernelDistance, cubic, rational_quadratic
from sde_toolkit.metrics.metric import Array, Estimate, Metric, SampleSet, check_metrics
from sde_toolkit.metrics.sliced import SlicedWasserstein
from sde_toolkit.metrics.splits import RealParts
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.transforms import Transform

__all__ = ["Features", "Judge", "classifier_features", "exact_features", "flat_features"]


@dataclass(frozen=True)
class Features:
    """The space in which samples are compared.

    ``extract`` maps data (n, *event) to features (n, d) and to one truth value per sample, the answers to the question
    of ``plausible`` (None where nothing is asked). ``kernel`` is that of the kernel distance. ``identity``: plain data
    that tell this extractor from all others; features of real data are then kept (:mod:`.feature_cache`).
    """

    name: str
    extract: Callable[[Tensor], tuple[Array, np.ndarray | None]]
    kernel: Kernel
    kernel_name: str
    plausible: Plausible | None = None
    identity: Mapping[str, Any] | None = None

    def real_set(self, data: Tensor) -> SampleSet:
        """Real data (N, *event) with their features, which are extracted once for all comparisons."""
        if self.identity is None:
            return self.sample_set(data)
        key = {"work": "features/1", "data": tensor_digest(data), "extractor": dict(self.identity)}
        kept = kept_features(key)
        if kept is not None:
            return SampleSet(data, kept["features"].astype(np.float64), kept.get("plausible"))
        features, plausible = self.extract(data)
        keep_features(
            key, {"features": features} if plausible is None else {"features": features, "plausible": plausible}
        )
        return SampleSet(data, features, plausible)

    def sample_set(self, data: Tensor) -> SampleSet:
        """Data (n, *event) with their features."""
        return SampleSet(data, *self.extract(data))

    def usual_metrics(self, seed: int = 0, projections: int = 128) -> tuple[Metric, ...]:
        """The sliced Wasserstein distance, the kernel distance, and the share of plausible samples if that is asked.

        ``seed``, ``projections``: of the sliced distance's directions.
        """
        distances = (SlicedWasserstein(projections, seed), KernelDistance(self.kernel, self.kernel_name))
        return distances if self.plausible is None else (*distances, self.plausible)


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
        {"name": "classifier", "weights_sha256": weights_digest_of(classifier), "confidence": confidence},
    )


def flat_features(transform: Transform, real: Tensor) -> Features:
    """The data themselves, in model space and flattened; the kernel's length comes from the distances in ``real``."""

    def extract(data: Tensor) -> tuple[Array, None]:
        return _flat(transform, data), None

    return Features("the data themselves (model space, flattened)", extract, *_kernel_for(_flat(transform, real)))


def exact_features(model: GaussianMixture, real: Tensor, quantile: float = 0.01) -> Features:
    """The data themselves; plausible is what is at least as probable as all but ``quantile`` of the real data.

    ``real``: draws of the model. The exact density tells
    whether a sample lies where the data are or between them. Distances in few dimensions hardly see that.
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
    """The rational quadratic kernel and its name. A tenth of all pairs are closer than its length ℓ: it is the distance
    of neighbours, not of modes."""
    some = flat[:1000]
    apart = np.sqrt(((some[: len(some) // 2] - some[len(some) // 2 :][: len(some) // 2]) ** 2).sum(1))
    scale = float(np.quantile(apart, 0.1)) or 1.0
    return rational_quadratic(
        scale
    ), f"Σ_c (1 + |x − y|²/(2cℓ²))⁻ᶜ, rational quadratic, ℓ = {scale:.3g} (a tenth of all distances are shorter)"


class Judge:
    """Real samples, their features, and the floor: the values of as many real samples.

    A judge measures the first ``self.n`` samples of each generated set against random parts of the real data, see
    :mod:`sde_toolkit.metrics.splits`.

    Args:
        real: (N, *event) real samples in data space; N >= 4.
        n: size of the generated sets to be judged. At most N // 2 of them are (``self.n``), the first ones.
        features: the space to compare in.
        metrics: what is measured; the features' usual metrics by default.
        source: where the real samples come from, in words.
        splits: number R of random splits.
        seed: of the splits, and of the usual metrics.
    """

    def __init__(
        self,
        real: Tensor,
        n: int,
        features: Features,
        *,
        metrics: Sequence[Metric] | None = None,
        source: str = "real data",
        splits: int = 8,
        seed: int = 0,
    ) -> None:
        self.real = real
        self.source = source
        self.features = features
        self.metrics = check_metrics(features.usual_metrics(seed) if metrics is None else metrics)
        self.parts = RealParts(features.real_set(real), n, splits, seed)
        for metric in self.metrics:
            self.parts.prepared(metric)

    @property
    def n(self) -> int:
        """How many samples of each generated set are judged."""
        return self.parts.n

    def __call__(self, samples: Tensor) -> dict[str, Estimate]:
        """The values of generated samples (n, *event), data space, by the metrics' names."""
        generated = self.sample_set(samples)
        return {metric.name: self.parts.measure(metric, generated) for metric in self.metrics}

    @property
    def floor(self) -> dict[str, Estimate]:
        """What ``n`` real samples get, by the names of the metrics that have a floor."""
        floors = {metric.name: self.parts.floor(metric) for metric in self.metrics}
        return {name: floor for name, floor in floors.items() if floor is not None}

    def sample_set(self, samples: Tensor) -> SampleSet:
        """The first ``n`` of generated samples (n, *event), data space, with their features.

        Raises:
            DataError: for fewer samples, or of another shape.
        """
        if len(samples) < self.n or samples.shape[1:] != self.real.shape[1:]:
            problem = f"expected at least {self.n} samples of shape {tuple(self.real.shape[1:])}"
            raise DataError("samples", tuple(samples.shape), problem, "Pass samples as the judge was built for.")
        return self.features.sample_set(samples[: self.n])
