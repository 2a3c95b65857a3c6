"""A command touches nothing that is not its own, writes all or nothing, and says what became of work cut off."""

import errno
import json
import os
import signal
import threading

import numpy as np
import pytest
import torch

from sde_toolkit.cli.folders import CONFIG, OWN
from sde_toolkit.files import whole
from sde_toolkit.files.claims import LOCK, claimed
from sde_toolkit.jobs.store import PartStore

FEW = ["model={path:mixture}", "progress=false", "output=run"]
SAMPLES = ["samples=mixture", "n=8", "batch_size=4", "nfe=4", "progress=false", "output=run", "reference.n=40"]
COMMANDS = {
    "sample": ["sample", *FEW, "n=8", "nfe=4", "batch_size=4"],
    "compare": ["compare", *FEW, "n=4", "n_real=20", "budgets=[3]", "solver=[ddim]", "exact_flow.n=0", "batch_size=2"],
    "calibrate": ["calibrate", *FEW, "nfe=3", "n=8", "time_limit=1", "solver=ddim", "strategy=search"],
    "likelihood": ["likelihood", *FEW, "n=4", "chunk=2", "nfe=4", "quadrature.nodes=3", "elbo.draws=0",
                   "discrete.steps=0", "truncation.n=0", "draws=1"],
    "evaluate": ["evaluate", *SAMPLES],
}  # fmt: skip
KEPT = [name for name in COMMANDS if name != "calibrate"]


