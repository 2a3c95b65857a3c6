"""Sampling with a learned variance: which noise a step adds, what it costs, and that the model is written and read."""

import math

import pytest
import torch
import yaml
from loss_tools import SDES, Small, model_with, name

from sde_toolkit import VPSDE, ReverseEquation, ScoreModel, Solver, clip_x0, ddim, ddpm, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import LearnedVariance, forward_variance
from sde_toolkit.losses import VariationalBound
from sde_toolkit.sde import beta_schedules

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
learned = Solver("ddpm[learned]", 1.0, LearnedVariance())
F64 = {"dtype": torch.float64}


class Fixed(Small):
    """A mean of some network, and a v of our choosing."""

    def __init__(self, v, event=(2,)):
        super().__init__(event)
        self.v = v

    def forward(self, x, time, condition=None):
        y = super().forward(x, time)
        return torch.cat([y.reshape(len(x), y.shape[1] if y.ndim > 1 else 1, *y.shape[2:]), self.of(x)], 1)

    def of(self, x):
        wide = x if x.ndim > 1 else x[:, None]
        return self.v * torch.ones_like(wide)


def pair(sde, v, event=(2,)):
    with_v = ScoreModel(Fixed(v, event), sde, "v", learned_variance=True)
    return with_v, ScoreModel(Small(event), sde, "v")


def grid_of(sde, n=7):
    """From where the reverse SDE may begin down to t = 0, where σ may be 0."""
    return torch.linspace(0.98, 0.0, n + 1, dtype=torch.float64)


@every_sde
@pytest.mark.parametrize("event", [(), (1,), (2,), (3, 4, 4)], ids=str)
def test_v_of_zero_and_one_are_ddpms_two_variances(sde, event):
    """v = 0 is β̃, ddpm(); v = 1 is β, ddpm(forward_variance); the last step adds nothing where σ is 0."""
    for v, solver in ((0.0, ddpm()), (1.0, ddpm(forward_variance))):
        with_v, plain = pair(sde, v, event)
        found = sample(with_v, learned, grid_of(sde), shape=(3, *event), **F64)
        wanted = sample(plain, solver, grid_of(sde), shape=(3, *event), **F64)
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-9, atol=1e-9)
        assert found.nfe == 7


def published_variance(betas, says, index, earlier):
    """Variance of the noise of the published sampler's step from ``index`` to ``earlier`` (1 ... N).

    Nichol & Dhariwal 2021, eq. 15 with their code's reading of the network; a sub-grid has β = 1 − ᾱ_t/ᾱ_s.
    """
    bars = torch.cumprod(1 - betas, 0)
    bar, bar_before = bars[index - 1], bars[earlier - 1]
    beta = 1 - bar / bar_before
    posterior = beta * (1 - bar_before) / (1 - bar)
    fraction = (says + 1) / 2
    return torch.exp(fraction * beta.log() + (1 - fraction) * posterior.log())


@pytest.mark.parametrize("says", [-1.0, -0.3, 0.0, 0.5, 1.0])
@pytest.mark.parametrize(("index", "earlier"), [(1000, 999), (600, 500), (100, 1), (2, 1)])
def test_published_networks_say_minus_one_to_one(says, index, earlier):
    """Read as "range", a step has the variance of the published sampler, and "fraction" is the same network mapped."""
    betas = beta_schedules.linear_betas(1000)
    sde, x = VPSDE.from_betas(betas), torch.ones(1, 2, dtype=torch.float64)
    grid = torch.tensor([index, earlier], dtype=torch.float64) / 1000
    found = []
    for kind, value in (("range", says), ("fraction", (says + 1) / 2), (True, (says + 1) / 2)):
        equation = ReverseEquation(ScoreModel(Fixed(value), sde, "epsilon", learned_variance=kind), 1.0)
        row = LearnedVariance().prepare(equation, grid)[0]
        ends = [LearnedVariance().step(equation, x, row, None, lambda z=z: z * x)[0] for z in (1.0, 0.0)]
        found.append((ends[0] - ends[1]).square())
    wanted = published_variance(betas.double(), says, index, earlier)
    for variance in found:
        torch.testing.assert_close(variance, wanted.expand_as(x), rtol=1e-6, atol=0)


