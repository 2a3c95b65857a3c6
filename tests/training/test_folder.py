"""The folder of a run: on any file system, and with things of other people in it."""

import dataclasses
import errno
import os
import re
import shutil
import stat

import pytest
from runs import rows, vectors, weights
from test_saving import SHORT, contents

from sde_toolkit import ScoreModel
from sde_toolkit.errors import CheckpointError
from sde_toolkit.files import claims
from sde_toolkit.models.checkpoint import best_checkpoint, checkpoint_folders
from sde_toolkit.training.folder import remove_leftovers


@pytest.fixture
def plain_file_system(monkeypatch):
    """No links, no locks, no forcing of folders to the disk: Windows, exFAT, network and cloud drives."""
    fsync, opening = os.fsync, os.open

    def refuse(*arguments, **named):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise PermissionError(errno.EACCES, "Permission denied")
        return fsync(descriptor)

    def open_files_only(path, *arguments, **named):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opening(path, *arguments, **named)

    monkeypatch.setattr(os, "open", open_files_only)
    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    monkeypatch.setattr(os, "fsync", files_only)


def test_a_run_needs_no_links_no_locks_and_no_forced_folders(tmp_path, plain_file_system):
    """It is the run that it is elsewhere, stopped and continued, and its best is told by a file."""
    vectors(tmp_path, options=SHORT, until=10)
    vectors(tmp_path, options=SHORT)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    held_out = {int(row["step"]): float(row["held_out_loss"]) for row in rows(tmp_path) if row["held_out_loss"]}
    best = tmp_path / "checkpoints" / f"step-{min(held_out, key=held_out.get):09d}"
    assert best_checkpoint(tmp_path) == best
    one, two = (ScoreModel.from_pretrained(path).state_dict() for path in (tmp_path / "best", best))
    assert all(one[key].equal(two[key]) for key in one)


def test_forcing_files_that_cannot_be_forced_is_left_out(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    vectors(tmp_path, options=SHORT, until=5)
    assert weights(tmp_path, "ema", 5)


def test_the_link_of_an_older_run_is_read_and_replaced(tmp_path):
    vectors(tmp_path, options=SHORT, until=15)
    best = best_checkpoint(tmp_path)
    for other in (best, tmp_path / "checkpoints/step-000000010"):
        (tmp_path / "best").unlink()
        (tmp_path / "best").symlink_to(other.relative_to(tmp_path))
        assert best_checkpoint(tmp_path) == other
        ScoreModel.from_pretrained(tmp_path / "best")
        vectors(tmp_path, options=SHORT, until=15)
        assert best_checkpoint(tmp_path) == best
    assert not (tmp_path / "best").is_symlink()  # the second one was wrong
    assert best.is_dir()


def test_a_best_that_is_gone_is_named(tmp_path):
    vectors(tmp_path, options=SHORT)
    shutil.rmtree(best_checkpoint(tmp_path))
    with pytest.raises(CheckpointError, match=r"names checkpoints/step-\d+, which is not there"):
        ScoreModel.from_pretrained(tmp_path / "best")


FOREIGN = {
    "training.csv": "training.csv",
    "lambda.csv": "lambda.csv",
    "best": "best",
    "a folder best": "best/notes.txt",
    "a file checkpoints": "checkpoints",
    "a file averages": "averages",
    "a file pictures": "pictures",
    "a checkpoint": "checkpoints/step-000000005/notes.txt",
    "a snapshot": "averages/sigma_rel-0.1/step-000000002.safetensors",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_has_a_name_of_ours_and_is_not_ours_is_never_touched(tmp_path, name):
    """The folder is refused, by a name that leads to the file, and nothing is written."""
    file = tmp_path / FOREIGN[name]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a year of work")
    with pytest.raises(
        CheckpointError, match=f"{re.escape(FOREIGN[name].removesuffix('/notes.txt'))} is there already"
    ):
        vectors(tmp_path, options=SHORT)
    assert contents(tmp_path) == {file.relative_to(tmp_path): b"a year of work"}


def test_what_a_run_does_not_write_stays(tmp_path):
    """Beside its files and inside its folders, also where leftovers of a kill are cleared away."""
    others = [
        "averages/mine.csv",
        "checkpoints/mine.txt",
        "checkpoints/step-5/x",
        ".partial-upload",
        "training.partial",
    ]
    others += [".lock", "pictures/me.png", "checkpoints/.partial-mine/x", ".mine.csv.12.partial"]
    others += ["averages/sigma_rel-0.1/.mine.safetensors.12.partial"]
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    leftovers = [".training.csv.12.partial", ".best.7.partial", "checkpoints/.partial-step-000000010/raw.safetensors"]
    leftovers += ["checkpoints/.partial-gone-step-000000005/raw.safetensors"]
    leftovers += ["averages/sigma_rel-0.1/.step-000000007.safetensors.12.partial"]
    for name in leftovers:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    options = dataclasses.replace(SHORT, power_averages=(0.1,), keep=1)
    vectors(tmp_path, options=options)
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert not any((tmp_path / name).exists() for name in leftovers)
    remove_leftovers(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_snapshots_without_checkpoints_are_gone_on_with_by_the_same_run_alone(tmp_path):
    """A kill before the first checkpoint, and checkpoints that were moved away."""
    options = dataclasses.replace(SHORT, power_averages=(0.1,), snapshots=10)
    vectors(tmp_path, options=options, until=5)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "best").unlink()
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"averages/sigma_rel-0\.1/step-000000002\.safetensors is there"):
        vectors(tmp_path, options=dataclasses.replace(options, seed=1))
    assert contents(tmp_path) == before
    vectors(tmp_path, options=dataclasses.replace(options, log_every=3))
    assert checkpoint_folders(tmp_path)[-1][0] == 20
