"""A checkpoint that is truncated, foreign or does not fit is refused with the reason; nothing is unpickled."""

import pickle

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sde_toolkit import MLP, VPSDE, Affine, ScoreModel
from sde_toolkit.errors import ArgumentError, CheckpointError, SDEToolkitError


class Trap:
    """Unpickling this would be noticed."""

    def __reduce__(self):
        return pytest.fail, ("a file was unpickled",)


@pytest.fixture
def folder(tmp_path):
    ScoreModel(MLP(width=8, depth=1), VPSDE(), "v").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(path, *words, kind=CheckpointError, **options):
    with pytest.raises(kind) as caught:
        ScoreModel.from_pretrained(path, **options)
    assert isinstance(caught.value, SDEToolkitError)
    missing = [word for word in map(str, words) if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


def rewrite(folder, **changes):
    description = yaml.safe_load((folder / "model.yaml").read_text())
    for key, value in changes.items():
        if value is None:
            del description[key]
        else:
            description[key] = value
    (folder / "model.yaml").write_text(yaml.safe_dump(description))


def test_the_whole_checkpoint_loads(folder):
    loaded = ScoreModel.from_pretrained(folder)
    assert (loaded.sde, loaded.prediction, loaded.training) == (VPSDE(), "v", False)


def test_a_transform_of_arrays_comes_back_digit_by_digit_as_plain_numbers(tmp_path):
    """Also the largest that is allowed, in a file that a person can read."""
    transform = Affine(1e3 * torch.randn(3, 4, 4).double(), torch.rand(3, 1, 1) + 1e-9, low=-9.0, high=1e5)
    largest = Affine(torch.randn(2, 64, 128), torch.rand(1))
    for given in (Affine([1000.0, 1e-3], [1 / 300, 1 / 3e-4]), transform, largest):
        ScoreModel(MLP(width=8, depth=1), VPSDE(), "v", transform=given).save_pretrained(tmp_path / "model")
        assert ScoreModel.from_pretrained(tmp_path / "model").transform == given
        stored = yaml.safe_load((tmp_path / "model" / "model.yaml").read_text())["transform"]
        assert torch.equal(torch.tensor(stored["shift"]), torch.tensor(given.shift))


def test_truncated_weights(folder):
    file = folder / "ema.safetensors"
    whole = file.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(folder, folder, "ema.safetensors", "truncated")


def test_pickles_are_never_opened(folder, tmp_path):
    (folder / "ema.safetensors").write_bytes(pickle.dumps(Trap()))
    refused(folder, "not a safetensors file")
    for name in ("model.pt", "model.ckpt"):
        file = tmp_path / name
        file.write_bytes(pickle.dumps(Trap()))
        refused(file, file, "interop.load")


def test_missing_files_and_folders(folder, tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "no such folder")
    refused(folder, folder, "raw.safetensors", "ema", weights="raw")
    (folder / "ema.safetensors").unlink()
    refused(folder, "ema.safetensors", "none")
    (folder / "model.yaml").unlink()
    refused(folder, "model.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[1, 2]",
        "a: [1,",
        "format: diffusers",
        "format: sde_toolkit/999",
        "format: !!python/object/apply:pytest.fail [unpickled]",
    ],
)
def test_foreign_descriptions(folder, text):
    (folder / "model.yaml").write_text(text)
    refused(folder, folder, "model.yaml")


@pytest.mark.parametrize("version", ["sde_toolkit/999", "other/1", 1])
def test_descriptions_of_another_format_are_not_guessed_at(folder, version):
    rewrite(folder, format=version)
    refused(folder, "format", repr(version))


def test_a_description_that_is_not_text(folder):
    (folder / "model.yaml").write_bytes(b"\xff\xfe\x00\x80")
    refused(folder, "model.yaml")


@pytest.mark.parametrize(
    "key", ["network", "sde", "prediction", "time_input", "sigma_data", "transform", "event_shape"]
)
def test_descriptions_that_lack_a_part(folder, key):
    rewrite(folder, **{key: None})
    refused(folder, "lacks", key)


@pytest.mark.parametrize("key", ["network", "sde", "time_input", "transform"])
@pytest.mark.parametrize("part", [{"class": "os.system"}, {"class": "Path"}, {"class": "torch"}, "MLP", {}], ids=str)
def test_parts_are_built_from_the_packages_own_public_classes_only(folder, key, part):
    rewrite(folder, **{key: part})
    refused(folder, key, "from_pretrained")


def test_parts_with_impossible_arguments(folder):
    rewrite(folder, sde={"class": "VPSDE", "beta_min": -1.0})
    refused(folder, "sde", "beta_min=-1.0")
    rewrite(folder, sde={"class": "VPSDE", "gamma": 1.0})
    refused(folder, "sde", "gamma")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction", "noise"),
        ("sigma_data", -1.0),
        ("sigma_data", "large"),
        ("event_shape", 3),
        ("sde", {"class": "Time"}),
    ],
)
def test_descriptions_with_impossible_values(folder, key, value):
    rewrite(folder, **{key: value})
    refused(folder, key, kind=SDEToolkitError)


def test_weights_that_are_not_finite(folder):
    tensors = load_file(folder / "ema.safetensors")
    name = sorted(tensors)[0]
    for bad in (float("nan"), float("inf")):
        save_file({**tensors, name: torch.full_like(tensors[name], bad)}, folder / "ema.safetensors")
        refused(folder, name, "NaN")


def test_weights_of_another_architecture(folder):
    rewrite(folder, network={"class": "MLP", "width": 16, "depth": 1})
    refused(folder, "ema.safetensors", "does not fit")
    save_file({}, folder / "ema.safetensors")
    refused(folder, "ema.safetensors", "does not fit")


def test_weights_have_one_of_two_names(folder):
    refused(folder, "weights='emma'", "'ema'", "'raw'", kind=ArgumentError, weights="emma")
    with pytest.raises(ArgumentError, match="weights='emma'"):
        ScoreModel.from_pretrained(folder).save_pretrained(folder, weights="emma")
