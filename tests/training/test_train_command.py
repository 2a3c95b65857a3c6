"""``sde-toolkit train`` as a user types it."""

import subprocess
import sys

import pytest
import yaml

from sde_toolkit import ScoreModel, ddim, grids, sample

TINY = ["options.steps=2", "options.evaluate_every=2", "options.batch_size=4", "options.held_out=4", "threads=1"]


def test_signals_train_and_sample_from_the_folder(tmp_path):
    """In a process of its own, as typed; the tests below call the same function in theirs."""
    words = ["train", "experiment=waves", "output=runs/waves", "network.widths=[8,8,8]", *TINY]
    line = [sys.executable, "-m", "sde_toolkit", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    model = ScoreModel.from_pretrained(tmp_path / "runs/waves")
    x = sample(model, ddim(), grids.uniform(model.sde, 2), shape=(2, *model.event_shape)).x
    assert model.transform.inverse(x).shape == (2, 1, 64)
    resolved = yaml.safe_load((tmp_path / "runs/waves/config.yaml").read_text())
    assert resolved["options"]["steps"] == 2
    assert resolved["event_shape"] == [1, 64]
    assert "${" not in str(resolved)


def test_the_same_command_again_goes_on_and_a_contradiction_is_named(command, tmp_path):
    words = ["train", "experiment=checkerboard", "output=run", "threads=1", "progress=false", "watch=none"]
    words += ["options.batch_size=16", "options.held_out=8", "options.evaluate_every=2", "options.steps=6"]
    status, _, err = command(*words)
    assert status == 0, err
    (tmp_path / "run/checkpoints/step-000000006").rename(tmp_path / "lost")
    status, _, err = command(*words, "network.width=64")
    assert status == 2
    assert "model.network.width=128, now model.network.width=64" in err
    assert "width: 128" in (tmp_path / "run/config.yaml").read_text()
    assert "continuing from step 4 of 6" in command(*words)[1]
    name = "ema.safetensors"
    assert (tmp_path / "lost" / name).read_bytes() == (tmp_path / "run/checkpoints/step-000000006" / name).read_bytes()


def test_multirun_keeps_every_run_apart(command, tmp_path):
    status, _, err = command("train", "sde=ve,ddpm", "network.widths=[8,8,8]", "--multirun", *TINY)
    assert status == 0, err
    found = {type(ScoreModel.from_pretrained(p.parent).sde).__name__ for p in tmp_path.rglob("checkpoints")}
    assert found == {"VESDE", "DiscreteVPSDE"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("options.stepz=4", "stepz"),
        ("sde=vq", "vq"),
        ("sde.beta_min=-4", "beta_min=-4"),
        ("options.precision=float8", "precision='float8'"),
        ("data=mnist", "data.path"),
        ("device=cuda:99", "device='cuda:99'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_trained(command, tmp_path, override, said):
    status, _, err = command("train", override, "output=run", *TINY)
    assert status not in (0, None)
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_and_unknown_commands(command):
    _, listing, _ = command()
    assert all(name in listing for name in ("train", "sample", "compare"))
    status, _, err = command("trian")
    assert status == 2
    assert "trian" in err
    _, helped, _ = command("train", "--help")
    assert "experiment=" in helped
    assert "learning_rate" in helped


POINTS = ["train", "experiment=checkerboard", "output=run", "progress=false", "watch=none", "options.batch_size=16"]
POINTS += ["options.held_out=8", "options.evaluate_every=2", "options.steps=4", "device=cpu", "network.width=8"]


def test_a_config_of_somebody_elses_is_never_replaced(command, tmp_path):
    """Neither before there are checkpoints nor after; and what is refused leaves nothing."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("mine: 1\n")
    status, _, err = command(*POINTS)
    assert status == 2
    assert "config.yaml was not written by this command" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    (tmp_path / "run/config.yaml").unlink()
    assert command(*POINTS)[0] == 0
    (tmp_path / "run/.sde-toolkit.json").unlink()
    (tmp_path / "run/config.yaml").write_text("mine: 1\n")
    assert command(*POINTS)[0] == 2
    assert (tmp_path / "run/config.yaml").read_text() == "mine: 1\n"


def test_a_run_of_before_there_was_a_record_of_files_goes_on(command, tmp_path):
    assert command(*POINTS, "options.cosine_decay=false")[0] == 0
    (tmp_path / "run/.sde-toolkit.json").unlink()
    status, out, err = command(*POINTS, "options.cosine_decay=false", "options.steps=6")
    assert status == 0, err
    assert "continuing from step 4 of 6" in out
    assert "steps: 6" in (tmp_path / "run/config.yaml").read_text()


def test_what_is_refused_before_the_first_step_leaves_nothing(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/training.csv").write_text("mine")
    status, _, err = command(*POINTS)
    assert status == 2
    assert "training.csv is there already" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["training.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
