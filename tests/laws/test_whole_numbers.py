"""Whole numbers (grey levels, say) mean what the same floating-point numbers mean: no coefficient is rounded."""

import pytest
import torch
from catalogue import PUBLIC_SDES, doubles, kinds_of, name

from sde_toolkit import BrownianPath, ReverseEquation, ScoreModel, dynamic_threshold, gaussian, slerp
from sde_toolkit.errors import ArgumentError
from sde_toolkit.noise.streams import per_sample_noise, shared_noise

LEVELS = torch.tensor([[200, 10], [3, 0], [1, 255]])
NOISE = torch.tensor([[1.0, -0.3], [0.2, 0.9], [-1.5, 0.1]])


def network(x, time):
    return 0.3 * x + time[:, None]


def calls_on(sde):
    model, exact = ScoreModel(network, sde, kinds_of(sde)[0]), gaussian([0.5, 0.2], sde, std=0.3)
    return {
        "drift": lambda x: sde.drift(x, 0.4),
        "sde": lambda x: torch.cat([v.reshape(-1) for v in sde.sde(x, 0.4)]),
        "marginal_prob": lambda x: torch.cat([v.reshape(-1) for v in sde.marginal_prob(x, 0.4)]),
        "perturb": lambda x: sde.perturb(x, 0.4, NOISE),
        "noise of perturb": lambda x: sde.perturb(NOISE, 0.4, x),
        "prior_logp": lambda x: sde.prior_logp(x, 0.4),
        "forward": lambda x: model(x, 0.4).output,
        "x_0": lambda x: model(x, 0.4).x_0,
        "score": lambda x: model.score(x, 0.4),
        "drift of the reverse equation": lambda x: ReverseEquation(model).drift(x, 0.4),
        "thresholded": lambda x: dynamic_threshold(model)(x, 0.4).x_0,
        "exact score": lambda x: exact.score(x, 0.4),
        "exact log_prob": lambda x: exact.log_prob(x, 0.4),
        "slerp": lambda x: slerp(x, x.flip(1), 0.5),
    }


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=name)
@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_whole_numbers_are_computed_with_in_floating_point(sde, dtype):
    for what, call in calls_on(sde).items():
        of_levels, of_floats = call(LEVELS.to(dtype)), call(LEVELS.to(dtype).float())
        assert of_levels.dtype == of_floats.dtype, what
        torch.testing.assert_close(of_levels, of_floats, rtol=0, atol=0, msg=lambda m, k=what: f"{k}: {m}")


@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_times_of_whole_numbers_are_ends_of_time(sde):
    for end in (0, 1):
        for t in (end, torch.tensor(end), torch.tensor([end, end])):
            found = sde.sigma(t)
            torch.testing.assert_close(found, sde.sigma(float(end)).expand(found.shape), rtol=0, atol=0)


def test_noise_is_not_rounded():
    path, shape = BrownianPath(), (2, 3)
    for draw in (
        lambda: per_sample_noise(0, 0, shape, dtype=torch.int64),
        lambda: shared_noise(torch.Generator(), shape, dtype=torch.int64),
        lambda: path.step_noise(PUBLIC_SDES[0], doubles(1.0, 0.5), shape, dtype=torch.int64),
    ):
        with pytest.raises(ArgumentError, match=r"dtype=torch\.int64"):
            draw()
