"""Each path is the one of its paper, keeps its digits at both ends of time, and survives a checkpoint."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from catalogue import (
    PUBLIC_SDES,
    SDES,
    RandomNetwork,
    convergence_order,
    doubles,
    first_time,
    model_of,
    name,
    relative_error,
)

from sde_toolkit import (
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVPSDE,
    FlowMatching,
    LogSNRSDE,
    ScoreModel,
    SubVPSDE,
    ddim,
    grids,
    probability_flow,
    sample,
)
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.sde import Knots
from sde_toolkit.sde.beta_schedules import (
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)

TIMES = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
ENDS = [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.499999, 0.5, 0.7, 0.999, 1 - 2**-30, 1.0]
KNOTS = Knots((0.0, 0.1, 0.25, 0.7, 1.0), (6.0, 4.0, 1.5, 0.5, -5.0))


def product_of(betas):
    """ᾱ_0, ..., ᾱ_N, multiplied out."""
    return torch.cat([doubles(1.0), (1 - torch.as_tensor(betas, dtype=torch.float64)).cumprod(0)])


# The cosine schedule.


def cosine_with_fifty_digits(s, t):
    """(α, σ) straight from the paper's ᾱ."""
    s, t = mpmath.mpf(s), mpmath.mpf(t)

    def level(u):
        return mpmath.cos((u + s) / (1 + s) * mpmath.pi / 2) ** 2

    bar = level(t) / level(0)
    return mpmath.sqrt(bar), mpmath.sqrt(1 - bar)


@pytest.mark.parametrize("t", ENDS)
@pytest.mark.parametrize("s", [0.0, 0.008, 0.3])
def test_cosine_keeps_every_digit_of_the_papers_alpha_bar(s, t):
    sde = CosineVPSDE(s)
    with mpmath.workdps(50):
        alpha, sigma = cosine_with_fifty_digits(s, t)
        lost = 1 - alpha
        assert sde.alpha(t).item() == pytest.approx(float(alpha), rel=2e-14, abs=1e-49)
        assert sde.sigma(t).item() == pytest.approx(float(sigma), rel=2e-15, abs=0)
        if t < 1:
            assert sde.log_alpha(t).item() == pytest.approx(float(mpmath.log1p(-lost)), rel=1e-14, abs=0)
    assert sde.alpha(1.0).item() == 0


@pytest.mark.on_device
@pytest.mark.parametrize("end", [-1.0, -5.0, -9.9, -20.0])
def test_a_cosine_cut_off_is_the_same_curve_stretched(end):
    whole, cut = CosineVPSDE(), CosineVPSDE(end_half_log_snr=end)
    assert cut.half_log_snr(1.0).item() == pytest.approx(end, rel=1e-14)
    times = whole.inverse_half_log_snr(cut.half_log_snr(TIMES))
    torch.testing.assert_close(times, TIMES * times[-1] / TIMES[-1], rtol=1e-12, atol=0)  # at one speed
    torch.testing.assert_close(
        cut.alpha(TIMES) ** 2 + cut.sigma(TIMES) ** 2, torch.ones(50).double(), rtol=1e-14, atol=0
    )
    for schedule in (cut.f, cut.g, cut.d_alpha, cut.alpha):
        value = schedule(1.0)
        assert value.isfinite()
        assert value != 0
    ScoreModel(RandomNetwork(), cut, "epsilon")  # not refused: there is signal left
    if end == -9.9:  # the stretch that the class speaks of
        assert (whole.alpha(TIMES) - cut.alpha(TIMES)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"s": -0.1}, "s=-0.1"),
        ({"s": math.nan}, "s=nan"),
        ({"end_half_log_snr": 0.0}, "end_half_log_snr=0.0"),
        ({"end_half_log_snr": -math.inf}, "end_half_log_snr=-inf"),
        ({"end_half_log_snr": "a"}, "end_half_log_snr='a'"),
    ],
)
def test_cosine_refuses(arguments, words):
    with pytest.raises(ArgumentError) as caught:
        CosineVPSDE(**arguments)
    assert words in str(caught.value)


