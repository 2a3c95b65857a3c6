"""Every error travels between processes and costs no more than it says; counts have one refusal, sizes one."""

import copy
import importlib.util
import math
import pickle
import pkgutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import sde_toolkit
from sde_toolkit import (
    MLP,
    VPSDE,
    Affine,
    ScoreModel,
    ddim,
    encode,
    gaussian,
    grids,
    log_likelihood,
    sample,
    train,
)
from sde_toolkit.checks import check_count, check_positive
from sde_toolkit.data import Dataset
from sde_toolkit.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    DefinitionError,
    ForeignSolverError,
    GridError,
    MaxEvaluationsError,
    MissingDependencyError,
    NonFiniteError,
    SDEToolkitError,
)
from sde_toolkit.showing import shown
from sde_toolkit.training import TrainingOptions

MADE = {
    CheckpointError: lambda: CheckpointError("folder", "it is damaged", "Restore it."),
    DefinitionError: lambda: DefinitionError("alpha is missing"),
    ForeignSolverError: lambda: ForeignSolverError("mine", "ValueError: no"),
    MaxEvaluationsError: lambda: MaxEvaluationsError(3, 0.5),
    MissingDependencyError: lambda: MissingDependencyError("nothing-like-it", "a test", "cli", ImportError("why")),
    NonFiniteError: lambda: NonFiniteError("the state is NaN", step=1, t=0.5, remedy="Use fewer steps."),
    SDEToolkitError: lambda: SDEToolkitError("said"),
}


def all_errors():
    """Every subclass that any module of the package defines."""
    for module in pkgutil.walk_packages(sde_toolkit.__path__, "sde_toolkit."):
        without_triton = module.name.endswith("_kernels") and importlib.util.find_spec("triton") is None
        if not (module.name.endswith("__main__") or without_triton):
            importlib.import_module(module.name)
    found, waiting = {SDEToolkitError}, [SDEToolkitError]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            if kind not in found and kind.__module__.startswith("sde_toolkit."):
                found.add(kind)
                waiting.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def made(kind):
    """One error of this class."""
    if kind in MADE:
        return MADE[kind]()
    if issubclass(kind, ArgumentError):
        return kind("steps", (1, [2.5, None]), "that is no number", "Pass 20.")
    return kind("folder", "it is damaged", "Restore it.")


class OwnError(NonFiniteError):
    """A user's subclass, with a constructor of its own."""

    def __init__(self, place):
        super().__init__("the state is NaN", step=2, remedy="")
        self.place = place


TRAVELS = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
    "oldest pickle": lambda error: pickle.loads(pickle.dumps(error, protocol=0)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
@pytest.mark.parametrize("kind", [*all_errors(), OwnError], ids=lambda kind: kind.__name__)
def test_an_error_arrives_whole(kind, travel):
    error = made(kind) if kind is not OwnError else OwnError("here")
    error.note = {"added": "later"}
    arrived = travel(error)
    assert type(arrived) is kind
    assert (str(arrived), arrived.args, vars(arrived)) == (str(error), error.args, vars(error))
    assert str(error)
    with pytest.raises(kind):
        raise arrived


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not me")


class Unbuildable:
    """Pickled without complaint, and never unpickled."""

    def __reduce__(self):
        return int, ("no number",)


@pytest.mark.parametrize(
    "value",
    [lambda x: x, (i for i in ()), Unpicklable(), Unbuildable(), [Unpicklable()], np.zeros(2**20), [0] * 10**6],
    ids=["function", "generator", "unpicklable", "unbuildable", "inside a list", "a large array", "a long list"],
)
def test_a_value_that_cannot_travel_arrives_as_its_text(value):
    error = ArgumentError("x", value, "no", "Pass another.")
    arrived = pickle.loads(pickle.dumps(error))
    assert (str(arrived), arrived.argument, arrived.value) == (str(error), "x", shown(value))
    assert len(pickle.dumps(error)) < 2**20
    assert copy.copy(error).value is value


def test_values_travel_as_they_are():
    for value in (3, "auto", [1.5], {"a": (1, 2)}, VPSDE(), torch.float16, (2, 3)):
        assert pickle.loads(pickle.dumps(ArgumentError("x", value, "no", "Pass another."))).value == value


# -- what is shown ----------------------------------------------------------------------------------------------------


def lists_in_lists(depth):
    """10^depth elements, out of depth small lists."""
    value = ["a"] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


class Endless:
    def __repr__(self):
        raise RuntimeError("no")


def endless():
    value = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    "value",
    [
        lists_in_lists(50),
        tuple(lists_in_lists(50)),
        {"key": lists_in_lists(50)},
        "x" * 10**8,
        10**10**6,
        torch.zeros(()).expand(10**12),
        np.broadcast_to(np.float64(0), (10**6, 10**6)),
        range(10**12),
        dict.fromkeys(range(10**6), 1),
        Endless(),
        endless(),
        MLP(event_shape=(2,), width=8, depth=200),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_shown_of_a_value_takes_bounded_work(value):
    began = time.process_time()
    error = ArgumentError("x", value, "no", "Pass another.")
    assert time.process_time() - began < 60
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1.5, None, True, "a'b", b"x", (), (1,), (1, 2), [], [1, [2]], {}, {"a": 1}, set(), {3}),
        *(float("nan"), 2**64, VPSDE(), torch.float32, np.float32(1), ((1, 2), (3, [4]))),
    ],
    ids=repr,
)
def test_small_values_are_shown_as_python_writes_them(value):
    assert shown(value) == repr(value)


