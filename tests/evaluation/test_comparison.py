"""Solvers are compared at budgets that are kept, from the same noise, and the files say what was measured."""

import itertools
import json
import math
import sys
import tracemalloc

import numpy as np
import pytest
import torch

import sde_toolkit
from sde_toolkit import (
    VESDE,
    VPSDE,
    Affine,
    FlowMatching,
    GaussianMixture,
    Identity,
    ScoreModel,
    SubVPSDE,
    auto,
    ddim,
    ddpm,
    euler_maruyama,
    grids,
    probability_flow,
    sample,
)
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError
from sde_toolkit.evaluation import planned_run
from sde_toolkit.evaluation.candidates import USUAL_SOLVERS
from sde_toolkit.evaluation.comparison import compare_in_team, compare_solvers
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.comparison_tables import comparison_table
from sde_toolkit.evaluation.endpoint import flow_endpoint
from sde_toolkit.evaluation.findings import comparison_findings
from sde_toolkit.guidance import UNCONDITIONAL, cfg_plus_plus, dps, posterior
from sde_toolkit.integrators import Euler, Heun
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.distances import Plausible
from sde_toolkit.metrics.judge import Judge, classifier_features, exact_features, flat_features
from sde_toolkit.metrics.kernels import KernelDistance, kernel_distance
from sde_toolkit.metrics.sliced import SlicedWasserstein
from sde_toolkit.models import clip_x0
from sde_toolkit.sampling import ForeignSolver, usual_plan

SOLVERS = {
    "em": euler_maruyama(),
    "euler": probability_flow(Euler()),
    "heun": probability_flow(Heun()),
    "ddpm": ddpm(),
    "ddim": ddim(),
}


def ring(sde=None):
    angles = torch.arange(4) * (math.pi / 2)
    means = torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(means, sde or VPSDE(), std=0.2)


def disc():
    """One mode: an exact flow without the many steps that the borders between modes take."""
    return GaussianMixture(torch.tensor([[0.3, -0.2]]), VPSDE(), std=0.9)


def judge_of(model, n, n_real=200, **options):
    real = model.draw(n_real, generator=torch.Generator().manual_seed(9))
    return quick_judge(real, n, exact_features(model, real), splits=3, **options)


def quick_judge(real, n, features, projections=16, seed=0, **options):
    """With few directions."""
    return Judge(real, n, features, metrics=features.usual_metrics(seed, projections), seed=seed, **options)


METRICS = {metric.name: metric for metric in (SlicedWasserstein(), KernelDistance(), Plausible("p", "p"))}


@pytest.fixture(scope="module")
def compared():
    model = ring()
    return compare_solvers(model, SOLVERS, [5, 8], n=40, judge=judge_of(model, 40), endpoint_n=12, batch_size=16)


def test_budgets_are_used_and_never_exceeded(compared):
    assert [row.budget for row in compared.rows] == [5] * 5 + [8] * 5
    for row in compared.rows:
        assert row.nfe <= row.budget
        assert row.nfe == row.budget or (row.solver == "heun" and row.nfe == row.budget - 1)
        assert row.tweedie


def test_every_solver_starts_from_the_same_noise(monkeypatch):
    starts = []

    def spy(*args, **options):
        done = real_sample(*args, trajectory=True, **options)
        starts.append(done.trajectory[0])
        return done

    real_sample = planned_run.sample
    monkeypatch.setattr(planned_run, "sample", spy)
    compare_solvers(ring(), SOLVERS, [4], n=6, endpoint_n=0, batch_size=4)
    assert [len(start) for start in starts] == [4] * 5 + [2] * 5  # the rows take turns
    first, second = starts[0], starts[5]
    assert all(torch.equal(start, first) for start in starts[:5])
    assert all(torch.equal(start, second) for start in starts[5:])
    assert not torch.equal(first[:2], second)


def test_the_endpoint_starts_from_that_noise_too():
    model = ring()
    fine = compare_solvers(model, {"heun": probability_flow()}, [401], n=8, seed=3, endpoint_n=8, references=False)
    other = compare_solvers(model, {"heun": probability_flow()}, [401], n=8, seed=4, endpoint_n=0)
    assert fine.endpoint.error.value < 1e-8
    assert fine.rows[0].measured["rmse"].value < 1e-3
    assert (other.samples[0] - fine.endpoint_data).square().mean().sqrt() > 0.1