# EDM's path.


@pytest.mark.parametrize("rho", [3.0, 7.0, 20.0])
@pytest.mark.parametrize("ends", [(0.002, 80.0), (1.0, 1.001), (1e-4, 1e4)])
def test_equal_steps_on_edms_path_are_karras_steps_on_any_path(rho, ends):
    sde, n = EDMSDE(*ends, rho), 18
    levels = sde.sigma(grids.uniform(sde, n))
    assert levels[0].item() == pytest.approx(ends[1], rel=1e-13)
    assert levels[-1].item() == pytest.approx(ends[0], rel=1e-13)
    exploding = VESDE(*ends)
    torch.testing.assert_close(
        levels, exploding.sigma(grids.karras(exploding, n, rho=rho, end=0.0)), rtol=1e-11, atol=0
    )
    torch.testing.assert_close(grids.karras(sde, n, rho=rho), grids.uniform(sde, n), rtol=0, atol=1e-9)


def test_edm_sigma_against_fifty_digits():
    for t in (0.0, 1e-9, 0.3, 1.0):
        with mpmath.workdps(50):
            first, last = (mpmath.root(mpmath.mpf(v), 7) for v in (0.002, 80.0))
            expected = float((first + mpmath.mpf(t) * (last - first)) ** 7)
        assert EDMSDE().sigma(t).item() == pytest.approx(expected, rel=5e-15, abs=0)


@pytest.mark.parametrize(
    "arguments", [(0.0, 1.0), (1.0, 1.0), (0.1, math.inf), (0.1, 1.0, 0.0), (0.1, 1.0, math.nan), ("a", 1.0)]
)
def test_edm_refuses(arguments):
    with pytest.raises(ArgumentError, match=r"sigma_m|rho"):
        EDMSDE(*arguments)


# Flow matching.


@pytest.mark.on_device
@pytest.mark.parametrize("t", [0.0, 1e-9, 0.3, 0.5, 1.0])
def test_the_velocity_of_the_straight_path_points_from_data_to_noise(t):
    sde = FlowMatching()
    x_0, epsilon = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = sde.perturb(x_0, t, epsilon)
    torch.testing.assert_close(x_t, torch.lerp(x_0, epsilon, t), rtol=1e-14, atol=1e-15)
    for kind, told in (("x0", x_0), ("v", sde.alpha(t) * epsilon - sde.sigma(t) * x_0)):
        if t > 0 or kind == "v":
            model = ScoreModel(lambda x, time, y=told: y, sde, kind)
            if t > 1e-6 or kind == "v":  # from x_0 alone ε is read with a factor 1/σ
                torch.testing.assert_close(model(x_t, t).velocity, epsilon - x_0, rtol=1e-9, atol=1e-9)


def test_straight_lines_are_solved_by_a_single_step_from_pure_noise_to_the_data():
    """For data in one point the flow of the straight path is straight: one step of Euler is exact."""
    point = doubles(0.3, -2.0)
    model = ScoreModel(lambda x, time: (x - point) / time[:, None], FlowMatching(), "velocity")
    for solver in (ddim(), probability_flow(ddim().integrator)):
        found = sample(model, solver, doubles(1.0, 0.0), shape=(4, 2), dtype=torch.float64)
        torch.testing.assert_close(found.x, point.expand(4, 2), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("t", [1e-12, 1e-6, 0.3, 1 - 2**-20])
def test_flow_matching_against_fifty_digits(t):
    sde = FlowMatching()
    with mpmath.workdps(50):
        u = mpmath.mpf(t)
        assert sde.half_log_snr(t).item() == pytest.approx(float(mpmath.log((1 - u) / u)), rel=1e-14)
        assert sde.g(t).item() == pytest.approx(float(mpmath.sqrt(2 * u / (1 - u))), rel=1e-14)


# Paths from a λ curve.


@pytest.mark.on_device
@pytest.mark.parametrize("source", [VPSDE(), VPSDE(1.0, 5.0), CosineVPSDE()], ids=name)
def test_a_path_follows_from_its_log_snr_alone(source):
    sde = LogSNRSDE(source.half_log_snr)
    t = torch.cat([doubles(1e-9, 1e-6, 1e-3), TIMES])
    for schedule in ("alpha", "sigma", "f", "g", "d_alpha", "d_sigma", "log_alpha"):
        found, expected = getattr(sde, schedule)(t), getattr(source, schedule)(t)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0, msg=lambda m, k=schedule: f"{k}: {m}")
    assert (sde.alpha(0.0), sde.sigma(0.0)) == (1, 0)
    assert sde.g(0.0).item() == pytest.approx(source.g(0.0).item(), rel=1e-9)


