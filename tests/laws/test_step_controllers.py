"""How adaptive methods choose their steps, on fields whose local errors are known in closed form.

On a VE path (α = 1, σ = e^(−λ)) a network that answers ε = −F(λ)/((1+η²) σ) makes the equation
dx = F(λ) dλ + η √2 σ dw: a quadrature, whatever x is. The embedded error of a pair, and the difference of the two
estimates of the stochastic method, are then polynomials in the length of the step.
"""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from catalogue import run_on

from sde_toolkit import VESDE, ScoreModel, Solver, encode, probability_flow, sample
from sde_toolkit.integrators import AdaptiveSDE, PerSample

SDE = VESDE(sigma_min=1e-6, sigma_max=1.0)
FIRST, LAST = SDE.half_log_snr(1.0).item(), SDE.half_log_snr(0.0).item()  # 0 and 13.8


class Field(torch.nn.Module):
    """Remembers the λ that one sample was asked at."""

    def __init__(self, field, eta=0.0):
        super().__init__()
        self.field, self.eta, self.asked = field, eta, []

    def forward(self, x, time):
        lambdas = SDE.half_log_snr(time)
        self.asked.append(lambdas[0].item())
        slope = -self.field(lambdas) * torch.exp(lambdas) / (1 + self.eta**2)
        return slope.reshape(-1, *(1,) * (x.ndim - 1)).expand(x.shape).clone()


def solve(integrator, field, x, start=FIRST, end=LAST, eta=0.0):
    """(λ asked for, result) of one sample."""
    network = Field(field, eta)
    grid = SDE.inverse_half_log_snr(torch.tensor([start, end], dtype=torch.float64))
    run = {"x_start": x[None], "dtype": torch.float64}
    found = sample(ScoreModel(network, SDE, "epsilon"), Solver("", eta, integrator), grid, **run)
    return np.array(network.asked), found


# Runge-Kutta pairs

PAIRS = {"dopri5": scipy.integrate.RK45, "bosh3": scipy.integrate.RK23}
every_pair = pytest.mark.parametrize("method", PAIRS)


def power(method):
    """q: the error of a pair whose lower formula has order q − 1, on F = λ^(q−1), is K h^q wherever the step begins."""
    return PAIRS[method].error_estimator_order + 1


def error_constant(method):
    """K = Σ e_j c_j^(q−1), by the published weights."""
    peer = PAIRS[method]
    return abs(np.dot(peer.E, np.append(peer.C, 1.0) ** (power(method) - 1)))


def attempts(method, asked):
    """(λ, h) of all attempts, from the λ asked for after the two that find the first step."""
    stages = len(PAIRS[method].C)
    c, starts = PAIRS[method].C, []
    for first, *_, last in asked[2:].reshape(-1, stages):
        h = (last - first) / (1 - c[1])
        starts.append((last - h, h))
    return np.array(starts).T


def scaled_field(method, size, jump=1.0, where=math.inf):
    """F = size · λ^(q−1), larger by a factor from ``where`` on."""

    def field(lambdas):
        return size * lambdas ** (power(method) - 1) * torch.where(lambdas > where, jump, 1.0)

    return field


@pytest.mark.on_device
@every_pair
def test_the_next_step_follows_the_two_last_errors(method):
    """h′ = 0.9 h r^(−(1/q − ¾β)) r_previous^β with β = 1/(5q), r being the error over the tolerance."""
    q, size = power(method), 0.1
    asked, found = solve(PerSample(method, rtol=1e-16, atol=1e-4), scaled_field(method, size), torch.zeros(3).double())
    _, h = attempts(method, asked)
    assert found.statistics.rejected.item() == 0
    ratios = size * error_constant(method) * h**q / 1e-4
    assert len(h) > 12
    beta = 1 / (5 * q)
    before = np.append(1.0, ratios)  # the first step has no error before it
    factor = 0.9 * ratios ** -(1 / q - 0.75 * beta) * np.maximum(before[:-1], 1e-4) ** beta
    np.testing.assert_allclose(h[1:-1], (h * np.clip(factor, 0.2, 10))[:-2], rtol=1e-6)


