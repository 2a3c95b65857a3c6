"""Every builder has its file in configs/, which says nothing that the builder does not take."""

import inspect
from pathlib import Path

import pytest
import yaml

from sde_toolkit import data

ROOT = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted([*ROOT.glob("data/*.yaml"), *ROOT.glob("augmentation/*.yaml")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_config_agrees_with_its_builder(file):
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    package, _, name = config.pop("_target_").rpartition(".")
    assert package == "sde_toolkit.data"
    parameters = inspect.signature(getattr(data, name)).parameters
    assert set(config) <= set(parameters)
    for key, value in config.items():
        default = parameters[key].default
        wanted = "???" if default is inspect.Parameter.empty else default
        assert (float(value) if isinstance(wanted, float) else value) == wanted, key


def test_every_builder_has_a_config():
    builders = {name for name in data.__all__ if inspect.isfunction(getattr(data, name))}
    builders -= {"eight_bit", "horizontal_flip", "mnist_test_images"}
    assert builders <= {file.stem for file in FILES}