@every_sde
def test_losses_and_views_see_the_fraction(sde):
    """The bound of a network that says 2 v − 1 is that of the one that says v."""
    x, noise = (torch.linspace(a, b, 6).reshape(3, 2) for a, b in ((-1, 1), (1, -2)))
    t = torch.tensor([0.2, 0.5, 0.9])
    losses = []
    for kind, value in (("range", -0.4), ("fraction", 0.3)):
        model = ScoreModel(Fixed(value), sde, "v", learned_variance=kind)
        torch.testing.assert_close(model(x, t).variance_fraction, torch.full((3, 2), 0.3))
        losses.append(VariationalBound(N=10)(model, x, t, noise))
    torch.testing.assert_close(*losses)


@every_sde
def test_a_model_without_learned_variance_is_ddpm_bit_for_bit(sde):
    _, plain = pair(sde, 0.0)
    found, wanted = (sample(plain, solver, grid_of(sde), shape=(3, 2)).x for solver in (learned, ddpm()))
    assert torch.equal(found, wanted)


@every_sde
@pytest.mark.parametrize("v", [-0.4, 0.3, 1.5])
def test_the_variance_of_a_step_interpolates_on_a_log_scale(sde, v):
    """Read off the step itself, as the effect of one unit of noise: log Σ = v log β + (1 − v) log β̃."""
    with_v, plain = pair(sde, v)
    t, s = torch.tensor(0.8).double(), torch.tensor(0.5).double()
    grid = torch.stack([t, s])

    def effect(model, integrator):
        equation = ReverseEquation(model, 1.0)
        row = integrator.prepare(equation, grid)[0]
        x = torch.ones(1, 2, dtype=torch.float64)
        ends = [integrator.step(equation, x, row, None, lambda z=z: z * torch.ones_like(x))[0] for z in (1.0, 0.0)]
        return (ends[0] - ends[1]).squeeze(0)

    beta, beta_tilde = (effect(plain, solver.integrator) ** 2 for solver in (ddpm(forward_variance), ddpm()))
    wanted = torch.exp(v * beta.log() + (1 - v) * beta_tilde.log())
    torch.testing.assert_close(effect(with_v, LearnedVariance()) ** 2, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sde", [s for s in SDES if s.sigma(0.0) == 0], ids=name)
@pytest.mark.parametrize("N", [2, 5])
def test_the_true_variance_makes_few_steps_exact_on_gaussian_data(sde, N):
    """x_s given x_t is Gaussian there: with its own mean and variance every step keeps the marginals, however long.

    The scheme is linear in its draws: its variance is the sum of squares of what each of them does.
    """
    c, first = 0.4, 0.9

    def at(t):
        return sde.alpha(t) ** 2 * c + sde.sigma(t) ** 2

    def network(x, time):
        t = time.double()[:1]
        s = (t - first / N).clamp(min=0.0)
        x_hat = sde.alpha(t) * c / at(t) * x
        covariance = sde.alpha(t) / sde.alpha(s) * at(s)
        true = at(s) - covariance**2 / at(t)
        beta = sde.sigma(t) ** 2 - (sde.alpha(t) / sde.alpha(s)) ** 2 * sde.sigma(s) ** 2
        small = beta * sde.sigma(s) ** 2 / sde.sigma(t) ** 2
        v = torch.where(s > 1e-9, (true / small).log() / (beta / small).log(), 0.0)
        return torch.cat([x_hat, v * torch.ones_like(x)], 1)

    equation, integrator = (
        ReverseEquation(ScoreModel(network, sde, "x0", learned_variance=True), 1.0),
        LearnedVariance(),
    )
    grid = torch.linspace(first, 0, N + 1, dtype=torch.float64)[:-1]  # the last step, to data, has no noise at all
    rows = list(integrator.prepare(equation, grid))
    effects = torch.eye(N, dtype=torch.float64)  # of the start and of each step's draw, each in a sample of its own
    x = effects[:, :1] * at(grid[0]).sqrt()
    for k, row in enumerate(rows, start=1):
        x, _ = integrator.step(equation, x, row, None, lambda k=k: effects[:, k : k + 1])
    torch.testing.assert_close(x.square().sum(), at(grid[-1]), rtol=1e-9, atol=0)


def test_clipping_keeps_what_was_learned():
    """clip_x0 passes v on: where nothing is clipped the sample is the same."""
    with_v, _ = pair(VPSDE(), 0.5)
    grid = torch.linspace(1, 0.1, 6).double()
    wide = sample(clip_x0(with_v, -1e9, 1e9), learned, grid, shape=(3, 2), **F64)
    torch.testing.assert_close(wide.x, sample(with_v, learned, grid, shape=(3, 2), **F64).x, rtol=1e-7, atol=1e-7)
    assert not torch.allclose(wide.x, sample(with_v, ddpm(), grid, shape=(3, 2), **F64).x)


def test_every_other_solver_sees_the_mean_alone():
    with_v, plain = pair(VPSDE(), 0.7)
    grid = grids.uniform(VPSDE(), 5)
    assert torch.equal(sample(with_v, ddim(), grid, shape=(3, 2)).x, sample(plain, ddim(), grid, shape=(3, 2)).x)
    deterministic = Solver("", 0.0, LearnedVariance())
    found = sample(with_v, deterministic, grid, shape=(3, 2), **F64).x
    torch.testing.assert_close(found, sample(plain, ddim(), grid, shape=(3, 2), **F64).x)


def test_it_compiles():
    model = ScoreModel(Small(factor=2), VPSDE(), "v", learned_variance=True)
    grid = torch.linspace(1, 0.1, 6).double()
    eager, compiled = (sample(model, learned, grid, shape=(3, 2), compile=c, **F64) for c in (False, "aot_eager"))
    torch.testing.assert_close(compiled.x, eager.x)
    assert compiled.nfe == eager.nfe == 5


def test_a_checkpoint_remembers(tmp_path):
    model = model_with(VPSDE(), "epsilon", learned_variance=True)
    model.save_pretrained(tmp_path)
    loaded = ScoreModel.from_pretrained(tmp_path, network=Small((2,), 2, seed=9))
    assert loaded.learned_variance
    assert loaded.description() == model.description()
    grid = torch.linspace(1, 0.1, 6).double()
    found, wanted = (sample(m, learned, grid, shape=(2, 2), **F64).x for m in (loaded, model))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("kind", "written"), [(True, True), ("fraction", True), ("range", "range")])
