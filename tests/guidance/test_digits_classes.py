"""The embedded class-conditional network knows its classes, and "no class", from Python and on the command line."""

from importlib import resources

import numpy as np
import pytest
import torch

from sde_toolkit import ScoreModel, classifier_free, ddim, sample
from sde_toolkit.data import digits
from sde_toolkit.errors import ArgumentError

LABELS = torch.arange(60) % 10


@pytest.fixture(scope="module")
def model():
    return ScoreModel.from_pretrained("digits_classes")


@pytest.fixture(scope="module")
def class_means():
    """The mean training image of each class."""
    data = digits()
    return torch.stack([data.train[data.train_labels == c].double().mean(0) for c in range(10)])


def nearest(images, class_means):
    """The class whose mean is nearest, for each image."""
    return (images.double().unsqueeze(1) - class_means).flatten(2).norm(dim=2).argmin(1)


def test_samples_are_of_their_class(model, class_means):
    # The nearest mean is right for 92 % of real test images; by chance it is right once in ten.
    data = digits()
    real = (nearest(data.test, class_means) == data.test_labels).double().mean().item()
    assert real > 0.9
    drawn = nearest(sample(model, ddim(), steps=20, shape=(60, 1, 8, 8), condition=LABELS).data, class_means)
    guided = sample(classifier_free(model, 2.0), ddim(), steps=20, shape=(60, 1, 8, 8), condition=LABELS).data
    assert (drawn == LABELS).double().mean() > 0.8
    assert (nearest(guided, class_means) == LABELS).double().mean() >= (drawn == LABELS).double().mean()
    shuffled = LABELS.roll(1)
    others = nearest(sample(model, ddim(), steps=20, shape=(60, 1, 8, 8), condition=shuffled).data, class_means)
    assert (others == shuffled).double().mean() > 0.8  # from the same noise, other classes


def test_samples_without_a_class_are_of_many(model, class_means):
    none = torch.full_like(LABELS, model.num_classes)
    drawn = sample(model, ddim(), steps=20, shape=(60, 1, 8, 8), condition=none).data
    assert torch.bincount(nearest(drawn, class_means), minlength=10).max() < 30
    assert torch.equal(drawn, sample(model, ddim(), steps=20, shape=(60, 1, 8, 8)).data)


def test_it_is_small_and_has_ten_classes(model):
    folder = resources.files("sde_toolkit") / "pretrained" / "digits_classes"
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) < 500_000
    assert model.num_classes == 10
    with pytest.raises(ArgumentError, match=r"0\.\.10"):
        sample(model, ddim(), steps=2, shape=(2, 1, 8, 8), condition=torch.tensor([0, 11]))


def test_a_class_on_the_command_line(command, tmp_path, model):
    words = ("sample", "model=digits_classes", "n=3", "nfe=5", "progress=false", "threads=1")
    assert command(*words, "class=3", "output=three")[0] == 0
    assert command(*words, "labels=[3,3,4]", "output=mixed")[0] == 0
    three, mixed = (np.load(tmp_path / folder / "samples.npz")["x_model"] for folder in ("three", "mixed"))
    assert np.array_equal(three[:2], mixed[:2])
    assert not np.allclose(three[2], mixed[2], atol=0.1)
    status, _, complaint = command(*words, "class=10", "output=none")
    assert status != 0
    assert "class=10" in complaint
    status, _, complaint = command("sample", "model=digits", "class=3", "output=none")
    assert status != 0
    assert "without classes" in complaint
