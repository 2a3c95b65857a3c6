"""``sde-toolkit train`` as a user types it."""

import subprocess
import sys

import pytest
import yaml

from sde_toolkit import ScoreModel, ddim, grids, sample

TINY = ["options.steps=2", "options.evaluate_every=2", "options.batch_size=4", "options.held_out=4", "threads=1"]


def command(folder, *arguments):
    words = [sys.executable, "-m", "sde_toolkit", *arguments]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_signals_train_and_sample_from_the_folder(tmp_path):
    done = command(tmp_path, "train", "experiment=waves", "output=runs/waves", *TINY)
    assert done.returncode == 0, done.stderr
    model = ScoreModel.from_pretrained(tmp_path / "runs/waves")
    x = sample(model, ddim(), grids.uniform(model.sde, 2), shape=(2, *model.event_shape)).x
    assert model.transform.inverse(x).shape == (2, 1, 64)
    resolved = yaml.safe_load((tmp_path / "runs/waves/config.yaml").read_text())
    assert resolved["options"]["steps"] == 2
    assert resolved["event_shape"] == [1, 64]
    assert "${" not in str(resolved)


def test_the_same_command_again_goes_on_and_a_contradiction_is_named(tmp_path):
    words = ["train", "experiment=checkerboard", "output=run", "threads=1", "progress=false", "watch=none"]
    words += ["options.batch_size=16", "options.held_out=8", "options.evaluate_every=2", "options.steps=6"]
    first = command(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    (tmp_path / "run/checkpoints/step-000000006").rename(tmp_path / "lost")
    wrong = command(tmp_path, *words, "network.width=64")
    assert wrong.returncode == 2
    assert "model.network.width=128, now model.network.width=64" in wrong.stderr
    assert "width: 128" in (tmp_path / "run/config.yaml").read_text()
    again = command(tmp_path, *words)
    assert "continuing from step 4 of 6" in again.stdout
    name = "ema.safetensors"
    assert (tmp_path / "lost" / name).read_bytes() == (tmp_path / "run/checkpoints/step-000000006" / name).read_bytes()


def test_multirun_keeps_every_run_apart(tmp_path):
    done = command(tmp_path, "train", "sde=ve,ddpm", "network.widths=[8,8,8]", "--multirun", *TINY)
    assert done.returncode == 0, done.stderr
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
def test_mistakes_are_named_and_nothing_is_trained(tmp_path, override, said):
    done = command(tmp_path, "train", override, "output=run", *TINY)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_and_unknown_commands(tmp_path):
    listing = command(tmp_path)
    assert all(name in listing.stdout for name in ("train", "sample", "compare"))
    unknown = command(tmp_path, "trian")
    assert unknown.returncode == 2
    assert "trian" in unknown.stderr
    helped = command(tmp_path, "train", "--help")
    assert "experiment=" in helped.stdout
    assert "learning_rate" in helped.stdout


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
