"""``model=my_file.py:make_model``: the user's own model in every command that takes one."""

import json

import pytest

from sde_toolkit.cli.main import main

MODEL = """
import torch
from helper_beside_it import STD
from sde_toolkit import ScoreModel

def make_model():
    def denoiser(x, sigma):
        s = sigma[:, None]
        return x * STD**2 / (STD**2 + s**2)
    return ScoreModel.from_denoiser(denoiser, sigma_max=10.0, event_shape=(2,), sigma_data=STD)

ready = make_model()

def fails():
    raise ZeroDivisionError("an error of my own")

def nothing():
    return None
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "helper_beside_it.py").write_text("STD = 0.5\n")
    (tmp_path / "my_file.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return "my_file.py"


@pytest.mark.parametrize("name", ["make_model", "ready"])
def test_sample_takes_it(file, name, tmp_path):
    main(["sample", f"model={file}:{name}", "n=4", "nfe=3", "output=out", "progress=false"])
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert "make_model" in json.dumps(record) or "ready" in json.dumps(record)


def test_errors_of_the_users_own_are_shown_as_they_are(file):
    with pytest.raises(ZeroDivisionError, match="an error of my own"):
        main(["sample", f"model={file}:fails", "n=4", "output=out"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my_file.py:nothing", "gives None"),
        ("my_file.py:absent", "make_model"),
        ("my_file.py:", "make_model"),
        ("other.py:make_model", "there is no file other.py"),
    ],
)
def test_what_is_no_model_is_named(file, text, said, capsys):
    with pytest.raises(SystemExit):
        main(["sample", f"model={text}", "n=4", "output=out"])
    assert said in capsys.readouterr().err
