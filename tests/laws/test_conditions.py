"""Rows of a condition go with their samples through any nesting; what has no rows that could be told is refused."""

import collections
import dataclasses
import enum
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_toolkit import VPSDE, ScoreModel, ddim, ddpm, encode, grids, log_likelihood, probability_flow, sample
from sde_toolkit.calibration import calibrate
from sde_toolkit.calibration.descent import Descent
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import flow_endpoint, local_errors
from sde_toolkit.integrators import PerSample
from sde_toolkit.likelihood import ExactTrace, Refined
from sde_toolkit.models.conditions import map_rows, tensors_of

SDE, N = VPSDE(), 7
GRID = grids.uniform(SDE, 4, end=0.1)
ROWS = torch.linspace(-1, 1, N, dtype=torch.float64)


class Pair(NamedTuple):
    rows: Tensor
    note: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    rows: Tensor
    scale: float = 2.0


@dataclasses.dataclass
class Open:
    inner: object
    left_out: None = None


NESTINGS = {
    "tensor": lambda rows: rows,
    "dict": lambda rows: {"a": rows, "shared": torch.tensor(3.0), "name": "cat", "none": None},
    "dicts": lambda rows: {"added": {"text": {"embedded": rows}}, "size": 64},
    "list": lambda rows: {"a": [rows, rows.clone()]},
    "tuple": lambda rows: (rows, None, 7.5),
    "named tuple": lambda rows: {"pair": Pair(rows, "a note")},
    "dataclass": lambda rows: [Frozen(rows)],
    "dataclasses": lambda rows: Open(Open({"x": (Frozen(rows),)})),
    "ordered dict": lambda rows: collections.OrderedDict(a=rows),
    "user dict": lambda rows: collections.UserDict(a=rows),
}
every_nesting = pytest.mark.parametrize("nesting", NESTINGS)


def first_rows(condition):
    return next(tensor for tensor in tensors_of(condition) if tensor.ndim > 0)


def network(x, time, condition):
    return 0.3 * x - first_rows(condition).to(x).reshape(-1, *(1,) * (x.ndim - 1))


MODEL = ScoreModel(network, SDE, "x0", event_shape=(2,))


@pytest.mark.on_device
@pytest.mark.on_card("the mock device compiles nothing")
@every_nesting
def test_rows_go_with_their_samples_whatever_the_nesting_and_the_batch(nesting):
    """Solvers of fixed steps and adaptive ones, compiled or not, upwards and downwards."""
    condition, plain = NESTINGS[nesting](ROWS), {"condition": ROWS}
    x = torch.linspace(-1, 1, 2 * N, dtype=torch.float64).reshape(N, 2)
    runs = [
        lambda **o: sample(MODEL, ddpm(), GRID, shape=(N, 2), dtype=torch.float64, **o).x,
        lambda **o: sample(MODEL, ddim(), GRID, shape=(N, 2), dtype=torch.float64, compile="aot_eager", **o).x,
        lambda **o: sample(MODEL, probability_flow(PerSample(rtol=1e-2, atol=1e-2)), GRID[[0, -1]], x_start=x, **o).x,
        lambda **o: encode(MODEL, ddim(), GRID, x, **o).x,
    ]
    for run in runs:
        torch.testing.assert_close(run(condition=condition, batch_size=2), run(**plain), rtol=1e-12, atol=1e-12)


