"""Work shared by processes is the work of one: same files, whoever drew what, and however often it was cut off."""

import json

import numpy as np
import pytest
import torch
from forks import COMMAND

from sde_toolkit import VPSDE, Affine, ScoreModel, UNet
from sde_toolkit.evaluation import planned_run

MIXTURE = "model={path:mixture}"
QUIET = "progress=false"


@pytest.fixture
def command(command):
    """On one thread, as the processes of a team have."""

    def run(*words):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return command(*words, QUIET)
        finally:
            torch.set_num_threads(threads)

    return run


def tiny(folder, **options):
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1, **options)
    with torch.no_grad():
        for parameter in network.parameters():  # a new network answers zero
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125))
    model.save_pretrained(folder)
    return "model={path:" + folder.name + "}"


@pytest.mark.parametrize("solver", ["ddpm", "dopri5"])
def test_samples_of_an_exact_score_are_the_same_file_bit_for_bit(command, forks, tmp_path, solver):
    """Elementwise arithmetic; dopri5 couples the samples of a batch, which are the same ones for everyone."""
    words = ["sample", MIXTURE, "n=22", "batch_size=4", "nfe=6", f"solver={solver}", "seed=5", "first_index=3"]
    status, _, err = command(*words, "output=one")
    assert status == 0, err
    said = forks.command(
        3, tmp_path, *words, QUIET, "output=three_${now:%f}"
    )  # everyone has an idea of their own of the time
    (three,) = tmp_path.glob("three_*/samples.npz")
    assert three.read_bytes() == (tmp_path / "one/samples.npz").read_bytes()
    record = json.loads((three.parent / "samples.json").read_text())
    assert record["processes"] == 3
    assert record["nfe"] == json.loads((tmp_path / "one/samples.json").read_text())["nfe"]
    assert said.count("written to") == 1, "one of them speaks"
    assert not list(three.parent.rglob("parts"))


def test_samples_of_a_network_too(command, forks, tmp_path):
    """Through convolutions: batches are the same for all, and so are the kernels' round-off and the file."""
    words = ["sample", tiny(tmp_path / "tiny", num_classes=3), "labels=[2,0]", "n=10", "batch_size=4", "nfe=5"]
    assert command(*words, "output=one")[0] == 0
    forks.command(2, tmp_path, *words, QUIET, "output=two")
    with np.load(tmp_path / "one/samples.npz") as one, np.load(tmp_path / "two/samples.npz") as two:
        assert one["labels"].tolist() == [2, 0] * 5
        assert np.abs(one["x_model"]).mean() > 0.1
        for name in one.files:
            assert np.array_equal(one[name], two[name]), name


def test_a_comparison_says_the_same_but_for_its_seconds(command, forks, tmp_path):
    words = ["compare", MIXTURE, "n=12", "n_real=60", "budgets=[3,5]", "solver=[ddim,ddpm,dopri5]", "batch_size=5"]
    words += ["exact_flow.n=7"]
    assert command(*words, "output=one")[0] == 0
    said = forks.command(2, tmp_path, *words, QUIET, "output=two")
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    timed = ("seconds", "network_seconds", "outside_network")

    def untimed(content):
        return [{k: v for k, v in row.items() if k not in timed} for row in content["rows"]]

    assert untimed(one) == untimed(two)
    assert any(row["rmse"] for row in untimed(one))
    for name in ("real_data", "times"):
        assert one[name] == two[name]
    assert one["exact_flow"] | {"seconds": 0} == two["exact_flow"] | {"seconds": 0}
    for sheet in tmp_path.glob("one/samples_*.png"):
        assert sheet.read_bytes() == (tmp_path / "two" / sheet.name).read_bytes()
    assert said.count("report: ") == 1
    assert not list(tmp_path.rglob("parts"))


