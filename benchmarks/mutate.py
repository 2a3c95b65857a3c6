"""Do the tests notice small mistakes? Mutants drawn by a seed over the whole package, and the tests that reach them.

    pip install pytest-cov
    python benchmarks/mutate.py map                      # the whole suite once: which test runs which line
    python benchmarks/mutate.py run --seed 12 --n 50     # draw, run, print the table

A mutant is one change in one expression: a sign, an operator, a comparison, a condition, a number (an integer by one, a
float by 1 %), an index. Texts, annotations and messages are left alone. A file is drawn first, then a place in it, so
that short chapters are tried as often as long ones. A mutant is caught if one of the tests that run its line fails or
hangs. What survives is named; a person decides whether it is equivalent.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "sde_toolkit"
PLUGIN = """
import json, os
times = {}
def pytest_runtest_logreport(report):
    if report.when == "call":
        times[report.nodeid] = report.duration
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        json.dump(times, open(os.environ["MUTATE_TIMES"], "w"))
"""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change: the text of an expression, by its place in the file, and what stands there instead."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def apply(self, text: str) -> str:
        """The file with the change made; offsets count UTF-8 bytes, as the parser's do."""
        data = text.encode()
        return (data[: self.start] + self.after.encode() + data[self.end :]).decode()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{self.before}` → `{self.after}`"


def mutants(file: Path) -> Iterator[Mutant]:
    """Every change that can be made in a file."""
    text = file.read_text(encoding="utf-8")
    starts = [0]
    for row in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    tree = ast.parse(text)
    spared = _spared(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.expr) or node in spared or node.end_lineno != node.lineno:
            continue
        for changed in _changes(node):
            before, after = ast.unparse(node), ast.unparse(ast.fix_missing_locations(changed))
            if before != after:
                start = starts[node.lineno - 1]
                place = start + node.col_offset, start + int(node.end_col_offset or 0)
                yield Mutant(str(file.relative_to(ROOT)), node.lineno, *place, before, f"({after})")


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS and not _is_text(node):
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)  # type: ignore[arg-type]
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)  # type: ignore[list-item]
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)  # type: ignore[arg-type]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is float:
        yield ast.Constant(node.value * 1.01 if node.value else 0.01)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _spared(tree: ast.Module) -> set[ast.AST]:
    """Annotations, what stands inside a raise, f-strings, and module-level lists of names."""
    spared: set[ast.AST] = set()
    for node in ast.walk(tree):
        inside: list[ast.AST | None] = []
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            inside = [node.annotation]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = [node.returns]
        elif isinstance(node, (ast.Raise, ast.JoinedStr)):
            inside = [node]
        for part in inside:
            spared |= set(ast.walk(part)) if part is not None else set()
    return spared


def draw(seed: int, n: int) -> list[Mutant]:
    """``n`` mutants: files in a random order, one place in each, and again from the start if there are too few."""
    rng = random.Random(seed)
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    places = {file: found for file in files if (found := list(mutants(file)))}
    drawn: list[Mutant] = []
    while len(drawn) < n:
        order = list(places)
        rng.shuffle(order)
        for file in order[: n - len(drawn)]:
            drawn.append(rng.choice(places[file]))
    return drawn


def make_map(folder: Path) -> None:
    """Run the suite once under coverage; leaves which test ran which line, and how long each took."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mutate_plugin.py").write_text(PLUGIN)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "MUTATE_TIMES": str(folder / "times.json"),
        "COVERAGE_FILE": str(folder / "coverage"),
    }
    options = [f"--cov={PACKAGE}", "--cov-context=test", "--cov-report=", "-p", "mutate_plugin"]
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, env=environment, check=False)


def tests_of(mutant: Mutant, folder: Path) -> list[str]:
    """The tests that run the mutant's line, those of quick files first."""
    from coverage import CoverageData

    data = CoverageData(str(folder / "coverage"))
    data.read()
    times: dict[str, float] = json.loads((folder / "times.json").read_text())
    contexts = data.contexts_by_lineno(str(ROOT / mutant.file)).get(mutant.line, [])
    found = {context.rsplit("|", 1)[0] for context in contexts if "|" in context}
    if not found:  # run at import, or in processes of their own: every test of the room, and of the command line
        room = Path(mutant.file).parent.name
        found = {test for test in times if test.startswith((f"tests/{room}/", "tests/cli/"))}
    cost: dict[str, float] = {}
    for test in found:
        cost[test.split("::")[0]] = cost.get(test.split("::")[0], 0.0) + times.get(test, 0.0)
    return sorted(found, key=lambda test: (cost[test.split("::")[0]], test))


def judge(mutant: Mutant, folder: Path, limit: float) -> tuple[Mutant, str, float]:
    """Caught by which test, or survived, in a copy of the tree."""
    tests, start = tests_of(mutant, folder), time.monotonic()
    if not tests:
        return mutant, "no test runs it", 0.0
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "*_cache", "__pycache__", ".gpu", "outputs"))
        file = tree / mutant.file
        file.write_text(mutant.apply(file.read_text(encoding="utf-8")), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        verdict = "survived"
        for first in range(0, len(tests), 200):
            options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", "-rf"]
            command = [sys.executable, "-m", "pytest", *options, *tests[first : first + 200]]
            try:
                done = subprocess.run(
                    command, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit, check=False
                )
            except subprocess.TimeoutExpired:
                verdict = "caught: hangs"
                break
            if done.returncode not in (0, 5):
                told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                verdict = "caught: " + (told[0].split(" - ")[0][:140] if told else f"status {done.returncode}")
                break
    return mutant, verdict, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "draw", "run"])
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--only", type=int, nargs="*", help="positions in the draw, to run again")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds until a mutant counts as hanging")
    parser.add_argument("--folder", type=Path, default=Path("outputs/mutants"), help="where the map lies")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.what == "map":
        make_map(folder)
        return
    chosen = list(enumerate(draw(arguments.seed, arguments.n)))
    chosen = [pair for pair in chosen if arguments.only is None or pair[0] in arguments.only]
    if arguments.what == "draw":
        for i, mutant in chosen:
            print(i, mutant)
        return
    with concurrent.futures.ThreadPoolExecutor(arguments.processes) as pool:
        jobs = {pool.submit(judge, mutant, folder, arguments.limit): i for i, mutant in chosen}
        caught = 0
        for job in concurrent.futures.as_completed(jobs):
            mutant, verdict, seconds = job.result()
            caught += verdict.startswith("caught")
            print(f"{jobs[job]:3d} {seconds:5.0f} s  {mutant}  {verdict}", flush=True)
        print(f"{caught} of {len(chosen)} caught (seed {arguments.seed})")


if __name__ == "__main__":
    main()
