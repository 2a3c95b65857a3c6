"""Every file of configs/loss and configs/times builds what it is named after, and trains on a batch."""

from pathlib import Path

import pytest
import torch
from loss_tools import batch, model_with
from omegaconf import OmegaConf

from sde_toolkit import VPSDE, DenoisingScoreMatching
from sde_toolkit.cli.setup import instantiate
from sde_toolkit.losses import (
    P2,
    Cosine,
    Discrete,
    EDMWeighting,
    Hybrid,
    LikelihoodTimes,
    LogitNormal,
    LogNormal,
    MinSNR,
    SigmoidWeighting,
    Uniform,
    VariationalBound,
    constant,
    g_squared,
    sigma_squared,
)

CONFIGS = Path(__file__).parents[2] / "configs"
LOSSES = {
    "simple": DenoisingScoreMatching("epsilon", constant),
    "matching": DenoisingScoreMatching("v", constant),  # the model's own prediction, v below
    "score": DenoisingScoreMatching("score", sigma_squared),
    "likelihood": DenoisingScoreMatching("score", g_squared),
    "edm": DenoisingScoreMatching("edm", constant),
    "velocity": DenoisingScoreMatching("velocity", constant),
    "min_snr": DenoisingScoreMatching(weighting=MinSNR()),
    "p2": DenoisingScoreMatching(weighting=P2()),
    "sigmoid": DenoisingScoreMatching(weighting=SigmoidWeighting()),
    "vlb": VariationalBound(),
    "hybrid": Hybrid(),
}
TIMES = {
    "uniform": Uniform(),
    "discrete": Discrete(),
    "likelihood": LikelihoodTimes(),
    "edm": LogNormal(),
    "logit_normal": LogitNormal(),
    "cosine": Cosine(),
}


def built(group, name):
    config = OmegaConf.create({"model": {"prediction": "v"}, "part": OmegaConf.load(CONFIGS / group / f"{name}.yaml")})
    return instantiate(config.part)


def test_every_file_is_known():
    assert {file.stem for file in (CONFIGS / "loss").glob("*.yaml")} == set(LOSSES)
    assert {file.stem for file in (CONFIGS / "times").glob("*.yaml")} == set(TIMES)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_built_and_run(name):
    loss = built("loss", name)
    assert loss == LOSSES[name]
    x_0, t, noise = batch(dtype=torch.float32)
    model = model_with(VPSDE(), "v", learned_variance=True)
    assert bool(loss(model, x_0, t, noise).isfinite().all())


@pytest.mark.parametrize("name", TIMES)
def test_times_are_built(name):
    assert built("times", name) == TIMES[name]


def test_the_edm_file_is_edms_weight_of_x0():
    """At the model's own σ_d."""
    x_0, t, noise = batch()
    model = model_with(VPSDE(), "x0")
    other = DenoisingScoreMatching("x0", EDMWeighting(model.sigma_data))
    torch.testing.assert_close(built("loss", "edm")(model, x_0, t, noise), other(model, x_0, t, noise))
