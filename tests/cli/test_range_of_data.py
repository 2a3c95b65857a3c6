"""Commands say so when the data they are given are in another space than the model's."""

import numpy as np
import pytest
import torch

from sde_toolkit import VPSDE, ScoreModel, UNet
from sde_toolkit.data import Affine


@pytest.fixture
def grey_model(tmp_path):
    """A model of 8-bit images (1, 8, 8), and its data in three spaces."""
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1)
    transform = Affine(127.5, 1 / 127.5, low=0.0, high=255.0)
    ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=transform).save_pretrained(tmp_path / "grey")
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    for name, values in (("grey", 255 * x), ("unit", x), ("signed", 2 * x - 1)):
        np.save(tmp_path / f"{name}.npy", values)
    return tmp_path


def words_of(name, data):
    """Arguments of a command that is as short as can be."""
    short = {
        "compare": ["model={path:grey}", "n=8", "n_real=20", "budgets=[2]", "solver=ddim", "exact_flow.n=0"],
        "likelihood": ["model={path:grey}", "n=2", "nfe=4", "divergence.probes=1", "elbo.draws=0", "discrete.steps=0"],
        "evaluate": ["samples=grey", "n=8", "nfe=2", "metrics=[distance]"],
    }
    own = ["data=digits"] if data == "digits" else ["data=array", f"data.path={data}.npy"]
    return [name, *short[name], *own, "progress=false", "output=run"]


@pytest.mark.parametrize("name", ["compare", "likelihood", "evaluate"])
def test_data_of_another_space_are_refused_or_warned_of(command, grey_model, name):
    status, _, err = command(*words_of(name, "signed"))
    assert status == 2
    assert "range" in err
    with pytest.warns(UserWarning, match="small part of the range"):
        command(*words_of(name, "unit"))
    with pytest.warns(UserWarning, match="small part of the range"):  # 17 levels are not 256
        command(*words_of(name, "digits"))


def test_data_that_were_chosen_by_their_shape_are_warned_of_too(command, grey_model):
    words = words_of("compare", "digits")
    with pytest.warns(UserWarning, match="small part of the range"):
        status, _, err = command(*(word for word in words if not word.startswith("data=")))
    assert status == 0, err


def test_samples_of_another_space_than_the_real_data_are_warned_of(command, tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (40, 1, 28, 28)).astype(np.float32)
    np.save(tmp_path / "unit.npy", rows / 255)
    np.save(tmp_path / "beyond.npy", rows * 1.2 - 20)
    words = ["evaluate", "metrics=[distance]", "extractor=data", "reference.n=100", "output=run"]
    with pytest.warns(UserWarning, match="small part of the range"):
        command(*words, "samples=unit.npy")
    status, _, err = command(*words, "samples=beyond.npy")  # samples may leave the range
    assert status == 0, err
    assert "range" not in err
