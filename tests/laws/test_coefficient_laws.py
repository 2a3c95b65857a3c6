"""An SDE given by f and g has the α and σ of its closed form, wherever these can be integrated; else it is refused."""

import copy
import math
import pickle

import pytest
import torch
from catalogue import doubles

from sde_toolkit import SDE, VPSDE, CosineVPSDE, FlowMatching, SubVPSDE, ddim, gaussian, grids, sample
from sde_toolkit.errors import DefinitionError
from sde_toolkit.sde import beta_schedules

one = torch.ones_like
LOSING_SIGNAL = {
    "flow matching": FlowMatching(),
    "cosine": CosineVPSDE(),
    "zero terminal SNR": VPSDE.from_betas(beta_schedules.zero_terminal_snr(beta_schedules.linear_betas(50))),
}
TIMES = torch.cat([doubles(0.0, 1e-9, 1e-5), torch.linspace(1e-3, 1 - 1e-3, 301).double(), 1 - doubles(1e-5, 1e-8, 0)])


class VarianceKept(SDE):
    """By β alone; ``integrated_beta`` is what its integral must be."""

    def f(self, t):
        return -0.5 * self.beta(t)

    def g(self, t):
        return torch.sqrt(self.beta(t))


class Smooth(VarianceKept):
    def beta(self, t):
        return 0.1 + 19.9 * t

    def integrated_beta(self, t):
        return 0.1 * t + 9.95 * t**2


class Jump(VarianceKept):
    """At a place that no halving of [0, 1] meets."""

    def beta(self, t):
        return torch.where(t < 0.337, 0.3 * one(t), 11.0)

    def integrated_beta(self, t):
        return 0.3 * t + 10.7 * (t - 0.337).clamp(min=0)


class Table(VarianceKept):
    """Linear between 201 values: a kink at each."""

    knots = 0.1 + 20 * torch.linspace(0, 1, 201).double() * (1 + 0.4 * torch.sin(1.7 * torch.arange(201).double()))

    def beta(self, t):
        i = (t * 200).long().clamp(0, 199)
        return self.knots[i] + (t * 200 - i) * (self.knots[i + 1] - self.knots[i])

    def integrated_beta(self, t):
        i = (t * 200).long().clamp(0, 199)
        whole = torch.cat([doubles(0.0), (self.knots[1:] + self.knots[:-1]).cumsum(0) / 400])
        return whole[i] + (t - i.double() / 200) * (self.knots[i] + self.beta(t)) / 2


class Steps(Table):
    """Constant between 100 values, as a discrete schedule has them."""

    def beta(self, t):
        return self.knots[(t * 100).long().clamp(0, 99)]

    def integrated_beta(self, t):
        i = (t * 100).long().clamp(0, 99)
        return torch.cat([doubles(0.0), self.knots.cumsum(0) / 100])[i] + (t - i.double() / 100) * self.knots[i]


class InfiniteAtTheEnd(VarianceKept):
    def beta(self, t):
        return 1 / torch.sqrt(1 - t)

    def integrated_beta(self, t):
        return 2 * t / (1 + torch.sqrt(1 - t))


class InfiniteAtTheStart(VarianceKept):
    def beta(self, t):
        return t**-0.75

    def integrated_beta(self, t):
        return 4 * t**0.25


class InfiniteInside(VarianceKept):
    def beta(self, t):
        return 1 / torch.sqrt((t - 0.337).abs())

    def integrated_beta(self, t):
        d = t - 0.337
        side = 2 * math.sqrt(0.337)
        early = 2 * t / (math.sqrt(0.337) + torch.sqrt((-d).clamp(min=0)))
        return torch.where(d < 0, early, side + 2 * torch.sqrt(d.clamp(min=0)))


class Cosine(SDE):
    """α = cos(πt/2), σ = sin(πt/2): f and g are infinite at t=1, and so is ∫f."""

    def f(self, t):
        return -torch.pi / 2 * torch.tan(torch.pi / 2 * t)

    def g(self, t):
        return torch.sqrt(torch.pi * torch.tan(torch.pi / 2 * t))


class Straight(SDE):
    """α = 1 − t, σ = t."""

    def f(self, t):
        return -1 / (1 - t)

    def g(self, t):
        return torch.sqrt(2 * t / (1 - t))


