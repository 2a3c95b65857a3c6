"""``sde_lib`` has the face and the values of the file that score_sde published.

``sde_lib_original.json`` holds what the original's classes returned in float64, at five times (score_sde_pytorch,
``sde_lib.py``; torch.set_default_dtype(torch.float64), the score of :func:`score`, seed 3 for ``prior_sampling``).
"""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.integrate import solve_ivp

from sde_toolkit.errors import ArgumentError
from sde_toolkit.interop import sde_lib

FOUND = json.loads((Path(__file__).parent / "sde_lib_original.json").read_text())
CASES = FOUND["cases"]
IDS = [f"{case['class']}{list(case['arguments'].values())}" for case in CASES]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def score(x, t):
    return torch.sin(3 * x) - x * t[:, None, None, None]


def answer(sde, what, x, t):
    if what == "prior_logp":
        return [sde.prior_logp(x)]
    if what == "prior_sampling":
        torch.manual_seed(3)
        return [sde.prior_sampling((2, 3))]
    if what.startswith("reverse"):
        _, method, *flow = what.split()
        return getattr(sde.reverse(score, probability_flow=bool(flow)), method)(x, t)
    return getattr(sde, what)(x, t)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_answer_of_the_original(case):
    x, t = torch.tensor(FOUND["x"]), torch.tensor(FOUND["t"])
    sde = getattr(sde_lib, case["class"])(**case["arguments"])
    for what, wanted in case["answers"].items():
        for ours, theirs in zip(answer(sde, what, x, t), wanted, strict=True):
            torch.testing.assert_close(
                ours, torch.tensor(theirs), rtol=1e-9, atol=1e-12, msg=lambda m, w=what: f"{w}: {m}"
            )
    for name, (first, third, last) in case["tables"].items():
        table = getattr(sde, name)
        torch.testing.assert_close(table[[0, len(table) // 3, -1]], torch.tensor([first, third, last]))


@pytest.mark.parametrize("name", ["VPSDE", "subVPSDE", "VESDE"])
def test_a_reverse_sde_is_of_its_class(name):
    forward = getattr(sde_lib, name)(N=17)
    reverse = forward.reverse(score)
    assert isinstance(reverse, type(forward))
    assert (reverse.N, reverse.T) == (17, 1)
    assert not reverse.probability_flow


def test_a_class_of_ones_own_has_euler_maruyama_steps_and_a_reverse():
    class OrnsteinUhlenbeck(sde_lib.SDE):
        T = 1

        def sde(self, x, t):
            return -x, torch.full_like(t, math.sqrt(2))

        def marginal_prob(self, x, t):
            return torch.exp(-t)[:, None] * x, torch.sqrt(-torch.expm1(-2 * t))

        def prior_sampling(self, shape):
            return torch.randn(*shape)

        def prior_logp(self, z):
            return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)

    sde, x, t = OrnsteinUhlenbeck(N=50), torch.tensor([[0.3], [-2.0]]), torch.tensor([0.2, 0.9])
    f, G = sde.discretize(x, t)
    torch.testing.assert_close(f, -x / 50)
    torch.testing.assert_close(G**2, torch.full_like(t, 2 / 50))
    drift, diffusion = sde.reverse(lambda x, t: -x).sde(x, t)  # p = N(0, 1) at every time: nothing pulls either way
    torch.testing.assert_close(drift, x)
    torch.testing.assert_close(diffusion, torch.full_like(t, math.sqrt(2)))


@pytest.mark.parametrize("name", ["VPSDE", "subVPSDE"])
@pytest.mark.parametrize("t", [1e-6, 1e-5, 1e-3])
def test_the_noise_keeps_its_digits_in_float32(name, t):
    torch.set_default_dtype(torch.float32)
    sde = getattr(sde_lib, name)()
    B = 0.1 * t + 0.5 * 19.9 * t**2
    variance = -math.expm1(-B)
    wanted = math.sqrt(variance) if name == "VPSDE" else variance
    _, std = sde.marginal_prob(torch.zeros(1, 2), torch.tensor([t]))
    assert std.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["VPSDE", "subVPSDE", "VESDE"])
def test_its_own_likelihood_and_sampler_run(name):
    """The original's likelihood (an ODE solver over flattened arrays, Song et al. 2021, appendix D.2) on N(1, 0.7²)."""
    sde = getattr(sde_lib, name)()
    x_0 = torch.tensor([[[[0.4, 1.9]]], [[[1.1, -0.3]]]])

    def moments(t):
        alpha, std = sde.marginal_prob(torch.ones(len(t), 1, 1, 1), t)
        return alpha, (0.7 * alpha) ** 2 + std[:, None, None, None] ** 2

    def score_fn(x, t):
        mean, variance = moments(t)
        return (mean - x) / variance

    flow = sde.reverse(score_fn, probability_flow=True)

    def right_hand_side(t, state):
        x = torch.from_numpy(state[:-2]).reshape(x_0.shape).requires_grad_()
        drift = flow.sde(x, torch.full((2,), t))[0]
        (gradient,) = torch.autograd.grad(drift.sum(), x)  # the field acts on each element by itself
        return torch.cat([drift.detach().flatten(), gradient.sum((1, 2, 3))]).numpy()

    start = torch.cat([x_0.flatten(), torch.zeros(2)]).numpy()
    end = torch.from_numpy(solve_ivp(right_hand_side, (1e-5, sde.T), start, rtol=1e-9, atol=1e-9).y[:, -1])
    mean, variance = moments(torch.full((2,), 1e-5))
    wanted = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x_0).sum((1, 2, 3))
    mean, variance = moments(torch.ones(2))
    z = end[:-2].reshape(x_0.shape)
    at_the_end = torch.distributions.Normal(mean, variance.sqrt()).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(at_the_end + end[-2:], wanted, rtol=0, atol=1e-6)
    assert bool((sde.prior_logp(z) - at_the_end).abs().max() < 0.05)  # of N(0, σ_max²) beside p_1


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="N"):
        sde_lib.VPSDE(N=0)
    with pytest.raises(ArgumentError, match="t"):
        sde_lib.VPSDE().sde(torch.zeros(1, 2), torch.tensor([1.5]))
    with pytest.raises(AttributeError, match="VPSDE"):
        sde_lib.CLD  # noqa: B018
