"""Extractors turn samples into features: a network, its input, and a description for the record.

    inception     FID's Inception, 2048 activations, weights of torch-fidelity's own download or from a file
    classifier    the package's MNIST classifier, 64 activations
    data          the data themselves, flattened, in model space
    a module      any torch module of yours that maps (B, *event) to (B, d)

Samples are judged as if they were written to a file: data with levels 0..L−1 are clamped and rounded to them, for
every extractor alike. Features of different extractors, weights or preparations cannot be compared, so
every record has the extractor's description.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError
from sde_toolkit.jobs.fingerprints import fingerprint_data, weights_digest_of
from sde_toolkit.metrics.classifier import MNISTClassifier
from sde_toolkit.transforms import Transform

__all__ = [
    "Extractor",
    "auto_extractor",
    "classifier_extractor",
    "data_extractor",
    "inception_extractor",
    "module_extractor",
]


@dataclass(frozen=True, eq=False)
class Extractor:
    """``module`` maps prepared samples to features (B, d); ``prepare`` maps samples in data space, float32 and already
    on their levels, and the number of levels (None: continuous) to what the module is shown.

    ``about``: plain data for the record: where the module is from, and how images are resized. ``kept``: whether the
    features of real data are kept for further evaluations (:mod:`.feature_cache`).
    """

    name: str
    module: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor, int | None], Tensor]
    about: dict[str, Any]
    kept: bool = False

    @torch.no_grad()
    def __call__(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Features (B, d) of samples in data space (B, *event).

        Raises:
            DataError: for samples that the extractor does not take, and if it returns anything but features.
        """
        x = x.float()
        if levels is not None:
            x = x.clamp(0, levels - 1).round()
        features = self.module(self.prepare(x, levels))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            problem = f"for {len(x)} samples the extractor {self.name} returned {shape}"
            raise DataError("extractor", self.name, problem, "Features have shape (B, d).")
        return features

    def to(self, device: torch.device | str) -> Extractor:
        """Move the module to a device."""
        if isinstance(self.module, nn.Module):
            self.module.to(device)
        return self

    def description(self) -> dict[str, Any]:
        """Plain data for a record."""
        weights = weights_digest_of(self.module) if isinstance(self.module, nn.Module) else None
        return {"name": self.name, "weights_sha256": weights, **self.about}


