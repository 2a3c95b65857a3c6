"""A small MNIST classifier that is shipped with the package. It judges generated digits by class and features.

Three convolutions, each followed by 2×2 max pooling (28 → 14 → 7 → 3) and ReLU, then 64 features and 10
logits. It was also shown noise and shuffled digits, with all classes equally probable as the target, so a
high probability means "looks like this digit" and not merely "more like this one than the others".
Neither normalisation over the batch nor dropout: train and eval mode are the same function, and an
image's output does not depend on the images beside it (up to the kernels' round-off, about 1e-5).

The weights come from ``benchmarks/train_classifier.py``; ``weights/mnist_classifier.json`` beside them
states the accuracy on the 10,000 test images and the command that made them.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.errors import CheckpointError, DataError

__all__ = ["MNISTClassifier"]

_WEIGHTS = "mnist_classifier.safetensors"
_RECORD = "mnist_classifier.json"


class MNISTClassifier(nn.Module):
    """Logits and features of 28×28 digits: images (B, 1, 28, 28) in data space, 0..255, any dtype.

    Images in [−1, 1] or [0, 1] look black to it: apply the transform's ``inverse`` first. Values outside
    0..255 are neither clipped nor refused.
    """

    n_features = 64
    n_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 64, 3, padding=1)
        self.project = nn.Linear(64 * 3 * 3, self.n_features)
        self.classify = nn.Linear(self.n_features, self.n_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in 0..255 to the penultimate activations (B, 64)."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (1, 28, 28) or images.is_complex():
            raise DataError(
                "images",
                (tuple(images.shape), images.dtype),
                "not a batch of 28x28 grey images",
                "Give real numbers 0..255 of shape (B, 1, 28, 28).",
            )
        x = images.to(self.project.weight.dtype) / 255.0
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = nn.functional.relu(nn.functional.max_pool2d(convolution(x), 2))
        # leaky: with a plain ReLU a third of the features ended up constant, and their covariance singular
        return nn.functional.leaky_relu(self.project(x.flatten(1)), 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in 0..255 to logits (B, 10)."""
        return self.classify(self.features(images))

    @classmethod
    def from_pretrained(cls) -> MNISTClassifier:
        """The classifier with the shipped weights, parameters frozen; reads no pickle and no network."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        with torch.device("meta"):  # no initial values, so nothing is drawn from the global generator
            classifier = cls()
        try:
            content = (resources.files("sde_toolkit.metrics") / "weights" / _WEIGHTS).read_bytes()
            classifier.load_state_dict(load(content), assign=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                _WEIGHTS, f"cannot be loaded ({type(error).__name__}: {error})", "Reinstall sde-toolkit."
            ) from error
        return classifier.eval().requires_grad_(False)

    @staticmethod
    def record() -> dict[str, Any]:
        """How the shipped weights were made: test accuracy, command, seed, versions."""
        try:
            text = (resources.files("sde_toolkit.metrics") / "weights" / _RECORD).read_text("utf-8")
        except OSError as error:
            raise CheckpointError(_RECORD, "is missing", "Reinstall sde-toolkit.") from error
        return dict(json.loads(text))
