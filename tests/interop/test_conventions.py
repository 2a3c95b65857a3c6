"""A network of another convention says the same x̂_0 once it is declared: on Gaussian data, where it is known."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sde_toolkit import EDMSDE, VESDE, DiscreteVPSDE, FlowMatching, ScoreModel, ddim, gaussian, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models import time_inputs

MEAN, STD = 0.7, 0.4
BETAS = torch.linspace(1e-3, 0.15, 40, dtype=torch.float64)


def posterior_mean(x, alpha, sigma):
    """E[x_0 | α x_0 + σ ε = x] of x_0 ~ N(MEAN, STD²)."""
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def column(t):
    return t[:, None].double()


def denoiser(x, sigma):
    return posterior_mean(x, 1.0, column(sigma))


def velocity_to_data(x, time):
    """flow_matching: x = time x_0 + (1 − time) ε, v = x_0 − ε."""
    a = column(time)
    x_0 = posterior_mean(x, a, 1 - a)
    return x_0 - (x - a * x_0) / (1 - a)


def velocity_to_noise(x, time):
    """Rectified flow: x = (1 − time) x_0 + time ε, v = ε − x_0; it is told 1000 time."""
    s = column(time) / 1000
    x_0 = posterior_mean(x, 1 - s, s)
    return (x - (1 - s) * x_0) / s - x_0


def of_index(x, alpha_bar):
    x_0 = posterior_mean(x, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()


class Table(nn.Module):
    """DDPM's ε̂ with its schedule in an ``nn.Embedding``."""

    def __init__(self):
        super().__init__()
        alpha_bar = torch.cumprod(1 - BETAS, 0)
        self.alpha_bar = nn.Embedding.from_pretrained(alpha_bar[:, None])
        self.seen = []

    def forward(self, x, index):
        self.seen.append(index)
        return of_index(x, self.alpha_bar(index))


def noise(x, index):
    assert torch.equal(index, index.round())
    return of_index(x, torch.cumprod(1 - BETAS, 0)[index.long()][:, None])


def score_of_ve(x, t):
    std = column(0.01 * 5000**t)
    return -(x - MEAN) / (STD**2 + std**2)


MODELS = {
    "denoiser": lambda: ScoreModel.from_denoiser(denoiser),
    "velocity, noise at 0": lambda: ScoreModel.from_velocity(velocity_to_data, noise_at=0),
    "velocity, noise at 1": lambda: ScoreModel.from_velocity(velocity_to_noise, noise_at=1, time_scale=1000.0),
    "noise": lambda: ScoreModel.from_noise(noise, BETAS),
    "noise, by a table": lambda: ScoreModel.from_noise(Table(), BETAS.tolist()),
    "noise, by a table, as told": lambda: ScoreModel.from_noise(Table(), BETAS.numpy(), whole_steps=True),
    "score": lambda: ScoreModel.from_score(score_of_ve, VESDE()),
}


