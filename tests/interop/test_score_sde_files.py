"""score_sde's checkpoints say here what they say there (make_score_sde_fixtures.py)."""

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from make_score_sde_fixtures import REFERENCE, N, fixed_noise, start, states, weights
from omegaconf import OmegaConf

from sde_toolkit import ScoreModel, grids, interop, sample
from sde_toolkit.cli.parts import load_model
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.integrators import forward_variance
from sde_toolkit.interop.score_sde_files import READER
from sde_toolkit.interop.score_sde_settings import PUBLISHED
from sde_toolkit.jobs.provenance import provenance_of
from sde_toolkit.models.time_inputs import DiscreteIndex
from sde_toolkit.sampling import samples
from sde_toolkit.solvers import ddpm, euler_maruyama, reverse_diffusion

FOUND = np.load(REFERENCE)
LAYOUT = json.loads(str(FOUND["layout"]))
CONFIGS = {
    "vp_ddpm": "vp/ddpm/cifar10",
    "vp_ddpmpp": "vp/cifar10_ddpmpp",
    "vp_ddpmpp_continuous": "vp/cifar10_ddpmpp_continuous",
    "subvp_ncsnpp_continuous": "subvp/cifar10_ncsnpp_continuous",
    "ve_ddpm": "ve/cifar10_ddpm",
    "ve_ncsnpp": "ve/cifar10_ncsnpp",
    "ve_ncsnpp_continuous": "ve/cifar10_ncsnpp_continuous",
    "ve_large_ncsnpp_continuous": "ve/church_ncsnpp_continuous",
}
CONFIG_VE = CONFIGS["ve_ncsnpp_continuous"]


def checkpoint(case):
    """What ``save_checkpoint`` writes: the averages have the weights of seed 1, the model those of seed 2."""
    fixed = ("module.sigmas", "module.all_modules.0.W")
    averages = [value for name, value in weights(LAYOUT[case], 1).items() if name not in fixed]
    ema = {"decay": 0.999, "num_updates": 0, "shadow_params": averages}
    optimizer = {"state": {}, "param_groups": [{"lr": 2e-4, "params": list(range(len(averages)))}]}
    return {"optimizer": optimizer, "model": weights(LAYOUT[case], 2), "ema": ema, "step": 7}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score_sde")
    for case in CONFIGS:
        torch.save(checkpoint(case), folder / f"{case}.pth")
    return folder


def opened(files, case, **told):
    return interop.load(files / f"{case}.pth", **{"config": CONFIGS[case], "image_size": 8, **told})


