"""Every experiment of configs/ runs, on tiny data and with a narrow network where it is large; the checkpoint loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sde_toolkit import ScoreModel, ddim, grids, sample

EXPERIMENTS = sorted(p.stem for p in (Path(__file__).parents[2] / "configs/experiment").glob("*.yaml"))
SHORT = ["options.steps=2", "options.evaluate_every=2", "options.batch_size=4", "options.held_out=4", "threads=1"]
SHORT += ["options.workers=0", "watch=none", "progress=false", "output=run", "trackers=[]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dice = np.random.default_rng(0)
    for name, shape in (("mnist", (28, 28)), ("cifar10", (32, 32, 3))):
        arrays = {f"x_{part}": dice.integers(0, 256, (12, *shape), dtype=np.uint8) for part in ("train", "test")}
        arrays |= {f"y_{part}": np.arange(12) % 10 for part in ("train", "test")}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


@pytest.fixture
def trained(command, tmp_path):
    """Trains in this process (starting one for each would take most of the time): the model of the checkpoint."""

    def run(*words):
        status, _, complaint = command("train", *words, *SHORT)
        assert status == 0, complaint
        return ScoreModel.from_pretrained(tmp_path / "run")

    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(trained, tmp_path, data, name):
    words = [f"experiment={name}"]
    kind = "mnist" if name.startswith("mnist") else "cifar10" if name.startswith("cifar10") else None
    if kind:
        words.append(f"data.path={data / f'{kind}.npz'}")
    if kind == "cifar10":
        words += ["network.widths=[32,32]", "network.blocks_per_level=1"]
    if name == "mnist_second":
        words.append("initial=mnist")
    model = trained(*words)
    x = sample(model, ddim(), grids.uniform(model.sde, 2, end=0.01), shape=(1, *model.event_shape)).x
    assert x.isfinite().all()
    said = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    if kind == "cifar10":
        assert said["options"]["learning_rate"] == 2e-4
        ends = model.transform.forward(torch.tensor([0.0, 255.0])).tolist()
        assert ends == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize(
    "parts",
    [
        ["loss=hybrid"],
        ["loss=vlb", "times=discrete", "sde=ddpm"],
        ["loss=edm", "times=edm"],
        ["loss=likelihood", "times=likelihood"],
        ["loss=min_snr"],
        ["loss=p2"],
        ["loss=sigmoid"],
        ["loss=velocity", "times=logit_normal", "prediction=velocity"],
        ["loss=score", "times=cosine"],
    ],
    ids=lambda parts: parts[0],
)
def test_every_loss_and_distribution_of_times_runs(trained, parts):
    words = ["network.widths=[8,8]", "network.blocks_per_level=1", "network.attention_levels=[]"]
    if "loss=hybrid" in parts:
        parts = ["loss=hybrid", "times=discrete", "sde=ddpm", "prediction=epsilon", "model.learned_variance=true"]
    trained(*words, *parts)