def test_drawing_that_was_cut_off_goes_on(command, tmp_path, monkeypatch):
    words = ["sample", MIXTURE, "n=10", "batch_size=3", "nfe=4"]
    assert command(*words, "output=whole")[0] == 0
    real, calls = planned_run.sample, []

    def killed(*args, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(options["first_index"])
        return real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(planned_run, "sample", killed)
        status, _, err = command(*words, "output=again")
    assert status == 130
    assert (
        err.strip()
        == f"stopped. What was finished is kept in {tmp_path / 'again'}: the same command continues from there."
    )
    assert not (tmp_path / "again/samples.npz").exists()
    parts = tmp_path / "again/parts"
    assert sorted(p.name for p in parts.iterdir()) == ["00000.npz", "00001.npz"]
    (parts / "00001.npz").write_bytes((parts / "00001.npz").read_bytes()[:50])

    status, _, err = command(*words, "seed=1", "output=again")
    assert status == 2
    assert "settings.seed (0 there, 1 here)" in err
    drawn = []
    monkeypatch.setattr(planned_run, "sample", lambda *a, **o: drawn.append(o["first_index"]) or real(*a, **o))
    status, out, err = command(*words, "output=again")
    assert status == 0, err
    assert drawn == [3, 6, 9]
    assert "1 of 4 parts are there already, 3 to compute" in out
    assert (tmp_path / "again/samples.npz").read_bytes() == (tmp_path / "whole/samples.npz").read_bytes()
    assert not parts.exists()


def test_a_mistake_is_said_and_nobody_waits_for_ever(forks, tmp_path):
    forks.start(2, COMMAND, "sample", MIXTURE, "n=0", QUIET, folder=tmp_path)
    statuses, said = forks.wait()
    assert all(status > 0 for status in statuses)  # nobody had to be killed
    for begin in ("error: n=0", "[process 1] error: n=0"):
        assert sum(line.startswith(begin) for line in said.splitlines()) == 1
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_the_batch_of_a_sample_is_part_of_where_it_is_from(command, tmp_path, solver):
    """first_index continues a set: two halves are the whole."""
    words = ["sample", MIXTURE, "nfe=5", f"solver={solver}", "batch_size=4"]
    assert command(*words, "n=12", "output=whole")[0] == 0
    assert command(*words, "n=8", "output=first")[0] == 0
    assert command(*words, "n=4", "first_index=8", "output=second")[0] == 0
    whole, first, second = (np.load(tmp_path / name / "samples.npz")["x"] for name in ("whole", "first", "second"))
    assert np.array_equal(whole, np.concatenate([first, second]))


# Networks with classes


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["class=2"], [2, 2, 2, 2, 2]),
        (["labels=[0,2]"], [0, 2, 0, 2, 0]),
        (["labels=all"], [0, 1, 2, 0, 1]),
        (["labels=all", "first_index=1"], [1, 2, 0, 1, 2]),
    ],
)
def test_labels_reach_the_network(command, tmp_path, words, labels):
    from sde_toolkit import ddim, grids, sample

    model = tiny(tmp_path / "tiny", num_classes=3)
    status, _, err = command("sample", model, "n=5", "nfe=3", "batch_size=2", *words, "output=run")
    assert status == 0, err
    loaded = ScoreModel.from_pretrained(tmp_path / "tiny")
    first = 1 if "first_index=1" in words else 0
    options = {"shape": (5, 1, 8, 8), "tweedie": True, "first_index": first}
    grid = grids.uniform(loaded.sde, 2)
    expected = sample(loaded, ddim(), grid, condition=torch.tensor(labels), **options)
    other = sample(loaded, ddim(), grid, **options)
    with np.load(tmp_path / "run/samples.npz") as stored:
        assert stored["labels"].tolist() == labels
        assert np.allclose(stored["x_model"], expected.x, atol=1e-5)
        assert not np.allclose(stored["x_model"], other.x, atol=1e-3)


def test_no_class_has_to_be_asked_for(command, tmp_path):
    model = tiny(tmp_path / "tiny", num_classes=3)
    status, _, err = command("sample", model, "n=2", "nfe=3", "output=run")
    assert status == 2
    assert "labels=all" in err
    assert command("sample", model, "n=2", "nfe=3", "class=none", "output=run")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["class=3"], "0..2"),
        (["class=-1"], "0..2"),
        (["class=cat"], "0..2"),
        (["labels=[0,7]"], "0..2"),
        (["labels=[]"], "labels"),
        (["class=1", "labels=[0]"], "exactly one"),
    ],
)
def test_labels_that_mean_nothing_are_refused(command, tmp_path, words, said):
    model = tiny(tmp_path / "tiny", num_classes=3)
    status, _, err = command("sample", model, "n=2", "nfe=3", *words, "output=run")
    assert status == 2
    assert said in err
    assert not list(tmp_path.rglob("samples.npz"))


def test_a_network_without_classes_takes_no_label(command, tmp_path):
    status, _, err = command("sample", MIXTURE, "n=2", "nfe=3", "class=1", "output=run")
    assert status == 2
    assert "without classes" in err


def test_a_comparison_of_one_class_is_judged_by_that_class(command, tmp_path):
    from sde_toolkit.data import digits

    model = tiny(tmp_path / "tiny", num_classes=10)
    few = ["n=4", "n_real=1000", "budgets=[3]", "solver=ddim", "exact_flow.n=2", "exact_flow.steps=2"]
    status, _, err = command("compare", model, *few, "class=4", "output=run")
    assert status == 0, err
    content = json.loads((tmp_path / "run/results.json").read_text())
    assert content["real_data"]["count"] == int((digits().test_labels == 4).sum())
    assert "classes 4" in content["real_data"]["source"]


def test_the_likelihood_of_a_conditional_network_takes_the_labels_of_the_data(command, tmp_path):
    from sde_toolkit.evaluation.density import evaluating

    few = ["n=6", "chunk=4", "nfe=4", "quadrature.nodes=3", "draws=1", "elbo.draws=2", "discrete.steps=4"]
    few += ["truncation.n=0", "divergence=hutchinson"]
    model = tiny(tmp_path / "tiny", num_classes=10)
    seen = []
    real = evaluating.fingerprint

    def spy(loaded, x, request):
        seen.append((x, request.condition))
        return real(loaded, x, request)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluating, "fingerprint", spy)
        status, _, err = command("likelihood", model, *few, "output=run")
    assert status == 0, err
    ((x, labels),) = seen
    from sde_toolkit.data import digits

    known = digits()
    for image, label in zip(x, labels, strict=True):
        same = (known.test == image).flatten(1).all(1)
        assert int(label) in known.test_labels[same].tolist()
    np.save(tmp_path / "bare.npy", known.test.numpy())
    status, _, err = command(
        "likelihood", model, *few, "data=array", "data.path=bare.npy", "levels.count=17", "output=no"
    )
    assert status == 2
    assert "no labels" in err
