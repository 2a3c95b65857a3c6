"""log_likelihood is the log density of Gaussians and of mixtures, for every SDE, down to t = 0, in any coordinates."""

import pytest
import torch
from densities import (
    ALL_SDES,
    COVARIANCES,
    F64,
    MEANS,
    WEIGHTS,
    Flow,
    UserCoefficients,
    full_covariance,
    last_time,
    mixture,
    name,
    one_gaussian,
    points,
    signal_at_the_end,
    truth,
    truth_of_one,
)

from sde_toolkit import (
    VESDE,
    VPSDE,
    Affine,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    gaussian,
    grids,
    heun,
    log_likelihood,
    probability_flow,
    unipc,
)
from sde_toolkit.errors import GridError
from sde_toolkit.integrators import PerSample, Scipy, TorchDiffEq
from sde_toolkit.likelihood import Quadrature

ADAPTIVE = [PerSample(rtol=1e-6, atol=1e-6), TorchDiffEq(rtol=1e-6, atol=1e-6), Scipy(rtol=1e-6, atol=1e-6)]
MODELS = [(one_gaussian, truth_of_one), (mixture, truth)]


def error_per_dimension(found, expected, D=2):
    return (found - expected).abs() / D


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("sde", "make", "density", "integrator"),
    [(sde, *MODELS[i % 2], ADAPTIVE[i % len(ADAPTIVE)]) for i, sde in enumerate(ALL_SDES)],
    ids=name,
)
def test_adaptive_solvers_give_the_closed_form(sde, make, density, integrator):
    """Every sample to 1e-5 nats per dimension at tolerance 1e-6, with as many nodes as it needs."""
    model, end = make(sde), sde.likelihood_end
    x = points(model)
    found = log_likelihood(
        model, x, solver=probability_flow(integrator), grid=[last_time(sde), end], prior=model.log_prob, **F64
    )
    error = error_per_dimension(found.nats, density(model, x, end))
    assert error.max() < 1e-5, error
    assert found.integral.abs().mean() > 0.05  # a divergence that matters,
    if make is mixture:
        assert found.integral.std() > 0.05  # and that differs from place to place


@pytest.mark.on_device
@pytest.mark.parametrize(("make", "density"), MODELS, ids=name)
@pytest.mark.parametrize("sde", ALL_SDES, ids=name)
def test_the_default_solver_gives_the_closed_form(sde, make, density):
    """From t = 1, where α may be 0, without a word about the solver: 100 evaluations and 25 nodes are enough."""
    model, end = make(sde), sde.likelihood_end
    x = points(model)
    found = log_likelihood(model, x, nfe=100, prior=model.log_prob, **F64)
    assert error_per_dimension(found.nats, density(model, x, end)).max() < 1e-5
    assert found.grid[0] == 1
    assert found.end == end
    assert found.nfe <= 100


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()], ids=name)
def test_the_error_falls_with_the_order_of_the_default_solver(sde):
    model = mixture(sde)
    x = points(model)
    expected = truth(model, x, sde.likelihood_end)
    errors = [
        error_per_dimension(
            log_likelihood(model, x, nfe=n, quadrature=Quadrature(40), prior=model.log_prob, **F64).nats, expected
        ).mean()
        for n in (50, 100, 200)
    ]
    assert errors[0] / errors[1] > 8
    assert errors[1] / errors[2] > 8


@pytest.mark.on_device
@pytest.mark.parametrize(("solver", "steps", "bar"), [(heun(), 200, 1e-3), (unipc(3), 100, 1e-3)], ids=name)
def test_any_deterministic_solver_on_any_grid_will_do(solver, steps, bar):
    model = mixture(VPSDE())
    x = points(model)
    grid = grids.uniform_lambda(model.sde, steps, end=1e-4)
    found = log_likelihood(model, x, solver=solver, grid=grid, prior=model.log_prob, **F64)
    assert error_per_dimension(found.nats, truth(model, x, 1e-4)).mean() < bar
    assert found.end == 1e-4


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [sde for sde in ALL_SDES if sde.sigma(0.0) == 0], ids=name)
def test_the_answer_is_finite_and_right_down_to_zero(sde):
    model = mixture(sde)
    x = points(model)
    for end in (1e-4, 1e-7, 0.0):
        found = log_likelihood(model, x, nfe=100, end=end, prior=model.log_prob, **F64)
        assert error_per_dimension(found.nats, truth(model, x, end)).max() < 1e-5
        assert found.truncation.isfinite().all()
        assert found.quadrature_error.isfinite().all()
    assert found.truncation.abs().max() == 0  # nothing was cut off


