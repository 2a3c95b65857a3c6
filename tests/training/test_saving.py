"""What stands in the way of a checkpoint, or of going on from one, is named, and nothing that is there is damaged."""

import contextlib
import dataclasses
import resource
import shutil
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import VECTORS, images, rows, vectors, weights

from sde_toolkit import MLP, VESDE, VPSDE, DenoisingScoreMatching, ScoreModel
from sde_toolkit.data import checkerboard
from sde_toolkit.errors import CheckpointError, FolderInUseError
from sde_toolkit.files.claims import claimed
from sde_toolkit.models.checkpoint import best_checkpoint, checkpoint_folders
from sde_toolkit.training import train
from sde_toolkit.training.saving import mark_best, prune

SHORT = dataclasses.replace(VECTORS, steps=20, evaluate_every=5, power_averages=())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped. To be read only."""
    folder = tmp_path_factory.mktemp("whole")
    vectors(folder, options=SHORT)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    vectors(folder, options=SHORT, until=10)
    return folder


@pytest.fixture
def begun(half, tmp_path):
    """A folder of one's own in which a run has come to step 10."""
    return shutil.copytree(half, tmp_path / "begun", symlinks=True)


def same_weights(one, two, kind):
    first, second = weights(one, kind), weights(two, kind)
    return all(torch.equal(first[key], second[key]) for key in first)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e-4}, "options.learning_rate=0.001, now options.learning_rate=0.0001"),
        ({"batch_size": 32}, "options.batch_size"),
        ({"ema_decay": 0.5}, "options.ema_decay"),
        ({"steps": 40}, "options.steps=20, now options.steps=40"),
        ({"seed": 1}, "options.seed"),
    ],
)
def test_a_contradicting_option_is_named_with_both_values(begun, change, said):
    before = contents(begun)
    with pytest.raises(CheckpointError, match=said):
        vectors(begun, options=dataclasses.replace(SHORT, **change))
    assert contents(begun) == before


def test_a_run_of_before_the_warm_up_of_its_average_goes_on_without_and_only_so(tmp_path):
    bare = dataclasses.replace(SHORT, ema_warmup=False, ema_decay=0.5)
    vectors(tmp_path, options=bare, until=10)
    file = tmp_path / "checkpoints/step-000000010/run.yaml"
    file.write_text(file.read_text().replace("  ema_warmup: false\n", ""))
    assert "ema_warmup" not in file.read_text()
    with pytest.raises(CheckpointError, match=r"options\.ema_warmup=False, now options\.ema_warmup=True"):
        vectors(tmp_path, options=dataclasses.replace(bare, ema_warmup=True))
    vectors(tmp_path, options=bare)
    vectors(tmp_path / "whole", options=bare)
    one, two = weights(tmp_path, "ema"), weights(tmp_path / "whole", "ema")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_that_drew_other_random_numbers_is_not_continued(tmp_path):
    vectors(tmp_path, options=SHORT, until=10)
    file = tmp_path / "checkpoints/step-000000010/run.yaml"
    text = file.read_text()
    assert "noise_version: 2\n" in text
    for before in ("", "noise_version: 1\n"):  # runs of before they were numbered, and of another number
        file.write_text(text.replace("noise_version: 2\n", before))
        with pytest.raises(CheckpointError, match=r"random numbers of training have changed .* initial=FOLDER"):
            vectors(tmp_path, options=SHORT)
    file.write_text(text)
    vectors(tmp_path, options=SHORT)


def test_an_average_that_stays_at_the_first_weights_is_said_before_the_first_step(tmp_path):
    long = dataclasses.replace(SHORT, ema_decay=0.999)
    with pytest.warns(UserWarning, match="worth using from step 4604 on"):
        vectors(tmp_path / "a", options=dataclasses.replace(long, ema_warmup=False), until=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "worth using")
        vectors(tmp_path / "b", options=long, until=1)


def test_what_decides_nothing_about_the_weights_may_change(whole, begun):
    vectors(begun, options=dataclasses.replace(SHORT, log_every=3, keep=1, workers=1, patience=3))
    assert same_weights(whole, begun, "ema")


