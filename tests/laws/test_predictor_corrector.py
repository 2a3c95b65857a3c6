"""Langevin steps leave p_t alone, and go between the steps of any predictor without touching what it remembers."""

import math
from itertools import pairwise

import pytest
import torch
from catalogue import (
    SDES,
    RandomNetwork,
    convergence_order,
    doubles,
    gaussian_data,
    marginal,
    model_of,
    name,
    own_moments,
    run_on,
    signal_at_the_end,
    start_at,
)

from sde_toolkit import VESDE, VPSDE, ReverseEquation, Solver, SubVPSDE, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import (
    Ancestral,
    DPMSolver2S,
    Euler,
    Exponential,
    Heun,
    Langevin,
    Multistep,
    PredictorCorrector,
    ReverseDiffusion,
    TorchDiffEq,
    expected_norms,
    mean_norms,
    own_norms,
)

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
PREDICTORS = [
    ReverseDiffusion(),
    Euler(),
    Exponential(),
    DPMSolver2S(),
    Ancestral(DPMSolver2S()),
    Multistep(2),
    Multistep(3),
]
every_predictor = pytest.mark.parametrize("predictor", PREDICTORS, ids=name)
IMAGE = (3, 8, 8)


def solver_of(predictor, corrector=None):
    return Solver("", 1.0, predictor if corrector is None else PredictorCorrector(predictor, corrector))


def elementwise(sde):
    """An exact ε of N(0.5, 0.7² I), elementwise, so that nothing but the solver could mix samples."""

    def network(x, time):
        alpha, sigma = sde.alpha(time[0]), sde.sigma(time[0])
        return sigma * (x - alpha * 0.5) / (alpha**2 * 0.49 + sigma**2)

    return model_of(network, sde)


class Standing(PredictorCorrector):
    """The corrector alone: a predictor that does nothing, so that corrections can be run by the laws' own loops."""

    def step(self, equation, x, row, state, noise):
        return self.corrector.correct(equation, x, row.inputs, row.correction, noise), None


def corrected(corrector, model, t, x, z):
    """Corrections at time t, on the given draws."""
    grid = torch.stack([doubles(t)[0], doubles(t * (1 - 1e-9))[0]])
    return run_on(Solver("", 1.0, Standing(Exponential(), corrector)), model, grid, x, z)


def stationary(sde, snr, t, doublings=24):
    """The own moments after 2²⁴ steps from anywhere, exactly: x ← c + x A + z B, doubled again and again."""
    equation = ReverseEquation(gaussian_data(sde), 1.0)
    corrector = Langevin(snr=snr, norms=expected_norms)
    basis = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()
    row = tuple(c[0] for c in corrector.coefficients(equation, doubles(t), doubles(t * (1 - 1e-9))))
    inputs = equation.inputs(doubles(t)[0])
    noise = basis[:, 2:]
    ends = corrector.correct(equation, basis[:, :2].clone(), inputs, row, lambda: noise)
    A, B = ends[1:3] - ends[0], ends[3:5] - ends[0]
    mean, covariance = ends[0], B.T @ B
    for _ in range(doublings):
        mean, covariance, A = mean + mean @ A, covariance + A.T @ covariance @ A, A @ A
    return mean, covariance


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), SubVPSDE()], ids=name)
def test_langevin_steps_tend_to_p_t_with_a_bias_of_second_order_in_snr(sde):
    """From anywhere, at a fixed time: the mean exactly, the covariance up to O(e) = O(snr²)."""
    mean, covariance = marginal(sde, doubles(0.4)[0])
    errors, ratios = [], (0.4, 0.2, 0.1)
    for snr in ratios:
        own_mean, own_covariance = stationary(sde, snr, 0.4)
        torch.testing.assert_close(own_mean, mean, rtol=1e-6, atol=1e-6)
        errors.append((own_covariance - covariance).norm().item())
    assert convergence_order([1 / r for r in ratios], errors) == pytest.approx(2, abs=0.1)
    assert errors[-1] < 0.01 * covariance.norm()


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("snr", [0.05, 0.16])
def test_snr_is_the_ratio_of_what_the_score_and_the_noise_move(sde, snr):
    """Song et al. 2021, appendix G: ‖e s‖/‖√(2e) z‖ = snr √a, for every sample by itself; a = 1 as s → t."""
    model, t = elementwise(sde), 0.7
    size = sde.sigma(t)
    x = size * torch.randn(5, *IMAGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.randn(5, *IMAGE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plus, minus = (corrected(Langevin(snr=snr), model, t, x, [sign * z]) for sign in (1, -1))
    by_score, by_noise = (plus + minus) / 2 - x, (plus - minus) / 2
    ratio = by_score.flatten(1).norm(dim=1) / by_noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, snr), rtol=1e-6, atol=0)
    # both along their own direction: the drift uphill, e s, with the e that the noise shows
    e = (by_noise / z).flatten(1).mean(1) ** 2 / 2
    score = model.score(x, t)
    torch.testing.assert_close(by_score, e.reshape(-1, 1, 1, 1) * score, rtol=1e-6, atol=1e-9)


