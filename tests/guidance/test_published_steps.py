"""DPS, DDRM, RePaint and DAPS are the exponential step at their neutral settings, and exact where they claim to be."""

import math

import pytest
import torch
from catalogue import SDES, RandomNetwork, kinds_of, model_of, name, relative_error

from sde_toolkit import VESDE, VPSDE, Affine, ScoreModel, Solver, gaussian, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import (
    DAPS,
    DDRM,
    DPS,
    Mask,
    Matrix,
    Measurement,
    RePaint,
    StepOperator,
    daps,
    ddrm,
    dps,
    repaint,
)
from sde_toolkit.integrators import Exponential


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


DOUBLE = {"dtype": torch.float64}
EYE = torch.eye(2, dtype=torch.float64)
NOTHING = torch.zeros(2)


class Plain(StepOperator):
    def move(self, step):
        return step.exponential(step.estimate())


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_neutral_settings_are_the_exponential_step(sde):
    model, grid = model_of(RandomNetwork(), sde, kinds_of(sde)[0]), doubles(0.9, 0.6, 0.3, 0.0)
    options = {"shape": (3, 2), "seed": 2, **DOUBLE}
    plain = sample(model, Solver("", 0.6, Plain()), grid, **options)
    for operator in (DPS(Matrix(EYE), doubles(1, 2), 0.0), RePaint(doubles(1, 2), NOTHING, repeats=1)):
        assert torch.equal(sample(model, Solver("", 0.6, operator), grid, **options).x, plain.x)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_jump_is_the_step_in_parts_of_equal_length_in_lambda(sde):
    model, grid = model_of(RandomNetwork(), sde, kinds_of(sde)[0]), doubles(0.9, 0.6, 0.3)
    lam = sde.half_log_snr(grid)
    parts = torch.stack([lam[:-1] + k / 3 * lam.diff() for k in range(3)], 1).flatten()
    finer = torch.cat([sde.inverse_half_log_snr(parts), grid[-1:]])
    options = {"shape": (3, 2), "seed": 2, **DOUBLE}
    expected = sample(model, Solver("", 1.0, Exponential()), finer, **options)
    found = sample(model, repaint(doubles(1, 2), NOTHING, repeats=1, jump=3), grid, **options)
    assert relative_error(found.x, expected.x) < 1e-9
    assert found.nfe == expected.nfe == 6


def test_dps_goes_down_the_gradient_of_the_squared_misfit():
    """Of a nonlinear A, in the caller's space: by differences of the squared misfit of x̂_0(x_t)."""
    model = ScoreModel(RandomNetwork(), VPSDE(), "v", transform=Affine(shift=1.0, scale=0.5))
    y, zeta, grid, h = doubles(0.4, -0.2, 0.7), 0.3, doubles(0.6, 0.5), 1e-5

    def A(x):  # noqa: N802
        return torch.stack([x[:, 0] * x[:, 1], x[:, 0].sin(), x[:, 1] ** 2], 1)

    x_t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def misfit(x):
        return (y - A(model.transform.inverse(model(x, 0.6).x_0))).square().sum(1)

    slope = torch.stack([(misfit(x_t + h * e) - misfit(x_t - h * e)) / (2 * h) for e in EYE], 1)
    plain = sample(model, Solver("", 1.0, Plain()), grid, x_start=x_t)
    found = sample(model, dps(A, y, zeta), grid, x_start=x_t)
    torch.testing.assert_close(found.x - plain.x, -zeta * slope / misfit(x_t).sqrt()[:, None], rtol=1e-6, atol=1e-8)
    own = sample(model, dps(A, zeta=zeta), grid, x_start=x_t, condition=y.expand(4, 3))
    assert torch.equal(own.x, found.x)
    assert found.products == found.nfe == 1


