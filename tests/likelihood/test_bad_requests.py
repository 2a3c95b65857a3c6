"""Whatever cannot be answered is refused by a typed error that names it, before any solve."""

import math

import numpy as np
import pytest
import torch
from densities import F64, Asked, Flow, mixture, points

from sde_toolkit import (
    VPSDE,
    Affine,
    ScoreModel,
    Solver,
    edm_stochastic,
    euler_ancestral,
    euler_maruyama,
    grids,
    heun,
    log_likelihood,
    probability_flow,
)
from sde_toolkit.errors import ArgumentError, GridError, NonFiniteError, SDEToolkitError
from sde_toolkit.integrators import AdaptiveSDE, PerSample, Scipy
from sde_toolkit.likelihood import (
    ExactTrace,
    Hutchinson,
    HutchPlusPlus,
    Joint,
    finite_differences,
    forward,
)
from sde_toolkit.transforms import eight_bit

GRID = grids.sech(VPSDE(), 8, end=1e-3)
X = torch.zeros(3, 2)


def fresh(sde=None, kind="v", network=None, **options):
    """A model that counts what it is asked."""
    sde = sde or VPSDE()
    return ScoreModel(Asked(network or mixture(sde).network), sde, kind, **options)


def half(x, time):
    return 0.5 * x


def refused(words, x=X, model=None, kind=ArgumentError, **arguments):
    """Refused with a message that holds all the words, after at most the eight rows that show differentiability."""
    model = fresh(event_shape=(2,)) if model is None else model
    with pytest.raises(kind) as caught:
        log_likelihood(model, x, **arguments)
    assert isinstance(caught.value, SDEToolkitError)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
    if isinstance(model, ScoreModel) and isinstance(model.network, Asked):
        assert len(model.network.calls) <= 1
        assert model.network.rows() <= 8


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X.int(), ["x", "int32", "bits_per_dim"]),
        (X.byte(), ["x", "uint8", "bits_per_dim"]),
        (X + 0j, ["x", "complex64", "real"]),
        (X + math.nan, ["x", "NaN"]),
        (X - math.inf, ["x", "infinity"]),
        (X[:0], ["(0, 2)", "n >= 1"]),
        (torch.zeros(3, 5), ["(3, 5)", "(2,)", "(3, 2)"]),
        (torch.zeros(2), ["(2,)", "events"]),
        (torch.zeros(()), ["()", "(n, *event)"]),
        ([[0.0, 0.0]], ["x", "tensor"]),
        (np.zeros((3, 2)), ["x", "tensor"]),
        (None, ["x", "tensor"]),
    ],
    ids=str,
)
def test_data(x, words):
    refused(words, x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"space": "latent"}, ["space", "latent", "model"]),
        ({"divergence": "exact"}, ["divergence", "exact", "ExactTrace()"]),
        ({"divergence": ExactTrace}, ["divergence", "ExactTrace()"]),
        ({"divergence": ExactTrace(mode="forward")}, ["mode", "forward", "finite_differences"]),
        ({"divergence": HutchPlusPlus(2, 2)}, ["rank", "ExactTrace()"]),
        ({"quadrature": 25}, ["quadrature", "25", "Quadrature(nodes=25)"]),
        ({"prior": "gaussian"}, ["prior", "gaussian", "GaussianPrior"]),
        ({"condition": torch.zeros(2)}, ["condition", "(2,)", "3 samples"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"dtype": torch.float16}, ["dtype", "float16", "autocast"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"first_index": 1.5}, ["first_index", "1.5"]),
        ({"nfe": 3}, ["nfe", "at least 4"]),
        ({"nfe": "50"}, ["nfe", "50"]),
        ({"end": 1.0}, ["end", "1.0", "1e-5"]),
        ({"end": -0.1}, ["end", "-0.1"]),
        ({"end": math.nan}, ["end", "nan"]),
        ({"solver": heun(), "grid": GRID[1:], "richardson": True}, ["richardson", "even"]),
        ({"quadrature": Joint()}, ["quadrature", "Joint()", "PerSample()"]),
        ({"quadrature": Joint(), "solver": heun(), "grid": GRID}, ["quadrature", "Joint()", "error control"]),
        ({"solver": probability_flow(PerSample()), "richardson": True}, ["richardson", "fixed-step"]),
        ({"differentiable": True, "divergence": ExactTrace(mode=forward)}, ["differentiable", "forward", "reverse"]),
        ({"grid": GRID}, ["grid", "solver"]),
        ({"solver": heun()}, ["grid", "heun", "grids.sech"]),
        ({"solver": heun(), "grid": GRID, "end": 1e-3}, ["end", "grid"]),
        ({"solver": "ddim"}, ["solver", "ddim", "ddim()"]),
        ({"solver": euler_maruyama(), "grid": GRID}, ["euler_maruyama", "adds noise", "ddim()"]),
        ({"solver": euler_ancestral(), "grid": GRID}, ["euler_ancestral", "adds noise"]),
        ({"solver": edm_stochastic(), "grid": GRID}, ["solver", "noise", "deterministic"]),
        ({"solver": Solver("adaptive", 0.0, AdaptiveSDE()), "grid": GRID}, ["AdaptiveSDE", "PerSample()"]),
        (
            {"x": X.requires_grad_(), "solver": probability_flow(Scipy()), "differentiable": True},
            ["Scipy", "PerSample"],
        ),
    ],
    ids=lambda value: ", ".join(f"{k}={v}"[:40] for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_arguments(arguments, words):
    refused(words, **arguments)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([1.0], ["grid", "at least two"]),
        ([0.1, 1.0], ["grid", "not decreasing"]),
        ([1.0, 0.5, 0.5], ["grid", "repeats"]),
        ([1.0, math.nan], ["grid", "NaN"]),
        ([1.5, 0.5], ["grid", "[0, 1]"]),
    ],
    ids=str,
)
def test_grids(grid, words):
    refused(words, kind=GridError, solver=heun(), grid=grid)


