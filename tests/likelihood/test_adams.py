"""The default path's integrator: its order, what it costs, and that the states it leaves are the corrected ones."""

import functools

import pytest
import torch
from densities import ALL_SDES, F64, RandomNetwork, asked, mixture, name, points

from sde_toolkit import VPSDE, CosineVPSDE, FlowMatching, ScoreModel, Solver, grids
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Angle, Corrected, FrozenEDM, Multistep
from sde_toolkit.likelihood import Adams, ExactTrace, log_likelihood, reverse


def path(integrator, model, grid, x):
    """States at all times of a grid that rises."""
    equation, state, found = ReverseEquation(model, 0.0), None, [x]
    for row in integrator.prepare(equation, grid.cpu()).to(x.device, torch.float64):
        x, state = integrator.step(equation, x, row, state, None)
        found.append(x)
    return torch.stack(found)


def rising(sde, steps, start=0.9):
    return grids.sech(sde, steps, start=start, end=0.01).flip(0)


@functools.cache
def finely(sde):
    """Where four points of the mixture go, for all three predictors."""
    return path(Adams(4, 1.0), mixture(sde), rising(sde, 640), points(mixture(sde), 4))[-1]


@pytest.mark.parametrize("predictor", [1, 2, 3])
@pytest.mark.parametrize("sde", [sde for sde in ALL_SDES if name(sde) != "UserCoefficients"], ids=name)
def test_it_converges_with_one_order_more_than_its_predictor(sde, predictor):
    model, x = mixture(sde), points(mixture(sde), 4)
    integrator = Adams(predictor, 1.0)
    assert integrator.order == predictor + 1
    truth, ends = finely(sde), []
    for steps in (80, 160):
        ends.append((path(integrator, model, rising(sde, steps), x)[-1] - truth).abs().max())
    # The first steps are of lower order: each costs a power of h of its own, so that order 4 may show a little less.
    assert ends[0] / ends[1] > 0.75 * 2 ** min(predictor + 1, 3)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_polynomials_in_phi_are_integrated_exactly(p):
    """A field F(φ) of degree p and no x: the corrected steps are exact once p values are known, from any grid."""
    sde = VPSDE()

    def angle(t):
        return torch.atan(torch.exp(-sde.half_log_snr(t)))

    def v(x, time):  # with s = 1 and α² + σ² = 1, c = 1 and F is −v
        return (angle(time) ** p)[:, None].expand_as(x)

    model, grid = ScoreModel(v, sde, "v"), rising(sde, 9)
    found = path(Adams(p, 1.0), model, grid, torch.zeros(1, 2, dtype=torch.float64))[:, 0, 0]
    exact = angle(grid) ** (p + 1) / (p + 1)
    steps = (found.diff() - exact.diff()).abs()
    assert steps[p - 1 :].max() < 1e-13
    assert p == 1 or steps[0] > 1e-6


def test_the_states_on_the_way_are_better_than_predicted_ones():
    """Both take the same steps; one leaves the predicted states behind, the other the corrected ones."""
    sde = VPSDE()
    model, x = mixture(sde), points(mixture(sde), 16)
    errors = {}
    fine = path(Adams(3, 1.0), model, rising(sde, 40 * 16), x)[::16]
    for integrator in (Adams(3, 1.0), Corrected(Multistep(3, FrozenEDM(1.0), Angle()))):
        found = path(integrator, model, rising(sde, 40), x)
        errors[type(integrator)] = (found - fine).abs().mean()
    assert errors[Adams] < 0.5 * errors[Corrected]


def test_steps_cost_one_evaluation_each_and_the_start_one():
    model, how = asked(mixture(VPSDE())), {"nfe": 20, "divergence": ExactTrace(mode=reverse), **F64}
    found = log_likelihood(model, points(mixture(VPSDE()), 5), **how)
    assert len(found.grid) == 20  # 19 steps
    assert found.nfe == 20 == sum(not followed for _, _, followed in model.network.calls)
    even = log_likelihood(model, points(mixture(VPSDE()), 5), richardson=True, **how)
    assert len(even.grid) % 2 == 1
    assert even.nfe <= 20 + 10


@pytest.mark.parametrize("sde", [CosineVPSDE(), FlowMatching()], ids=name)
def test_an_end_of_which_the_network_knows_nothing_is_reached_without_it(sde):
    """A network that is fed log σ/α has no input where α = 0; the last step is predicted, and everything finite."""
    network = RandomNetwork(2)
    model = ScoreModel(lambda x, level: torch.tanh(network(x, torch.tanh(level))), sde, "edm")
    with pytest.raises(ArgumentError):
        model(torch.zeros(1, 2), 1.0)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coarse, fine = (log_likelihood(model, x, nfe=nfe, **F64).nats for nfe in (60, 240))
    assert (coarse - fine).abs().max() < 0.02


def test_it_is_what_the_likelihood_uses():
    found = log_likelihood(mixture(VPSDE()), points(mixture(VPSDE()), 2), nfe=10)
    assert isinstance(found.solver, Solver)
    assert isinstance(found.solver.integrator, Adams)
