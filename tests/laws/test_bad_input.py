"""Whatever cannot be used is refused by a typed error that names it, before the network is asked anything."""

import math

import pytest
import torch
from catalogue import SOLVERS, RandomNetwork, doubles, model_of, name
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sde_toolkit import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DenoisingScoreMatching,
    DiscreteVPSDE,
    GaussianMixture,
    ReverseEquation,
    ScoreModel,
    Solver,
    SubVPSDE,
    ddim,
    ddpm,
    euler_maruyama,
    gaussian,
    grids,
    probability_flow,
    sample,
    slerp,
)
from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError, DefinitionError, GridError, SDEToolkitError
from sde_toolkit.integrators import Euler, Heun, Scipy, Time, TorchDiffEq
from sde_toolkit.losses import stratified_times
from sde_toolkit.models import time_inputs
from sde_toolkit.noise.streams import per_sample_noise


def untouchable(x, time, condition=None):
    raise AssertionError("the network was evaluated before the error was raised")


MODEL = ScoreModel(untouchable, VPSDE(), event_shape=(2,))
GRID = grids.uniform(VPSDE(), 4)
BUILDERS = [grids.uniform, grids.quadratic, grids.uniform_lambda, grids.karras]
bad_reals = st.one_of(st.floats(max_value=0), st.sampled_from([math.nan, math.inf]))


def refused(call, *words, kind=ArgumentError):
    """The call raises this kind, a typed error, and its message holds all the words."""
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, SDEToolkitError)
    missing = [word for word in map(str, words) if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


def refuses_grid(grid, *words):
    refused(lambda: sample(MODEL, ddim(), grid, shape=(2, 2)), "grid", *words, kind=GridError)


@settings(max_examples=60, deadline=None)
@given(times=st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_a_grid_is_strictly_decreasing_or_refused_with_the_place(times):
    steps = torch.tensor(times, dtype=torch.float64).diff()
    if (steps < 0).all():
        assert torch.equal(grids.check_grid(torch.tensor(times, dtype=torch.float64)), doubles(*times))
        return
    i = int((steps >= 0).nonzero()[0])
    refuses_grid(doubles(*times), f"positions {i} and {i + 1}", doubles(*times[i : i + 2]).tolist())


def test_encoding_grids_and_duplicates_say_what_is_wrong():
    refuses_grid(doubles(0.9, 0.5, 0.5, 0.1), "repeats")
    refuses_grid(doubles(0.1, 0.5), "not decreasing")


@settings(max_examples=40, deadline=None)
@given(value=st.floats().filter(lambda v: not -1e-6 <= v <= 1 + 1e-6))
@example(value=-2e-6)
@example(value=1 + 2e-6)
def test_times_live_in_the_unit_interval(value):
    refuses_grid(torch.tensor([value, 0.0] if value > 1 else [0.5, value], dtype=torch.float64))
    for method in ("alpha", "sigma", "f", "g"):
        refused(lambda m=method: getattr(VPSDE(), m)(value), f"t={value!r}")
    refused(lambda: VESDE().sigma(doubles(0.2, value, 0.4)), f"t={value!r}")
    refused(lambda: DiscreteVPSDE().alpha(value), f"t={value!r}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_a_time_that_misses_an_end_by_its_last_digit_is_that_end(dtype):
    """By two units at most: a millionth, and in float64 a billionth, is another time."""
    eps = torch.finfo(dtype).eps
    beyond = torch.tensor([1 + eps, -eps], dtype=dtype)
    for sde in (VPSDE(), VESDE(), DiscreteVPSDE()):
        for method in ("alpha", "sigma", "f", "g"):
            evaluate = getattr(sde, method)
            torch.testing.assert_close(
                evaluate(beyond), evaluate(torch.tensor([1.0, 0.0], dtype=dtype)), rtol=0, atol=0
            )
            refused(lambda e=evaluate: e(torch.tensor([1 + 4 * eps], dtype=dtype)), "t=1.0")
            refused(lambda e=evaluate: e(torch.tensor([-4 * eps], dtype=dtype)), "t=-")
    for times in ([1 + 1e-7, 0.5, -1e-8], torch.tensor([1 + eps, 0.5, 0.0], dtype=dtype)):
        assert grids.check_grid(times).tolist() == [1.0, 0.5, 0.0]
    refuses_grid([1 + 1e-7, 1.0, 0.5], "repeats")


@pytest.mark.parametrize("shape", [(0,), (1,), (), (2, 3)])
def test_grids_are_sequences(shape):
    refuses_grid(torch.full(shape, 0.5, dtype=torch.float64), shape)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), DiscreteVPSDE()], ids=name)
