"""guided-diffusion's files: what its own code says of the same network (make_adm_fixtures.py); what is asked for."""

import lzma
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from make_adm_fixtures import CASES, CLASSES, LEVELS, SHAPES, indices, inputs

from sde_toolkit import ScoreModel, ddim, interop, sample
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.tensors import load_torch_file
from sde_toolkit.interop.adm_files import CONFIGS, adm_grid

HERE = Path(__file__).parent / "adm"


def unpacked(name, folder):
    file = folder / f"{name}.pt"
    file.write_bytes(lzma.decompress((HERE / f"{name}.pt.xz").read_bytes()))
    return file


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(name, the file, the model that is read from it, what OpenAI's code says)."""
    file = unpacked(request.param, tmp_path_factory.mktemp("adm"))
    model = interop.load(file, **CASES[request.param][3])
    return request.param, file, model, np.load(HERE / f"{request.param}.npz")


def classes(model, count):
    return None if model.num_classes is None else torch.arange(count) % CLASSES


def assert_close(ours, theirs, tolerance):
    """Of every sample, the difference is small beside the norm."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    off = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    assert off.max() < tolerance, off


def test_denoises_as_the_code_that_wrote_it(case):
    _, _, model, theirs = case
    t = (torch.as_tensor(indices(model.sde.N), dtype=torch.float64) + 1) / model.sde.N
    for shape in SHAPES:
        with torch.no_grad():
            ours = model(torch.as_tensor(inputs(shape)[0]), t, classes(model, LEVELS)).x_0
        assert_close(ours, theirs["x{}x{}".format(*shape)], 1e-5)


def test_learned_variances_are_theirs(case):
    """log Σ = v log β + (1 − v) log β̃; their β̃ at the first index, which is 0, is that of the second."""
    _, _, model, theirs = case
    if not model.learned_variance:
        return
    index = torch.as_tensor(indices(model.sde.N))
    betas = torch.tensor(model.sde.betas, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    posterior = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    small, large = torch.cat([posterior[:1], posterior]).log()[index], betas.log()[index]
    with torch.no_grad():
        said = model(torch.as_tensor(inputs(SHAPES[-1])[0]), (index + 1) / model.sde.N, classes(model, LEVELS))
    v = said.variance_fraction.double()
    ours = v * large[:, None, None, None] + (1 - v) * small[:, None, None, None]
    torch.testing.assert_close(ours, torch.as_tensor(theirs["log_variance"]).double(), rtol=1e-4, atol=1e-4)


def test_has_the_same_parameters_and_takes_grey_levels(case):
    name, _, model, theirs = case
    assert sum(p.numel() for p in model.parameters()) == theirs["count"]
    assert not model.training
    assert model.event_shape == ((3, 8, 8) if name == "cosine" else None)
    assert model.transform.forward(torch.tensor([0.0, 255.0])).tolist() == [-1.0, 1.0]


def test_ddim_follows_their_sampler_on_its_respaced_steps(case):
    name, _, model, theirs = case
    grid = adm_grid(model.sde.N, CASES[name][2])
    start = torch.as_tensor(inputs(SHAPES[0])[0][:2])
    found = sample(model, ddim(), grid, x_start=start, condition=classes(model, 2))
    assert_close(found.x, theirs["end"], 1e-4)


def test_is_written_as_ours_and_read_back(case, tmp_path):
    _, _, model, _ = case
    model.save_pretrained(tmp_path)
    again = ScoreModel.from_pretrained(tmp_path)
    x, t = torch.randn(2, 3, 8, 8), 0.4
    assert torch.equal(again(x, t, classes(model, 2)).x_0, model(x, t, classes(model, 2)).x_0)
    assert (again.sde, again.learned_variance) == (model.sde, model.learned_variance)


def test_a_class_is_needed_where_the_network_knows_nothing_else(case):
    _, _, model, _ = case
    x = torch.zeros(2, 3, 8, 8)
    for label in (None, torch.tensor([0, CLASSES])):
        if model.num_classes is not None:
            with pytest.raises(ArgumentError, match=r"condition.*0\.\.2"):
                model(x, 0.5, label)


def test_what_the_file_does_not_say_is_asked_for_at_once(case):
    name, file, _, _ = case
    told = CASES[name][3]
    with pytest.raises(ArgumentError) as caught:
        interop.load(file)
    for word in ("heads=", "head_width=", "attention_order=", "noise_schedule=", "steps=", "256x256_diffusion_uncond"):
        assert word in str(caught.value)
    for left_out in set(told) - {"image_size"}:
        with pytest.raises(ArgumentError, match="heads" if left_out in ("heads", "head_width") else f"^{left_out}"):
            interop.load(file, **{key: value for key, value in told.items() if key != left_out})


def test_another_answer_is_another_model(case):
    """So none of the questions is idle."""
    name, file, model, _ = case
    told = CASES[name][3]
    changes = {"attention_order": "old" if told["attention_order"] == "new" else "new", "noise_schedule": "cosine"}
    changes |= {"rescale_timesteps": False, "steps": 500}
    changes |= {"heads": 1} if "heads" in told else {"head_width": 16}
    x, label = torch.as_tensor(inputs(SHAPES[0])[0][:2]), classes(model, 2)
    for key in set(changes) & set(told):
        if changes[key] == told[key]:
            continue
        other = interop.load(file, **{**told, "rescale_timesteps": False, key: changes[key]})
        assert not torch.allclose(other(x, 0.5, label).x_0, model(x, 0.5, label).x_0, rtol=1e-3), key


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"attention_order": "heads"}, "attention_order"),
        ({"noise_schedule": "sqrt"}, "noise_schedule"),
        ({"noise_schedule": [0.1, 0.2]}, "noise_schedule"),
        ({"steps": 0}, "steps"),
        ({"heads": 0}, "heads"),
        ({"heads": 7}, "heads"),
        ({"image_size": -1}, "image_size"),
        ({"prediction": "v"}, "prediction"),
        ({"config": "512x512"}, "config"),
        ({"config": "64x64_diffusion"}, "config"),
    ],
)
def test_answers_that_are_none_are_refused(told, named, tmp_path):
    file = unpacked("linear", tmp_path)
    with pytest.raises(ArgumentError) as caught:
        interop.load(file, **{**CASES["linear"][3], **told})
    assert caught.value.argument == named


def test_a_schedule_of_ones_own_says_how_many_steps_there_are(tmp_path):
    told = {**CASES["linear"][3], "noise_schedule": np.linspace(1e-4, 0.02, 1000).tolist()}
    del told["steps"]
    ours, same = (interop.load(unpacked("linear", tmp_path), **t) for t in (told, CASES["linear"][3]))
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(ours(x, 0.3).x_0, same(x, 0.3).x_0)


def test_published_configs_answer_everything(tmp_path):
    """They fit a file of their width and classes, and no other."""
    for name, config in CONFIGS.items():
        assert {"attention_order", "noise_schedule", "steps", "image_size", "width", "classes"} < config.keys(), name
        assert ("heads" in config) != ("head_width" in config), name


def changed(change, tmp_path):
    found = load_torch_file(unpacked("linear", tmp_path))
    change(found)
    torch.save(found, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def widen(found):
    found["input_blocks.0.0.weight"] = found["input_blocks.0.0.weight"].repeat(1, 2, 1, 1)


def expand(found):
    found["out.0.weight"] = torch.zeros(1).expand(10**12)


def diverge(found):
    found["out.0.weight"][0] = float("nan")


def add(found):
    found["fusion.weight"] = torch.zeros(3)


def remove(found):
    del found["middle_block.1.qkv.bias"]


def make_classifier(found):
    for name in [name for name in found if name.startswith("output_blocks")]:
        del found[name]


@pytest.mark.parametrize("change", [widen, expand, diverge, add, remove, make_classifier], ids=lambda f: f.__name__)
def test_tensors_of_another_network_are_refused(change, tmp_path):
    file = changed(change, tmp_path)
    with pytest.raises(CheckpointError, match=r"changed"):
        interop.load(file, **CASES["linear"][3])


def test_a_hostile_file_is_refused_and_nothing_in_it_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('ran code of a file')",)

    found = load_torch_file(unpacked("linear", tmp_path))
    torch.save({**found, "out.2.weight": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pt", "bare.pt"):
        with pytest.raises(CheckpointError, match=name):
            interop.load(tmp_path / name, **CASES["linear"][3])


@pytest.mark.parametrize(
    ("N", "respacing", "kept"),
    [
        (10, "ddim5", [0, 2, 4, 6, 8]),
        (10, "10", list(range(10))),
        (9, "3", [0, 4, 8]),
        (7, "1,2", [0, 4, 6]),
        (300, [1, 1, 2], [0, 100, 200, 299]),
    ],
)
def test_respaced_grids_keep_the_indices_of_their_flag(N, respacing, kept):
    assert (adm_grid(N, respacing) * N - 1).round().tolist() == [*reversed(kept), -1]


@pytest.mark.parametrize("respacing", ["ddim7", "ddim", "fast", "", "11", [0], []])
def test_a_respacing_that_cannot_be_is_refused(respacing):
    with pytest.raises(ArgumentError, match="respacing"):
        adm_grid(10, respacing)
