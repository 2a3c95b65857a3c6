"""Distances obey their laws, and their standard errors are the spread that repetition shows."""

import itertools
import math

import numpy as np
import pytest

from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.metrics.distances import rmse, share
from sde_toolkit.metrics.kernels import (
    cubic,
    kernel_distance,
    kernel_sums,
    rational_quadratic,
    unbiased_mmd,
    within_sums,
)
from sde_toolkit.metrics.sliced import sliced_wasserstein

KERNELS = [cubic, rational_quadratic(1.5)]


def normal(seed, n, d=5):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_distance_is_the_double_sum(kernel):
    x, y = normal(0, 6, 3), normal(1, 4, 3) + 0.5

    def k(a, b):
        return kernel(a[None], b[None])[0, 0]

    within = [np.mean([k(a, b) for a, b in itertools.permutations(s, 2)]) for s in (x, y)]
    across = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y, kernel).value == pytest.approx(sum(within) - 2 * across, rel=1e-10)


def test_kernels_are_the_published_formulas():
    a, b = normal(2, 3, 4), normal(3, 2, 4)
    squared = ((a[:, None] - b) ** 2).sum(-1)
    assert np.allclose(cubic(a, b), ((a[:, None] * b).sum(-1) / 4 + 1) ** 3)
    expected = sum((1 + squared / (2 * c * 1.5**2)) ** -c for c in (0.2, 0.5, 1, 2, 5))
    assert np.allclose(rational_quadratic(1.5)(a, b), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_distance_is_unbiased_and_its_error_is_honest(kernel):
    found = [kernel_distance(normal(2 * r, 30), normal(2 * r + 1, 50), kernel) for r in range(300)]
    values, errors = (np.array([getattr(e, name) for e in found]) for name in ("value", "error"))
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert (values < 0).mean() > 0.3
    assert 0.9 < errors.mean() / values.std() < 2  # the jackknife errs towards caution where the sets agree


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_distance_error_is_the_spread_where_sets_differ(kernel):
    found = [kernel_distance(normal(2 * r, 40) + 0.7, normal(2 * r + 1, 60), kernel) for r in range(1500)]
    assert honesty(found) == pytest.approx(1, abs=4 / math.sqrt(2 * 1500))


def honesty(found):
    """The root mean square of the errors over the spread of the values; 1 but for chance of size 1/√(2n)."""
    return math.sqrt(np.mean([e.error**2 for e in found])) / np.std([e.value for e in found])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "m"), [(7, 5), (3, 9)])
def test_jackknife_is_what_leaving_out_gives(kernel, n, m):
    """Tukey's (n − 1)/n Σ (θ_i − mean θ)², and the variances of two independent sets add up."""
    x, y = normal(0, n), normal(1, m) + 1
    left = [kernel_distance(np.delete(x, i, 0), y, kernel).value for i in range(n)]
    right = [kernel_distance(x, np.delete(y, j, 0), kernel).value for j in range(m)]
    assert kernel_distance(x, y, kernel).error ** 2 == pytest.approx(tukey(left) + tukey(right), rel=1e-9)


def tukey(left_out):
    n = len(left_out)
    return (n - 1) / n * sum((v - sum(left_out) / n) ** 2 for v in left_out)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_of_the_kernel_are_those_of_its_matrix(kernel):
    """However many rows are in memory at a time, and for more samples than a piece of the diagonal has."""
    x, y = normal(0, 70), normal(1, 9)
    members = np.arange(9)[:, None] % 3 == np.arange(3)
    for rows in (1, 32, 1000):
        sums, totals = kernel_sums(kernel, x, y, members, rows=rows)
        assert np.allclose(sums, np.stack([kernel(x, y[r::3]).sum(1) for r in range(3)], 1))
        assert np.allclose(totals, kernel(x, y).sum(0))
    assert np.allclose(within_sums(kernel, x), kernel(x, x).sum(1) - np.diag(kernel(x, x)))


def test_sums_prepared_once_give_the_same_distance():
    x, y = normal(0, 8), normal(1, 9)
    prepared = unbiased_mmd(within_sums(cubic, x), within_sums(cubic, y), cubic(x, y).sum(1), cubic(x, y).sum(0))
    found = kernel_distance(x, y)
    assert (prepared.value, prepared.error) == pytest.approx((found.value, found.error), rel=1e-9)


@pytest.mark.parametrize("distance", [sliced_wasserstein, kernel_distance])
def test_distances_are_symmetric_and_flatten_events(distance):
    x, y = normal(0, 40, 6), normal(1, 30, 6) + 0.3
    forth, back = distance(x, y), distance(y, x)
    assert forth.value == pytest.approx(back.value, rel=1e-9)
    assert forth.error == pytest.approx(back.error, rel=1e-9)
    assert distance(x.reshape(40, 2, 3), y.reshape(30, 3, 2)).value == pytest.approx(forth.value)


def test_sliced_distance_of_a_set_to_itself_is_zero():
    x = normal(0, 50)
    assert sliced_wasserstein(x, x[::-1]).value == pytest.approx(0, abs=1e-7)


