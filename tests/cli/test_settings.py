"""Whatever is typed after a command works, or one line says before any work what is wrong, in words of the shell."""

import ast
import io
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sde_toolkit
from sde_toolkit import MLP, VPSDE, ScoreModel
from sde_toolkit.cli.speech import in_shell_words, shell_remedy
from sde_toolkit.errors import ArgumentError

PYTHON = re.compile(r"\w\([^)]*\)|\bNone\b|\bTrue\b|\bFalse\b|\btorch\.|\*event|ScoreModel|\bTruth\b|sde_toolkit\.")
QUIET = ["progress=false", "output=run", "threads=1"]


# Remedies


def remedies():
    """Every remedy that is spelled out in a ``raise`` of the package, X for what is filled in."""
    for file in sorted(Path(sde_toolkit.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and len(node.exc.args) > 2:
                last = node.exc.args[-1]
                if isinstance(last, ast.JoinedStr):
                    pieces = (part.value if isinstance(part, ast.Constant) else "X" for part in last.values)
                    yield "".join(map(str, pieces))
                elif isinstance(last, ast.Constant) and isinstance(last.value, str):
                    yield last.value


def test_no_remedy_speaks_python_to_the_shell_and_most_say_what_to_do():
    said = {remedy: shell_remedy(remedy, "sample") for remedy in remedies()}
    assert len(said) > 300
    assert not [words for words in said.values() if PYTHON.search(words)]
    assert sum(words == "See sde-toolkit sample --help." for words in said.values()) < len(said) / 4
    assert all(words == remedy for remedy, words in said.items() if "Choose" in remedy and not PYTHON.search(remedy))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ArgumentError("kid_subsets", None, "no", "Use None for all."), "kid.subsets=null: no. Use null for all."),
        (ArgumentError("batch_size", True, "no", "Pass a number."), "batch_size=true: no. Give a number."),
        (ArgumentError("labels", "None", "no", "Pass one."), "labels='None': no. Give one."),
        (ArgumentError("x", (None,), "a\nb", "Pass torch.zeros(3)."), "x=(null,): a b. See sde-toolkit sample --help."),
        (ArgumentError("x=1: all of the message"), "x=1: all of the message"),
    ],
)  # fmt: skip
def test_values_and_names_are_those_of_the_shell(error, said):
    assert in_shell_words(error, "sample") == said


# Single abuses


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["threads=abc"], "threads='abc'"),
        (["threads=1.5"], "threads=1.5"),
        (["threads=100000"], "threads=100000"),
        (["threads=0"], "threads=0"),
        (["device=meta"], "device='meta'"),
        (["device=1.5"], "device=1.5"),
        (["device=null"], "device=null"),
        (["nfe=100000000000"], "nfe=100000000000"),
        (["n=1000000000000"], "n=1000000000000: its 4000000000000 numbers need 1.49e+04 GiB"),
        (["seed=100000000000000000000"], "seed=1"),
        (["output=null"], "output=null"),
        (["output="], "output=''"),
        (["output=/dev/null"], "output='/dev/null': a file of that name is there"),
        (["output=/dev/null/x"], "/dev/null is a file"),
        (["output=" + "a" * 300], "File name too long"),
        (["solver=null"], "solver=null"),
        (["solver=ddim", "solvers.ddim.eta=1000000000000000000000"], "eta=1e+21: η² (1 − r²) reaches"),
        (["solver=ddpm", "solvers.ddpm._target_=sde_toolkit.euler_maruyama", "+solvers.ddpm.eta=1e200"], "its square"),
        (["solver=nope"], "Available options"),
        (["model=3"], "checkpoint '3'"),
        (["progress=1"], "progress=1: neither true nor false"),
    ],
)
def test_abuses_of_a_command_are_named(command, tmp_path, words, said):
    status, out, err = command("sample", "model=mixture", "n=2", "nfe=2", *QUIET, *words)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


SWITCHES = {
    "sample": ["progress"],
    "compare": ["progress"],
    "calibrate": ["progress", "tune_weights"],
    "likelihood": ["progress"],
    "evaluate": ["progress", "extractor.antialias"],
    "train": ["progress", "options.compile", "options.cosine_decay", "model.learned_variance"],
}
SHORT = {
    "evaluate": ["extractor=inception", "samples=mixture", "n=4"],
    "train": ["data=two_moons", "network=mlp", "options.steps=1"],
    "sample": ["model=mixture", "n=2", "nfe=2"],
}