@pytest.mark.parametrize("network", [half, None, 3], ids=["function", "none", "number"])
def test_a_network_is_no_score_model(network):
    with pytest.raises(ArgumentError, match="ScoreModel"):
        log_likelihood(network, X)


@pytest.mark.parametrize("kind", ["x0", "score", "velocity"])
def test_networks_that_say_nothing_at_zero(kind):
    refused([kind, "likelihood_end=1e-05"], model=fresh(None, kind, half), kind=GridError, end=0.0)
    assert log_likelihood(fresh(None, kind, half), X, nfe=8).nats.isfinite().all()


@pytest.mark.parametrize(
    ("sde", "end", "remedy"), [(VPSDE(), 0.0, "likelihood_end"), (Flow(), 1e-4, "0.999")], ids=["σ = 0", "α = 0"]
)
def test_methods_in_lambda_where_it_is_infinite(sde, end, remedy):
    how = {"solver": probability_flow(PerSample()), "end": end}
    refused(["PerSample", "λ", "infinite", remedy], model=fresh(sde), kind=GridError, **how)


def numpy_network(x, time):
    return torch.from_numpy(0.5 * x.detach().numpy())


@pytest.mark.parametrize(
    "network",
    [numpy_network, lambda x, time: 0.5 * x.detach(), torch.no_grad()(half), torch.inference_mode()(half)],
    ids=["numpy", "detach", "no_grad", "inference_mode"],
)
@pytest.mark.parametrize("divergence", [None, Hutchinson(2), ExactTrace(mode=forward)], ids=str)
def test_a_network_that_is_not_differentiable(network, divergence):
    refused(["not differentiable", "finite_differences"], model=fresh(network=network), divergence=divergence)
    found = log_likelihood(fresh(network=network), X, nfe=8, divergence=ExactTrace(mode=finite_differences), **F64)
    true = log_likelihood(fresh(network=half), X, nfe=8, **F64)
    torch.testing.assert_close(found.nats, true.nats, rtol=1e-7, atol=1e-7)