def test_ddrm_reproduces_what_was_measured_without_noise():
    model = model_of(RandomNetwork(3), VPSDE())
    generator = torch.Generator().manual_seed(1)
    for A in (Mask(torch.tensor([1, 0, 1])), Matrix(torch.randn(2, 3, generator=generator, dtype=torch.float64))):
        y = torch.randn(2, generator=generator, dtype=torch.float64)
        found = sample(model, ddrm(model, A, y), steps=5, shape=(4, 3), **DOUBLE)
        assert relative_error(A(found.x), y.expand(4, 2)) < 1e-10
        assert found.nfe == 5


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.4, 0.6), (1.0, 0.0)])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
def test_ddrm_keeps_the_noise_level_where_the_estimate_is_right(sde, eta, eta_b):
    """Proposition 3.2 of the paper: at every level x_t is x_0 with noise of its level, measured or not."""
    n, x_0 = 40_000, doubles(0.5, -1.0, 0.3)
    model = ScoreModel(lambda x, time: x_0.expand_as(x), sde, "x0")
    generator = torch.Generator().manual_seed(5)
    A = Matrix(torch.diag(doubles(2.0, 0.3, 1.0))[:2])  # the third is not measured
    y = A(x_0.expand(n, 3)) + 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    solver = Solver("", eta, DDRM(Measurement(A, noise_std=0.5), eta_b=eta_b))
    grid = grids.uniform_lambda(sde, 8, start=0.9, end=0.02)
    tau = sde.sigma(grid) / sde.alpha(grid)
    assert tau[1] > 0.5 / 0.3 > tau[-1]  # both rules for what was measured are met
    start = sde.perturb(x_0.expand(n, 3), grid[0], torch.randn(n, 3, generator=generator, dtype=torch.float64))
    found = sample(model, solver, grid, x_start=start, condition=y, trajectory=True, generator=generator)
    for t, x in zip(grid[1:], found.trajectory[1:], strict=True):
        z = (x - sde.alpha(t) * x_0) / sde.sigma(t)
        assert bool((z.mean(0).abs() < 4.5 / math.sqrt(n)).all())
        assert bool((z.var(0) - 1).abs().max() < 4.5 * math.sqrt(2 / n))


COVARIANCE = doubles(1.0, 0.8, 0.8, 1.0).reshape(2, 2)


def test_repaint_puts_the_known_part_in_at_its_noise_level():
    model, n = ScoreModel(RandomNetwork(), VPSDE(), "v", transform=Affine(shift=1.0, scale=2.0)), 4000
    solver, grid = repaint(doubles(1.4, math.nan), torch.tensor([1, 0]), repeats=2, jump=2), doubles(0.8, 0.5, 0.2)
    found = sample(model, solver, grid, shape=(n, 2), trajectory=True, **DOUBLE)
    for t, x in zip(grid[1:], found.trajectory[1:, :, 0], strict=True):
        z = (x - VPSDE().alpha(t) * (1.4 - 1.0) * 2.0) / VPSDE().sigma(t)
        assert abs(z.mean()) < 4 / math.sqrt(n)
        assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)


def test_repaint_comes_near_the_conditional_law():
    """N(0.8 y, 0.36) given the first element y. Without repeats the second element hardly knows of it.

    The mean tends to 0.8 y with the repeats. The variance is low by the inner step's error, of order 1 in its length.
    """
    model, sde = gaussian([0.0, 0.0], VPSDE(), covariance=COVARIANCE), VPSDE()
    known, mask, n = doubles(1.5, math.nan), torch.tensor([True, False]), 8000
    found = {}
    for steps, repeats in ((12, 1), (12, 16), (36, 16)):
        lam = torch.linspace(-3.0, 2.5, steps + 1, dtype=torch.float64)
        grid = torch.cat([sde.inverse_half_log_snr(lam), doubles(0.0)])
        drawn = sample(model, repaint(known, mask, repeats), grid, shape=(n, 2), **DOUBLE)
        assert torch.equal(drawn.x[:, 0], known[0].expand(n))
        assert drawn.nfe == (steps + 1) * repeats
        found[steps, repeats] = (drawn.x[:, 1].mean() - 1.2).item(), (drawn.x[:, 1].var() / 0.36 - 1).item()
    assert abs(found[12, 1][0]) > 0.4 > 8 * abs(found[36, 16][0]) - 0.16
    assert abs(found[36, 16][1]) < 0.3
    assert abs(found[36, 16][1]) < abs(found[12, 16][1])