def inception_extractor(weights_path: str | Path | None = None, antialias: bool = False) -> Extractor:
    """FID's Inception v3 (Heusel et al. 2017) as torch-fidelity and torchmetrics have it: the 2048 pooled activations.

    Sees 8-bit RGB, (B, 1 or 3, H, W) with levels 0..L−1, grey as three equal channels, and resizes to 299×299 itself:
    bilinearly as TensorFlow 1 did, which all published values use, or with ``antialias``.

    Args:
        weights_path: torch-fidelity's weights file; None: the place of torch's downloads, fetched once if it is not
            there. It is read without unpickling code.

    Raises:
        MissingDependencyError: without torchmetrics and torch-fidelity, which needs torchvision.
        DataError: for weights that cannot be fetched or read.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a torchvision of another torch
        package = failing_package(error, "torch-fidelity")
        raise MissingDependencyError(package, "the Inception of FID", "fid", error) from None
    file = _inception_weights(URL_INCEPTION_V3, weights_path)
    _check_weights(file)
    try:
        module = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file), antialias=antialias)
    except RuntimeError as error:
        problem = f"they do not fit Inception v3 ({' '.join(str(error).split())[:160]})"
        raise DataError("weights_path", str(file), problem, "Give the file of torch-fidelity.") from None
    return Extractor(
        "inception",
        module,
        _as_bytes,
        {
            "library": f"torchmetrics {metadata.version('torchmetrics')}, torch-fidelity "
            f"{metadata.version('torch-fidelity')}",
            "weights_file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "layer": "2048 pooled activations",
            "channels": "RGB; grey as three equal channels",
            "resize": "299x299, bilinear" + ("" if antialias else " as TensorFlow 1 (corners not aligned)"),
            "antialias": antialias,
        },
        kept=True,
    )


def _inception_weights(url: str, given: str | Path | None) -> Path:
    """The weights file: the given one, the one of an earlier download, or a new download."""
    if given is not None:
        if not Path(given).is_file():
            raise DataError("weights_path", str(given), "there is no such file", "Give the file of torch-fidelity.")
        return Path(given)
    name = url.rpartition("/")[2]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = name.rpartition("-")[2].partition(".")[0]
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: another hash
            problem = f"the Inception weights {name} are not there and cannot be downloaded ({error})"
            remedy = f"Fetch that file from torch-fidelity's releases, and pass weights_path=FILE or put it at {file}."
            raise DataError("weights_path", None, problem, remedy) from None
    return file


def _check_weights(file: Path) -> None:
    """Refuse a file with more than tensors, before it is unpickled."""
    try:
        if not file.is_file():
            raise OSError("no regular file")
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        problem = f"not a file of weights alone ({type(error).__name__})"
        raise DataError("weights_path", str(file), problem, "Fetch the file again.") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError("weights_path", str(file), "not a dictionary of tensors", "Give the file of torch-fidelity.")


def _as_bytes(x: Tensor, levels: int | None) -> Tensor:
    """Images on levels 0..L−1 as 8-bit RGB."""
    if levels is None or x.ndim != 4 or x.shape[1] not in (1, 3):
        problem = "Inception sees images (N, 1 or 3, H, W) with a known number of levels"
        raise DataError("samples", (tuple(x.shape), levels), problem, "Say levels=256 for 8-bit data.")
    scaled = x if levels == 256 else x * (255 / (levels - 1))
    return scaled.round().to(torch.uint8).expand(-1, 3, -1, -1)


def classifier_extractor() -> Extractor:
    """The 64 penultimate activations of the shipped MNIST classifier, for images (n, 1, 28, 28) in 0..255."""
    classifier = MNISTClassifier.from_pretrained()
    about = {"library": "sde_toolkit", "layer": "64 penultimate activations", "resize": None, "antialias": None}
    return Extractor("classifier", _Features(classifier), _as_is, about, kept=True)


class _Features(nn.Module):
    """The classifier up to its features."""

    def __init__(self, classifier: MNISTClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)

    def clear(self, features: Tensor, confidence: float) -> Tensor:
        """Whether the classifier gives a class with this probability."""
        return self.classifier.classify(features).softmax(1).amax(1) >= confidence


def data_extractor(event_shape: tuple[int, ...] = (), transform: Transform | None = None) -> Extractor:
    """The data themselves, flattened; in model space if a ``transform`` leads there."""

    def flat(x: Tensor) -> Tensor:
        return (x if transform is None else transform.forward(x)).flatten(1) if x.ndim > 1 else x.unsqueeze(1)

    about = {"library": "sde_toolkit", "transform": fingerprint_data(transform), "resize": None, "antialias": None}
    return Extractor("data", flat, _as_is, about)


def module_extractor(module: nn.Module, name: str | None = None) -> Extractor:
    """A module of your own, in evaluation mode, shown the samples in data space as float32 (on their levels).

    It does its own resizing; an attribute ``about`` of plain data, if it has one, goes into the record.

    Raises:
        ArgumentError: for what is no module.
    """
    if not isinstance(module, nn.Module):
        raise ArgumentError("extractor", module, "not a torch module", "Pass a module from (B, *event) to (B, d).")
    kind = type(module)
    about: dict[str, Any] = {"library": "the user's own", "class": f"{kind.__module__}.{kind.__qualname__}"}
    about |= {"resize": "the module's own", "antialias": None, **fingerprint_data(getattr(module, "about", {}))}
    return Extractor(name or kind.__name__, module.eval(), _as_is, about)


def auto_extractor(event_shape: tuple[int, ...] = (), transform: Transform | None = None) -> Extractor:
    """The classifier for 28×28 grey images, Inception for colour images, the data themselves otherwise."""
    if event_shape == (1, 28, 28):
        return classifier_extractor()
    if len(event_shape) == 3 and event_shape[0] == 3:
        return inception_extractor()
    return data_extractor(event_shape, transform)


def failing_package(error: Exception, imported: str) -> str:
    """Which package an import failed at: the one that was imported, or one of those that FID's library imports."""
    text = f"{getattr(error, 'name', None) or ''} {error}".replace("_", "-")
    return next((name for name in ("torchvision", "torch-fidelity", "torchmetrics") if name in text), imported)


def as_extractor(given: Any, event_shape: tuple[int, ...], transform: Transform | None) -> Extractor:
    """What a configuration built: an extractor, a function of event shape and transform, or a module."""
    if isinstance(given, partial):
        given = given(event_shape, transform)
    return given if isinstance(given, Extractor) else module_extractor(given)


def _as_is(x: Tensor, levels: int | None) -> Tensor:
    return x


def check_levels(levels: Any) -> None:
    """A number of levels, or None for continuous data."""
    if levels is not None:
        check_count("levels", levels, "Use 256 for 8-bit data, None for continuous.", least=2)