def test_builders_refuse_bad_counts_and_ends(builder, sde):
    for steps in (0, -3):
        refused(lambda n=steps: builder(sde, n), f"steps={steps}")
    for start, end in ((0.2, 0.5), (0.5, 0.5), (1.5, 0.1), (0.5, -0.1), (math.nan, 0.1), (1.0, math.nan)):
        refused(lambda a=start, b=end: builder(sde, 4, start=a, end=b), "start", "end", start, end, kind=GridError)


@settings(max_examples=20, deadline=None)
@given(value=st.one_of(st.floats(max_value=0), st.just(math.nan)))
def test_builders_refuse_bad_exponents(value):
    refused(lambda: grids.karras(VPSDE(), 4, rho=value), f"rho={value!r}")


def test_builders_refuse_ends_that_are_infinitely_far():
    refused(lambda: grids.uniform_lambda(VPSDE(), 4, end=0.0), "end", 0.0, "tweedie=True", kind=GridError)
    for grid in (grids.uniform_lambda(VESDE(), 4, end=0.0), grids.karras(VPSDE(), 4, end=0.0)):
        assert (len(grid), grid[-1]) == (5, 0)  # σ(0) > 0, and (σ/α)^(1/ρ) = 0


def test_discrete_grids_and_indices():
    for steps in (0, 11, -1):
        refused(lambda n=steps: grids.discrete(10, n), f"steps={steps}")
    refused(lambda: time_inputs.DiscreteIndex(0), "N=0")


@settings(max_examples=40, deadline=None)
@given(value=bad_reals)
def test_schedules_refuse_what_is_not_positive_and_finite(value):
    for cls in (VPSDE, SubVPSDE):
        for argument in ("beta_min", "beta_max"):
            refused(lambda c=cls, a=argument: c(**{a: value}), f"{argument}={value!r}")
    for argument in ("sigma_min", "sigma_max"):
        refused(lambda a=argument: VESDE(**{a: value}), f"{argument}={value!r}")
    refused(lambda: ScoreModel(untouchable, VPSDE(), "edm", sigma_data=value), f"sigma_data={value!r}")


@settings(max_examples=30, deadline=None)
@given(low=st.floats(1e-3, 1e3), factor=st.floats(1e-3, 1.0))
def test_ve_noise_must_grow(low, factor):
    refused(lambda: VESDE(sigma_min=low, sigma_max=low * factor), f"sigma_max={low * factor!r}", low)


@settings(max_examples=40, deadline=None)
@given(
    betas=st.lists(st.floats(0.01, 0.5), min_size=1, max_size=5),
    place=st.integers(0, 5),
    bad=st.one_of(st.floats(max_value=0), st.floats(min_value=1, exclude_min=True), st.just(math.nan)),
)
def test_betas_must_be_probabilities_and_the_bad_one_is_named(betas, place, bad):
    place = min(place, len(betas))
    refused(lambda: VPSDE.from_betas([*betas[:place], bad, *betas[place:]]), f"betas[{place}]={bad!r}")
    refused(lambda: VPSDE.from_betas([*betas, 1.0, 0.1]), f"betas[{len(betas)}]=1.0")


def test_betas_must_exist_and_leave_some_signal():
    refused(lambda: VPSDE.from_betas([]), "betas")
    refused(lambda: VPSDE.from_betas([1.0]), "betas[0]=1.0")


