"""``sde-toolkit evaluate`` and ``--multirun`` as a user types them."""

import json
import sys

import numpy as np
import pytest
import torch

from sde_toolkit import VPSDE, Affine, ScoreModel, UNet
from sde_toolkit.data import digits
from sde_toolkit.evaluation import compare_records, data_extractor, evaluate_samples
from sde_toolkit.metrics.quality import metrics_with_floor

ALL = "metrics=[fid,kid,precision_recall,distance]"
QUIET = "progress=false"


@pytest.fixture
def command(command):
    return lambda *words: command(*words, QUIET)


@pytest.fixture
def drawn(tmp_path):
    np.savez(tmp_path / "drawn.npz", x=digits().train[:120].float().numpy() + 0.3)
    return "samples=drawn.npz"


def record(folder):
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_a_file_against_the_data_of_its_shape(command, tmp_path, drawn):
    status, out, err = command("evaluate", drawn, ALL, "reference.split=train", "output=run")
    assert status == 0, err
    content = record(tmp_path / "run")
    assert {"fid", "kid", "kid_std", "precision", "recall", "sliced_wasserstein", "kernel_distance"} == set(
        content["values"]
    )
    conditions = content["conditions"]
    assert conditions["reference"] | {"sha256": 0} == {"name": "digits", "split": "train", "count": 1500, "sha256": 0}
    assert conditions["preparation"] == {"levels": 17, "rounded": True}
    assert content["values"]["precision"] == 1, "rounded, they are real samples"
    assert content["about"]["command"].startswith("sde-toolkit evaluate samples=drawn.npz")
    assert content["about"]["config"]["neighbours"] == 3
    assert "as many real samples" in out
    assert not (tmp_path / "run/features").exists()


def test_a_record_to_compare_with(command, tmp_path, drawn):
    few = ["metrics=[fid]", "reference.n=200"]
    assert command("evaluate", drawn, *few, "output=a")[0] == 0
    status, out, err = command("evaluate", drawn, *few, "n=120", "against=a/evaluation.json", "output=b")
    assert status == 0, err
    assert out.split("\n\n")[1].splitlines()[-1].split()[-1] == "+0"
    assert compare_records(tmp_path / "a/evaluation.json", tmp_path / "b/evaluation.json") == {"fid": 0.0}
    for words, said in (
        (["n=100"], "samples.count"),
        (["reference.seed=1"], "reference.sha256"),
        (["reference.n=201"], "reference.count"),
        (["levels=16"], "preparation.levels"),
        (["extractor=module", "extractor._target_=torch.nn.Flatten"], "extractor."),
    ):
        status, _, err = command("evaluate", drawn, *few, *words, "against=a/evaluation.json", "output=c")
        assert status == 2
        assert said in err
        assert not (tmp_path / "c/evaluation.json").exists()
    status, _, err = command("evaluate", drawn, *few, "against=a/evaluation.json", "output=a")
    assert status == 2
    assert "the file that this command writes" in err


# Classes


@pytest.fixture
def threes(tmp_path):
    """Some of the test part's threes, in a file."""
    data = digits()
    np.savez(tmp_path / "threes.npz", x=data.test[data.test_labels == 3][:20].float().numpy())
    return ["evaluate", "samples=threes.npz", "metrics=[distance]", "reference.split=train"]


def test_samples_of_a_class_are_compared_with_real_ones_of_that_class(command, tmp_path, threes):
    data, expected = digits(), {}
    for words, wanted in (
        (["class=3"], [3]),
        (["class=8"], [8]),
        (["labels=[8,3,8]"], [3, 8]),
        (["labels=all"], None),
        (["class=none"], None),
        ([], None),
    ):
        assert command(*threes, *words, "output=run")[0] == 0
        reference = record(tmp_path / "run")["conditions"]["reference"]
        picked = torch.ones(1500, dtype=torch.bool)
        if wanted is not None:
            picked = torch.isin(data.train_labels, torch.tensor(wanted))
        assert reference.get("classes") == wanted
        assert reference["count"] == picked.sum()
        if str(wanted) not in expected:
            extractor = data_extractor((1, 8, 8), data.transform)
            expected[str(wanted)] = evaluate_samples(
                torch.from_numpy(np.load(tmp_path / "threes.npz")["x"]),
                data.train[picked],
                extractor,
                metrics=metrics_with_floor(extractor),
                levels=17,
            )
        values = expected[str(wanted)]
        assert record(tmp_path / "run")["values"] == values.values
        assert reference["sha256"] == values.conditions["reference"]["sha256"]


@pytest.mark.parametrize("words", [[], ["reference.n=100"]], ids=["all of them", "some"])
def test_it_tells_classes_apart(command, tmp_path, threes, words):
    for label in (3, 8):
        assert command(*threes, *words, f"class={label}", f"output=as{label}")[0] == 0
    own, other = (record(tmp_path / f"as{label}") for label in (3, 8))
    floor, error = own["floors"]["sliced_wasserstein"]
    assert own["values"]["sliced_wasserstein"] < floor + 4 * error
    assert other["values"]["sliced_wasserstein"] > 2 * own["values"]["sliced_wasserstein"]


def test_references_of_other_classes_are_no_comparison(command, tmp_path, threes):
    assert command(*threes, "class=3", "reference.n=100", "output=a")[0] == 0
    assert record(tmp_path / "a")["conditions"]["reference"]["count"] == 100
    for words in ([], ["class=8"], ["labels=[3,8]"]):
        status, _, err = command(*threes, *words, "reference.n=100", "against=a/evaluation.json", "output=b")
        assert status == 2
        assert "reference.classes" in err
    assert command(*threes, "class=3", "reference.n=100", "against=a/evaluation.json", "output=b")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["class=11"], "no samples of class 11"),
        (["labels=[3,11]"], "no samples of class 11"),
        (["class=three"], "class='three'"),
        (["labels=[]"], "labels=[]"),
        (["class=3", "labels=[4]"], "Leave one out"),
    ],
)
def test_classes_that_cannot_be_compared_with_are_named(command, tmp_path, threes, words, said):
    status, _, err = command(*threes, *words, "output=run")
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("evaluation.json"))