@pytest.mark.parametrize("value", [torch.zeros(3, 4), np.zeros((3, 4), np.float32)], ids=["tensor", "array"])
def test_of_arrays_the_shape_and_the_dtype_are_shown(value):
    assert "(3, 4)" in shown(value)
    assert "float32" in shown(value)


def test_a_data_error_is_an_argument_error_and_a_value_error():
    assert issubclass(DataError, ArgumentError)
    assert issubclass(GridError, ValueError)


@pytest.mark.parametrize("least", [0, 1, 4])
@pytest.mark.parametrize(
    "value", [True, None, "3", 4.0, 4.5, math.nan, torch.tensor(4), [4], -1, 3, 4, np.int64(4), 5, 6]
)
def test_a_count_is_a_whole_number_between_its_limits(least, value):
    """Whatever an argument counts, ``range`` would take it, and its own int comes back."""
    counts = not isinstance(value, bool) and isinstance(value, int | np.integer) and value in range(least, 6)
    if counts:
        found = check_count("n", value, "Pass 4.", least=least, most=5)
        assert type(found) is int
        assert found == value
        return
    with pytest.raises(ArgumentError, match=r"^n="):
        check_count("n", value, "Pass 4.", least=least, most=5)


@pytest.mark.parametrize("value", [True, None, "3", math.nan, math.inf, 0, -1.0, 10**400, 1j, np.float32("nan")])
def test_what_is_not_a_positive_number_is_refused(value):
    with pytest.raises(ArgumentError, match=r"^size=.* Pass 1\.$"):
        check_positive("size", value, "Pass 1.")


def test_there_is_one_refusal_of_counts_and_one_of_positive_numbers():
    package = Path(sde_toolkit.__file__).parent
    for said in ("must be a whole number", "must be positive and finite"):
        assert [f.name for f in package.rglob("*.py") if said in f.read_text(encoding="utf-8")] == ["checks.py"]


def test_a_warning_names_the_users_own_line(tmp_path):
    """However deep in the package it arises; nobody warns in another way."""
    for file in Path(sde_toolkit.__file__).parent.rglob("*.py"):
        assert "warnings.warn(" not in file.read_text() or file.name == "errors.py", file
    eight_bit = Affine(127.5, 1 / 127.5, low=0.0, high=255.0)
    grey = torch.linspace(0, 255, 40).reshape(10, 4)
    model = ScoreModel(MLP((4,), width=4, depth=1), VPSDE(), transform=eight_bit)
    data = Dataset("grey", grey, grey[:2], transform=eight_bit)
    unwarmed = TrainingOptions(steps=2, batch_size=2, ema_warmup=False)
    coarse = ScoreModel(gaussian(torch.zeros(3), VPSDE(), std=0.02).network, VPSDE(), "v", sigma_data=1.0)
    for said, call in {
        "x_start": lambda: sample(model, ddim(), steps=2, x_start=grey),
        "x holds": lambda: encode(model, ddim(), grids.uniform(VPSDE(), 4, end=0.01), grey, space="model"),
        "worth using": lambda: train(model, data, tmp_path / "run", unwarmed, until=1),
        "detail=": lambda: log_likelihood(coarse, torch.zeros(2, 3).double()),
    }.items():
        with pytest.warns(UserWarning, match=said) as caught:
            call()
        ours = [warning for warning in caught if issubclass(warning.category, UserWarning)]  # torch warns of itself
        assert {warning.filename for warning in ours} == {__file__}