@settings(max_examples=30, deadline=None)
@given(eta=st.one_of(st.floats(max_value=0, exclude_max=True), st.sampled_from([math.nan, math.inf, 1e200])))
def test_eta_is_finite_and_not_negative(eta):
    refused(lambda: ReverseEquation(MODEL, eta), f"eta={eta!r}")
    for build in (lambda: Solver("own", eta, Euler()), lambda: ddim(eta), lambda: euler_maruyama(eta)):
        refused(build, f"eta={eta!r}")


@settings(max_examples=20, deadline=None)
@given(eta=st.floats(1.3, 10) | st.just(10**21))
def test_ddims_eta_cannot_add_more_noise_than_there_is(eta):
    """From t=1 to t=0.1, r is about 0.002, so that η² (1 − r²) > 1 for any such η."""
    refused(lambda: sample(MODEL, ddim(eta), doubles(1.0, 0.1), shape=(2, 2)), f"eta={float(eta)!r}", "finer")


def test_integrators_refuse_equations_and_ends_they_cannot_solve():
    refused(lambda: sample(MODEL, Solver("own", 0.5, Heun()), GRID, shape=(2, 2)), "eta=0.5", "Heun")


class PathOfVP(SDE):
    """VP as a user would give it, by its path; σ grows like √t from 0."""

    def alpha(self, t):
        return VPSDE().alpha(t)

    def sigma(self, t):
        return VPSDE().sigma(t)


@pytest.mark.parametrize("integrator", [Heun(Time()), Scipy(), TorchDiffEq()], ids=name)
@pytest.mark.parametrize("sde", [VPSDE(), PathOfVP()], ids=name)
def test_the_flow_is_not_evaluated_where_its_velocity_is_infinite(sde, integrator):
    """The velocity σ′ ε is infinite at t = 0, also where σ′ is derived: no clamp may hide it."""
    model, to_data = ScoreModel(untouchable, sde), doubles(1.0, 0.5, 0.0)
    refused(lambda: sample(model, probability_flow(integrator), to_data, shape=(2, 2)), "[0.5, 0.0]", "tweedie")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["shape, x_start"]),
        ({"shape": (2, 2), "x_start": torch.zeros(2, 2)}, ["shape, x_start"]),
        ({"shape": ()}, ["shape=()"]),
        ({"shape": (0, 2)}, ["shape=(0, 2)"]),
        ({"shape": (2.5, 2)}, ["shape=(2.5, 2)"]),
        ({"shape": (2, 3)}, ["shape=(2, 3)", "(2,)"]),
        ({"x_start": torch.zeros(2, 3)}, ["(2, 3)", "(2,)"]),
        ({"x_start": torch.tensor([[0.0, math.nan]])}, ["x_start=(1, 2)", "NaN"]),
        ({"x_start": torch.tensor([[0.0, math.inf]])}, ["x_start=(1, 2)"]),
        ({"shape": (2, 2), "batch_size": 0}, ["batch_size=0"]),
        ({"shape": (2, 2), "batch_size": -1}, ["batch_size=-1"]),
        ({"shape": (2, 2), "dtype": torch.float16}, ["dtype=torch.float16"]),
        ({"shape": (2, 2), "dtype": torch.int64}, ["dtype=torch.int64"]),
        ({"shape": (2, 2), "seed": -1}, ["seed=-1"]),
        ({"shape": (2, 2), "first_index": -1}, ["first_index=-1"]),
    ],
    ids=name,
)
def test_sample_refuses_a_bad_start(options, words):
    refused(lambda: sample(MODEL, ddpm(), GRID, **options), *words)


def test_streams_are_named_by_whole_numbers():
    refused(lambda: per_sample_noise(-1, 0, (2,)), "seed=-1")
    refused(lambda: per_sample_noise(0, -2, (2,)), "first_index=-2")
    refused(lambda: per_sample_noise(2**64, 0, (2,)), f"seed={2**64}", "64 bits")


