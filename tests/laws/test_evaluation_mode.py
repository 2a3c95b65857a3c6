"""One rule for whatever evaluates a network: what depends on chance or on the batch is refused."""

import functools
import tempfile

import pytest
import torch
from torch import nn

from sde_toolkit import (
    VPSDE,
    Levels,
    ScoreModel,
    bits_per_dim,
    clip_x0,
    ddim,
    encode,
    grids,
    log_likelihood,
    reschedule,
    sample,
    variational_bound,
)
from sde_toolkit.calibration import calibrate
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import compare_solvers, local_errors
from sde_toolkit.evaluation.density import LikelihoodRequest, evaluate_likelihood
from sde_toolkit.likelihood import discrete_bound

SDE = VPSDE()
GRID = grids.uniform(SDE, 3)
X = torch.linspace(-1, 1, 8).reshape(4, 2)
BITS = Levels(2, 0.0, 1.0)


def evaluated(model):
    request = LikelihoodRequest(BITS, nfe=6, elbo_draws=2, discrete_steps=3, discrete_draws=2, ends=(), ends_n=0)
    with tempfile.TemporaryDirectory() as folder:
        return evaluate_likelihood(model, (X > 0).float(), request, folder, say=lambda _: None)


def runs(model):
    """Everything that evaluates a model for an answer."""
    return {
        "sample": lambda: sample(model, ddim(), GRID, shape=(4, 2)),
        "auto": lambda: sample(model, "auto", nfe=5, shape=(4, 2)),
        "encode": lambda: encode(model, ddim(), GRID, X),
        "calibrate": lambda: calibrate(model, ddim(), nfe=4, n=8, time_limit=0.1, event_shape=(2,)),
        "log_likelihood": lambda: log_likelihood(model, X, nfe=6),
        "bits_per_dim": lambda: bits_per_dim(model, (X > 0).float(), BITS, nfe=6),
        "variational_bound": lambda: variational_bound(model, X),
        "discrete_bound": lambda: discrete_bound(model, X, GRID),
        "evaluate_likelihood": lambda: evaluated(model),
        "compare_solvers": lambda: compare_solvers(model, {"ddim": ddim()}, [3], n=4, endpoint_n=0),
        "local_errors": lambda: local_errors(model, ddim(), GRID, n=4),
    }


RUNS = list(runs(None))


class Around(nn.Module):
    """A layer in the middle of a network that counts how often it is asked."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.layer, self.leave, self.calls = nn.Linear(2, 8), layer, nn.Linear(8, 2), 0

    def forward(self, x, time):
        self.calls += 1
        h = self.layer(self.enter(x))
        return self.leave(h[0] if isinstance(h, tuple) else h)


class Attends(nn.MultiheadAttention):
    def forward(self, h):
        return super().forward(h[:, None], h[:, None], h[:, None], need_weights=False)[0][:, 0]


LAYERS = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.2),
    "attention": lambda: Attends(8, 2, dropout=0.5, batch_first=True),
    "recurrent": lambda: nn.GRU(8, 8, num_layers=2, dropout=0.5),
    "RReLU": lambda: nn.RReLU(),
    "BatchNorm": lambda: nn.BatchNorm1d(8),
}
HARMLESS = {
    "no dropout": lambda: nn.Dropout(0.0),
    "LayerNorm": lambda: nn.LayerNorm(8),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
}


def model_around(network, wrap=lambda model: model):
    return wrap(ScoreModel(network, SDE, "v", event_shape=(2,)))


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_that_draw_or_mix_samples_are_refused_in_training_mode_and_run_in_evaluation_mode(kind):
    network = Around(LAYERS[kind]())
    model = model_around(network).train()
    with pytest.raises(ArgumentError, match=r"model\.network\.layer.*model\.eval\(\)"):
        sample(model, ddim(), GRID, shape=(4, 2))
    assert network.calls == 0
    found = [sample(model.eval(), ddim(), GRID, shape=(4, 2)).x for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", HARMLESS)
def test_training_mode_alone_is_no_fault(kind):
    model = model_around(Around(HARMLESS[kind]())).train()
    found = sample(model, ddim(), GRID, shape=(4, 2)).x
    assert torch.equal(found, sample(model.eval(), ddim(), GRID, shape=(4, 2)).x)


class Object:
    """A callable that is no module and holds one."""

    def __init__(self, network):
        self.network = network

    def __call__(self, x, time):
        return self.network(x, time)


def _function(network):
    return lambda x, time: network(x, time)


WAYS = {
    "function": _function,
    "function in a function": lambda network: _function(_function(network)),
    "partial": lambda network: functools.partial(lambda inner, x, time: inner(x, time), network),
    "method": lambda network: network.forward,
    "object": Object,
    "default": lambda network: lambda x, time, inner=network: inner(x, time),
    "list": lambda network, **_: (lambda parts: lambda x, time: parts[0](x, time))([network]),
}


@pytest.mark.parametrize("wrap", [lambda model: model, clip_x0, lambda m: reschedule(m, VPSDE(0.1, 15.0))], ids=["bare", "clip", "re"])  # fmt: skip # noqa: E501
@pytest.mark.parametrize("way", WAYS)
def test_modules_are_found_inside_functions_and_wrappers(way, wrap):
    network = Around(nn.Dropout(0.5))
    model = model_around(WAYS[way](network), wrap).eval()  # which does not reach the network
    with pytest.raises(ArgumentError, match=r"Dropout.*\.eval\(\) of the module"):
        sample(model, ddim(), GRID, shape=(4, 2))
    assert network.calls == 0
    network.eval()
    sample(model, ddim(), GRID, shape=(4, 2))


def test_statistics_of_the_batch_are_refused_in_every_mode():
    model = model_around(Around(nn.BatchNorm1d(8, track_running_stats=False))).eval()
    with pytest.raises(ArgumentError, match="track_running_stats=True"):
        sample(model, ddim(), GRID, shape=(4, 2))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)

    def forward(self, x, time):
        return nn.functional.dropout(self.body(x), 0.5, self.training)


def faults():
    """Models of every kind that the rule refuses."""
    yield from (model_around(Around(make())).train() for make in LAYERS.values())
    yield model_around(Around(nn.BatchNorm1d(8, track_running_stats=False))).eval()
    yield model_around(_function(Around(nn.Dropout(0.5)))).eval()
    yield model_around(Functional()).train()  # known from its first evaluation


@pytest.mark.parametrize("run", [name for name in RUNS if name != "sample"])
def test_every_run_gives_the_verdict_of_sample_in_the_same_words(run):
    for model in faults():
        words = []
        for name in ("sample", run):
            with pytest.raises(ArgumentError) as refused:
                runs(model)[name]()
            words.append(str(refused.value))
        assert words[0] == words[1]
        layered = [module for module in model.modules() if isinstance(module, Around)]
        assert all(module.calls == 0 for module in layered)


@pytest.mark.parametrize("run", RUNS)
def test_every_run_takes_a_network_whose_random_numbers_are_switched_off(run):
    runs(model_around(Functional()).eval())[run]()


def test_random_numbers_drawn_without_a_layer_are_refused_at_the_first_evaluation():
    with pytest.raises(ArgumentError, match=r"random numbers.*model\.eval\(\)"):
        sample(model_around(Functional()).train(), ddim(), GRID, shape=(4, 2))
