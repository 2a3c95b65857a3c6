"""``sde-toolkit likelihood`` as a user types it, alone and in several processes."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml

from sde_toolkit import MLP, VPSDE, Affine, ScoreModel, UNet
from sde_toolkit.data import digits

MIXTURE = "model={path:mixture}"
TINY = "model={path:tiny}"
FEW = [
    "n=10", "chunk=4", "nfe=6", "quadrature.nodes=4", "elbo.draws=4", "discrete.steps=10", "discrete.draws=3",
    "truncation.n=5", "truncation.ends=[1e-3]", "progress=false",
]  # fmt: skip
ALONE = ["truncation.n=0", "elbo.draws=0", "discrete.steps=0"]  # the flow's likelihood and no more
PROBES = "divergence=hutchinson"


@pytest.fixture
def command(command):
    return lambda *words: command("likelihood", *words)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125))
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def table(folder):
    with (folder / "samples.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_mixture_beside_its_exact_density(command, tmp_path):
    status, out, err = command(MIXTURE, *FEW, "nfe=60", "quadrature.nodes=30", "output=run")
    assert status == 0, err
    assert "exact log p" in out
    assert "no order in general" in out
    content = results(tmp_path / "run")
    assert content["unit"] == "nats"
    assert content["levels"] is None
    for line in table(tmp_path / "run"):
        assert abs(float(line["nats"]) - float(line["exact_nats"])) < 0.05
        assert "bits_per_dim" not in line
    for name in ("report.html", "report.md", "histogram.png", "end_times.png", "request.json"):
        assert (tmp_path / "run" / name).is_file()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["nfe"] == 60
    assert content["provenance"]["command"].startswith("sde-toolkit likelihood ")
    assert content["prior_mismatch"]["moments"] == "full covariance of 10000 samples"


def test_digits_have_seventeen_levels_and_labels(command, tmp_path, checkpoint):
    status, out, err = command(TINY, *FEW, PROBES, "output=run")
    assert status == 0, err
    assert "bits/dim" in out
    content = results(tmp_path / "run")
    assert content["levels"] == {"count": 17, "low": 0.0, "high": 16.0}
    assert [row["name"].split(",")[0] for row in content["rows"]] == [
        "flow", "flow", "ELBO", "DDPM bound",
    ]  # fmt: skip
    known = digits()
    for line in table(tmp_path / "run"):
        assert int(line["label"]) == int(known.test_labels[int(line["index"])])
    assert (tmp_path / "run/extremes.png").is_file()
    assert content["prior_mismatch"]["moments"] == "full covariance of 1500 samples"


def test_the_samples_are_the_same_for_every_seed_and_the_first_of_more(command, tmp_path, checkpoint):
    options = [*FEW[1:], *ALONE, PROBES, "draws=1"]
    for name, words in (("a", ["n=6"]), ("b", ["n=6", "seed=1"]), ("c", ["n=9"])):
        assert command(TINY, *options, *words, f"output={name}")[0] == 0
    a, b, c = (table(tmp_path / name) for name in "abc")
    assert [line["index"] for line in a] == [line["index"] for line in b] == [line["index"] for line in c[:6]]
    assert [line["nats"] for line in a] != [line["nats"] for line in b]
    assert np.allclose([float(line["nats"]) for line in a], [float(line["nats"]) for line in c[:6]], rtol=1e-4)


def test_an_array_of_ones_own(command, tmp_path, checkpoint):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "whole.npy", rng.integers(0, 17, (40, 1, 8, 8), dtype=np.int16))
    np.save(tmp_path / "real.npy", rng.uniform(0, 16, (40, 1, 8, 8)).astype(np.float32))
    own = [TINY, *FEW, *ALONE, "n=4", PROBES, "data=array", "data.test_fraction=0.5"]
    status, _, err = command(*own, "data.path=whole.npy", "levels.count=17", "output=whole")
    assert status == 0, err
    assert results(tmp_path / "whole")["unit"] == "bits/dim"
    assert results(tmp_path / "whole")["prior_mismatch"]["moments"] == "diagonal covariance of 20 samples"
    status, _, err = command(*own, "data.path=real.npy", "output=real")
    assert status == 0, err
    assert results(tmp_path / "real")["unit"] == "nats"
    status, _, err = command(*own, "data.path=whole.npy", "output=refused")
    assert status == 2
    assert "levels.count=256" in err
    status, _, err = command(*own, "data.path=real.npy", "levels.count=17", "output=refused")
    assert status == 2
    assert "between" in err


def test_taken_up_again_by_the_same_command_and_by_resume(command, tmp_path, checkpoint):
    words = [TINY, *FEW, PROBES]
    assert command(*words, "output=whole")[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for again in ("output=again", "resume=again"):
        (tmp_path / "again/parts/00001.npz").unlink()
        part = tmp_path / "again/parts/00003.npz"
        part.write_bytes(part.read_bytes()[:100])
        (tmp_path / "again/samples.csv").unlink()
        status, out, err = command(*words, again)
        assert status == 0, err
        assert "5 of 7 parts are there already, 2 to compute" in out
        assert "00003.npz is damaged" in out
        assert (tmp_path / "again/samples.csv").read_bytes() == (tmp_path / "whole/samples.csv").read_bytes()
    assert not (tmp_path / "outputs").exists()
    status, _, err = command(*words, "seed=5", "resume=again")
    assert status == 2
    assert "settings.seed (0 there, 5 here)" in err
    assert err.count("\n") == 1


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def test_two_processes_do_what_one_does(command, forks, tmp_path):
    torch.manual_seed(0)
    model = ScoreModel(MLP((64,), width=16, depth=1), VPSDE(), "edm", event_shape=(64,), transform=Affine(8.0, 0.125))
    model.save_pretrained(tmp_path / "tiny")
    np.save(tmp_path / "x.npy", digits().test.reshape(-1, 64).numpy())
    words = [TINY, *FEW, PROBES, "data=array", "data.path=x.npy", "levels.count=17"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert command(*words, "output=one")[0] == 0
    torch.set_num_threads(threads)
    # every process has its own idea of the time, and one folder is agreed on
    folder = "output=two_${now:%f}"
    said = forks.command(2, tmp_path, "likelihood", *words, folder)
    reported = list(tmp_path.glob("two_*/samples.csv"))
    assert len(reported) == 1, "one of them reports"
    two = reported[0].parent
    assert reported[0].read_bytes() == (tmp_path / "one/samples.csv").read_bytes()
    content = results(two)
    assert content["processes"] == 2
    by = []
    for file in sorted((two / "parts").glob("*.npz")):
        with np.load(file) as part:
            by.append(int(part["process"]))
    assert by == [0, 1, 0, 1, 0, 1, 0]
    assert content["rows"][0]["value"] == results(tmp_path / "one")["rows"][0]["value"]
    assert len(list(tmp_path.glob("two_*/parts/*.npz"))) == len(list((two / "parts").glob("*.npz"))) == 7
    assert said.count("report: ") == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("n=0", "n=0"),
        ("n=some", "n='some'"),
        ("chunk=0", "chunk=0"),
        ("nfe=0", "nfe=0"),
        ("draws=0", "draws=0"),
        ("seed=-1", "seed=-1"),
        ("elbo.draws=-1", "elbo.draws=-1"),
        ("discrete.steps=x", "discrete.steps='x'"),
        ("end=2", "end=2"),
        ("truncation.ends=[7]", "ends=7"),
        ("quadrature.nodes=1", "quadrature.nodes=1"),
        ("quadrature.scale=-1", "=-1: must be positive"),
        ("prior=mine", "there is no such prior. Choose standard or gaussian"),
        ("prior=exact", "there is no such prior for this model. Choose"),
        ("levels.count=9", "outside the range"),
        ("levels.count=1", "count=1"),
        ("levels.low=x", "low"),
        ("n=100000", "has 297 samples"),
        ("data=nope", "rings"),
        ("data=waves", "(1, 64)"),
        ("solver=euler_maruyama grid=karras", "noise"),
        ("solver=[heun,ddim]", "one solver"),
        ("solver=auto", "not a planner"),
        ("solver=heun", "grid"),
        ("resume=nowhere", "request.json"),
        ("model={path:nowhere}", "mixture"),
        ("divergence=hutchinson divergence.probes=0", "probes=0"),
        ("divergence=exact divergence.max_dimension=8", "divergence=hutchinson"),
        ("chonk=3", "chonk"),
    ],
)
def test_mistakes_are_named_and_nothing_is_computed(command, tmp_path, checkpoint, override, said):
    status, _, err = command(TINY, *FEW, PROBES, "output=run", *override.split())
    assert status not in (0, None)
    assert said in err
    assert "Traceback" not in err
    if override != "chonk=3" and "=nope" not in override:
        assert err.count("\n") == 1, "one line"
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    ("override", "said"), [("levels.low=0", "levels.count=256"), ("levels.count=4", "the levels from 0 to 3")]
)
def test_levels_of_a_mixture(command, override, said):
    status, _, err = command(MIXTURE, *FEW, "output=run", override)
    assert status == 2
    assert said in err
    assert "Levels(" not in err


def test_help_shows_examples_and_choices(command):
    status, out, _ = command("--help")
    assert status in (0, None)
    for word in (
        "torchrun",
        "accelerate launch",
        "hutchpp",
        "uniform_lambda",
        "resume",
        "truncation",
        "outputs/likelihood",
    ):
        assert word in out
