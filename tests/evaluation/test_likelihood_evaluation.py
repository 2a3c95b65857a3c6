"""Evaluating a data set: parts that add up to the whole, whoever computes them, and numbers that mean what they say."""

import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch

from sde_toolkit import (
    VESDE,
    VPSDE,
    Affine,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
    Levels,
    ScoreModel,
    UNet,
    bits_per_dim,
    ddim,
    gaussian,
    heun,
)
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.evaluation.density import LikelihoodRequest, Team, evaluate_likelihood, write_likelihood_report
from sde_toolkit.evaluation.density.density_findings import (
    Background,
    likelihood_findings,
    likelihood_table,
    quantities,
    sample_records,
)
from sde_toolkit.evaluation.density.density_request import fingerprint
from sde_toolkit.evaluation.density.evaluating import plan_jobs
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.grids import karras, uniform_lambda
from sde_toolkit.jobs.fingerprints import digest
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.likelihood import ExactTrace, GaussianPrior, Hutchinson, Quadrature, dequantise
from sde_toolkit.likelihood.bounds import discrete_bound, variational_bound

LEVELS = Levels(17, 0.0, 16.0)
BACKGROUND = Background("a test")
SMALL = {
    "levels": LEVELS, "nfe": 6, "quadrature": Quadrature(4), "draws": 2, "elbo_draws": 4, "discrete_steps": 10,
    "discrete_draws": 3, "ends": (1e-3,), "ends_n": 5, "chunk": 4, "divergence": Hutchinson(2),
    "solver": heun(), "grid": karras,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1)
    return ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 17, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def evaluate(model, x, directory, said=None, **settings):
    say = (lambda text: None) if said is None else said.append
    return evaluate_likelihood(model, x, LikelihoodRequest(**settings), directory, say=say)


def same(a, b):
    assert a.values.keys() == b.values.keys()
    for name, value in a.values.items():
        assert np.array_equal(value, b.values[name], equal_nan=True), name
    for one, other in zip([*a.ends, a.finer], [*b.ends, b.finer], strict=True):
        assert np.array_equal(one.nats, other.nats)
    counted = {k for k in a.numbers if not k.endswith("seconds")}
    assert {k: a.numbers[k] for k in counted} == {k: b.numbers[k] for k in counted}


@pytest.fixture(scope="module")
def finished(model, images, tmp_path_factory):
    """What a run found, and the folder it left."""
    folder = tmp_path_factory.mktemp("whole")
    return evaluate(model, images, folder, **SMALL), folder


@pytest.fixture(scope="module")
def whole(finished):
    return finished[0]


