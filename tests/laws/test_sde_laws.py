"""Law 1: α, σ, f, g, λ and the distributions of every SDE tell one story."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from catalogue import (
    EVENT_SHAPES,
    PUBLIC_SDES,
    SDES,
    SMOOTH_SDES,
    difference_step,
    doubles,
    integrate,
    name,
    off_kinks,
    slope_of,
)

from sde_toolkit import SDE, VESDE, VPSDE, DiscreteVPSDE, SubVPSDE
from sde_toolkit.sde.derive import inverse_decreasing

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_public_sde = pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
every_smooth_sde = pytest.mark.parametrize("sde", SMOOTH_SDES, ids=name)
TIMES = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
SCHEDULES = ("alpha", "log_alpha", "sigma", "f", "g", "d_alpha", "d_sigma", "half_log_snr", "diffusion")


@every_sde
def test_moments_obey_the_equations_of_the_sde(sde):
    t = off_kinks(sde, TIMES)
    h = difference_step(sde, t)
    mean, var = sde.alpha, lambda u: sde.sigma(u) ** 2
    # Rounding of the differences: eps |value| / h, below 1e-11 of the value.
    torch.testing.assert_close(slope_of(mean, t, h), sde.f(t) * mean(t), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(slope_of(var, t, h), 2 * sde.f(t) * var(t) + sde.g(t) ** 2, rtol=1e-9, atol=1e-10)


@every_sde
def test_slopes_of_alpha_and_sigma(sde):
    t = off_kinks(sde, TIMES)
    h = difference_step(sde, t)
    torch.testing.assert_close(sde.d_alpha(t), slope_of(sde.alpha, t, h), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sde.d_sigma(t), slope_of(sde.sigma, t, h), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sde.half_log_snr(t), torch.log(sde.alpha(t) / sde.sigma(t)), rtol=0, atol=1e-12)


@every_sde
def test_data_are_whole_at_time_zero(sde):
    assert sde.alpha(0.0).item() == 1
    assert sde.log_alpha(0.0).item() == 0
    assert sde.sigma(0.0).item() < sde.sigma(1.0).item()


@pytest.mark.parametrize("sde", [*SDES, VPSDE(0.1, 80.0), SubVPSDE(30.0, 0.5), VESDE(1e-6, 1e6)], ids=name)
def test_half_log_snr_falls_and_round_trips(sde):
    t = torch.cat([torch.logspace(-9, -2.1, 40, dtype=torch.float64), TIMES, doubles(1.0)])
    lambdas = sde.half_log_snr(t)
    assert (lambdas.diff() < 0).all()
    # An ulp of λ is at most 2e-15; it moves t by that over |λ'|, and |λ'| is at least 1/2 and about 1/(2t) near 0.
    torch.testing.assert_close(sde.inverse_half_log_snr(lambdas), t, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(sde.half_log_snr(sde.inverse_half_log_snr(lambdas)), lambdas, rtol=1e-12, atol=1e-12)


@every_sde
def test_inverse_of_half_log_snr_agrees_with_bisection(sde):
    lambdas = sde.half_log_snr(torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    by_bisection = SDE.solve_half_log_snr(sde, lambdas)
    torch.testing.assert_close(sde.inverse_half_log_snr(lambdas), by_bisection, rtol=1e-10, atol=1e-13)


@every_sde
def test_forward_simulation_has_the_marginal(sde):
    generator = torch.Generator().manual_seed(1)
    paths, steps, end, x_0 = 20_000, 2000, 0.4, 2.0
    grid = torch.linspace(0, end, steps + 1, dtype=torch.float64)
    x = sde.perturb(torch.full((paths,), x_0), 0.0, torch.randn(paths, generator=generator))
    increment = math.sqrt(end / steps)
    drift_of_one, g = sde.sde(torch.ones(steps), grid[:-1])  # the drift is linear in x
    for k in range(steps):
        x = x + drift_of_one[k] * x * (end / steps) + g[k] * increment * torch.randn(paths, generator=generator)
    mean, std = sde.marginal_prob(doubles(x_0), end)
    # Euler-Maruyama's own bias at 2000 steps is below one standard error; five in all.
    assert abs(x.mean().item() - mean.item()) < 5 * std.item() / math.sqrt(paths)
    assert abs(x.std().item() / std.item() - 1) < 5 / math.sqrt(2 * paths)


@every_sde
def test_variance_is_the_integrated_noise_down_to_tiny_times(sde):
    for t in (1e-6, 1e-3, 0.3):
        fresh = integrate(sde, lambda u, t=t: (sde.g(u) * sde.alpha(t) / sde.alpha(u)) ** 2, 0.0, t)
        kept = (sde.alpha(t) * sde.sigma(0.0)) ** 2
        # Not a difference from 1: no digit may be lost although the variance is 1e-7 or, for sub-VP, 1e-14.
        assert (sde.sigma(t) ** 2).item() == pytest.approx((kept + fresh).item(), rel=1e-11, abs=0)


@pytest.mark.parametrize("t", [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.7, 1.0])
def test_sigma_against_fifty_digits(t):
    with mpmath.workdps(50):
        B = mpmath.quad(lambda u: mpmath.mpf(0.1) + u * (20 - mpmath.mpf(0.1)), [0, mpmath.mpf(t)])
        variance = 1 - mpmath.exp(-B)
        first_beta = mpmath.mpf(DiscreteVPSDE().betas[0])
        interpolated = 1 - (1 - first_beta) ** (1000 * mpmath.mpf(t))
    assert VPSDE().sigma(t).item() == pytest.approx(float(mpmath.sqrt(variance)), rel=1e-15, abs=0)
    assert SubVPSDE().sigma(t).item() == pytest.approx(float(variance), rel=1e-15, abs=0)
    if t <= 1e-3:
        assert DiscreteVPSDE().sigma(t).item() == pytest.approx(float(mpmath.sqrt(interpolated)), rel=1e-14, abs=0)


@every_sde
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_time_gets_its_own_dtype_and_shape_and_the_same_value(sde, schedule):
    evaluate = getattr(sde, schedule)
    for t in (1e-4, 0.25, 0.5, 0.7853):
        number = evaluate(t)
        assert number.dtype == torch.float64
        assert number.shape == ()
        for shape in ((), (1,), (5,)):
            # The vectorised exp of torch differs from its scalar one in the last digit.
            wide = evaluate(torch.full(shape, t, dtype=torch.float64))
            torch.testing.assert_close(wide, number.expand(shape), rtol=1e-13, atol=0)
            for dtype in (torch.float32, torch.bfloat16):
                narrow = torch.full(shape, t, dtype=dtype)
                expected = evaluate(narrow.double()).to(dtype)  # computed in float64, rounded once
                torch.testing.assert_close(evaluate(narrow), expected, rtol=0, atol=0)


@every_sde
def test_closed_forms_agree_with_what_the_base_class_derives(sde):
    """Every override, found by name, against the base class's derivation from the other methods."""
    t = off_kinks(sde, torch.cat([doubles(1e-6, 1e-4), TIMES]))
    for method in ("f", "g", "d_alpha", "d_sigma", "half_log_snr"):
        derived, given = getattr(SDE, method)(sde, t), getattr(sde, method)(t)
        torch.testing.assert_close(given, derived, rtol=1e-9, atol=1e-12, msg=lambda m, k=method: f"{k}: {m}")


