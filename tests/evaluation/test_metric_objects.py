"""Every metric of the package obeys the same laws, and one that is added shows up in every report without an edit."""

import csv
import inspect
import json
import math

import numpy as np
import pytest
import torch

import sde_toolkit.evaluation as evaluation
from sde_toolkit import VPSDE, GaussianMixture, ddim, ddpm
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import (
    FID,
    Against,
    Axis,
    Estimate,
    FlowError,
    Judge,
    Metric,
    SampleSet,
    compare_solvers,
    data_extractor,
    evaluate_samples,
    flat_features,
)
from sde_toolkit.evaluation.comparison_tables import comparison_table
from sde_toolkit.evaluation.findings import comparison_findings
from sde_toolkit.evaluation.quality_report import quality_table, write_quality_report
from sde_toolkit.evaluation.report import write_report
from sde_toolkit.metrics.distances import Plausible
from sde_toolkit.metrics.splits import NO_SAMPLES, RealParts

NEEDS = {"FID": "torchmetrics", "KID": "torchmetrics"}


def public_metrics():
    """Every metric class of the face of evaluation, and the share of plausible samples, which features define."""
    classes = {n: c for n, c in vars(evaluation).items() if inspect.isclass(c) and issubclass(c, Metric)}
    return [c() for n, c in classes.items() if n != "Metric"] + [Plausible("inside", "share of samples inside")]


METRICS = public_metrics()
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def sample_set(seed, n, worse=0.0):
    """Normal samples in 3 dimensions; ``worse`` moves them. What lies within radius 4 is plausible."""
    x = np.random.default_rng(seed).standard_normal((n, 3)) + worse
    return SampleSet(torch.from_numpy(x), x, (x**2).sum(1) < 16)


def computed(metric, generated, reference):
    """A metric's value; with the reference that it looks at."""
    if type(metric).__name__ in NEEDS:
        pytest.importorskip(NEEDS[type(metric).__name__])
    return metric.compute(generated, NO_SAMPLES if metric.against is Against.NOTHING else reference)


def test_the_laws_meet_all_metrics():
    assert {metric.name for metric in METRICS} >= {
        "fid", "kid", "precision", "recall", "sliced_wasserstein", "kernel_distance", "rmse", "plausible",
    }  # fmt: skip


@every_metric
def test_samples_are_at_no_distance_from_themselves(metric):
    """Identical samples get the best value: no distance, or every sample inside; unbiased ones up to their error."""
    x = sample_set(0, 200)
    found = computed(metric, x, x)
    if metric.axis is Axis.SHARE:
        assert found.value > 0.97
    elif metric.unbiased:
        assert found.value < 2 * found.error  # it leaves out the pairs (i, i), so that it is below zero
    else:
        assert found.value == pytest.approx(0, abs=1e-6)


@every_metric
def test_worse_samples_score_worse(metric):
    """Each step away from the real samples is seen, in the direction that the metric says."""
    real = sample_set(0, 300)
    losses = [metric.loss(computed(metric, sample_set(1, 300, worse), real).value) for worse in (0.0, 1.0, 2.0, 3.0)]
    assert metric.lower_is_better is not None
    assert losses == sorted(losses)
    assert len(set(losses)) == 4


@every_metric
def test_the_error_covers(metric):
    """The error is at least half of what repetition shows, and three times it at most.

    (Shares in a manifold have binomial errors, which know nothing of the manifold's own chance.)"""
    found = [computed(metric, sample_set(2 * r, 60, 0.5), sample_set(2 * r + 1, 60)) for r in range(60)]
    errors = np.array([e.error for e in found])
    ratio = math.sqrt(np.mean(errors**2)) / np.std([e.value for e in found], ddof=1)
    assert 0.5 < ratio < 3


@pytest.mark.parametrize(("n", "m", "d"), [(30, 50, 3), (24, 40, 60), (40, 24, 60), (7, 30, 9), (3, 30, 2)])
def test_the_error_of_fid_is_that_of_leaving_blocks_out(n, m, d):
    """Whatever is smallest: the number of features, of generated samples, or of real ones."""
    pytest.importorskip("torchmetrics")
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, d)) @ np.diag(np.linspace(0.2, 2, d)) + 0.3, rng.standard_normal((m, d))
    one, other = SampleSet(torch.from_numpy(x), x), SampleSet(torch.from_numpy(y), y)
    fast, slow = FID().resample(one, other), Metric.resample(FID(), one, other)
    assert fast.value == slow.value
    assert fast.freedom == slow.freedom or n < 4
    if n >= 4:
        assert np.allclose(fast.generated, slow.generated, atol=1e-5)
        assert np.allclose(fast.reference, slow.reference, atol=1e-5)
    else:
        assert math.isnan(fast.error)


@every_metric
def test_a_value_alone_is_the_value(metric):
    if metric.against is not Against.NOTHING:
        x, y = sample_set(0, 50), sample_set(1, 50, 0.5)
        assert computed(metric, x, y).value == metric.value(x, y)


@every_metric
def test_conditions_are_plain_data(metric):
    conditions = metric.conditions(30, 60)
    assert json.loads(json.dumps(conditions)) == conditions
    assert conditions["library"]


