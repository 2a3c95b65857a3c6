"""``sde-toolkit restore`` as a user types it."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml

from sde_toolkit import MLP, VPSDE, Affine, ScoreModel, sample
from sde_toolkit.cli.main import config_directory
from sde_toolkit.cli.parts import ring_mixture
from sde_toolkit.evaluation.restoration import Inpaint
from sde_toolkit.guidance import Measurement, ddrm, dps

MIXTURE = "model={path:mixture}"
TINY = "model={path:tiny}"
FEW = ["n=4", "nfe=4", "measurements=2", "progress=false", "output=run"]


@pytest.fixture
def restore(command):
    return lambda *words: command("restore", *words)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = MLP((1, 8, 8), width=16, depth=1)
    transform = Affine(8.0, 0.125, low=0.0, high=16.0)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=transform)
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_mixture_beside_its_exact_posterior(restore, tmp_path):
    status, out, err = restore(MIXTURE, "method=[mmps,sigma_dps]", *FEW, "n=30", "nfe=12", "measurements=1")
    assert status == 0, err
    assert "exact posterior" in out
    content = results(tmp_path / "run")
    assert [row["method"] for row in content["rows"]] == ["mmps", "sigma_dps"]
    assert all(row["products"] >= row["nfe"] > 0 for row in content["rows"])
    for name in ("report.html", "measurement_1.png", "samples.npz"):
        assert (tmp_path / "run" / name).is_file()
    assert content["provenance"]["command"].startswith("sde-toolkit restore ")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["nfe"] == 12
    assert not (tmp_path / "run/parts").exists()


def test_the_report_says_what_the_arrays_say(restore, tmp_path, checkpoint):
    """Each number of the report, from the arrays that lie beside it."""
    status, _, err = restore(TINY, *FEW, "method=[pigdm,diffpir]", "task.fraction=0.4", "noise=0.2")
    assert status == 0, err
    content, known = results(tmp_path / "run"), Inpaint(0.4).operator((1, 8, 8))
    with np.load(tmp_path / "run/samples.npz") as arrays:
        stored = {name: arrays[name].astype(np.float64) for name in arrays}
    truth, y = stored["truth"], stored["y"]
    assert y.shape == (2, *known.measured_shape)
    for row in content["rows"]:
        x = stored[f"samples_{row['method']}"]
        assert x.shape == (2, 4, 1, 8, 8)
        in_model_space = torch.from_numpy((x - 8) * 0.125)
        measured = torch.stack([known(part) for part in in_model_space]).numpy()
        squares = ((y[:, None] - measured) / 0.2) ** 2
        assert row["misfit"] == pytest.approx(np.sqrt(squares.mean()), rel=1e-3)
        off = x.mean(1) - truth
        assert row["rmse_of_mean"] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-4)
        decibels = [20 * np.log10(16 / np.sqrt((part**2).mean())) for part in off]
        assert row["psnr_of_mean"] == pytest.approx(np.mean(decibels), rel=1e-4)
        assert row["spread"] == pytest.approx(np.sqrt(x.var(1, ddof=1).mean()), rel=1e-4)
        wanted = row["rmse_of_mean"] / row["spread"] / np.sqrt(1 + 1 / 4)
        assert row["over_confidence"] == pytest.approx(wanted, rel=1e-4)
    with (tmp_path / "run/results.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["measurement"], line["method"]) for line in lines] == [
        ("1", "pigdm"), ("2", "pigdm"), ("1", "diffpir"), ("2", "diffpir"),
    ]  # fmt: skip
    mean_square = np.mean([float(line["rmse_of_mean"]) ** 2 for line in lines[:2]])
    assert content["rows"][0]["rmse_of_mean"] == pytest.approx(np.sqrt(mean_square), rel=1e-6)


def test_the_truth_is_held_out_and_the_same_for_every_seed(restore, tmp_path, checkpoint):
    from sde_toolkit.data import digits

    found = []
    for name, words in (("a", []), ("b", ["seed=1", "measurements=1"])):
        status, _, err = restore(TINY, *FEW, "method=ddnm", *words, f"output={name}")
        assert status == 0, err
        with np.load(tmp_path / name / "samples.npz") as arrays:
            found.append((arrays["truth"], arrays["y"]))
    (truth, y), (again, other) = found
    assert np.array_equal(truth[:1], again)
    assert not np.array_equal(y[:1], other)
    there = {image.numpy().tobytes() for image in digits().test}
    assert all(image.tobytes() in there for image in truth)


def test_a_file_of_ones_own(restore, tmp_path, checkpoint):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 17, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own digit, 1.png")
    np.save(tmp_path / "own.npy", pixels[None])
    np.save(tmp_path / "several.npy", np.stack([pixels[None]] * 3).astype(np.float32))
    for file, count in (("own digit, 1.png", 1), ("own.npy", 1), ("several.npy", 3)):
        status, _, err = restore(TINY, *FEW, "method=ddnm", f"file={file}", f"output=of_{count}_{file[-3:]}")
        assert status == 0, err
        with np.load(tmp_path / f"of_{count}_{file[-3:]}" / "samples.npz") as arrays:
            assert np.array_equal(arrays["truth"], np.stack([pixels[None]] * count))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task=nope", "inpaint_random"),
        ("method=nope", "pigdm"),
        ("method=[]", "method=[name,name]"),
        ("task.fraction=1", "fraction=1"),
        ("task.fraction=0", "above 0 and below 1"),
        ("task=superres task.factor=3", "factor=3"),
        ("task=blur task.std=0", "std=0"),
        ("noise=-1", "noise=-1"),
        ("noise=much", "noise='much'"),
        ("noise=0 method=sigma_dps", "divides by it"),
        ("n=1", "n=1"),
        ("measurements=0", "measurements=0"),
        ("measurements=100000", "has 297 samples"),
        ("nfe=1", "at least 2"),
        ("cost=1", "cost=1"),
        ("solver=[ddim,ddpm]", "exactly one solver"),
        ("file=nowhere.png", "there is no such file"),
        ("file=wrong.npy", "(5, 5)"),
        ("file=wrong.png", "5x5 pixels, the model's images are 8x8"),
        ("data=waves", "(1, 64)"),
        ("class=3", "class"),
        ("budgit=3", "budgit"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(restore, tmp_path, checkpoint, override, said):
    from PIL import Image

    np.save(tmp_path / "wrong.npy", np.zeros((5, 5)))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "wrong.png")
    status, _, err = restore(TINY, *FEW, *override.split())
    assert status not in (0, None)
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("results.json"))


def test_without_noise_the_residual_itself_is_shown(restore, tmp_path, checkpoint):
    status, out, err = restore(TINY, *FEW, "method=[ddnm,diffpir]", "noise=0", "task=superres")
    assert status == 0, err
    assert "residual" in out
    assert all(row["misfit"] < 1e-3 for row in results(tmp_path / "run")["rows"])


def test_the_prior_may_be_guided_to_a_class(restore, tmp_path):
    words = [*FEW, "model={path:digits_classes}", "method=pigdm", "n=2", "measurements=1", "nfe=6"]
    for name, more in (("plain", []), ("guided", ["guidance=4"])):
        status, _, err = restore(*words, "class=3", *more, f"output={name}")
        assert status == 0, err
    plain, guided = (results(tmp_path / name)["rows"][0] for name in ("plain", "guided"))
    assert plain["nfe"] == guided["nfe"] == 6  # two evaluations in each of three steps
    assert guided["rmse_of_mean"] != plain["rmse_of_mean"]


def test_the_default_restoration_takes_less_than_three_minutes_at_700_images_a_second():
    """Even if MMPS takes all the products that it may; a product takes as long as 1.5 evaluations."""
    from hydra import compose, initialize_config_dir

    from sde_toolkit.cli.measured import methods_of
    from sde_toolkit.cli.parts import load_model

    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("restore")
    assert load_model(config)[0].event_shape == (1, 28, 28)
    products = [getattr(method, "max_iterations", 1) for method in methods_of(config).values()]
    evaluations = 16 * config.measurements * config.nfe * sum(1 + 1.5 * count for count in products)
    assert evaluations <= 170 * 700


@pytest.mark.parametrize("group", ["method", "task"])
def test_every_choice_can_be_built(group):
    from sde_toolkit.cli.setup import instantiate

    files = sorted((config_directory() / group).glob("*.yaml"))
    assert len(files) > 3
    for file in files:
        from omegaconf import OmegaConf

        made = instantiate(OmegaConf.load(file))
        assert callable(getattr(made, {"method": "estimate", "task": "operator"}[group], made))


def test_help_shows_examples_and_choices(restore):
    status, out, _ = restore("--help")
    assert status in (0, None)
    for word in ("superres", "sigma_dps", "uniform_lambda", "outputs/restore", "torchrun"):
        assert word in out


def test_compare_has_a_row_for_each_method_and_every_sample_a_measurement_of_its_own(command, tmp_path):
    """On fresh truths, exact posterior samples have the law of the data; those of a method that ignores y do not."""
    words = ["task=inpaint", "method=[mmps,ddnm]", "solver=dpmpp_2m_sde", "grid=karras", "budgets=[20]", "n=300"]
    words += ["noise=1", "n_real=1000", "progress=false", "output=run"]
    status, _, err = command("compare", MIXTURE, *words)
    assert status == 0, err
    rows = {row["solver"]: row for row in results(tmp_path / "run")["rows"]}
    assert set(rows) == {"dpmpp_2m_sde, mmps", "dpmpp_2m_sde, ddnm"}
    assert rows["dpmpp_2m_sde, mmps"]["sliced_wasserstein"] < 0.6 * rows["dpmpp_2m_sde, ddnm"]["sliced_wasserstein"]
    assert {row["nfe"] for row in rows.values()} == {20}


def test_what_was_measured_is_not_among_the_real_data(tmp_path, checkpoint, command):
    words = ["task=blur", "method=ddnm", "solver=ddim", "budgets=[3]", "n=50", "progress=false", "output=run"]
    status, _, err = command("compare", TINY, *words)
    assert status == 0, err
    real = results(tmp_path / "run")["real_data"]
    assert real["count"] == 297 - 50
    assert "without the 50 that were measured" in real["source"]


def test_step_operators_are_rows_of_a_comparison(command, tmp_path):
    """Each on its own grid, every sample with a measurement of its own, and what RePaint is told stays."""
    words = ["task=inpaint", "method=[mmps,dps,ddrm,repaint,daps]", "solver=ddpm", "budgets=[20]", "n=8", "n_real=60"]
    status, out, err = command("compare", MIXTURE, *words, "noise=0.001", "progress=false", "output=run", "grid=karras")
    assert status == 0, err
    rows = {row["solver"]: row for row in results(tmp_path / "run")["rows"]}
    assert set(rows) == {"ddpm, mmps", "dps", "ddrm", "repaint", "daps"}
    assert all(row["nfe"] == 20 and not row["failure"] for row in rows.values())
    steps = ("dps", "ddrm", "repaint", "daps")
    assert {name for name, row in rows.items() if row["grid"] == "uniform_to_data"} == set(steps)
    assert all(row["rmse"] is None for row in rows.values())
    assert (rows["dps"]["products"], rows["ddrm"]["products"]) == (20, 0)
    assert "dps (20 at 20)" in out
    model = ring_mixture()
    truth = model.draw(8, generator=torch.Generator().manual_seed(1))
    with np.load(tmp_path / "run/samples.npz") as stored:
        drawn = {name: stored[f"{name}_uniform_to_data_20"] for name in steps}
    known = Inpaint().operator((2,))
    for name in ("repaint", "daps"):
        assert np.allclose(known(torch.from_numpy(drawn[name])), known(truth), atol=0.02), name
    y = Measurement(known, noise_std=0.001).simulate(truth.float(), seed=0)
    for name, solver in {"dps": dps(known), "ddrm": ddrm(model, known, None, 0.001)}.items():
        alone = sample(model, solver, solver.usual_grid(model.sde, 20), shape=(8, 2), condition=y)
        assert np.allclose(drawn[name], alone.data, atol=1e-5), name


def test_step_operators_may_be_the_only_rows(command, tmp_path):
    words = ["task=inpaint", "method=[ddrm]", "budgets=[3,5]", "n=6", "n_real=40", "progress=false", "output=run"]
    status, _, err = command("compare", MIXTURE, *words)
    assert status == 0, err
    assert [(row["solver"], row["nfe"]) for row in results(tmp_path / "run")["rows"]] == [("ddrm", 3), ("ddrm", 5)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("method=mmps", "task=inpaint"),
        ("task=blur", "method=[name,name]"),
        ("task=blur method=mmps noise=x", "noise='x'"),
        ("task=blur method=repaint", "task=inpaint"),
        ("task=inpaint method=daps noise=0", "noise"),
        ("task=inpaint method=repaint budgets=[5]", "at least 10"),
    ],
)
def test_mistakes_of_compare_with_a_task_are_named(command, words, said):
    status, _, err = command("compare", MIXTURE, "output=run", *words.split())
    assert status not in (0, None)
    assert said in err