@pytest.mark.parametrize(
    ("name", "switch"), [(name, switch) for name, several in SWITCHES.items() for switch in several]
)
def test_only_true_and_false_are_true_and_false(command, tmp_path, name, switch):
    pytest.importorskip("accelerate")
    for word in ("no", "off", "yes", "0", "null") if name == "sample" else ("no",):
        status, _, err = command(name, *QUIET, *SHORT.get(name, ["model=mixture"]), f"{switch}={word}")
        assert status == 2, word
        assert f"{switch.rpartition('.')[2]}=" in err
        assert "neither true nor false" in err
    assert not list(tmp_path.rglob("*.npz"))


def test_a_list_of_one_calibration_needs_no_brackets(command):
    status, _, err = command("compare", "model=mixture", *QUIET, "calibrations=runs/c.json")
    assert status == 2
    assert "'runs/c.json'" in err


@pytest.mark.parametrize("name", ["mixture", "mnist", "digits"])
def test_a_folder_without_a_model_hides_no_model(tmp_path, monkeypatch, command, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "train-images-idx3-ubyte").touch()
    words = ["n=2", "nfe=2", *QUIET]
    assert command("sample", f"model={name}", *words)[0] == 0
    few = ["n=4", "nfe=2", "reference.n=20", "output=judged"]
    status, _, err = command("evaluate", f"samples={name}", *QUIET, *few)
    assert status == 0, err


def test_a_folder_with_a_model_is_meant(tmp_path, command):
    torch.manual_seed(0)
    ScoreModel(MLP(event_shape=(3,), width=8, depth=1), VPSDE(), event_shape=(3,)).save_pretrained(tmp_path / "mnist")
    status, out, err = command("sample", "model=mnist", "n=2", "nfe=2", *QUIET)
    assert status == 0, err
    assert "shape (3,)" in out


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("compare", "ascii"), ("likelihood", "ascii"), ("likelihood", "cp1252"), ("calibrate", "ascii")],
)
def test_a_terminal_that_lacks_letters_ends_no_command(tmp_path, monkeypatch, name, encoding):
    """The tables have σ, λ, − and ≈; files are UTF-8 whatever the terminal is."""
    from sde_toolkit.cli.main import main

    monkeypatch.chdir(tmp_path)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, terminal)
    monkeypatch.setattr(sys, "argv", [])
    main([name, *BASE[name], "progress=false", "output=é≈"])
    terminal.flush()
    assert b"?" in terminal.buffer.getvalue()
    assert "é≈" in (tmp_path / "é≈" / "config.yaml").read_text(encoding="utf-8")
    if name == "compare":
        assert "≈" in (tmp_path / "é≈/report.html").read_text(encoding="utf-8")