@pytest.mark.on_device
@pytest.mark.parametrize("source", [VESDE(), EDMSDE()], ids=name)
def test_without_preserved_variance_the_signal_keeps_its_scale(source):
    sde = LogSNRSDE(source.half_log_snr, variance_preserving=False)
    for schedule in ("alpha", "sigma", "f", "g"):
        torch.testing.assert_close(getattr(sde, schedule)(TIMES), getattr(source, schedule)(TIMES), rtol=1e-10, atol=0)


@pytest.mark.on_device
@pytest.mark.parametrize("curve", [KNOTS, Knots((0.0, 1.0), (3.0, -3.0))], ids=["five", "two"])
def test_variance_is_preserved_also_where_the_data_start_with_noise(curve):
    """Rescaled to α(0) = 1: α² + σ² stays what it is at t=0, and dx = f x dt + g dw keeps it there."""
    sde = LogSNRSDE(curve)
    t = torch.cat([doubles(0.0), TIMES, doubles(1.0)])
    total = sde.alpha(t) ** 2 + sde.sigma(t) ** 2
    torch.testing.assert_close(total, total[:1].expand(len(t)), rtol=1e-13, atol=0)
    assert sde.alpha(0.0) == 1
    torch.testing.assert_close(sde.g(t) ** 2, -2 * sde.f(t) * total, rtol=1e-12, atol=0)


@pytest.mark.on_device
def test_knots_are_met_and_nothing_between_them_overshoots():
    generator = torch.Generator().manual_seed(2)
    for _ in range(30):
        inner = torch.rand(6, generator=generator, dtype=torch.float64).sort().values
        drops = torch.rand(7, generator=generator, dtype=torch.float64) ** 4 + 1e-6  # steep and flat side by side
        times = torch.cat([doubles(0.0), inner, doubles(1.0)])
        values = 5 - 10 * torch.cat([doubles(0.0), drops.cumsum(0) / drops.sum()])
        knots = Knots(tuple(times.tolist()), tuple(values.tolist()))
        torch.testing.assert_close(knots(times), values, rtol=1e-13, atol=1e-13)
        t = torch.linspace(0, 1, 4001, dtype=torch.float64)
        assert (knots(t).diff() < 0).all()
        h = 1e-9  # no corner at a knot: the slopes on both sides agree
        left, right = (knots(inner) - knots(inner - h)) / h, (knots(inner + h) - knots(inner)) / h
        assert ((left - right).abs() < 1e-2 * (1 + left.abs())).all()


@pytest.mark.on_device
def test_knots_reproduce_straight_lines_and_approach_smooth_curves():
    line = Knots((0.0, 0.2, 0.3, 1.0), (4.0, 2.0, 1.0, -6.0))
    torch.testing.assert_close(line(TIMES), 4 - 10 * TIMES, rtol=1e-13, atol=1e-13)
    counts, errors = (16, 32, 64, 128), []
    for n in counts:
        times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        knots = Knots(tuple(times.tolist()), tuple((-3 * times - torch.exp(times)).tolist()))
        errors.append((knots(TIMES) + 3 * TIMES + torch.exp(TIMES)).abs().max().item())
    assert convergence_order(counts, errors) > 1.8  # the limited slopes are of first order at least


