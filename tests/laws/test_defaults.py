"""What is not said means the same everywhere, and what is measured is a measurement."""

import importlib.util
import inspect
import pkgutil
import time
import warnings

import pytest
import torch
from catalogue import RandomNetwork

import sde_toolkit
from sde_toolkit import VESDE, VPSDE, Affine, ScoreModel, ddim, encode, grids, sample
from sde_toolkit.calibration.starts import default_solvers
from sde_toolkit.models.descriptions import HOMES, published


def functions():
    """Every function and method of the package, by its dotted name."""
    found = {}
    for module in pkgutil.walk_packages(sde_toolkit.__path__, "sde_toolkit."):
        if module.name.endswith("__main__") or ".cli" in module.name:
            continue
        if module.name.endswith("_kernels") and importlib.util.find_spec("triton") is None:
            continue
        names = vars(importlib.import_module(module.name))
        for thing in names.values():
            inside = vars(thing).values() if inspect.isclass(thing) else [thing]
            for f in inside:
                if inspect.isfunction(f) and str(f.__module__).startswith("sde_toolkit"):
                    found[f"{f.__module__}.{f.__qualname__}"] = f
    return found


@pytest.mark.parametrize("argument", ["seed", "first_index", "progress"])
def test_a_default_is_the_same_in_every_function(argument):
    """Seeds and first indices begin at 0; no bar is shown unless it is asked for."""
    empty = inspect.Parameter.empty
    others = {
        name: f.default
        for name, function in functions().items()
        for f in [inspect.signature(function).parameters.get(argument)]
        if f is not None and f.default not in (empty, None, 0)
    }
    assert len(functions()) > 500
    assert not others


def test_what_took_time_took_it_inside_the_call():
    model = ScoreModel(RandomNetwork(), VPSDE(), "v")
    grid, x = grids.uniform(model.sde, 20, end=0.01), torch.zeros(4, 2, dtype=torch.float64)
    for call in (lambda: sample(model, ddim(), grid, x_start=x), lambda: encode(model, ddim(), grid, x)):
        began = time.perf_counter()
        found = call()
        assert 0 < found.network_seconds < found.seconds < time.perf_counter() - began


def test_a_start_is_measured_at_its_own_time():
    """What is far outside the range of the data is usual at the first time, where noise is large, not at the second."""
    model = ScoreModel(RandomNetwork(), VESDE(), "x0", transform=Affine(127.5, 1 / 127.5, low=0.0, high=255.0))
    grid = torch.tensor([1.0, 1e-3, 1e-4], dtype=torch.float64)
    noise = 50 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(model, ddim(), grid, x_start=noise)
    with pytest.warns(UserWarning, match="x_start"):
        sample(model, ddim(), grid[1:], x_start=noise)
    with pytest.warns(UserWarning, match=r"\bx holds"):
        encode(model, ddim(), grid[:2], noise, space="model")


@pytest.mark.parametrize("role", HOMES)
def test_a_file_names_public_classes_of_its_room_alone(role):
    """Not what the room's module imports, and not what it keeps to itself."""
    home = HOMES[role]
    for name in {*vars(home), "no such name", 3, None}:
        assert published(role, name) is None or name in home.__all__
    assert any(published(role, name) is not None for name in home.__all__)


def test_nothing_is_kept_compiled_or_shown_unless_asked_for(capsys):
    """No trajectory, no graph of gradients, no compiled step, no bar."""
    model = ScoreModel(RandomNetwork().requires_grad_(), VPSDE(), "v")
    grid, x = grids.uniform(model.sde, 5, end=0.01), torch.zeros(2, 2, dtype=torch.float64)
    for found in (sample(model, ddim(), grid, x_start=x), encode(model, ddim(), grid, x)):
        assert found.trajectory is None
        assert not found.x.requires_grad
        assert found.network_seconds > 0  # NaN where steps are compiled
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize("nfe", [3, 10, 24, 25, 100])
def test_the_solvers_that_a_calibration_tries_all_differ(nfe):
    found = [solver.integrator for solver in default_solvers(0.5, nfe)]
    assert len(found) == len(set(found))
    assert len({solver.name for solver in default_solvers(0.5, nfe)}) == len(found)
