"""Two processes train what one trains: the same draws, the same shares of the data, the mean of the gradients."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import HALF, half, rows, vectors, weights

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training import TrainingOptions, trainer
from sde_toolkit.training.processes import check_sharding, split_batch
from sde_toolkit.training.saving import load_state
from sde_toolkit.training.update import Update

RUN = Path(__file__).with_name("runs.py")


def distance(one, two):
    """Relative distance of two sets of weights."""
    apart = sum((one[key].double() - two[key].double()).square().sum() for key in one)
    size = sum(value.double().square().sum() for value in one.values())
    return (apart / size).sqrt().item()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process, which the runs of two are compared with."""
    folder = tmp_path_factory.mktemp("one")
    half(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory, forks):
    """Runs of two processes. ``whole``: never stopped. ``parts``: stopped at 30, continued by new ones. ``both``: two
    processes to step 20, one to 35, new ones to the end. The old processes make the three one after another, and so
    do the new ones."""
    folder = tmp_path_factory.mktemp("two")
    words = [folder / "whole", "half", "end", folder / "parts", "half", 30, folder / "both", "half", 20]
    forks.run(2, RUN, *words)
    half(folder / "both", until=35)
    forks.run(2, RUN, folder / "parts", "half", "end", folder / "both", "half", "end")
    return folder


def test_two_processes_are_one(one, two):
    """The sums of gradients are added in another order, so to round-off: 1e-5 after 50 steps, where the draws of
    one seed and of another lead 0.04 apart."""
    for kind in ("raw", "ema"):
        assert distance(weights(one, kind), weights(two / "whole", kind)) < 1e-5
    for file in ("training.csv", "lambda.csv"):
        of_one, of_two = rows(one, file), rows(two / "whole", file)
        assert [row.keys() for row in of_one] == [row.keys() for row in of_two]
        for a, b in zip(of_one, of_two, strict=True):
            for key in a:
                if a[key] in ("", "train", "held_out"):
                    assert a[key] == b[key]
                else:
                    assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4, abs=1e-12), (key, a["step"])
    assert load_state(checkpoint_folders(two / "whole")[-1][1])["processes"] == 2


def test_the_number_of_processes_may_change_on_the_way(one, two):
    assert distance(weights(one, "raw"), weights(two / "both", "raw")) < 1e-5
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(two / "both")]


def test_two_processes_stopped_and_continued_are_never_stopped(two):
    """Bit for bit, with two processes before and after."""
    whole, parts = weights(two / "whole", "raw"), weights(two / "parts", "raw")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert rows(two / "whole") == rows(two / "parts")


def test_processes_that_see_different_folders_are_refused(tmp_path, forks):
    """Else one would go on from step 10 and the other begin anew, and their gradients be averaged."""
    half(tmp_path / "0", until=10)
    forks.start(2, RUN, tmp_path / "{rank}", "half")
    statuses, said = forks.wait()
    assert all(statuses)
    assert "different last checkpoints in it: of steps [10, 0]" in said


@pytest.mark.skipif(torch.__version__.startswith(("2.4.", "2.5.")), reason="fully_shard came with torch 2.6")
def test_sharded_parameters_train_as_whole_ones(one, tmp_path, forks):
    """Stopped and continued to the bit, and one process's weights to round-off; the checkpoint is an ordinary one."""
    forks.run(2, RUN.with_name("sharded.py"), tmp_path / "whole", "end", tmp_path / "parts", "30")
    forks.run(2, RUN.with_name("sharded.py"), tmp_path / "parts", "end")
    for kind in ("raw", "ema"):
        plain, whole, parts = (weights(folder, kind) for folder in (one, tmp_path / "whole", tmp_path / "parts"))
        assert distance(plain, whole) < 1e-5
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


@pytest.fixture
def as_one_of_a_group(tmp_path, monkeypatch):
    """A function after which a run has an accelerator of a kind for several processes, in a group of this one alone."""
    group = torch.distributed
    group.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/group")

    def give(kind, **sharding):
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        plain = trainer.make_accelerator

        def make(*arguments):
            made = plain(*arguments)
            made.state.distributed_type = DistributedType(kind)
            if sharding:
                made.state.fsdp_plugin = FullyShardedDataParallelPlugin(**sharding)
            return made

        monkeypatch.setattr(trainer, "make_accelerator", make)

    yield give
    group.destroy_process_group()


