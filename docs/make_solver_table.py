"""Writes the table of docs/solvers.md from the classes, with their declared orders. tests/laws measures the orders.

python docs/make_solver_table.py            # rewrites the file
python docs/make_solver_table.py --check    # says what is out of date; tests/test_documents.py calls this
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from generated_table import renew, with_table

from sde_toolkit import Solver, solvers

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "solvers.md"


def presets() -> list[tuple[str, Solver, str]]:
    """(name, solver, first line of the docstring) of every public preset."""
    found = []
    for key in solvers.__all__:
        function = getattr(solvers, key)
        if inspect.isfunction(function):
            found.append((key, function(), (inspect.getdoc(function) or "").splitlines()[0]))
    return found


def reference(line: str) -> str:
    """The paper and the equation: the last parenthesis of the docstring's first line that names a year."""
    cited = [
        c for c in re.findall(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)", line) if re.search(r"\b1[6-9]\d\d|\b20\d\d", c)
    ]
    if not cited:
        remedy = "End the first line of its docstring with (Author year) or (Author year, equation)."
        raise SystemExit(f"no reference in: {line} {remedy}")
    return cited[-1]


def table() -> str:
    """The table of solvers."""
    rows = ["| solver | equation | integrator | order | strong, weak | evaluations per step | noise | reference |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for key, solver, line in presets():
        i = solver.integrator
        noise = i.draws_noise(solver.eta)
        sde_orders = ", ".join(f"{v:g}" for v in (i.strong_order, i.weak_order) if v is not None)
        rows.append(
            f"| `{key}` | η = {solver.eta:g} | `{type(i).__name__}` | {_text(i.order)} | {sde_orders or '–'} | "
            f"{i.evals_per_step or 'adaptive'} | {'yes' if noise else 'no'} | {reference(line)} |"
        )
    return "\n".join(rows)


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def written(page: str) -> str:
    """The page with its generated table renewed."""
    return with_table(page, "solvers", table())


if __name__ == "__main__":
    renew(__doc__, PAGE, written)
