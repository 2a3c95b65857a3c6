"""The path of one adaptive solve: right at every time that is asked for, however many they are, and differentiable."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.integrate
import torch
from catalogue import (
    ADAPTIVE,
    EVENT_SHAPES,
    SDES,
    Flow,
    RandomNetwork,
    covering,
    doubles,
    flow_solution,
    name,
    start_at,
)
from catalogue import gaussian_data as gaussian_of
from catalogue import model_of as modelled

from sde_toolkit import VPSDE, GaussianMixture, ReverseEquation, gaussian, integrators
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import PerSample, Scipy, TorchDiffEq
from sde_toolkit.integrators.adaptive import DENSE
from sde_toolkit.integrators.per_sample import TABLEAUS

BEGIN, END = 0.9, 0.1
TWO_MODES = GaussianMixture(doubles(-4.0, 4.0), VPSDE(), std=0.1)
METHODS = [replace(i, method=m) for i in ADAPTIVE for m in i.methods if not isinstance(i, TorchDiffEq) or m in DENSE]
TRUTH = Scipy(method="DOP853", rtol=1e-10, atol=1e-10)
# Evaluations before the first step, and of one attempt: what the pairs are published to take.
COSTS = {"dopri5": (2, 6), "RK45": (2, 6), "bosh3": (2, 3), "RK23": (2, 3), "adaptive_heun": (2, 1)}
every_adaptive = pytest.mark.parametrize("integrator", ADAPTIVE, ids=name)
METHODS_IN_TURN = [(method, *(BEGIN, END)[:: (-1) ** i]) for i, method in enumerate(METHODS)]  # down, up, down, ...
SDES_IN_TURN = [(*pair, *(BEGIN, END)[:: (-1) ** i]) for i, pair in enumerate(covering(SDES, ADAPTIVE))]


def between(first, last, n):
    """Times that lie unevenly, some close to one another."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)[1:-1]
    return doubles(first, *(first + (last - first) * (u + 0.07 * torch.sin(4 * math.pi * u))), last)


def at(integrator, tolerance):
    return replace(integrator, rtol=tolerance, atol=tolerance)


def on_the_flow(model):
    return ReverseEquation(model, 0.0)


def single_step(integrator, model, x, first, last):
    (row,) = integrator.prepare(on_the_flow(model), doubles(first, last))
    return integrator.step(on_the_flow(model), x, row, None, None)[0]


def line(first):
    """Nine starts: as noise anywhere between the modes, near the watershed too; as data about the modes."""
    spots = torch.linspace(-2, 2, 9, dtype=torch.float64)
    return spots if first > 0.5 else 3.8 * torch.where(spots < 0.1, -1, 1) + 0.1 * spots


@functools.cache
def tight(first, last):
    """Every time by a solve of its own."""
    x, (_, *later) = line(first), between(first, last, 7)
    return torch.stack([x, *(single_step(TRUTH, TWO_MODES, x, first, t) for t in later)])


@pytest.mark.parametrize(("sde", "integrator", "first", "last"), SDES_IN_TURN, ids=name)
def test_the_closed_form_is_met_at_every_time(sde, integrator, first, last):
    times, x, size = between(first, last, 14), start_at(sde, torch.tensor(first)), lambda x: x.norm(dim=-1)
    truth = torch.stack([flow_solution(sde, x, times[0], t) for t in times])
    growth = (truth.abs().amax((1, 2)) / x.abs().max()).clamp(min=1)[:, None]  # the flow's own, upwards for VE
    for tolerance in (1e-4, 1e-6):
        found, _ = at(integrator, tolerance).states(on_the_flow(gaussian_of(sde)), x, times)
        assert (size(found - truth) / (1 + size(truth)) / growth).max() < 40 * tolerance
        assert torch.equal(found[0], x)


