"""Whose error it is: exact scores have no network part, fine solvers no discretisation, and references are kept."""

import math
import os
from pathlib import Path

import pytest
import torch
import yaml

from sde_toolkit import (
    MLP,
    VESDE,
    VPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    ddim,
    ddpm,
    gaussian,
    grids,
    probability_flow,
    sample,
)
from sde_toolkit.calibration.reference import reference_end
from sde_toolkit.data import mnist_test_images
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import reference_pieces
from sde_toolkit.evaluation import references as module
from sde_toolkit.evaluation.comparison import compare_solvers
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.endpoint import flow_endpoint
from sde_toolkit.evaluation.error_parts import beyond_halves, error_parts, error_parts_records
from sde_toolkit.evaluation.reference_cache import SHIPPED
from sde_toolkit.evaluation.references import ending_of, solve_references
from sde_toolkit.integrators import Heun, Time
from sde_toolkit.metrics.distances import rmse
from sde_toolkit.metrics.estimates import Estimate
from sde_toolkit.metrics.judge import Judge, exact_features, flat_features
from sde_toolkit.metrics.kernels import KernelDistance
from sde_toolkit.metrics.metric import SampleSet
from sde_toolkit.metrics.sliced import SlicedWasserstein
from sde_toolkit.noise.streams import per_sample_noise
from sde_toolkit.sampling import Plan


def normal(sde=None, std=0.5):
    return gaussian(torch.tensor([0.5]), sde or VPSDE(), std=std)


def compared(model, solvers, budgets, data=None, n=60, **options):
    """A comparison with real data, drawn from another model if one is given, and the parts of its errors."""
    real = (data or model).draw(6 * n, generator=torch.Generator().manual_seed(9))
    features = exact_features(model, real)
    judge = Judge(real, n, features, metrics=features.usual_metrics(0, 8), splits=4)
    found = compare_solvers(model, solvers, budgets, n=n, judge=judge, endpoint_n=n, check_declaration=False, **options)
    return found, error_parts(found, solve_references(found.request, cache=False))


def parts_of(found, parts, solver, metric):
    return [parts[k][metric] for k, row in enumerate(found.rows) if row.solver.startswith(solver)]


@pytest.fixture(scope="module", params=[VPSDE(), VESDE()], ids=["vp", "ve"])
def exact(request):
    solvers = {"ddim": ddim(), "ddpm": ddpm(), "fine": probability_flow(Heun(Time()))}
    return compared(normal(request.param), solvers, [6, 60])


@pytest.mark.parametrize("metric", ["kernel_distance", "sliced_wasserstein", "plausible"])
def test_exact_scores_have_no_network_part(exact, metric):
    """Zero within its interval, for the flow and for the reverse SDE."""
    found, parts = exact
    for solver in ("ddim", "ddpm"):
        for part in parts_of(found, parts, solver, metric):
            assert abs(part.network.value) < 3 * part.network.error


def test_a_wrong_network_is_found_out_and_its_solver_is_not():
    """Data four times as wide as the model says: the distance of a fine row to the data is the network's."""
    solvers = {"ddim": ddim(), "ddpm": ddpm()}
    found, parts = compared(normal(), solvers, [80], data=normal(std=2.0))
    for k, row in enumerate(found.rows):
        part, floor = parts[k]["kernel_distance"], found.floor(found.metrics[2])
        assert part.network.value > 3 * part.network.error
        assert abs(part.network.value - (row.measured["kernel_distance"].value - floor.value)) < 3 * part.network.error
        assert abs(part.discretisation.value) < max(0.1 * part.network.value, 3 * part.discretisation.error)


@pytest.mark.parametrize("metric", ["kernel_distance", "sliced_wasserstein", "rmse"])
def test_discretisation_falls_with_the_evaluations(exact, metric):
    found, parts = exact
    for solver in ("ddim", "fine"):
        coarse, fine = (part.discretisation for part in parts_of(found, parts, solver, metric))
        assert coarse.value > coarse.error
        assert abs(fine.value) < 0.3 * coarse.value


def test_the_discretisation_of_stochastic_rows_is_zero_for_fine_ones(exact):
    found, parts = exact
    for metric in ("kernel_distance", "sliced_wasserstein"):
        coarse, fine = (part.discretisation for part in parts_of(found, parts, "ddpm", metric))
        assert abs(fine.value) < 3 * fine.error
        assert fine.value < coarse.value


