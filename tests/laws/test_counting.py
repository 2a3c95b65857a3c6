"""``nfe`` is what a network saw: whatever stands around it, and however it is asked."""

import copy

import pytest
import torch
from catalogue import ADAPTIVE, INTEGRATORS, SOLVERS, RandomNetwork, name
from torch import nn

from sde_toolkit import (
    VPSDE,
    ReverseEquation,
    ScoreModel,
    Solver,
    clip_x0,
    dpmpp_2m,
    dynamic_threshold,
    edm_stochastic,
    encode,
    grids,
    pc,
    reschedule,
    sample,
)
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import AdaptiveSDE
from sde_toolkit.likelihood import ExactTrace, log_likelihood, variational_bound
from sde_toolkit.models import Wrapper, time_inputs
from sde_toolkit.sde import CosineVPSDE


class Counting(nn.Module):
    """A network that notes how many rows each call has; a label moves its answer."""

    def __init__(self):
        super().__init__()
        self.inside, self.rows = RandomNetwork(), []

    def forward(self, x, t, condition=None):
        self.rows.append(len(x))
        y = self.inside(x, t)
        return y if condition is None else y + 0.1 * condition["label"][:, None]


class InTurn(Wrapper):
    """Two calls: with the label and without."""

    def denoise(self, x_t, inside, condition):
        given, free = inside(x_t, condition), inside(x_t, {"label": 0 * condition["label"]})
        return free + 1.5 * (given - free)


class Stacked(Wrapper):
    """The same in one call with all samples twice."""

    def denoise(self, x_t, inside, condition):
        label = condition["label"]
        both = inside(torch.cat([x_t, x_t]), {"label": torch.cat([label, 0 * label])})
        given, free = both.chunk(2)
        return free + 1.5 * (given - free)


def around_a_function(model):
    """A network that is a function, which asks a score model twice."""

    def network(x, t, condition):
        free = {"label": 0 * condition["label"]}
        return model(x, t, condition).v + 0.5 * model(x, t, free).v

    return ScoreModel(network, model.sde, "v", time_input=time_inputs.ScaledTime(1.0))


class Silent(Wrapper):
    """A wrapper that changes nothing."""


AROUND = {
    "bare": lambda model: model,
    "clip": clip_x0,
    "threshold": dynamic_threshold,
    "reschedule": lambda model: reschedule(model, CosineVPSDE()),
    "silent": Silent,
    "in turn": InTurn,
    "stacked": Stacked,
    "a function": around_a_function,
    "around one another": lambda model: clip_x0(reschedule(InTurn(Silent(model)), CosineVPSDE())),
}
N = 3


TWICE = ("in turn", "stacked", "a function", "around one another")


def agree(found, network, last=0):
    """What is reported is what the network saw: as many for each sample, or for every sample its own number.

    ``last``: evaluations of the final denoising step.
    """
    if found.statistics is None:
        assert found.nfe * N == sum(network.rows)
    else:
        assert found.nfe == found.statistics.evaluations.max().item() + last
        assert found.statistics.evaluations.sum().item() + last * N == sum(network.rows)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_every_solver_counts_what_the_network_saw(solver, around):
    network = Counting()
    model = AROUND[around](ScoreModel(network, VPSDE(), "v"))
    grid = grids.uniform(model.sde, 3, start=0.9, end=0.05)
    label = {"label": torch.arange(N, dtype=torch.float64)}
    found = sample(
        model, solver, grid, shape=(N, 2), seed=1, dtype=torch.float64, condition=label, batch_size=N, tweedie=True
    )
    agree(found, network, 1 + (around in TWICE))
    assert found.nfe >= 4 * (1 + (around in TWICE))


@pytest.mark.on_device
@pytest.mark.parametrize("around", ["clip", "in turn", "stacked"])
@pytest.mark.parametrize("integrator", ADAPTIVE, ids=name)
def test_so_do_adaptive_solvers_and_the_way_up(integrator, around):
    network = Counting()
    model = AROUND[around](ScoreModel(network, VPSDE(), "v"))
    grid = grids.uniform(model.sde, 1, start=0.9, end=0.05)
    label = {"label": torch.zeros(N, dtype=torch.float64)}
    solver = Solver("adaptive", 0.0, integrator)
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    agree(encode(model, solver, grid, x, condition=label), network)


@pytest.mark.parametrize("around", ["silent", "in turn", "stacked"])
def test_batches_of_any_size_count_alike(around):
    counts = []
    for batch_size in (1, 2, None):
        network = Counting()
        model = AROUND[around](ScoreModel(network, VPSDE(), "v"))
        label = {"label": torch.zeros(N, dtype=torch.float64)}
        grid = grids.uniform(model.sde, 4, end=0.05)
        how = {"shape": (N, 2), "condition": label, "dtype": torch.float64, "batch_size": batch_size}
        found = sample(model, dpmpp_2m(), grid, **how)
        agree(found, network)
        counts.append(found.nfe)
    assert len(set(counts)) == 1