def test_sliced_distance_of_a_shift_is_known():
    """W_2 of a shift c along θ is |θ·c|, so that SW² is the mean of (θ·c)², |c|²/d for many directions."""
    import ot

    x, c = normal(0, 60, 8), np.arange(8.0)
    directions = ot.sliced.get_random_projections(8, 64, 3)
    expected = math.sqrt(np.mean((c @ directions) ** 2))
    assert sliced_wasserstein(x, x + c, projections=64, seed=3).value == pytest.approx(expected, rel=1e-9)
    many = sliced_wasserstein(x, x + c, projections=20_000, blocks=0).value
    assert many == pytest.approx(np.linalg.norm(c) / math.sqrt(8), rel=0.02)
    twice = sliced_wasserstein(x, x + 2 * c, projections=64, seed=3).value
    assert twice == pytest.approx(2 * expected, rel=1e-9)


def test_sliced_distance_error_is_the_spread_where_sets_differ():
    found = [sliced_wasserstein(normal(2 * r, 64) * 1.5, normal(2 * r + 1, 128), projections=8) for r in range(200)]
    assert honesty(found) == pytest.approx(1, abs=4 / math.sqrt(2 * 200))


@pytest.mark.parametrize(("n", "m", "blocks"), [(40, 24, 8), (37, 29, 8), (12, 9, 3), (5, 50, 8)])
def test_sliced_distance_error_is_what_leaving_out_blocks_gives(n, m, blocks):
    """Blocks of neighbours as equal as they can be, left out one after another, of the one set and then of the other.

    A set of fewer than ``blocks`` samples has as many blocks as samples."""
    x, y, how = normal(0, n), normal(1, m) + 0.5, {"projections": 16, "seed": 4, "blocks": 0}

    def without_a_block(values, distance):
        parts = np.split(np.arange(len(values)), edges(len(values)))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        return [distance(np.delete(values, part, 0)).value for part in parts]

    def edges(size):
        count = min(blocks, size)
        return [math.ceil(k * size / count) for k in range(1, count)]

    of_x = without_a_block(x, lambda a: sliced_wasserstein(a, y, **how))
    of_y = without_a_block(y, lambda b: sliced_wasserstein(x, b, **how))
    found = sliced_wasserstein(x, y, **{**how, "blocks": blocks})
    assert found.error**2 == pytest.approx(tukey(of_x) + tukey(of_y), rel=1e-9)


def test_sliced_distance_is_deterministic_and_needs_no_blocks():
    x, y = normal(0, 20), normal(1, 20)
    assert sliced_wasserstein(x, y, seed=1) == sliced_wasserstein(x, y, seed=1)
    assert sliced_wasserstein(x, y, seed=1).value != sliced_wasserstein(x, y, seed=2).value
    assert math.isnan(sliced_wasserstein(x, y, blocks=0).error)


def test_rmse_and_its_error():
    x = np.zeros((4, 2, 3))
    assert rmse(x, x + 2.0).value == 2.0
    assert rmse(x, x + 2.0).error == 0.0
    found = [rmse(normal(r, 50, 20), np.zeros((50, 20))) for r in range(4000)]
    assert honesty(found) == pytest.approx(1, abs=4 / math.sqrt(2 * 4000))


def test_the_error_of_rmse_is_that_of_the_mean_square_over_twice_the_value():
    """The delta method: two pairs with squares a and b have the mean square (a + b)/2 ± |a − b|/2."""
    found = rmse(np.array([[3.0, 3.0], [1.0, 1.0]]), np.zeros((2, 2)))
    assert found.value == pytest.approx(math.sqrt(5), rel=1e-14)
    assert found.error == pytest.approx(4 / (2 * math.sqrt(5)), rel=1e-14)
    many = rmse(np.array([3.0, 1.0] * 50), np.zeros(100))
    assert many.error == pytest.approx(4 / math.sqrt(99) / (2 * math.sqrt(5)), rel=1e-14)
    assert math.isnan(rmse(np.ones(1), np.zeros(1)).error)


def test_share():
    estimate = share([True, True, True, False])
    assert (estimate.value, estimate.error) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)))


@pytest.mark.parametrize("distance", [sliced_wasserstein, kernel_distance])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2))),
        (np.zeros((5, 2)), np.zeros((5, 3))),
        (np.full((5, 2), np.nan), np.zeros((5, 2))),
        (np.float64(1.0), np.zeros((5, 2))),
    ],
)
def test_what_cannot_be_compared_is_refused(distance, x, y):
    with pytest.raises(DataError):
        distance(x, y)


def test_bad_settings_are_refused():
    x = normal(0, 10)
    with pytest.raises(ArgumentError, match="projections"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(ArgumentError, match="blocks"):
        sliced_wasserstein(x, x, blocks=1)
    with pytest.raises(ArgumentError, match="scale"):
        rational_quadratic(0.0)
    with pytest.raises(DataError):
        rmse(x, x[:5])
    with pytest.raises(DataError):
        share([])
