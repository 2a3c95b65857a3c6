"""Score models that wrap another: a change of schedule is exact, and limits on x̂_0 limit x̂_0 and nothing else."""

import functools
import math
import re
from itertools import cycle, pairwise, product

import pytest
import torch
from catalogue import (
    EVENT_SHAPES,
    SDES,
    RandomNetwork,
    doubles,
    kinds_of,
    model_of,
    name,
    relative_error,
    run_on,
)
from test_host_synchronisation import CountReads

from sde_toolkit import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DenoisingScoreMatching,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    Solver,
    SubVPSDE,
    clip_x0,
    ddim,
    ddpm,
    dynamic_threshold,
    gaussian,
    grids,
    probability_flow,
    reschedule,
    sample,
)
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import Corrected, Exponential, FrozenEDM, Multistep
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.models import time_inputs
from sde_toolkit.models.prediction import KINDS
from sde_toolkit.models.rescheduled import Rescheduled
from sde_toolkit.models.thresholding import Thresholded

# A change of schedule asks each path for itself: every path is the old one of a pair, and the new one of another.
PAIRS = [(old, SDES[(i + 1) % len(SDES)]) for i, old in enumerate(SDES)]
every_pair = pytest.mark.parametrize(("old", "new"), PAIRS, ids=lambda sde: name(sde))
MEANS = doubles(-1.0, 0.5, 1.5, 1.0, 0.0, -2.0).reshape(3, 2)


def mixture(sde):
    model = GaussianMixture(MEANS, sde, std=doubles(0.3, 0.6, 0.2), weights=doubles(1.0, 2.0, 1.0))
    model.sigma_data = 1.0  # that of the networks it is compared with: EDM's F is one of the views
    return model


@functools.cache
def common_times(*sdes, n=5):
    """One grid per SDE, at the same half log-SNRs, inside what all of them reach."""
    low = max(-3.5, *(sde.half_log_snr(1.0).item() for sde in sdes))
    high = min(3.5, *(sde.half_log_snr(0.0).item() for sde in sdes))
    assert low < high
    lambdas = low + (high - low) * torch.linspace(0.02, 0.98, n, dtype=torch.float64)
    return [sde.inverse_half_log_snr(lambdas) for sde in sdes]