@every_smooth_sde
def test_the_path_follows_from_the_coefficients(sde):
    class Rebuilt(SDE):
        sigma_0 = sde.sigma(0.0).item()

        def f(self, t):
            return sde.f(t)

        def g(self, t):
            return sde.g(t)

    t = torch.cat([doubles(0.0, 1e-6, 1e-4), TIMES, doubles(1.0)])
    if not sde.f(1.0).isfinite():
        t = t[t < 0.98]  # the signal dies at t=1: beside that pole the quadrature loses its digits
    rebuilt = Rebuilt()
    torch.testing.assert_close(rebuilt.alpha(t), sde.alpha(t), rtol=1e-10, atol=0)
    torch.testing.assert_close(rebuilt.sigma(t), sde.sigma(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(rebuilt.half_log_snr(t[1:]), sde.half_log_snr(t[1:]), rtol=0, atol=1e-9)


def cosine_betas(N):
    bar = [math.cos((i / N + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(N + 1)]
    return [min(1 - b / a, 0.999) for a, b in pairwise(bar)]


BETAS = {
    "ddpm": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist(),
    "cosine": cosine_betas(400),
    "seven": [0.1, 0.3, 0.01, 0.5, 0.2, 0.9, 0.4],
    "zero terminal SNR": [*torch.linspace(1e-3, 0.3, 48, dtype=torch.float64).tolist(), 1.0],
    "one": [0.5],
}


@pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS.keys())
def test_discrete_schedule_is_met_at_every_knot(betas):
    sde, N = VPSDE.from_betas(betas), len(betas)
    bar = mpmath.mpf(1)
    with mpmath.workdps(40):
        for i, beta in enumerate(betas, start=1):
            bar *= 1 - mpmath.mpf(beta)
            assert (sde.alpha(i / N) ** 2).item() == pytest.approx(float(bar), rel=1e-13, abs=0)
            assert (sde.sigma(i / N) ** 2).item() == pytest.approx(float(1 - bar), rel=1e-13, abs=0)
            middle = (i - 0.5) / N
            assert i == N or sde.g(i / N).item() == pytest.approx(sde.g(middle).item(), rel=1e-12)  # interval ends here


def test_zero_terminal_snr_has_no_signal_left_and_a_linear_variance():
    betas = BETAS["zero terminal SNR"]
    sde, N = VPSDE.from_betas(betas), len(betas)
    assert sde.alpha(1.0).item() == 0
    assert sde.sigma(1.0).item() == 1
    assert sde.half_log_snr(1.0).item() == -math.inf
    last = torch.linspace(1 - 1 / N, 1, 9, dtype=torch.float64)
    squares = sde.alpha(last) ** 2
    torch.testing.assert_close(squares, torch.linspace(squares[0], 0, 9, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    inner = last[1:-1]
    torch.testing.assert_close(sde.inverse_half_log_snr(sde.half_log_snr(inner)), inner, rtol=1e-12, atol=0)


def test_betas_may_come_as_any_sequence():
    expected = VPSDE.from_betas(BETAS["seven"])
    assert VPSDE.from_betas(tuple(BETAS["seven"])) == expected
    assert VPSDE.from_betas(torch.tensor(BETAS["seven"], dtype=torch.float64)) == expected
    assert hash(VPSDE.from_betas(BETAS["seven"])) == hash(expected)


@every_public_sde
@pytest.mark.parametrize("event", EVENT_SHAPES, ids=name)
def test_prior_is_the_normal_of_its_standard_deviation(sde, event):
    generator = torch.Generator().manual_seed(2)
    n = 16_000 // math.prod(event) + 3
    for t in (1.0, 0.6):
        z = sde.prior_sampling((n, *event), t, generator=generator, dtype=torch.float64)
        assert z.shape == (n, *event)
        normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), sde.sigma(t))
        expected = normal.log_prob(z).reshape(n, -1).sum(1)
        torch.testing.assert_close(sde.prior_logp(z, t), expected, rtol=1e-12, atol=1e-9)
        one_time_each = torch.full((n,), t, dtype=torch.float64)
        torch.testing.assert_close(sde.prior_logp(z, one_time_each), expected, rtol=1e-12, atol=1e-9)
        standard = z / sde.sigma(t)
        assert abs(standard.std().item() - 1) < 5 / math.sqrt(2 * z.numel())
        assert abs(standard.mean().item()) < 5 / math.sqrt(z.numel())


@every_sde
@pytest.mark.parametrize("event", EVENT_SHAPES, ids=name)
def test_marginal_drift_and_perturbation_act_sample_by_sample(sde, event):
    generator = torch.Generator().manual_seed(3)
    x, z = torch.randn(2, 4, *event, generator=generator)
    times = doubles(0.1, 0.4, 0.7, 1.0)
    mean, std = sde.marginal_prob(x, times)
    drift, g = sde.sde(x, times)
    assert mean.dtype == std.dtype == drift.dtype == g.dtype == torch.float32
    assert mean.shape == drift.shape == x.shape
    assert std.shape == g.shape == (4,)
    noisy = sde.perturb(x, times, z)
    for i, t in enumerate(times.tolist()):
        one = sde.marginal_prob(x[i : i + 1], t)
        torch.testing.assert_close(mean[i], one[0][0])
        torch.testing.assert_close(std[i], one[1])
        torch.testing.assert_close(drift[i], sde.drift(x[i : i + 1], t)[0])
        torch.testing.assert_close(noisy[i], x[i] * sde.alpha(t).float() + z[i] * sde.sigma(t).float())
        torch.testing.assert_close(drift[i].double(), x[i].double() * sde.f(t), rtol=1e-6, atol=1e-6)


def test_a_schedule_is_inverted_where_it_is_flat_or_vertical():
    """There the derivative is no help, and the time is still right, with a finite derivative."""
    for schedule in (lambda t: 1 - t**2, lambda t: 1 - torch.sqrt(t), lambda t: (1 - t) ** 3):
        t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
        value = schedule(t).requires_grad_()
        found = inverse_decreasing(schedule, value)
        torch.testing.assert_close(found, t, rtol=0, atol=1e-5)
        (slope,) = torch.autograd.grad(found.sum(), value)
        assert slope.isfinite().all()
