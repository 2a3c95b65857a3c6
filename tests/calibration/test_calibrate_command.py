"""``sde-toolkit calibrate`` as a user types it."""

import pytest

from sde_toolkit import VPSDE, ScoreModel, UNet
from sde_toolkit.calibration import load_calibration

MIXTURE = "model={path:mixture}"


@pytest.fixture
def command(command):
    return lambda *words: command("calibrate", *words)


def test_a_network_and_a_solver_of_ones_own(command, tmp_path):
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1)
    model = ScoreModel(network, VPSDE(), "v", event_shape=(1, 8, 8))
    model.save_pretrained(tmp_path / "tiny")
    few = ["n=4", "nfe=3", "strategy=search", "time_limit=0.5", "progress=false", "output=run"]
    status, out, err = command("model={path:tiny}", "solver=ddim", *few)
    assert status == 0, err
    found = load_calibration(tmp_path / "run/calibration.json")
    assert found.nfe == 3
    assert found.reason in out
    model = ScoreModel.from_pretrained(tmp_path / "tiny")
    assert found.sample(model, shape=(2, 1, 8, 8)).nfe == 3
    assert found.record["provenance"]["model"]["name"] == "tiny"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nfe=1", "nfe=1"),
        ("n=some", "n='some'"),
        ("strategy=magic", "magic"),
        ("solver=dopri5", "chooses its own steps"),
    ],
)
def test_mistakes_are_named(command, tmp_path, override, said):
    status, _, err = command(MIXTURE, "progress=false", "output=run", override)
    assert status == 2
    assert said in err
    assert not list(tmp_path.rglob("calibration.json"))


def test_help(command):
    status, out, _ = command("--help")
    assert status in (0, None)
    assert "sde-toolkit calibrate " in out