@pytest.mark.parametrize("name", MODELS)
def test_its_x_0_is_the_exact_one(name):
    model = MODELS[name]()
    exact = gaussian(torch.full((1,), MEAN, dtype=torch.float64), model.sde, std=STD)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    for i in range(1, 40):  # times of all 40 steps but the last, where flow matching's α is 0
        t = i / 40
        torch.testing.assert_close(model(x, t).x_0, exact(x, t).x_0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_solvers_take_it(name):
    model = MODELS[name]()
    exact = gaussian(torch.full((1,), MEAN, dtype=torch.float64), model.sde, std=STD)
    times = torch.arange(36, 3, -4, dtype=torch.float64) / 40
    ours, wanted = (
        sample(m, ddim(), grid=times, shape=(5, 1), seed=1, dtype=torch.float64).data for m in (model, exact)
    )
    torch.testing.assert_close(ours, wanted)


def test_each_has_the_path_that_its_convention_means():
    assert MODELS["denoiser"]().sde == EDMSDE()
    assert ScoreModel.from_denoiser(denoiser, sigma_max=14.6, sigma_min=0.03).sde == EDMSDE(0.03, 14.6)
    assert MODELS["velocity, noise at 0"]().sde == FlowMatching()
    assert MODELS["noise"]().sde == DiscreteVPSDE(tuple(BETAS.tolist()))


def test_a_table_is_told_the_nearest_whole_step():
    network = Table()
    model = ScoreModel.from_noise(network, BETAS)
    model(torch.zeros(3, 1, dtype=torch.float64), torch.tensor([0.024, 10.4 / 40, 10.6 / 40]))
    assert network.seen[-1].dtype == torch.int64
    assert network.seen[-1].tolist() == [0, 9, 10]


def test_a_table_that_is_told_fractions_is_refused_with_the_remedy():
    model = ScoreModel(Table(), DiscreteVPSDE(tuple(BETAS.tolist())), time_input=time_inputs.DiscreteIndex(40))
    with pytest.raises(ArgumentError, match=r"DiscreteIndex\(N, whole=True\)"):
        model(torch.zeros(3, 1), 0.5)
    with pytest.raises(ArgumentError, match="whole=True"):
        ScoreModel.from_noise(Table(), BETAS, whole_steps=False)(torch.zeros(3, 1), 0.5)


Output = namedtuple("Output", "sample")
ANSWERS = {
    "a tuple": lambda y: (y, "more"),
    "a list": lambda y: [y, y],
    "an object with .sample": lambda y: SimpleNamespace(sample=y),
    "a named tuple": Output,
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_that_hold_a_tensor_are_read(kind):
    model = ScoreModel.from_denoiser(lambda x, sigma: ANSWERS[kind](denoiser(x, sigma)))
    plain = ScoreModel.from_denoiser(denoiser)
    x = torch.randn(4, 1, dtype=torch.float64)
    assert torch.equal(model(x, 0.5).x_0, plain(x, 0.5).x_0)


@pytest.mark.parametrize("answer", [None, {"x": torch.zeros(1)}, (), ("text", torch.zeros(1)), 3.0])
def test_other_answers_are_refused_by_name(answer):
    with pytest.raises(ArgumentError, match=r"network=.*answered with"):
        ScoreModel.from_denoiser(lambda x, sigma: answer)(torch.zeros(2, 1), 0.5)


def test_a_condition_goes_by_the_name_that_the_network_has_for_it():
    def labelled(x, sigma, y=None, scale=1.0):
        return denoiser(x, sigma) + (0 if y is None else scale * y[:, None])

    x, label = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0])
    free = ScoreModel.from_denoiser(labelled)(x, 0.5).x_0
    named = ScoreModel.from_denoiser(labelled, condition_name="y")
    torch.testing.assert_close(named(x, 0.5, label).x_0 - free, label[:, None].double())
    many = ScoreModel.from_denoiser(labelled, condition_name="**")
    torch.testing.assert_close(many(x, 0.5, {"y": label, "scale": 2.0}).x_0 - free, 2 * label[:, None].double())
    result = sample(many, ddim(), steps=3, shape=(3, 1), seed=0, condition={"y": label, "scale": 2.0})
    assert result.data.shape == (3, 1)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(2, 2)

    def forward(self, x, time, y=None):
        return self.inside(x) * (1 + time[:, None])


def test_signs_and_names_are_saved(tmp_path):
    torch.manual_seed(0)
    network = Dropped()
    model = ScoreModel.from_velocity(network, noise_at=0, condition_name="y")
    model.save_pretrained(tmp_path / "saved")
    again = ScoreModel.from_pretrained(tmp_path / "saved", network=Dropped())
    x = torch.randn(5, 2)
    assert torch.equal(again(x, 0.3).x_0, model(x, 0.3).x_0)
    assert (again.sign, again.condition_name, again.time_input) == (-1, "y", time_inputs.RemainingTime())


@pytest.mark.parametrize("wrapped", ["compiled", "parallel", "half"])
def test_networks_as_they_come(wrapped):
    torch.manual_seed(0)
    plain = Dropped()
    network = {
        "compiled": lambda: torch.compile(plain, backend="eager"),
        "parallel": lambda: nn.DataParallel(plain),
        "half": lambda: Dropped().to(torch.bfloat16),
    }[wrapped]()
    if wrapped == "half":
        network.load_state_dict({k: v.to(torch.bfloat16) for k, v in plain.state_dict().items()})
    x = torch.randn(5, 2)
    ours = ScoreModel.from_velocity(network, noise_at=1)(x, 0.3)
    tolerance = {"rtol": 0, "atol": 0.03} if wrapped == "half" else {}
    torch.testing.assert_close(ours.x_0, ScoreModel.from_velocity(plain, noise_at=1)(x, 0.3).x_0, **tolerance)
    assert ours.x_0.dtype == torch.float32


def test_bad_declarations_are_named():
    for wrong in (2, 0.5, True, "data"):
        with pytest.raises(ArgumentError, match="noise_at"):
            ScoreModel.from_velocity(velocity_to_data, noise_at=wrong)
    with pytest.raises(ArgumentError, match="sign"):
        ScoreModel(denoiser, EDMSDE(), "x0", sign=0)
    with pytest.raises(ArgumentError, match="condition_name"):
        ScoreModel(denoiser, EDMSDE(), "x0", condition_name="class labels")
    with pytest.raises(ArgumentError, match="v or x0"):
        ScoreModel.from_noise(noise, [0.1, 0.5, 1.0])
    with pytest.raises(ArgumentError, match="betas"):
        ScoreModel.from_noise(noise, [0.1, 1.5])


def test_the_usual_grid_serves_every_convention():
    for name in ("denoiser", "velocity, noise at 0", "score"):
        model = MODELS[name]()
        found = sample(model, ddim(), steps=8, shape=(400, 1), seed=0, dtype=torch.float64).data
        assert abs(found.mean().item() - MEAN) < 0.15
        assert 0.25 < found.std().item() < 0.55
    assert grids.uniform(FlowMatching(), 4)[0] == 1
