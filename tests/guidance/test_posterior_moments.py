"""The moment law: under every method, biased or not, mean and covariance of Gaussian data follow their ODE."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import posterior_truth as truth
import pytest
import torch
from catalogue import SDES, convergence_order, doubles, name, own_moments
from posterior_truth import GAINS, affine, exact_posterior

from sde_toolkit import (
    VESDE,
    VPSDE,
    FlowMatching,
    ddim,
    ddpm,
    dpmpp_2m_sde,
    gaussian,
    grids,
    posterior,
    reschedule,
    rk4,
)
from sde_toolkit.guidance import JFPS, MMPS, PiGDM

MU, C = np.array([0.4, -0.3]), np.array([[1.0, 0.4], [0.4, 0.5]])
A, R, Y = np.array([[1.0, 0.5], [-0.3, 0.8]]), np.diag([0.36, 0.9]), np.array([1.2, -0.4])
METHODS = truth.methods(torch.tensor(truth.OTHER))
PATHS = [VPSDE(), VESDE(0.01, 50), FlowMatching()]
BEGIN, END = 4.0, 0.3  # noise levels


def of_method(method, sde, rows=2, **noise):
    model = gaussian(torch.tensor(MU), sde, covariance=torch.tensor(C))
    noise = noise or {"noise_std": torch.tensor(R.diagonal()[:rows]).sqrt()}
    return posterior(model, torch.tensor(A[:rows]), torch.tensor(Y[:rows]), **noise, method=method)


def formula(way, rows=2, R=R):
    return affine(GAINS[way], MU, C, A[:rows], R[:rows, :rows], Y[:rows])


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("way", GAINS)
def test_what_a_method_says_is_its_formula(way, sde):
    model = of_method(METHODS[way], sde)
    for t in (0.3, 0.8):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        a, b = formula(way)(sigma / alpha)
        x = doubles(0.0, 0.0, 1.0, -2.0, 3.0, 0.5).reshape(3, 2)
        said = model(x, t).x_0
        torch.testing.assert_close(said, torch.tensor(x.numpy() @ a.T / alpha + b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", GAINS)
def test_formulas_with_a_full_covariance_of_the_noise(way):
    full = np.array([[0.5, 0.2], [0.2, 0.3]])
    model = of_method(METHODS[way], VPSDE(), noise_covariance=torch.tensor(full))
    a, b = formula(way, R=full)(float(VPSDE().sigma(0.4) / VPSDE().alpha(0.4)))
    x = doubles(1.0, -2.0, 3.0, 0.5).reshape(2, 2)
    expected = torch.tensor(x.numpy() @ a.T / float(VPSDE().alpha(0.4)) + b)
    torch.testing.assert_close(model(x, 0.4).x_0, expected, rtol=1e-10, atol=1e-10)


def test_row_sums_below_zero_count_as_zero():
    opposed = np.array([[1.0, 0.5], [-3.0, 0.2]])
    tau = float(VPSDE().sigma(0.4) / VPSDE().alpha(0.4))
    J = C @ np.linalg.inv(C + tau**2 * np.eye(2))
    assert ((opposed @ (tau**2 * J) @ opposed.T).sum(1) < 0).any()
    model = gaussian(torch.tensor(MU), VPSDE(), covariance=torch.tensor(C))
    given = posterior(model, torch.tensor(opposed), torch.tensor(Y), 0.5, method=METHODS["TMPD"])
    a, b = affine(GAINS["TMPD"], MU, C, opposed, 0.25 * np.eye(2), Y)(tau)
    x = doubles(1.0, -2.0, 3.0, 0.5).reshape(2, 2)
    expected = torch.tensor(x.numpy() @ a.T / float(VPSDE().alpha(0.4)) + b)
    torch.testing.assert_close(given(x, 0.4).x_0, expected, rtol=1e-10, atol=1e-10)


def time_of(sde, level):
    return sde.inverse_half_log_snr(-math.log(level)).item()


START = np.array([1.0, -2.0]), BEGIN**2 * np.eye(2)


def scheme_moments(model, solver, n):
    """Mean and covariance of x̄ at the end of n steps, of the scheme itself."""
    sde = model.sde
    grid = grids.uniform_lambda(sde, n, start=time_of(sde, BEGIN), end=time_of(sde, END))
    alpha = sde.alpha(grid[0])
    with torch.no_grad():
        mean, covariance = own_moments(
            solver, model, grid, alpha * torch.tensor(START[0]), alpha**2 * torch.tensor(START[1])
        )
    alpha = sde.alpha(grid[-1])
    return np.array([*(mean / alpha), *(covariance.flatten() / alpha**2)])


def true_moments(of_tau, eta):
    mean, covariance = truth.moments(of_tau, eta, BEGIN, END, *START)
    return np.array([*mean, *covariance.flatten()])


def extrapolated(values, order):
    """Richardson's: each pass removes the next power of the step."""
    for power in range(order, order + len(values) - 1):
        values = [b + (b - a) / (2**power - 1) for a, b in pairwise(values)]
    return values[-1]