@pytest.mark.parametrize(("integrator", "first", "last"), METHODS_IN_TURN, ids=str)
def test_states_are_those_of_separate_tight_solves(integrator, first, last):
    truth, times, errors = tight(first, last), between(first, last, 7), []
    for tolerance in (1e-3, 1e-5):
        found, _ = at(integrator, tolerance).states(on_the_flow(TWO_MODES), truth[0], times)
        errors.append(((found - truth).abs() / (1 + truth.abs())).max())
        assert errors[-1] < 30 * tolerance
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize(("integrator", "first", "last"), METHODS_IN_TURN, ids=str)
def test_looking_costs_nothing_and_moves_nothing(integrator, first, last):
    calls, x, found = [], line(first), {}

    def network(x, time):
        calls.append(len(x))
        return TWO_MODES(x, time).epsilon

    equation = on_the_flow(modelled(network, VPSDE()))
    for n in (2, 40):
        calls.clear()
        found[n] = at(integrator, 1e-4).states(equation, x, between(first, last, n))
        assert found[n][1].evaluations.max() == len(calls)
        assert found[n][1].evaluations.sum() == sum(calls)
    (few, cost), (many, cost_of_many) = found[2], found[40]
    assert torch.equal(few[-1], many[-1])
    assert torch.equal(single_step(at(integrator, 1e-4), equation.model, x, first, last), few[-1])
    assert torch.equal(cost.accepted, cost_of_many.accepted)
    extra = cost_of_many.evaluations - cost.evaluations
    assert ((extra == 0) | ((integrator.method == "DOP853") & (extra % 3 == 0) & (extra <= 3 * cost.accepted))).all()
    if integrator.method in COSTS:
        once, stages = COSTS[integrator.method]
        assert torch.equal(cost.evaluations, once + stages * (cost.accepted + cost.rejected))
        assert first < 0.5 or cost.rejected.max() > 0
    assert cost.rejected.isnan().all() == (integrator.method in ("LSODA", "Radau", "BDF"))
    assert {part.shape for part in (cost.accepted, cost.rejected, cost.evaluations)} == {x.shape}


@pytest.mark.parametrize("method", PerSample.methods)
def test_a_sample_is_solved_as_if_it_were_alone(method):
    equation, x, times = on_the_flow(TWO_MODES), line(BEGIN), between(BEGIN, END, 12)
    whole, statistics = PerSample(method).states(equation, x, times)
    assert statistics.evaluations.unique().numel() > 1
    for i in range(len(x)):
        alone, own = PerSample(method).states(equation, x[i : i + 1], times)
        torch.testing.assert_close(alone[:, 0], whole[:, i], rtol=1e-12, atol=1e-12)
        assert own.evaluations == statistics.evaluations[i]


@pytest.mark.parametrize(("method", "peer"), [("dopri5", scipy.integrate.RK45), ("bosh3", scipy.integrate.RK23)])
def test_the_interpolants_are_the_published_ones(method, peer):
    """On dx/dt = f(t) alone both take the same single step; their paths through it are then the same polynomial."""
    pair, rates = TABLEAUS[method], np.random.default_rng(1).normal(size=len(TABLEAUS[method].c))
    h, theta = 0.7, np.linspace(0, 1, 9)
    expected = h * (rates @ peer.P) @ np.stack([theta ** (k + 1) for k in range(peer.P.shape[1])])
    k = [torch.tensor([rate]) for rate in rates]
    new = torch.tensor([h * sum(b * rate for b, rate in zip(pair.a[-1], rates, strict=False))])
    dense = integrators.per_sample._InteriorStates(pair, new, torch.from_numpy(h * theta[1:]))
    one = torch.ones(1, dtype=torch.float64)
    dense.fill(torch.tensor([0]), one > 0, 0 * one, h * one, h * one, (0 * new, new), k)
    np.testing.assert_allclose(dense.values[:, 0], expected[1:], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("integrator", "first", "last"),
    [(TorchDiffEq(), BEGIN, END), *((PerSample(m), END, BEGIN) for m in PerSample.methods)],
    ids=str,
)
def test_gradients_are_those_of_the_flow(integrator, first, last):
    equation = on_the_flow(modelled(RandomNetwork(), VPSDE()))
    integrator, times = at(integrator, 1e-8), between(first, last, 5)
    x = start_at(VPSDE(), torch.tensor(first), n=3).requires_grad_()
    along = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    path, _ = integrator.states(equation, x, times)
    with torch.no_grad():
        paths = [TRUTH.states(equation, x + h * along, times)[0] for h in (1e-4, -1e-4)]
    for k in (2, 4):
        (gradient,) = torch.autograd.grad(path[k].square().sum(), x, retain_graph=True)
        ends = [there[k].square().sum() for there in paths]
        slope = (ends[0] - ends[1]) / 2e-4
        assert abs((gradient * along).sum() - slope) < 2e-6 * (1 + gradient.norm())


