"""Errors in the words of the shell: settings instead of arguments, commands instead of calls."""

from __future__ import annotations

import re

from sde_toolkit.cli.user_files import UserFileError
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.showing import shown

__all__ = ["in_shell_words", "one_line", "shell_remedy"]

_SETTINGS = {  # by their names in the library; other settings have one name
    "endpoint_n": "exact_flow.n",
    "endpoint_steps": "exact_flow.steps",
    "kid_subsets": "kid.subsets",
    "kid_subset_size": "kid.subset_size",
    "elbo_draws": "elbo.draws",
    "discrete_draws": "discrete.draws",
    "discrete_steps": "discrete.steps",
    "ends_n": "truncation.n",
    "ends": "truncation.ends",
    "nodes": "quadrature.nodes",
    "scale": "quadrature.scale",
    "weights_path": "extractor.weights_path",
    "max_dimension": "divergence.max_dimension",
    "probes": "divergence.probes",
    "budget": "budgets",
    "truths": "truth",
}

_VALUES = {"None": "null", "True": "true", "False": "false"}
_VALUE = re.compile(r"\b(None|True|False)\b")

_REMEDIES = [  # patterns of the library's remedies, and what to type instead
    (r"Use sde_toolkit\.(\w+)\(\), for example", r"Choose solver=\1, for example"),
    (r"Use \[(\d+), (\d+), (\d+)\], for example", r"Give budgets=[\1,\2,\3], for example"),
    (r", or give a Truth", ", or give my_file.py:my_function"),
    (r"Build it with event_shape=\.\.\.", "Add event_shape: [1, 28, 28], for example, to its model.yaml"),
    (r"Write one with calibrate\(\.\.\.\)\.save\(path\)", "Write one with sde-toolkit calibrate"),
    (r"Calibrate this model: calibrate\(model, \.\.\.\)", "Calibrate this model with sde-toolkit calibrate"),
    (r", or build a ScoreModel around your network yourself", ""),
    (r"Give a start with grid=\.\.\.", "Choose another solver"),
    (r"Use Hutchinson\(probes=\d+\), or ExactTrace\(max_dimension=(\d+)\) if you can wait",
     r"Choose divergence=hutchinson, or divergence=exact divergence.max_dimension=\1 if you can wait"),
    (r"Use ExactTrace\(\)", "Choose divergence=exact"),
    (r"Pass ExactTrace\(\) or Hutchinson\(probes=4\)", "Choose divergence=exact or divergence=hutchinson"),
    (r"Levels\((\d+), ([\d.]+), ([\d.]+)\) are", r"levels.count=\1 levels.low=\2 levels.high=\3 are"),
    (r"Pass Levels\(count, low, high\), Levels\(\) for 8 bits", "Give levels.count=256 for 8-bit data"),
    (r"levels=Levels\(\)", "levels.count=256"),
    (r"Use bits_per_dim\(model, x, levels\), which dequantises them", "Give levels.count=256 for 8-bit data"),
    (r"Pass grids\.(\w+)\([^)]*\), for example", r"Choose grid=\1, for example"),
    (r"Use ddim\(\), probability_flow\(\), Solver\(name, 0\.0, \.\.\.\)", "Choose solver=ddim or solver=heun"),
    (r"Use PerSample\(\), TorchDiffEq\(\), Scipy\(\) or a grid", "Choose solver=dopri5, or a grid"),
    (r"Pass GaussianPrior\.of_data\(model, data\).*", "Choose prior=standard or prior=gaussian."),
    (r"Pass solver=probability_flow\(PerSample\(\)\), too", "Choose solver=dopri5, too"),
    (r"or Exponential\(\) whose η-family has no such limit", "or another solver"),
    (r", such as Euler\(\) or Exponential\(\)", ", such as that of solver=euler_maruyama or solver=ddpm"),
    (r"Use more steps, a smaller eta, or Ancestral\(DPMSolver2\(\)\), which stays above",
     "Use a larger nfe, a smaller eta, or solver=dpm2_ancestral, which stays above"),
    (r"or give the model another time_input, for example ScaledTime\(\)", "or give the model another time_input"),
    (r"Say levels=256", "Give levels=256"),
    (r"\bPass (scalar t|values|times)\b", r"Choose \1"),
    (r"^Pass\b", "Give"),
    (r"\. Pass\b", ". Give"),
]  # fmt: skip

_ROW = re.compile(r"(solver|metric)(?:s\['(.+)'\]| '(.+)')")

_PYTHON = re.compile(
    r"\w\([^)]*\)|\bNone\b|\btorch\.|\*event|\bScoreModel\b|sde_toolkit\.|\(B,|\bmodel\.\w+\(|\bof your own\b"
)


def in_shell_words(error: SDEToolkitError, command: str) -> str:
    """The message, one line, with the setting's name and a remedy that can be typed after ``sde-toolkit command``."""
    text = str(error)
    remedy = getattr(error, "remedy", "")
    if remedy and not isinstance(error, UserFileError) and text.endswith(remedy):
        text = text[: len(text) - len(remedy)] + shell_remedy(remedy, command)
    if isinstance(error, ArgumentError):
        value = shown(error.value)
        start = f"{error.argument}={value}: "
        if text.startswith(start):
            value = value if isinstance(error.value, str) else _in_words_of_shell(value)
            setting = f"{_SETTINGS.get(error.argument, error.argument)}={value}"
            row = _ROW.fullmatch(error.argument)
            if row is not None:  # solvers['mine'], whose value is a function
                setting = f"{row[1]}={row[2] or row[3]}"
            text = f"{setting}: {text[len(start) :]}"
    return one_line(text)


def shell_remedy(remedy: str, command: str) -> str:
    """The remedy as something to type; where there is none, a pointer to the help of the command."""
    for pattern, words in _REMEDIES:
        remedy = re.sub(pattern, words, remedy)
    remedy = _in_words_of_shell(remedy)
    return f"See sde-toolkit {command} --help." if _PYTHON.search(remedy) else remedy


def _in_words_of_shell(text: str) -> str:
    """With null, true and false in place of Python's words."""
    return _VALUE.sub(lambda found: _VALUES[found[0]], text)


def one_line(text: str) -> str:
    """Without line breaks."""
    return " ".join(text.split())