@pytest.mark.parametrize("around", ["bare", "in turn", "stacked"])
def test_compiled_steps_are_credited_with_what_the_first_ones_showed(around):
    label = {"label": torch.zeros(N, dtype=torch.float64)}
    found = []
    for compile in (False, "eager"):
        model = AROUND[around](ScoreModel(Counting(), VPSDE(), "v"))
        grid = grids.uniform(model.sde, 5, start=0.9, end=0.05)
        drawn = sample(
            model, dpmpp_2m(), grid, shape=(N, 2), condition=label, dtype=torch.float64, tweedie=True, compile=compile
        )
        found.append(drawn.nfe)
    assert found[0] == found[1]


@pytest.mark.on_device
@pytest.mark.parametrize("around", ["bare", "in turn", "stacked"])
def test_bounds_count_what_the_network_saw(around):
    network = Counting()
    model = AROUND[around](ScoreModel(network, VPSDE(), "v"))
    x, label = torch.zeros(N, 2, dtype=torch.float64), {"label": torch.zeros(N, dtype=torch.float64)}
    found = variational_bound(model, x, draws=5, condition=label, dtype=torch.float64)
    assert found.nfe * N == sum(network.rows)


@pytest.mark.on_device
@pytest.mark.parametrize("around", ["bare", "in turn", "stacked"])
def test_a_likelihood_counts_its_path_and_its_divergence_apart(around):
    times = 1 if around == "bare" else 2
    x, label = torch.zeros(N, 2, dtype=torch.float64), {"label": torch.zeros(N, dtype=torch.float64)}
    how = {"nfe": 12, "divergence": ExactTrace(), "condition": label, "dtype": torch.float64}
    bare = log_likelihood(ScoreModel(Counting(), VPSDE(), "v"), x, **how)
    model = AROUND[around](ScoreModel(Counting(), VPSDE(), "v"))
    found = log_likelihood(model, x, **how)
    assert found.nfe == times * bare.nfe
    assert found.divergence_nfe == bare.divergence_nfe


def test_what_a_subclass_sets_is_on_record():
    class Scaled(Wrapper):
        def __init__(self, model, scale):
            super().__init__(model)
            self.scale, self._private = scale, 3

    model = Scaled(ScoreModel(RandomNetwork(), VPSDE(), "v"), 1.5)
    assert model.settings() == {"scale": 1.5}
    assert model.description()["wrapper"].endswith("Scaled")
    assert model.description()["scale"] == 1.5


def test_what_a_subclass_changes_of_the_base_is_on_record_and_what_it_leaves_is_not():
    class Larger(Wrapper):
        def __init__(self, model, sigma_data):
            super().__init__(model)
            self.sigma_data = sigma_data

    inside = ScoreModel(RandomNetwork(), VPSDE(), "v", event_shape=(2,))
    assert Larger(inside, 3.0).settings() == {"sigma_data": 3.0}
    for model in (Wrapper(inside), Larger(inside, inside.sigma_data)):
        assert model.train().settings() == model.eval().settings() == {}
        assert copy.deepcopy(model).settings() == {}


@pytest.mark.on_device
@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5])
def test_rows_that_are_no_whole_batches_are_refused(rows):
    class Some(Wrapper):
        def denoise(self, x_t, inside, condition):
            inside(torch.cat([x_t, x_t])[:rows], condition)
            return inside(torch.cat([x_t, x_t]), condition)[: len(x_t)]

    model = Some(ScoreModel(RandomNetwork(), VPSDE(), "v"))
    with pytest.raises(ArgumentError, match=rf"x_t.*{rows} rows.*multiple of the 3 of the batch.*torch\.cat"):
        model(torch.zeros(3, 2), 0.5)


@pytest.mark.parametrize("integrator", [*INTEGRATORS, *(s.integrator for s in SOLVERS)], ids=name)
def test_an_integrator_says_whether_it_draws_noise(integrator):
    """What ``draws_noise`` says is what its steps do, with noise in the equation and without."""
    for eta in (0.0, 1.0):
        if (eta > 0 and integrator.weak_order is None) or (eta == 0 and isinstance(integrator, AdaptiveSDE)):
            continue
        equation = ReverseEquation(ScoreModel(RandomNetwork(), VPSDE(), "v"), eta)
        table = integrator.prepare(equation, torch.tensor([0.9, 0.6, 0.4], dtype=torch.float64))
        x, state, draws = torch.zeros(2, 2, dtype=torch.float64), None, []

        def noise(draws=draws):
            draws.append(1)
            return torch.zeros(2, 2, dtype=torch.float64)

        for row in table:
            x, state = integrator.step(equation, x, row, state, noise)
        assert integrator.draws_noise(eta) == bool(draws)


@pytest.mark.parametrize("solver", [pc(), edm_stochastic()], ids=name)
def test_who_draws_noise_cannot_encode(solver):
    model = ScoreModel(RandomNetwork(), VPSDE(), "v")
    flow = Solver(solver.name, 0.0, solver.integrator)
    x = torch.zeros(2, 2, dtype=torch.float64)
    for call in (
        lambda: encode(model, flow, grids.uniform(VPSDE(), 4, end=0.05), x),
        lambda: log_likelihood(model, x, solver=flow, grid=grids.uniform(VPSDE(), 4, end=0.05)),
    ):
        with pytest.raises(ArgumentError, match="draws noise"):
            call()