def test_shapes_of_t_and_x_must_fit():
    sde, x = VPSDE(), torch.zeros(4, 2)
    for t in (torch.full((3,), 0.5), torch.full((4, 1), 0.5)):
        refused(lambda t=t: expand_to(t, x), "t=", tuple(t.shape), (4, 2))
        refused(lambda t=t: sde.drift(x, t), tuple(t.shape), (4, 2))
        refused(lambda t=t: sde.marginal_prob(x, t), tuple(t.shape))
        refused(lambda t=t: sde.perturb(x, t, x), tuple(t.shape))
        refused(lambda t=t: sde.prior_logp(x, t), tuple(t.shape))
        refused(lambda t=t: sde.prior_sampling((4, 2), t), tuple(t.shape))
        refused(lambda t=t: model_of(RandomNetwork(), sde)(x, t), tuple(t.shape))


@pytest.mark.parametrize(
    ("data", "noise"), [((4,), (4, 1)), ((4, 2), (4, 1)), ((4, 2), (2,)), ((4, 2), (1, 2)), ((), (4,))]
)
def test_noise_has_the_shape_of_the_data(data, noise):
    """What merely broadcasts would pair every sample with every noise."""
    x_0, z, t = torch.zeros(data), torch.zeros(noise), torch.full(data[:1], 0.5)
    refused(lambda: VPSDE().perturb(x_0, t, z), "noise=", noise, data)
    if data:
        refused(lambda: DenoisingScoreMatching()(model_of(RandomNetwork(), VPSDE()), x_0, t, z), "noise=", noise)
        refused(lambda: slerp(x_0, z, 0.5), noise, data)


@pytest.mark.parametrize("narrow", [lambda x: x[:, :1], lambda x: x[:1], lambda x: x.repeat(1, 2), lambda x: x[:, 0]])
def test_networks_answer_in_the_shape_of_the_state(narrow):
    """Outputs that merely broadcast would make plausible, wrong samples."""
    model = model_of(lambda x, time: narrow(x), VPSDE())
    refused(lambda: sample(model, ddpm(), GRID, shape=(3, 2)), tuple(narrow(torch.zeros(3, 2)).shape), (3, 2))


@settings(max_examples=20, deadline=None)
@given(kind=st.text(max_size=8).filter(lambda k: k not in ("epsilon", "x0", "v", "score", "velocity", "edm")))
def test_unknown_parameterisations(kind):
    refused(lambda: ScoreModel(untouchable, VPSDE(), kind), "prediction", "velocity")
    refused(lambda: DenoisingScoreMatching(kind), "target", "velocity")


def test_models_are_made_of_networks_and_sdes():
    refused(lambda: ScoreModel("unet", VPSDE()), "network='unet'")
    for wrong in (VPSDE, "vp", None):
        refused(lambda w=wrong: ScoreModel(untouchable, w), f"sde={wrong!r}")
    refused(lambda: ScoreModel(untouchable, VPSDE(), "edm")(torch.zeros(1, 2), 0.0), "t=0.0", "NoiseLevel")


def test_an_sde_gives_one_of_the_two_pairs():
    for members in ({}, {"alpha": lambda self, t: t}, {"f": lambda self, t: t}, {"sigma": 1, "g": 2}):
        refused(lambda m=members: type("Half", (SDE,), m), "Half", "alpha(t)", "g(t)", kind=DefinitionError)


def test_half_log_snr_outside_its_range():
    for sde in (VESDE(), DiscreteVPSDE()):
        refused(lambda s=sde: s.inverse_half_log_snr(-50.0), "lambda_t=[-50.0]", f"{sde.half_log_snr(1.0):.6g}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"std": None}, ["std, covariances"]),
        ({"std": 1.0, "covariances": torch.eye(2).expand(2, 2, 2)}, ["std, covariances"]),
        ({"std": -1.0}, ["std=-1.0"]),
        ({"std": math.nan}, ["std=nan"]),
        ({"std": torch.ones(3)}, ["std=(3,)", "(2, 2)"]),
        ({"covariances": torch.eye(2)}, ["covariances=(2, 2)"]),
        ({"covariances": torch.tensor([[1.0, 2.0], [0.0, 1.0]]).expand(2, 2, 2)}, ["covariances", "symmetric"]),
        ({"covariances": -torch.eye(2).expand(2, 2, 2)}, ["covariances", "semi-definite"]),
        ({"std": 1.0, "weights": [1.0]}, ["weights=[1.0]"]),
        ({"std": 1.0, "weights": [1.0, 0.0]}, ["weights=[1.0, 0.0]"]),
        ({"std": 1.0, "weights": [1.0, math.nan]}, ["weights=[1.0, nan]"]),
    ],
    ids=name,
)
def test_mixtures_refuse_what_is_no_mixture(options, words):
    refused(lambda: GaussianMixture(torch.zeros(2, 2), VPSDE(), **options), *words)


