"""Ctrl-C and SIGTERM: the step is finished and saved, and the run that goes on is the one that was never stopped."""

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from runs import rows, vectors, weights
from test_saving import SHORT

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training import Interrupted, stopping
from sde_toolkit.training.saving import load_state
from sde_toolkit.training.state import TrainingState
from sde_toolkit.training.stopping import StopRequest

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
OPTIONS = dataclasses.replace(SHORT, held_out=50)  # a checkpoint every 5 steps of 20


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture
def sending(monkeypatch):
    """A function after which this process sends itself signals in the middle of a step."""
    advance, wanted = TrainingState.advance, {}

    def advance_and_send(self, batches):
        for number in wanted.pop(self.step + 1, ()):
            signal.raise_signal(number)
        advance(self, batches)

    monkeypatch.setattr(TrainingState, "advance", advance_and_send)
    return lambda step, *numbers: wanted.update({step: numbers})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    vectors(folder, options=OPTIONS)
    return folder


def same_run(one, two):
    for kind in ("raw", "ema"):
        a, b = weights(one, kind), weights(two, kind)
        assert all(torch.equal(a[key], b[key]) for key in a)
    for file in ("training.csv", "lambda.csv"):
        assert rows(one, file) == rows(two, file)


@BOTH
@pytest.mark.parametrize("step", [1, 7, 10])
def test_the_step_is_finished_and_saved_and_the_run_goes_on_as_if_never_stopped(tmp_path, whole, sending, number, step):
    before = handlers()
    sending(step, number)
    with pytest.raises(
        Interrupted, match=f"stopped at step {step} of 20, saved in .*; the same call continues from there"
    ) as stop:
        vectors(tmp_path, options=OPTIONS)
    assert handlers() == before
    assert (stop.value.step, stop.value.signal, stop.value.status) == (step, number, 128 + number)
    again = pickle.loads(pickle.dumps(stop.value))
    assert (str(again), again.step, again.status) == (str(stop.value), step, 128 + number)
    assert checkpoint_folders(tmp_path)[-1][0] == step
    vectors(tmp_path, options=OPTIONS)
    same_run(whole, tmp_path)


def test_a_run_that_ends_leaves_the_handlers_as_they_were(tmp_path):
    before = handlers()
    vectors(tmp_path, options=OPTIONS, until=2)
    assert handlers() == before


@BOTH
def test_at_the_last_step_the_run_is_complete_and_the_signal_is_not_lost(tmp_path, whole, sending, number):
    sending(20, number)
    with pytest.raises(Interrupted, match="stopped at step 20 of 20"):
        vectors(tmp_path, options=OPTIONS)
    vectors(tmp_path, options=OPTIONS)
    same_run(whole, tmp_path)