@pytest.mark.parametrize("settings", [{}, {"langevin_steps": 30, "step_size": 0.3}], ids=["exact", "langevin"])
def test_daps_with_the_true_variance_has_the_posterior(settings):
    """After one long step and after many."""
    model, n = gaussian([0.5, -1.0], VPSDE(), std=0.7), 4000
    A, y = doubles(1.0, -0.5).reshape(1, 2), doubles(2.0)
    truth = model.posterior(A, y, 0.4)
    solver = daps(model, A, y, 0.4, prior_std=0.7, **settings)
    covariance = 0.49 * EYE - 0.49 * A.T @ A * 0.49 / (0.49 * 1.25 + 0.16)
    slack = 0.0 if not settings else 0.02  # Langevin steps have a bias in their length
    for grid in (doubles(1.0, 0.0), grids.uniform_lambda(VPSDE(), 5)):
        found = sample(model, solver, grid, shape=(n, 2), **DOUBLE)
        assert bool((found.x.mean(0) - truth.network.means[0]).abs().max() < 4 * 0.7 / math.sqrt(n) + slack)
        assert bool((torch.cov(found.x.T) - covariance).abs().max() < 4 * 0.49 * math.sqrt(2 / n) + 2 * slack)
        assert found.nfe == len(grid) - 1


def test_daps_follows_the_flow_to_its_estimate():
    """With many steps of the flow x̂_0 is where the flow ends, which for a Gaussian keeps the standard score."""
    model = gaussian([0.5], VPSDE(), std=0.7)
    measurement = Measurement(Matrix(torch.ones(1, 1)), doubles(0.0), noise_std=1e6)
    x_t, grid = doubles(1.4, -0.3).reshape(2, 1), doubles(0.6, 0.0)
    solver = Solver("", 1.0, DAPS(measurement, prior_std=1e-9, flow_steps=200))
    found = sample(model, solver, grid, x_start=x_t)
    alpha, sigma = VPSDE().alpha(grid[0]), VPSDE().sigma(grid[0])
    expected = 0.5 + 0.7 * (x_t - alpha * 0.5) / (alpha**2 * 0.49 + sigma**2).sqrt()
    torch.testing.assert_close(found.x, expected, atol=0.01, rtol=0)
    assert found.nfe == 200


OPERATORS = [
    (dps(EYE, doubles(1, 2)), 1, 1),
    (Solver("", 0.85, DDRM(Measurement(Matrix(EYE[:1]), doubles(1), noise_std=0.3))), 1, 0),
    (repaint(doubles(1, 2), torch.tensor([1, 0]), 3, 2), 6, 0),
    (Solver("", 1.0, DAPS(Measurement(Matrix(EYE[:1]), doubles(1), noise_std=0.3), flow_steps=3)), 3, 0),
    (Solver("", 1.0, DAPS(Measurement(Matrix(EYE), doubles(1, 2), noise_std=0.3), langevin_steps=2)), 1, 0),
]


@pytest.mark.parametrize(("solver", "evaluations", "products"), OPERATORS)
def test_evaluations_are_counted_and_noise_is_that_of_the_sample(solver, evaluations, products):
    calls = []

    def network(x, time):
        calls.append(len(x))
        return torch.tanh(x)

    model, options = ScoreModel(network, VPSDE(), "v"), {"seed": 3, "shape": (5, 2), **DOUBLE}
    grid = grids.uniform(VPSDE(), 4)
    whole = sample(model, solver, grid, **options)
    assert sum(calls) == 5 * whole.nfe
    assert (whole.nfe, whole.products) == (4 * evaluations, 4 * products)
    assert solver.integrator.evals_per_step == evaluations
    parts = sample(model, solver, grid, batch_size=2, **options)
    assert torch.equal(parts.x, whole.x)