def tree(folder):
    """Everything in a folder: names and contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_is_not_the_commands_own_is_touched(command, tmp_path, name):
    status, _, err = command(*COMMANDS[name])
    assert status == 0, err
    folder = tmp_path / "run"
    written = [p.name for p in folder.iterdir() if p.is_file() and p.name not in (OWN, "request.json")]
    assert CONFIG in written
    assert set(written) <= set(json.loads((folder / OWN).read_text())["files"])
    assert command(*COMMANDS[name])[0] == 0, "what it has written itself it may write again"
    some = sorted({CONFIG, min(written), max(written)} | ({"request.json"} if name in KEPT else set()))
    for number, file in enumerate(some):
        own = tmp_path / f"own{number}"
        own.mkdir()
        (own / file).write_text("mine")
        status, _, err = command(*COMMANDS[name], f"output={own.name}")
        assert status == 2, file
        assert err.startswith("error: output=")
        assert tree(own) == {file: b"mine"}


def test_the_folder_of_another_command_is_refused(command, tmp_path):
    assert command(*COMMANDS["sample"])[0] == 0
    before = tree(tmp_path)
    for name in ("compare", "calibrate", "likelihood", "evaluate"):
        status, _, err = command(*COMMANDS[name])
        assert status == 2, name
        assert "was written by the sample command" in err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_in_which_another_works_is_left_alone(command, tmp_path, name):
    started, done = threading.Event(), threading.Event()

    def work():
        with claimed(tmp_path / "run", "sampling"):
            started.set()
            done.wait(60)

    other = threading.Thread(target=work)
    other.start()
    started.wait(60)
    try:
        before = tree(tmp_path)
        status, _, err = command(*COMMANDS[name])
        assert status == 2
        assert "another process works in it" in err
        assert tree(tmp_path) == before
    finally:
        done.set()
        other.join()


def test_a_refused_command_has_written_nothing(command, tmp_path):
    """Refused for its settings, for parts of another run, or for a broken request."""
    assert command(*COMMANDS["sample"], "n=0")[0] == 2
    assert tree(tmp_path) == {}
    parts = PartStore(tmp_path / "run", {"work": "something else"})
    parts.claim(dict)
    parts.write(0, 0, 1, {"x": np.zeros(1)})
    before = tree(tmp_path)
    status, _, err = command(*COMMANDS["sample"])
    assert status == 2
    assert "it holds parts of another run" in err
    assert tree(tmp_path) == before
    (tmp_path / "run/request.json").write_text("{")
    before = tree(tmp_path)
    assert command(*COMMANDS["sample"])[0] == 2
    assert tree(tmp_path) == before


def test_the_record_is_that_of_the_samples_even_if_a_later_run_is_cut_off(command, tmp_path, stop_after):
    assert command(*COMMANDS["sample"], "seed=5")[0] == 0
    with stop_after(6, signal.SIGINT):
        assert command(*COMMANDS["sample"], "seed=6")[0] == 130
    assert "seed: 5" in (tmp_path / "run" / CONFIG).read_text()
    assert json.loads((tmp_path / "run/samples.json").read_text())["seed"] == 5


def test_parts_are_taken_away_and_what_else_lies_there_is_not(tmp_path):
    own = PartStore(tmp_path / "run", {"work": "mine"})
    own.claim(dict)
    own.write(0, 0, 1, {"x": np.zeros(1)})
    (tmp_path / "run/parts/notes.npz").write_text("mine")
    own.clear()
    assert tree(tmp_path / "run") == {"parts": None, "parts/notes.npz": b"mine"}


# Stopped


@pytest.fixture
def stop_after():
    """Sends this process a signal at the k-th call of a module."""
    from contextlib import contextmanager

    @contextmanager
    def run(calls, number):
        left = [calls]

        def count(*_):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

        handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()
            assert left[0] <= 0, "it ended before that"

    return run


@pytest.mark.parametrize(
    ("name", "number", "status"), [("sample", signal.SIGTERM, 143), *((name, signal.SIGINT, 130) for name in COMMANDS)]
)
def test_a_stopped_command_says_so_and_goes_on_where_it_stopped(command, tmp_path, stop_after, name, number, status):
    before = signal.getsignal(signal.SIGTERM)
    with stop_after(7, number):
        found, _, err = command(*COMMANDS[name])
    assert found == status
    assert signal.getsignal(signal.SIGTERM) is before
    last = err.strip().splitlines()[-1]
    assert last.startswith("stopped. ")
    assert "Traceback" not in err
    kept = sorted(p.name for p in tmp_path.rglob("*.npz"))
    if kept:
        assert (
            last == f"stopped. What was finished is kept in {tmp_path / 'run'}: the same command continues from there."
        )
    else:
        assert last == "stopped. Nothing was finished yet."
    assert not list(tmp_path.rglob(LOCK))
    status, out, err = command(*COMMANDS[name])
    assert status == 0, err
    assert ("parts are there already" in out) == bool(kept)


# A full disk


@pytest.fixture
def disk_full_after(monkeypatch):
    """The disk is full after some files, and the system does not say which file it was."""
    real = whole.to_disk

    def run(spared):
        left = [spared]

        def full(place):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(place)

        monkeypatch.setattr(whole, "to_disk", full)

    return run


@pytest.mark.parametrize("spared", [0, 1, 2])
def test_a_report_is_written_whole_or_not_at_all(tmp_path, disk_full_after, spared):
    old, new = ({f"{k}.txt": f"{name} {k}".encode() for k in range(3)} for name in ("old", "new"))
    whole.write_all(tmp_path, old)
    disk_full_after(spared)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / f'{spared}.txt'}'"):
        whole.write_all(tmp_path, new)
    assert tree(tmp_path) == old
    disk_full_after(3)
    whole.write_all(tmp_path, new)
    assert tree(tmp_path) == new


@pytest.mark.parametrize("name", KEPT)
def test_a_full_disk_is_a_message_that_names_the_file(command, tmp_path, disk_full_after, name):
    disk_full_after(2)  # the folder's record and the request
    status, _, err = command(*COMMANDS[name])
    assert status == 2
    assert err.strip().splitlines()[-1].startswith(f"error: [Errno 28] No space left on device: '{tmp_path / 'run'}")
    assert not list(tmp_path.rglob("*.partial"))
    disk_full_after(1000)
    assert command(*COMMANDS[name])[0] == 0