@pytest.mark.parametrize("means", [0.5, [], [math.nan]], ids=name)
def test_mixtures_refuse_what_are_no_means(means):
    refused(lambda: GaussianMixture(means, VPSDE(), std=1.0), "means")


def test_covariances_that_are_not_numbers():
    refused(lambda: gaussian(torch.zeros(2), VPSDE(), covariance=torch.full((2, 2), math.nan)), "covariances")


@settings(max_examples=20, deadline=None)
@given(t_min=st.floats().filter(lambda v: not 0 <= v < 1))
def test_training_times(t_min):
    refused(lambda: stratified_times(4, t_min), f"t_min={t_min!r}")


CONDITION = torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": 5}, ["shape=5"]),
        ({"shape": (2.5, 2)}, ["shape=(2.5, 2)"]),
        ({"x_start": [[0.0, 1.0]]}, ["x_start"]),
        ({"shape": (3, 2), "batch_size": 2.5}, ["batch_size=2.5"]),
        ({"shape": (3, 2), "seed": 1.5}, ["seed=1.5"]),
        ({"shape": (3, 2), "condition": CONDITION}, ["condition=(5, 3)", "3 samples"]),
        ({"shape": (3, 2), "condition": {"text": CONDITION}}, ["text=(5, 3)", "3 samples"]),
    ],
)
def test_arguments_of_another_type(options, words):
    refused(lambda: sample(model_of(untouchable, VPSDE()), ddpm(), GRID, **options), *words)


def test_things_that_are_not_what_they_stand_for():
    refused(lambda: sample(untouchable, ddpm(), GRID, shape=(3, 2)), "model=", "ScoreModel")
    refused(lambda: sample(model_of(untouchable, VPSDE()), ddpm, GRID, shape=(3, 2)), "solver=", "Call the preset")
    refused(lambda: VPSDE(beta_min="a"), "beta_min='a'")
    refused(lambda: VPSDE.from_betas([0.1, "a"]), "betas[1]='a'")
    refused(lambda: ddim("a"), "eta='a'")
    refused(lambda: Solver("own", 1.0, Euler), "integrator=", "Heun()")
    refused(lambda: ddpm(0.1), "variance=0.1", "forward_variance")
    refused(lambda: sample(model_of(untouchable, VPSDE()), ddpm(), "abc", shape=(3, 2)), "grid='abc'")
    refused(lambda: grids.uniform(VPSDE(), 2.5), "steps=2.5")
    refused(lambda: grids.discrete(10, 2.5), "steps=2.5")


@pytest.mark.parametrize("build", [grids.uniform, grids.uniform_lambda, grids.karras], ids=lambda f: f.__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_whoever_follows_the_remedy_gets_samples(solver, build):
    """Where a grid is refused at an end of time, the advice is about that end, and works."""
    model = ScoreModel(RandomNetwork(), CosineVPSDE(), "v")
    ends = {"start": 1.0, "end": 0.0}
    for _ in range(3):
        try:
            grid = build(model.sde, 4, **ends)
            found = sample(model, solver, grid, shape=(2, 2), dtype=torch.float64, tweedie=ends["end"] > 0)
            break
        except GridError as error:
            said = str(error).lower()
            late = "start the grid" in said or "start a little below" in said
            early = "end the grid" in said or "stop short" in said
            assert (late and ends["start"] == 1.0) or (early and ends["end"] == 0.0)
            ends["start"] = 0.999 if late else ends["start"]
            ends["end"] = model.sde.sampling_end if early else ends["end"]
    assert found.x.isfinite().all()