@pytest.mark.parametrize("metric", [m for m in METRICS if m.against is Against.PARTS], ids=lambda m: m.name)
def test_shared_work_changes_no_number(metric):
    """What a metric prepares for many sets gives what it computes for each of them."""
    real, generated = RealParts(sample_set(0, 100), 30, splits=4, seed=2), sample_set(1, 30, 0.3)
    values = [metric.compute(generated, real.rest(r)) for r in range(4)]
    found, floor = real.measure(metric, generated), real.floor(metric)
    assert found.value == pytest.approx(np.mean([e.value for e in values]), rel=1e-9)
    assert found.error == pytest.approx(values[0].error, rel=1e-9)
    floors = [metric.compute(real.held_out(r), real.rest(r)).value for r in range(4)]
    assert (floor.value, floor.error) == pytest.approx((np.mean(floors), np.std(floors, ddof=1)), rel=1e-9)


# A metric that is added


class Shift(Metric):
    """How far the means are apart."""

    name = "shift_of_mean"
    heading = "shift <of> mean"
    meaning = "distance of the means"
    against = Against.PARTS
    axis = Axis.LOG

    def compute(self, generated, reference):
        assert len(reference) > 0
        shift = generated.data.double().mean(0) - reference.data.double().mean(0)
        return Estimate(float(shift.norm()), 0.05)


class Wide(Shift):
    """Larger is better, and nothing is needed beside the samples."""

    name = "spread"
    heading = "spread"
    against = Against.NOTHING
    axis = Axis.LINEAR
    lower_is_better = False

    def compute(self, generated, reference):
        assert len(reference) == 0
        return Estimate(float(generated.data.std()), 0.01)


class EndShift(Shift):
    """Against the exact endpoints, sample by sample."""

    name = "end_shift"
    heading = "end shift"
    against = Against.FLOW

    def compute(self, generated, reference):
        assert len(generated) == len(reference)
        return Estimate(float((generated.data - reference.data).abs().max()), math.nan)


@pytest.fixture(scope="module")
def compared():
    model = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), VPSDE(), std=0.3)
    real = model.draw(120, generator=torch.Generator().manual_seed(0))
    judge = Judge(real, 30, flat_features(model.transform, real), splits=2)
    added = [Shift(), Wide(), EndShift()]
    return compare_solvers(model, [ddim(), ddpm()], [4, 8], n=30, judge=judge, endpoint_n=8, metrics=added)


def test_an_added_metric_is_in_the_table_the_csv_the_json_the_figure_and_the_page(compared, tmp_path):
    page = write_report(compared, tmp_path).read_text(encoding="utf-8")
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    text = comparison_table(compared).text()
    for metric in (Shift(), Wide(), EndShift()):
        assert metric.heading in text
        assert metric.heading.replace("<", "&lt;").replace(">", "&gt;") in page
        assert content["metrics"][metric.name]["heading"] == metric.heading
        for row, in_json, in_csv in zip(compared.rows, content["rows"], table, strict=True):
            found = row.measured.get(metric.name)
            assert (found is None) == (metric.against is Against.FLOW and row.solver == "ddpm")
            assert in_json[metric.name] == (None if found is None else found.value)
            assert in_csv[metric.name] == ("" if found is None else repr(found.value))
    names = {"shift_of_mean", "spread", "end_shift"}
    assert {name for name in table[0] if name.removesuffix("_error").removesuffix("_at_floor") in names} == {
        *names, *(f"{name}_error" for name in names), "shift_of_mean_at_floor", "spread_at_floor",
    }  # fmt: skip
    assert content["real_data"]["shift_of_mean"] > 0
    assert "By shift <of> mean" in " ".join(comparison_findings(compared))


def test_an_added_metric_has_a_panel_of_its_own(compared):
    from sde_toolkit.evaluation.figures import comparison_figures

    figures = {figure.name: figure.drawing for figure in comparison_figures(compared)}
    panels = {axes.get_title() or axes.get_ylabel(): axes for name in ("error", "distances") for axes in
              figures[name].axes}  # fmt: skip
    assert {"shift <of> mean", "spread", "end shift"} <= set(panels)
    drawn = panels["spread"].containers[0].lines[0].get_ydata()
    assert list(drawn) == [row.measured["spread"].value for row in compared.rows if row.solver == "ddim"]


def test_an_added_metric_is_in_a_record_of_samples(tmp_path):
    model = GaussianMixture(torch.zeros(1, 2), VPSDE(), std=1.0)
    x, real = (model.draw(n, generator=torch.Generator().manual_seed(n)) for n in (20, 60))
    quality = evaluate_samples(x, real, data_extractor(), metrics=[Shift(), Wide()], say=lambda text: None)
    assert set(quality.values) == {"shift_of_mean", "spread"} == set(quality.floors)
    assert quality.values["spread"] == pytest.approx(float(x.std()))
    assert quality.floors["spread"][0] == pytest.approx(float(real.std()))
    page = write_quality_report(quality, [Shift(), Wide()], tmp_path).read_text(encoding="utf-8")
    assert "distance of the means" in page
    assert "shift <of> mean" in quality_table(quality, [Shift(), Wide()]).text()


def test_metrics_that_cannot_be_measured_are_refused():
    model = GaussianMixture(torch.zeros(1, 2), VPSDE(), std=1.0)

    class Seconds(Wide):
        name = "seconds"

    class Nameless(Wide):
        heading = ""

    for metrics, said in (
        ([Shift()], "there are none"), ([Seconds()], "this name"), ([Wide(), Wide()], "this name"), ([Wide], "class"),
        ([Nameless()], "no heading"), ([], "nothing to measure"), (["fid"], "not a metric"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=said):
            compare_solvers(model, ddim(), [4], n=4, metrics=metrics, endpoint_n=0)
    got = compare_solvers(model, ddim(), [4], n=4, metrics=[Wide(), FlowError()], endpoint_n=2)
    assert set(got.rows[0].measured) == {"spread", "rmse"}