def test_a_measurement_of_each_sample_comes_in_the_callers_space():
    model = ScoreModel(RandomNetwork(), VPSDE(), "v", transform=Affine(shift=3.0, scale=0.5), event_shape=(2,))
    y, options = doubles(4.0, 5.0, 6.0).reshape(3, 1), {"steps": 3, "shape": (3, 2), **DOUBLE}
    for make in (lambda y: ddrm(model, EYE[:1], y, 0.1), lambda y: daps(model, EYE[:1], y, 0.1)):
        own = sample(model, make(None), condition=y, **options)
        assert torch.allclose(own.x[1], sample(model, make(y[1]), **options).x[1], rtol=0, atol=1e-12)
    exact = sample(model, ddrm(model, EYE[:1]), condition={"y": y, "condition": None}, **options)
    assert torch.allclose(exact.data[:, 0], y[:, 0])
    known = torch.cat([y, y], 1)
    painted = sample(model, repaint(None, torch.tensor([0, 1]), 2), condition=known, **options)
    assert torch.allclose(painted.data[:, 1], y[:, 0])


def test_bad_input_is_named():
    model, measurement = model_of(RandomNetwork(), VPSDE()), Measurement(Matrix(EYE), doubles(1, 2), noise_std=0.1)
    exact, several = Measurement(Matrix(EYE), doubles(1, 2), noise_std=0.0), doubles(0.1, 0.2)
    for argument, make in [
        ("zeta", lambda: DPS(EYE, doubles(1, 2), -1.0)),
        ("space", lambda: DPS(EYE, doubles(1, 2), space="other")),
        ("y", lambda: DPS(EYE, 3.0)),
        ("measurement", lambda: DDRM(EYE)),
        ("eta_b", lambda: DDRM(measurement, eta_b=2.0)),
        ("noise_std", lambda: DDRM(Measurement(Matrix(EYE), doubles(1, 2), noise_std=several))),
        ("mask", lambda: RePaint(doubles(1, 2), doubles(0.5, 1))),
        ("repeats", lambda: RePaint(doubles(1, 2), NOTHING, repeats=0)),
        ("jump", lambda: RePaint(doubles(1, 2), NOTHING, jump=0.5)),
        ("known", lambda: RePaint(3.0, NOTHING)),
        ("noise_std", lambda: DAPS(exact)),
        ("prior_std", lambda: DAPS(measurement, prior_std=0.0)),
        ("flow_steps", lambda: DAPS(measurement, flow_steps=0)),
        ("langevin_steps", lambda: DAPS(measurement, langevin_steps=0)),
        ("step_size", lambda: DAPS(measurement, step_size=2.5)),
    ]:
        with pytest.raises(ArgumentError, match=argument):
            make()
    options = {"steps": 2, "shape": (2, 2), **DOUBLE}
    for argument, solver in [
        ("eta", Solver("", 0.0, DDRM(measurement))),
        ("eta", Solver("", 1.5, DDRM(measurement))),
        ("eta", Solver("", 0.0, RePaint(doubles(1, 2), NOTHING))),
        ("eta", Solver("", 0.0, DAPS(measurement))),
        ("condition", dps(EYE)),
        ("y", dps(EYE, doubles(1, 2, 3))),
        ("condition", repaint(None, NOTHING)),
        ("known", repaint(doubles(1, 2, 3), NOTHING)),
        ("y", Solver("", 1.0, DAPS(Measurement(Matrix(EYE), noise_std=0.1)))),
    ]:
        with pytest.raises(ArgumentError, match=argument):
            sample(model, solver, **options)
