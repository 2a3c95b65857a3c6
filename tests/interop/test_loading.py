"""One door for checkpoints: own folders are read, what is no model is refused with what would be."""

import pickle

import pytest
import torch

from sde_toolkit import MLP, VPSDE, ScoreModel, interop
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.interop.filling import filled
from sde_toolkit.interop.state_dicts import content_of, tensors_under


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = ScoreModel(MLP((2,), 8, 1), VPSDE(), "v", event_shape=(2,))
    model.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_folder_of_ours_is_what_from_pretrained_reads(folder):
    ours, same = interop.load(folder), ScoreModel.from_pretrained(folder)
    x = torch.randn(3, 2)
    assert torch.equal(ours(x, 0.4).output, same(x, 0.4).output)
    assert not ours.training
    assert interop.load(str(folder), sde=VPSDE(0.2, 9.0)).sde == VPSDE(0.2, 9.0)


def test_a_model_of_the_package_is_found_by_its_name():
    assert interop.load("mnist").event_shape == (1, 28, 28)


def test_what_a_family_is_not_told_is_refused_by_name(folder):
    with pytest.raises(ArgumentError, match=r"attention=3.*It takes .*weights"):
        interop.load(folder, attention=3)


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran code of a file')",))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "model.ckpt", "model.safetensors", "model"])
def test_hostile_and_unknown_files_are_refused_and_nothing_in_them_runs(tmp_path, name):
    for content in (pickle.dumps(Trap()), b"", b"\x80\x04" + bytes(100), b"PK\x03\x04 no archive"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            interop.load(tmp_path / name)


def test_places_without_a_model_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("notes")
    with pytest.raises(CheckpointError, match=r"a\.txt.*folders of sde_toolkit"):
        interop.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        interop.load(tmp_path / "nowhere")


def test_from_pretrained_names_the_door(tmp_path):
    (tmp_path / "theirs.pth").write_bytes(b"123")
    with pytest.raises(CheckpointError, match=r"interop\.load"):
        ScoreModel.from_pretrained(tmp_path / "theirs.pth")


def test_a_network_larger_than_its_file_is_not_built(tmp_path):
    """Every tensor has the numbers that its shape says; all of them are views of the same."""
    numbers = torch.zeros(2**16)
    shapes = {name: t.shape for name, t in MLP((2,), 64, 8).state_dict().items()}
    torch.save({name: numbers[: shape.numel()].reshape(shape) for name, shape in shapes.items()}, tmp_path / "model.pt")
    tensors = tensors_under(content_of(tmp_path / "model.pt"), "", tmp_path / "model.pt")
    built = []
    with pytest.raises(CheckpointError, match=r"declares tensors of [\d,]+ bytes"):
        filled(tmp_path / "model.pt", lambda: built.append(1) or MLP((2,), 64, 8), tensors)
    assert not built