def test_a_checkpoint_says_which_of_the_two(tmp_path, kind, written):
    """``true``, which is all that older ones say, is the fraction."""
    model = model_with(VPSDE(), "epsilon", learned_variance=kind)
    model.save_pretrained(tmp_path)
    assert yaml.safe_load((tmp_path / "model.yaml").read_text())["learned_variance"] == written
    loaded = ScoreModel.from_pretrained(tmp_path, network=Small((2,), 2, seed=9))
    x, t = torch.ones(2, 2), torch.tensor(0.5)
    assert torch.equal(loaded(x, t).variance_fraction, model(x, t).variance_fraction)


def test_checkpoints_of_before_are_read_as_they_were(tmp_path):
    model = model_with(VPSDE(), "epsilon")
    assert "learned_variance" not in model.description()
    model.save_pretrained(tmp_path)
    assert not ScoreModel.from_pretrained(tmp_path, network=Small()).learned_variance


def test_a_damaged_description_is_refused(tmp_path):
    model_with(VPSDE(), "epsilon", learned_variance=True).save_pretrained(tmp_path)
    file = tmp_path / "model.yaml"
    file.write_text(file.read_text().replace("learned_variance: true", "learned_variance: perhaps"))
    with pytest.raises(ArgumentError, match="learned_variance"):
        ScoreModel.from_pretrained(tmp_path, network=Small((2,), 2))


def test_a_network_of_the_package_learns_its_variance(tmp_path):
    """UNet and MLP with twice the channels."""
    from sde_toolkit import MLP

    network = MLP(event_shape=(2,), width=8, depth=1, out_channels=4)
    model = ScoreModel(network, VPSDE(), learned_variance=True, event_shape=(2,))
    model.save_pretrained(tmp_path)
    loaded = ScoreModel.from_pretrained(tmp_path)
    assert loaded.learned_variance
    assert math.isfinite(sample(loaded, learned, grids.uniform(VPSDE(), 4), shape=(2, 2)).x.sum())