def test_a_reference_without_labels_is_no_reference_for_a_class(command, tmp_path):
    """Refused before the samples are drawn, if they had to be."""
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1, num_classes=10)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125))
    model.save_pretrained(tmp_path / "tiny")
    np.save(tmp_path / "rows.npy", digits().train.numpy())
    words = ["evaluate", "samples=tiny", "n=20", "nfe=2", "metrics=[distance]", "class=3"]
    status, _, err = command(*words, "data=array", "data.path=rows.npy", "output=run")
    assert status == 2
    assert "labels" in err
    assert "class=3" in err
    assert not list(tmp_path.rglob("samples.npz"))
    assert command(*words, "output=run")[0] == 0
    content = record(tmp_path / "run")
    assert content["conditions"]["reference"]["classes"] == [3]
    assert content["conditions"]["reference"]["count"] == (digits().train_labels == 3).sum()
    assert content["about"]["samples_record"]["labels"] == [3]


def test_a_model_is_drawn_from(command, tmp_path):
    status, _, err = command(
        "evaluate", "samples={path:mixture}", "n=40", "nfe=8", ALL, "reference.n=200", "output=run"
    )
    assert status == 0, err
    content = record(tmp_path / "run")
    assert content["conditions"]["reference"]["name"] == "exact draws of the mixture"
    assert content["about"]["samples_record"]["nfe"] == 8
    with np.load(tmp_path / "run/samples.npz") as stored:
        assert len(stored["x"]) == 40
    assert command("evaluate", "samples=run", ALL, "output=again")[0] == 2  # no data of shape (2,) ship
    status, _, err = command("evaluate", "samples={path:mixture}", "output=none")
    assert status == 2
    assert "n=10000" in err
    assert not (tmp_path / "run/parts").exists()


def test_processes_measure_what_one_measures(command, forks, tmp_path):
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125))
    model.save_pretrained(tmp_path / "tiny")
    words = ["evaluate", "samples=tiny", "n=20", "nfe=3", "batch_size=8", "reference.n=60", ALL]
    assert command(*words, "output=one")[0] == 0
    forks.command(2, tmp_path, *words, "progress=false", "output=two")
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert two["about"]["processes"] == 2
    for part in ("values", "errors", "floors", "conditions"):
        assert one[part] == two[part]
    assert one["about"]["samples_sha256"] == two["about"]["samples_sha256"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["samples=nowhere.npz"], "nowhere.npz"),
        (["samples=3"], "samples='3'"),
        (["metrics=[fid,beauty]"], "metrics"),
        (["reference.split=valid"], "train, test"),
        (["reference.n=1"], "reference.n=1"),
        (["data=waves"], "(1, 64)"),
        (["extractor=classifier"], "28x28"),
        (["extractor=module"], "extractor._target_"),
        (["against=nowhere.json"], "nowhere.json"),
        (["kid.subsets=0"], "kid.subsets=0"),
        (["levels=1"], "levels=1"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(command, tmp_path, drawn, words, said):
    status, _, err = command("evaluate", drawn, "output=run", *words)
    assert status not in (0, None)
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("evaluation.json"))


def test_without_torch_fidelity_inception_says_so(command, tmp_path, drawn):
    pytest.importorskip("torchmetrics")
    try:
        import torch_fidelity  # noqa: F401
    except (ImportError, RuntimeError):
        status, _, err = command("evaluate", drawn, "extractor=inception", "output=run")
        assert status == 2
        assert "sde-toolkit[fid]" in err


def test_help_shows_examples_and_choices(command):
    status, out, _ = command("evaluate", "--help")
    assert status in (0, None)
    for word in ("sde-toolkit evaluate", "inception", "torchrun", "against"):
        assert word in out


# Sweeps


def test_a_sweep_on_this_machine_is_its_jobs(command, forks, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["sample", "model={path:mixture}", "n=6", "nfe=4", QUIET]
    sweep = ["seed=0,1", "--multirun", "hydra/launcher=local", "hydra.sweep.dir=swept", "hydra.sweep.subdir=${seed}"]
    forks.command(1, tmp_path, *words, *sweep)
    for seed in (0, 1):
        assert command(*words[:-1], f"seed={seed}", f"output=alone{seed}")[0] == 0
        alone, swept = (tmp_path / name / "samples.npz" for name in (f"alone{seed}", f"swept/{seed}"))
        assert alone.read_bytes() == swept.read_bytes()
        said = json.loads((swept.parent / "samples.json").read_text())["command"]
        assert said.startswith("sde-toolkit sample ")
        assert f"seed={seed}" in said


@pytest.mark.parametrize(("launcher", "extra"), [("slurm", "slurm"), ("ray_cluster", "ray"), ("local", "sweep")])
def test_a_launcher_that_is_not_installed_names_its_extra(command, monkeypatch, launcher, extra):
    for plugin in ("joblib", "submitit", "ray"):
        monkeypatch.setitem(sys.modules, f"hydra_plugins.hydra_{plugin}_launcher", None)
    status, _, err = command("sample", "--multirun", "seed=0,1", f"hydra/launcher={launcher}")
    assert status == 2
    assert f"sde-toolkit[{extra}]" in err
