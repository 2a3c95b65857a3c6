"""model-N.pt of denoising-diffusion-pytorch: the numbers of the package's own network, for every generation of it."""

from __future__ import annotations

import argparse
import os
import re

import lucidrains_reference as reference
import numpy as np
import pytest
import torch
from torch import nn

from sde_toolkit import DiscreteVPSDE, ScoreModel, clip_x0, ddim, interop, sample
from sde_toolkit.cli.main import main
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.networks import LinearAttentionUNet
from sde_toolkit.sde.beta_schedules import cosine_betas, linear_betas
from sde_toolkit.transforms import Identity

KINDS = tuple(reference.KINDS)
PREDICTIONS = {"pred_noise": "epsilon", "pred_x0": "x0", "pred_v": "v"}


def written(folder, kind, **changes):
    path = folder / "model-1.pt"
    torch.save({**reference.checkpoint(kind), **changes}, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_parameters_and_trajectory_are_those_of_the_package(tmp_path, kind):
    """Also after ``save_pretrained``, and read back by ``from_pretrained`` alone."""
    answers, layout = reference.answers(kind)
    model = interop.load(written(tmp_path, kind))
    assert isinstance(model.network, LinearAttentionUNet)
    assert not model.training
    assert model.prediction == PREDICTIONS[layout["objective"]]
    assert sum(p.numel() for p in model.parameters()) == layout["parameters"]
    model.save_pretrained(tmp_path / "ours")
    model = ScoreModel.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        for place, x in enumerate(reference.inputs(kind)):
            for i, expected in zip(reference.LEVELS, answers[f"predicted_{place}"], strict=True):
                found = model(x, (i + 1) / reference.STEPS).x_0
                assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    indices = torch.linspace(-1, reference.STEPS - 1, reference.SAMPLING_STEPS + 1).int()
    grid = (indices.flip(0).double() + 1) / reference.STEPS
    sampled = (self_conditioned if model.network.self_conditioning else plain)(model, reference.inputs(kind)[0], grid)
    torch.testing.assert_close(sampled, answers["sampled"], atol=1e-4, rtol=0)


def plain(model, x, grid):
    """DDIM on x̂_0 clipped to [−1, 1], as the package does."""
    return sample(clip_x0(model), ddim(), grid, x_start=x).data


def self_conditioned(model, x, grid):
    """The same, each step under the x̂_0 of the step before."""
    clipped, estimate = clip_x0(model), None
    for step in grid.unfold(0, 2, 1):
        x_t, x = x, sample(clipped, ddim(), step, x_start=x, condition=estimate).x
        with torch.no_grad():
            estimate = clipped(x_t, step[0], estimate).x_0
    return model.transform.inverse(x)


def test_raw_weights_are_those_of_the_model(tmp_path):
    model = interop.load(written(tmp_path, "images"), weights="raw")
    torch.testing.assert_close(model.network.enter.bias.detach(), reference.weight("model.init_conv.bias", (8,)))
    with pytest.raises(ArgumentError, match=r'weights=.*"raw"'):
        interop.load(tmp_path / "model-1.pt", weights="best")


def test_data_are_in_the_unit_interval_unless_told_otherwise(tmp_path):
    path = written(tmp_path, "signals")
    data = torch.tensor([[[0.0, 0.25, 1.0]]])
    assert interop.load(path).transform.forward(data).tolist() == [[[-1.0, -0.5, 1.0]]]
    assert interop.load(path, transform=Identity()).transform == Identity()


def test_an_earlier_estimate_is_a_condition(tmp_path):
    """Zeros without one, as in half of the training with self-conditioning."""
    model = interop.load(written(tmp_path, "groups"))
    x = reference.inputs("groups")[0]
    with torch.no_grad():
        nothing, zeros = model(x, 0.5).x_0, model(x, 0.5, torch.zeros_like(x)).x_0
        estimate = model(x, 0.5, nothing).x_0
    assert torch.equal(nothing, zeros)
    assert not torch.allclose(estimate, zeros, atol=1e-3)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS.values())
def test_every_objective_shows_in_the_loss_weights(tmp_path, prediction, gamma):
    """Those of a network that predicts y have the loss E‖x̂_0 − x_0‖² SNR, with min-SNR min(SNR, γ) in its place."""
    found = reference.checkpoint("signals")
    alpha, sigma = (found["model"][f"sqrt_{name}"].double() for name in ("alphas_cumprod", "one_minus_alphas_cumprod"))
    error_of_x0 = {"epsilon": sigma / alpha, "x0": torch.ones_like(alpha), "v": sigma}[prediction]
    ratio = (alpha / sigma) ** 2
    weights = (ratio if gamma is None else ratio.clamp(max=gamma)) * error_of_x0**2
    for state, name in ((found["model"], "loss_weight"), (found["ema"], "ema_model.loss_weight")):
        state[name] = weights.float()
    path = written(tmp_path, "signals", model=found["model"], ema=found["ema"])
    assert interop.load(path).prediction == prediction
    other = next(kind for kind in PREDICTIONS.values() if kind != prediction)
    with pytest.raises(ArgumentError, match=f"prediction='{other}'.*loss weights"):
        interop.load(path, prediction=other)


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    found = reference.checkpoint("images")
    del found["ema"]["ema_model.loss_weight"]  # of versions before 1.5
    path = written(tmp_path, "images", ema=found["ema"])
    with pytest.raises(ArgumentError, match=r"prediction=None.*for objective='pred_noise'"):
        interop.load(path)
    assert interop.load(path, prediction="v").prediction == "v"