@pytest.mark.on_device
def test_a_path_through_knots_is_consistent_and_invertible():
    sde, t = LogSNRSDE(KNOTS), torch.cat([doubles(0.0), TIMES, doubles(1.0)])
    torch.testing.assert_close(sde.inverse_half_log_snr(sde.half_log_snr(t)), t, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(sde.f(TIMES), SDE.f(sde, TIMES), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sde.g(TIMES), SDE.g(sde, TIMES), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: LogSNRSDE(lambda t: 5 - 8 * t + torch.where(t > 0.6, 4.0, 0.0)),
            ["decrease", "t=0.5997 and t=0.6002"],
        ),
        (lambda: LogSNRSDE(lambda t: 5 - t.clamp(max=0.5)), ["decrease", "between t=0.5"]),
        (lambda: LogSNRSDE(lambda t: torch.where(t > 0.3, math.nan, -t)), ["nan", "t=0.300"]),
        (lambda: LogSNRSDE(lambda t: -torch.log(t) - t, variance_preserving=False), None),
        (lambda: LogSNRSDE(FlowMatching().half_log_snr), None),
        (lambda: LogSNRSDE(FlowMatching().half_log_snr, False), ["-inf", "t=1"]),
        (lambda: LogSNRSDE(lambda t: (1 - t).sum()), ["()"]),
        (lambda: LogSNRSDE(lambda t: (1 - t).float()), ["torch.float32"]),
        (lambda: LogSNRSDE(lambda t: 1.0), ["float"]),
        (lambda: LogSNRSDE("linear"), ["curve='linear'", "Knots"]),
        (lambda: Knots((0.0, 0.5, 1.0), (1.0, 2.0, 0.0)), ["half_log_snrs=(1.0, 2.0)", "t=0 and t=0.5"]),
        (lambda: Knots((0.0, 0.5, 0.5, 1.0), (4, 3, 2, 1)), ["times=(0.5, 0.5)", "positions 1 and 2"]),
        (lambda: Knots((0.0, 0.9), (1.0, 0.0)), ["times=(0.0, 0.9)", "t=1"]),
        (lambda: Knots((0.0, 1.0), (1.0, 0.5, 0.0)), ["2 times for 3"]),
        (lambda: Knots((0.0, 1.0), (math.inf, 0.0)), ["half_log_snrs[0]=inf"]),
    ],
)
def test_curves_that_do_not_decrease_are_refused_with_the_place(build, words):
    if words is None:
        build()
        return
    with pytest.raises(ArgumentError) as caught:
        build()
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.on_device
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_one_time_for_a_whole_batch_may_come_as_a_view(sde):
    """Networks get their times expanded, without memory of their own."""
    for schedule in (sde.alpha, sde.sigma, sde.half_log_snr, sde.f, sde.g):
        wide = schedule(doubles(0.3)[0].expand(7))
        torch.testing.assert_close(wide, schedule(doubles(*7 * [0.3])), rtol=1e-14, atol=0)


# Discrete schedules.

SCHEDULES = [linear_betas, scaled_linear_betas, sigmoid_betas, cosine_betas]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("N", [2, 50, 1000])
def test_every_schedule_is_float64_grows_and_makes_an_sde(schedule, N):
    betas = schedule(N)
    assert (betas.dtype, betas.shape) == (torch.float64, (N,))
    assert (betas.diff() > -1e-15).all()
    sde = VPSDE.from_betas(betas)
    knots = torch.arange(N + 1, dtype=torch.float64) / N
    torch.testing.assert_close(sde.alpha(knots) ** 2, product_of(betas), rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=lambda f: f.__name__)
