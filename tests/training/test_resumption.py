"""A run that was stopped, or killed, and continued is the run that was never stopped: weights, averages, curves."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import RUNS, rows, vectors, weights

from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training.saving import load_state

RUN = Path(__file__).with_name("runs.py")


def same_files(one, two, pattern):
    """Whether two folders hold the same files of a pattern, byte for byte; at least one."""
    first, second = ({p.relative_to(at): p.read_bytes() for p in Path(at).glob(pattern)} for at in (one, two))
    assert first
    return first == second


@pytest.mark.parametrize(("name", "stops"), [("vectors", [60]), ("images", [8, 11, 17])])
def test_stopped_and_continued_is_never_stopped(tmp_path, name, stops):
    """60 + 40 steps are 100 steps, bit for bit: raw, EMA, power averages, optimizer, loss and λ curves."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    RUNS[name](whole)
    for stop in stops:
        RUNS[name](parts, until=stop)
    averaged = RUNS[name](parts)
    for kind in ("raw", "ema"):
        one, two = weights(whole, kind), weights(parts, kind)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), kind
    assert all(torch.equal(value, averaged.state_dict()[key]) for key, value in weights(whole, "ema").items())
    assert rows(whole) == rows(parts)
    assert rows(whole, "lambda.csv") == rows(parts, "lambda.csv")
    if name == "vectors":
        assert same_files(whole, parts, "averages/*/*")
    ends = [load_state(checkpoint_folders(folder)[-1][1]) for folder in (whole, parts)]
    torch.testing.assert_close(ends[0]["optimizer"]["state"], ends[1]["optimizer"]["state"], rtol=0, atol=0)


def test_another_stop_would_show(tmp_path):
    """What the law above compares does differ from step to step."""
    vectors(tmp_path, until=40)
    vectors(tmp_path, until=60)
    early, late = weights(tmp_path, "raw", 40), weights(tmp_path, "raw", 60)
    assert not any(torch.equal(early[key], late[key]) for key in early if early[key].any())


def wait_for_lines(file, count, process):
    """Until a run has logged so much, or has ended."""
    with contextlib.suppress(ProcessLookupError):
        while not file.exists() or len(file.read_text().splitlines()) < count:
            os.kill(process, 0)
            time.sleep(0.001)


def test_killed_at_any_instant_nothing_is_lost(tmp_path, forks):
    """SIGKILL at random instants: every checkpoint that is there is whole, none disappears but for newer ones, and the
    run that goes on ends where the uninterrupted one ends. (benchmarks/kill.py does this as often as one likes.)"""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    forks.run(1, RUN, whole, "vectors")
    lines, dice = len((whole / "training.csv").read_text().splitlines()), random.Random(0)
    reached, kills = 0, 0
    while kills < 5:
        (process,) = forks.start(1, RUN, killed, "vectors")
        wait_for_lines(killed / "training.csv", lines * (kills + 0.5) / 6, process)
        time.sleep(dice.uniform(0.0, 0.05))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        (status,), said = forks.wait()
        if status != -signal.SIGKILL:  # it was faster: begin anew
            assert status == 0, said
            shutil.rmtree(killed)
            reached = 0
            continue
        kills += 1
        found = checkpoint_folders(killed)
        for step, folder in found:
            assert load_state(folder)["step"] == step
            for kind in ("raw", "ema"):
                weights(killed, kind, step)
        last = found[-1][0] if found else 0
        assert last >= reached
        reached = last
    forks.run(1, RUN, killed, "vectors")
    for kind in ("raw", "ema"):
        one, two = weights(whole, kind), weights(killed, kind)
        assert all(torch.equal(one[key], two[key]) for key in one), kind
    assert rows(whole) == rows(killed)
    assert rows(whole, "lambda.csv") == rows(killed, "lambda.csv")
    assert same_files(whole, killed, "averages/*/*")
    assert not list(killed.rglob("*partial*"))
