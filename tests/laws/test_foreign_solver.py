"""A solver of someone else sees the same flow, the same noise and the same count as ours."""

import functools
import math
from itertools import pairwise

import pytest
import torch
from catalogue import SDES, covering, name
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit import EDMSDE, VPSDE, FlowMatching, GaussianMixture, ScoreModel, auto, ddim, ddpm, grids, sample
from sde_toolkit.errors import ArgumentError, GridError, MaxEvaluationsError, NonFiniteError, SDEToolkitError
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.sampling import ForeignSolver
from sde_toolkit.sampling.foreign_solver import is_run_function, plan_foreign, run_foreign


def euler(denoise, sigmas, x, rng):
    for r, s in pairwise(sigmas):
        x = x + (s - r) * (x - denoise(x, r)) / r
    return x


def heun(denoise, sigmas, x, rng):
    for r, s in pairwise(sigmas):
        slope = (x - denoise(x, r)) / r
        y = x + (s - r) * slope
        if s > 0:
            slope = (slope + (y - denoise(y, s)) / s) / 2
        x = x + (s - r) * slope
    return x


def _ancestral(draw):
    def run(denoise, sigmas, x, rng):
        for r, s in pairwise(sigmas):
            x_0, fresh = denoise(x, r), 1 - (s / r) ** 2
            x = x_0 + s * (1 - fresh).sqrt() / r * (x - x_0) + s * fresh.sqrt() * draw(x, rng)
        return x

    return run


with_rng = _ancestral(lambda x, rng: rng())
with_torch = _ancestral(lambda x, rng: torch.randn_like(x))
with_shape = _ancestral(lambda x, rng: torch.randn(x.shape, dtype=x.dtype, device=x.device))


def mixture(sde):
    return GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), sde, std=0.3)


def drawn(model, run, nfe=6, first=0, last=5, **options):
    plan = plan_foreign(model, ForeignSolver("mine", run), nfe)
    return plan, run_foreign(model, plan, first, last, seed=3, dtype=torch.float64, **options)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(("run", "ours"), [(euler, ddim()), (with_rng, ddpm())], ids=["ddim", "ddpm"])
def test_euler_and_ancestral_steps_in_noise_to_signal_are_ddim_and_ddpm(sde, run, ours):
    model = mixture(sde)
    plan, found = drawn(model, run)
    wanted = sample(model, ours, plan.times, shape=(5, 2), seed=3, tweedie=True, dtype=torch.float64)
    torch.testing.assert_close(found.x, wanted.x, rtol=1e-9, atol=1e-9)
    assert found.nfe == plan.nfe == wanted.nfe == 6
    assert plan.stochastic == (run is with_rng)


@pytest.mark.parametrize("run", [with_rng, with_torch, with_shape], ids=["rng", "randn_like", "randn"])
def test_the_noise_of_a_sample_does_not_depend_on_its_batch(run):
    model = mixture(VPSDE())
    plan, whole = drawn(model, run)
    parts = [run_foreign(model, plan, i, i + 1, seed=3, dtype=torch.float64).x for i in range(5)]
    assert torch.equal(torch.cat(parts), whole.x)
    assert torch.equal(whole.x, drawn(model, with_rng)[1].x)


def test_other_random_numbers_of_torch_begin_at_a_seed_and_are_as_before_afterwards():
    def run(denoise, sigmas, x, rng):
        return denoise(x, sigmas[0]) + torch.rand(())

    plan = plan_foreign(mixture(VPSDE()), ForeignSolver("mine", run), 1)
    assert plan.stochastic
    found = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(run_foreign(mixture(VPSDE()), plan, 0, 3, seed=3).x)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


class Guided(GaussianMixture):
    evaluations_inside = 2


@pytest.mark.parametrize(("run", "cost"), [(euler, lambda n: n), (heun, lambda n: 2 * n - 1)], ids=["euler", "heun"])
@pytest.mark.parametrize("budget", [1, 2, 5, 10])
def test_a_plan_has_the_most_steps_that_its_budget_allows(run, cost, budget):
    for model, inside in ((mixture(VPSDE()), 1), (Guided(torch.zeros(1, 2), VPSDE(), std=1.0), 2)):
        if budget < inside:
            with pytest.raises(ArgumentError, match="nfe"):
                plan_foreign(model, ForeignSolver("mine", run), budget)
            continue
        plan = plan_foreign(model, ForeignSolver("mine", run), budget)
        steps = len(plan.sigmas) - 1
        assert plan.nfe == inside * cost(steps) <= budget < inside * cost(steps + 1)


def discrete(sde, steps):
    return grids.discrete(steps)


BUILDS = [grids.karras, grids.uniform, grids.sech, discrete]


@pytest.mark.parametrize(("sde", "build"), covering(SDES, BUILDS, each=2), ids=name)
def test_levels_fall_from_a_finite_one_to_zero(sde, build):
    for nfe in (1, 4):
        try:
            plan = plan_foreign(mixture(sde), ForeignSolver("mine", euler, grid=build), nfe)
        except GridError:  # it begins where the level is infinite, and takes no other start
            assert float(sde.alpha(1.0)) == 0
            assert build is discrete
            continue
        levels = plan.sigmas
        assert levels.dtype == torch.float64
        assert levels.isfinite().all()
        assert len(levels) == nfe + 1
        assert bool((levels.diff() < 0).all())
        assert levels[-1] == 0
        above = levels[levels > 0]
        torch.testing.assert_close(torch.exp(-sde.half_log_snr(plan.times[: len(above)])), above)
        if float(sde.alpha(1.0)) > 0:
            assert plan.times[0] == 1