class Dropping(torch.nn.Module):
    """Random in training mode, by a layer or by a function."""

    def __init__(self, by_layer, layer=None):
        super().__init__()
        self.layer = (layer or torch.nn.Dropout(0.3)) if by_layer else None

    def forward(self, x, time):
        y = 0.5 * x + 0.1
        return self.layer(y) if self.layer is not None else torch.nn.functional.dropout(y, 0.3, self.training)


@pytest.mark.parametrize("divergence", [ExactTrace(), ExactTrace(mode=finite_differences), Hutchinson(1)], ids=str)
@pytest.mark.parametrize("by_layer", [True, False], ids=["layer", "function"])
def test_a_random_network_has_no_likelihood(by_layer, divergence):
    x = torch.ones(3, 50)
    model = fresh(network=Dropping(by_layer))
    words = ["model.network", "dropout" if by_layer else "random", "model.eval()"]
    refused(words, x, model, divergence=divergence)
    assert len(model.network.calls) == (0 if by_layer else 1)
    assert log_likelihood(model.eval(), x, nfe=8, divergence=divergence).nats.isfinite().all()


def test_a_network_with_random_numbers_from_elsewhere_has_no_likelihood():
    draws = np.random.default_rng(0)
    refused(
        ["model.network", "random field"],
        model=fresh(network=lambda x, time: x + torch.from_numpy(draws.random(x.shape)).to(x)),
    )


def test_a_network_that_sees_the_batch_has_no_likelihood_of_a_sample():
    model = fresh(network=Dropping(True, torch.nn.BatchNorm1d(2)))
    refused(["model.network.network.layer", "BatchNorm1d", "samples of the batch", "model.eval()"], model=model)
    assert log_likelihood(model.eval(), X, nfe=8).nats.isfinite().all()


def test_too_many_dimensions_for_the_exact_trace():
    x = torch.zeros(2, 3, 40, 40)
    refused(["4800 products", "Hutchinson(probes=8)"], x, fresh(network=half), divergence=ExactTrace())
    refused(
        ["divergence", "11", "max_dimension=12"], torch.zeros(1, 12), fresh(network=half), divergence=ExactTrace(11)
    )
    assert log_likelihood(fresh(network=half), x, nfe=8).products == 4


@pytest.mark.parametrize(
    ("transform", "x"), [(Affine(0.5, 2.0, 0.0, 1.0), X + 3), (eight_bit(), X + 300), (eight_bit(), X - 9)]
)
def test_data_outside_the_range_of_the_transform(transform, x):
    low, high = f"{transform.low:g}", f"{transform.high:g}"
    refused([f"[{low}, {high}]", 'space="model"'], x, fresh(transform=transform))
    assert log_likelihood(fresh(transform=transform), x, nfe=8, space="model").nats.isfinite().all()


def test_networks_that_answer_nonsense():
    refused(["(4, 2)", "(4, 1)"], model=fresh(network=lambda x, time: x[:, :1]))
    with pytest.raises(NonFiniteError):
        log_likelihood(fresh(network=lambda x, time: x * math.nan), X)


@pytest.mark.parametrize(
    "prior", [lambda z, t: z, lambda z, t: 0.0, lambda z, t: z.sum()], ids=["event", "float", "sum"]
)
def test_priors_that_answer_nonsense(prior):
    with pytest.raises(ArgumentError, match="one log density per sample"):
        log_likelihood(fresh(), X, nfe=8, prior=prior)


def test_a_request_that_is_in_order_is_answered():
    model = mixture(VPSDE())
    found = log_likelihood(model, points(model, 3), nfe=8)
    assert found.nats.shape == (3,)
    assert found.nats.isfinite().all()
    assert found.seconds > 0