def size(sde, t):
    return (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()


def points(sde, t, n=5):
    return size(sde, t) * torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def told_as(kind, sde):
    """The exact mixture as a network of any parameterisation."""
    exact = mixture(sde)

    def network(x, time):
        if kind == "edm":  # it sees x/c, and σ_d = 1
            x = size(sde, time)[:, None] * x
        return exact(x, time).view(kind)

    return ScoreModel(network, sde, kind, time_input=time_inputs.ScaledTime())


# The change of schedule.


@pytest.mark.on_device
@every_pair
def test_an_exact_model_under_another_path_is_the_exact_model_of_that_path(old, new):
    _, times = common_times(old, new)
    truth = mixture(new)
    for native in (None, *kinds_of(old)):
        model = mixture(old) if native is None else told_as(native, old)
        moved = reschedule(model, new)
        x = size(new, times)[:, None] * torch.linspace(-1.3, 1.1, 10, dtype=torch.float64).reshape(5, 2)
        found, expected = moved(x, times), truth(x, times)  # one time per sample
        for kind in KINDS:
            assert relative_error(found.view(kind), expected.view(kind)) < 1e-9, f"{native} as {kind}"
    torch.testing.assert_close(moved.score(x, times), found.score, rtol=0, atol=0)


@pytest.mark.on_device
@pytest.mark.parametrize("kind", KINDS)
def test_one_time_per_sample_and_float32(kind):
    old, new = VPSDE(), FlowMatching()
    _, times = common_times(old, new, n=5)
    moved, x = reschedule(told_as(kind, old), new), points(new, times[2])
    rows = torch.cat([reschedule(mixture(old), new)(x[i : i + 1], times[i]).v for i in range(5)])
    found = reschedule(mixture(old), new)(x, times)
    torch.testing.assert_close(found.v, rows, rtol=1e-12, atol=1e-12)
    narrow = moved(x.float(), times[2])
    for wanted in KINDS:
        assert narrow.view(wanted).dtype == torch.float32
        expected = moved(x, times[2]).view(wanted)
        torch.testing.assert_close(narrow.view(wanted).double(), expected, rtol=1e-4, atol=1e-4)


LAMBDA_SOLVERS = [ddim(), ddpm(), ddim(0.5), Solver("half", 0.5, Exponential())]


@pytest.mark.on_device
@every_pair
def test_solvers_that_see_lambda_alone_give_the_same_samples_up_to_the_scale(old, new):
    olds, news = common_times(old, new)
    generator = torch.Generator().manual_seed(4)
    noises = torch.randn(len(olds) - 1, 6, 2, generator=generator, dtype=torch.float64)
    networks = [mixture(old), *(model_of(RandomNetwork(), old, kind) for kind in ("epsilon", "velocity"))]
    for model in networks:
        for solver in LAMBDA_SOLVERS:
            x = points(old, olds[0], 6)
            there = run_on(solver, model, olds, x, noises)
            x = x * size(new, news[0]) / size(old, olds[0])
            here = run_on(solver, reschedule(model, new), news, x, noises)
            assert relative_error(here * size(old, olds[-1]) / size(new, news[-1]), there) < 1e-10


@pytest.mark.on_device
@every_pair
def test_there_and_back_is_where_it_was_and_a_detour_does_not_matter(old, new):
    olds, news = common_times(old, new)
    for model in (mixture(old), *(model_of(RandomNetwork(), old, kind) for kind in ("epsilon", "velocity"))):
        back, direct = reschedule(reschedule(model, new), old), reschedule(model, new)
        around = reschedule(reschedule(model, FlowMatching()), new)
        for t, s in zip(olds[::3], news[::3], strict=True):
            x, y = points(old, t), points(new, s)
            pairs = ((back(x, t), model(x, t)), (around(y, s), direct(y, s)))
            for (found, expected), kind in product(pairs, KINDS):
                assert relative_error(found.view(kind), expected.view(kind)) < 1e-9


@pytest.mark.on_device
@pytest.mark.parametrize("event", EVENT_SHAPES, ids=name)
def test_any_event_shape_and_the_networks_own_time_condition_and_dtype(event):
    heard = []

    def network(x, time, condition=None):
        heard.append((x, time, condition))
        return 0.1 * x

    old, new = VPSDE(), VESDE()
    (t, s), label = [grid[2] for grid in common_times(old, new)], torch.tensor([1, 2, 3])
    x = torch.randn(3, *event, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = ScoreModel(network, old, time_input=time_inputs.DiscreteIndex(1000))
    reschedule(model, new)(x, s, label)
    model(x, t, label)
    (ours, time, condition), (theirs, its_time, _) = heard
    torch.testing.assert_close(time, its_time, rtol=1e-11, atol=0)
    assert condition is label
    torch.testing.assert_close(ours, theirs / size(new, s), rtol=1e-12, atol=0)  # VP has size 1


@pytest.mark.on_device
def test_both_ends_that_two_paths_share_are_exact():
    """Cosine and flow matching both begin without noise and end without signal: λ is infinite on both sides."""
    moved, truth = reschedule(mixture(CosineVPSDE()), FlowMatching()), mixture(FlowMatching())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for t in (0.0, 1e-9, 1e-3, 1 - 1e-6, 1.0):
        for kind in ("x0", "epsilon", "v", "velocity"):
            torch.testing.assert_close(moved(x, t).view(kind), truth(x, t).view(kind), rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
def test_a_diffusion_model_is_sampled_as_a_flow_and_lands_on_the_data():
    """Heun on the straight path, of a model that was made for VP: a Gaussian keeps its standard scores."""
    mean, std, sde = doubles(0.5, -1.0), doubles(0.3, 1.2), FlowMatching()
    moved = reschedule(gaussian(mean, VPSDE(), std=std), sde)
    z, begin, end = torch.randn(50, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64), 0.98, 1e-3

    def spread(t):
        return (sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2).sqrt()

    found = sample(
        moved,
        probability_flow(),
        grids.uniform(sde, 400, start=begin, end=end),
        x_start=sde.alpha(begin) * mean + spread(begin) * z,
        dtype=torch.float64,
    )
    torch.testing.assert_close(found.x, sde.alpha(end) * mean + spread(end) * z, rtol=1e-3, atol=1e-3)


def untouchable(x, time, condition=None):
    raise AssertionError("the network was evaluated before the error was raised")


def number_in(remedy):
    return float(re.search(r"t=([0-9.e-]+) or", remedy)[1])


@pytest.mark.on_device
@pytest.mark.parametrize("new", [FlowMatching(), CosineVPSDE(), CosineVPSDE(end_half_log_snr=-9.9), VESDE(0.01, 1e3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_beyond_the_old_path_is_refused_with_the_time_that_works(new, dtype):
    old = VPSDE()
    moved = reschedule(ScoreModel(untouchable, old), new)
    grid = grids.uniform(new, 4, end=0.1)
    with pytest.raises(GridError, match=r"t=1\.0.*Start the grid at") as caught:
        sample(moved, ddim(), grid, shape=(2, 2))
    message = str(caught.value)
    assert f"{old.half_log_snr(1.0).item():.6g}" in message
    assert str(old) in message
    begin = number_in(message)
    assert new.half_log_snr(begin).item() == pytest.approx(old.half_log_snr(1.0).item(), abs=1e-8)
    fine = reschedule(mixture(old), new)
    assert (
        sample(fine, ddim(), grids.uniform(new, 4, start=begin, end=0.1), shape=(2, 2), dtype=dtype).x.isfinite().all()
    )


@pytest.mark.on_device
def test_an_end_beyond_the_old_path_is_refused_with_the_time_that_works():
    old, new = EDMSDE(sigma_min=0.05), VPSDE()
    grid = grids.uniform(new, 4, start=0.9, end=1e-4)
    with pytest.raises(GridError, match=r"t=0\.0001.*End the grid at") as caught:
        sample(reschedule(ScoreModel(untouchable, old), new), ddim(), doubles(*grid.tolist(), 5e-5), shape=(2, 2))
    end = number_in(str(caught.value))
    assert (new.sigma(end) / new.alpha(end)).item() == pytest.approx(0.05, rel=1e-9)
    grid = doubles(0.9, 0.5, end, end / 2)
    assert sample(reschedule(mixture(old), new), ddim(), grid, shape=(2, 2)).x.isfinite().all()


@pytest.mark.on_device
def test_paths_without_a_common_noise_level_and_wrong_arguments():
    model = mixture(VESDE(0.01, 0.1))
    with pytest.raises(ArgumentError, match="share noise levels"):
        reschedule(model, VESDE(10.0, 50.0))
    with pytest.raises(ArgumentError, match="sde=<class"):
        reschedule(model, VPSDE)
    for wrap in (lambda m: reschedule(m, VPSDE()), clip_x0, dynamic_threshold):
        with pytest.raises(ArgumentError, match=r"model=.*ScoreModel"):
            wrap(RandomNetwork())


# Limits on the denoised estimate.

LIMITS = [(clip_x0, {"low": -0.4, "high": 0.7}), (dynamic_threshold, {"p": 0.8, "max_value": 0.6})]
every_limit = pytest.mark.parametrize(("wrap", "options"), LIMITS, ids=["clip", "dynamic"])
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
WIDE = [lambda model: clip_x0(model, -1e3, 1e3), lambda model: dynamic_threshold(model, 0.9, 1e3)]


def bounds(options):
    top = options.get("max_value", options.get("high"))
    return options.get("low", -top), top


@pytest.mark.on_device
@every_sde
@every_limit
def test_the_estimate_stays_within_its_limits_and_all_views_follow_from_it(sde, wrap, options):
    low, high = bounds(options)
    (times,) = common_times(sde)
    for native in kinds_of(sde):
        model = wrap(told_as(native, sde), **options)
        for t in times:
            x = points(sde, t, 40)
            prediction = model(x, t)
            x_0 = prediction.x_0
            assert low <= x_0.min() <= x_0.max() <= high
            rebuilt = sde.alpha(t) * x_0 + sde.sigma(t) * prediction.epsilon  # x_t is still what it was
            torch.testing.assert_close(rebuilt, x, rtol=1e-12, atol=1e-12)
            v = sde.alpha(t) * prediction.epsilon - sde.sigma(t) * x_0
            torch.testing.assert_close(prediction.v, v, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
@every_sde
def test_clipping_is_the_nearest_point_within_the_limits(sde):
    (times,) = common_times(sde)
    for t in times:
        x = points(sde, t, 40)
        plain, clipped = mixture(sde)(x, t).x_0, clip_x0(mixture(sde), -0.4, 0.7)(x, t).x_0
        inside = (plain >= -0.4) & (plain <= 0.7)
        assert inside.any() or t > 0.5
        torch.testing.assert_close(clipped[inside], plain[inside], rtol=1e-10, atol=1e-12)
        assert torch.equal(clipped[~inside], torch.where(plain > 0.7, *doubles(0.7, -0.4))[~inside])


@pytest.mark.on_device
@pytest.mark.parametrize("event", [(7,), (16, 64), (3, 8, 8), ()], ids=name)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("max_value", [1.0, 0.3])
def test_dynamic_thresholding_is_imagens(event, p, max_value):
    """Against the quantile of torch: |x̂_0| above s is cut there, and everything divided by s, where s > max_value."""
    told = 1.5 * torch.randn(6, *event, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    told[0] *= 0.01
    model = dynamic_threshold(ScoreModel(lambda x, time: told, VPSDE(), "x0"), p, max_value)
    found = model(torch.zeros_like(told), 0.5).x_0
    for ours, sample_ in zip(found, told, strict=True):
        s = max(torch.quantile(sample_.abs().flatten(), p).item(), max_value)
        expected = sample_.clamp(-s, s) / s * max_value
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[0], told[0], rtol=1e-12, atol=0)  # a small one is left alone


@pytest.mark.on_device
@pytest.mark.parametrize("wide", WIDE, ids=["clip", "dynamic"])
@every_sde
def test_limits_that_are_not_reached_change_nothing(sde, wide):
    (times,) = common_times(sde)
    noises = torch.randn(len(times) - 1, 6, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    models = (mixture(sde), *(told_as(kind, sde) for kind in kinds_of(sde)))
    for model, solver in zip(models, cycle(LAMBDA_SOLVERS), strict=False):
        x = points(sde, times[0], 6)
        plain, limited = (run_on(solver, m, times, x, noises) for m in (model, wide(model)))
        assert relative_error(limited, plain) < 1e-10
    x0_native = told_as("x0", sde)
    for t in times:
        x = points(sde, t)
        assert torch.equal(wide(x0_native)(x, t).x_0, x0_native(x, t).x_0)  # bit for bit


@pytest.mark.on_device
@every_limit
@pytest.mark.parametrize("solver", [ddim(), ddpm()], ids=name)
def test_batch_mates_do_not_matter_bit_for_bit(wrap, options, solver):
    model = wrap(gaussian(torch.full((3, 4), 0.5), VPSDE(), std=0.7), **options)
    grid = grids.uniform(VPSDE(), 5)
    whole = sample(model, solver, grid, shape=(65, 3, 4), tweedie=True, seed=3).x
    low, high = bounds(options)
    assert whole.min() >= low
    assert whole.max() <= high
    for batch_size in (1, 4, 64):
        assert torch.equal(
            sample(model, solver, grid, shape=(65, 3, 4), tweedie=True, seed=3, batch_size=batch_size).x, whole
        )
    edges = (0, 7, 40, 65)
    parts = [
        sample(model, solver, grid, shape=(b - a, 3, 4), tweedie=True, seed=3, first_index=a).x
        for a, b in pairwise(edges)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.on_device
@every_limit
@every_pair
def test_limits_and_schedules_commute(old, new, wrap, options):
    """x̂_0 is the same on every path, and so are limits on it: clip of reschedule = reschedule of clip."""
    _, times = common_times(old, new)
    outside = wrap(reschedule(mixture(old), new), **options)
    inside = reschedule(wrap(mixture(old), **options), new)
    truth = wrap(mixture(new), **options)
    for t in times[::2]:
        x = points(new, t)
        expected, ours = truth(x, t), (outside(x, t), inside(x, t))
        for found, kind in product(ours, ("x0", "epsilon", "v", "velocity")):
            assert relative_error(found.view(kind), expected.view(kind)) < 1e-9


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda m: clip_x0(m, 1.0, 1.0), "low, high=(1.0, 1.0)"),
        (lambda m: clip_x0(m, 1.0, -1.0), "low, high=(1.0, -1.0)"),
        (lambda m: clip_x0(m, -math.inf, 1.0), "low, high=(-inf, 1.0)"),
        (lambda m: clip_x0(m, "a", 1.0), "low, high=('a', 1.0)"),
        (lambda m: dynamic_threshold(m, 0.0), "p=0.0"),
        (lambda m: dynamic_threshold(m, 1.1), "p=1.1"),
        (lambda m: dynamic_threshold(m, math.nan), "p=nan"),
        (lambda m: dynamic_threshold(m, 0.9, 0.0), "max_value=0.0"),
        (lambda m: dynamic_threshold(m, 0.9, math.inf), "max_value=inf"),
    ],
)
def test_limits_refuse(build, words):
    with pytest.raises(ArgumentError) as caught:
        build(mixture(VPSDE()))
    assert words in str(caught.value)


# What all wrappers keep.

WRAPPERS = [
    lambda model: reschedule(model, CosineVPSDE()),
    clip_x0,
    dynamic_threshold,
    lambda model: clip_x0(reschedule(dynamic_threshold(model), VESDE())),
]
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS, ids=["reschedule", "clip", "dynamic", "all"])


@every_wrapper
def test_wrappers_share_parameters_mode_transform_and_shape_and_are_not_saved(wrap, tmp_path):
    network = torch.nn.Linear(2, 2).double()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, time):
            return self.inner(x)

    model = ScoreModel(Net(), VPSDE(), event_shape=(2,)).eval()
    wrapped = wrap(model)
    assert list(map(id, wrapped.parameters())) == list(map(id, network.parameters()))
    assert not wrapped.training
    assert (wrapped.event_shape, wrapped.transform) == (model.event_shape, model.transform)
    for act in (wrapped.check_savable, lambda: wrapped.save_pretrained(tmp_path / "model")):
        with pytest.raises(ArgumentError, match="not written"):
            act()
    assert not (tmp_path / "model").exists()
    x_0, noise = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = DenoisingScoreMatching("v")(wrapped, x_0, torch.full((5,), 0.4), noise).mean()
    loss.backward()  # it can be trained through
    assert network.weight.grad.isfinite().all()


@pytest.mark.on_device
@every_wrapper
def test_wrappers_do_not_wait_for_the_device(wrap):
    model = wrap(model_of(RandomNetwork(), VPSDE()))

    def reads(steps):
        with CountReads() as counted:
            generator = torch.Generator().manual_seed(0)
            grid = grids.uniform(model.sde, steps, start=0.9, end=0.2)
            sample(model, ddpm(), grid, shape=(4, 2), generator=generator, dtype=torch.float64, check_finite=False)
        return counted.reads

    assert reads(32) == reads(320)


@pytest.mark.on_device
def test_wrappers_are_score_models_like_any_other():
    moved, limited = reschedule(mixture(VPSDE()), FlowMatching()), clip_x0(mixture(VPSDE()))
    assert isinstance(moved, Rescheduled)
    assert isinstance(limited, Thresholded)
    assert (moved.sde, limited.sde, limited.prediction) == (FlowMatching(), VPSDE(), "x0")
    assert "Clip(low=-1.0, high=1.0)" in str(limited)


# Factors of a step.


@pytest.mark.on_device
@pytest.mark.parametrize("inside", [Exponential(), Multistep(2, FrozenEDM(1.0)), Corrected(Multistep(2))], ids=str)
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), FlowMatching()], ids=name)
def test_factors_mean_the_same_for_a_network_of_v_and_of_edms_f(sde, inside):
    """y of a tuned step is EDM's F also where the network says v: the same factors, the same samples."""
    count = inside.tunable_weights
    random = torch.rand(4, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tuned = Tuned(inside, tuple(map(tuple, (0.8 + 0.4 * random).tolist())))
    grid = grids.uniform(sde, 4, start=0.95, end=0.1)
    x = points(sde, grid[0])

    def told(kind, sigma_data=0.4):
        exact = mixture(sde)
        exact.sigma_data = sigma_data

        def network(x, time):
            size = (sde.alpha(time) ** 2 * sigma_data**2 + sde.sigma(time) ** 2).sqrt()[:, None]
            return exact(size * x if kind == "edm" else x, time).view(kind)

        return ScoreModel(network, sde, kind, time_input=time_inputs.ScaledTime(), sigma_data=sigma_data)

    v, f = (sample(told(kind), Solver("tuned", 0.0, tuned), grid, x_start=x).x for kind in ("v", "edm"))
    torch.testing.assert_close(v, f, rtol=1e-8, atol=1e-10)
