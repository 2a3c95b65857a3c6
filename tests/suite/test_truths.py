"""Truths: their references are right, their real samples fit, and their files are found."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sde_toolkit import EDMSDE, VPSDE, GaussianMixture, ScoreModel, ddim, gaussian, grids, heun, rk4, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.suite import Truth, kept_flows, truth_names, truths
from sde_toolkit.suite.exact_flow import solve_flow

EXACT = ["far_modes", "molecule", "nested", "oscillations", "planes", "power_spectrum", "real_digits", "ring"]
EXACT += ["square_of_modes", "unequal"]
NETWORKS = ["image_network", "small_network"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))


def moments_of(model):
    """w (K,), m (K, D), C (K, D, D) of a mixture."""
    parts = model.network.components()
    variances = torch.diag_embed(parts.variances)
    if parts.axes is not None:
        variances = parts.axes @ variances @ parts.axes.mT
    return parts.log_weights.exp().numpy(), parts.means.numpy(), variances.expand(-1, *variances.shape[1:]).numpy()


def denoiser(model):
    """D(y, r) = Σ_k p_k(y) (m_k + C_k (C_k + r²)⁻¹ (y − m_k)) for y = x_0 + r ε, by eigenvalues of our own."""
    w, m, C = moments_of(model)
    values, axes = np.linalg.eigh(C)

    def denoise(y, r):
        spread = values + r**2
        z = np.einsum("kji,bkj->bki", axes, y[:, None] - m)
        log_p = np.log(w) - 0.5 * (z**2 / spread + np.log(spread)).sum(-1)
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        ends = m + np.einsum("kij,bkj->bki", axes, values / spread * z)
        return np.einsum("bk,bkd->bd", p / p.sum(1, keepdims=True), ends)

    return denoise


@pytest.mark.parametrize("name", EXACT)
def test_a_reference_is_where_another_formula_in_other_coordinates_leads(name):
    """dy/dr = (y − D(y, r))/r in y = x/α and log r, with D from the mixture's moments, from r(1) or 10⁸ sizes."""
    truth = truths([name])[name]
    sde, size, n = truth.model.sde, truth.size, 2
    noise = truth.noise()[:n].double().flatten(1).numpy()
    one, zero = (torch.tensor(t, dtype=torch.float64) for t in (1.0, 0.0))
    first = 1e8 * size if sde.alpha(one) == 0 else (sde.sigma(one) / sde.alpha(one)).item()
    last = max(sde.sigma(zero).item(), 1e-7 * size)
    D = denoiser(truth.model)

    def slope(log_r, y):
        flat = y.reshape(noise.shape)
        return (flat - D(flat, math.exp(log_r))).ravel()

    span = (math.log(first), math.log(last))
    y = solve_ivp(slope, span, (first * noise).ravel(), "LSODA", rtol=1e-6, atol=1e-6 * size).y[:, -1]
    x = D(y.reshape(noise.shape), last)
    found = solve_flow(truth.model, truth.noise()[:n], tolerances=(1e-5, 1e-7))
    apart = np.sqrt(((x - found.x.flatten(1).numpy()) ** 2).mean(1))
    assert (apart <= found.own.numpy() + 1e-4 * size).all()


def test_the_reference_of_one_gaussian_is_its_closed_form():
    """x_0 = m + s/√(s² + r²) (x/α − m) at r = σ/α of t=1."""
    truth = Truth("one", gaussian([0.7, -0.2], VPSDE(), std=0.3), n=16)
    one = torch.tensor(1.0, dtype=torch.float64)
    alpha, sigma = VPSDE().alpha(one), VPSDE().sigma(one)
    mean = torch.tensor([0.7, -0.2], dtype=torch.float64)
    y = sigma / alpha * truth.noise().double()
    expected = mean + 0.3 / torch.sqrt(0.09 + (sigma / alpha) ** 2) * (y - mean)
    assert (truth.flow().x - expected).abs().max() < 1e-7


@pytest.mark.parametrize("name", ["power_spectrum", "molecule"])
def test_endpoints_have_the_moments_of_real_samples(name):
    """Whitened by exact moments: means within 5 standard errors, the mean square within 5 of its own."""
    truth = replace(truths([name])[name], n=48)
    w, m, C = moments_of(truth.model)
    mean = w @ m
    covariance = np.einsum("k,kij->ij", w, C + m[:, :, None] * m[:, None, :]) - np.outer(mean, mean)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    for x in (truth.flow().x, truth.model.draw(48, generator=torch.Generator().manual_seed(3))):
        z = (x.double().flatten(1).numpy() - mean) @ whiten.T
        assert np.abs(z.mean(0)).max() < 5 / math.sqrt(len(z))
        per_sample = (z**2).mean(1)
        assert abs(per_sample.mean() - 1) < 5 * per_sample.std() / math.sqrt(len(z))