def test_batches_change_no_endpoint_and_no_sample():
    model, heun = disc(), {"heun": probability_flow()}
    options = {"n": 6, "seed": 3, "endpoint_n": 6, "references": False}
    whole, parts = (compare_solvers(model, heun, [9], batch_size=size, **options) for size in (None, 3))
    assert torch.equal(whole.samples[0], parts.samples[0])
    assert torch.allclose(whole.endpoint.x, parts.endpoint.x, atol=1e-6)  # dopri5's steps depend on the batch
    assert whole.endpoint.x[3:].std() > 0.3


def test_a_condition_goes_with_its_samples():
    class Network(torch.nn.Module):
        def forward(self, x, time, condition=None):
            return x - condition.unsqueeze(1).float()

    model = ScoreModel(Network(), VPSDE(), "x0", event_shape=(2,))
    labels = torch.arange(7)
    got = compare_solvers(
        model,
        {"ddim": ddim(), "ddpm": ddpm()},
        [5],
        n=7,
        endpoint_n=5,
        endpoint_steps=40,
        batch_size=3,
        condition=labels,
    )
    grid = grids.uniform(model.sde, 4)
    expected = sample(model, ddim(), grid, shape=(7, 2), condition=labels, tweedie=True).x
    assert torch.allclose(got.samples[0], expected, atol=1e-5)
    assert torch.allclose(got.endpoint.x, flow_endpoint(model, 5, steps=40, condition=labels[:5]).x, atol=1e-5)
    with pytest.raises(ArgumentError, match="6 rows for 7 samples"):
        compare_solvers(model, {"ddim": ddim()}, [5], n=7, condition=labels[:6])


def test_dropout_in_training_mode_is_refused():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.1))
    model = ScoreModel(network, VPSDE(), event_shape=(3,), time_input=lambda sde, t: t)
    network.forward = lambda x, time: x
    with pytest.raises(ArgumentError, match=r"model\.eval\(\)"):
        compare_solvers(model, {"ddim": ddim()}, [3], n=4)
    compare_solvers(model.eval(), {"ddim": ddim()}, [3], n=4, endpoint_n=0)


def test_only_deterministic_rows_have_an_endpoint(compared):
    assert {row.solver for row in compared.rows if "rmse" not in row.measured} == {"em", "ddpm"}


def test_the_same_seed_gives_the_same_numbers():
    model = ring()

    def measured(seed):
        got = compare_solvers(model, SOLVERS, [4], n=20, seed=seed, judge=judge_of(model, 20), endpoint_n=0)
        return [(row.solver, row.nfe, row.measured) for row in got.rows]

    assert measured(0) == measured(0)
    assert measured(0) != measured(1)


@pytest.mark.parametrize("sde", [VESDE(), SubVPSDE()])
def test_other_processes(sde):
    model = ring(sde)
    judge = judge_of(model, 50)
    got = compare_solvers(model, {"ddpm": ddpm(), "ddim": ddim()}, [60], n=50, endpoint_n=0, judge=judge)
    assert [row.nfe for row in got.rows] == [60, 60]
    assert all(row.measured["plausible"].value > 0.8 for row in got.rows)


def test_a_grid_that_ends_at_the_data_needs_no_denoising():
    def to_data(sde, steps):
        return grids.uniform(sde, steps, end=0.0)

    got = compare_solvers(ring(), {"ddim": ddim()}, [5], grids={"to data": to_data}, n=4, endpoint_n=0)
    (row,) = got.rows
    assert (row.nfe, row.tweedie, len(row.times)) == (5, False, 6)
    with pytest.raises(ArgumentError, match="heun"):
        compare_solvers(ring(), {"heun": probability_flow()}, [5], grids={"to data": to_data}, n=4)


