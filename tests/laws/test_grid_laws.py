"""The spacing of every grid builder, exactly; lists of noise levels as grids."""

import inspect
import itertools
import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from catalogue import SDES, Flow, doubles, name
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from sde_toolkit import EDMSDE, VESDE, VPSDE, DiscreteVPSDE, ddim, gaussian, grids, sample
from sde_toolkit.errors import GridError
from sde_toolkit.models import time_inputs
from sde_toolkit.sde import Knots, beta_schedules

every_sde = pytest.mark.parametrize("sde", [*SDES, Flow()], ids=name)
END, START = 0.02, 0.97


def odds(sde, t):
    """σ/α."""
    return sde.sigma(t) / sde.alpha(t)


COORDINATES = {
    grids.uniform: lambda sde, t: t,
    grids.quadratic: lambda sde, t: torch.sqrt(t),
    grids.uniform_lambda: lambda sde, t: torch.log(odds(sde, t)),
    grids.karras: lambda sde, t: odds(sde, t) ** (1 / 7),
    # σ/(α + σ) = sin²(πs/2), and the angle of (α, σ): what the docstring of sech says of two of its members
    lambda sde, n, **ends: grids.sech(sde, n, center=0.0, width=2.0, **ends): lambda sde, t: torch.asin(
        torch.sqrt(sde.sigma(t) / (sde.alpha(t) + sde.sigma(t)))
    ),
    lambda sde, n, **ends: grids.sech(sde, n, center=0.0, width=1.0, **ends): lambda sde, t: torch.atan2(
        sde.sigma(t), sde.alpha(t)
    ),
}


@pytest.mark.parametrize("builder", COORDINATES, ids=["uniform", "quadratic", "λ", "karras", "sech 2", "sech 1"])
def test_steps_are_equal_in_the_coordinate(builder):
    for sde, n in itertools.product([*SDES, Flow()], (1, 2, 40)):
        grid = builder(sde, n, start=START, end=END)
        assert (len(grid), grid[0].item(), grid[-1].item()) == (n + 1, START, END)
        steps = COORDINATES[builder](sde, grid).diff()
        torch.testing.assert_close(steps, steps.mean().expand(n), rtol=1e-9, atol=0, msg=lambda m, s=sde: f"{s}: {m}")


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0, 20.0])
def test_karras_has_equal_steps_in_the_root_of_its_exponent(rho):
    grid = grids.karras(VPSDE(), 9, rho=rho, start=START, end=END)
    steps = (odds(VPSDE(), grid) ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(9), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("center", "width"), [(0.75, 1.5), (-2.0, 0.4), (1.0, 3.0)])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), Flow()], ids=name)
def test_each_step_of_sech_holds_the_same_mass_of_its_density(sde, center, width):
    """∫ sech((λ − center)/width) dλ over a step, by quadrature in many digits."""
    grid = grids.sech(sde, 6, center=center, width=width, start=START, end=END)
    lambdas = sde.half_log_snr(grid).tolist()
    with mpmath.workdps(25):
        masses = [
            mpmath.quad(lambda v: mpmath.sech((v - center) / width), mpmath.linspace(a, b, 9))
            for a, b in pairwise(lambdas)
        ]
    assert np.array(masses, float) == pytest.approx(float(sum(masses)) / 6, rel=1e-9)


