"""The learning rate: a straight line from 1/W of it, then a half cosine, and what the weights do accordingly."""

import dataclasses

import numpy as np
import pytest
import torch
from runs import vectors, weights
from test_saving import SHORT

from sde_toolkit import MLP
from sde_toolkit.training import TrainingOptions
from sde_toolkit.training.state import learning_rate_factor


@pytest.mark.parametrize("warm", [1, 2, 5, 200])
def test_warm_up_is_a_straight_line_from_one_share_to_the_whole(warm):
    """Step k of W (the first is 1) has k/W, and all later ones 1."""
    options = TrainingOptions(steps=1000, warmup_steps=warm, cosine_decay=False)
    factors = [learning_rate_factor(step, options) for step in range(2 * warm + 3)]
    assert factors[0] == 1 / warm
    assert factors[warm - 1 :] == [1.0] * (warm + 4)
    np.testing.assert_allclose(np.diff(factors[:warm]), 1 / warm, rtol=1e-12)


def test_without_warm_up_the_first_step_has_the_whole():
    options = TrainingOptions(steps=10, warmup_steps=0, cosine_decay=False)
    assert [learning_rate_factor(step, options) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize("steps", [2, 10, 999])
def test_the_decay_is_a_half_cosine_over_the_run(steps):
    """From 1 down to 0 at the end, point-symmetric about (half the run, one half), its curvature that of a cosine."""
    options = TrainingOptions(steps=steps, warmup_steps=0)
    factors = np.array([learning_rate_factor(step, options) for step in range(steps + 1)])
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(factors + factors[::-1], 1, atol=1e-12)
    around = factors[2:] + factors[:-2] - 2 * factors[1:-1]
    np.testing.assert_allclose(around, (2 * np.cos(np.pi / steps) - 2) * (factors[1:-1] - 0.5), atol=1e-12)


@pytest.mark.parametrize("warm", [1, 4, 20])
def test_the_first_step_moves_the_weights_by_that_share(tmp_path, warm):
    """Adam's first step is the learning rate times g/(|g| + ε): its largest element is the rate itself."""
    options = dataclasses.replace(SHORT, warmup_steps=warm, learning_rate=1e-2, cosine_decay=False)
    vectors(tmp_path, options=options, until=1)
    torch.manual_seed(0)
    before = MLP(event_shape=(2,), width=32, depth=2, embedding_scale=100.0).state_dict()
    after = weights(tmp_path, "raw", 1)
    moved = max(
        (after[f"network.{name}"].double() - value.double()).abs().max().item() for name, value in before.items()
    )
    assert moved == pytest.approx(1e-2 / warm, rel=1e-4)