@pytest.mark.on_device
@every_pair
def test_where_errors_grow_as_a_power_the_ratio_settles_at_what_the_controller_says(method):
    """r = 0.9^(q/0.65), since 1/q − ¾β − β = 0.65/q; towards it log r goes by the roots of z² − 0.15 z − 0.2."""
    q, size = power(method), 0.1
    asked, _ = solve(PerSample(method, rtol=1e-16, atol=1e-4), scaled_field(method, size), torch.zeros(1).double())
    h = attempts(method, asked)[1][:-1]
    ratios = size * error_constant(method) * h**q / 1e-4
    settled = 0.9 ** (q / 0.65)
    assert ratios[-1] == pytest.approx(settled, rel=1e-2)
    gaps = np.log(ratios / settled)
    first = int((ratios > 1e-3).argmax())  # before, the factor is cut at ten, and a previous ratio at 1e-4
    two_before, before, now = gaps[first:-2], gaps[first + 1 : -1], gaps[first + 2 :]
    assert len(now) > 6
    np.testing.assert_allclose(now, 0.15 * before + 0.2 * two_before, atol=1e-6)


@every_pair
def test_a_rejected_step_shrinks_by_its_own_error_alone_and_what_follows_does_not_grow(method):
    q, size, jump, where = power(method), 1e-3, 50.0, 6.0
    field = scaled_field(method, size, jump, where)
    asked, found = solve(PerSample(method, rtol=1e-16, atol=1e-4), field, torch.zeros(1).double())
    at, h = attempts(method, asked)
    again = np.flatnonzero(np.isclose(at[1:], at[:-1], rtol=0, atol=1e-9))  # attempts that were refused
    assert len(again) == found.statistics.rejected.item() >= 1
    nodes = np.append(PAIRS[method].C, 1.0)
    for i in again:
        values = field(torch.from_numpy(at[i] + nodes * h[i])).numpy()
        ratio = abs(h[i] * np.dot(PAIRS[method].E, values)) / 1e-4
        assert ratio > 1
        assert h[i + 1] / h[i] == pytest.approx(max(0.2, 0.9 * ratio ** (-1 / q)), rel=1e-6)
    for i in again:
        if i + 1 not in again and i + 2 < len(h) - 1:
            assert h[i + 2] <= h[i + 1] * (1 + 1e-9)


@pytest.mark.on_device
@every_pair
def test_a_step_grows_and_shrinks_by_bounded_factors(method):
    """A field without error: ten times as long, every time. One that suddenly is rough: never less than a fifth."""
    asked, _ = solve(PerSample(method, rtol=1e-16, atol=1e-4), lambda v: 1e-9 * v, torch.zeros(1).double())
    h = attempts(method, asked)[1]
    assert len(h) >= 3
    np.testing.assert_allclose(h[1:-1] / h[:-2], 10, rtol=1e-6)
    rough = scaled_field(method, 1e-9, 1e12, 5.0)
    h = attempts(method, solve(PerSample(method, rtol=1e-16, atol=1e-4), rough, torch.zeros(1).double())[0])[1]
    assert (h[1:-1] / h[:-2]).min() == pytest.approx(0.2, rel=1e-6)


@pytest.mark.on_device
@every_pair
def test_the_ratio_is_the_root_mean_square_over_the_sample_of_error_over_both_tolerances(method):
    """One attempt from a known state, refused if and only if the ratio that the law says exceeds one."""
    q, size, x = power(method), 1e-3, torch.tensor([0.0, 300.0, -1000.0], dtype=torch.float64)
    start, atol, rtol = 2.0, 1e-4, 1e-5
    for stretch, refused in ((0.999, False), (1.001, True)):
        wanted = error_constant(method) * size

        def ratio(h, wanted=wanted):
            moved = size * ((start + h) ** q - start**q) / q
            scale = atol + rtol * torch.maximum(x.abs(), (x + moved).abs())
            return ((wanted * h**q / scale) ** 2).mean().sqrt().item()

        h = stretch * scipy.optimize.brentq(lambda h: ratio(h) - 1, 1e-3, 9.0)
        network = Field(scaled_field(method, size))
        grid = SDE.inverse_half_log_snr(torch.tensor([start, start + h], dtype=torch.float64))
        integrator = FirstStep(method, rtol=rtol, atol=atol)
        run = {"x_start": x[None], "dtype": torch.float64}
        found = sample(ScoreModel(network, SDE, "epsilon"), probability_flow(integrator), grid, **run)
        assert (found.statistics.rejected.item() > 0) == refused


class FirstStep(PerSample):
    """Its first attempt is the whole interval."""

    def _first_length(self, field, x, k, at, end, *rest):
        return end - at


