"""Law 7: importing the package costs what importing torch costs, and imports run in one direction."""

import ast
import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sde_toolkit
from sde_toolkit import SDE

ROOT = Path(sde_toolkit.__file__).parent
ORDER = [
    {"showing", "errors"},
    {"checks", "batching", "progress"},
    {"sde"},
    {"transforms", "networks"},
    {"ranges"},
    {"files"},
    {"models"},
    {"equation", "grids", "noise"},
    {"integrators"},
    {"solvers"},
    {"sampling"},
    {"likelihood"},
    {"guidance"},
    {"losses"},
    {"calibration"},
    {"interop"},
    {"data"},
    {"jobs"},
    {"metrics"},
    {"training"},
    {"evaluation"},
    {"suite"},
    {"cli"},
    {"__main__"},
]
RANK = {unit: rank for rank, units in enumerate(ORDER) for unit in units}


@functools.cache
def files():
    found = sorted(ROOT.rglob("*.py"))
    assert len(found) > 30
    return [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in found]


def unit_of(file):
    """The top-level module or subpackage that a file belongs to; "" for the package's own __init__."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported(tree):
    """Every dotted name that is imported anywhere in the file, inside functions and type checks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def edges():
    """(unit, unit it imports), between units of the package."""
    names = {unit_of(file) for file, _ in files()} - {""}
    found = set()
    for file, tree in files():
        for module in imported(tree):
            parts = module.split(".")
            if parts[0] == "sde_toolkit" and len(parts) > 1:
                target = parts[1] if parts[1] in names else "the package itself"
                if unit_of(file) not in ("", target):
                    found.add((unit_of(file), target))
    return found


def loaded_after(statement):
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(run.stdout.split())


def test_the_package_loads_nothing_that_torch_does_not():
    extra = loaded_after("from sde_toolkit import VPSDE") - loaded_after("import torch")
    late = {"sympy", "mpmath"}  # which torch 2.4 itself imports with some of its own modules
    assert {name for name in extra if name not in sys.stdlib_module_names} - late == {"sde_toolkit"}


def test_an_sde_loads_its_own_room_alone():
    code = "from sde_toolkit import VPSDE\nimport sys\nprint(*[m for m in sys.modules if m.startswith('sde_toolkit.')])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    rooms = {name.split(".")[1] for name in run.stdout.split()}
    assert rooms == {"sde", "errors", "showing", "checks", "batching"}


def test_the_face_is_small_and_type_checkers_see_it():
    """About sixty names; the names that are loaded late are those that a type checker reads, and each is there."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert set(seen) == set(sde_toolkit.__all__)
    assert len(seen) <= 70
    for name, module in seen.items():
        found = getattr(sde_toolkit, name)
        assert found is (sde_toolkit.grids if name == "grids" else getattr(sys.modules[module], name))
    assert set(sde_toolkit.__all__) <= set(dir(sde_toolkit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sde_toolkit.nothing


def test_no_function_of_the_face_hides_a_module():
    """What has the name of a room or of a root module is that room or module."""
    modules = {file.stem for file in ROOT.glob("*.py")} | {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert modules & set(sde_toolkit.__all__) == {"grids"}


def test_every_room_has_a_rank_and_imports_run_left_to_right():
    units = {unit_of(file) for file, _ in files()} - {""}
    assert units - {"pretrained"} == set(RANK)
    inside = {(a, b) for a, b in edges() if b != "the package itself"}
    assert not {(a, b) for a, b in inside if RANK[a] < RANK[b]}
    assert ("sampling", "solvers") in edges()  # the parser sees the imports at all


def test_a_room_says_what_is_in_it_and_a_file_name_tells_its_room():
    """At most a dozen modules at the root; one line or two on each room; no file name in two rooms."""
    assert len(list(ROOT.glob("*.py"))) <= 12
    rooms = [file for file in ROOT.rglob("__init__.py") if file.parent != ROOT]
    for file in rooms:
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert said, file
        assert len(said.split("\n\n")[0].splitlines()) <= 3, file
    names = [file.name for file in ROOT.rglob("*.py") if file.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_no_unit_imports_the_package_that_imports_it():
    """`from sde_toolkit import X` inside the package would tie every module to all of them; the ends may."""
    assert {a for a, b in edges() if b == "the package itself"} <= {"cli", "jobs", "__main__"}


def test_imports_have_no_cycle_whatever_units_are_added():
    graph = {}
    for a, b in edges():
        graph.setdefault(a, set()).add(b)
    done, path = set(), []

    def visit(unit):
        assert unit not in path, f"cycle: {' -> '.join([*path[path.index(unit) :], unit])}"
        if unit in done:
            return
        path.append(unit)
        for target in graph.get(unit, ()):
            visit(target)
        path.pop()
        done.add(unit)

    for unit in sorted(graph):
        # Within one rank, `checkpoint` builds networks and time inputs; they know nothing of it.
        visit(unit)


def test_hydra_belongs_to_the_command_line():
    users = {
        unit_of(file) for file, tree in files() for m in imported(tree) if m.split(".")[0] in ("hydra", "omegaconf")
    }
    assert users == {"cli"}


def test_heavy_packages_are_imported_where_they_are_used_only():
    """At module level nobody imports what a plain installation of torch does not bring."""
    heavy = {"scipy", "torchdiffeq", "matplotlib", "accelerate", "yaml", "tqdm", "safetensors", "ot", "PIL"}
    for file, tree in files():
        if unit_of(file) == "cli":
            continue
        at_top = {
            m.split(".")[0]
            for node in tree.body
            for m in imported(ast.Module([node], []))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not at_top & heavy, file


def sde_names():
    return {name for name, value in vars(sde_toolkit.sde).items() if inspect.isclass(value) and issubclass(value, SDE)}


def concrete(module, base, protocols):
    """The classes of a room that nobody outside may ask for; ``protocols``: what anybody may."""
    found = {name for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)}
    return found - protocols


@pytest.mark.parametrize(
    ("room", "names"),
    [
        ("integrators", concrete(sde_toolkit.integrators, sde_toolkit.Integrator, {"Integrator", "DenseIntegrator"})),
        ("models", concrete(sde_toolkit.models, sde_toolkit.ScoreModel, {"ScoreModel", "Wrapper"})),
    ],
)
def test_nobody_asks_which_integrator_or_model_it_is(room, names):
    """What another room wants to know is a property that they declare. Commands may ask: they choose for people."""
    assert len(names) > 2
    for file, tree in files():
        if unit_of(file) in (room, "cli"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                asked = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node.args[1])}
                assert not asked & names, f"{file}:{node.lineno}"


def test_nobody_asks_which_sde_it_is():
    assert {"SDE", "VPSDE"} <= sde_names()
    for file, tree in files():
        if unit_of(file) == "sde":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                asked = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node.args[1])}
                assert not asked & sde_names(), f"{file}:{node.lineno}"
            if isinstance(node, ast.MatchClass):
                assert getattr(node.cls, "id", "") not in sde_names(), f"{file}:{node.lineno}"


def test_no_assert_stands_for_an_error():
    for file, tree in files():
        lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not lines, f"{file}: {lines}"
