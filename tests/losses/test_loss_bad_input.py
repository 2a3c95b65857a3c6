"""Losses, weightings and times refuse what they cannot use, by name, before the network is asked."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_toolkit import EDMSDE, VPSDE, DenoisingScoreMatching, Levels, ScoreModel
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.losses import (
    P2,
    Anchored,
    Converted,
    Cosine,
    Discrete,
    EDMWeighting,
    Hybrid,
    LikelihoodTimes,
    LogitNormal,
    LogNormal,
    MinSNR,
    SigmoidWeighting,
    Uniform,
    VariationalBound,
    constant,
    error_ratio,
    low_discrepancy,
    stratified_times,
)
from sde_toolkit.models.prediction import Kind

U = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TIMES = [Uniform(), Discrete(10), LikelihoodTimes(), LogNormal(), LogitNormal(), Cosine()]
not_positive = st.one_of(
    st.floats(max_value=0), st.sampled_from([math.nan, math.inf, "1", None, True, 1j, [1.0], torch.ones(2)])
)
not_finite = st.sampled_from([math.nan, math.inf, -math.inf, "0", None, False, torch.ones(2)])
not_a_kind = st.one_of(st.text(max_size=8).filter(lambda text: text not in get_args(Kind)), st.none(), st.integers())
not_a_count = st.one_of(st.integers(max_value=0), st.floats(), st.sampled_from([None, "3", True]))


def untouchable(x, time, condition=None):
    raise AssertionError("the network was evaluated before the error was raised")


def refused(call, *words):
    with pytest.raises(ArgumentError) as caught:
        call()
    assert isinstance(caught.value, SDEToolkitError)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


@given(value=not_positive)
def test_parameters_that_must_be_positive(value):
    refused(lambda: MinSNR(value), "gamma")
    refused(lambda: EDMWeighting(value), "sigma_data")
    refused(lambda: P2(k=value), "k=")
    refused(lambda: LogNormal(P_std=value), "P_std")
    refused(lambda: LogitNormal(std=value), "std")
    refused(lambda: Converted(constant, "x0", "edm", value), "sigma_data")
    refused(lambda: error_ratio(VPSDE(), U, "x0", "edm", value), "sigma_data")


@given(value=not_finite)
def test_parameters_that_must_be_numbers(value):
    refused(lambda: SigmoidWeighting(value), "b=")
    refused(lambda: P2(gamma=value), "gamma")
    refused(lambda: LogNormal(P_mean=value), "P_mean")
    refused(lambda: LogitNormal(mean=value), "mean")
    refused(lambda: LikelihoodTimes(value), "floor")
    refused(lambda: Hybrid(weight=value), "weight")
    refused(lambda: low_discrepancy(3, value), "offset")


@given(value=not_a_kind)
def test_unknown_parameterisations(value):
    refused(lambda: DenoisingScoreMatching(value), "target")
    refused(lambda: Anchored(constant, value), "multiplies")
    refused(lambda: Converted(constant, value, "x0"), "multiplies")
    refused(lambda: Converted(constant, "x0", value), "multiplies")
    refused(lambda: error_ratio(VPSDE(), U, value, "x0"), "of=")
    refused(lambda: error_ratio(VPSDE(), U, "x0", value), "to=")


@given(value=not_a_count)
def test_counts(value):
    refused(lambda: Discrete(value), "N=")
    refused(lambda: VariationalBound(value), "N=")
    refused(lambda: low_discrepancy(value, 0.5), "n=")


def test_a_bound_needs_two_steps_and_levels_and_parts_of_its_own_kind():
    refused(lambda: VariationalBound(1), "N=1")
    refused(lambda: VariationalBound(levels=256), "levels")
    refused(lambda: Hybrid(simple="simple"), "simple")
    refused(lambda: Hybrid(bound=DenoisingScoreMatching()), "bound")
    refused(lambda: Hybrid(weight=-1.0), "weight")


@pytest.mark.parametrize("weighting", ["min_snr", None, 3.0, MinSNR])
def test_weightings_can_be_called(weighting):
    refused(lambda: DenoisingScoreMatching("x0", weighting), "weighting")
    refused(lambda: Anchored(weighting, "x0"), "weighting")


def test_a_weighting_of_one_error_is_not_taken_for_that_of_another():
    refused(lambda: Anchored(MinSNR(), "epsilon"), "multiplies", "x0")
    refused(lambda: Converted(MinSNR(), "epsilon", "v"), "multiplies", "x0")


@pytest.mark.parametrize("times", TIMES, ids=str)
@given(value=st.one_of(st.floats().filter(lambda v: not 0 <= v < 1), st.sampled_from([None, "0", True])))
def test_t_min_lies_in_the_unit_interval(times, value):
    refused(lambda: times(VPSDE(), U, value), "t_min")
    refused(lambda: stratified_times(3, value), "t_min")


@pytest.mark.parametrize("times", TIMES, ids=str)
def test_u_is_uniform_and_the_sde_an_sde(times):
    for u in (torch.tensor([0.5, 1.0]), torch.tensor([-0.1]), torch.tensor([math.nan]), torch.arange(2), 0.5, None):
        refused(lambda u=u: times(VPSDE(), u, 0.1), "u=")
    refused(lambda: times("vp", U, 0.1), "sde")


def test_distributions_without_a_place_on_the_path():
    refused(lambda: LikelihoodTimes()(VPSDE(), U, 0.0), "t_min", "likelihood_end")
    refused(lambda: LogNormal(P_mean=30.0)(EDMSDE(), U, 0.0), "probability")
    refused(lambda: LogitNormal(mean=-40.0)(VPSDE(), U, 0.5), "probability")
    refused(lambda: low_discrepancy(3, torch.rand(2)), "offset")


@pytest.mark.parametrize(
    "loss", [DenoisingScoreMatching(), VariationalBound(), Hybrid()], ids=lambda v: type(v).__name__
)
def test_batches_fit(loss):
    model = ScoreModel(untouchable, VPSDE(), learned_variance=True)
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    refused(lambda: loss(model, x, t[:2], x), "t=")
    refused(lambda: loss(model, x, t[:, None], x), "t=")
    refused(lambda: loss(model, x, 0.5, x), "t=")
    refused(lambda: loss(model, x, t, x[:2]), "noise")
    refused(lambda: loss(model, x.long(), t, x), "x_0")
    refused(lambda: loss(model, x, t, None), "noise")
    refused(lambda: loss(model, x[0, 0], t, x[0, 0]), "t=")


def test_a_hybrid_needs_a_learned_variance():
    x = torch.zeros(3, 2)
    refused(lambda: Hybrid()(ScoreModel(untouchable, VPSDE()), x, torch.full((3,), 0.5), x), "learned_variance=True")


def test_levels_fit_the_models_transform():
    from sde_toolkit.transforms import eight_bit

    model = ScoreModel(untouchable, VPSDE(), transform=eight_bit())
    x = torch.zeros(3, 2)
    refused(lambda: VariationalBound(levels=Levels(256, 0.0, 1.0))(model, x, torch.full((3,), 0.5), x), "levels")


@given(value=st.sampled_from([None, 1, "yes", 0.0]))
def test_learned_variance_is_declared_by_true_or_false(value):
    refused(lambda: ScoreModel(untouchable, VPSDE(), learned_variance=value), "learned_variance")


@pytest.mark.parametrize("shape", [(3, 2), (3, 3), (3, 8), (6, 2)])
def test_a_network_of_the_wrong_width_is_named(shape):
    model = ScoreModel(lambda x, time: torch.zeros(shape), VPSDE(), learned_variance=True)
    refused(lambda: model(torch.zeros(3, 2), 0.5), "network", "(3, 4)", "out_channels")