@pytest.mark.parametrize("version", [None, "1.7.2"])
def test_a_network_of_unknown_norms_has_to_be_given(tmp_path, version):
    with pytest.raises(CheckpointError, match=r"norms differ.*network="):
        interop.load(written(tmp_path, "groups", version=version))


@pytest.mark.parametrize("betas", [linear_betas(1000), cosine_betas(1000)], ids=["linear", "cosine"])
def test_the_schedule_is_as_exact_as_the_file(tmp_path, betas):
    """α and σ to float32 round-off at all of 1000 steps, where 1 − β, or 1 − ᾱ, has lost digits in the file."""
    found, sde = reference.checkpoint("signals"), DiscreteVPSDE(betas)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    for name, value in {
        "betas": torch.as_tensor(betas, dtype=torch.float64),
        "alphas_cumprod": alpha**2,
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "loss_weight": torch.ones(1000),
    }.items():
        found["ema"][f"ema_model.{name}"] = value.float()
    read = interop.load(written(tmp_path, "signals", ema=found["ema"])).sde
    torch.testing.assert_close(read.alpha(t), alpha, rtol=1e-6, atol=0)
    torch.testing.assert_close(read.sigma(t), sigma, rtol=1e-6, atol=0)


class Given(nn.Module):
    """A caller's own network, as ``Unet`` is called."""

    def __init__(self):
        super().__init__()
        self.channels = self.out_dim = 2
        self.mix = nn.Conv2d(2, 2, 1)

    def forward(self, x, time):
        return self.mix(x) * torch.cos(time)[:, None, None, None]


def test_a_network_of_the_caller_is_filled(tmp_path):
    found, trained = reference.checkpoint("images"), Given()
    average = {k: v for k, v in found["ema"].items() if not k.startswith("ema_model.model.")}
    average |= {f"ema_model.model.{k}": v for k, v in trained.state_dict().items()}
    path = written(tmp_path, "images", ema=average)
    network = Given()
    model = interop.load(path, network=network)
    x = reference.inputs("images")[0]
    torch.testing.assert_close(model(x, 0.3).v, trained(x, torch.full((len(x),), 29.0)))
    with pytest.raises(ArgumentError, match=r"network=.*do not fit"):
        interop.load(path, network=nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"no Unet.*network="):
        interop.load(path)


def expanded(name, shape):
    """A tensor of that shape with one number in the file."""
    return {**reference.checkpoint("images")["ema"], name: torch.zeros(1).expand(shape)}


def test_forged_sizes_and_damaged_weights_are_refused(tmp_path):
    forged = expanded("ema_model.model.init_conv.weight", (2**20, 2**20, 7, 7))
    with pytest.raises(CheckpointError, match="fewer numbers"):
        interop.load(written(tmp_path, "images", ema=forged))
    found = reference.checkpoint("images")
    found["ema"]["ema_model.model.init_conv.bias"][0] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        interop.load(written(tmp_path, "images", ema=found["ema"]))
    found["ema"]["ema_model.sqrt_alphas_cumprod"].fill_(0.5)
    with pytest.raises(CheckpointError, match="schedule"):
        interop.load(written(tmp_path, "images", ema=found["ema"]))


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_the_command_line_says_how_to_tell_the_shape(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "images")
    common = ["n=2", "solver=ddim", "nfe=2", "output=out", "progress=false"]
    with pytest.raises(SystemExit):
        main(["sample", "model=model-1.pt", *common])
    assert "'model={path: model-1.pt, event_shape: [3, 32, 32]}'" in capsys.readouterr().err
    main(["sample", "model={path: model-1.pt, event_shape: [2, 8, 8]}", *common])
    with np.load("out/samples.npz") as found:
        assert found["x"].shape == (2, 2, 8, 8)


def test_no_code_of_a_file_runs(tmp_path):
    for trap in (Trap(str(tmp_path / "trapped")), argparse.Namespace(inside=Trap(str(tmp_path / "trapped")))):
        with pytest.raises(CheckpointError, match=re.escape("no family")):
            interop.load(written(tmp_path, "images", opt=trap))
        assert not (tmp_path / "trapped").exists()


def test_the_package_itself_agrees(tmp_path):
    """What ``Trainer.save`` writes, and 100 steps of ``p_sample_loop`` under the same noise."""
    package = pytest.importorskip("denoising_diffusion_pytorch")
    from sde_toolkit import ddpm

    torch.manual_seed(0)
    arguments, options = reference.KINDS["images"]
    diffusion = package.GaussianDiffusion(package.Unet(**arguments), image_size=8, timesteps=100, **options)
    _, average = reference.saved(package, diffusion, signals=False, keep=tmp_path / "model-1.pt")
    model = interop.load(tmp_path / "model-1.pt")
    shape = (2, 2, 8, 8)
    torch.manual_seed(5)
    theirs = average.p_sample_loop(shape)
    grid = torch.arange(100, -1, -1, dtype=torch.float64) / 100
    ours = sample(clip_x0(model), ddpm(), grid, shape=shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours.data, theirs, atol=1e-4, rtol=0)
