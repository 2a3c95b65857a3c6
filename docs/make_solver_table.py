"""Writes the tables of docs/solvers.md from the classes, with orders measured by the laws' own code.

python docs/make_solver_table.py            # rewrites the file
python docs/make_solver_table.py --check    # says what is out of date; tests/test_documents.py calls this
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "laws"))

from catalogue import PUBLIC_SDES, name  # noqa: E402
from test_orders import graded, measured_flow_order, measured_weak_order  # noqa: E402

from sde_toolkit import Solver, solvers  # noqa: E402

PAGE = ROOT / "docs" / "solvers.md"
SMOOTH = [sde for sde in PUBLIC_SDES if not hasattr(sde, "betas")]
COUNTS = (16, 32, 64)
TOLERANCE = 0.1  # of a measured order, between this machine and that on which the page was written


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


def measured(solver: Solver, sde) -> float | None:  # type: ignore[no-untyped-def]
    """Flow order for η = 0, weak order of mean and covariance for η > 0; None where there is no fixed step."""
    integrator = solver.integrator
    if integrator.evals_per_step is None or (solver.eta == 0 and integrator.order is None):
        return None
    if not integrator.draws_noise(solver.eta):
        return float(measured_flow_order(sde, integrator, graded, COUNTS))
    if integrator.weak_order == 0:
        return None
    return float(measured_weak_order(sde, integrator, solver.eta, graded, COUNTS))


def tables() -> tuple[str, str]:
    """The table of solvers, and that of measured orders, SDE × solver."""
    rows = ["| solver | equation | integrator | order | strong, weak | evaluations per step | noise | reference |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    orders = ["| | " + " | ".join(name(sde) for sde in SMOOTH) + " |", "|---|" + "---|" * len(SMOOTH)]
    for key, solver, line in presets():
        i = solver.integrator
        noise = i.draws_noise(solver.eta)
        sde_orders = ", ".join(f"{v:g}" for v in (i.strong_order, i.weak_order) if v is not None)
        rows.append(
            f"| `{key}` | η = {solver.eta:g} | `{type(i).__name__}` | {_text(i.order)} | {sde_orders or '–'} | "
            f"{i.evals_per_step or 'adaptive'} | {'yes' if noise else 'no'} | {reference(line)} |"
        )
        found = [measured(solver, sde) for sde in SMOOTH]
        if found[0] is not None:
            orders.append(f"| `{key}` | " + " | ".join(f"{v:.1f}" for v in found) + " |")
    return "\n".join(rows), "\n".join(orders)


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def written(page: str) -> str:
    """The page with its generated parts renewed."""
    for mark, table in zip(("solvers", "orders"), tables(), strict=True):
        page = re.sub(
            rf"(<!-- generated: {mark} -->\n).*?(\n<!-- end -->)",
            lambda m, table=table: m[1] + table + m[2],  # type: ignore[misc]
            page,
            flags=re.S,
        )
    return page


def out_of_date(page: str, renewed: str) -> list[str]:
    """Lines that differ by more than the tolerance of a measured order."""
    old, new = page.splitlines(), renewed.splitlines()
    if len(old) != len(new):
        return [f"{len(old)} lines, not {len(new)}"]
    number = re.compile(r"(?<=\| )-?\d+\.\d(?= \|)")
    wrong = []
    for a, b in zip(old, new, strict=True):
        numbers = zip(number.findall(a), number.findall(b), strict=False)
        if number.sub("#", a) != number.sub("#", b) or any(abs(float(u) - float(v)) > TOLERANCE for u, v in numbers):
            wrong.append(f"- {a}\n+ {b}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    renewed = written(page)
    if check:
        wrong = out_of_date(page, renewed)
        if wrong:
            raise SystemExit(
                "docs/solvers.md is out of date: run python docs/make_solver_table.py\n" + "\n".join(wrong)
            )
    else:
        PAGE.write_text(renewed, encoding="utf-8")