class Steep(SDE):
    """α = (1 − t)¹⁰, α² + σ² = 1."""

    def f(self, t):
        return -10 / (1 - t)

    def g(self, t):
        return torch.sqrt(20 / (1 - t))


REGULAR = [Smooth, Jump, Table, Steps, InfiniteAtTheEnd, InfiniteAtTheStart, InfiniteInside]
SINGULAR = {
    Cosine: (lambda t: torch.sin(torch.pi / 2 * (1 - t)), lambda t: torch.sin(torch.pi / 2 * t)),
    Straight: (lambda t: 1 - t, lambda t: t),
    Steep: (lambda t: (1 - t) ** 10, lambda t: torch.sqrt(-torch.expm1(20 * torch.log1p(-t)))),
}


@pytest.mark.parametrize("cls", REGULAR)
def test_the_path_is_that_of_the_integrated_coefficients(cls):
    """To the stated 1e-7, and to rounding without singularities inside (0, 1)."""
    sde, B = cls(), cls().integrated_beta(TIMES)
    tolerance = {Smooth: 1e-12, InfiniteInside: 1e-7}.get(cls, 1e-8)
    torch.testing.assert_close(sde.log_alpha(TIMES), -B / 2, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(sde.sigma(TIMES), torch.sqrt(-torch.expm1(-B)), rtol=tolerance, atol=0)


@pytest.mark.parametrize("cls", SINGULAR)
def test_no_signal_is_left_where_the_integral_diverges(cls):
    sde, (alpha, sigma) = cls(), SINGULAR[cls]
    assert sde.alpha(1.0).item() == 0
    assert sde.half_log_snr(1.0).item() == -math.inf
    assert sde.loses_signal
    torch.testing.assert_close(sde.alpha(TIMES), alpha(TIMES), rtol=1e-7, atol=0)
    torch.testing.assert_close(sde.sigma(TIMES), sigma(TIMES), rtol=1e-8, atol=0)


@pytest.mark.parametrize("cls", SINGULAR)
def test_samples_of_a_path_without_signal_at_its_end(cls):
    """The exact flow of a Gaussian, from pure noise on."""
    sde = cls()
    model = gaussian(doubles(2.0, -1.0), sde, std=0.5)
    grid = grids.sech(sde, 400, end=1e-3)
    x = sample(model, ddim(), grid, shape=(2000, 2), tweedie=True, dtype=torch.float64).x
    assert (x.mean(0) - doubles(2.0, -1.0)).abs().max() < 0.06  # five standard errors
    assert (x.std(0) / 0.5 - 1).abs().max() < 0.1


@pytest.mark.parametrize("cls", [Smooth, Jump, InfiniteAtTheEnd, Cosine])
def test_noise_that_was_there_at_time_zero_is_carried_along(cls):
    class Noisy(cls):
        sigma_0 = 0.4

    clean, noisy = cls(), Noisy()
    expected = torch.sqrt(clean.sigma(TIMES) ** 2 + (0.4 * clean.alpha(TIMES)) ** 2)
    torch.testing.assert_close(noisy.sigma(TIMES), expected, rtol=1e-12, atol=0)


def test_a_rate_of_noise_that_cannot_be_summed_up_is_infinite_noise():
    class Exploding(SDE):
        def f(self, t):
            return 0 * t

        def g(self, t):
            return 1 / torch.sqrt(1 - t)

    t = doubles(0.0, 0.5, 0.99, 1 - 1e-10)
    torch.testing.assert_close(Exploding().sigma(t), torch.sqrt(-torch.log1p(-t)), rtol=1e-8, atol=0)
    assert Exploding().sigma(1.0).item() == math.inf


IMPOSSIBLE = {
    "f infinite at once": (lambda t: -1 / t, one, "from t=0"),
    "noise infinite at once": (one, lambda t: 1 / t, "from t=0"),
    "f not integrable inside": (lambda t: -1 / (t - 0.4).abs(), one, "t=0.4"),
    "α infinite": (lambda t: 1 / (1 - t), one, "+∞"),
    "σ(1) = 0": (lambda t: -1 / (1 - t), one, "no positive limit"),
    "not a number": (lambda t: -one(t), lambda t: torch.sqrt(0.75 - t), "t=0.7"),
    "neither finite nor infinite": (lambda t: -((1 - t) ** -0.98), one, "cannot be told"),
}


@pytest.mark.parametrize(("f", "g", "words"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_cannot_be_integrated_is_refused(f, g, words):
    sde = type("Mine", (SDE,), {"f": lambda self, t: f(t), "g": lambda self, t: g(t)})()
    for call in (sde.alpha, sde.sigma, sde.half_log_snr):
        with pytest.raises(DefinitionError) as caught:
            call(0.5)
        assert "class Mine" in str(caught.value)
        assert words in str(caught.value)


class Learned(torch.nn.Module, VarianceKept):
    """β = a + b t with parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.5, 3.0))

    def beta(self, t):
        return self.a + self.b * t

    def integrated_beta(self, t):
        return self.a * t + self.b * t**2 / 2


def test_learned_coefficients_are_never_out_of_date():
    sde, t = Learned(), TIMES[1:]
    for step in (0.0, 1.5, -0.25):
        with torch.no_grad():
            sde.a += step
            sde.b -= step
        B = sde.integrated_beta(t)
        torch.testing.assert_close(sde.alpha(t), torch.exp(-B / 2), rtol=1e-12, atol=0)
        torch.testing.assert_close(sde.sigma(t), torch.sqrt(-torch.expm1(-B)), rtol=1e-11, atol=0)


def test_gradients_reach_learned_coefficients_and_times():
    sde, t = Learned(), doubles(1e-20, 0.01, 0.3, 1 / 3, 0.5, 0.99, 1 - 1e-9, 1.0).requires_grad_()
    B = sde.integrated_beta(t)
    for found, expected in ((sde.log_alpha(t), -B / 2), (sde.sigma(t)[1:], torch.sqrt(-torch.expm1(-B))[1:])):
        got, wanted = (torch.autograd.grad(v.sum(), (sde.a, sde.b, t), create_graph=True) for v in (found, expected))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    first, second = (torch.autograd.grad(v[2].sum(), t)[0][1:] for v in (got, wanted))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_coefficients_that_are_reassigned_are_noticed():
    class Rate(VarianceKept):
        size = 1.0

        def beta(self, t):
            return self.size * one(t)

    sde = Rate()
    assert sde.log_alpha(1.0).item() == pytest.approx(-0.5, rel=1e-14)
    sde.size = 4.0
    assert sde.log_alpha(1.0).item() == pytest.approx(-2.0, rel=1e-14)


def test_an_sde_by_its_coefficients_can_be_copied_and_pickled():
    for sde in (Smooth(), Cosine()):
        before = sde.sigma(TIMES)
        for copied in (copy.deepcopy(sde), copy.copy(sde), pickle.loads(pickle.dumps(sde))):
            torch.testing.assert_close(copied.sigma(TIMES), before, rtol=0, atol=0)


def test_coefficients_of_any_dtype_come_back_in_it():
    for dtype in (torch.float32, torch.bfloat16):
        t = torch.linspace(0, 1, 9).to(dtype)
        assert Jump().sigma(t).dtype == dtype
        torch.testing.assert_close(Jump().sigma(t), Jump().sigma(t.double()).to(dtype), rtol=0, atol=0)


def test_sub_vp_by_its_coefficients():
    class Mine(SDE):
        def f(self, t):
            return SubVPSDE().f(t)

        def g(self, t):
            return SubVPSDE().g(t)

    torch.testing.assert_close(Mine().sigma(TIMES), SubVPSDE().sigma(TIMES), rtol=1e-10, atol=0)
    assert not VPSDE().loses_signal


@pytest.mark.parametrize("name", LOSING_SIGNAL)
def test_slopes_at_time_one_are_limits_where_no_signal_is_left(name):
    """α(1) = 0: f is −∞ there, but dα/dt and dσ/dt tend to those of the path (−∞ for √(1 − t))."""
    closed = LOSING_SIGNAL[name]

    class ByCoefficients(SDE):
        def f(self, t):
            return closed.f(t)

        def g(self, t):
            return closed.g(t)

    derived, t = ByCoefficients(), doubles(0.5, 1.0)
    assert derived.alpha(1.0) == 0
    torch.testing.assert_close(derived.d_alpha(t), closed.d_alpha(t), rtol=1e-6, atol=1e-6)
    h = 1e-4
    difference = (closed.sigma(1.0) - closed.sigma(1.0 - h)) / h
    for sde in (derived, closed):
        assert abs(sde.d_sigma(1.0) - difference) < 2 * h  # the error of this difference is h σ″/2, and |σ″| < 4