@pytest.mark.on_device
@every_nesting
def test_likelihoods_too(nesting):
    """With as many nodes as each sample needs, so that rows are left out on the way, and repeated."""
    x = torch.linspace(-1, 1, 2 * N, dtype=torch.float64).reshape(N, 2)
    options = {"nfe": 8, "divergence": ExactTrace(), "quadrature": Refined(1e-3), "dtype": torch.float64, "end": 0.01}
    wanted = log_likelihood(MODEL, x, condition=ROWS, **options).nats
    found = log_likelihood(MODEL, x, condition=NESTINGS[nesting](ROWS), batch_size=3, **options).nats
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
@every_nesting
def test_local_errors_repeat_them(nesting):
    options = {"n": N, "dtype": torch.float64, "refine": 2}
    wanted = local_errors(MODEL, ddim(), GRID, condition=ROWS, **options)
    found = local_errors(MODEL, ddim(), GRID, condition=NESTINGS[nesting](ROWS), **options)
    for one, other in zip(vars(found).values(), vars(wanted).values(), strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.on_device
@every_nesting
def test_a_structure_stays_what_it_is(nesting):
    condition = NESTINGS[nesting](ROWS)
    halved = map_rows(condition, lambda rows: rows[:3])
    assert type(halved) is type(condition)
    again = map_rows(halved, lambda rows: ROWS)
    assert repr(again) == repr(condition)  # keys, names, shared values and all
    assert len(first_rows(condition)) == N  # the caller's is left alone


def untouchable(x, time, condition=None):
    raise AssertionError("the network was evaluated before the error was raised")


class Opaque:
    def __init__(self):
        self.rows = ROWS


class Colour(enum.Enum):
    RED = 1


BAD = [
    ({"added": {"text": ROWS[:4]}}, r"condition\.added\.text.*4 rows for 7"),
    ([ROWS, ROWS[:1]], r"condition\[1\].*1 rows for 7"),
    ({"a": Pair(ROWS[:2], "")}, r"condition\.a\.rows.*2 rows"),
    (Open({3: ROWS[:2]}), r"condition\.inner\[3\].*2 rows"),
    (np.arange(7), r"condition.*ndarray.*torch\.as_tensor"),
    ({"a": [np.zeros(3)]}, r"condition\.a\[0\].*ndarray"),
    (list(range(7)), r"condition.*list of plain values.*torch\.tensor"),
    ({"size": (64, 64)}, r"condition\.size.*tuple of plain values"),
    (["cat"] * 7, r"condition.*list of plain values"),
    ({"a": Opaque()}, r"condition\.a.*Opaque"),
    ({1.5}, r"condition.*set"),
    (torch.eye(7).to_sparse(), r"condition.*sparse"),
]


@pytest.mark.on_device
@pytest.mark.parametrize(("condition", "said"), BAD)
def test_what_cannot_be_split_is_refused_by_name_before_any_evaluation(condition, said):
    model = ScoreModel(untouchable, SDE, "x0", event_shape=(2,))
    x = torch.zeros(N, 2)
    for run in (
        lambda: sample(model, ddim(), GRID, shape=(N, 2), condition=condition),
        lambda: encode(model, ddim(), GRID, x, condition=condition),
        lambda: log_likelihood(model, x, nfe=8, condition=condition),
        lambda: flow_endpoint(model, N, steps=4, condition=condition),
    ):
        with pytest.raises(ArgumentError, match=said):
            run()


def test_a_condition_that_holds_itself_is_refused():
    condition = {}
    condition["again"] = condition
    with pytest.raises(ArgumentError, match=r"condition\.again.*deep"):
        sample(ScoreModel(untouchable, SDE), ddim(), GRID, shape=(N, 2), condition=condition)


@pytest.mark.parametrize("shared", [None, 3, 2.5, True, "cat", b"cat", torch.tensor(1.0), np.float32(2), Colour.RED, torch.float64, {}, []])  # fmt: skip  # noqa: E501
def test_what_is_shared_reaches_every_batch_as_it_is(shared):
    seen = []

    def told(x, time, condition):
        seen.append(condition["shared"])
        return x

    sample(ScoreModel(told, SDE, "x0"), ddim(), GRID, shape=(4, 2), batch_size=3, condition={"shared": shared})
    assert len(seen) == 2 * 4
    assert all(one is shared or one == shared for one in seen)


@pytest.mark.on_device
def test_a_calibration_has_one_row_which_is_that_of_all_samples():
    """Its runs are those of a model that has the row built in; more rows are refused before any evaluation."""

    def built_in(x, time):
        return network(x, time, {"a": ROWS[:1]})

    x = torch.linspace(-1, 1, 2 * N, dtype=torch.float64).reshape(N, 2)
    told, plain = (
        Descent(model, 0.0, condition).run(ddim().integrator, GRID, x, None, tweedie=True)[0]
        for model, condition in ((MODEL, {"a": ROWS[:1]}), (ScoreModel(built_in, SDE, "x0"), None))
    )
    assert torch.equal(told, plain)
    with pytest.raises(ArgumentError, match=r"condition\.a.*3 rows"):
        calibrate(ScoreModel(untouchable, SDE, event_shape=(2,)), ddim(), nfe=4, condition={"a": ROWS[:3]})