def test_another_architecture_sde_loss_or_data_set_is_named(begun):
    before = contents(begun)

    def attempt(width=32, sde=None, target="edm", n=1000):
        network = MLP(event_shape=(2,), width=width, depth=2, embedding_scale=100.0)
        model = ScoreModel(network, sde or VPSDE(), "edm", event_shape=(2,))
        train(model, checkerboard(n=n), begun, SHORT, loss=DenoisingScoreMatching(target))

    for change, said in [
        ({"width": 16}, "model.network.width=32, now model.network.width=16"),
        ({"sde": VESDE()}, "model.sde"),
        ({"target": "x0"}, "loss.target"),
        ({"n": 500}, "data.samples"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            attempt(**change)
    assert contents(begun) == before


@pytest.mark.parametrize("file", ["training.pt", "raw.safetensors", "ema.safetensors", "run.yaml"])
@pytest.mark.parametrize("damage", ["truncated", "garbled", "missing"])
def test_a_damaged_checkpoint_is_named(begun, file, damage):
    place = checkpoint_folders(begun)[-1][1] / file
    if damage == "missing":
        place.unlink()
    else:
        whole = place.read_bytes()
        place.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"\0" * len(whole))
    with pytest.raises(CheckpointError, match=place.parent.name):
        vectors(begun, options=SHORT)


def test_what_remains_after_removing_a_damaged_checkpoint_goes_on(whole, begun, tmp_path):
    """As the message says: without the damaged one, training goes on from the one before it."""
    (begun / "checkpoints/step-000000010").rename(tmp_path / "damaged")
    vectors(begun, options=SHORT)
    assert same_weights(whole, begun, "raw")
    for file in ("training.csv", "lambda.csv"):  # what was logged beyond the checkpoint is logged anew, not twice
        assert rows(whole, file) == rows(begun, file)


def test_a_kill_between_a_checkpoint_and_its_mark_loses_no_best(tmp_path):
    vectors(tmp_path, options=SHORT, until=15)
    was = best_checkpoint(tmp_path)
    assert was.name != "step-000000005"
    (tmp_path / "best").write_text("checkpoints/step-000000005\n")
    vectors(tmp_path, options=SHORT, until=15)
    assert best_checkpoint(tmp_path) == was


def test_the_best_is_saved_whenever_it_is_found(tmp_path):
    """Also where checkpoints are due at other steps than evaluations."""
    vectors(tmp_path, options=dataclasses.replace(SHORT, evaluate_every=6, checkpoint_every=20))
    held_out = {int(row["step"]): float(row["held_out_loss"]) for row in rows(tmp_path) if row["held_out_loss"]}
    assert best_checkpoint(tmp_path).name == f"step-{min(held_out, key=held_out.get):09d}"


def test_other_data_of_the_same_size_are_refused(begun):
    points = checkerboard(n=1000)
    network = MLP(event_shape=(2,), width=32, depth=2, embedding_scale=100.0)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(2,))
    loss = DenoisingScoreMatching("edm")
    for change, said in [({"train": points.train + 1}, "data.train"), ({"test": points.test + 1}, "data.test")]:
        with pytest.raises(CheckpointError, match=said):
            train(model, dataclasses.replace(points, **change), begun, SHORT, loss=loss)


def test_a_network_of_ones_own_with_other_shapes_is_refused(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 2))

        def forward(self, x, time):
            return self.layers(x)

    def attempt(width):
        return train(ScoreModel(Own(width), VPSDE(), "edm", event_shape=(2,)), checkerboard(n=200), tmp_path, SHORT)

    attempt(8)
    with pytest.raises(CheckpointError, match="shapes="):
        attempt(16)


def test_a_folder_in_which_another_trains_is_refused(begun):
    before = contents(begun)
    with claimed(begun, "training"), ThreadPoolExecutor(1) as another:
        attempt = another.submit(vectors, begun, options=SHORT)
        with pytest.raises(FolderInUseError, match="another process works in it \\(training"):
            attempt.result()
    assert contents(begun) == before
    vectors(begun, options=SHORT)


