"""Paired differences hold what they promise, whatever the metric: coverage, and less width where noise is shared."""

import numpy as np
import pytest
import torch

from sde_toolkit.metrics.metric import SampleSet
from sde_toolkit.metrics.sliced import sliced_wasserstein


def as_set(x):
    return SampleSet(torch.from_numpy(x), x)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 33), (33, 20), (7, 50)])
def test_the_sliced_distance_is_that_of_an_independent_implementation(n, m):
    """POT solves every one of the transport problems on a line."""
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, 4)) + 100, 2 * rng.standard_normal((m, 4)) + 101
    directions = ot.sliced.get_random_projections(4, 32, 5)
    expected = ot.sliced_wasserstein_distance(x, y, projections=directions, p=2)
    assert sliced_wasserstein(x, y, projections=32, seed=5).value == pytest.approx(expected, rel=1e-10)
