"""The suite: what it measures does not depend on who measures it; results join; rankings say what their data allow."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sde_toolkit import VPSDE, GaussianMixture, ddim, grids, probability_flow
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import TorchDiffEq
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.metrics.sliced import SlicedReference
from sde_toolkit.sampling import Plan
from sde_toolkit.suite import (
    Cell,
    Measure,
    SolverResults,
    Truth,
    join_results,
    measuring,
    rank,
    ranking_table,
    read_results,
    run_suite,
)
from sde_toolkit.suite.suite_results import TruthFacts

SMALL = {"budgets": [4, 8]}
FILE = """
import torch
from sde_toolkit import VPSDE, GaussianMixture, grids, ddim
from sde_toolkit.sampling import Plan
from sde_toolkit.suite import Truth

def pair():
    return Truth("pair", GaussianMixture([[-1.0], [1.0]], VPSDE(), std=0.2), n=16)

def three():
    return Truth("three", GaussianMixture([[-1.0], [0.0], [1.0]], VPSDE(), std=0.2), n=20)

def mine(model, nfe):
    return Plan(ddim(), grids.uniform_lambda(model.sde, nfe - 1), True)
"""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))


def pair(std=0.2, name="pair"):
    return Truth(name, GaussianMixture([[-1.0], [1.0]], VPSDE(), std=std), n=16)


def three():
    return Truth("three", GaussianMixture([[-1.0], [0.0], [1.0]], VPSDE(), std=0.2), n=20)


def without_times(results):
    record = results.record()
    return {**record, "cells": [{**cell, "seconds": None} for cell in record["cells"]]}


def test_two_processes_find_what_one_finds(tmp_path, forks):
    (tmp_path / "mine.py").write_text(FILE)
    words = [
        "bench",
        "solver=[ddim,ddpm,heun]",
        "truth=[mine.py:pair,mine.py:three]",
        "budgets=[4,8]",
        "progress=false",
    ]
    forks.command(1, tmp_path, *words, "output=one")
    forks.command(2, tmp_path, *words, "output=two")
    one, two = (read_results(tmp_path / folder) for folder in ("one", "two"))
    assert [r.solver for r in one] == ["ddim", "ddpm", "heun"]
    assert list(map(without_times, one)) == list(map(without_times, two))
    assert not (tmp_path / "two" / "parts").exists()


def test_an_interrupted_run_continues_and_finds_the_same(tmp_path, monkeypatch):
    request = measuring.SuiteRequest(["ddim", "ddpm"], [pair()], [4, 8])
    whole, _ = measuring.measure_suite(request)
    computed, compute = [], measuring._SuiteParts.compute

    def stopped(self, part):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(part.number)
        return compute(self, part)

    monkeypatch.setattr(measuring._SuiteParts, "compute", stopped)
    with pytest.raises(KeyboardInterrupt):
        measuring.measure_suite(request, store_in=tmp_path / "run")
    monkeypatch.setattr(
        measuring._SuiteParts, "compute", lambda self, part: computed.append(part.number) or compute(self, part)
    )
    found, _ = measuring.measure_suite(request, store_in=tmp_path / "run")
    assert sorted(computed) == list(range(5))  # each part once
    with pytest.raises(ArgumentError, match="budgets"):  # its parts are there, of another request
        measuring.measure_suite(measuring.SuiteRequest(["ddim", "ddpm"], [pair()], [4, 9]), store_in=tmp_path / "run")
    assert list(map(without_times, found)) == list(map(without_times, whole))


def test_results_of_several_runs_rank_as_those_of_one(tmp_path):
    together = run_suite(["ddim", "heun", "ddpm"], [pair(), three()], **SMALL)
    run_suite(["ddim"], [pair(), three()], **SMALL, to=tmp_path / "here")
    run_suite(["ddpm"], [pair(), three()], **SMALL, to=tmp_path / "there")
    joined = run_suite(["heun"], [pair(), three()], **SMALL, to=tmp_path / "here", join=[tmp_path / "there"])
    for measure in Measure:
        assert ranking_table(joined, measure).text() == ranking_table(together, measure).text()
    assert sorted(r.solver for r in read_results(tmp_path / "here")) == ["ddim", "ddpm", "heun"]
    page = (tmp_path / "here/report.html").read_text()
    assert all(name in page for name in ("ddim", "heun", "ddpm", "pair", "three"))


def test_a_truth_that_changed_does_not_join(tmp_path):
    run_suite(["ddim"], [pair(), three()], **SMALL, to=tmp_path)
    joined = run_suite(["heun"], [pair(0.3), three()], **SMALL, join=[tmp_path])
    assert joined.cell("ddim", "pair", 4) is None
    assert joined.cell("ddim", "three", 4) is not None
    assert any("ddim on pair" in sentence for sentence in joined.left_out)
    places = {s.solver: s.rank for s in rank(joined, Measure.ERROR).standings}
    assert places == {"heun": 1, "ddim": None}


def test_cells_are_what_sampling_gives():
    joined = run_suite({"coarse": "ddim"}, [pair()], [4])
    cell = joined.cell("coarse", "pair", 4)
    from sde_toolkit import sample

    x = sample(pair().model, ddim(), nfe=4, shape=(16, 1)).x
    assert cell.nfe == 4
    assert cell.flow_errors.rmse == pytest.approx(pair().error(x).rmse, rel=1e-3)
    assert cell.distance.value == pytest.approx(pair().distance(x).value)
    assert run_suite(["ddpm"], [pair()], [4]).cell("ddpm", "pair", 4).flow_errors is None


def test_planners_plans_and_functions_join(tmp_path):
    def lost(denoise, sigmas, x, rng):
        raise ZeroDivisionError("never")

    def euler(denoise, sigmas, x, rng):
        for r, s in pairwise(sigmas):
            x = x + (s - r) * (x - denoise(x, r)) / r
        return x

    def planner(model, nfe):
        return Plan(ddim(), grids.karras(model.sde, nfe - 1), True)

    joined = run_suite({"planner": planner, "euler": euler, "lost": lost}, [pair()], [4, 8])
    for budget in (4, 8):  # Euler in (x/α, σ/α) is DDIM
        ours, theirs = (joined.cell(name, "pair", budget) for name in ("planner", "euler"))
        assert ours.each == pytest.approx(theirs.each, rel=1e-3)
        assert "never" in joined.cell("lost", "pair", budget).failure


def test_a_truth_and_a_solver_in_a_file_join_from_the_shell(tmp_path, command):
    (tmp_path / "mine.py").write_text(FILE)
    status, printed, complaint = command(
        "bench", "solver=[ddim,heun]", "truth=[mine.py:pair,mine.py:three]", "budgets=[4]", "progress=false"
    )
    assert status == 0, complaint
    assert "truths: pair, three" in printed
    status, printed, complaint = command(
        "bench", "solver=mine.py:mine", "truth=[mine.py:pair,mine.py:three]", "budgets=[4]", "progress=false"
    )
    assert status == 0, complaint
    assert all(name in printed for name in ("ddim", "heun", "mine"))
    files = {file.name for file in (tmp_path / "outputs/bench/solvers").iterdir()}
    assert files == {"ddim.json", "heun.json", "mine.json"}
    record = json.loads((tmp_path / "outputs/bench/solvers/mine.json").read_text())
    assert set(record["truths"]) == {"pair", "three"}
    assert record["code"]["source"]
    assert record["truths"]["pair"]["digest"] == pair().digest


def test_files_of_others_are_left_alone(tmp_path, command):
    (tmp_path / "mine.py").write_text(FILE)
    place = tmp_path / "outputs/bench"
    place.mkdir(parents=True)
    (place / "report.html").write_text("mine")
    words = ["bench", "solver=ddim", "truth=mine.py:pair", "budgets=[4]", "progress=false"]
    status, _, complaint = command(*words)
    assert status == 2
    assert "report.html" in complaint
    assert [file.name for file in place.iterdir()] == ["report.html"]
    assert (place / "report.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"solvers": ["dim"]}, "solvers[0]"),
        ({"solvers": []}, "solvers"),
        ({"solvers": {"adaptive": probability_flow(TorchDiffEq())}}, "solvers['adaptive']"),
        ({"truths": ["circle"]}, "truths"),
        ({"truths": [pair(), pair(0.3)]}, "truths"),
        ({"truths": []}, "truths"),
        ({"budgets": [5, 5]}, "budgets"),
        ({"budgets": []}, "budgets"),
        ({"budgets": [0]}, "budgets"),
        ({"join": ["nowhere"]}, "join"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_evaluation(arguments, argument, monkeypatch):
    def evaluated(self, part):
        raise AssertionError("evaluated")

    monkeypatch.setattr(measuring._SuiteParts, "compute", evaluated)
    with pytest.raises(ArgumentError) as refused:
        run_suite(**{"solvers": ["ddim"], "truths": [pair()], "budgets": [4], **arguments})
    assert refused.value.argument == argument


def test_files_that_hold_no_results_are_refused_by_name(tmp_path):
    run_suite(["ddim"], [pair()], [4], to=tmp_path)
    file = tmp_path / "solvers/ddim.json"
    whole = file.read_text()
    for content in ("", "[]", "{}", whole[:-100], whole.replace("suite/1", "suite/9"), whole.replace('"nfe"', '"n"')):
        file.write_text(content)
        with pytest.raises(ArgumentError, match=r"ddim\.json"):
            read_results(tmp_path)


def test_two_results_of_one_solver_are_not_mixed():
    one, other = (run_suite(["ddim"], [pair()], [budget]).solvers[0] for budget in (4, 8))
    assert [r.solver for r in join_results([], [one, one]).solvers] == ["ddim"]
    with pytest.raises(ArgumentError) as refused:
        join_results([], [one, other])
    assert refused.value.argument == "join"
    assert join_results([other], [one]).solvers[0] is other


# Rankings, of made-up cells


def facts(name, n):
    return TruthFacts(name, name, "", "", n, 1, "VPSDE", True, 1e-9, 0.1, 0.01)


def made(solvers, n=32, truths=("a", "b", "c")):
    """Joined results of {solver: (truth) -> errors of n samples, or None for a failure}, at one budget."""
    about = {truth: facts(truth, n) for truth in truths}
    results = []
    for name, errors in solvers.items():
        cells = []
        for truth in truths:
            each = errors(truth)
            known = {"failure": "it failed"} if each is None else {"each": tuple(each), "distance": Estimate(0.2, 0.02)}
            cells.append(Cell(truth, 10, 10, **known))
        results.append(SolverResults(name, tuple(cells), about))
    return join_results(results)


def random_errors(seed, scale=0.01, n=32):
    return lambda truth: scale * torch.rand(n, generator=torch.Generator().manual_seed(seed + ord(truth))).numpy()


def standings(joined, measure=Measure.ERROR):
    return {s.solver: s for s in rank(joined, measure).standings}


def test_what_is_best_everywhere_has_ratio_one_and_the_first_rank():
    best = random_errors(1)
    found = standings(made({"worse": lambda t: 3 * best(t), "best": best}))
    assert (found["best"].ratio, found["best"].low, found["best"].high, found["best"].rank) == (1, 1, 1, 1)
    assert found["worse"].ratio == pytest.approx(3)
    assert (found["worse"].low, found["worse"].high) == (pytest.approx(3), pytest.approx(3))  # paired: no chance in it


def test_a_ranking_does_not_depend_on_the_scale_of_a_truth():
    one, other = random_errors(1), random_errors(2)
    plain = standings(made({"one": one, "other": other}))
    factor = {"a": 1.0, "b": 1e-3, "c": 20.0}
    scaled = standings(made({"one": lambda t: factor[t] * one(t), "other": lambda t: factor[t] * other(t)}))
    for name in ("one", "other"):
        assert scaled[name].ratio == pytest.approx(plain[name].ratio)
        assert scaled[name].high == pytest.approx(plain[name].high)


def test_equal_solvers_are_not_told_apart_and_intervals_hold_the_figure():
    ranking = rank(made({"one": random_errors(1), "other": random_errors(50)}), Measure.ERROR)
    assert sorted(ranking.leaders) == ["one", "other"]
    for standing in ranking.standings:
        assert standing.low <= standing.ratio <= standing.high
        assert (standing.rank_low, standing.rank_high) == (1, 2)


def test_intervals_cover_the_figure_of_many_noises():
    """Of 40 suites with the same solvers on other noises, the intervals hold the true ratio in most."""
    hits, truth = 0, 1.5
    for k in range(40):
        random = np.random.default_rng(k)
        base = {t: np.exp(0.5 * random.standard_normal(32)) * 0.01 for t in "abc"}
        other = {t: truth * base[t] * np.exp(0.3 * random.standard_normal(32)) for t in "abc"}
        found = standings(made({"base": base.__getitem__, "other": other.__getitem__}))["other"]
        expected = truth * math.exp(0.3**2)  # of the RMS of independent factors
        hits += found.low <= expected <= found.high
    assert hits >= 32


def ranked_by_distance(parts, values=(0.20, 0.21)):
    """Two solvers whose distances differ by a twentieth, and whose errors are a fifth, with these parts."""
    about, results = {"a": facts("a", 32)}, []
    for name, value, own in zip(("near", "far"), values, parts, strict=True):
        cell = Cell("a", 10, 10, distance=Estimate(value, 0.04), distance_parts=own)
        results.append(SolverResults(name, (cell,), about))
    return rank(join_results(results), Measure.DISTANCE)


def test_distances_on_the_same_noises_are_compared_in_pairs():
    """What both have in common cancels: with like parts, a gap counts that is smaller than the errors."""
    own, others = (tuple(0.04 * v / np.linalg.norm(v)) for v in np.random.default_rng(1).standard_normal((2, 10)))
    alike = ranked_by_distance([(own, ()), (own, ())])
    assert alike.leaders == ["near"]
    for parts in ([(own, ()), (others, ())], [None, None]):
        assert sorted(ranked_by_distance(parts).leaders) == ["far", "near"]


def test_the_parts_of_a_distance_say_how_far_a_difference_varies():
    """Over other noises and other real samples: of a set and the same set, a little wider."""
    differences, stated = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        reference, x = SlicedReference(rng.standard_normal((300, 2)), projections=16), rng.standard_normal((60, 2))
        one, other = (reference.resample(x * scale, 10) for scale in (1.3, 1.5))
        differences.append(other.value - one.value)
        stated.append((other - one).error)
    assert 0.7 < np.sqrt(np.mean(np.square(stated))) / np.std(differences, ddof=1) < 1.5


def test_a_failure_counts_as_the_mean_and_an_explosion_no_more_than_that():
    good = random_errors(1)
    failing = made({"good": good, "failing": lambda t: None if t == "a" else good(t)})
    exploding = made({"good": good, "failing": lambda t: 1e9 * good(t) if t == "a" else good(t)})
    assert standings(failing)["failing"].ratio == pytest.approx(standings(exploding)["failing"].ratio)
    rms = math.sqrt((good("a") ** 2).mean())
    assert standings(failing)["failing"].ratio == pytest.approx((1 / rms) ** (1 / 3), rel=1e-6)
    assert standings(failing)["failing"].failed == 1


def test_the_median_forgives_a_few_lost_samples():
    good = random_errors(1)

    def lost(truth):
        return np.where(np.arange(32) < 3, 1.0, good(truth))

    joined = made({"good": good, "lost": lost})
    assert standings(joined)["lost"].ratio > 10
    assert standings(joined, Measure.MEDIAN)["lost"].ratio < 1.2