@pytest.fixture
def folder(finished, tmp_path):
    """The folder of the run that found ``whole``, a copy of it to change."""
    return shutil.copytree(finished[1], tmp_path / "finished")


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_cut_off_and_taken_up_again_is_the_run(model, images, whole, tmp_path, monkeypatch, after):
    write, done = PartStore.write, []

    def cut_off(store, number, *rest):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(number)
        write(store, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(PartStore, "write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, images, tmp_path, **SMALL)
    said = []
    again = evaluate(model, images, tmp_path, said, **SMALL)
    assert (again.found, again.computed) == (after, 7 - after)  # 3 chunks, 2 parts at the other end, 2 finer
    assert f"{after} of 7 parts" in said[0]
    same(again, whole)


def test_nothing_is_computed_twice(model, images, whole, folder, monkeypatch):
    calls = []
    monkeypatch.setattr(model.network, "forward", lambda *a: calls.append(1))
    same(evaluate(model, images, folder, **SMALL), whole)
    assert not calls


def test_a_folder_from_before_the_exact_trace_was_renamed_continues(tmp_path):
    model, x = gaussian(torch.tensor([0.5, 0.0]), VPSDE(), std=1.0), torch.zeros(2, 2)
    few = {"ends_n": 0, "elbo_draws": 0, "discrete_steps": 0, "nfe": 4}
    earlier = type("Exact", (ExactTrace,), {"__module__": ExactTrace.__module__})
    written = evaluate(model, x, tmp_path, divergence=earlier(), **few)
    again = evaluate(model, x, tmp_path, divergence=ExactTrace(), **few)
    assert again.computed == 0
    assert np.array_equal(again.values["nats"], written.values["nats"])


def damaged_versions(file):
    content = file.read_bytes()
    yield content[: len(content) // 2]
    yield b""
    yield b"nothing of the kind" * 100
    with np.load(file) as part:
        middle = content.index(part["nats"].tobytes()) + 3
    yield content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    yield (file.parent / "00000.npz").read_bytes()  # another part's


def test_a_damaged_part_is_computed_anew_and_said_so(model, images, whole, folder):
    file = folder / "parts" / "00001.npz"
    for content in list(damaged_versions(file)):
        file.write_bytes(content)
        said = []
        again = evaluate(model, images, folder, said, **SMALL)
        assert again.computed == 1
        assert any("00001.npz" in text and "anew" in text for text in said)
        same(again, whole)


def test_the_parts_are_plain_arrays(model, images, whole, folder):
    with np.load(folder / "parts" / "00000.npz", allow_pickle=False) as part:
        assert all(part[name].dtype.kind in "fiuU" for name in part.files)
    assert not list(folder.rglob("*.partial"))


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "x"
    write_atomically(file, b"old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="space"):
        write_atomically(file, b"new, and longer")
    assert file.read_bytes() == b"old"


OTHERWISE = {
    "levels": Levels(18, 0.0, 17.0), "nfe": 7, "end": 1e-4, "solver": ddim(), "grid": uniform_lambda,
    "divergence": Hutchinson(2, "gaussian"), "quadrature": Quadrature(5), "draws": 3, "prior_name": "another",
    "prior": GaussianPrior(VPSDE(), torch.zeros(1, 8, 8), torch.ones(64)), "elbo_draws": 5, "discrete_steps": 11,
    "detail": 0.1, "discrete_draws": None, "ends": (1e-2,), "ends_n": 6, "seed": 1, "chunk": 5, "dtype": torch.float64,
    "condition": torch.arange(10),
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(LikelihoodRequest)])
def test_every_setting_is_part_of_the_fingerprint(model, images, name):
    """A setting that is added without being told apart here fails by its absence from OTHERWISE."""
    one = fingerprint(model, images, LikelihoodRequest(**SMALL))
    other = fingerprint(model, images, LikelihoodRequest(**{**SMALL, name: OTHERWISE[name]}))
    assert digest(one) != digest(other)
    assert digest(one) == digest(fingerprint(model, images, LikelihoodRequest(**SMALL)))


def test_the_fingerprint_knows_weights_data_and_sde(model, images):
    request = LikelihoodRequest(**SMALL)
    one = digest(fingerprint(model, images, request))
    changed = images.clone()
    changed[3, 0, 2, 2] ^= 1
    assert digest(fingerprint(model, changed, request)) != one
    weight = next(model.parameters())
    with torch.no_grad():
        weight[0] += 1e-6
        assert digest(fingerprint(model, images, request)) != one
        weight[0] -= 1e-6
    elsewhere = ScoreModel(model.network, VPSDE(0.1, 19.0), "edm", event_shape=(1, 8, 8), transform=model.transform)
    assert digest(fingerprint(elsewhere, images, request)) != one


def test_a_folder_of_another_run_is_refused_by_what_differs(model, images, folder):
    before = {file: file.read_bytes() for file in folder.rglob("*.npz")}
    with pytest.raises(ArgumentError, match=r"settings.nfe \(6 there, 7 here\).*settings.seed \(0 there, 3 here\)"):
        evaluate(model, images, folder, **{**SMALL, "nfe": 7, "seed": 3})
    with pytest.raises(ArgumentError, match=r"data\.sha256"):
        evaluate(model, images.flip(0), folder, **SMALL)
    assert before == {file: file.read_bytes() for file in folder.rglob("*.npz")}
    (folder / "request.json").write_text("{")
    with pytest.raises(ArgumentError, match="no readable request"):
        evaluate(model, images, folder, **SMALL)


def test_a_folder_where_nothing_was_finished_is_free(model, images, folder):
    for file in folder.rglob("*.npz"):
        file.unlink()
    assert evaluate(model, images, folder, **{**SMALL, "seed": 3}).computed == 7


def test_the_mode_that_was_measured_first_is_kept(model, images, whole, folder):
    content = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    other = {"reverse": "forward", "forward": "reverse"}[content["decided"]["mode"]]
    content["decided"]["mode"] = other
    (folder / "request.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "parts" / "00001.npz").unlink()
    again = evaluate(model, images, folder, **SMALL)
    assert again.rehearsal.mode == again.divergence.mode.__name__ == other
    assert np.allclose(again.values["nats"], whole.values["nats"], atol=1e-2)


def test_jobs_cover_every_sample_once(model):
    for n, chunk, few in ((10, 4, 5), (7, 7, 50), (5, 2, 0), (1, 64, 1)):
        request = LikelihoodRequest(chunk=chunk, ends_n=few, ends=(1e-3, 1e-2))
        jobs = plan_jobs(n, request, model)
        assert [job.number for job in jobs] == list(range(len(jobs)))
        some = min(n, few)
        for how, count in (((None, False), n), ((1e-3, False), some), ((1e-2, False), some), ((None, True), some)):
            covered = [i for job in jobs if (job.end, job.finer) == how for i in range(job.first, job.last)]
            assert covered == list(range(count))


def test_chunks_change_nothing_but_round_off(tmp_path):
    g = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(torch.randn(3, 4, generator=g), VPSDE(), std=0.3)
    x = mixture.draw(9, generator=g)
    settings = {"nfe": 10, "quadrature": Quadrature(8), "elbo_draws": 6, "discrete_steps": 20, "discrete_draws": 5}
    a, b = (evaluate(mixture, x, tmp_path / str(c), chunk=c, ends_n=4, **settings) for c in (2, 9))
    for name, value in a.values.items():
        assert np.allclose(value, b.values[name], rtol=1e-4, atol=1e-4), name


def test_the_table_is_what_the_library_says(model, images, whole):
    request = whole.request
    options = {"seed": request.seed, "levels": LEVELS}
    flow = {"solver": heun(), "grid": karras(model.sde, 3, end=1e-5), "divergence": whole.divergence}
    bits = bits_per_dim(model, images, LEVELS, quadrature=Quadrature(4), draws=2, **flow)
    first, tighter, elbo, discrete = quantities(whole, BACKGROUND)
    assert first.value == pytest.approx(bits.mean, rel=1e-5)
    assert first.estimator == pytest.approx(bits.error_from_probes, rel=1e-3)
    assert first.dequantisation == pytest.approx(bits.error_from_dequantisation, rel=1e-3)
    assert first.data == pytest.approx(bits.error_from_data, rel=1e-3)
    assert tighter.value == pytest.approx(bits.importance_weighted_mean, rel=1e-5)
    one = variational_bound(model, images, draws=4, **options)
    other = discrete_bound(model, images, torch.linspace(1, 0, 11, dtype=torch.float64), draws=3, **options)
    for row, bound in ((elbo, one), (discrete, other)):
        assert row.value == pytest.approx(bound.bits_per_dim.mean().item(), rel=1e-5)
        error = bound.standard_error.square().sum().sqrt().item() / 10 / (64 * math.log(2))
        assert row.estimator == pytest.approx(error, rel=1e-4)
        assert row.evaluations == str(bound.nfe)
        assert row.difference == pytest.approx(row.value - first.value, rel=1e-6)
    lines = sample_records(whole, BACKGROUND)
    assert np.allclose([line["bits_per_dim"] for line in lines], bits.bits, rtol=1e-5)
    assert np.mean([line["bits_per_dim"] for line in lines]) == pytest.approx(first.value)
    assert np.allclose([line["nats"] for line in lines], -bits.bits * 64 * math.log(2), rtol=1e-5)


def test_end_times_are_log_densities_at_those_times(tmp_path):
    """Narrow data, so that it matters: the exact log p_t(x) is known at each of them."""
    narrow = gaussian(torch.tensor([0.3, -0.2, 0.5]), VPSDE(), std=0.02)
    x = narrow.draw(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = {
        "nfe": 120,
        "grid": uniform_lambda,
        "quadrature": Quadrature(40, 0.05),
        "elbo_draws": 0,
        "discrete_steps": 0,
    }
    settings |= {"ends": (1e-2, 1e-3), "dtype": torch.float64, "chunk": 6, "prior": narrow.log_prob}
    found = evaluate(narrow, x, tmp_path, **settings)
    assert [e.end for e in found.ends] == [1e-2, 1e-3, 1e-5]
    exact = {e.end: narrow.log_prob(x, e.end).numpy() for e in found.ends}
    for e in found.ends:
        assert np.allclose(e.nats, exact[e.end], atol=1e-2)
        assert np.allclose(e.shift, exact[e.end] - exact[1e-5], atol=2e-2)
    assert np.abs(exact[1e-2] - exact[1e-5]).max() > 0.5, "the law would hold of a constant"
    finer = np.abs(found.finer.nats - exact[1e-5]).max()
    assert 0 < finer < np.abs(found.ends[-1].nats - exact[1e-5]).max()
    own = found.ends[-1]
    assert np.allclose(own.truncation, exact[1e-5] - narrow.log_prob(x).numpy(), atol=1e-2)


def test_on_an_exact_score_the_rows_agree_with_the_truth(tmp_path):
    g = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(torch.randn(4, 3, generator=g), VPSDE(), std=0.4)
    x = mixture.draw(60, generator=g)
    found = evaluate(mixture, x, tmp_path, nfe=60, elbo_draws=64, discrete_draws=64, chunk=60, ends_n=0)
    known = Background("draws", truth=mixture.log_prob(x.double()))
    flow, elbo, discrete, truth = quantities(found, known)
    assert abs(flow.value - truth.value) < 3e-3
    assert flow.estimator == truth.estimator == 0.0
    assert elbo.difference < 3 * elbo.difference_error
    assert abs(elbo.value - truth.value) < 4 * elbo.estimator + 0.01
    assert discrete.value < truth.value + 3 * discrete.estimator
    assert any("nats per dimension" in sentence for sentence in likelihood_findings(found, known))


def test_the_prior_that_was_asked_for_is_used(tmp_path):
    """A path that ends with much signal left: N(0, σ² I) is wrong by what the mismatch says."""
    data = gaussian(torch.tensor([2.0, 0.0]), VPSDE(0.1, 1.0), std=0.5)
    x = data.draw(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = {"nfe": 60, "elbo_draws": 0, "discrete_steps": 0, "dtype": torch.float64, "chunk": 400, "ends_n": 0}
    settings |= {"quadrature": Quadrature(40)}
    plain = evaluate(data, x, tmp_path / "a", **settings)
    moments = GaussianPrior.of_data(data, x)
    right = evaluate(data, x, tmp_path / "b", prior=moments, prior_name="its moments", **settings)
    gained = (right.values["nats"] - plain.values["nats"]).mean()
    assert gained == pytest.approx(moments.mismatch(1.0), rel=0.05)
    assert gained > 0.3
    assert plain.values["prior_cost"].mean() > gained, "prior_cost is an upper bound"
    assert "its moments" in " ".join(likelihood_findings(right, BACKGROUND))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineVPSDE(), FlowMatching()], ids=lambda sde: type(sde).__name__)
def test_the_path_of_integers_is_followed_down_to_the_data(sde, tmp_path):
    """Data no wider than a level: a grid made for smooth data would leave the path far above it."""
    narrow = gaussian(torch.tensor([0.0, 0.5, -0.5]), sde, std=0.01)
    narrow.transform = Affine(7.5, 1 / 7.5)
    levels = Levels(16, 0.0, 15.0)
    x = levels.at(levels.index(narrow.transform.inverse(narrow.draw(8, generator=torch.Generator().manual_seed(0)))))
    settings = {"levels": levels, "nfe": 64, "quadrature": Quadrature(40), "dtype": torch.float64, "ends_n": 0}
    settings |= {"prior": narrow.log_prob, "elbo_draws": 0, "discrete_steps": 0}
    found = evaluate(narrow, x, tmp_path, **settings)
    (noisy,) = dequantise(x, levels)
    y = narrow.transform.forward(noisy)
    exact = narrow.log_prob(y, sde.likelihood_end) + narrow.transform.log_abs_det((3,))
    error = found.values["nats"][:, 0] - exact.numpy()
    assert (np.abs(error) / np.maximum(1.0, np.abs(exact.numpy()))).max() < 0.02


def test_a_solver_of_ones_own_with_its_grid(model, images, tmp_path):
    settings = {**SMALL, "elbo_draws": 0, "discrete_steps": 0, "ends_n": 0, "draws": 1, "grid": None}
    found = evaluate(model, images, tmp_path, **{**settings, "grid": uniform_lambda, "nfe": 9})
    assert found.numbers["nfe"] == 8
    assert set(found.values) & {"elbo_nats", "discrete_nats"} == set()
    with pytest.raises(ArgumentError, match="grid"):
        evaluate(model, images, tmp_path / "b", **settings)
    with pytest.raises(ArgumentError, match="nfe=1"):
        evaluate(model, images, tmp_path / "b", **{**settings, "grid": uniform_lambda, "nfe": 1})


def test_the_report_says_it_all(model, images, whole, tmp_path):
    known = Background("ten images", torch.arange(100, 110), torch.arange(10))
    page = write_likelihood_report(whole, known, tmp_path, {"model": {"name": "m"}, "command": "c", "machine":
        {"cpu_threads": 1}, "date": "today"})  # fmt: skip
    html, markdown = page.read_text(encoding="utf-8"), (tmp_path / "report.md").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for sentence in likelihood_findings(whole, known):
        assert sentence in markdown
        assert sentence in content["findings"]
    assert "no order in general" in html
    assert html.count("data:image/png;base64,") == 3
    assert 'src="http' not in html
    for name in ("histogram", "extremes", "end_times"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "samples.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["sample"], line["index"], line["label"]) for line in lines[:2]] == [
        ("0", "100", "0"),
        ("1", "101", "1"),
    ]
    assert np.allclose([float(line["nats"]) for line in lines], whole.values["nats"].mean(1), rtol=1e-12)
    assert len({len(line) for line in likelihood_table(whole, known).text().splitlines()}) <= 2


REFUSED = [
    ({"chunk": 0}, "chunk=0"), ({"draws": 0}, "draws=0"), ({"nfe": 0}, "nfe=0"), ({"seed": -1}, "seed=-1"),
    ({"elbo_draws": -1}, "elbo_draws=-1"), ({"discrete_draws": 0}, "discrete_draws=0"), ({"end": 1.0}, "end=1.0"),
    ({"ends": (0.1, 2.0)}, "ends=2.0"), ({"ends": (0.1, 0.1)}, "twice"), ({"ends_n": 1.5}, "ends_n=1.5"),
    ({"levels": None, "draws": 1}, "levels.count=256"), ({"levels": Levels(9, 0.0, 8.0)}, "outside the range"),
    ({"solver": heun(), "grid": lambda sde, steps: None}, "grid"), ({"divergence": ExactTrace(8)}, "ExactTrace"),
]  # fmt: skip


def test_what_does_not_fit_is_refused_and_leaves_the_folder_free(model, images, tmp_path):
    for settings, named in REFUSED:
        with pytest.raises((ArgumentError, DataError), match=named):
            evaluate(model, images, tmp_path, **{**SMALL, **settings})
        assert not list(tmp_path.rglob("*.npz")), named
    assert evaluate(model, images, tmp_path, **SMALL).computed == 7


def test_draws_are_for_levels(model, images, tmp_path):
    with pytest.raises(ArgumentError, match="draws=2"):
        evaluate(model, images.float(), tmp_path, **{**SMALL, "levels": None})


def test_alone_there_is_nobody_to_wait_for(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    team = Team.join()
    assert team.main
    assert team.agree({"a": 1}) == {"a": 1}
    team.wait()
    team.leave()


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"sde-toolkit\[launch\]"):
        Team.join()