def test_errors_of_the_users_own_code_are_shown_as_they_are(command, tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text("def broken():\n    return {}['missing']\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [
        "sample",
        "model=mixture",
        "n=2",
        "nfe=2",
        *QUIET,
        "+solvers.own._target_=own_parts.broken",
        "~solvers.ddim",
    ]
    with pytest.raises(KeyError, match="missing"):
        command(*words)
    status, _, err = command(*words, "+solvers.own.eta=3")
    assert status == 2
    assert "unexpected keyword argument 'eta'" in err


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        ("matplotlib", ["sample", "model=mixture", "n=2", "nfe=2"]),
        ("matplotlib", ["compare", "model=mixture"]),
        ("jinja2", ["likelihood", "model=mixture"]),
        ("tqdm", ["sample", "model=mixture", "progress=true"]),
        ("tqdm", ["compare", "model=mixture", "progress=true"]),
        ("tqdm", ["likelihood", "model=mixture", "progress=true"]),
        ("tqdm", ["calibrate", "model=mixture", "progress=true"]),
        ("tqdm", ["evaluate", "samples=mixture", "n=4", "progress=true"]),
        ("torchmetrics.image.fid", ["evaluate", "samples=mixture", "n=4", "metrics=[fid]"]),
    ],
)
def test_a_package_that_is_missing_is_found_before_the_work(command, tmp_path, monkeypatch, hidden, words):
    for module in [name for name in sys.modules if name == hidden or name.startswith(f"{hidden}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, hidden, None)
    calls = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append(1))
    try:
        status, _, err = command(*words[:1], *QUIET, *words[1:])
    finally:
        handle.remove()
    assert status == 2
    assert "pip install" in err
    assert not calls
    assert not list(tmp_path.iterdir())


# Many abuses at once

NUMBERS = ["null", "0", "-1", "1", "2", "1.5", "1e3", "100000000000", "1000000000000000000000", "nan", "inf"]
WORDS = ["abc", "true", "no", "[1,2]", "[]", "{a:1}", "''", "é", "???", "a=b"]
ANY = st.sampled_from([*NUMBERS, *WORDS])


def anything(names):
    return dict.fromkeys(names.split(), ANY)


EVERY = anything("seed batch_size n nfe weights device threads progress") | {
    "model": st.sampled_from(["tiny", "nowhere", "s.npz", "null", "[a]", "{path:tiny}"]),
    "solver": st.sampled_from(["ddim", "ddpm", "auto", "heun", "nope", "[ddim,ddpm]", "[]", "null", "ddpm_learned"]),
}
GRIDS = {"grid": st.sampled_from(["uniform", "karras", "discrete", "nope", "[uniform,karras]", "[]"])}
TABLE = {
    "sample": EVERY | GRIDS | anything("class labels first_index solvers.ddim.eta grids.uniform.end"),
    "compare": EVERY
    | GRIDS
    | anything("class labels budgets calibrations n_real features exact_flow.n exact_flow.steps"),
    "calibrate": EVERY | anything("method tune_weights time_limit"),
    "likelihood": EVERY
    | GRIDS
    | anything("levels.count levels.low end quadrature.nodes quadrature.scale detail draws prior elbo.draws chunk")
    | anything("discrete.steps discrete.draws truncation.n truncation.ends resume divergence"),
    "bench": {"solver": EVERY["solver"]} | anything("truth budgets join threads device progress"),
    "evaluate": EVERY
    | anything("class labels samples key metrics levels reference.split reference.n reference.seed kid.subsets")
    | anything("kid.subset_size neighbours against extractor"),
}
BASE = {
    "sample": ["model=mixture", "n=3", "nfe=4"],
    "compare": ["model=mixture", "n=4", "n_real=20", "budgets=[4]", "solver=ddim", "exact_flow.n=2"],
    "calibrate": ["model=mixture", "nfe=3", "n=8", "time_limit=1", "solver=ddim", "strategy=search"],
    "likelihood": ["model=mixture", "n=3", "nfe=4", "quadrature.nodes=3", "elbo.draws=2", "discrete.steps=0",
                   "truncation.n=0", "chunk=2"],
    "bench": ["truth=t.py:truth", "budgets=[3]", "solver=ddim"],
    "evaluate": ["samples=s.npz", "data=array", "data.path=r.npy", "reference.split=train", "n=5"],
}  # fmt: skip


TRUTH = """
from sde_toolkit import VPSDE, gaussian
from sde_toolkit.suite import Truth

def truth():
    return Truth("t", gaussian([0.0], VPSDE(), std=1.0), n=16)
"""


@st.composite
def lines(draw):
    name = draw(st.sampled_from(sorted(TABLE)))
    keys = draw(st.lists(st.sampled_from(sorted(TABLE[name])), min_size=1, max_size=2, unique=True))
    return [name, *BASE[name], "progress=false", *(f"{key}={draw(TABLE[name][key])}" for key in keys)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abuse")
    torch.manual_seed(0)
    model = ScoreModel(MLP(event_shape=(2,), width=8, depth=1), VPSDE(), event_shape=(2,))
    model.save_pretrained(folder / "tiny")
    rng = np.random.default_rng(0)
    np.savez(folder / "s.npz", x=rng.normal(size=(20, 2)).astype(np.float32))
    np.save(folder / "r.npy", rng.normal(size=(50, 2)))
    (folder / "t.py").write_text(TRUTH)
    return folder


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines(), st.integers(0, 10**9))
def test_every_command_works_or_says_in_one_line_why_not(place, monkeypatch, capsys, words, number):
    from sde_toolkit.cli.main import main

    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["sde-toolkit"])
    before, threads = {*place.iterdir()}, torch.get_num_threads()
    output = f"o{number}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main([*words, f"output={output}"])
        status = 0
    except SystemExit as stop:
        status = stop.code
    finally:
        torch.set_num_threads(threads)
    err = capsys.readouterr().err
    assert status in (0, 2), words
    if status == 2:
        *bars, err = err.splitlines()
        assert err.startswith("error: "), words
        assert all("it/s" in bar or not bar for bar in bars), words
        assert not PYTHON.search(re.sub(r"'[^']*'", "", err)), words
        assert {*place.iterdir()} == before, words


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "samples=s.npz", "data=array", "data.path=r.npy", "reference.split=train", "n=5", "metrics=5"],
        ["evaluate", "samples=s.npz", "data=array", "data.path=r.npy", "reference.split=train", "n=5", "metrics=1.5"],
        ["train", "experiment=two_moons", "trackers=5"],
    ],
    ids=lambda words: words[-1],
)
def test_a_number_where_a_list_of_names_is_meant_is_refused_by_name(words, command, tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 2))
    np.savez(tmp_path / "s.npz", x=rows.astype(np.float32))
    np.save(tmp_path / "r.npy", rows)
    status, _, err = command(*words, "progress=false", "output=o")
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {words[-1]}")
