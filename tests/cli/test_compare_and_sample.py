"""``sde-toolkit compare`` and ``sde-toolkit sample`` as a user types them."""

import csv
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from sde_toolkit import VPSDE, Affine, ScoreModel, UNet, ddim, grids, sample
from sde_toolkit.cli.main import config_directory
from sde_toolkit.evaluation.candidates import USUAL_SOLVERS

MIXTURE = "model={path:mixture}"
FEW = ["n=8", "n_real=40", "budgets=[3,5]", "exact_flow.n=4", "exact_flow.steps=4", "progress=false", "output=run"]
FEW += ["references=false"]


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125))
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_compare_the_mixture(command, tmp_path):
    status, out, err = command("compare", MIXTURE, *FEW)
    assert status == 0, err
    assert "real data (floor)" in out
    content = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert {row["solver"] for row in content["rows"]} == set(USUAL_SOLVERS)
    assert all(row["nfe"] <= row["budget"] for row in content["rows"])
    assert content["exact_flow"]["own_error"] < 1e-8
    assert content["exact_flow"]["samples"] == 8
    assert content["provenance"]["config"]["budgets"] == [3, 5]
    assert content["provenance"]["command"].startswith("sde-toolkit compare ")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["n"] == 8
    assert (tmp_path / "run/report.html").is_file()


def test_compare_a_checkpoint_with_parts_from_the_command_line(command, tmp_path, checkpoint):
    status, _, err = command(
        "compare",
        "model={path:tiny}",
        "solver=[ddim,probability_flow]",
        "+solvers.half._target_=sde_toolkit.ddim",
        "+solvers.half.eta=0.5",
        "grid=[uniform,karras]",
        *FEW,
    )
    assert status == 0, err
    content = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    rows = content["rows"]
    assert [(r["solver"], r["grid"]) for r in rows[:3]] == [
        ("ddim", "uniform"),
        ("probability_flow", "uniform"),
        ("half", "uniform"),
    ]
    assert {r["grid"] for r in rows} == {"uniform", "karras"}
    assert {r["eta"] for r in rows if r["solver"] == "half"} == {0.5}
    assert "digits" in content["real_data"]["source"]
    weights = (checkpoint / "ema.safetensors").read_bytes()
    assert content["provenance"]["model"]["sha256"] == hashlib.sha256(weights).hexdigest()
    with (tmp_path / "run/results.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 12


def test_the_default_comparison_takes_less_than_two_minutes_at_512_images_a_second():
    """Its evaluations alone take 90 seconds at most: the rest is for the judging, the pictures and the start."""
    from hydra import compose, initialize_config_dir

    from sde_toolkit.cli.parts import build_solvers, load_model
    from sde_toolkit.evaluation.comparison_request import ComparisonRequest
    from sde_toolkit.evaluation.evaluation_counts import planned_evaluations

    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("compare")
    model, _ = load_model(config)
    flow = config.exact_flow
    request = ComparisonRequest(
        model=model,
        solvers=build_solvers(config),
        budgets=list(config.budgets),
        n=config.n,
        endpoint_n=flow.n,
        endpoint_steps=flow.steps,
        batch_size=config.batch_size,
    )
    assert planned_evaluations(request).total <= 90 * 512


def test_data_of_the_users_own(command, tmp_path, checkpoint):
    np.save(tmp_path / "real.npy", np.random.default_rng(0).uniform(0, 16, (60, 1, 8, 8)))
    status, _, err = command(
        "compare",
        "model={path:tiny}",
        "data=array",
        "data.path=real.npy",
        "data.test_fraction=0.5",
        "solver=ddim",
        *FEW,
    )
    assert status == 0, err
    content = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert content["real_data"]["count"] == 30
    assert "real.npy" in content["real_data"]["source"]


def test_sample_is_what_the_library_draws(command, tmp_path, checkpoint):
    status, out, err = command("sample", "model={path:tiny}", "n=5", "nfe=4", "seed=3", "progress=false", "output=run")
    assert status == 0, err
    model = ScoreModel.from_pretrained(checkpoint)
    grid = grids.uniform(model.sde, 3)
    expected = sample(model, ddim(), grid, shape=(5, 1, 8, 8), seed=3, tweedie=True)
    with np.load(tmp_path / "run/samples.npz") as stored:
        assert np.allclose(stored["x_model"], expected.x, atol=1e-5)
        assert np.allclose(stored["x"], model.transform.inverse(expected.x), atol=1e-3)
        assert np.array_equal(stored["times"], grid)
    record = json.loads((tmp_path / "run/samples.json").read_text(encoding="utf-8"))
    assert (record["nfe"], record["n"], record["seed"], record["tweedie"]) == (4, 5, 3, True)
    assert (tmp_path / "run/samples.png").is_file()
    assert "4 evaluations" in out


def test_sample_the_mixture_through_the_shell(tmp_path):
    words = [
        sys.executable,
        "-m",
        "sde_toolkit",
        "sample",
        MIXTURE,
        "n=30",
        "solver=probability_flow",
        "nfe=6",
        "output=run",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 evaluations" in done.stdout
    assert "%" in done.stderr  # the progress bar
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "run" not in p.parents]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("budgets=0", "budgets=[0]"),
        ("budgets=[5,many]", "budgets=[5, 'many']"),
        ("budgets=[1]", "at least 2"),
        ("n=1", "n=1"),
        ("n=some", "n='some'"),
        ("seed=-1", "seed=-1"),
        ("batch_size=0", "batch_size=0"),
        ("exact_flow.n=-1", "exact_flow.n=-1"),
        ("model={path:nowhere}", "mixture"),
        ("solver=nope", "euler_maruyama"),
        ("grid=nope", "uniform_lambda"),
        ("solver=[]", "solver=[name,name]"),
        ("solvers.ddim.stepz=3", "stepz"),
        ("features=looks", "classifier or data"),
        ("features=classifier", "(1, 28, 28)"),
        ("grid=discrete", "'discrete'"),
        ("badget=3", "badget"),
        ("reference.split=valid", "train, test or auto"),
        ("budgets=[]", "budgets=[5,10,20]"),
    ],
)
def test_mistakes_of_compare_are_named_and_nothing_is_written(command, tmp_path, override, said):
    status, _, err = command("compare", MIXTURE, *FEW, override)
    assert status not in (0, None)
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(["nfe=0"], "nfe=0"), (["nfe=1"], "at least 2"), (["n=0"], "n=0"), (["solver=[ddim,ddpm]"], "exactly one")],
)
def test_mistakes_of_sample_are_named(command, overrides, said):
    status, _, err = command("sample", MIXTURE, "progress=false", "output=run", *overrides)
    assert status == 2
    assert said in err