@pytest.mark.parametrize("N", [1, 7, 10, 1000])
def test_discrete_grids_hold_the_nearest_indices(N):
    torch.testing.assert_close(grids.discrete(N) * N, torch.arange(N, -1, -1).double(), rtol=1e-15, atol=0)
    for steps in {1, 2, 3, N // 2, N - 1, N} & set(range(1, N + 1)):
        indices = grids.discrete(N, steps) * N
        wanted = torch.tensor([N * k / steps for k in range(steps, -1, -1)], dtype=torch.float64)
        torch.testing.assert_close(indices, indices.round(), rtol=1e-15, atol=0)
        assert (indices - wanted).abs().max() <= 0.5 + 1e-9
        assert (indices[0], indices[-1]) == (N, 0)


def test_every_builder_has_its_law():
    """A new builder is to be added above."""
    held = {"uniform", "quadratic", "uniform_lambda", "karras", "sech", "discrete", "from_sigmas", "check_grid"}
    assert {key for key in grids.__all__ if inspect.isfunction(getattr(grids, key))} == held


# Lists of noise levels.


@every_sde
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
def test_a_list_of_sigmas_is_met(sde, dtype):
    t = torch.linspace(0.9, 0.1, 9).double()
    sigmas = odds(sde, t).to(dtype)
    for form in (sigmas, sigmas.double(), sigmas.tolist(), sigmas.numpy(), tuple(sigmas.tolist())):
        grid = grids.from_sigmas(sde, form)
        torch.testing.assert_close(odds(sde, grid), sigmas.double(), rtol=1e-10, atol=0)
        torch.testing.assert_close(grid, t, rtol=1e-11 if dtype == torch.float64 else 1e-5, atol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(), DiscreteVPSDE(), Knots], ids=name)
@pytest.mark.parametrize("digits", [3, 4, 5, 6, 9, 17])
def test_rounding_past_the_ends_is_forgiven_to_the_digits_of_the_list(sde, digits):
    """Either way of rounding, in float32 too."""
    sde = VPSDE(0.3, 11.0) if sde is Knots else sde
    high, low = (odds(sde, t) for t in doubles(1.0, 1e-3))
    unit = 10.0 ** (math.floor(math.log10(high.item())) + 1 - digits)
    for rounded in (math.ceil(high.item() / unit) * unit, math.floor(high.item() / unit) * unit):
        value = float(f"{rounded:.{digits}g}")
        for levels in ([value, low.item()], torch.tensor([value, low.item()]), torch.tensor([value, low]).double()):
            if value - high.item() > unit / 2:  # not what rounding to the nearest makes
                continue
            assert grids.from_sigmas(sde, levels)[0].item() == pytest.approx(1.0, abs=2 * unit / high.item() + 1e-7)


def test_a_published_list_of_ten_steps():
    """ "Align your steps" for the schedule of Stable Diffusion 1.5, whose last level is 14.6146."""
    levels = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    sde = VPSDE.from_betas(beta_schedules.scaled_linear_betas(1000, 0.00085, 0.012))
    grid = grids.from_sigmas(sde, levels)
    assert grid[0].item() == 1
    torch.testing.assert_close(odds(sde, grid[1:]), doubles(*levels[1:]), rtol=1e-10, atol=0)
    to_the_data = grids.from_sigmas(sde, [*levels, 0.0])
    assert to_the_data[-1].item() == 0
    torch.testing.assert_close(to_the_data[:-1], grid, rtol=0, atol=0)
    x = sample(gaussian([1.0], sde, std=0.1), ddim(), to_the_data, shape=(500, 1)).x
    assert abs(x.mean().item() - 1) < 0.05


BAD_LISTS = {
    "beyond": (VPSDE(), [200.0, 1.0], ["sigmas[0]=200.0", "152.167"]),
    "a little beyond": (VESDE(), [50.06, 1.0], ["sigmas[0]=50.06", "50 at t=1"]),
    "0 where σ(0) > 0": (EDMSDE(), [80.0, 1.0, 0.0], ["sigmas[2]=0.0", "0.002", "tweedie"]),
    "rising": (VPSDE(), [0.1, 1.0], ["decrease", "reversed"]),
    "repeated": (VPSDE(), [2.0, 1.0, 1.0], ["positions 1 and 2"]),
    "negative": (VPSDE(), [2.0, -1.0], ["not negative"]),
    "not a number": (VPSDE(), [2.0, math.nan], ["finite"]),
    "one": (VPSDE(), [2.0], ["at least two"]),
    "words": (VPSDE(), "karras", ["not a sequence"]),
}