def test_a_run_may_be_prolonged_where_nothing_depends_on_its_length(tmp_path):
    constant = dataclasses.replace(SHORT, cosine_decay=False)
    vectors(tmp_path / "long", options=dataclasses.replace(constant, steps=30))
    vectors(tmp_path / "longer", options=constant)
    vectors(tmp_path / "longer", options=dataclasses.replace(constant, steps=30))
    one, two = weights(tmp_path / "long", "raw"), weights(tmp_path / "longer", "raw")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        vectors(tmp_path / "file", options=SHORT)


def test_numbers_of_numpy_are_options_too(tmp_path):
    """They make the run that plain numbers make, and its checkpoints say the same."""
    plain = {"learning_rate": 1e-3, "seed": 3, "steps": 5, "cosine_decay": True, "betas": (0.9, 0.99)}
    kinds = {
        "learning_rate": np.float64,
        "seed": np.int64,
        "steps": np.int32,
        "cosine_decay": np.bool_,
        "betas": np.array,
    }
    vectors(tmp_path / "plain", options=dataclasses.replace(SHORT, **plain))
    given = {name: kinds[name](value) for name, value in plain.items()}
    vectors(tmp_path / "numpy", options=dataclasses.replace(SHORT, **given))
    one, two = (checkpoint_folders(tmp_path / name)[-1][1] for name in ("plain", "numpy"))
    for file in ("run.yaml", "model.yaml", "raw.safetensors", "ema.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_no_pickled_code_is_loaded(begun, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"step": 10, "optimizer": Evil()}, checkpoint_folders(begun)[-1][1] / "training.pt")
    with pytest.raises(CheckpointError, match=r"training\.pt is damaged or foreign"):
        vectors(begun, options=SHORT)
    assert not (tmp_path / "executed").exists()


def test_resume_false_refuses_a_folder_in_use(tmp_path):
    vectors(tmp_path, options=SHORT)
    with pytest.raises(CheckpointError, match="holds checkpoints"):
        train(vectors(tmp_path, options=SHORT), checkerboard(n=1000), tmp_path, SHORT, resume=False)


def test_the_last_and_the_best_are_kept(tmp_path):
    images(tmp_path, keep=2, checkpoint_every=2, evaluate_every=2)
    folders = checkpoint_folders(tmp_path)
    best = best_checkpoint(tmp_path)
    assert {20, 18} <= {step for step, _ in folders}
    assert len(folders) <= 3
    assert best in {folder for _, folder in folders}
    held_out = {}
    import csv

    with (tmp_path / "training.csv").open() as file:
        for row in csv.DictReader(file):
            if row["held_out_loss"]:
                held_out[int(row["step"])] = float(row["held_out_loss"])
    assert best.name == f"step-{min(held_out, key=held_out.get):09d}"
    assert ScoreModel.from_pretrained(tmp_path / "best").event_shape == (1, 8, 8)


def test_the_best_stays_however_old_it_is(tmp_path):
    vectors(tmp_path, options=dataclasses.replace(SHORT, keep=10))
    first = checkpoint_folders(tmp_path)[0][1]
    mark_best(tmp_path, first)
    prune(tmp_path, 2)
    assert [step for step, _ in checkpoint_folders(tmp_path)] == [5, 15, 20]
    mark_best(tmp_path, checkpoint_folders(tmp_path)[1][1])
    prune(tmp_path, 2)
    assert [step for step, _ in checkpoint_folders(tmp_path)] == [15, 20]


def test_the_configuration_of_the_run_is_in_every_checkpoint(whole):
    for _, folder in checkpoint_folders(whole):
        record = yaml.safe_load((folder / "run.yaml").read_text())
        assert record["options"]["learning_rate"] == SHORT.learning_rate
        assert record["model"]["network"]["width"] == 32


@contextlib.contextmanager
def no_file_longer_than(size):
    """The system refuses to let files grow beyond a size, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("limit", [100, 20_000, 60_000], ids=["at once", "in the weights", "in the state"])
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(whole, begun, limit):
    with pytest.raises((CheckpointError, OSError)), no_file_longer_than(limit):
        vectors(begun, options=SHORT)
    found = checkpoint_folders(begun)
    assert found[-1][0] == 10
    weights(begun, "raw")
    assert not list((begun / "checkpoints").glob(".partial*"))
    vectors(begun, options=SHORT)
    assert same_weights(whole, begun, "raw")
