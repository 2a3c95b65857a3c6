"""``guidance=3``: the commands draw, compare and judge the guided model, and say so."""

import csv
import json

import numpy as np
import pytest
import torch

from sde_toolkit import VPSDE, Affine, ScoreModel, UNet, classifier_free, ddim, grids, sample

QUIET = "progress=false"


@pytest.fixture
def tiny(tmp_path):
    """The words that name a network with three classes, and the network."""
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1, num_classes=3)
    with torch.no_grad():
        for parameter in network.parameters():  # a new network answers zero
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125)).eval()
    model.save_pretrained(tmp_path / "tiny")
    return "model={path:tiny}", model


@pytest.mark.parametrize(("interval", "nfe"), [(None, 8), ((0.5, 3.0), 6)])
def test_samples_are_those_of_the_guided_model_within_the_budget(command, tmp_path, tiny, interval, nfe):
    """Nine evaluations are four of the guided model, the last of them to denoise."""
    words, model = tiny
    more = [] if interval is None else ["interval=[0.5,3]"]
    status, _, err = command("sample", words, "n=5", "nfe=9", "class=1", "guidance=3", *more, "output=run", QUIET)
    assert status == 0, err
    guided = classifier_free(model, 3.0, interval)
    options = {"shape": (5, 1, 8, 8), "condition": torch.full((5,), 1), "tweedie": True}
    expected = sample(guided, ddim(), grids.uniform(model.sde, 3), **options)
    record = json.loads((tmp_path / "run/samples.json").read_text())
    assert record["nfe"] == expected.nfe <= 8
    assert record["model"]["description"]["scale"] == 3
    with np.load(tmp_path / "run/samples.npz") as stored:
        assert np.allclose(stored["x_model"], expected.x, atol=1e-5)


def test_a_comparison_has_a_row_for_every_solver_under_every_guidance(command, tmp_path, tiny):
    few = ["n=4", "n_real=100", "exact_flow.n=2", "exact_flow.steps=2", "check_declaration=false", QUIET]
    words = ["solver=[ddim,ddpm]", "budgets=[6]", "class=1", "guidance=[1,2]"]
    status, _, err = command("compare", tiny[0], *few, *words, "output=run")
    assert status == 0, err
    with (tmp_path / "run/results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = [f"{solver}, guidance={scale}" for scale in (1, 2) for solver in ("ddim", "ddpm")]
    assert [row["solver"] for row in rows] == names
    assert [(int(row["nfe"]), int(row["steps"])) for row in rows] == [(6, 5)] * 2 + [(6, 2)] * 2
    assert [bool(row["rmse"]) for row in rows] == [True, False, True, False]  # each guidance has its own exact flow


def test_a_likelihood_says_whose_density_it_is(command, tmp_path, tiny):
    few = ["n=2", "nfe=4", "elbo.draws=0", "discrete.steps=0", "truncation.n=0", "check_declaration=false", QUIET]
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1, num_classes=10)
    ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125)).save_pretrained(
        tmp_path / "ten"
    )
    status, out, err = command("likelihood", "model={path:ten}", *few, "guidance=2", "interval=[0.5,3]", "output=run")
    assert status == 0, err
    assert "the probability flow of the model, guided by a class at scale 2, for σ/α from 0.5 to 3" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["class=1", "guidance=three"], "guidance='three'"),
        (["class=1", "guidance=[1,2]"], "Use compare for several"),
        (["class=1", "guidance=[]"], "guidance=[]"),
        (["class=none", "guidance=2"], "towards one"),
        (["class=1", "interval=[1,2]"], "there is no guidance"),
        (["class=1", "guidance=2", "interval=[2,1]"], "interval=(2, 1)"),
        (["class=1", "guidance=2", "nfe=3"], "at least 4"),
    ],
)
def test_guidances_that_mean_nothing_are_refused(command, tmp_path, tiny, words, said):
    status, _, err = command("sample", tiny[0], "n=2", "nfe=9", *words, "output=run", QUIET)
    assert status == 2
    assert said in err
    assert not list(tmp_path.rglob("samples.npz"))


def test_a_network_without_classes_takes_no_guidance(command):
    status, _, err = command("sample", "model=mixture", "n=2", "nfe=9", "guidance=2", "output=run", QUIET)
    assert status == 2
    assert "without classes" in err