@pytest.mark.on_device
def test_betas_of_a_coarse_step_shorten_the_corrections():
    """On discrete betas a is score_sde's 1 − β, so that ‖e s‖/‖√(2e) z‖ = snr √(1 − β)."""
    betas = torch.linspace(0.01, 0.6, 10, dtype=torch.float64)
    sde = VPSDE.from_betas(betas)
    x = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ends = [run_on(Solver("", 1.0, Standing()), elementwise(sde), doubles(1.0, 0.9), x, [s * z]) for s in (1, -1)]
    by_score, by_noise = (ends[0] + ends[1]) / 2 - x, (ends[0] - ends[1]) / 2
    ratio = by_score.flatten(1).norm(dim=1) / by_noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.16 * math.sqrt(1 - 0.6)))


@pytest.mark.on_device
def test_batch_means_are_score_sdes_size():
    """‖e s‖ and ‖√(2e) z‖ in the mean over the batch: one e for all."""
    sde, t = VESDE(), 0.5
    x = torch.randn(6, *IMAGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x * torch.arange(1, 7).reshape(6, 1, 1, 1)
    z = torch.randn(6, *IMAGE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = elementwise(sde)
    plus, minus = (corrected(Langevin(norms=mean_norms), model, t, x, [sign * z]) for sign in (1, -1))
    factor = (plus - minus) / 2 / z
    torch.testing.assert_close(factor, factor.flatten()[0].expand_as(factor))
    by_score, by_noise = (plus + minus) / 2 - x, (plus - minus) / 2
    means = [v.flatten(1).norm(dim=1).mean() for v in (by_score, by_noise)]
    assert (means[0] / means[1]).item() == pytest.approx(0.16, rel=1e-6)


@pytest.mark.on_device
@pytest.mark.parametrize("event", [(), (2,), IMAGE], ids=name)
def test_a_sample_does_not_depend_on_its_batch(event):
    """Bit for bit by default; with score_sde's means over the batch it does."""
    model, grid = elementwise(VPSDE()), grids.uniform(VPSDE(), 6)
    for norms, alone in ((own_norms, True), (expected_norms, True), (mean_norms, False)):
        solver = solver_of(ReverseDiffusion(), Langevin(norms=norms, steps=2))
        together = sample(model, solver, grid, shape=(5, *event), seed=4).x
        split = sample(model, solver, grid, shape=(5, *event), seed=4, batch_size=2).x
        assert torch.equal(together, split) == alone


@pytest.mark.on_device
@every_predictor
def test_no_corrections_are_the_predictor_bit_for_bit(predictor):
    model, grid = model_of(RandomNetwork(), VPSDE()), grids.uniform(VPSDE(), 7)
    own = sample(model, solver_of(predictor), grid, shape=(4, 2), dtype=torch.float64)
    found = sample(model, solver_of(predictor, Langevin(steps=0)), grid, shape=(4, 2), dtype=torch.float64)
    assert torch.equal(found.x, own.x)
    assert found.nfe == own.nfe


@every_predictor
@pytest.mark.parametrize("steps", [1, 2])
def test_corrections_at_t_and_then_the_predictor_to_s(predictor, steps):
    """The loop written out, the predictor with its own table and state: it remembers its own evaluations alone."""
    sde = VPSDE()
    model, grid, corrector = model_of(RandomNetwork(), sde), grids.uniform(sde, 5), Langevin(steps=steps)
    equation = ReverseEquation(model, 1.0)
    drawn = torch.randn(60, 4, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    noise, x = iter(drawn), start_at(sde, 1.0, 4)
    found = run_on(solver_of(predictor, corrector), model, grid, x, drawn)
    state = None
    for (t, s), row in zip(pairwise(grid), predictor.prepare(equation, grid), strict=True):
        for _ in range(steps):
            z, score = next(noise), model.score(x, t)
            ratio = 0.16 * z.norm(dim=1) / score.norm(dim=1)
            e = 2 * (sde.alpha(t) / sde.alpha(s)) ** 2 * ratio**2
            e = torch.minimum(e, sde.sigma(t) ** 2)[:, None]
            x = x + e * score + (2 * e).sqrt() * z
        x, state = predictor.step(equation, x, row, state, lambda: next(noise))
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.on_device
def test_the_corrector_is_asked_at_every_time_but_the_last_and_counted():
    asked = []

    def network(x, time):
        asked.append(round(time[0].item(), 6))
        return 0.1 * x

    solver = solver_of(ReverseDiffusion(), Langevin(steps=2))
    done = sample(model_of(network, VPSDE()), solver, doubles(1.0, 0.5, 0.0), shape=(2, 2))
    assert asked == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert done.nfe == 2 * solver.integrator.evals_per_step == 6


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_few_steps_are_finite(sde, steps):
    """From t = 1 to t = 0; score_sde's VP predictor divides by √(1 − β) and is NaN below some twenty steps."""
    kind = "epsilon" if signal_at_the_end(sde) else "v"
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for network in (RandomNetwork(), lambda x, time: torch.zeros_like(x)):  # also a score that vanishes
        for predictor in (ReverseDiffusion(), Exponential()):
            solver, model = solver_of(predictor, Langevin()), model_of(network, sde, kind)
            assert sample(model, solver, grid, shape=(8, 2), dtype=torch.float64).x.isfinite().all()


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), SubVPSDE()], ids=name)
def test_corrections_mend_what_a_coarse_predictor_does(sde):
    """Own moments at the end: nearer to the closed form with corrections than without, on the same coarse grid."""
    grid = grids.uniform_lambda(sde, 5, start=0.9, end=0.3)
    mean, covariance = marginal(sde, grid[-1])
    errors = []
    for steps in (0, 1, 8):
        solver = solver_of(ReverseDiffusion(), Langevin(snr=0.3, steps=steps, norms=expected_norms))
        own_mean, own_covariance = own_moments(solver, gaussian_data(sde), grid, *marginal(sde, grid[0]))
        errors.append(math.hypot((own_mean - mean).norm().item(), (own_covariance - covariance).norm().item()))
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("event", "norms"),
    [((16, 64), own_norms), (IMAGE, own_norms), ((), expected_norms), ((2,), expected_norms), (IMAGE, expected_norms)],
    ids=name,
)
@every_sde
def test_the_marginals_are_right(sde, event, norms):
    """Own norms in many dimensions, expected ones in any: with own norms a step's size depends on few numbers of x."""
    begin, end, n = 0.9, 0.3, 4096 // math.prod(event) + 4
    generator = torch.Generator().manual_seed(9)
    x_0 = 0.5 + 0.7 * torch.randn(n, *event, generator=generator)
    start = sde.perturb(x_0, begin, torch.randn(n, *event, generator=generator))
    grid = grids.uniform_lambda(sde, 40, start=begin, end=end)
    x = sample(
        elementwise(sde), solver_of(ReverseDiffusion(), Langevin(norms=norms)), grid, x_start=start, generator=generator
    ).x
    true_mean = sde.alpha(end).item() * 0.5
    true_std = math.hypot(sde.alpha(end).item() * 0.7, sde.sigma(end).item())
    assert abs(x.mean().item() - true_mean) < (0.06 + 5 / math.sqrt(x.numel())) * true_std
    assert abs(x.std().item() / true_std - 1) < 0.06 + 5 / math.sqrt(2 * x.numel())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Langevin(snr=0.0),
        lambda: Langevin(snr=math.nan),
        lambda: Langevin(steps=-1),
        lambda: Langevin(steps=1.5),
        lambda: Langevin(norms="batch"),
        lambda: PredictorCorrector(TorchDiffEq()),
        lambda: PredictorCorrector(Euler),
        lambda: PredictorCorrector(Euler(), Euler()),
    ],
)
def test_parts_that_do_not_fit_are_refused(build):
    with pytest.raises(ArgumentError):
        build()


@pytest.mark.parametrize(("eta", "predictor"), [(0.0, Euler()), (1.0, Heun())])
def test_the_ode_and_methods_of_the_ode_are_refused(eta, predictor):
    model, solver = model_of(RandomNetwork(), VPSDE()), Solver("", eta, PredictorCorrector(predictor))
    with pytest.raises(ArgumentError, match="eta"):
        sample(model, solver, grids.uniform(VPSDE(), 3), shape=(2, 2))
