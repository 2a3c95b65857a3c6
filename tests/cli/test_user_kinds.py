"""Whatever stands in a user's file is taken, or refused by name; an error of the user's own code is shown as it is."""

import inspect
import itertools
import traceback

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sde_toolkit import ScoreModel, Solver
from sde_toolkit.cli import user_files
from sde_toolkit.cli.main import main
from sde_toolkit.metrics.metric import Metric
from sde_toolkit.sampling import ForeignSolver, Plan
from sde_toolkit.suite import Truth

HEAD = """
import functools
import torch
from sde_toolkit import GaussianMixture, ScoreModel, VPSDE, ddim
from sde_toolkit.metrics.distances import Plausible
from sde_toolkit.suite import Truth

def mixture():
    return GaussianMixture(torch.zeros(1, 2), VPSDE(), std=1.0)
"""
KINDS = {  # what a function may return, or a name may stand for
    "model": "mixture()", "truth": "Truth('mine', mixture())", "solver": "ddim()", "metric": "Plausible('p', 'p')",
    "nothing": "None", "number": "3.0", "text": "'ddim'", "list": "[]", "tensor": "torch.zeros(3)",
    "network": "torch.nn.Linear(2, 2)", "class": "ScoreModel", "builtin": "max", "function": "lambda a, b: 0.0",
    "partial": "functools.partial(ddim)", "module": "torch", "generator": "(k for k in 'abc')",
}  # fmt: skip
ARGUMENTS = ("a", "b", "c", "d", "e")
_numbers = itertools.count()


def load(setting, text):
    """What the command makes of it."""
    if setting == "model":
        return user_files.load_made("model", text, ScoreModel, "Return a ScoreModel.")
    if setting == "truth":
        return user_files.load_made("truth", text, Truth, "Return a Truth.")
    if setting == "solver":
        return user_files.solver_of_user("mine", text)
    return user_files.metrics_of_user([text])["f"]


@st.composite
def definitions(draw):
    """The text of a file with an object f, and whether f raises an error of its own."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    how = draw(st.sampled_from(["value", "function", "async", "class", "raises"]))
    if how == "value":
        return f"f = {KINDS[kind]}", False
    fixed, more = draw(st.integers(0, 5)), draw(st.integers(0, 2))
    keyword, varying = draw(st.booleans()), draw(st.booleans())
    words = [*ARGUMENTS[:fixed], *(f"d{k}=None" for k in range(more))]
    words += ["*rest"] if varying else ["*"] if keyword else []
    words += ["k"] if keyword else []
    body = "raise ZeroDivisionError('mine')" if how == "raises" else f"return {KINDS[kind]}"
    if how == "class":
        return f"class f:\n    def __init__(self, {', '.join(words)}):\n        pass", False
    return f"{'async ' * (how == 'async')}def f({', '.join(words)}):\n    {body}", how == "raises"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(setting=st.sampled_from(["model", "truth", "solver", "metric"]), definition=definitions())
def test_every_kind_of_object_is_taken_or_refused_by_name(setting, definition, tmp_path):
    source, raises = definition
    file = tmp_path / f"kind_{next(_numbers)}.py"
    file.write_text(HEAD + source, encoding="utf-8")
    text = f"{file}:f"
    found, error = outcome(setting, text)
    if raises and isinstance(error, ZeroDivisionError):
        assert traceback.extract_tb(user_files.traceback_in_user_file(error))[0].name == "f"
    elif error is not None:
        assert isinstance(error, user_files.UserFileError)
        assert str(error).startswith(f"{setting}='{text[:20]}")
        assert error.problem
        assert error.remedy
    else:
        wanted = {"model": ScoreModel, "truth": Truth, "solver": (Solver, ForeignSolver, Plan), "metric": Metric}
        assert isinstance(found, wanted[setting]) or (setting in ("solver", "metric") and takes_two(found))


def outcome(setting, text):
    """What was loaded, and None; or None, and the error."""
    try:
        return load(setting, text), None
    except Exception as error:
        return None, error


def takes_two(function):
    """A planner and a metric are functions of two arguments; a builtin one does not say what it takes."""
    return inspect.isbuiltin(function) or inspect.signature(function).bind(1, 2) is not None


OWN = """
import torch
from sde_toolkit import ScoreModel, VPSDE

def opens_a_file():
    return open("nowhere.npz")

def misuses_the_package():
    return ScoreModel(torch.nn.Identity(), VPSDE(), "nonsense")

def with_a_cause():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise KeyError("mine") from error
"""


@pytest.mark.parametrize(
    ("name", "error"),
    [("opens_a_file", FileNotFoundError), ("misuses_the_package", ValueError), ("with_a_cause", KeyError)],
)
def test_the_traceback_of_the_users_own_error_begins_in_the_users_file(name, error, tmp_path, monkeypatch):
    """Also where the package itself raises such errors, and would turn them into a message."""
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        main(["sample", f"model=own.py:{name}", "n=2", "output=out"])
    places = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert places[places.index("main") + 1] == name
    assert (caught.value.__cause__ is not None) == (name == "with_a_cause")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compare solver=ddim metric=odd.py:one", "metric='odd.py:one'"),
        ("compare solver=ddim metric=odd.py:word", "metric=word"),
        ("compare solver=odd.py:one", "solver='odd.py:one'"),
        ("compare solver=odd.py:plan", "solver=plan"),
        ("sample solver=odd.py:steps", "solver=steps"),
        ("restore solver=odd.py:one", "solver='odd.py:one'"),
        ("calibrate solver=odd.py:one", "solver='odd.py:one'"),
        ("likelihood solver=odd.py:one", "solver='odd.py:one'"),
        ("bench truth=odd.py:one", "truth='odd.py:one'"),
        ("bench truth=odd.py:thin solver=ddim", "draw=<function"),
        ("bench truth=script.py:main", "__main__"),
    ],
)
def test_commands_name_the_setting_and_write_nothing(words, said, command, tmp_path):
    (tmp_path / "odd.py").write_text(
        f"{HEAD}\n"
        "def one(x): return 0.0\n"
        "def word(generated, real): return 'good'\n"
        "def plan(model, nfe): return 3\n"
        "def steps(denoise, sigmas, x, rng): return 3\n"
        "def thin(): return Truth('mine', mixture(), draw=lambda n, generator: torch.zeros(n))\n",
        encoding="utf-8",
    )
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    name, *settings = words.split()
    model = [] if name == "bench" else ["model={path:mixture}"]
    status, _, err = command(name, *model, *settings, "progress=false", "output=out")
    assert status == 2
    assert said in err
    assert "--help" not in err
    assert not (tmp_path / "out").exists()
