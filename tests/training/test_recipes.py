"""Every experiment of configs/ runs, on tiny data and with a narrow network where it is large; the checkpoint loads."""

import re
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
def test_every_experiment_says_what_was_measured(name):
    """Before its first key: figures, or that there are none."""
    text = (Path(__file__).parents[2] / f"configs/experiment/{name}.yaml").read_text(encoding="utf-8")
    said = " ".join(line.lstrip("# ") for line in text.partition("defaults:")[0].splitlines())
    assert re.search(r"Here( \([^)]*\))?: (not run|.*\d\.\d)", said), said


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(trained, tmp_path, data, name):
    words = [f"experiment={name}"]
    kind = "mnist" if name.startswith("mnist") else "cifar10" if name.startswith("cifar10") else None
    if kind:
        words.append(f"data.path={data / f'{kind}.npz'}")
    if kind == "cifar10":
        words += ["network.widths=[32,32]", "network.blocks_per_level=1"]
    if name.endswith("_second"):
        words.append(f"initial={name.removesuffix('_second')}")
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


SMALL = ["network.widths=[8,8]", "network.blocks_per_level=1", "network.attention_levels=[]"]
LEARNT = ["options.steps=20", "options.learning_rate=0.03", "options.warmup_steps=0", "options.ema_decay=0.0"]


@pytest.fixture(scope="module")
def firsts(tmp_path_factory):
    return tmp_path_factory.mktemp("firsts")


@pytest.fixture
def start(command, firsts, tmp_path):
    """``start(parts of one run, parts of another)``: the status and message of the second, begun from the first.

    The first run is made once for all tests, which read it only; ``one`` in the test's folder is a link to it."""

    def run(first, second):
        place = firsts / f"first{len(first)}"
        if not place.exists():
            status, _, complaint = command("train", *SMALL, *SHORT, *LEARNT, *first, f"output={place}")
            assert status == 0, complaint
        (tmp_path / "one").symlink_to(place)
        return command("train", *SMALL, *SHORT, *second, "output=two", f"initial={tmp_path / 'one'}")[::2]

    return run


EPSILON = ["prediction=epsilon"]
CLOCK = "model.time_input={_target_:sde_toolkit.models.time_inputs.ScaledTime,scale:7.0}"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (EPSILON, [*EPSILON, "sde=ve"], "sde.class (VPSDE there, VESDE here)"),
        (EPSILON, [*EPSILON, "sde.beta_max=10.0"], "sde.beta_max (20.0 there, 10.0 here)"),
        ([], ["sde=ve", "sde.sigma_min=1e3", "sde.sigma_max=1e4"], "no noise level in common"),
        ([], ["prediction=v"], "prediction (edm there, v here)"),
        ([], [CLOCK], "time_input.scale (0.25 there, 7.0 here)"),
    ],
    ids=["another path", "the same at other times", "other noise", "another question", "another clock"],
)
def test_weights_that_mean_something_else_are_no_start(start, tmp_path, first, second, said):
    """Refused before anything is written, and what differs is named, in the words of the shell."""
    status, complaint = start(first, second)
    assert status == 2
    assert said in complaint
    assert "Choose the same settings" in complaint
    assert "Traceback" not in complaint
    assert not list((tmp_path / "two").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "second",
    [["sde=ve"], ["sde.beta_max=10.0"], ["loss=min_snr", "model.sigma_data=0.7"]],
    ids=["another path", "the same at other times", "another loss, as on other data"],
)
def test_weights_that_mean_the_same_are_a_start(start, tmp_path, second):
    """A network that sees x/α with unit variance and is told σ/α knows nothing of the path."""
    status, complaint = start([], second)
    assert status == 0, complaint
    one, two = (ScoreModel.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert type(two.sde).__name__ == ("VESDE" if second == ["sde=ve"] else "VPSDE")
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.allclose(a, b, atol=0.01) for a, b in pairs), "two steps with little warm-up away"


def test_a_network_that_is_told_the_same_under_another_description_is_a_start(start):
    """DDPM's thousand steps are VP's, but for the discretisation."""
    status, complaint = start(EPSILON, [*EPSILON, "sde.beta_max=20.001"])
    assert status == 0, complaint