CASES = [(way, (rk4(), dpmpp_2m_sde())[(i + k) % 2], PATHS[(i + k) % 3]) for k in (0, 1) for i, way in enumerate(GAINS)]


@pytest.mark.parametrize(("way", "solver", "sde"), CASES, ids=name)
def test_mean_and_covariance_follow_their_ode(way, solver, sde):
    model, order = of_method(METHODS[way], sde), solver.integrator.order
    counts = (8, 16, 32) if solver.eta == 0 else (16, 32, 64, 128)
    found = extrapolated([scheme_moments(model, solver, n) for n in counts], order)
    np.testing.assert_allclose(found, true_moments(formula(way), solver.eta), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [ddim(), ddpm()], ids=name)
@pytest.mark.parametrize("way", GAINS)
def test_methods_of_first_order_tend_to_it_at_that_order(way, solver):
    rows = 1 if way == "DDNM" else 2  # of two rows it makes a constant x̂_0, without an error of discretisation
    model, counts = of_method(METHODS[way], VPSDE(), rows), (20, 40)
    truth = true_moments(formula(way, rows), solver.eta)
    errors = [np.linalg.norm(scheme_moments(model, solver, n) - truth) for n in counts]
    assert convergence_order(counts, errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("method", "rows"), [(MMPS(tolerance=0.0), 2), (JFPS(torch.tensor(C)), 1), (PiGDM(1.0), 1)], ids=name
)
def test_exact_methods_end_at_the_posterior_by_the_flow_the_sde_and_another_path(method, rows):
    """Each with its own assumption: any Gaussian, C known, N(m, I)."""
    sde, covariance = VPSDE(), np.eye(2) if isinstance(method, PiGDM) else C
    prior = gaussian(torch.tensor(MU), sde, covariance=torch.tensor(covariance))
    how = {"method": method}
    A_, y, std = torch.tensor(A[:rows]), torch.tensor(Y[:rows]), torch.tensor(R.diagonal()[:rows]).sqrt()
    mean, expected = exact_posterior(MU, covariance, A[:rows], R[:rows, :rows], Y[:rows])
    for given, solver in (
        (posterior(prior, A_, y, std, **how), rk4()),
        (posterior(prior, A_, y, std, **how), dpmpp_2m_sde()),
        (reschedule(posterior(prior, A_, y, std, **how), FlowMatching()), rk4()),
        (posterior(reschedule(prior, FlowMatching()), A_, y, std, **how), rk4()),
    ):
        start, end = (time_of(given.sde, level) for level in (BEGIN, END))
        counts = (6, 12, 24) if solver.eta == 0 else (16, 32, 64)
        at = given.sde.alpha(start)
        begin = mean * float(at), (expected + BEGIN**2 * np.eye(2)) * float(at) ** 2

        def ends(n, given=given, solver=solver, grid=(start, end), begin=begin):
            times = grids.uniform_lambda(given.sde, n, start=grid[0], end=grid[1])
            with torch.no_grad():
                found = own_moments(solver, given, times, *map(torch.tensor, begin))
            alpha = float(given.sde.alpha(times[-1]))
            return np.array([*(found[0] / alpha), *(found[1] / alpha**2).flatten()])

        found = extrapolated([ends(n) for n in counts], solver.integrator.order)
        law = np.array([*mean, *(expected + END**2 * np.eye(2)).flatten()])
        np.testing.assert_allclose(found, law, rtol=1e-4, atol=1e-4)


DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_of_biases_is_up_to_date_and_has_the_figures_of_an_independent_program(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from make_bias_table import written

    page = (DOCS / "posterior-sampling.md").read_text(encoding="utf-8")
    assert written(page) == page, "run python docs/make_bias_table.py"
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    figures = {
        "SigmaDPS()": (f"{2 / math.e:.3f}", "0.865", "0.000; +0.50", "0.525; +0.22"),
        "PiGDM(1)": ("2.090; −3.97", "1.136; −1.06"),
        "DiffPIR(1)": ("0.897", "0.964"),
        "MMPS()": ("1.000; 0 |" + " 1.000; 0 |" * 7,),
    }
    for way, said in figures.items():
        assert all(figure in rows[way] for figure in said), rows[way]