@pytest.mark.on_device
def test_zero_is_out_of_reach_of_methods_in_lambda_unless_there_is_noise_at_zero():
    for model in (mixture(VPSDE()), mixture(UserCoefficients())):
        how = {"solver": probability_flow(ADAPTIVE[0]), "end": 0.0, "prior": model.log_prob, **F64}
        x = points(model)
        if model.sde.sigma(0.0) == 0:
            with pytest.raises(GridError):
                log_likelihood(model, x, **how)
        else:
            assert error_per_dimension(log_likelihood(model, x, **how).nats, truth(model, x, 0.0)).max() < 1e-5


@pytest.mark.on_device
@pytest.mark.parametrize("D", [8, 64])
def test_the_exact_trace_in_more_dimensions(D):
    model = gaussian(torch.linspace(-1, 1, D, dtype=torch.float64), VPSDE(), covariance=full_covariance(D))
    x = points(model, 4)
    found = log_likelihood(model, x, nfe=100, prior=model.log_prob, **F64)
    expected = truth(model, x, 1e-5, torch.ones(1), torch.linspace(-1, 1, D).double()[None], full_covariance(D)[None])
    assert error_per_dimension(found.nats, expected, D).max() < 1e-5
    assert found.products == D
    assert (found.standard_error == 0).all()


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [VPSDE(), Flow()], ids=name)
def test_in_single_precision(sde):
    """float32 throughout, as by default: its rounding costs less than 5e-5 nats per dimension."""
    model = mixture(sde)
    x = points(model).float()
    found = log_likelihood(model, x, nfe=100, prior=model.log_prob)
    assert found.latent.dtype == torch.float32
    assert found.nats.dtype == torch.float64
    assert error_per_dimension(found.nats, truth(model, x, 1e-5)).max() < 5e-5


@pytest.mark.on_device
@pytest.mark.parametrize(
    "transform", [Affine(3.0, 0.25), Affine(-1.0, -4.0), Affine([1000.0, 0.1], [-1 / 300, 1e3])], ids=str
)
@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()], ids=name)
def test_scaling_shifting_and_mirroring_the_data_adds_the_log_determinant(sde, transform):
    """The density of data = y/scale + shift is that of y times Π|scale|; the latent does not change."""
    model = mixture(sde)
    y = points(model)
    data = transform.inverse(y)
    raw = ScoreModel(model.network, sde, "v", time_input=model.time_input, transform=transform)
    of_data = log_likelihood(raw, data, nfe=100, end=0.0, prior=model.log_prob, **F64)
    of_model = log_likelihood(raw, y, nfe=100, end=0.0, prior=model.log_prob, space="model", **F64)
    torch.testing.assert_close(of_data.latent, of_model.latent, rtol=1e-12, atol=1e-12)
    shift, scale = (torch.tensor(v, dtype=torch.float64).expand(2) for v in (transform.shift, transform.scale))
    determinant = scale.prod().abs().log().item()
    torch.testing.assert_close(of_data.nats - of_model.nats, torch.full_like(y[:, 0], determinant), rtol=0, atol=1e-10)
    means, covariances = MEANS / scale + shift, COVARIANCES / torch.outer(scale, scale)
    expected = truth(model, data, None, WEIGHTS, means, covariances)
    assert error_per_dimension(of_data.nats, expected).max() < 1e-5
    assert (of_data.space, of_model.space, of_model.log_abs_det) == ("data", "model", 0.0)


@pytest.mark.on_device
@pytest.mark.parametrize("sde", ALL_SDES, ids=name)
def test_rotating_the_data_changes_nothing(sde):
    """The flow commutes with rotations, and so does every solver of it: an identity up to rounding."""
    turn = torch.tensor([[0.28, 0.96], [-0.96, 0.28]], dtype=torch.float64)
    model = mixture(sde)
    turned = GaussianMixture(MEANS @ turn.T, sde, covariances=turn @ COVARIANCES @ turn.T, weights=WEIGHTS)
    x = points(model)
    here, there = (log_likelihood(m, y, nfe=24, **F64) for m, y in ((model, x), (turned, x @ turn.T)))
    torch.testing.assert_close(here.nats, there.nats, rtol=0, atol=1e-9)
    torch.testing.assert_close(here.latent @ turn.T, there.latent, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE()], ids=name)
def test_the_density_integrates_to_one(sde):
    """Even where the flow is solved coarsely, in data space, with the SDE's own prior: Σ exp(nats) Δx = 1."""
    model = GaussianMixture([[-1.0], [1.5]], sde, std=[0.4, 0.3], weights=[0.3, 0.7])
    model = ScoreModel(model.network, sde, "v", time_input=model.time_input, transform=Affine(10.0, 0.1))
    x = torch.linspace(-30, 50, 801, dtype=torch.float64)[:, None]
    found = log_likelihood(model, x, nfe=60, **F64)
    assert found.nats.exp().sum() * (x[1] - x[0]).item() == pytest.approx(1.0, abs=1e-4)
    assert signal_at_the_end(sde) or found.prior_cost.max() == 0  # N(0, σ² I) is right where α = 0