def test_a_solver_that_diverges_is_a_row_that_says_so():
    model = ScoreModel(lambda x, t: x * 1e30, VPSDE(), event_shape=(3,))
    got = compare_solvers(model, {"ddim": ddim(), "em": euler_maruyama()}, [8], n=4, endpoint_n=0)
    assert all("not finite" in row.failure for row in got.rows)
    assert "Diverged" in " ".join(comparison_findings(got))
    assert "diverged" in comparison_table(got).text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budgets": []}, "budgets"),
        ({"budgets": [0]}, "budgets"),
        ({"budgets": ["10"]}, "budgets"),
        ({"budgets": [5, 5]}, "budgets"),
        ({"budgets": [True]}, "budgets"),
        ({"budgets": [2]}, "heun needs at least 3"),
        ({"n": 1}, "n=1"),
        ({"budgets": 5}, "budgets=5"),
        ({"budgets": "5"}, "budgets"),
        ({"solvers": {}}, "solvers"),
        ({"solvers": ["nope"]}, r"solvers\[0\].*euler_maruyama"),
        ({"solvers": {"x": ddim}}, r"Call it: ddim\(\)"),
        ({"solvers": {"x": lambda model, budget: 3}}, "returned int, not a Plan"),
        ({"solvers": [ddim(), ddim()]}, "two of them are called"),
        ({"solvers": 3}, r"solvers\[0\]=3"),
        ({"grids": {"x": [1.0, 0.5]}}, "grids"),
        ({"grids": []}, "grids"),
        ({"judge": torch.zeros(8, 2)}, r"judge='Tensor'.*Judge\("),
        ({"judge": judge_of(GaussianMixture(torch.zeros(1, 3), VPSDE(), std=1.0), 4)}, r"judge.*\(3,\)"),
        ({"judge": judge_of(ring(), 8)}, "judge.*8 samples"),
        ({"model": torch.nn.Identity()}, "ScoreModel"),
        ({"solvers": {"x": "ddims"}}, r"solvers\['x'\]"),
        (
            {"solvers": {"x": lambda model, budget: usual_plan(model, ddim(), nfe=budget + 1)}},
            "a plan of 6 evaluations",
        ),
        ({"seeds": 0}, "seeds=0"),
        ({"model": {}}, "names of models"),
        ({"model": {"a": ring(), "b": GaussianMixture(torch.zeros(1, 3), VPSDE(), std=1.0)}}, r"\(3,\)"),
        ({"model": ScoreModel(torch.nn.Identity(), VPSDE())}, "event_shape"),
    ],
)
def test_bad_requests_are_refused_before_any_evaluation(change, said):
    request = {"model": ring(), "solvers": SOLVERS, "budgets": [5], "n": 4} | change
    calls, given = [], request["model"]
    for model in given.values() if isinstance(given, dict) else [given]:
        getattr(model, "network", model).register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ArgumentError, match=said):
        compare_solvers(**request)
    assert not calls


def test_solvers_bear_their_own_names_where_nobody_named_them():
    named = compare_solvers(ring(), {"ddim": ddim(), "auto": auto, "ddpm": ddpm()}, [5], n=4, endpoint_n=0)
    listed = compare_solvers(ring(), [ddim(), "auto", ddpm()], [5], n=4, endpoint_n=0, grids=grids.uniform)
    assert [row.solver for row in named.rows] == ["ddim", "auto", "ddpm"]
    assert [row.solver for row in listed.rows] == ["ddim", "ddpm", "auto"]  # one grid for all: planners come after it
    assert all(torch.equal(named.samples[i], listed.samples[j]) for i, j in ((0, 0), (1, 2), (2, 1)))
    presets = compare_solvers(ring(), ["ddim", "auto", "ddpm"], [5], n=4, endpoint_n=0)
    assert [row.solver for row in presets.rows] == ["ddim", "auto", "ddpm"]
    assert all(torch.equal(a, b) for a, b in zip(named.samples, presets.samples, strict=True))
    alone = compare_solvers(ring(), "auto", [5], n=4, endpoint_n=0)
    assert torch.equal(alone.samples[0], named.samples[1])
    assert compare_solvers(ring(), ddim(), [5], n=4, endpoint_n=0).rows[0].solver == "ddim"


# The judge


def test_real_samples_reach_the_floor_and_noise_does_not():
    model = ring()
    judge = judge_of(model, 60, n_real=400)
    scores = judge(model.draw(60, generator=torch.Generator().manual_seed(5)))
    noise = judge(torch.randn(60, 2, generator=torch.Generator().manual_seed(6)) * 2)
    assert METRICS["kernel_distance"].reaches(scores["kernel_distance"], judge.floor["kernel_distance"])
    assert METRICS["sliced_wasserstein"].reaches(scores["sliced_wasserstein"], judge.floor["sliced_wasserstein"])
    assert scores["plausible"].value > 0.9
    assert not METRICS["kernel_distance"].reaches(noise["kernel_distance"], judge.floor["kernel_distance"])
    assert not METRICS["sliced_wasserstein"].reaches(noise["sliced_wasserstein"], judge.floor["sliced_wasserstein"])
    assert noise["plausible"].value < 0.8


