"""The shipped classifier is accurate on real digits, and each image is judged by itself."""

import subprocess
import sys
from importlib import resources

import pytest
import torch

from sde_toolkit.data import eight_bit, mnist_test_images
from sde_toolkit.errors import CheckpointError, DataError
from sde_toolkit.metrics import classifier as module
from sde_toolkit.metrics.classifier import MNISTClassifier

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # round-off of the convolutions between batch sizes; logits are ~10


@pytest.fixture(scope="module")
def classifier():
    return MNISTClassifier.from_pretrained()


@pytest.fixture(scope="module")
def data():
    return mnist_test_images()


def test_accuracy_on_the_embedded_images(classifier, data):
    guess = classifier(data.test).argmax(dim=1)
    assert (guess == data.test_labels).double().mean().item() >= 0.99


def test_real_digits_are_recognised_with_confidence(classifier, data):
    top = classifier(data.test).softmax(dim=1).amax(dim=1)
    assert (top >= 0.9).double().mean().item() >= 0.95


def test_noise_is_not_recognised_with_confidence(classifier, data):
    generator = torch.Generator().manual_seed(0)
    uniform = 255 * torch.rand(300, 1, 28, 28, generator=generator)
    normal = 127.5 + 80 * torch.randn(300, 1, 28, 28, generator=generator)
    for noise in (uniform, normal, normal.clamp(0, 255)):
        top = classifier(noise).softmax(dim=1).amax(dim=1)
        assert (top >= 0.9).double().mean().item() <= 0.02


def test_no_feature_is_constant_on_real_digits(classifier, data):
    features = classifier.features(data.test).double()
    assert features.std(dim=0).min().item() > 0.05
    spectrum = torch.linalg.eigvalsh(torch.cov(features.T))
    assert spectrum.min() > 1e-6 * spectrum.max()


def test_the_record_states_the_accuracy_on_the_full_test_set():
    record = MNISTClassifier.record()
    assert record["test_images"] == 10_000
    assert record["test_accuracy"] == pytest.approx(1 - record["test_errors"] / 10_000)
    assert record["test_accuracy"] >= 0.99
    assert record["command"].startswith("python benchmarks/train_classifier.py --data path/to/mnist.npz")
    assert {"seed", "torch"} <= set(record)


def test_logits_are_a_linear_map_of_the_features(classifier, data):
    images = data.test[:20]
    features = classifier.features(images)
    assert features.shape == (20, MNISTClassifier.n_features)
    assert classifier(images).shape == (20, MNISTClassifier.n_classes)
    torch.testing.assert_close(classifier.classify(features), classifier(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.float16])
def test_every_dtype_of_the_same_image_is_judged_alike(classifier, data, dtype):
    images = data.test[:20]
    assert torch.equal(classifier(images.to(dtype)), classifier(images))


def test_an_image_is_judged_by_itself(classifier, data):
    images = data.test[:130]
    together = classifier(images)
    for size in (1, 7, 64):
        apart = torch.cat([classifier(batch) for batch in images.split(size)])
        torch.testing.assert_close(apart, together, **TOLERANCE)
    company = torch.cat([images[:3], 255 - images[3:]])
    torch.testing.assert_close(classifier(company)[:3], together[:3], **TOLERANCE)
    assert classifier(images[:0]).shape == (0, 10)


def test_train_and_eval_mode_are_the_same_function(data):
    classifier = MNISTClassifier.from_pretrained()
    images = data.test[:9]
    assert torch.equal(classifier.train()(images), classifier.eval()(images))


def test_in_float64_the_output_agrees(data, classifier):
    double = MNISTClassifier.from_pretrained().double()
    logits = double(data.test[:9])
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), classifier(data.test[:9]), **TOLERANCE)


def test_parameters_are_frozen_and_gradients_reach_the_images(classifier, data):
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    images = data.test[:2].float().requires_grad_()
    classifier(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    MNISTClassifier.from_pretrained()
    assert torch.equal(before, torch.get_rng_state())


def test_images_in_model_space_are_not_silently_fine(classifier, data):
    y = eight_bit().forward(data.test[:200])
    labels = data.test_labels[:200]
    assert (classifier(y).argmax(1) == labels).double().mean() < 0.9
    assert (classifier(eight_bit().inverse(y)).argmax(1) == labels).double().mean() >= 0.97


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(28, 28),
        torch.zeros(4, 28, 28),
        torch.zeros(4, 784),
        torch.zeros(4, 3, 28, 28),
        torch.zeros(4, 1, 32, 32),
        torch.zeros(4, 1, 28, 28, dtype=torch.complex64),
    ],
)
def test_other_shapes_are_refused(classifier, images):
    for call in (classifier, classifier.features):
        with pytest.raises(DataError, match=r"\(B, 1, 28, 28\)") as caught:
            call(images)
        assert caught.value.argument == "images"


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_missing_or_damaged_weights_are_a_typed_error(monkeypatch, tmp_path, content):
    (tmp_path / "weights").mkdir()
    if content is not None:
        (tmp_path / "weights" / "mnist_classifier.safetensors").write_bytes(content)
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="Reinstall"):
        MNISTClassifier.from_pretrained()
    with pytest.raises(CheckpointError, match="missing"):
        MNISTClassifier.record()


def test_weights_of_another_network_are_refused(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "weights").mkdir()
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "weights" / "mnist_classifier.safetensors")
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="Missing key"):
        MNISTClassifier.from_pretrained()


def test_the_weight_file_is_small():
    folder = resources.files("sde_toolkit.metrics") / "weights"
    assert len((folder / "mnist_classifier.safetensors").read_bytes()) < 1_000_000


def test_importing_the_module_does_not_import_safetensors():
    code = "import sys, sde_toolkit.metrics.classifier; print('safetensors' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