def test_ends_and_spacing(schedule):
    start, end, N = 1e-3, 0.03, 101
    betas = schedule(N, start, end)
    spread = {"linear_betas": lambda b: b, "scaled_linear_betas": torch.sqrt}.get(schedule.__name__)
    if spread is not None:  # the ends are met, and the stated coordinate has equal steps
        torch.testing.assert_close(betas[[0, -1]], doubles(start, end), rtol=1e-13, atol=0)
        assert spread(betas).diff().std() < 1e-12
    else:  # the logit of the position between the ends has equal steps, from -6 to 6
        logits = torch.logit((betas - start) / (end - start))
        torch.testing.assert_close(logits, torch.linspace(-6, 6, N, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("N", [10, 100, 1000])
def test_cosine_betas_are_the_continuous_cosine_at_every_knot_but_the_clipped_last(N):
    discrete, continuous = VPSDE.from_betas(cosine_betas(N)), CosineVPSDE()
    knots = torch.arange(N, dtype=torch.float64) / N
    torch.testing.assert_close(discrete.log_alpha(knots), continuous.log_alpha(knots), rtol=1e-11, atol=1e-13)
    last = product_of(cosine_betas(N))[-2:]
    assert (last[1] / last[0]).item() == pytest.approx(0.001, rel=1e-12)
    if N == 1000:  # the half log-SNR at which the paper's schedule ends
        assert discrete.half_log_snr(1.0).item() == pytest.approx(-9.9, abs=0.05)


@pytest.mark.on_device
def test_between_the_knots_cosine_betas_approach_the_continuous_cosine_at_second_order():
    counts, t = (50, 100, 200, 400), torch.linspace(0.05, 0.9, 997, dtype=torch.float64)
    expected = CosineVPSDE().log_alpha(t)
    errors = [(VPSDE.from_betas(cosine_betas(n)).log_alpha(t) - expected).abs().max().item() for n in counts]
    assert convergence_order(counts, errors) == pytest.approx(2, abs=0.2)


@pytest.mark.on_device
def test_linear_betas_approach_the_continuous_vp_at_first_order():
    counts = (200, 400, 800, 1600)
    expected = VPSDE(0.1, 20.0).log_alpha(TIMES)
    errors = [
        (VPSDE.from_betas(linear_betas(n, 0.1 / n, 20.0 / n)).log_alpha(TIMES) - expected).abs().max().item()
        for n in counts
    ]
    assert convergence_order(counts, errors) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("N", [2, 3, 1000])
def test_zero_terminal_snr_is_the_affine_map_of_the_roots_with_its_two_ends(schedule, N):
    betas = schedule(N)
    before, after = product_of(betas).sqrt()[1:], product_of(zero_terminal_snr(betas)).sqrt()[1:]
    assert after[-1] == 0
    assert zero_terminal_snr(betas)[-1] == 1
    torch.testing.assert_close(after[0], before[0], rtol=1e-14, atol=0)
    # Affine: ratios of differences do not change.
    torch.testing.assert_close(
        (after - after[-1]) / (after[0] - after[-1]),
        (before - before[-1]) / (before[0] - before[-1]),
        rtol=1e-9,
        atol=1e-12,
    )
    torch.testing.assert_close(
        zero_terminal_snr(zero_terminal_snr(betas)), zero_terminal_snr(betas), rtol=1e-10, atol=0
    )
    sde = VPSDE.from_betas(zero_terminal_snr(betas))
    assert sde.half_log_snr(1.0) == -math.inf
    with pytest.raises(ArgumentError, match="v or x0"):
        ScoreModel(RandomNetwork(), sde, "epsilon")


def test_zero_terminal_snr_depends_on_the_shape_of_the_roots_alone():
    """Any other schedule with √ᾱ' = a + b √ᾱ and the same √ᾱ_1 is rescaled to the same one."""
    betas = linear_betas(100)
    root = product_of(betas).sqrt()[1:]
    for b in (0.3, 0.9):
        other = root[0] + b * (root - root[0])
        moved = torch.cat([betas[:1], 1 - (other[1:] / other[:-1]) ** 2])
        torch.testing.assert_close(zero_terminal_snr(moved), zero_terminal_snr(betas), rtol=1e-9, atol=0)


def test_zero_terminal_snr_keeps_the_digits_of_tiny_betas():
    with mpmath.workdps(60):
        betas = [mpmath.mpf(b) for b in linear_betas(20, 1e-13, 1e-10).tolist()]
        roots, bar = [], mpmath.mpf(1)
        for beta in betas:
            bar *= 1 - beta
            roots.append(mpmath.sqrt(bar))
        scaled = [(r - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for r in roots]
        expected = [float(betas[0]), *(float(1 - (b / a) ** 2) for a, b in pairwise(scaled))]
    torch.testing.assert_close(zero_terminal_snr([float(b) for b in betas]), doubles(*expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: linear_betas(0), "N=0"),
        (lambda: scaled_linear_betas(2.5), "N=2.5"),
        (lambda: sigmoid_betas(5, 0.0), "start=0.0"),
        (lambda: linear_betas(5, 0.1, 1.0), "end=1.0"),
        (lambda: cosine_betas(5, -1.0), "s=-1.0"),
        (lambda: cosine_betas(5, max_beta=1.5), "max_beta=1.5"),
        (lambda: cosine_betas(True), "N=True"),
        (lambda: zero_terminal_snr([0.1]), "betas=(1,)"),
        (lambda: zero_terminal_snr([0.1, 1.0, 0.2]), "betas[1]=1.0"),
        (lambda: zero_terminal_snr([0.1, math.nan]), "betas[1]=nan"),
    ],
)
def test_schedules_refuse(build, words):
    with pytest.raises(ArgumentError) as caught:
        build()
    assert words in str(caught.value)


# Checkpoints.

OTHERS = [
    CosineVPSDE(0.01, -9.9),
    EDMSDE(0.01, 10.0, 5.0),
    LogSNRSDE(KNOTS),
    LogSNRSDE(KNOTS, variance_preserving=False),
    VPSDE.from_betas(cosine_betas(20)),
    SubVPSDE(0.2, 10.0),
]


@pytest.mark.parametrize("sde", [*(s for s in PUBLIC_SDES if not isinstance(s, DiscreteVPSDE)), *OTHERS], ids=name)
def test_every_path_returns_from_a_checkpoint(sde, tmp_path):
    ScoreModel(MLP(width=8, depth=1), sde, "v").save_pretrained(tmp_path / "model")
    loaded = ScoreModel.from_pretrained(tmp_path / "model")
    assert loaded.sde == sde
    assert hash(loaded.sde) == hash(sde)


def test_a_curve_of_ones_own_is_noted_by_name_and_passed_again(tmp_path):
    sde = LogSNRSDE(VPSDE().half_log_snr)
    ScoreModel(MLP(width=8, depth=1), sde, "v").save_pretrained(tmp_path / "model")
    assert "half_log_snr" in (tmp_path / "model" / "model.yaml").read_text()
    with pytest.raises(CheckpointError, match="curve") as caught:
        ScoreModel.from_pretrained(tmp_path / "model")
    assert "sde" in str(caught.value)
    assert ScoreModel.from_pretrained(tmp_path / "model", sde=sde).sde == sde


@pytest.mark.on_device
@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_default_grids_and_a_last_tweedie_step_work_on_every_path(sde):
    """A default grid from the first time that has a finite field, through a network of the kind that is allowed."""
    for solver in (ddim(), ddim(1.0)):
        grid = grids.uniform(sde, 5, start=first_time(sde))
        x = sample(model_of(RandomNetwork(), sde), solver, grid, shape=(3, 2), tweedie=True, dtype=torch.float64).x
        assert x.isfinite().all()


@pytest.mark.on_device
def test_values_outside_the_range_of_a_path_without_signal_at_the_end_are_refused():
    """λ(1) = -inf must not loosen the other end."""
    sde = LogSNRSDE(lambda t: 3 + torch.log1p(-t))
    assert sde.half_log_snr(1.0) == -math.inf
    with pytest.raises(ArgumentError, match="lambda_t"):
        sde.inverse_half_log_snr(4.0)
    assert relative_error(sde.inverse_half_log_snr(sde.half_log_snr(TIMES)), TIMES) < 1e-12