@pytest.mark.parametrize(("kind", "sharding"), [("MULTI_CPU", {}), ("FSDP", {"fsdp_version": 2})])
def test_wrappers_of_accelerate_around_one_process_change_nothing(one, tmp_path, as_one_of_a_group, kind, sharding):
    """DDP, and accelerate's own FSDP of torch's second version, which elsewhere only accelerators get."""
    seen, update = [], Update.finish

    def note(self):
        seen.append((type(self.objective).__name__, type(self.weights[0]).__name__))
        update(self)

    as_one_of_a_group(kind, **sharding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Update, "finish", note)
        half(tmp_path / "run", until=20)
        half(tmp_path / "run")
    assert set(seen) == {("DistributedDataParallel", "Parameter") if not sharding else ("FSDPObjective", "DTensor")}
    for kind_of_weights in ("raw", "ema"):
        assert distance(weights(one, kind_of_weights), weights(tmp_path / "run", kind_of_weights)) < 1e-5
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(tmp_path / "run")]


def test_the_first_version_of_sharding_is_refused():
    with pytest.raises(ArgumentError, match=r"fsdp_version=1.*FSDP_VERSION=2"):
        check_sharding(SimpleNamespace(distributed_type="FSDP", is_fsdp2=False))


def test_the_command_is_the_same_on_two_processes(command, tmp_path, forks):
    """The configuration is written, and the model announced, once."""
    words = ["train", "experiment=checkerboard", "threads=1", "progress=false", "device=cpu"]
    words += ["options.steps=4", "options.evaluate_every=2", "options.batch_size=16", "options.held_out=8"]
    said = forks.command(2, tmp_path, *words, "output=two")
    assert said.count("parameters on") == 1
    _, again, _ = command(*words, "output=one")
    assert again.count("parameters on") == 1
    assert distance(weights(tmp_path / "one", "ema"), weights(tmp_path / "two", "ema")) < 1e-5
    assert "${" not in (tmp_path / "two/config.yaml").read_text()


def test_processes_part_before_they_end(tmp_path, forks):
    """A group still there when the interpreter goes aborts its process now and then, after the work was done."""
    (tmp_path / "script.py").write_text(LAST_WORDS.format(tests=str(Path(__file__).parent)))
    assert forks.run(2, tmp_path / "script.py", tmp_path / "run").count("a group: True, at the end: False") == 2


LAST_WORDS = """
import atexit, sys, torch.distributed as group
sys.path.insert(0, {tests!r})
there = []
atexit.register(lambda: sys.stdout.write(f"a group: {{there[0]}}, at the end: {{group.is_initialized()}}\\n"))  # after
import runs
runs.vectors(sys.argv[1], until=2)
there.append(group.is_initialized())
"""


@pytest.mark.parametrize("limit", [16, 10])
def test_a_batch_in_passes_is_the_batch(one, tmp_path, limit):
    """Accumulated gradients are the gradient, to round-off."""
    vectors(tmp_path / "passes", options=dataclasses.replace(HALF, pass_size=limit))
    assert distance(weights(one, "raw"), weights(tmp_path / "passes", "raw")) < 1e-5


@pytest.mark.parametrize(
    ("batch", "limit", "processes", "wanted"),
    [(64, None, 1, (1, 64)), (64, None, 4, (1, 16)), (64, 10, 1, (8, 8)), (60, 8, 2, (5, 6)), (7, 3, 1, (7, 1))],
)
def test_passes_are_equal_and_few(batch, limit, processes, wanted):
    assert split_batch(TrainingOptions(batch_size=batch, pass_size=limit), processes) == wanted


def test_unequal_shares_are_refused():
    with pytest.raises(ArgumentError, match="batch_size=64: 3 processes"):
        split_batch(TrainingOptions(batch_size=64), 3)