@pytest.mark.parametrize("name", NETWORKS)
def test_references_of_the_embedded_networks_are_in_the_package(name):
    truth = truths([name])[name]
    flow = truth.kept_flow()
    assert flow is not None
    assert flow.own.median() < 2e-3 * truth.size


def test_the_reference_of_a_network_is_where_another_method_leads():
    """Runge-Kutta's method in σ/α is as near to it as two of its grids are to each other."""
    truth = truths(["small_network"])["small_network"]
    coarse, fine = (
        sample(truth.model, rk4(), grids.karras(truth.model.sde, n), x_start=truth.start()[:2], tweedie=True).x
        for n in (40, 80)
    )
    assert (fine - truth.flow().x[:2]).norm() < 2 * (fine - coarse).norm()


def test_a_solver_of_known_order_converges_at_it():
    """Order 1, 2 and 4 on a smooth flow, down to errors that only a right reference allows."""
    truth = replace(truths(["power_spectrum"])["power_spectrum"], n=16)
    start = truth.start(1.0, torch.float64)
    for solver, order in ((ddim(), 1), (heun(), 2), (rk4(), 4)):
        run = (grids.karras(truth.model.sde, steps) for steps in (32, 64))
        coarse, fine = (truth.error(sample(truth.model, solver, g, x_start=start, tweedie=True).x).rmse for g in run)
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_the_start_is_that_of_sample():
    truth = Truth("two", GaussianMixture([[-1.0], [1.0]], VPSDE(), std=0.2), n=16, seed=3)
    run = {"solver": rk4(), "grid": grids.karras(VPSDE(), 20)}
    drawn = sample(truth.model, **run, shape=(16, 1), seed=3, tweedie=True)
    started = sample(truth.model, **run, x_start=truth.start(), tweedie=True)
    assert torch.equal(drawn.x, started.x)
    assert truth.error(drawn.x).rmse < 1e-3 < truth.error(drawn.x.flip(0)).rmse


def test_real_samples_are_at_the_floor_and_others_are_not():
    truth = truths(["planes"])["planes"]
    x = truth.model.draw(truth.n, generator=torch.Generator().manual_seed(9))
    spread = 3 * math.hypot(truth.floor.error, truth.distance(x).error)
    assert truth.distance(x).value < truth.floor.value + spread
    thick = x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))  # twice the planes' thickness
    assert truth.distance(thick).value > truth.floor.value + spread


def test_errors_are_parts_of_the_size_whatever_the_unit():
    def errors(unit):
        model = GaussianMixture([[-unit], [unit]], EDMSDE(0.002 * unit, 80.0 * unit), std=0.2 * unit)
        truth = Truth("two", model, n=16)
        return truth.error(truth.flow().x + 0.1 * unit).rmse, truth.distance(truth.flow().x).value

    assert errors(16.0) == pytest.approx(errors(1.0), rel=1e-5)


def test_every_file_of_the_folder_is_a_truth_that_says_why_it_is_there():
    assert sorted(EXACT + NETWORKS) == truth_names()
    for name, truth in truths().items():
        assert truth.name == name
        assert truth.is_exact == (name in EXACT)
        assert len(truth.description) > 20
        assert len(truth.reason) > 20
    dimensions = [math.prod(truth.event_shape) for truth in truths().values()]
    assert (min(dimensions), max(d for d in dimensions if d != 784)) == (2, 256)
    assert len({type(truth.model.sde) for truth in truths().values()}) >= 7


def test_a_damaged_file_of_a_reference_is_solved_again(tmp_path):
    truth = Truth("two", GaussianMixture([[-1.0], [1.0]], VPSDE(), std=0.25), n=16)
    x = truth.flow().x
    (file,) = (tmp_path / "flows").glob("*.npz")
    kept_flows._known.clear()
    file.write_bytes(file.read_bytes()[:-40])
    assert torch.equal(truth.flow().x, x)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Truth("none", torch.nn.Linear(2, 2)), "model"),
        (lambda: Truth("none", ScoreModel.from_pretrained("digits")), "draw"),
        (lambda: Truth("few", GaussianMixture([[0.0]], VPSDE(), std=1.0), n=2), "n"),
        (lambda: truths(["circle"]), "truths"),
        (lambda: truths(["ring"])["ring"].error(torch.zeros(4, 3)), "x"),
    ],
)
def test_what_is_no_truth_is_refused_by_name(make, argument):
    with pytest.raises(ArgumentError) as refused:
        make()
    assert refused.value.argument == argument


def test_the_own_error_covers_the_error_of_a_rough_solve():
    truth = replace(truths(["ring"])["ring"], n=16)
    rough = solve_flow(truth.model, truth.noise(), tolerances=(1e-1, 1e-2))
    apart = (rough.x - truth.flow().x).square().flatten(1).mean(1).sqrt()
    assert apart.square().mean().sqrt() < rough.own_error
    assert rough.own_error < 10 * apart.square().mean().sqrt()