@pytest.mark.on_device
@every_pair
@pytest.mark.parametrize("near", [1.0, 1e-4], ids=["as far as the error allows", "a hundred short steps"])
def test_the_first_step_is_hairers(method, near):
    """Volume I, section II.4: d_0, d_1, a short Euler step, d_2, then the step of an error of a hundredth."""
    q, size, atol, rtol = power(method), 1e-3, 1e-4, 1e-12
    x, start = near * torch.tensor([0.3, -0.4], dtype=torch.float64), 1.5
    field = scaled_field(method, size)
    asked, _ = solve(PerSample(method, rtol=rtol, atol=atol), field, x, start=start)
    d_0 = near * math.sqrt((0.3**2 + 0.4**2) / 2) / atol
    d_1 = size * start ** (q - 1) / atol
    short = 0.01 * d_0 / d_1
    assert asked[0] == pytest.approx(start, abs=1e-9)
    assert asked[1] == pytest.approx(start + short, abs=1e-7)
    d_2 = size * ((start + short) ** (q - 1) - start ** (q - 1)) / atol / short
    expected = min(100 * short, (0.01 / max(d_1, d_2)) ** (1 / q))
    assert (expected == 100 * short) == (near < 1)
    assert attempts(method, asked)[1][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.on_device
@every_pair
def test_the_end_of_an_interval_cuts_a_step_and_says_nothing_of_the_next(method):
    """A time that is wanted soon after the fifth step began: from there the sixth is as long as it would have been."""
    field, integrator = scaled_field(method, 0.1), PerSample(method, rtol=1e-16, atol=1e-4)
    at, h = attempts(method, solve(integrator, field, torch.zeros(1).double())[0])
    network, wanted = Field(field), at[5] + 0.01 * h[5]
    grid = SDE.inverse_half_log_snr(torch.tensor([FIRST, wanted, LAST], dtype=torch.float64))
    run = {"x_start": torch.zeros(1, 1), "dtype": torch.float64}
    sample(ScoreModel(network, SDE, "epsilon"), probability_flow(integrator), grid, **run)
    cut_at, cut = attempts(method, np.array(network.asked))
    np.testing.assert_allclose(cut[:5], h[:5], rtol=1e-6)
    assert cut[5] == pytest.approx(0.01 * h[5], rel=1e-4)
    assert cut_at[6] == pytest.approx(wanted, abs=1e-6)
    assert cut[6] == pytest.approx(h[5], rel=1e-4)


@pytest.mark.on_device
def test_upwards_the_same_steps_are_taken_with_the_other_sign():
    """F is even about the middle of the interval: what is met on the way up is what is met on the way down."""
    middle = (FIRST + LAST) / 2

    def field(lambdas):
        return 1e-3 * (lambdas - middle) ** 4

    down, _ = solve(PerSample(rtol=1e-16, atol=1e-4), field, torch.full((1,), 5.0).double())
    network = Field(field)
    grid = torch.tensor([1.0, 0.0], dtype=torch.float64)
    up = encode(ScoreModel(network, SDE, "epsilon"), probability_flow(PerSample(rtol=1e-16, atol=1e-4)), grid,
                torch.full((1, 1), 5.0).double(), dtype=torch.float64)  # fmt: skip
    np.testing.assert_allclose(np.array(network.asked), FIRST + LAST - down, atol=1e-5)
    assert up.nfe == len(down)


# The stochastic method: Jolicoeur-Martineau et al. 2021, algorithm 1


def on_silence(integrator, slope, level, x, end=LAST, start=FIRST):
    """(λ asked for, state) without noise: F = level + slope λ, so that x′ − x″ = −½ slope h², exactly."""
    network = Field(lambda lambdas: level + slope * lambdas, eta=1.0)
    grid = SDE.inverse_half_log_snr(torch.tensor([start, end], dtype=torch.float64))
    silence = iter(lambda: torch.zeros(1, len(x), dtype=torch.float64), None)
    model = ScoreModel(network, SDE, "epsilon")
    end_state = run_on(Solver("", 1.0, integrator), model, grid, x[None], silence)
    begun, reached = np.array(network.asked).reshape(-1, 2).T
    return begun, reached - begun, end_state[0]


@pytest.mark.on_device
def test_the_stochastic_step_is_theta_h_over_the_error_to_the_r():
    """E = ½ |slope| h²/ε_abs, and h′ = θ h E^(−r) until the end cuts it: every step known in advance, none refused."""
    how = {"safety": 0.8, "exponent": 0.45, "first_step": 0.01, "atol": 1e-2, "rtol": 1e-12}
    at, h, x = on_silence(AdaptiveSDE(**how), 0.3, 0.1, torch.tensor([0.2, -0.5, 0.0], dtype=torch.float64))
    expected = [0.01 * (LAST - FIRST)]
    while True:
        error = 0.5 * 0.3 * expected[-1] ** 2 / 1e-2
        expected.append(0.8 * expected[-1] * error**-0.45)
        if FIRST + sum(expected) >= LAST:
            break
    assert len(h) == len(expected) > 20
    np.testing.assert_allclose(h[:-1], expected[:-1], rtol=1e-6)
    np.testing.assert_allclose(at, FIRST + np.append(0, np.cumsum(h[:-1])), atol=1e-6)
    whole = 0.1 * (LAST - FIRST) + 0.15 * (LAST**2 - FIRST**2)  # x″ is the trapezium, exact here
    torch.testing.assert_close(x, torch.tensor([0.2, -0.5, 0.0], dtype=torch.float64) + whole, rtol=0, atol=1e-9)


@pytest.mark.on_device
def test_a_stochastic_step_is_refused_where_its_error_exceeds_one():
    """The first step errs by E = ½ slope h²/ε_abs: kept just below 1, tried again from the same place just above."""
    first, atol = 0.1, 1e-2
    h = first * (LAST - FIRST)
    for error, refused in ((0.999, False), (1.001, True), (9.0, True)):
        integrator = AdaptiveSDE(rtol=1e-12, atol=atol, first_step=first)
        at, steps, _ = on_silence(integrator, 2 * error * atol / h**2, 0.0, torch.zeros(2).double())
        assert steps[0] == pytest.approx(h, rel=1e-6)
        assert at[1] == pytest.approx(FIRST if refused else FIRST + h, abs=1e-6)
        assert steps[1] == pytest.approx(0.9 * h * error**-0.9, rel=1e-5)


@pytest.mark.parametrize("level", [3.0, -3.0], ids=["growing", "shrinking"])
def test_its_tolerance_is_the_larger_of_the_absolute_one_and_that_of_the_larger_euler_state(level):
    """δ = max(ε_abs, ε_rel max(|x′|, |x′_previous|)), and E the root mean square over the sample.

    The first of three entries is held by ε_abs. x′_previous is x itself in the first step, then the Euler state of the
    last step that was kept."""
    rtol, atol, slope, first = 1e-3, 4e-2, 0.4, 0.036
    x = torch.tensor([0.0, 60.0, 100.0], dtype=torch.float64)
    at, h, _ = on_silence(AdaptiveSDE(rtol=rtol, atol=atol, first_step=first), slope, level, x)
    previous = x.numpy()
    for i in range(4):
        state = x.numpy() + level * (at[i] - FIRST) + 0.5 * slope * (at[i] ** 2 - FIRST**2)
        euler = state + h[i] * (level + slope * at[i])
        delta = np.maximum(atol, rtol * np.maximum(abs(euler), abs(previous)))
        error = np.sqrt(np.mean((0.5 * slope * h[i] ** 2 / delta) ** 2))
        assert error < 1
        assert h[i + 1] == pytest.approx(0.9 * h[i] * error**-0.9, rel=1e-4)
        previous = euler


@pytest.mark.on_device
def test_the_noise_of_a_step_enters_both_estimates_and_the_error():
    """F = 0: x′ − x″ = ½ (b(λ) − b(λ+h)) ΔW with b = √2 σ and ΔW = √h z. The first step is kept or refused accordingly,
    and a kept one adds ½ (b(λ) + b(λ+h)) ΔW."""
    z, first = torch.tensor([[0.8, -1.5]], dtype=torch.float64), 0.05
    h = first * (LAST - FIRST)
    b, b_later = (math.sqrt(2) * math.exp(-v) for v in (FIRST, FIRST + h))
    error = 0.5 * (b - b_later) * math.sqrt(h) * z.square().mean().sqrt().item()
    for atol, refused in ((1.001 * error, False), (0.999 * error, True)):
        network = Field(torch.zeros_like, eta=1.0)
        times = SDE.inverse_half_log_snr(torch.tensor([FIRST, FIRST + h, LAST], dtype=torch.float64))
        integrator = AdaptiveSDE(rtol=1e-12, atol=atol, first_step=1.0)
        model = ScoreModel(network, SDE, "epsilon")
        run = {"x_start": torch.zeros(1, 2), "dtype": torch.float64, "trajectory": True}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sde_toolkit.sampling.samples.per_sample_noise", lambda *_, **__: lambda: z)
            found = sample(model, Solver("", 1.0, integrator), times[:2], **run)
        assert (found.statistics.rejected.item() > 0) == refused
        if not refused:
            expected = 0.5 * (b + b_later) * math.sqrt(h) * z
            torch.testing.assert_close(found.x, expected, rtol=1e-6, atol=0)
