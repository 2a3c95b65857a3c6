"""What is said where a package is missing, or there and broken: which, what for, how to get it, and why."""

import re
import sys
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
import torch

from sde_toolkit.data.blank_figures import new_figure
from sde_toolkit.errors import MissingDependencyError, _torchvision_for
from sde_toolkit.evaluation import FID, data_extractor, evaluate_samples, inception_extractor
from sde_toolkit.progress import progress_bar

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
ABSENT = "a-package-nobody-has"


def said(*arguments):
    return str(MissingDependencyError(*arguments))


def test_a_package_that_is_not_there_is_named_with_its_use_and_its_extra():
    reason = ModuleNotFoundError(f"No module named '{ABSENT}'", name=ABSENT)
    for text in (said(ABSENT, "FID and KID", "fid"), said(ABSENT, "FID and KID", "fid", reason)):
        assert f"{ABSENT!r} is needed for FID and KID and is not installed" in text
        assert text.endswith("pip install 'sde-toolkit[fid]'")
        assert "upgrade" not in text


def test_a_package_of_no_extra_is_installed_by_its_name():
    assert said(ABSENT, "the tracker", None).endswith(f"pip install {ABSENT}")


def test_a_broken_package_is_told_from_a_missing_one_and_the_reason_given_in_one_line():
    reason = RuntimeError("operator torchvision::nms\n  does not exist" + "\n at 0x00" * 100)
    text = said("torchvision", "the Inception of FID", "fid", reason)
    assert "is not installed" not in text
    assert "cannot be imported (RuntimeError: operator torchvision::nms does not exist at 0x00" in text
    assert "\n" not in text
    assert len(text) < 480
    assert text.endswith("'sde-toolkit[fid]'")


def test_no_remedy_brings_another_torch():
    """pip takes a newer torch where a package wants one, unless it is told which one is there."""
    there = f"torch=={metadata.version('torch')}"
    broken = RuntimeError("operator torchvision::nms does not exist")
    for package, extra in (("torchmetrics", "fid"), ("accelerate", "train"), ("pillow", "data"), ("tqdm", None)):
        command = said(package, "a test", extra, broken).partition("pip install ")[2]
        assert command.startswith(f"--upgrade {there} ")
    assert there in said(ABSENT, "FID and KID", "fid")
    reinstall, _, rest = said("torchvision", "FID", "fid", broken).partition("pip install ")[2].partition(", then ")
    assert "--no-deps" in reinstall
    assert "upgrade" not in rest
    assert there in rest


def test_the_torchvision_that_is_named_is_that_of_the_constraints():
    """Both say which one was made for the torch of the constraints."""
    pins = dict(re.findall(r"^(torch|torchvision)==([\d.]+)", CONSTRAINTS.read_text(), re.MULTILINE))
    assert fnmatch(pins["torchvision"], _torchvision_for(pins["torch"]))


def test_an_installed_package_that_lacks_one_of_its_own_is_broken_and_not_missing():
    reason = ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
    text = said("torch", "anything", "data", reason)
    assert "'torch' is needed for anything and cannot be imported" in text
    assert "(ModuleNotFoundError: No module named 'pyarrow')" in text


@pytest.fixture
def forget(monkeypatch):
    """Import these packages anew, and again afterwards."""

    def names(*packages):
        for name in list(sys.modules):
            if name.partition(".")[0] in packages:
                monkeypatch.delitem(sys.modules, name)

    return names


def write(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_a_torchvision_of_another_torch_is_named_as_what_is_broken(monkeypatch, tmp_path, forget):
    write(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    write(tmp_path, "torch_fidelity", "import torchvision")
    forget("torchvision", "torch_fidelity")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError) as refused:
        inception_extractor()
    text = str(refused.value)
    assert text.startswith("'torchvision' is needed for the Inception of FID and cannot be imported (RuntimeError: op")
    assert text.endswith("'sde-toolkit[fid]'")


def test_a_torchvision_that_is_not_there_is_named_and_not_torch_fidelity(monkeypatch, tmp_path, forget):
    write(tmp_path, "torch_fidelity", "import torchvision")
    forget("torchvision", "torch_fidelity")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependencyError, match=r"^'torchvision' is needed for the Inception of FID"):
        inception_extractor()


def test_a_torchvision_that_breaks_torchmetrics_is_named(monkeypatch, forget):
    pytest.importorskip("torchmetrics")
    forget("torchmetrics")

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torchmetrics.image.fid":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=r"^'torchvision' is needed for FID and KID and cannot be"):
        evaluate_samples(torch.zeros(9, 4), torch.zeros(9, 4), data_extractor(), metrics=[FID()])


def test_a_broken_package_of_the_core_commands_says_why(monkeypatch, tmp_path, forget):
    """Not "not installed", when it is: the reason is the error of the import."""
    write(tmp_path, "tqdm", "raise ImportError('built for another Python')")
    forget("tqdm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"'tqdm' is needed .*ImportError: built for another Python"):
        progress_bar(3, "waiting", enabled=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"'matplotlib' is needed for figures .*matplotlib\.figure"):
        new_figure(1, 1)