@pytest.fixture(scope="module")
def models(files):
    return {case: opened(files, case) for case in CONFIGS}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_denoised_estimate_is_theirs(models, case):
    model, at = models[case], 0
    theirs = FOUND[f"{case}/x_0"]
    for t, x in states(case, model.network.in_channels, LAYOUT[case]["sigma_max"]):
        if isinstance(model.time_input, DiscreteIndex):
            t = (t * (N - 1) + 1) / N  # their t = i/(N − 1) is the index i, which belongs to t = (i + 1)/N here
        with torch.no_grad():
            x_0 = model(x, float(t)).x_0
        wanted = torch.from_numpy(theirs[at : at + x_0.numel()]).reshape(x_0.shape)
        at += x_0.numel()
        assert (x_0 - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert at == len(theirs)
    assert np.abs(theirs).std() > 1


@pytest.mark.parametrize("case", CONFIGS)
def test_a_trajectory_is_theirs(models, case, monkeypatch):
    model, theirs = models[case], torch.from_numpy(FOUND[f"{case}/end"])
    x_start = start(theirs.shape)
    if case.startswith("ve"):
        solver, grid = reverse_diffusion(), grids.uniform(model.sde, N - 1, end=0.0)
        x_start = x_start * model.sde.sigma_max
    elif isinstance(model.time_input, DiscreteIndex):
        solver, grid = ddpm(forward_variance), grids.discrete(N)
    else:
        solver, grid = euler_maruyama(), grids.uniform(model.sde, N, end=0.0)

    def noise_of_the_file(seed, first, shape, begin, **how):
        noise = fixed_noise(shape)
        for _ in range(begin):  # draws that are left out, since the start is given
            noise()
        return noise

    monkeypatch.setattr(samples, "per_sample_noise", noise_of_the_file)
    found = sample(model, solver, grid, x_start=x_start, tweedie=case.startswith("ve"))
    assert found.nfe == N
    assert (found.x - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("case", CONFIGS)
def test_there_are_as_many_parameters(models, case):
    model = models[case]
    assert sum(p.numel() for p in model.network.parameters()) == LAYOUT[case]["parameters"]
    assert not model.training


@pytest.mark.parametrize("case", CONFIGS)
def test_a_converted_model_is_ours(models, case, tmp_path):
    model = models[case]
    model.save_pretrained(tmp_path)
    same = ScoreModel.from_pretrained(tmp_path)
    x = torch.randn(2, *model.event_shape)
    assert torch.equal(same(x, 0.7).x_0, model(x, 0.7).x_0)
    assert (same.sde, same.time_input, same.transform) == (model.sde, model.time_input, model.transform)


def test_raw_weights_and_averages_are_those_of_the_file(models, tmp_path):
    case = "ve_ncsnpp_continuous"
    content = checkpoint(case)
    content["model"] = {name.removeprefix("module."): value for name, value in weights(LAYOUT[case], 1).items()}
    content["ema"]["shadow_params"] = [value + 1 for value in content["ema"]["shadow_params"]]
    torch.save(content, tmp_path / f"{case}.pth")
    x = torch.rand(2, 3, 8, 8)
    wanted = models[case](x, 0.3).x_0
    assert torch.equal(opened(tmp_path, case, weights="raw")(x, 0.3).x_0, wanted)
    assert not torch.allclose(opened(tmp_path, case)(x, 0.3).x_0, wanted, rtol=0.1)


def test_grey_levels_arrive_where_the_network_was_trained(models):
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    assert models["vp_ddpm"].transform.forward(levels).tolist() == [-1, 1]
    assert models["ve_ncsnpp"].transform.forward(levels).tolist() == [0, 1]


ANSWERS = {
    "vp_ddpm": {"sde": "vpsde", "continuous": False, "centered": True},
    "vp_ddpmpp_continuous": {
        "sde": "vpsde",
        "continuous": True,
        "centered": True,
        "fir": False,
        "skip_rescale": True,
    },
    "subvp_ncsnpp_continuous": {"sde": "subvpsde", "centered": True, "skip_rescale": True},
    "ve_ncsnpp": {"sde": "vesde", "centered": False, "skip_rescale": True, "scale_by_sigma": True},
    "ve_ncsnpp_continuous": {"centered": False, "skip_rescale": True, "scale_by_sigma": True},
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_the_file_does_not_say_is_asked_for_one_by_one(files, models, case):
    path, told = files / f"{case}.pth", {}
    for name, value in ANSWERS[case].items():
        with pytest.raises(ArgumentError, match=rf"(?s){name}=.*{CONFIGS[case]}") as caught:
            interop.load(path, **told)
        assert caught.value.argument == name
        told[name] = value
    model = interop.load(path, image_size=8, **told)
    x = torch.rand(1, *model.event_shape)
    assert torch.equal(model(x, 0.6).x_0, models[case](x, 0.6).x_0)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("vp_ddpmpp_continuous", {"sde": "subvpsde"}),
        ("vp_ddpmpp", {"sde": "subvpsde"}),
        ("vp_ddpmpp_continuous", {"continuous": False, "beta_max": 10.0}),
        ("vp_ddpmpp_continuous", {"centered": False}),
        ("vp_ddpmpp_continuous", {"fir": True}),
        ("vp_ddpmpp_continuous", {"skip_rescale": False}),
        ("vp_ddpmpp_continuous", {"beta_max": 10.0}),
        ("ve_ncsnpp", {"scale_by_sigma": False}),
    ],
)
def test_each_answer_changes_the_model(files, models, case, change):
    x = torch.rand(1, *models[case].event_shape)
    assert not torch.allclose(opened(files, case, **change)(x, 0.6).x_0, models[case](x, 0.6).x_0, rtol=1e-3)


@pytest.mark.parametrize(
    ("case", "argument", "told"),
    [
        ("vp_ddpm", "config", {"config": "vp/cifar10_ddpmpp"}),
        ("vp_ddpm", "config", {"config": "vp/ddpm/cifar10_unconditional"}),
        ("ve_ncsnpp", "config", {"config": "ve/cifar10_ncsnpp_continuous"}),
        ("ve_ncsnpp", "continuous", {"continuous": True}),
        ("ve_ncsnpp_continuous", "sde", {"sde": "vpsde"}),
        ("ve_ncsnpp_continuous", "fir", {"fir": False}),
        ("subvp_ncsnpp_continuous", "continuous", {"continuous": False}),
        ("vp_ddpm", "skip_rescale", {"skip_rescale": True}),
        ("vp_ddpm", "scale_by_sigma", {"scale_by_sigma": True}),
        ("vp_ddpm", "sde", {"sde": "vp"}),
        ("vp_ddpm", "centered", {"centered": "yes"}),
        ("vp_ddpm", "beta_min", {"beta_min": -1.0}),
        ("vp_ddpm", "image_size", {"image_size": 0}),
        ("vp_ddpm", "weights", {"weights": "best"}),
        ("vp_ddpm", "nonlinearity", {"nonlinearity": "elu"}),
    ],
)
def test_contradictions_are_refused_by_name(files, case, argument, told):
    with pytest.raises(ArgumentError) as caught:
        opened(files, case, **told)
    assert caught.value.argument == argument


def test_every_published_configuration_says_all_that_is_asked():
    for _, settings in PUBLISHED.values():
        assert settings.image_size in (32, 64, 256, 1024)
    assert len(PUBLISHED) == 27  # of score_sde's 28 files for these networks, one builds no network


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran code of a file')",))


def forged(name):
    """A checkpoint with one thing wrong."""
    content = checkpoint("ve_ncsnpp_continuous")
    model, ema, key = content["model"], content["ema"], "module.all_modules.4.Conv_0.weight"
    if name == "views of one number":
        one = torch.zeros(1)
        content["model"] = {k: v if "sigmas" in k else one.expand(v.shape) for k, v in model.items()}
        ema["shadow_params"] = [one.expand(v.shape) for v in ema["shadow_params"]]
    elif name == "a huge view":
        model[key] = torch.zeros(1).expand(10**6, 10**6, 3, 3)
    elif name == "a wide layer":
        model["module.all_modules.1.weight"] = torch.zeros(2, 8)
    elif name == "a layer of another kind":
        del model["module.all_modules.4.Conv_1.weight"]
    elif name == "a layer less":
        content["model"] = {k: v for k, v in model.items() if ".all_modules.9." not in k}
    elif name == "a layer too many":
        model["module.all_modules.20.weight"] = torch.zeros(2, 2)
    elif name == "a far layer":
        model["module.all_modules.999999.weight"] = torch.zeros(2)
    elif name == "a tensor too many":
        model["module.all_modules.4.Conv_9.weight"] = torch.zeros(2)
    elif name == "no tensor":
        model[key] = "weights"
    elif name == "numbers of another kind":
        model[key] = model[key].long()
    elif name == "averages of something else":
        ema["shadow_params"] = ema["shadow_params"][:-1]
    elif name == "no list of averages":
        ema["shadow_params"] = 3
    elif name == "another table":
        model["module.sigmas"] = torch.linspace(50, 0.01, N)
    elif name == "no table":
        del model["module.sigmas"]
    elif name == "an infinite table":
        model["module.sigmas"] = torch.full((N,), float("inf"))
    return content


WRONG = ["views of one number", "a huge view", "a wide layer", "a layer of another kind", "a tensor too many"]
WRONG += ["a layer less", "a layer too many", "a far layer"]
WRONG += ["no tensor", "numbers of another kind", "averages of something else", "no list of averages"]
WRONG += ["another table", "no table", "an infinite table"]


@pytest.mark.parametrize("name", WRONG)
def test_a_file_with_one_thing_wrong_is_refused(tmp_path, name):
    torch.save(forged(name), tmp_path / "bad.pth")
    with pytest.raises(CheckpointError):
        READER.read(tmp_path / "bad.pth", config=CONFIG_VE, weights="ema" if "average" in name else "raw")


def test_hostile_and_damaged_files_are_refused_and_nothing_in_them_runs(files, tmp_path):
    good = (files / "ve_ncsnpp_continuous.pth").read_bytes()
    content = checkpoint("ve_ncsnpp_continuous")
    content["optimizer"] = Trap()
    torch.save(content, tmp_path / "trap.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(content, protocol=2))
    (tmp_path / "half.pth").write_bytes(good[: len(good) // 2])
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as theirs, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in theirs.namelist():
            archive.writestr(member, theirs.read(member))
        archive.writestr("archive/data/999999", bytes(10**7))
    (tmp_path / "bomb.pth").write_bytes(bomb.getvalue())
    for file in tmp_path.iterdir():
        assert not READER.recognises(file)
        with pytest.raises(CheckpointError):
            interop.load(file, config=CONFIG_VE)
        with pytest.raises(CheckpointError):
            READER.read(file, config=CONFIG_VE)


def test_other_files_are_not_taken_for_theirs(tmp_path):
    torch.save({"model": weights(LAYOUT["vp_ddpmpp"], 1), "step": 3}, tmp_path / "a.pth")
    torch.save([torch.zeros(3)], tmp_path / "b.pth")
    torch.save({"model": {"unet.weight": torch.zeros(3)}, "ema": {"shadow_params": []}}, tmp_path / "c.pth")
    assert not any(READER.recognises(file) for file in (*tmp_path.iterdir(), tmp_path, tmp_path / "nothing"))


def test_commands_are_told_what_the_file_does_not_say(files, models):
    path = str(files / "ve_ncsnpp.pth")
    told = {"path": path, "config": CONFIGS["ve_ncsnpp"], "image_size": 8}
    model, weights = load_model(OmegaConf.create({"model": told, "weights": "ema"}))
    x = torch.rand(1, *model.event_shape)
    assert torch.equal(model(x, 0.6).x_0, models["ve_ncsnpp"](x, 0.6).x_0)
    record = provenance_of(model, path, weights, seed=0)
    assert record["model"]["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with pytest.raises(ArgumentError, match=r"centered.*model=\{path: .*, centered: \.\.\.\}"):
        load_model(OmegaConf.create({"model": {"path": path, "sde": "vesde"}, "weights": "ema"}))