def test_scipy_refuses_gradients_instead_of_losing_them():
    equation, times, x = on_the_flow(gaussian_of(VPSDE())), doubles(BEGIN, END), torch.zeros(2, 2).double()
    with pytest.raises(ArgumentError, match="PerSample"):
        Scipy().states(equation, x.clone().requires_grad_(), times)
    scale = torch.ones((), requires_grad=True)
    learning = on_the_flow(modelled(lambda x, time: scale * x, VPSDE()))
    with pytest.raises(ArgumentError, match="no_grad"):
        Scipy().states(learning, x, times)
    with torch.no_grad():
        for calm in (Scipy().states(learning, x, times), Scipy().states(equation, x.clone().requires_grad_(), times)):
            assert not calm[0].requires_grad


@every_adaptive
@pytest.mark.parametrize("event", EVENT_SHAPES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_event_shape_and_dtype(integrator, event, dtype):
    sde, times = VPSDE(), between(END, BEGIN, 4)
    x = torch.randn(3, *event, generator=torch.Generator().manual_seed(3), dtype=dtype)
    found, _ = integrator.states(on_the_flow(gaussian(torch.full(event, 0.5), sde, std=0.4)), x, times)
    spread = [(sde.alpha(t) ** 2 * 0.4**2 + sde.sigma(t) ** 2).sqrt() for t in times]
    start = x - sde.alpha(END) * 0.5
    truth = [sde.alpha(t) * 0.5 + start * size / spread[0] for t, size in zip(times, spread, strict=True)]
    torch.testing.assert_close(found, torch.stack(truth).to(dtype), rtol=1e-3, atol=1e-3)


@every_adaptive
def test_what_cannot_be_is_refused_before_any_evaluation(integrator):
    def network(x, time):
        raise AssertionError("evaluated")

    x, vp, flow = torch.zeros(2, 2).double(), modelled(network, VPSDE()), modelled(network, Flow())
    for model, times in ((vp, (0.0, 0.3, 0.5)), (vp, (0.5, 0.0)), (flow, (0.3, 0.5, 1.0)), (flow, (1.0, 0.5))):
        with pytest.raises(GridError, match="no finite coefficients"):
            integrator.states(on_the_flow(model), x, doubles(*times))
    for times in ((0.5,), (0.5, 0.5), (0.5, 0.3, 0.4), (0.5, math.nan), (0.5, 1.5), (-0.1, 0.5)):
        with pytest.raises(GridError, match="times="):
            integrator.states(on_the_flow(vp), x, doubles(*times))
    with pytest.raises(ArgumentError, match=r"eta=0\.5"):
        integrator.states(ReverseEquation(vp, 0.5), x, doubles(0.5, 0.3))
    for method in set(TorchDiffEq.methods) - set(DENSE):
        with pytest.raises(ArgumentError, match=method):
            TorchDiffEq(method).states(on_the_flow(vp), x, doubles(0.5, 0.4, 0.3))
