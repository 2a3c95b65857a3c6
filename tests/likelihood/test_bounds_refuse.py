"""What the bounds refuse, before any evaluation."""

import math
from dataclasses import dataclass

import pytest
import torch
from bound_truths import doubles

from sde_toolkit import VPSDE, Affine, FlowMatching, ScoreModel, grids
from sde_toolkit.errors import ArgumentError, DataError, GridError, NonFiniteError
from sde_toolkit.likelihood.bounds import discrete_bound, variational_bound
from sde_toolkit.likelihood.decoders import GaussianDensity, IntegratedBins
from sde_toolkit.likelihood.levels import Levels
from sde_toolkit.likelihood.prior import GaussianPrior
from sde_toolkit.likelihood.proposals import Sigmoid, UniformLambda


def untouched(sde=None):
    def network(x, time):
        raise AssertionError("evaluated")

    return ScoreModel(network, sde or VPSDE(), "x0")


GOOD = torch.zeros(2, 1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": torch.full((2, 1), math.nan)}, ArgumentError),
        ({"x": torch.zeros(0, 1)}, ArgumentError),
        ({"x": [0.0]}, ArgumentError),
        ({"x": torch.zeros(2, 1, dtype=torch.uint8)}, ArgumentError),
        ({"x": torch.full((2, 1), 300.0), "levels": Levels()}, DataError),
        ({"x": torch.full((2, 1), 0.5), "levels": Levels()}, DataError),
        ({"levels": 256}, ArgumentError),
        ({"levels": Levels(), "space": "model"}, ArgumentError),
        ({"levels": Levels(), "decoder": GaussianDensity()}, ArgumentError),
        ({"decoder": IntegratedBins()}, ArgumentError),
        ({"space": "latent"}, ArgumentError),
        ({"draws": 0}, ArgumentError),
        ({"draws": 2.5}, ArgumentError),
        ({"draws": 3, "proposal": "uniform"}, ArgumentError),
        ({"batch_size": 0}, ArgumentError),
        ({"dtype": torch.float16}, ArgumentError),
        ({"seed": -1}, ArgumentError),
        ({"condition": torch.zeros(3)}, ArgumentError),
        ({"prior": sum}, ArgumentError),
        ({"prior": GaussianPrior.of_moments(VPSDE(), torch.zeros(2), torch.eye(2))}, ArgumentError),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_any_evaluation(change, error):
    options = {"x": GOOD, **change}
    x = options.pop("x")
    with pytest.raises(error):
        variational_bound(untouched(), x, **options)
    with pytest.raises(error):
        discrete_bound(untouched(), x, grids.uniform(VPSDE(), 4), **options)


def test_bad_times_and_grids_are_refused_before_any_evaluation():
    for times in ({"end": 0.0}, {"end": 1.0}, {"start": 0.5, "end": 0.6}, {"start": 2.0}, {"end": math.nan}):
        with pytest.raises(GridError):
            variational_bound(untouched(), GOOD, **times)
    with pytest.raises(ArgumentError, match="Sigmoid"):
        variational_bound(untouched(FlowMatching()), GOOD, proposal=UniformLambda())
    with pytest.raises(GridError):
        discrete_bound(untouched(), GOOD, doubles(0.1, 0.5, 1.0))
    for options in (
        {"variance": "forward"},
        {"variance": lambda sde, t, s: 0 * t},
        {"repeats": 0},
        {"repeats": 2, "draws": 3},
        {"proposal": Sigmoid()},
    ):
        with pytest.raises(ArgumentError):
            discrete_bound(untouched(), GOOD, grids.uniform(VPSDE(), 4), **options)
    for bad in (lambda: Sigmoid(2.5), lambda: Sigmoid(1.0, math.nan), lambda: GaussianDensity(std=0.0)):
        with pytest.raises(ArgumentError):
            bad()
    for bad in ((1, 0.0, 1.0), (256, 1.0, 1.0), (2.5, 0.0, 1.0), (4, 0.0, math.inf)):
        with pytest.raises(ArgumentError):
            Levels(*bad)
    with pytest.raises(GridError):
        discrete_bound(untouched(FlowMatching()), GOOD, doubles(1.0, 0.0))


def test_levels_through_a_transform_that_mixes_elements_are_refused():
    @dataclass(frozen=True)
    class Swap(Affine):
        def forward(self, x):
            return super().forward(x.flip(-1))

    model = untouched()
    model.transform = Swap(0.0, 0.1)
    with pytest.raises(ArgumentError, match="mixes"):
        variational_bound(model, torch.tensor([[1.0, 2.0, 5.0]]), levels=Levels(7, 0.0, 6.0))


def test_a_network_that_answers_nan_is_named():
    with pytest.raises(NonFiniteError, match="t="):
        variational_bound(ScoreModel(lambda x, time: x * math.nan, VPSDE(), "x0"), GOOD)


def test_a_network_in_training_mode_with_dropout_is_named():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x, time):
            return self.dropout(x)

    model = ScoreModel(Dropping(), VPSDE(), "x0")
    for bound in (
        lambda: variational_bound(model, GOOD),
        lambda: discrete_bound(model, GOOD, grids.uniform(VPSDE(), 4)),
    ):
        model.train()
        with pytest.raises(ArgumentError, match=r"network\.dropout.*eval"):
            bound()
        model.eval()
        assert bound().nats.isfinite().all()


def test_levels_describe_themselves():
    levels = Levels(5, -1.0, 3.0)
    assert levels.width == 1.0
    assert levels.values.tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert levels.edges.tolist() == [-1.5, -0.5, 0.5, 1.5, 2.5, 3.5]
    scaled = Levels(256, 0.0, 1.0)
    pixels = torch.arange(256)
    scaled.check(pixels.float() / 255)
    assert torch.equal(scaled.index(pixels.float() / 255), pixels)
    with pytest.raises(DataError, match=r"0\.5"):
        levels.check(torch.tensor([0.0, 0.5]))