def test_data_that_do_not_fit_are_refused(command, checkpoint):
    status, _, err = command("compare", "model={path:tiny}", "data=waves", *FEW)
    assert status == 2
    assert "(1, 64)" in err
    assert "(1, 8, 8)" in err


@pytest.mark.parametrize("name", ["compare", "sample"])
def test_help_shows_examples_and_choices(command, name):
    status, out, _ = command(name, "--help")
    assert status in (0, None)
    assert f"sde-toolkit {name} " in out
    assert "euler_maruyama" in out
    assert "uniform_lambda" in out


@pytest.mark.skipif(
    (config_directory() / "model").is_dir(), reason="Hydra takes model=NAME for the group configs/model"
)
def test_the_model_by_its_name(command):
    status, _, err = command("sample", "model=mixture", "n=2", "nfe=2", "progress=false", "output=run")
    assert status == 0, err


FILE = """
import torch
from sde_toolkit import ScoreModel, heun


def steps(denoise, sigmas, x, rng):
    for r, s in zip(sigmas[:-1], sigmas[1:]):
        x = x + (s - r) * (x - denoise(x, r)) / r
    return x


def fails(denoise, sigmas, x, rng):
    return steps(denoise, sigmas, x, rng)


def preset():
    return heun()


def spread(generated, real):
    return abs(generated.std() - real.std())


def broken(generated, real):
    raise RuntimeError("my own mistake")


def second():
    from sde_toolkit import GaussianMixture, VPSDE
    return GaussianMixture(torch.zeros(1, 2), VPSDE(), std=1.0)
"""


def test_solvers_metrics_and_models_of_a_file(command, tmp_path):
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    words = ["solver=[ddim,mine.py:steps,other=mine.py:preset]", "metric=mine.py:spread", "grid=karras"]
    status, _, err = command("compare", "model=[mine.py:second,mixture]", *words, *FEW, "references=false")
    assert status == 0, err
    content = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    rows = content["rows"]
    assert {(row["solver"], row["model"]) for row in rows} == {
        (f"{solver}, {model}", model) for solver in ("ddim", "steps", "other") for model in ("second", "mixture")
    }
    assert all(row["spread"] >= 0 for row in rows)
    ours, theirs = (
        next(row for row in rows if row["solver"] == f"{name}, second" and row["budget"] == 5)
        for name in ("ddim", "steps")
    )
    assert theirs["rmse"] == pytest.approx(ours["rmse"], rel=1e-3)
    assert theirs["nfe"] == ours["nfe"] == 5


def test_a_foreign_solver_of_a_file_draws_samples(command, tmp_path):
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    words = [MIXTURE, "n=5", "nfe=4", "grid=karras", "progress=false"]
    drawn = {}
    for name in ("mine.py:steps", "ddim"):
        status, _, err = command("sample", *words, f"solver={name}", f"output={name[:4]}")
        assert status == 0, err
        with np.load(tmp_path / name[:4] / "samples.npz") as stored:
            drawn[name] = stored["x"]
    assert np.allclose(drawn["mine.py:steps"], drawn["ddim"], atol=1e-3)


def test_a_users_own_mistake_is_shown_as_it_is_and_nothing_is_written(command, tmp_path):
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    with pytest.raises(RuntimeError, match="my own mistake"):
        command("compare", MIXTURE, "metric=mine.py:broken", "solver=ddim", *FEW)
    status, _, err = command("compare", MIXTURE, "metric=mine.py:nothing", "solver=ddim", *FEW)
    assert status == 2
    assert "broken" in err
    assert not list(tmp_path.rglob("results.json"))
