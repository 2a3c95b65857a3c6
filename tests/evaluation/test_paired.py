"""Paired differences hold what they promise, whatever the metric: coverage, and less width where noise is shared."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.paired import PairedMatrix, differences, holm
from sde_toolkit.metrics.distances import FlowError
from sde_toolkit.metrics.function_metric import FunctionMetric
from sde_toolkit.metrics.jackknife import Resampled, leave_blocks_out
from sde_toolkit.metrics.kernels import KernelDistance, kernel_distance, paired_kernel_distance, rational_quadratic
from sde_toolkit.metrics.metric import SampleSet, check_metrics
from sde_toolkit.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from sde_toolkit.metrics.splits import NO_SAMPLES, RealParts


def as_set(x):
    return SampleSet(torch.from_numpy(x), x)


def gaussian_kernel(a, b):
    return np.exp(-((a - b.T) ** 2) / 2)  # one dimension


def squared_shift(generated, real):
    return (generated.mean() - real.mean()) ** 2


METRICS = [SlicedWasserstein(4), KernelDistance(gaussian_kernel), FunctionMetric("squared shift", squared_shift)]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def truth(metric, mean, std):
    """The value for N(mean, std²) against N(0, 1)."""
    if metric.name == "sliced_wasserstein":
        return math.hypot(mean, std - 1)
    if metric.name == "squared shift":
        return mean**2

    def mean_kernel(apart, variance):
        return math.exp(-(apart**2) / (2 * (1 + variance))) / math.sqrt(1 + variance)

    return mean_kernel(0, 2 * std**2) + mean_kernel(0, 2) - 2 * mean_kernel(mean, std**2 + 1)


def drawn(metric, rows, repeats=150, n=60, n_real=160):
    """Differences of the first row and the second, where sample i of both is made of the same normal number."""
    found = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        z, real = (
            rng.standard_normal((n, 1)),
            RealParts(as_set(rng.standard_normal((n_real, 1))), n, splits=2, seed=seed),
        )
        one, other = (real.resample(metric, as_set(mean + std * z)) for mean, std in rows)
        found.append((differences({0: one, 1: other}, True)[0, 1], one, other))
    return found


@every_metric
def test_intervals_hold_the_true_difference(metric):
    """95 % of the intervals do, within four standard errors of a share."""
    rows = (1.2, 1.0), (0.6, 1.3)
    true = truth(metric, *rows[0]) - truth(metric, *rows[1])
    held = [cell.low <= true <= cell.high for cell, _, _ in drawn(metric, rows)]
    assert 0.95 - 4 * math.sqrt(0.05 * 0.95 / len(held)) <= np.mean(held) < 1


@every_metric
def test_rows_of_one_law_are_told_apart_in_one_of_twenty_cases(metric):
    """z and −z, moved from the data: the same law, and yet other samples."""
    held = [cell.verdict == "" for cell, _, _ in drawn(metric, ((0.8, 1.0), (0.8, -1.0)))]
    assert 0.95 - 4 * math.sqrt(0.05 * 0.95 / len(held)) <= np.mean(held) < 1


@every_metric
def test_samples_with_the_law_of_the_data_are_told_apart_no_more_often(metric):
    held = [cell.verdict == "" for cell, _, _ in drawn(metric, ((0.0, 1.0), (0.0, -1.0)), repeats=60)]
    assert np.mean(held) >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / len(held))


@every_metric
def test_shared_noise_makes_intervals_narrower(metric):
    """By more than half for rows that are nearly the same; the errors of the two values alone do not know of it."""
    for cell, one, other in drawn(metric, ((0.8, 1.0), (0.85, 1.0)), repeats=5):
        assert cell.error < 0.5 * math.hypot(one.error, other.error)


def test_a_difference_of_means_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(15) + 0.5, rng.standard_normal(15)
    mean = FunctionMetric("mean", lambda generated, real: generated.mean())
    cell = differences({3: mean.resample(as_set(x), NO_SAMPLES), 7: mean.resample(as_set(y), NO_SAMPLES)}, False)[3, 7]
    expected = stats.ttest_rel(x, y)
    low, high = expected.confidence_interval(0.95)
    assert (cell.p, cell.low, cell.high) == pytest.approx((expected.pvalue, low, high), rel=1e-9)


def test_errors_to_the_flow_are_compared_sample_by_sample():
    """(√A − √B)(√A + √B) = A − B: the error of the difference follows from that of the mean of a_i − b_i."""
    rng = np.random.default_rng(1)
    truth_, noise = rng.standard_normal((400, 3)), rng.standard_normal((400, 3))
    ends = as_set(truth_)
    one, other = (FlowError().resample(as_set(truth_ + size * noise), ends) for size in (0.11, 0.1))
    cell = differences({0: one, 1: other}, True)[0, 1]
    a, b = ((size**2) * (noise**2).mean(1) for size in (0.11, 0.1))
    assert cell.value == pytest.approx(math.sqrt(a.mean()) - math.sqrt(b.mean()), rel=1e-9)
    t = stats.ttest_rel(a, b).statistic
    assert cell.value / cell.error > t  # the ratio of the two errors is known far better than their difference
    assert cell.error < 0.2 * math.hypot(one.error, other.error)


def test_holm_keeps_whole_matrices_right():
    """Six equal rows: in one matrix of twenty at most any verdict is sure; single verdicts are wrong far more often."""
    rng, sure, single, repeats = np.random.default_rng(0), 0, 0, 200
    for _ in range(repeats):
        values = rng.standard_normal((6, 20))
        rows = {k: Resampled.of(x.mean(), (x.sum() - x) / 19, []) for k, x in enumerate(values)}
        cells = differences(rows, True).values()
        sure += any(cell.sure for cell in cells)
        single += any(cell.verdict for cell in cells)
    assert sure / repeats < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)
    assert single / repeats > 0.2


def test_holms_correction_is_his():
    p = [0.01, 0.04, 0.03, 0.005]  # Holm 1979: in order 0.005 × 4, 0.01 × 3, 0.03 × 2, 0.04 × 1, never falling
    assert list(holm(p)) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_matrix_reads_both_ways_and_names_its_leaders():
    rows = {k: Resampled.of(value, [value - 0.01, value + 0.01], []) for k, value in ((2, 1.0), (5, 1.0), (9, 900.0))}
    for lower, leaders in ((True, (2, 5)), (False, (9,)), (None, (2, 5, 9))):
        matrix = PairedMatrix("m", 10, (2, 5, 9), differences(rows, lower))
        assert matrix.leaders == leaders
        there, back = matrix.difference(2, 9), matrix.difference(9, 2)
        assert (there.value, there.low, there.p_holm) == (-back.value, -back.high, back.p_holm)
        assert {there.sure, back.sure} == ({"better", "worse"} if lower is not None else {""})
    with pytest.raises(ArgumentError, match="two different ones"):
        matrix.difference(2, 2)


def test_the_same_samples_do_not_differ():
    same = Resampled.of(1.0, [0.9, 1.1], [])
    cell = differences({0: same, 1: same}, True)[0, 1]
    assert (cell.value, cell.low, cell.high, cell.verdict) == (0.0, 0.0, 0.0, "")


def test_means_over_seeds_are_narrower_where_the_seeds_are_independent():
    rng = np.random.default_rng(2)
    several = [Resampled.of(0.0, rng.standard_normal(20), rng.standard_normal(20)) for _ in range(9)]
    for one in several[1:]:
        object.__setattr__(one, "reference", several[0].reference)
    mean = Resampled.mean(several)
    assert (mean.generated**2).sum() == pytest.approx(np.mean([(one.generated**2).sum() for one in several]) / 9)
    assert (mean.reference**2).sum() == pytest.approx((several[0].reference ** 2).sum())


# What is left out


@pytest.mark.parametrize("metric", [SlicedWasserstein(4), KernelDistance()], ids=lambda metric: metric.name)
def test_shared_work_leaves_out_the_same_samples(metric):
    rng = np.random.default_rng(0)
    real = RealParts(as_set(rng.standard_normal((90, 2))), 30, splits=3)
    generated = as_set(rng.standard_normal((30, 2)) + 0.3)
    fast, plain = real.resample(metric, generated), metric.resample(generated, real.rest(0))
    assert fast.value == pytest.approx(real.measure(metric, generated).value, rel=1e-12)
    assert np.allclose(fast.generated, plain.generated, rtol=1e-8, atol=1e-12)
    assert np.allclose(fast.reference, plain.reference, rtol=1e-8, atol=1e-12)


def test_blocks_are_neighbours_and_each_is_left_out_once():
    stay = []
    leave_blocks_out(lambda places: stay.append(set(places.tolist())) or 0.0, 47)
    gone = [sorted(set(range(47)) - places) for places in stay]
    assert [k for block in gone for k in block] == list(range(47))
    assert {len(block) for block in gone} == {2, 3}
    assert len(gone) == 20


def test_parts_of_parts_are_the_right_samples():
    x = np.arange(20.0)[:, None]
    part = as_set(x).at(np.array([3, 5, 7, 11])).at(np.array([1, 3]))
    assert part.data[:, 0].tolist() == part.features[:, 0].tolist() == [5.0, 11.0]


# Distances


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 33), (33, 20), (7, 50)])
def test_the_sliced_distance_is_that_of_an_independent_implementation(n, m):
    """POT solves every one of the transport problems on a line."""
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, 4)) + 100, 2 * rng.standard_normal((m, 4)) + 101
    directions = ot.sliced.get_random_projections(4, 32, 5)
    expected = ot.sliced_wasserstein_distance(x, y, projections=directions, p=2)
    assert sliced_wasserstein(x, y, projections=32, seed=5).value == pytest.approx(expected, rel=1e-10)


def test_the_kernel_distance_of_pairs_is_zero_for_equal_pairs_and_right_on_average():
    """Where y_i depends on x_i, the distance of sets is biased by its pairs, and that of pairs is not."""
    kernel, of_sets, of_pairs = rational_quadratic(1.0), [], []
    for seed in range(200):
        x, w = np.random.default_rng(seed).standard_normal((2, 20, 2))
        y = 0.9 * x + math.sqrt(0.19) * w  # the same law
        of_sets.append(kernel_distance(x, y, kernel).value)
        of_pairs.append(paired_kernel_distance(x, y, kernel).value)
    assert paired_kernel_distance(x, x, kernel).estimate.value == pytest.approx(0, abs=1e-12)
    error = np.std(of_pairs) / math.sqrt(200)
    assert abs(np.mean(of_pairs)) < 4 * error
    assert abs(np.mean(of_sets)) > 4 * error


# Functions as metrics


def test_a_function_is_a_metric_with_its_own_error():
    """The mean of n normal numbers has the error 1/√n, whatever was called for it; the calls are made once."""
    calls = []

    def mean(generated, real):
        calls.append(len(generated))
        return generated.mean()

    (metric,) = check_metrics({"mean": mean})
    rng = np.random.default_rng(0)
    real, generated = (
        RealParts(as_set(rng.standard_normal((900, 1))), 400, splits=2),
        as_set(rng.standard_normal((400, 1))),
    )
    found = real.measure(metric, generated)
    assert found.value == pytest.approx(generated.features.mean())
    assert found.error == pytest.approx(1 / math.sqrt(400), rel=4 / math.sqrt(2 * 19))
    before = len(calls)
    assert real.resample(metric, generated).error == found.error
    assert len(calls) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [({"x": 3}, "not a function"), ({3: squared_shift}, "is a text"), ({}, "nothing to measure")],
)
def test_what_is_no_function_is_refused(given, said):
    with pytest.raises(ArgumentError, match=said):
        check_metrics(given)


def test_a_function_that_returns_no_number_is_named():
    metric = FunctionMetric("norms", lambda generated, real: generated.norm(dim=1))
    with pytest.raises(ArgumentError, match=r"norms.*not one number"):
        metric.value(as_set(np.ones((4, 2))), as_set(np.ones((4, 2))))