def test_fresh_real_samples_are_at_the_floor_up_to_the_errors_that_are_stated():
    """Over many data sets: distances of real samples scatter about the floor by the stated error, no more, no less."""
    model, found = ring(), {"kernel_distance": [], "sliced_wasserstein": []}
    within = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(1000 + seed)
        real = model.draw(200, generator=generator)
        judge = quick_judge(real, 50, exact_features(model, real), splits=3, seed=seed)
        scores = judge(model.draw(50, generator=generator))
        for name, ratios in found.items():
            row, floor = scores[name], judge.floor[name]
            ratios.append((row.value - floor.value) / math.hypot(row.error, floor.error))
            within.append(METRICS[name].reaches(row, floor))
    assert sum(within) >= 0.9 * len(within)
    for ratios in found.values():
        assert abs(np.mean(ratios)) < 0.4
        assert 0.5 < np.std(ratios) < 1.3


def test_the_kernel_distances_are_those_of_the_splits():
    """From sums prepared once, without the matrix of all pairs."""
    real, samples = torch.randn(1500, 2, 3), torch.randn(700, 2, 3) + 0.3
    judge = quick_judge(real, 700, flat_features(Identity(), real), splits=3, projections=4)
    x, y, kernel = judge.features.extract(samples)[0], judge.features.extract(real)[0], judge.features.kernel
    rng = np.random.default_rng(0)
    parts = [np.split(rng.permutation(1500), [700]) for _ in range(3)]
    found = judge(samples)["kernel_distance"]
    first = kernel_distance(x, y[parts[0][1]], kernel)
    assert found.value == pytest.approx(np.mean([kernel_distance(x, y[b], kernel).value for _, b in parts]), rel=1e-6)
    assert found.error == pytest.approx(first.error, rel=1e-6)
    floor = [kernel_distance(y[a], y[b], kernel).value for a, b in parts]
    assert judge.floor["kernel_distance"].value == pytest.approx(np.mean(floor), rel=1e-6)
    assert judge.floor["kernel_distance"].error == pytest.approx(np.std(floor, ddof=1), rel=1e-6)