def test_levels_beyond_the_sde_are_evaluated_at_its_nearest_end():
    asked = []

    def network(x, time):
        asked.append(time[0].item())
        return torch.zeros_like(x)

    def probing(denoise, sigmas, x, rng):
        for sigma in (1e9, torch.full((len(x),), 1e9), 0.0, 1e-300):
            denoise(x, sigma)
        return x

    model = ScoreModel(network, VPSDE(), "x0", event_shape=(2,))
    drawn(model, probing)
    assert asked == pytest.approx([1.0, 1.0, VPSDE.likelihood_end, VPSDE.likelihood_end], rel=1e-6)


def test_levels_in_single_precision_are_those_of_the_grid():
    """k-diffusion hands levels on in float32; a network that is told indices gets whole ones all the same."""
    asked = []

    def network(x, time):
        asked.append(time[0].item())
        return torch.zeros_like(x)

    def single(denoise, sigmas, x, rng):
        for sigma in sigmas[:-1]:
            denoise(x, (sigma * x.new_ones(len(x))).float())
        return x

    model = ScoreModel(network, VPSDE(), "x0", event_shape=(2,))
    plan, _ = drawn(model, single)
    assert asked == plan.times.tolist()


def test_the_condition_reaches_the_network_and_the_callback_counts_its_evaluations():
    seen, calls = [], []

    def network(x, time, condition):
        seen.append(condition)
        return torch.zeros_like(x)

    model = ScoreModel(network, VPSDE(), "x0", event_shape=(2,))
    labels = torch.arange(5)
    _, found = drawn(model, heun, condition={"label": labels}, callback=lambda: calls.append(0))
    assert len(seen) == len(calls) == found.nfe == 5
    assert all(torch.equal(condition["label"], labels) for condition in seen)
    assert map_rows(seen[0], lambda rows: rows[:2])["label"].tolist() == [0, 1]


def test_a_network_that_draws_noise_gets_none_of_the_solvers():
    """It is refused, as in ``sample``, also where the solver's own draws are replaced."""

    def network(x, time):
        return x + torch.randn_like(x)

    with pytest.raises(ArgumentError, match="random numbers"):
        drawn(ScoreModel(network, VPSDE(), "x0", event_shape=(2,)), with_torch)


def greedy(denoise, sigmas, x, rng):
    """It takes more evaluations where the denoiser is not linear, which that of the rehearsal is."""
    x_0, doubled = denoise(x, 0.5), denoise(2 * x, 0.5)
    for _ in range(0 if torch.allclose(2 * x_0, doubled) else len(sigmas)):
        x_0 = denoise(x, sigmas[0])
    return x_0


def test_more_evaluations_than_the_budget_stop_the_run_and_say_so():
    with pytest.raises(MaxEvaluationsError, match=r"budget=6.*σ/α"):
        drawn(mixture(VPSDE()), greedy)


def test_what_is_not_finite_is_named_with_its_evaluation():
    def diverging(denoise, sigmas, x, rng):
        for i, r in enumerate(sigmas[:-1]):
            x = denoise(x, r) if i < 3 else x * math.inf
            denoise(x, r)
        return x

    with pytest.raises(NonFiniteError, match="mine") as caught:
        drawn(mixture(VPSDE()), diverging, nfe=12)
    assert caught.value.step == 6  # two evaluations in each of three steps before


def test_errors_of_the_users_own_code_pass_as_they_are():
    def broken(denoise, sigmas, x, rng):
        return x / [][0]

    with pytest.raises(IndexError, match="list index out of range"):
        drawn(mixture(VPSDE()), broken)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda denoise, sigmas, x, rng: None, "returned NoneType"),
        (lambda denoise, sigmas, x, rng: x[:1], r"returned shape \(1, 2\)"),
        (lambda denoise, sigmas, x, rng: denoise(x[:1], sigmas[0]), "whole batch"),
        (lambda denoise, sigmas, x, rng: denoise(x, sigmas), "one noise level"),
        (lambda denoise, sigmas, x, rng: denoise(x, -1.0), "one noise level"),
        (lambda denoise, sigmas, x, rng: x + rng(x[:1]), "rng"),
    ],
)
def test_wrong_calls_and_results_are_refused_in_the_rehearsal(run, words):
    def untouchable(x, time):
        raise AssertionError("the network was evaluated before the error was raised")

    model = ScoreModel(untouchable, EDMSDE(), event_shape=(2,))
    with pytest.raises(ArgumentError, match=words):
        plan_foreign(model, ForeignSolver("mine", run), 5)


def test_run_functions_are_known_by_their_four_arguments():
    assert all(map(is_run_function, (euler, functools.partial(lambda a, b, c, d, e: c, 0), lambda a, b, c, d, e=1: c)))
    no = (auto, ddim, ddim(), len, int, ForeignSolver, "euler", None, lambda *_: 0, lambda a, b, c: c, print)
    assert not any(map(is_run_function, no))


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2),
    st.sampled_from([euler, heun, ddim, ddim(), len, int, auto, grids.karras, torch.zeros(2), object()]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(solver_name=anything, run=anything, library=anything, grid=anything, nfe=anything)
def test_whatever_is_given_a_plan_or_a_typed_error_comes_back(solver_name, run, library, grid, nfe):
    grid = grids.karras if grid in (euler, heun, ddim, len, auto) else grid  # functions of something else
    nfe = nfe % 100 if isinstance(nfe, int) and nfe > 1000 else nfe
    try:
        plan = plan_foreign(mixture(FlowMatching()), ForeignSolver(solver_name, run, library, grid), nfe)
    except SDEToolkitError:
        return
    assert run in (euler, heun)
    assert plan.nfe <= nfe
