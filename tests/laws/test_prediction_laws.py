"""Every parameterisation is a view of the same two things, x_0 and ε; and the network hears what was declared."""

import math

import pytest
import torch
from catalogue import SDES, Flow, RandomNetwork, difference_step, doubles, kinds_of, model_of, name, off_kinks, slope_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit import VESDE, VPSDE, ScoreModel
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models import time_inputs
from sde_toolkit.models.prediction import KINDS

SIGMA_DATA = 0.7
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
ZERO_SNR = VPSDE.from_betas([0.1, 0.3, 0.6, 1.0])


def on_path(sde, x_0, epsilon, t):
    return sde.alpha(t)[:, None] * x_0 + sde.sigma(t)[:, None] * epsilon


def karras_table_1(sigma, sigma_data):
    """c_skip, c_out, c_in, c_noise of Karras et al. 2022, for data of unit scale and noise sigma."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


def truths(sde, x_0, epsilon, t):
    """Every kind from its own definition: densities by autograd, velocities by differences, EDM by its table."""
    x_t = on_path(sde, x_0, epsilon, t).requires_grad_()
    kernel = torch.distributions.Normal(sde.alpha(t)[:, None] * x_0, sde.sigma(t)[:, None])
    (score,) = torch.autograd.grad(kernel.log_prob(x_t).sum(), x_t)
    h = difference_step(sde, t)[:, None]
    velocity = slope_of(lambda u: on_path(sde, x_0, epsilon, u[:, 0]), t[:, None], h)
    scaled, level = x_t.detach() / sde.alpha(t)[:, None], (sde.sigma(t) / sde.alpha(t))[:, None]
    c_skip, c_out, _, _ = karras_table_1(level, SIGMA_DATA)
    v = sde.alpha(t)[:, None] * epsilon - sde.sigma(t)[:, None] * x_0
    return x_t.detach(), {
        "x0": x_0,
        "epsilon": epsilon,
        "score": score,
        "v": v,
        "velocity": velocity,
        "edm": (x_0 - c_skip * scaled) / c_out,
    }


@every_sde
@settings(max_examples=8, deadline=None)
@given(t=st.lists(st.floats(0.02, 0.98), min_size=3, max_size=3), seed=st.integers(0, 999))
def test_all_kinds_convert_into_all_kinds(sde, t, seed):
    t = off_kinks(sde, doubles(*t))
    x_0, epsilon = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x_t, truth = truths(sde, x_0, epsilon, t)
    assert set(truth) == set(KINDS)
    for spoken in kinds_of(sde):
        model = model_of(lambda x, time, y=truth[spoken]: y, sde, spoken, sigma_data=SIGMA_DATA)
        prediction = model(x_t, t)
        views = {
            "x0": prediction.x_0,
            "epsilon": prediction.epsilon,
            "score": prediction.score,
            "v": prediction.v,
            "velocity": prediction.velocity,
            "edm": prediction.edm,
        }
        for kind in KINDS:
            # The velocity's differences are good to 1e-9; dividing by α or σ (0.007 at worst) loses two digits.
            torch.testing.assert_close(views[kind], truth[kind], rtol=1e-6, atol=1e-6, msg=f"{spoken} as {kind}")
            torch.testing.assert_close(prediction.view(kind), views[kind], rtol=0, atol=0)


@pytest.mark.on_device
@every_sde
def test_conversions_lose_no_digits_where_none_need_be_lost(sde):
    """x_0, ε and v into each other, and there and back again, to float64 accuracy."""
    generator = torch.Generator().manual_seed(4)
    t = torch.linspace(0.1, 0.6, 20, dtype=torch.float64)
    x_t, y = torch.randn(2, 20, 2, generator=generator, dtype=torch.float64)
    for spoken in kinds_of(sde):
        for kind in kinds_of(sde):
            there = model_of(lambda x, time: y, sde, spoken)(x_t, t).view(kind)
            back = model_of(lambda x, time, z=there: z, sde, kind)(x_t, t).view(spoken)
            torch.testing.assert_close(back, y, rtol=1e-9, atol=1e-9, msg=f"{spoken} as {kind} and back")


@pytest.mark.on_device
@every_sde
def test_the_networks_own_kind_is_its_output_untouched(sde):
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(5))
    for kind in kinds_of(sde):
        y = torch.randn(4, 2, generator=torch.Generator().manual_seed(6))
        assert model_of(lambda x, time, y=y: y, sde, kind)(x, 0.3).view(kind) is y


def heard(model, x, t, **condition):
    """What the model's network is called with."""
    calls = []

    def network(x, time, *args, **kwargs):
        calls.append((x, time, args, kwargs))
        return x

    ScoreModel.forward(
        model_of(network, model.sde, model.prediction, **condition.pop("options", {})), x, t, **condition
    )
    (call,) = calls
    return call