def test_an_sde_that_is_compared_with_itself_is_at_no_distance():
    """Exactly: one half is compared with the other, less the same half with the same other."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for metric in (KernelDistance(), SlicedWasserstein(4)):
        own, base = (SampleSet(x, x.numpy().copy()) for _ in range(2))
        assert beyond_halves(metric, own, base) == Estimate(0.0, 0.0)
        moved = SampleSet(x + 1, x.numpy() + 1)
        assert beyond_halves(metric, moved, base).value > beyond_halves(metric, moved, base).error > 0


def test_deterministic_rows_are_held_against_the_flow_sample_by_sample(exact):
    """The distance of the sets is below that of the pairs: W_2 takes the best pairs (and the mean over directions)."""
    found, parts = exact
    for k, row in enumerate(found.rows):
        if row.deterministic:
            sets, pairs = (parts[k][name].discretisation.value for name in ("sliced_wasserstein", "rmse"))
            assert sets <= pairs * (1 + 1e-3) + 1e-3  # endpoints and flow end at other times


def test_truncation_is_what_the_flow_still_has_to_go():
    """On N(m, s²) the flow keeps (x_t − α_t m)/√(α_t² s² + σ_t²), so that every state of it is known."""
    sde, m, s, end = VPSDE(), torch.tensor([0.7], dtype=torch.float64), 0.5, 0.1
    model, n = gaussian(m, sde, std=s), 40
    grid = grids.uniform(sde, 20, end=end)
    solvers = {
        "plain": Plan(ddim(), grid, False),
        "denoised": Plan(ddim(), grid, True),
        "on": Plan(ddim(), grids.uniform(sde, 20, end=0.0), False),
    }
    found, parts = compared(model, solvers, [], n=n)
    kept = per_sample_noise(0, 0, (n, 1))().double() * sde.sigma(1.0) - sde.alpha(1.0) * m
    kept = kept / (sde.alpha(1.0) ** 2 * s**2 + sde.sigma(1.0) ** 2).sqrt()
    state = sde.alpha(end) * m + (sde.alpha(end) ** 2 * s**2 + sde.sigma(end) ** 2).sqrt() * kept
    shrink = sde.alpha(end) * s**2 / (sde.alpha(end) ** 2 * s**2 + sde.sigma(end) ** 2)
    denoised, whole = m + shrink * (state - sde.alpha(end) * m), m + s * kept
    by_name = {row.solver: parts[k]["rmse"].truncation.value for k, row in enumerate(found.rows)}
    assert by_name["plain"] == pytest.approx(rmse(state, whole).value, rel=1e-4)
    assert by_name["denoised"] == pytest.approx(rmse(denoised, whole).value, rel=1e-4)
    assert by_name["on"] == 0


def test_rounding_is_what_float64_changes(exact):
    found, parts = exact
    for k, row in enumerate(found.rows):
        if row.solver == "ddim":
            grid = torch.tensor(row.times, dtype=torch.float64)
            one, other = (sample(found.request.model, ddim(), grid, shape=(8, 1), tweedie=row.tweedie, dtype=kind).x
                          for kind in (torch.float32, torch.float64))  # fmt: skip
            assert parts[k]["rmse"].rounding.value == pytest.approx(rmse(one, other).value, rel=0.1)
            assert 0 < parts[k]["rmse"].rounding.value < 1e-5


def test_parts_are_plain_data_for_every_row_and_metric(exact):
    found, parts = exact
    records = error_parts_records(parts)
    assert {(r["row"], r["metric"]) for r in records} == {
        (k, metric.name) for k, row in enumerate(found.rows) for metric in found.metrics if metric.name in row.measured
    }
    assert all(r["network"] is None for r in records if r["metric"] == "rmse")


# References


class Learned(ScoreModel):
    """Somebody's own class, with an exact score that nobody knows of."""


def network(scale=1.0, sde=None):
    """A small network with random weights."""
    model = ScoreModel(MLP(width=16, depth=1), sde or VPSDE(), "v", event_shape=(2,))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2 * scale, generator=generator)
    return model.eval()


def request_of(model, n=8, **options):
    """With real data for models that have a shape of two numbers; nothing is sampled."""
    real = torch.randn(4 * n, 2, generator=torch.Generator().manual_seed(0))
    judge = Judge(real, n, flat_features(model.transform, real), metrics=[KernelDistance()], splits=2)
    solvers = {"ddim": ddim(), "ddpm": ddpm(), "early": Plan(ddim(), grids.uniform(model.sde, 3, end=0.2), False)}
    options = {"judge": judge, "endpoint_steps": 6, **options}
    return ComparisonRequest(model=model, solvers=solvers, budgets=[4], n=n, **options)


def test_references_are_solved_once_and_found_again(tmp_path, monkeypatch):
    request = request_of(network())
    first = solve_references(request, cache=tmp_path)[""]
    assert set(first.sources.values()) == {"computed"}
    monkeypatch.setattr(module, "sample", None)
    again = solve_references(request, cache=tmp_path)[""]
    assert set(again.sources.values()) == {"cache"}
    assert torch.equal(first.flow, again.flow)
    assert torch.equal(first.sde, again.sde)
    assert set(first.ends) == set(again.ends)
    assert all(torch.equal(first.ends[ending], again.ends[ending]) for ending in first.ends)


