"""Checkpoints of k-diffusion: its denoiser's numbers, and the trajectory of its Heun sampler."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sde_toolkit import grids, heun, interop, sample
from sde_toolkit.errors import ArgumentError, CheckpointError, MissingDependencyError

SHAPES = [(2, 2, 8, 8), (1, 2, 8, 16), (3, 2, 16, 8)]
RANGE = {"sigma_min": 0.01, "sigma_max": 60.0, "sigma_data": 0.5}
UNET = {
    "type": "image_v1", "input_channels": 2, "input_size": [8, 8], "mapping_out": 8, "depths": [1, 1],
    "channels": [4, 8], "self_attn_depths": [False, True], "patch_size": 1, **RANGE,
}  # fmt: skip
TRANSFORMER = {
    "type": "image_transformer_v1", "input_channels": 2, "input_size": [8, 8], "depth": 1, "width": 64,
    "patch_size": [2, 2], **RANGE,
}  # fmt: skip
HOURGLASS = {
    "type": "image_transformer_v2", "input_channels": 2, "input_size": [8, 8], "depths": [1, 1], "widths": [16, 16],
    "self_attns": [{"type": "global", "d_head": 8}] * 2, "patch_size": [2, 2], **RANGE,
}  # fmt: skip


class Inside(nn.Module):
    """A network as k-diffusion has it inside its denoiser: told σ, and a dictionary of arguments."""

    def __init__(self, channels=2, width=5):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, sigma, mapping_cond=None):
        told = sigma.log() / 4 if mapping_cond is None else sigma.log() / 4 + mapping_cond
        return self.last(torch.tanh(self.first(x) + told[:, None, None, None]))


def config(model, classes=0):
    return {"model": model, "dataset": {"type": "imagefolder", "location": "", "num_classes": classes}}


def slim(folder, network, described):
    path = folder / "slim.safetensors"
    save_file(network.state_dict(), path, {"config": json.dumps(described, indent=4)})
    return path


def training(folder, raw, ema, described):
    path = folder / "model_00010000.pth"
    rest = {"opt": {}, "ema_sched": {"step": 1}, "gns_stats": None, "demo_gen": torch.Generator().get_state()}
    torch.save({"config": described, "model": raw.state_dict(), "model_ema": ema.state_dict(), **rest}, path)
    return path


def denoised(network, x, sigma, sigma_data, **told):
    """Karras et al. 2022, table 1, last column."""
    total = (sigma**2 + sigma_data**2) ** 0.5
    answer = network(x / total, torch.full((len(x),), sigma), **told)
    return sigma_data**2 / total**2 * x + sigma * sigma_data / total * answer


@pytest.mark.parametrize("sigma_data", [0.5, None])
def test_predictions_are_edms_with_the_sigma_data_of_the_file(tmp_path, sigma_data):
    """1 where the file does not say it."""
    torch.manual_seed(0)
    described = config({**UNET, "sigma_data": sigma_data})
    if sigma_data is None:
        del described["model"]["sigma_data"]
    raw, ema = Inside(), Inside()
    files = [(slim(tmp_path, ema, described), "ema", ema)]
    path = training(tmp_path, raw, ema, described)
    files += [(path, "ema", ema), (path, "raw", raw)]
    for file, weights, network in files:
        model = interop.load(file, network=Inside(), weights=weights)
        assert model.event_shape == (2, 8, 8)
        for sigma in torch.logspace(-1.9, 1.5, 20).tolist():
            x = torch.randn(2, 2, 8, 8) * (1 + sigma)
            t = model.sde.solve_half_log_snr(-torch.tensor(sigma, dtype=torch.float64).log())
            expected = denoised(network, x, sigma, sigma_data or 1.0)
            assert (model(x, t).x_0 - expected).abs().max() <= 1e-5 * expected.abs().max()
            told = torch.tensor([1.0, -1.0])
            expected = denoised(network, x, sigma, sigma_data or 1.0, mapping_cond=told)
            assert (model(x, t, {"mapping_cond": told}).x_0 - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_network_is_built_by_the_package_from_the_configuration(tmp_path, monkeypatch):
    """Here a stand-in for the package: one with other sizes than the weights is refused before it has memory."""
    described = config({"type": "stand-in", "input_channels": 2, "width": 7, **RANGE}, classes=3)
    stand_in = ModuleType("k_diffusion.config")
    stand_in.load_config = lambda given: given
    stand_in.make_model = lambda given: Inside(given["model"]["input_channels"], given["model"]["width"])
    monkeypatch.setitem(sys.modules, "k_diffusion", ModuleType("k_diffusion"))
    monkeypatch.setitem(sys.modules, "k_diffusion.config", stand_in)
    network = Inside(2, 7)
    model = interop.load(slim(tmp_path, network, described))
    assert all(torch.equal(model.network.state_dict()[name], value) for name, value in network.state_dict().items())
    assert model.condition_name == "class_cond"
    for wrong in ({"width": 2**40}, {"width": 8}, {"width": None}):
        changed = config({**described["model"], **wrong})
        with pytest.raises(CheckpointError, match=r"cannot be built|do not fit"):
            interop.load(slim(tmp_path, network, changed))


def test_what_a_file_does_not_say_is_asked_for(tmp_path, monkeypatch):
    path = training(tmp_path, Inside(), Inside(), None)
    with pytest.raises(ArgumentError, match=r"config=None.*--config"):
        interop.load(path, network=Inside())
    (tmp_path / "config.json").write_text(json.dumps(config(UNET)))
    for given in (config(UNET), tmp_path / "config.json"):
        assert interop.load(path, network=Inside(), config=given).sde.sigma_max == 60.0
    without = {name: value for name, value in UNET.items() if name != "sigma_max"}
    with pytest.raises(CheckpointError, match=r"sigma_max=None.*config="):
        interop.load(path, network=Inside(), config=config(without))
    with pytest.raises(ArgumentError, match=r"weights='raw'.*average alone"):
        interop.load(slim(tmp_path, Inside(), config(UNET)), weights="raw")
    monkeypatch.setitem(sys.modules, "k_diffusion.config", None)
    with pytest.raises(MissingDependencyError, match=r"k-diffusion.*network="):
        interop.load(path, config=config(UNET))


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_no_code_of_a_file_runs_and_headers_are_data(tmp_path):
    path = tmp_path / "model_00010000.pth"
    torch.save({"model": {}, "model_ema": {}, "opt": Trap(str(tmp_path / "trapped"))}, path)
    with pytest.raises(CheckpointError):
        interop.load(path, config=config(UNET))
    assert not (tmp_path / "trapped").exists()
    for text in ("[" * 100_000, "{", '"text"', '{"model": 3}'):
        save_file(Inside().state_dict(), tmp_path / "a.safetensors", {"config": text})
        with pytest.raises(CheckpointError):
            interop.load(tmp_path / "a.safetensors", network=Inside())


@pytest.mark.parametrize("described", [config(UNET), config(TRANSFORMER, 3), config(HOURGLASS)], ids=["v1", "t1", "t2"])
def test_the_package_itself_agrees(tmp_path, described):
    package = pytest.importorskip("k_diffusion")
    if described["model"]["type"] == "image_transformer_v2" and not hasattr(package.models, "image_transformer_v2"):
        pytest.skip("this version of k-diffusion has no such network")
    loaded = package.config.load_config(described)
    torch.manual_seed(0)
    inside = package.config.make_model(loaded).eval()
    with torch.no_grad():
        for p in inside.parameters():
            p.add_(0.1 * torch.randn_like(p))  # its last layers are 0 at first
    model = interop.load(slim(tmp_path, inside, described))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in inside.parameters())
    denoiser = package.config.make_denoiser_wrapper(loaded)(inside)
    with torch.no_grad():
        for shape in SHAPES:
            label = torch.arange(shape[0]) if loaded["dataset"]["num_classes"] else None
            told = {} if label is None else {"class_cond": label}
            for sigma in torch.logspace(-1.9, 1.5, 20).tolist():
                x = torch.randn(shape) * (1 + sigma)
                t = model.sde.solve_half_log_snr(-torch.tensor(sigma, dtype=torch.float64).log())
                expected = denoiser(x, torch.full((shape[0],), sigma), **told)
                assert (model(x, t, label).x_0 - expected).abs().max() <= 1e-5 * expected.abs().max()
        x = 60 * torch.randn(SHAPES[0])
        label = torch.tensor([0, 2]) if loaded["dataset"]["num_classes"] else None
        told = {} if label is None else {"class_cond": label}
        sigmas = package.sampling.get_sigmas_karras(10, 0.01, 60.0)
        theirs = package.sampling.sample_heun(denoiser, x, sigmas, told, disable=True)
        ours = sample(model, heun(), grids.karras(model.sde, 9), x_start=x, condition=label, tweedie=True).x
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
