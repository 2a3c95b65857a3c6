"""Parts of a request that mean nothing are refused as they are made; whatever is asked, only typed errors escape."""

import contextlib
import math

import pytest
import torch
from densities import Asked, mixture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sde_toolkit import (
    VPSDE,
    ScoreModel,
    edm_stochastic,
    euler_maruyama,
    grids,
    heun,
    log_likelihood,
    probability_flow,
)
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.integrators import PerSample
from sde_toolkit.likelihood import (
    Adams,
    ExactTrace,
    GaussianPrior,
    Hutchinson,
    HutchPlusPlus,
    Joint,
    Quadrature,
    Refined,
)

MODEL = ScoreModel(Asked(mixture(VPSDE()).network), VPSDE(), "v", event_shape=(2,))
GRID = grids.sech(VPSDE(), 8, end=1e-3)
X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Quadrature(1), ["nodes", "1", "at least 2"]),
        (lambda: Quadrature(2.5), ["nodes", "2.5"]),
        (lambda: Quadrature(5, -1.0), ["scale", "-1.0", "positive"]),
        (lambda: Refined(0.0), ["tolerance", "0.0", "positive"]),
        (lambda: Refined(most=100), ["most", "100", "257"]),
        (lambda: Refined(most=16), ["most", "16"]),
        (lambda: Refined(scale=math.inf), ["scale", "inf"]),
        (lambda: Adams(0), ["predictor", "0"]),
        (lambda: Adams(3, 0.0), ["sigma_data", "0.0"]),
        (lambda: ExactTrace(0), ["max_dimension"]),
        (lambda: Hutchinson(0), ["probes"]),
        (lambda: Hutchinson(2, "normal"), ["distribution", "normal", "gaussian"]),
        (lambda: HutchPlusPlus(0, 1), ["rank"]),
        (lambda: HutchPlusPlus(1, 0), ["probes"]),
        (lambda: GaussianPrior.of_data(MODEL, torch.zeros(2, 2)), ["2 samples", "diagonal"]),
        (lambda: GaussianPrior.of_data(MODEL, torch.zeros(1, 2), "diagonal"), ["1 samples"]),
        (lambda: GaussianPrior.of_data(MODEL, torch.zeros(9, 2), "round"), ["round", "isotropic"]),
        (lambda: GaussianPrior.of_data(MODEL, [1, 2]), ["tensor"]),
        (lambda: GaussianPrior.of_data(MODEL, torch.full((9, 2), math.nan)), ["NaN"]),
        (lambda: GaussianPrior.of_moments(VPSDE(), torch.zeros(2), torch.eye(3)), ["covariance", "(3, 3)", "(2, 2)"]),
        (lambda: log_likelihood(MODEL, X, nfe=8).interval(2.0), ["level", "2.0"]),
    ],
)
def test_parts(make, words):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), caught.value


numbers = st.one_of(
    st.integers(-2, 30), st.floats(-1, 2), st.sampled_from([None, math.nan, math.inf, True, "3", torch.tensor(2), []])
)
FUZZED = {
    "nfe": numbers,
    "end": numbers,
    "grid": st.one_of(st.none(), st.lists(st.floats(-0.1, 1.1), max_size=5), st.just(GRID), st.just("grid")),
    "solver": st.sampled_from(
        [None, heun(), euler_maruyama(), edm_stochastic(), probability_flow(PerSample(rtol=0.1, atol=0.1)), "heun"]
    ),
    "divergence": st.sampled_from(
        [None, ExactTrace(), ExactTrace(1), Hutchinson(2), HutchPlusPlus(1, 2), Hutchinson, "exact", 3]
    ),
    "quadrature": st.sampled_from([None, Quadrature(2), Refined(1e-2, 33), Joint(), Quadrature, 5, "many"]),
    "prior": st.sampled_from([None, GaussianPrior.of_moments(VPSDE(), torch.zeros(2), torch.eye(2)), "prior", 0.0]),
    "space": st.sampled_from(["data", "model", "latent", None]),
    "condition": st.sampled_from([None, torch.zeros(3), torch.zeros(2), {"a": torch.zeros(4)}]),
    "richardson": st.booleans(),
    "seed": numbers,
    "first_index": numbers,
    "batch_size": numbers,
    "dtype": st.sampled_from([torch.float32, torch.float64, torch.float16, "float32", None]),
}
tensors = st.sampled_from(
    [X, X.double(), X.int(), X[:0], X[0], X + math.nan, torch.zeros(3, 2, 2), "x", None, [[0.0, 1.0]]]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), names=st.lists(st.sampled_from(sorted(FUZZED)), max_size=3, unique=True))
def test_only_typed_errors_escape(data, names):
    """Of up to three arguments that mean nothing, together with whatever means something."""
    x = data.draw(st.one_of(st.just(X), st.just(X), tensors))
    arguments = {"nfe": 6, **{name: data.draw(FUZZED[name]) for name in names}}
    with contextlib.suppress(SDEToolkitError):
        found = log_likelihood(MODEL, x, **arguments)
        assert found.nats.shape == (3,)
        assert found.nats.isfinite().all()