def test_a_judge_of_many_samples_holds_no_matrix_of_all_pairs():
    real = torch.randn(6000, 2)
    tracemalloc.start()
    quick_judge(real, 1000, flat_features(Identity(), real), splits=2, projections=4)(real[:1000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.75 * 6000**2 * 8


def test_few_real_samples_limit_what_is_judged():
    model = ring()
    real = model.draw(31)
    judge = quick_judge(real, 500, flat_features(model.transform, real), splits=2, projections=4)
    assert judge.n == 15
    assert "plausible" not in judge(model.draw(500))


def test_digits_are_judged_by_the_classifier():
    from sde_toolkit.data import mnist_test_images

    real = mnist_test_images().test[:120]
    judge = quick_judge(real, 40, classifier_features(), splits=2, projections=16)
    noise = judge(torch.rand(40, 1, 28, 28) * 255)
    assert judge.floor["plausible"].value > 0.9
    assert noise["plausible"].value < 0.5
    assert not METRICS["sliced_wasserstein"].reaches(noise["sliced_wasserstein"], judge.floor["sliced_wasserstein"])


def test_bad_judges_are_refused():
    model = ring()
    real = model.draw(10)
    features = flat_features(model.transform, real)
    with pytest.raises(DataError, match="real"):
        Judge(real[:3], 2, features)
    with pytest.raises(ArgumentError, match="n=1"):
        Judge(real, 1, features)
    with pytest.raises(ArgumentError, match="splits"):
        Judge(real, 4, features, splits=1)
    with pytest.raises(DataError, match="samples"):
        quick_judge(real, 4, features, splits=2, projections=2)(real[:2])


@pytest.mark.parametrize("solver", [ddim(), probability_flow()], ids=lambda solver: solver.name)
def test_a_run_is_the_usual_plan_of_its_budget(solver):
    """One rule from a budget to a grid, also where α(1) = 0 and a solver cannot start there."""
    model = ring(FlowMatching())
    plan = usual_plan(model, solver, nfe=9, build=grids.uniform_lambda)
    (row,) = compare_solvers(model, solver, [9], grids=grids.uniform_lambda, n=4, endpoint_n=0).rows
    assert row.times == tuple(plan.grid.tolist())
    assert row.tweedie == plan.tweedie
    assert row.times[0] < 1


# One call


def counted(model):
    """The model, and a list that grows with each evaluation of its network."""
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    return model, calls


def euler(denoise, sigmas, x, rng):
    for r, s in itertools.pairwise(sigmas):
        x = x + (s - r) * (x - denoise(x, r)) / r
    return x


def test_one_call_makes_judge_metrics_and_report(tmp_path):
    model = ring()
    real = model.draw(120, generator=torch.Generator().manual_seed(1))
    options = {"n": 30, "endpoint_n": 0, "references": False}
    by_hand = compare_solvers(model, ["ddim"], [5], judge=Judge(real, 30, exact_features(model, real)), **options)
    spread = {"spread": lambda generated, real: abs(generated.std() - real.std())}
    for data, to in ((real, None), (real.numpy(), tmp_path / "run")):
        got = compare_solvers(model, ["ddim"], [5], data=data, metrics=spread, to=to, **options)
        (row,), (expected,) = got.rows, by_hand.rows
        assert {name: row.measured[name] for name in expected.measured} == expected.measured
        assert row.measured["spread"].value >= 0
    content = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert content["provenance"]["model"]["description"]
    assert content["rows"][0]["spread"] == row.measured["spread"].value


def fails(*arguments):
    raise RuntimeError("my own mistake")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"data": torch.zeros(9, 3)}, DataError, r"\(3,\)"),
        ({"data": torch.zeros(3, 2)}, DataError, "fewer than 4"),
        ({"data": "digits"}, DataError, "not real samples"),
        ({"data": torch.full((9, 2), torch.nan)}, DataError, "finite"),
        ({"data": torch.zeros(9, 2), "features": "classifier"}, ArgumentError, "features"),
        ({"data": torch.zeros(9, 2), "features": "looks"}, ArgumentError, "features"),
        ({"data": torch.zeros(9, 2), "judge": judge_of(ring(), 4)}, ArgumentError, "judge= and data="),
        ({"metrics": {"mine": fails}}, ArgumentError, "real samples"),
        ({"metrics": [SlicedWasserstein()]}, ArgumentError, "real samples"),
        ({"metrics": {"nfe": fails}}, ArgumentError, "nfe"),
        ({"metrics": {"mine": fails}, "data": torch.randn(9, 2)}, RuntimeError, "my own mistake"),
        ({"metrics": {"mine": lambda x, y: "good"}, "data": torch.randn(9, 2)}, ArgumentError, "number"),
        ({"solvers": {"mine": lambda denoise, sigmas, x, rng: fails()}}, RuntimeError, "my own mistake"),
        ({"solvers": {"mine": lambda denoise, sigmas, x, rng: None}}, ArgumentError, "mine"),
        ({"to": ""}, ArgumentError, "to="),
        ({"to": 3}, ArgumentError, "to=3"),
        ({"to": "FILE/report"}, ArgumentError, "is a file"),
        ({"references": "no"}, ArgumentError, "references"),
        ({"seed": -1}, ArgumentError, "seed=-1"),
        ({"seed": 2**64 - 1, "seeds": 2}, ArgumentError, "64 bits"),
        ({"endpoint_n": -1}, ArgumentError, "endpoint_n"),
        ({"endpoint_steps": 0}, ArgumentError, "endpoint_steps"),
        ({"device": "nowhere"}, ArgumentError, "device"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"n": 2**60}, ArgumentError, "n="),
        ({"condition": torch.zeros(3, 1)}, ArgumentError, "condition"),
        ({"solvers": {"ddim": ddim(), "dps": dps(torch.eye(2))}}, ArgumentError, "needs its own"),
        (
            {"model": lambda m: {"a": m, "b": posterior(m, torch.eye(2), noise_std=0.1)}, "references": False},
            ArgumentError,
            "needs its own",
        ),
        ({"solvers": {"guided": cfg_plus_plus(0.5)}}, ArgumentError, "cannot sample this model"),
        ({"progress": "off"}, ArgumentError, "progress"),
        ({"check_declaration": 1}, ArgumentError, "check_declaration"),
        ({"n_real": 0, "data": torch.zeros(9, 2)}, ArgumentError, "n_real"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_first_evaluation(options, error, said, tmp_path):
    (tmp_path / "file").touch()
    if options.get("to") == "FILE/report":
        options = {"to": tmp_path / "file/report"}
    model, calls = counted(ring())
    models = options.get("model", lambda alone: alone)(model)
    with pytest.raises(error, match=said):
        compare_solvers(**{"solvers": "ddim", "budgets": [4], "n": 4, **options, "model": models})
    assert not calls


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_of_the_report_is_named_before_the_first_evaluation(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    model, calls = counted(ring())
    with pytest.raises(MissingDependencyError, match=package):
        compare_solvers(model, "ddim", [4], n=4, to=tmp_path)
    assert not calls


def test_the_usual_rows_run_on_their_own_grids():
    model = ring(FlowMatching())
    got = compare_solvers(model, budgets=[6], n=4, endpoint_n=0, references=False)
    assert [row.solver for row in got.rows] == list(USUAL_SOLVERS)
    assert {row.grid_set for row in got.rows} == {"usual"}
    for row in got.rows:
        assert not row.failure
        assert row.nfe <= 6
        if row.solver == "auto":
            plan, usual = auto(model, 6), "its own"
        else:
            solver = getattr(sde_toolkit, row.solver)()
            plan, usual = usual_plan(model, solver, nfe=6), solver.usual_grid.__name__
        assert (row.times, row.tweedie, row.grid) == (tuple(plan.grid.tolist()), plan.tweedie, usual)
        assert got.label(row) == row.solver


def test_a_users_function_that_implements_a_preset_draws_its_samples():
    model = disc()
    solvers = {"ddim": ddim(), "mine": euler, "again": ForeignSolver("x", euler, grid=grids.uniform)}
    got = compare_solvers(
        model, solvers, [4, 9], grids=grids.uniform, n=7, batch_size=3, endpoint_n=2, references=False
    )
    for budget in (4, 9):
        ours, *theirs = (k for k, row in enumerate(got.rows) if row.budget == budget)
        for k in theirs:
            assert torch.allclose(got.samples[k], got.samples[ours], atol=1e-4)
            assert got.rows[k].nfe == got.rows[ours].nfe == budget
            assert got.rows[k].measured["rmse"].value == pytest.approx(got.rows[ours].measured["rmse"].value, rel=1e-3)
    whole = compare_solvers(model, {"mine": euler}, [4], grids=grids.uniform, n=7, batch_size=None, endpoint_n=0)
    assert torch.equal(whole.samples[0], got.samples[1])


def test_a_foreign_solver_that_fails_in_the_run_is_a_row_with_its_reason():
    def picky(denoise, sigmas, x, rng):
        if len(x) == 5:  # not in the rehearsal
            raise ValueError("no fives")
        return euler(denoise, sigmas, x, rng)

    got = compare_solvers(ring(), {"mine": picky, "ddim": ddim()}, [4], n=5, endpoint_n=0)
    mine, ours = got.rows
    assert "ValueError: no fives" in mine.failure
    assert "test_comparison.py" in mine.failure
    assert not ours.failure


# Several seeds, several models, time


def test_the_mean_over_seeds_is_that_of_the_single_runs():
    model, options = shrinking(0.5), {"n": 30, "endpoint_n": 2, "endpoint_steps": 3, "batch_size": 16}
    options |= {"references": False, "check_declaration": False}
    real = torch.randn(100, 2, generator=torch.Generator().manual_seed(3))
    judge = quick_judge(real, 30, flat_features(model.transform, real), splits=3)
    solvers = ["ddim", "ddpm"]
    alone = [compare_solvers(model, solvers, [5], seed=seed, judge=judge, **options) for seed in (4, 5)]
    together = compare_solvers(model, solvers, [5], seed=4, seeds=2, judge=judge, **options)
    for k, row in enumerate(together.rows):
        for name, found in row.measured.items():
            single = [one.rows[k].measured[name] for one in alone]
            assert found.value == pytest.approx(np.mean([each.value for each in single]))
            spread = np.std([each.value for each in single], ddof=1)
            least = max(spread, math.sqrt(np.mean([each.error**2 for each in single]))) / math.sqrt(2)
            assert found.error == pytest.approx(least)
        assert all(torch.equal(x, one.draws[k][0]) for x, one in zip(together.draws[k], alone, strict=True))


def test_seeds_make_errors_smaller_and_cover_the_truth():
    """Many samples give the value; three seeds of few samples lie about it as their error says."""
    model = ring()
    judge = judge_of(model, 40, n_real=400)
    (truth,) = compare_solvers(model, ddpm(), [5], n=40, seed=50, seeds=40, judge=judge, endpoint_n=0).rows
    far = []
    for seed in range(12):
        (row,) = compare_solvers(model, ddpm(), [5], n=40, seed=3 * seed, seeds=3, judge=judge, endpoint_n=0).rows
        found = row.measured["sliced_wasserstein"]
        far.append((found.value - truth.measured["sliced_wasserstein"].value) / found.error)
    assert 0.3 < np.sqrt(np.mean(np.square(far))) < 1.7


def shrinking(factor, scale=1.0):
    """A network that answers x̂_0 = factor · x."""
    network = torch.nn.Sequential()
    network.forward = lambda x, time: factor * x
    return ScoreModel(network, VPSDE(), "x0", event_shape=(2,), transform=Affine(1.0, scale)).eval()


def test_every_model_has_its_rows_and_its_own_exact_flow():
    wide, narrow = shrinking(0.5), shrinking(0.1)
    options = {"n": 4, "endpoint_n": 2, "endpoint_steps": 3, "references": False}
    both = compare_solvers({"wide": wide, "narrow": narrow}, ["ddim", "ddpm"], [5], **options)
    assert [row.solver for row in both.rows] == ["ddim, wide", "ddpm, wide", "ddim, narrow", "ddpm, narrow"]
    assert [row.model for row in both.rows] == ["wide"] * 2 + ["narrow"] * 2
    for k, (name, model) in enumerate({"wide": wide, "narrow": narrow}.items()):
        alone = compare_solvers(model, ["ddim", "ddpm"], [5], **options)
        assert torch.equal(both.samples[2 * k], alone.samples[0])
        assert both.rows[2 * k].measured == alone.rows[0].measured
        assert torch.equal(both.endpoints[name][0].x, alone.endpoint.x)


def test_every_model_has_its_own_data_space():
    models = {"one": shrinking(0.5), "other": shrinking(0.5, 0.25)}
    got = compare_solvers(models, "ddim", [4], n=4, endpoint_n=0)
    one, other = got.samples
    assert torch.equal(got.draws[0][0], got.draws[1][0])
    assert torch.allclose(other - 1, 4 * (one - 1), atol=1e-5)


def test_a_step_operator_is_a_row_that_has_no_exact_flow():
    """It samples from something else than its model: the flow of the model is no truth for it, nor is its network."""

    class Network(torch.nn.Module):
        def forward(self, x, time, condition=None):
            return 0.5 * x + (0.0 if condition is None else condition.unsqueeze(1).to(x.dtype))

    model = ScoreModel(Network(), VPSDE(), "x0", event_shape=(2,)).eval()
    real, y = torch.randn(40, 2, generator=torch.Generator().manual_seed(3)), torch.tensor([0.5])
    A = torch.tensor([[1.0, 0.0]])
    solvers = {
        "ddim": ddim(),
        "ddpm": ddpm(),
        "dps": dps(A, y, eta=0.0),
        "guided": cfg_plus_plus(0.5, no_class=UNCONDITIONAL),
    }
    options = {"condition": torch.arange(8.0), "endpoint_n": 4, "endpoint_steps": 4}
    found = compare_solvers(model, solvers, [4, 7], data=real, n=8, **options)
    rows = {(row.solver, row.budget): row for row in found.rows}
    assert ("rmse" in rows["ddim", 4].measured, "rmse" in rows["dps", 4].measured) == (True, False)
    assert {name: (rows[name, 7].nfe, rows[name, 7].products) for name in solvers} == {
        "ddim": (7, 0), "ddpm": (7, 0), "dps": (7, 7), "guided": (7, 0)
    }  # fmt: skip
    for k, parts in found.error_parts.items():
        known = [part for of in parts.values() for part in vars(of).values() if part is not None]
        assert bool(known) == (found.rows[k].solver in ("ddim", "ddpm"))
    assert any("dps" in said and "seconds" in said for said in comparison_findings(found))
    grid, options = solvers["dps"].usual_grid(model.sde, 4), {"shape": (8, 2), "condition": options["condition"]}
    assert torch.equal(found.samples[2], sample(model, solvers["dps"], grid, **options).data)


def test_a_clipped_model_is_compared_by_name():
    model = ring()
    models = {"plain": model, "clipped": clip_x0(model, -1.0, 1.0)}
    got = compare_solvers(models, ["ddim", "ddpm"], [4], n=8, endpoint_n=0)
    expected = sample(models["clipped"], ddim(), grids.uniform(model.sde, 3), shape=(8, 2), tweedie=True).data
    assert torch.equal(got.samples[2], expected)


def test_rows_take_turns_and_the_first_batch_is_not_timed(monkeypatch):
    order, clock = [], iter(range(1000))

    def draw(self, model, batch):
        order.append((self.name, batch.first))
        return planned_run.DrawnBatch(torch.zeros(batch.size, 2), 4, float(next(clock)), math.nan)

    monkeypatch.setattr(planned_run.SolverRun, "draw", draw)
    got = compare_solvers(ring(), ["ddim", "ddpm"], [4], n=11, batch_size=3, endpoint_n=0)
    assert order == [(name, first) for first in (0, 3, 6, 9) for name in ("ddim", "ddpm")]
    ddim_row, ddpm_row = got.rows  # their batches take 0, 2, 4, 6 and 1, 3, 5, 7 seconds; the last ones are smaller
    assert (ddim_row.timing.median_seconds, ddpm_row.timing.median_seconds) == (3.0, 4.0)
    assert (ddim_row.timing.low, ddim_row.timing.high, ddim_row.timing.batches) == (2.5, 3.5, 2)
    assert ddim_row.seconds == 12.0
    one = compare_solvers(ring(), ["ddim"], [4], n=3, batch_size=None, endpoint_n=0)
    assert one.rows[0].timing.batches == 1


def test_hashes_name_model_data_and_code():
    judge = judge_of(ring(), 4)
    got = compare_solvers(ring(), "ddim", [3], n=4, endpoint_n=0, judge=judge).hashes()
    assert got == compare_solvers(ring(), "ddpm", [4], n=4, endpoint_n=0, judge=judge).hashes()
    other = compare_solvers(disc(), "ddim", [3], n=4, endpoint_n=0, judge=judge_of(disc(), 4)).hashes()
    assert got["models"] != other["models"]
    assert got["data"] != other["data"]
    assert got["code"] == other["code"]


def test_an_interrupted_comparison_goes_on_to_the_same_rows(tmp_path, monkeypatch):
    options = {"solvers": ["ddim", "ddpm"], "budgets": [4], "n": 7, "seeds": 2, "batch_size": 3, "endpoint_n": 0}
    request = ComparisonRequest(model=disc(), **options)
    whole = compare_in_team(request, Team(), None)
    real, drawn = planned_run.SolverRun.draw, []

    def killed(self, model, batch):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(batch.first)
        return real(self, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(planned_run.SolverRun, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            compare_in_team(request, Team(), tmp_path)
        again = ComparisonRequest(model=disc(), **{**options, "seeds": 3})
        with pytest.raises(ArgumentError, match=r"settings\.seeds"):
            compare_in_team(again, Team(), tmp_path)
        drawn.clear()
        patched.setattr(planned_run.SolverRun, "draw", lambda *a, **o: drawn.append(1) or real(*a, **o))
        resumed = compare_in_team(request, Team(), tmp_path)
    assert len(drawn) == 2 * 2 * 3 - 5
    for one, other in zip(whole.draws, resumed.draws, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_planners_are_asked_when_all_else_is_accepted():
    """A planner may evaluate the model: whatever is refused is refused before it is asked."""
    asked = []

    def planner(model, nfe):
        asked.append(nfe)
        return auto(model, nfe)

    options = {"budgets": [4], "n": 4, "endpoint_n": 0}
    for wrong in (
        {"solvers": {"planner": planner, "rk4": sde_toolkit.rk4()}},  # needs more than 4 evaluations
        {"solvers": {"planner": planner}, "data": torch.zeros(9, 3)},
        {"solvers": {"planner": planner}, "metrics": {"mine": fails}, "data": torch.randn(9, 2)},
        {"solvers": {"planner": planner}, "condition": torch.zeros(3)},
    ):
        with pytest.raises((ArgumentError, RuntimeError)):
            compare_solvers(ring(), **options, **wrong)
    assert not asked
    compare_solvers({"a": ring(), "b": disc()}, {"planner": planner}, **options)
    assert asked == [4, 4]