def test_a_second_one_ends_at_once(tmp_path, sending):
    before = handlers()
    sending(7, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stop:
        vectors(tmp_path, options=OPTIONS)
    assert not isinstance(stop.value, Interrupted)
    assert handlers() == before
    assert checkpoint_folders(tmp_path)[-1][0] == 5


@BOTH
def test_what_the_user_does_at_a_signal_is_left_to_the_user(tmp_path, whole, sending, number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        sending(7, number)
        vectors(tmp_path, options=OPTIONS)
        assert heard == [number]
    finally:
        signal.signal(number, before)
    same_run(whole, tmp_path)


def test_other_threads_train_without_handlers(tmp_path, whole):
    before = handlers()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(vectors, tmp_path, options=OPTIONS).result()
    assert handlers() == before
    same_run(whole, tmp_path)


def test_processes_that_were_forked_meanwhile_end_as_they_would(tmp_path, monkeypatch):
    """A pool of a watcher's, for example: else it could not be ended."""
    codes, advance, forking = [], TrainingState.advance, multiprocessing.get_context("fork")

    def wait_for_the_end(runs):
        runs.set()
        time.sleep(600)

    def fork(self, batches):
        runs = forking.Event()
        child = forking.Process(target=wait_for_the_end, args=(runs,))
        child.start()
        assert runs.wait(300)  # a signal that comes before Python runs in it is lost
        child.terminate()
        child.join(300)
        codes.append(child.exitcode)
        advance(self, batches)

    monkeypatch.setattr(TrainingState, "advance", fork)
    vectors(tmp_path, options=OPTIONS, until=1)
    assert codes == [-signal.SIGTERM]


SCRIPT = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
import runs, torch
from sde_toolkit.training import stopping
stopping._ONE_REQUEST = 60.0
torch.set_num_threads(1)
given = dict(steps=100000, evaluate_every=100000, snapshots=1, log_every=5, workers=int(sys.argv[2]))
if __name__ == "__main__":
    runs.vectors(sys.argv[1], options=dataclasses.replace(runs.VECTORS, **given))
"""


def script(folder):
    (folder / "script.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return str(folder / "script.py")


def has_logged(folder):
    """Wait until a run has logged a step."""
    log, until = Path(folder) / "training.csv", time.monotonic() + 200
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if len(log.read_text().splitlines()) > 1:
                return True
        time.sleep(0.02)
    return False


def test_processes_that_read_are_sent_the_signal_too_and_do_not_mind(tmp_path, forks):
    """A scheduler sends it to the whole group. (Of Ctrl-C, see below.)"""
    (process,) = forks.start(1, script(tmp_path), tmp_path / "run", 2)
    assert has_logged(tmp_path / "run")
    os.killpg(process, signal.SIGTERM)
    _, said = forks.wait()
    step = checkpoint_folders(tmp_path / "run")[-1][0]
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"sde_toolkit.training.stopping.Interrupted: stopped at step {step} of")
    assert "DataLoader" not in said


def same_step(folder, said):
    """Two processes have saved the step that both say they stopped at."""
    ((step, checkpoint),) = checkpoint_folders(folder)
    assert set(re.findall(r"Interrupted: stopped at step (\d+)", said)) == {str(step)}
    assert load_state(checkpoint)["processes"] == 2


def test_several_processes_stop_together_when_one_of_them_is_told(tmp_path, forks):
    """After one and the same step, and without waiting for one another for ever."""
    _, second = forks.start(2, script(tmp_path), tmp_path / "run", 0)
    assert has_logged(tmp_path / "run")
    os.kill(second, signal.SIGTERM)
    _, said = forks.wait()
    same_step(tmp_path / "run", said)


def test_several_processes_stop_together_when_a_terminal_tells_them(tmp_path):
    """It tells all of them, those that read for them, and their launcher, which tells them once more.

    The launcher may take a minute for it: this machine may be busy.
    """
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    words += ["--rdzv_endpoint", "localhost:0", script(tmp_path), str(tmp_path / "run"), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, *words], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert has_logged(tmp_path / "run"), process.communicate(timeout=1)[1]
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    same_step(tmp_path / "run", said)


WORDS = ["train", "experiment=checkerboard", "options.evaluate_every=20", "options.steps=20", "options.batch_size=16"]
WORDS += ["watch=none", "progress=false", "device=cpu", "options.held_out=16", "output=run"]


@BOTH
def test_the_command_says_where_it_stopped_with_the_usual_status(command, tmp_path, sending, number):
    sending(7, number)
    status, _, err = command(*WORDS)
    assert status == 128 + number
    said = f"stopped at step 7, which is saved in {tmp_path / 'run'}: the same command continues from there."
    assert err.strip().splitlines()[-1] == said
    assert (tmp_path / "run/config.yaml").exists()
    sending(9, number, number)
    status, out, err = command(*WORDS)
    assert "continuing from step 7 of 20" in out
    assert status == 128 + number
    said = f"stopped. The last checkpoint in {tmp_path / 'run'} is of step 7: the same command continues from there."
    assert err.strip().splitlines()[-1] == said
    status, out, err = command(*WORDS)
    assert status == 0, err


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps", "meta", "nonsense", 3.5])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    """Before anything is written, and never replaced by another one."""
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("it is there")
    from sde_toolkit import MLP, VPSDE, ScoreModel
    from sde_toolkit.data import checkerboard
    from sde_toolkit.training import train

    model = ScoreModel(MLP(event_shape=(2,), width=8, depth=1), VPSDE(), event_shape=(2,))
    with pytest.raises(ArgumentError, match=f"device='{device}'"):
        train(model, checkerboard(n=50), tmp_path / "run", OPTIONS, device=device)
    assert not (tmp_path / "run").exists()


class Two:
    """Two processes, the other one having been sent a signal or not."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, other=0):
        self.other, self.asked = other, 0

    def gather(self, told):
        self.asked += 1
        return torch.cat([told, torch.tensor([[self.other, int(told[0, 1])]])])


@pytest.mark.parametrize("first", [0, 1])
def test_processes_ask_one_another_after_their_first_step_and_then_twice_a_second(monkeypatch, first):
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "perf_counter", lambda: clock[0])
    assert StopRequest(2).agreed(first, Two(other=15)) == 15
    request, two = StopRequest(2), Two()
    for step in range(first, 1000 + first):
        clock[0] += 0.01
        assert request.agreed(step, two) is None
    assert 10 <= two.asked <= 40  # in ten seconds
