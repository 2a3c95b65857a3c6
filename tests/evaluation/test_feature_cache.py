"""Features of real data are extracted once; what is kept changes no number."""

import numpy as np
import pytest
import torch

from sde_toolkit.data import mnist_test_images
from sde_toolkit.evaluation import Judge, classifier_extractor, classifier_features, evaluate_samples, module_extractor
from sde_toolkit.metrics.classifier import MNISTClassifier


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """An empty cache, and how many images the classifier is shown."""
    counts, real = [], MNISTClassifier.features

    def features(self, images):
        counts.append(len(images))
        return real(self, images)

    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(MNISTClassifier, "features", features)
    return counts


def digits(first, last):
    return mnist_test_images().test[first:last]


def test_a_judge_of_the_same_data_extracts_nothing(seen):
    first, again = (Judge(digits(0, 60), 20, classifier_features(), splits=2) for _ in range(2))
    assert sum(seen) == 60
    assert np.array_equal(first.parts.whole.features, again.parts.whole.features)
    assert np.array_equal(first.parts.whole.plausible, again.parts.whole.plausible)
    assert first(digits(60, 80).float()) == again(digits(60, 80).float())


def test_other_data_and_other_questions_are_extracted(seen):
    for real, confidence in ((digits(0, 60), 0.9), (digits(1, 61), 0.9), (digits(0, 60), 0.5)):
        Judge(real, 20, classifier_features(confidence), splits=2)
    assert sum(seen) == 3 * 60


def test_an_evaluation_of_the_same_reference_extracts_the_samples_alone(seen):
    records = [evaluate_samples(digits(60, 80).float(), digits(0, 60), classifier_extractor(), levels=256,
                                metrics=Judge(digits(0, 60), 20, classifier_features()).metrics[:2],
                                say=lambda text: None) for _ in range(2)]  # fmt: skip
    assert sum(seen) == 60 + (60 + 20) + 20  # the judge's own, and both evaluations
    assert records[0].values == records[1].values
    assert records[0].conditions == records[1].conditions


def test_a_module_of_ones_own_is_always_asked(seen, tmp_path):
    asked = []

    class Mine(torch.nn.Module):
        def forward(self, x):
            asked.append(len(x))
            return x.flatten(1)[:, :4]

    for _ in range(2):
        evaluate_samples(digits(60, 80).float(), digits(0, 60), module_extractor(Mine()),
                         metrics=Judge(digits(0, 60), 20, classifier_features()).metrics[:1],
                         say=lambda text: None)  # fmt: skip
    assert sum(asked) == 2 * 80


def test_a_damaged_file_is_extracted_again(seen, tmp_path):
    Judge(digits(0, 60), 20, classifier_features(), splits=2)
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    Judge(digits(0, 60), 20, classifier_features(), splits=2)
    assert sum(seen) == 120