def test_other_models_seeds_numbers_and_streams_are_other_files(tmp_path, monkeypatch):
    solve_references(request_of(network()), cache=tmp_path)
    whole = len(list(tmp_path.iterdir()))
    others = [network(1.01), network(sde=VPSDE(0.2))]
    changed = [*map(request_of, others), request_of(network(), seed=1), request_of(network(), 10)]
    for count, request in enumerate(changed, start=2):
        solve_references(request, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == count * whole

    def others_streams(*arguments):
        draw = per_sample_noise(*arguments)
        return lambda: draw() + 0.1

    monkeypatch.setattr(reference_pieces, "per_sample_noise", others_streams)
    solve_references(request_of(network()), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6 * whole


def test_batches_change_no_reference():
    one, other = (solve_references(request_of(network(), batch_size=size), cache=False)[""] for size in (8, 3))
    assert torch.allclose(one.sde, other.sde, atol=1e-5)
    assert torch.allclose(one.flow, other.flow, atol=1e-5)
    assert len(one.ends) == 1  # the early row: the others go on as far as the flow of a network is followed
    assert all(torch.allclose(one.ends[ending], other.ends[ending], atol=1e-5) for ending in one.ends)


def test_the_flow_of_a_network_is_its_endpoint():
    """The same solve, so that the parts fit the table; it also passes where a row stops."""
    exact = gaussian(torch.tensor([0.5, 0.0]), VPSDE(), std=0.4)
    model = Learned(exact.network, exact.sde, "v", time_input=lambda sde, t: t, event_shape=(2,))
    found = compare_solvers(model, {"ddim": ddim()}, [4], n=5, endpoint_n=5, endpoint_steps=10)
    references = solve_references(found.request, cache=False)[""]
    assert torch.equal(references.flow, found.endpoint.x)
    assert references.ends == {}


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()], ids=["vp", "flow matching"])
def test_two_solves_of_the_exact_flow_agree(sde):
    """dopri5 in the endpoint, UniPC in the references; also where the noise has no signal in it, α(1) = 0."""
    model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), sde, std=0.3)
    request = request_of(model, judge=None, endpoint_n=8)
    ends, references = flow_endpoint(model, 8), solve_references(request, cache=False)[""]
    stopped = references.ends[ending_of(request.runs[0], model)]
    assert rmse(ends.x, stopped).value < 2e-3  # it starts at λ = −7 where α(1) = 0
    assert rmse(stopped, references.flow).value < 2e-3


def test_nobodys_own_network_is_kept(tmp_path):
    """No hash knows what a function does."""
    model = ScoreModel(lambda x, t: 0.9 * x, VPSDE(), event_shape=(2,))
    references = solve_references(request_of(model, judge=None), cache=tmp_path)[""]
    assert references.sde is None  # there are no data to compare it with
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_or_warned_of(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    request = request_of(network())
    with pytest.raises(ArgumentError, match="cache="):
        solve_references(request, cache=file / "folder")
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(file))
    with pytest.warns(UserWarning, match="not kept"):
        assert solve_references(request)[""].flow is not None
    assert os.listdir(tmp_path) == ["file"]


def test_a_damaged_file_is_solved_again(tmp_path):
    request = request_of(network())
    first = solve_references(request, cache=tmp_path)[""]
    for file in tmp_path.iterdir():
        file.write_bytes(b"PK" + file.read_bytes()[:100])
    again = solve_references(request, cache=tmp_path)[""]
    assert set(again.sources.values()) == {"computed"}
    assert torch.equal(again.flow, first.flow)


def test_what_is_not_wanted_is_not_solved(monkeypatch):
    request = request_of(network())
    monkeypatch.setattr(module, "sample", None)
    object.__setattr__(request, "references", False)
    assert solve_references(request, cache=False) == {}
    assert error_parts(compare_solvers(network(), ddim(), [3], n=4, endpoint_n=0), {}) == {}


def test_a_row_that_goes_on_to_the_data_stops_with_the_flow():
    model = gaussian(torch.zeros(2), VPSDE(), std=0.5)
    request = request_of(model)
    ends = {run.name: ending_of(run, model) for run in request.runs}
    assert ends["early"].end == pytest.approx(0.2)
    assert not ends["early"].tweedie
    assert reference_end(model) < model.sde.sampling_end < ends["ddim"].end + 1e-9
    assert ends["ddim"].tweedie
    assert math.isclose(ends["ddim"].start, 1.0)


def test_the_readmes_command_finds_its_references_in_the_package(monkeypatch, tmp_path):
    """If not, run benchmarks/make_reference_samples.py: until then the command solves them."""
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "compare.yaml").read_text(encoding="utf-8"))
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "sample", None)
    model, n = ScoreModel.from_pretrained(config["model"]), config["n"]
    real = mnist_test_images().test[: 2 * n]
    judge = Judge(real, n, flat_features(model.transform, real), metrics=[KernelDistance()], splits=2)
    steps = config["exact_flow"]["steps"]
    request = ComparisonRequest(
        model=model, solvers=["ddim", "ddpm"], n=n, seed=config["seed"], judge=judge, endpoint_steps=steps
    )
    references = solve_references(request)[""]
    assert references.sources == {"flow": "package", "sde": "package"}
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 500_000
    levels = model.transform.inverse(references.flow)
    assert torch.allclose(levels, levels.round(), atol=1e-3)
