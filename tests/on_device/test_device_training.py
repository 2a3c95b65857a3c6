"""Calibration, losses and training run on a device, and losses and weights are those of the CPU."""

import pytest
import torch
from both_places import CPU, F64, SDE, assert_the_same, mixture, network_model, on_host, points, public

from sde_toolkit import (
    MLP,
    Affine,
    DenoisingScoreMatching,
    Levels,
    ScoreModel,
    TrainingOptions,
    UNet,
    calibrate,
    dpmpp_2m,
    losses,
    train,
)
from sde_toolkit.data import Dataset, HorizontalFlip, checkerboard

# Calibration


@pytest.mark.parametrize("weights", [False, True])
def test_calibration(weights, both):
    """It runs where the model is. How far it comes in a second is another matter."""

    def run(place):
        how = {"n": 8, "weights": weights, "reference_steps": 20, "time_limit": 1.0, "strategy": "search"}
        found = calibrate(mixture(place), dpmpp_2m(), 4, **how, **F64)
        return found.sample(mixture(place), shape=(3, 2), **F64).x

    assert run(both[1]).device.type == both[1].type


# Losses

LOSSES = {
    **{kind: DenoisingScoreMatching(kind) for kind in ("epsilon", "v", "x0", "score", "velocity", "edm")},
    "min snr": DenoisingScoreMatching("epsilon", losses.MinSNR()),
    "bound": losses.VariationalBound(20),
    "bound of levels": losses.VariationalBound(20, Levels(16, 0.0, 15.0)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss(loss, both):
    def run(place):
        model, x = network_model(place, transform=Affine(7.5, 1 / 7.5)), points(place).round() / 7.5
        t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64, device=CPU).to(place)
        found = loss(model, x, t, points(place).flip(0), None)
        found.mean().backward()
        return [found, *(p.grad for p in model.parameters() if p.grad is not None)]

    assert_the_same(run, both)


TIMES = [times() for times in public(losses, losses.TimeDistribution)]


@pytest.mark.parametrize("times", TIMES, ids=lambda times: type(times).__name__)
def test_every_distribution_of_times(times, both):
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64, device=CPU)
    assert_the_same(lambda place: times(SDE, u.to(place), 1e-3), both, 1e-12)


def test_the_histogram_of_losses(both):
    def run(place):
        edges = torch.linspace(-3, 3, 5, device=place)
        return losses.lambda_histogram(points(place)[:, 0], points(place)[:, 1].square(), edges)

    assert_the_same(run, both)


# Training


def trained(place, folder, until=None, **options):
    torch.manual_seed(0)
    network = MLP(event_shape=(2,), width=32, depth=2, embedding_scale=100.0)
    model = ScoreModel(network, SDE, "edm", event_shape=(2,))
    given = {"steps": 8, "batch_size": 32, "warmup_steps": 2, "log_every": 2, "evaluate_every": 4, "held_out": 40}
    given |= {"tf32": False}
    options = TrainingOptions(**{**given, "power_averages": (0.1,), "snapshots": 4, **options})
    loss = DenoisingScoreMatching("edm")
    averaged = train(model, checkerboard(n=200), folder, options, loss=loss, device=place, until=until)
    return {key: value for key, value in averaged.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-4), ({"pass_size": 16}, 1e-4), ({"precision": "bfloat16"}, 2e-2), ({"precision": "float16"}, 1e-2)],
    ids=["float32", "two passes", "bfloat16", "float16"],
)
def test_training(options, tolerance, both, tmp_path):
    if options.get("precision") == "float16" and both[1].type != "cuda":
        pytest.skip("float16 needs CUDA")
    usual = {} if "precision" in options else options
    here, there = trained(CPU, tmp_path / "here", **usual), trained(both[1], tmp_path / "there", **options)
    assert all(value.device.type == both[1].type for value in there.values())
    torch.testing.assert_close(on_host(there), on_host(here), rtol=tolerance, atol=tolerance)


def test_resumption(both, tmp_path):
    """A run that stopped on the device goes on there to the weights of the run that never stopped."""
    whole = trained(both[1], tmp_path / "whole")
    trained(both[1], tmp_path / "parts", until=4)
    torch.testing.assert_close(trained(both[1], tmp_path / "parts"), whole, rtol=1e-5, atol=1e-6)


def test_a_run_moves_from_device_to_device(both, tmp_path):
    """Checkpoints know no device."""
    whole = trained(CPU, tmp_path / "whole")
    trained(both[1], tmp_path / "parts", until=4)
    torch.testing.assert_close(trained(CPU, tmp_path / "parts"), whole, rtol=1e-4, atol=1e-4)


def test_training_of_images_with_classes(both, tmp_path):
    def run(place):
        torch.manual_seed(0)
        network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(1,), num_classes=3)
        model = ScoreModel(network, SDE, "v", event_shape=(1, 8, 8))
        labels = torch.arange(40, device=CPU) % 3
        x = points(CPU, 40, 64, torch.float32).reshape(40, 1, 8, 8)
        data = Dataset("noise", train=x, test=x[:10], train_labels=labels, test_labels=labels[:10])
        options = TrainingOptions(
            steps=4, batch_size=16, label_dropout=0.3, held_out=8, evaluate_every=2, warmup_steps=1, tf32=False
        )
        averaged = train(model, data, tmp_path / place.type, options, device=place)
        return [value for value in averaged.state_dict().values() if value.is_floating_point()]

    assert_the_same(run, both, 1e-3)


def images_trained(place, folder, until=None, **options):
    """Dropout, labels, a flip, two passes."""
    torch.manual_seed(0)
    network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(1,), num_classes=3, dropout=0.2)
    model = ScoreModel(network, SDE, "edm", event_shape=(1, 8, 8))
    labels = torch.arange(40, device=CPU) % 3
    x = points(CPU, 40, 64, torch.float32).reshape(40, 1, 8, 8)
    data = Dataset("noise", train=x, test=x[:10], train_labels=labels, test_labels=labels[:10])
    given = {"steps": 9, "batch_size": 16, "pass_size": 8, "label_dropout": 0.3, "held_out": 8, "evaluate_every": 3}
    options = TrainingOptions(**{**given, "warmup_steps": 1, "tf32": False, **options})
    averaged = train(model, data, folder, options, augmentation=HorizontalFlip(), device=place, until=until)
    return [value for value in averaged.state_dict().values() if value.is_floating_point()]


@pytest.mark.parametrize(
    "options",
    [{"compile": "cuda_graph"}, {"compile": True}, {"data_on_device": False}, {"workers": 1, "data_on_device": False}],
    ids=["recorded", "compiled", "sent batch by batch", "read ahead"],
)
def test_ways_to_train_on_a_device_are_one(options, both, tmp_path):
    """To round-off; a compiled network draws its dropout in another order, and has none here."""
    if both[1].type != "cuda":
        pytest.skip("there are CUDA graphs and pinned memory on CUDA devices alone")
    run = trained if options.get("compile") is True else images_trained
    usual, other = run(both[1], tmp_path / "usual"), run(both[1], tmp_path / "other", **options)
    torch.testing.assert_close(other, usual, rtol=1e-3, atol=1e-4)


def test_a_recorded_run_continues(both, tmp_path):
    if both[1].type != "cuda":
        pytest.skip("there are CUDA graphs on CUDA devices alone")
    usual = images_trained(both[1], tmp_path / "usual")
    images_trained(both[1], tmp_path / "parts", until=5, compile="cuda_graph")
    parts = images_trained(both[1], tmp_path / "parts", compile="cuda_graph")
    torch.testing.assert_close(parts, usual, rtol=1e-3, atol=1e-4)