@pytest.mark.parametrize(("sde", "levels", "words"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_other_lists_are_refused(sde, levels, words):
    with pytest.raises(GridError) as caught:
        grids.from_sigmas(sde, levels)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


@every_sde
def test_levels_of_float32_reach_both_ends(sde):
    """The ends of λ, rounded to float32 and cast back, are the ends."""
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for t, value in zip(ends.tolist(), sde.half_log_snr(ends).tolist(), strict=True):
        if not math.isfinite(value):
            continue
        for direction in (-np.inf, np.inf):
            narrow = np.nextafter(np.float32(value), np.float32(direction))
            for given in (torch.tensor(narrow), torch.tensor(narrow).double(), float(narrow)):
                assert sde.inverse_half_log_snr(given).item() == pytest.approx(t, abs=1e-5)


@pytest.mark.parametrize("excess", [1e-3, 1e-4, 2e-5])
def test_a_refused_level_is_told_from_the_end_by_its_digits(excess):
    """Not "-3.91202 … from -3.91202"."""
    sde = VESDE()
    value = sde.half_log_snr(1.0).item() - excess
    with pytest.raises(ValueError, match="half log-SNR") as caught:
        sde.inverse_half_log_snr(value)
    shown = str(caught.value).split("runs from ")[1].split(" ")[0]
    assert float(shown) != float(f"{value:.{len(shown.lstrip('-').replace('.', ''))}g}")


# PCHIP.


def slopes_by_scipy(t, lambdas):
    """Inner slopes by another's program; at the ends the slope of the parabola through three knots, not below a third
    of the secant: λ keeps falling there, where scipy lets it stand still."""
    slopes = PchipInterpolator(t, lambdas).derivative()(t)
    for end, step in ((0, 1), (-1, -1)):
        three = [end, end + step, end + 2 * step]
        parabola = np.polynomial.Polynomial.fit(t[three], lambdas[three], 2)
        secant = (lambdas[end + step] - lambdas[end]) / (t[end + step] - t[end])
        slopes[end] = min(parabola.deriv()(t[end]), secant / 3)
    return slopes


def check_knots(t, lambdas):
    places = np.linspace(0, 1, 401)
    expected = CubicHermiteSpline(t, lambdas, slopes_by_scipy(t, lambdas))(places)
    found = Knots(tuple(t), tuple(lambdas))(torch.from_numpy(places)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_knots_have_the_slopes_of_pchip(seed):
    random = np.random.default_rng(seed)
    t = np.concatenate([[0.0], np.sort(random.uniform(0.01, 0.99, 5)), [1.0]])
    check_knots(t, 5 - np.cumsum(random.exponential(1.0, 7) ** 3 + 1e-3))  # also end slopes that have to be cut


@pytest.mark.parametrize("lambdas", [(3.0, 2.9, -3.0), (3.0, -2.9, -3.0), (0.0, -1.0, -9.0, -9.1)])
def test_few_knots_have_the_slopes_of_pchip(lambdas):
    check_knots(np.linspace(0, 1, len(lambdas)), np.array(lambdas))


# What a network of indices is told.


@pytest.mark.parametrize("N", [1, 7, 100, 1000])
def test_an_index_is_one_that_the_network_has_learned(N):
    """Never below its first; whole at every i/N, so that rounding and cutting off agree; fractional between."""
    told = time_inputs.DiscreteIndex(N)
    t = torch.linspace(0, 1, 2001).double()
    assert told(VPSDE(), t).min() >= 0
    assert told(VPSDE(), t).max() == N - 1
    assert (told(VPSDE(), t[t <= 1 / N]) == 0).all()
    assert (told(VPSDE(), t).diff() >= 0).all()
    indices = torch.arange(1, N + 1)
    for exact in (indices.double() / N, (indices / N).double(), (indices / N)):
        within = 1e-4 if exact.dtype == torch.float32 or not torch.equal(exact, indices.double() / N) else 0
        torch.testing.assert_close(told(VPSDE(), exact).double(), (indices - 1).double(), rtol=0, atol=within)
    middle = (indices[1:].double() - 0.5) / N
    torch.testing.assert_close(told(VPSDE(), middle), indices[1:].double() - 1.5, rtol=1e-12, atol=1e-12)
    assert told(VPSDE(), 0.0).item() == 0


def test_the_slope_of_the_index_is_the_number_of_steps():
    t = doubles(0.3, 0.3004).requires_grad_()
    slope = torch.autograd.grad(time_inputs.DiscreteIndex(1000)(VPSDE(), t).sum(), t)[0]
    torch.testing.assert_close(slope, doubles(1000.0, 1000.0))
