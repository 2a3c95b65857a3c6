"""Steps without a finite gradient: skipped, counted, and after too many in a row the reason."""

import dataclasses

import pytest
import torch
from runs import VECTORS, rows, weights

from sde_toolkit import MLP, VPSDE, DenoisingScoreMatching, ScoreModel
from sde_toolkit.data import Source, checkerboard
from sde_toolkit.errors import DataError, NonFiniteError
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training import train

SHORT = dataclasses.replace(VECTORS, steps=30, log_every=1, evaluate_every=10, power_averages=(), held_out=0)


def failing(folder, bad, options=SHORT, value=float("nan")):
    """A run whose loss is ``value`` at the calls in ``bad`` (the first is 1)."""
    torch.manual_seed(0)
    model = ScoreModel(MLP(event_shape=(2,), width=16, depth=1), VPSDE(), "edm", event_shape=(2,))
    regression, calls = DenoisingScoreMatching("edm"), []

    def loss(*arguments):
        calls.append(1)
        losses = regression(*arguments)
        return losses * value if len(calls) in bad else losses

    return train(model, checkerboard(n=500), folder, options, loss=loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_moves_nothing(tmp_path, value):
    options = dataclasses.replace(SHORT, evaluate_every=1, keep=100)
    failing(tmp_path, {5, 6, 20}, options, value)
    logged = rows(tmp_path)
    assert [int(row["skipped"]) for row in logged] == [0] * 4 + [1, 2] + [2] * 13 + [3] * 11
    for step in range(1, 31):
        assert all(value.isfinite().all() for value in weights(tmp_path, "ema", step).values())
    for before, after in [(4, 5), (5, 6), (19, 20)]:
        one, two = weights(tmp_path, "raw", before), weights(tmp_path, "raw", after)
        assert all(torch.equal(one[key], two[key]) for key in one)
    one, two = weights(tmp_path, "raw", 6), weights(tmp_path, "raw", 7)
    assert not all(torch.equal(one[key], two[key]) for key in one)
    assert all(torch.tensor(float(row["loss"])).isfinite() for row in logged)


def test_too_many_in_a_row_stop_with_the_reason(tmp_path):
    with pytest.raises(NonFiniteError, match=r"not finite in 4 steps in a row .* step 16"):
        failing(tmp_path, set(range(13, 100)), dataclasses.replace(SHORT, patience=4))
    assert checkpoint_folders(tmp_path)[-1][0] == 10


def test_others_in_between_start_the_count_again(tmp_path):
    failing(tmp_path, {3, 4, 5, 7, 8, 9, 11, 12, 13}, dataclasses.replace(SHORT, patience=4))
    assert rows(tmp_path)[-1]["skipped"] == "9"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named(tmp_path, workers):
    """Also when another process reads it: the error keeps its type and its words."""
    points = checkerboard(n=100)

    class Broken(Source):
        def read(self, index):
            if index == 17:
                raise DataError("sample", index, "it is damaged", "Replace it.")
            return points.train[index]

    data = dataclasses.replace(points, train=Broken(60, (2,), torch.float32))
    torch.manual_seed(0)
    model = ScoreModel(MLP(event_shape=(2,), width=16, depth=1), VPSDE(), "edm", event_shape=(2,))
    with pytest.raises(DataError, match=r"sample=17: it is damaged\. Replace it\."):
        train(model, data, tmp_path, dataclasses.replace(SHORT, workers=workers))
