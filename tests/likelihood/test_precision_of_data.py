"""Without dtype=, the state has the precision of the data."""

import pytest
import torch

from sde_toolkit import VPSDE, Levels, ScoreModel, bits_per_dim, grids, log_likelihood, variational_bound
from sde_toolkit.likelihood import discrete_bound

LEVELS = Levels(3, -1.0, 1.0)
RUNS = {
    "log_likelihood": lambda model, x, **how: log_likelihood(model, x, nfe=8, **how).nats,
    "bits_per_dim": lambda model, x, **how: bits_per_dim(model, x, LEVELS, nfe=8, **how).bits,
    "variational_bound": lambda model, x, **how: variational_bound(model, x, draws=2, **how).nats,
    "discrete_bound": lambda model, x, **how: (
        discrete_bound(model, x, grids.uniform(model.sde, 3, end=1e-3), **how).nats
    ),
}


@pytest.mark.parametrize("given", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("run", RUNS)
def test_the_state_has_the_precision_of_the_data(run, given):
    told = set()

    def network(x, time):
        told.add(x.dtype)
        return torch.sin(x)

    model = ScoreModel(network, VPSDE(), "v", event_shape=(2,))
    x = torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=given)
    found = RUNS[run](model, x)
    assert told == {given}
    assert torch.equal(found, RUNS[run](model, x, dtype=given))
    RUNS[run](model, x, dtype=torch.float32)
    assert told == {given, torch.float32}


def test_integers_are_evaluated_in_float32():
    told = set()

    def network(x, time):
        told.add(x.dtype)
        return torch.sin(x)

    model = ScoreModel(network, VPSDE(), "v", event_shape=(2,))
    bits_per_dim(model, torch.tensor([[-1, 0], [1, 1]]), LEVELS, nfe=8)
    assert told == {torch.float32}