@pytest.mark.on_device
@pytest.mark.parametrize("kind", KINDS)
def test_only_edm_scales_the_networks_input(kind):
    sde = VESDE()
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    model = model_of(lambda x, time: x, sde, kind)
    seen, time, args, kwargs = heard(model, x, t, options={"sigma_data": SIGMA_DATA})
    assert (args, kwargs) == ((), {})
    _, _, c_in, c_noise = karras_table_1(sde.sigma(t), SIGMA_DATA)
    if kind == "edm":
        torch.testing.assert_close(seen, c_in[:, None, None] * x, rtol=1e-13, atol=0)
        torch.testing.assert_close(time, c_noise, rtol=1e-13, atol=1e-15)
    else:
        torch.testing.assert_close(seen, x, rtol=0, atol=0)
        torch.testing.assert_close(time, t, rtol=0, atol=0)


@pytest.mark.on_device
def test_edm_denoiser_has_unit_variance_inputs_and_targets():
    """Karras et al.'s reason for their table: input and target of the network have variance 1 at every level."""
    sde, n = VESDE(), 200_000
    generator = torch.Generator().manual_seed(8)
    x_0, epsilon = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    x_0 = SIGMA_DATA * x_0
    for t in (0.2, 0.5, 0.8):
        x_t = x_0 + sde.sigma(t) * epsilon
        model = model_of(lambda x, time: x_0, sde, "x0", sigma_data=SIGMA_DATA)
        seen, _, _, _ = heard(model_of(lambda x, time: x, sde, "edm"), x_t, t, options={"sigma_data": SIGMA_DATA})
        for values in (seen, model(x_t, t).edm):
            assert abs(values.var().item() - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.on_device
@pytest.mark.parametrize("batch", [1, 4])
def test_times_reach_the_network_as_one_number_per_sample(batch):
    x = torch.zeros(batch, 2)
    for t in (0.5, torch.tensor(0.5), torch.full((batch,), 0.5)):
        _, time, _, _ = heard(model_of(lambda x, time: x, VPSDE()), x, t)
        assert time.shape == (batch,)
        assert time.dtype == x.dtype
        assert (time == 0.5).all()


@pytest.mark.on_device
def test_discrete_networks_get_back_their_integers():
    N = 1000
    i = torch.arange(1, N + 1, dtype=torch.float64)
    index = time_inputs.DiscreteIndex(N)(VPSDE(), i / N)
    torch.testing.assert_close(index, i - 1, rtol=0, atol=1e-12)
    assert torch.equal(index.float(), (i - 1).float())
    assert torch.equal(index.round().long(), torch.arange(N))


@pytest.mark.on_device
@every_sde
def test_noise_level_means_the_same_under_every_sde(sde):
    """Two SDEs at equal σ/α give the network the same number, whatever their t."""
    yardstick = VESDE(sigma_min=1e-5, sigma_max=1e5)
    t = torch.linspace(0.2, 0.9, 9, dtype=torch.float64)
    levels = sde.sigma(t) / sde.alpha(t)
    ours, theirs = (time_inputs.NoiseLevel()(*pair) for pair in ((sde, t), (yardstick, same_level(yardstick, levels))))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def same_level(sde, levels):
    return sde.inverse_half_log_snr(-levels.log())


@pytest.mark.on_device
def test_condition_is_passed_on_only_when_given():
    model, x = model_of(lambda x, time: x, VPSDE()), torch.zeros(3, 2)
    labels = torch.tensor([2, 0, 1])
    assert heard(model, x, 0.5)[3] == {}
    assert heard(model, x, 0.5, condition=labels)[3] == {"condition": labels}
    seen = []
    own = ScoreModel(lambda x, time, condition=None: seen.append(condition) or x, VPSDE())
    own.score(x, 0.5)
    own.score(x, 0.5, labels)
    assert seen[0] is None
    assert seen[1] is labels


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [ZERO_SNR, Flow()], ids=["zero terminal SNR", "flow"])
def test_without_signal_at_the_end_epsilon_and_score_are_refused(sde):
    for kind in ("epsilon", "score"):
        with pytest.raises(ArgumentError, match=r"prediction='" + kind):
            ScoreModel(RandomNetwork(), sde, kind)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for kind in ("x0", "v"):  # at α = 0, σ = 1: x_t = ε and v = −x_0, whatever the network
        prediction = model_of(RandomNetwork(), sde, kind)(x, 1.0)
        torch.testing.assert_close(prediction.epsilon, x, rtol=1e-14, atol=0)
        torch.testing.assert_close(prediction.v, -prediction.x_0, rtol=1e-14, atol=0)


@pytest.mark.on_device
def test_flow_matching_network_is_read_at_pure_noise():
    """On the straight path the velocity is ε − x_0 at every time, t = 1 included, where x_t = ε."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    network = RandomNetwork()
    for t in (0.5, 1.0):
        prediction = model_of(network, Flow(), "velocity")(x, t)
        velocity = network(x, torch.full((3,), t, dtype=torch.float64))
        torch.testing.assert_close(prediction.epsilon - prediction.x_0, velocity, rtol=1e-12, atol=1e-12)


@pytest.mark.on_device
def test_reading_keeps_the_dtype_of_the_state():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(12))
    for kind in KINDS:
        prediction = model_of(lambda x, time: 0.5 * x, VPSDE(), kind)(x, torch.tensor(0.3, dtype=torch.float64))
        assert all(prediction.view(other).dtype == torch.float32 for other in KINDS)
