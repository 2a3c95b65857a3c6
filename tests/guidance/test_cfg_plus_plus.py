"""CFG++: a guided x̂_0 with the unconditional noise; the step is one of classifier-free guidance at another scale."""

import pytest
import torch
from catalogue import SDES, doubles, name, relative_error

from sde_toolkit import VPSDE, GaussianMixture, ReverseEquation, ScoreModel, Solver, ddim, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import UNCONDITIONAL, Guided, cfg_plus_plus, classifier_free
from sde_toolkit.integrators import Exponential
from sde_toolkit.models import ClassMixture

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1])
NOTHING = torch.full_like(LABELS, 3)


def classes(sde):
    means = doubles(-1.5, -1.0, 0.5, 1.2, 0.0, 0.7).reshape(3, 2)
    return ClassMixture(means, sde, std=doubles(0.3, 0.5, 0.4))


def run(solver, model, grid, x, noises, condition):
    """The solver on given draws, one for each step."""
    equation = ReverseEquation(model, solver.eta, condition)
    for row, z in zip(solver.integrator.prepare(equation, grid), noises, strict=True):
        x, _ = solver.integrator.step(equation, x, row, None, lambda z=z: z)
    return x


def setting(sde, n=4):
    grid = grids.uniform_lambda(sde, n, start=0.9, end=0.05)
    draws = torch.randn(n + 1, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return grid, sde.sigma(grid[0]) * draws[0], draws[1:]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_step_is_one_of_classifier_free_guidance_at_a_scale_that_grows_as_steps_shrink(sde, eta):
    """γ = λ/(1 − r^(1 + η²)), r = exp(λ_t − λ_s): then α_s x̂^λ + ρ ε̂_u = α_s x̂^γ + ρ ε̂^γ."""
    model, (grid, x, draws) = classes(sde), setting(sde)
    scale = torch.linspace(0, 1, 7, dtype=torch.float64)
    found = run(cfg_plus_plus(9.0, eta), model, grid, x, draws, Guided(LABELS, scale))
    for i in range(len(grid) - 1):
        ratio = torch.exp(sde.half_log_snr(grid[i]) - sde.half_log_snr(grid[i + 1]))
        usual = Guided(LABELS, scale / (1 - ratio ** (1 + eta**2)))
        step = Solver("", eta, Exponential())
        x = run(step, classifier_free(model, 1.0), grid[i : i + 2], x, draws[i : i + 1], usual)
    assert relative_error(found, x) < 1e-9


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_at_zero_it_is_the_unconditional_model_and_with_one_class_the_model(sde, eta):
    model, (grid, x, draws) = classes(sde), setting(sde)
    plain = run(Solver("", eta, Exponential()), model, grid, x, draws, NOTHING)
    assert relative_error(run(cfg_plus_plus(0.0, eta), model, grid, x, draws, LABELS), plain) < 1e-9
    # Where a class is as likely as ever, every λ is the same.
    assert relative_error(run(cfg_plus_plus(0.7, eta), model, grid, x, draws, NOTHING), plain) < 1e-9


def test_the_last_step_lands_on_the_guided_estimate():
    """σ_s = 0, and no noise is left."""
    model, x = classes(VPSDE()), setting(VPSDE())[1]
    grid = torch.tensor([0.4, 0.0], dtype=torch.float64)
    given, free = (model(x, 0.4, c).x_0 for c in (LABELS, NOTHING))
    for eta in (0.0, 1.0):
        found = run(cfg_plus_plus(0.6, eta), model, grid, x, torch.ones(1, 7, 2).double(), LABELS)
        torch.testing.assert_close(found, 0.4 * free + 0.6 * given, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_evaluations_are_counted_and_batches_do_not_matter(eta, stacked):
    rows = []

    def network(x, time, condition=None):
        rows.append(len(x))
        return torch.tanh(x + (0.0 if condition is None else condition[:, None].to(x)))

    model = ScoreModel(network, VPSDE(), "x0")
    grid, options = grids.uniform(VPSDE(), 4, end=0.01), {"dtype": torch.float64, "condition": LABELS}
    solver = cfg_plus_plus(0.5, eta, no_class=7, stacked=stacked)
    whole = sample(model, solver, grid, shape=(7, 2), **options)
    assert whole.nfe == sum(rows) / 7 == 8
    assert torch.equal(sample(model, solver, grid, shape=(7, 2), batch_size=3, **options).x, whole.x)
    if stacked:
        compiled = sample(model, solver, grid, shape=(7, 2), compile="aot_eager", **options)
        torch.testing.assert_close(compiled.x, whole.x, rtol=1e-10, atol=1e-10)
        assert compiled.nfe == 8
    other = sample(model, cfg_plus_plus(0.5, eta, no_class=UNCONDITIONAL), grid, shape=(7, 2), **options)
    assert not torch.equal(other.x, whole.x)
    assert sample(model, solver, nfe=9, shape=(7, 2), **options).nfe == 9  # four steps, and the last denoising


def test_what_it_refuses():
    model = GaussianMixture(torch.zeros(1, 2), VPSDE(), std=1.0)
    with pytest.raises(ArgumentError, match=r"no_class=None.*UNCONDITIONAL"):
        sample(model, cfg_plus_plus(0.5), steps=4, shape=(3, 2))
    with pytest.raises(ArgumentError, match="scale"):
        cfg_plus_plus("0.5")
    assert cfg_plus_plus(0.5) == cfg_plus_plus(0.5) != cfg_plus_plus(0.6)
    assert ddim() != cfg_plus_plus(0.6)
