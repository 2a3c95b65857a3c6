"""Do the tests notice small mistakes? Mutants drawn by a seed over the whole package, and the tests that reach them.

    python benchmarks/mutate.py map --seed 12 --n 50     # the whole suite once: which test evaluates which expression
    python benchmarks/mutate.py run --seed 12 --n 50     # the same draw: run the tests of each, print the table

A mutant is one change in one expression: a sign, an operator, a comparison, a condition, a number (an integer by one,
a float by 1 %), an index. Texts, annotations and messages are left alone. A file is drawn first, then a place in it,
so that short chapters are tried as often as long ones. The map is made on a copy of the tree in which each drawn
expression notes the test that evaluates it, in processes that a test starts, too. A mutant is caught if one of those
tests fails or hangs. What survives is named; a person decides whether it is equivalent.
"""

from __future__ import annotations

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from report import Report, parser

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "sde_toolkit"
PLUGIN = """
import json, os
seen = set()
times = {}
def hit(i, value):
    test = os.environ.get("PYTEST_CURRENT_TEST", "import").rsplit(" (", 1)[0]
    if (i, test) not in seen:
        seen.add((i, test))
        with open(os.path.join(os.environ["MUTATE_FOLDER"], f"hits-{os.getpid()}"), "a") as file:
            print(i, test, file=file)
    return value
def pytest_runtest_logreport(report):
    if report.when == "call":
        times[report.nodeid] = report.duration
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        with open(os.path.join(os.environ["MUTATE_FOLDER"], "times.json"), "w") as file:
            json.dump(times, file)
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

    def note(self, text: str, i: int) -> str:
        """The file with the expression as it was, and a note of the test that evaluates it."""
        data = text.encode()
        inside = data[self.start : self.end].decode()
        return Mutant(
            self.file, self.line, self.start, self.end, "", f"__import__('mutate_plugin').hit({i}, ({inside}))"
        ).apply(text)

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
    """Annotations, what stands inside a raise, f-strings, and the patterns of a match."""
    spared: set[ast.AST] = set()
    for node in ast.walk(tree):
        inside: list[ast.AST | None] = []
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            inside = [node.annotation]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = [node.returns]
        elif isinstance(node, (ast.Raise, ast.JoinedStr, ast.MatchValue)):
            inside = [node]
        for part in inside:
            spared |= set(ast.walk(part)) if part is not None else set()
    return spared


def draw(seed: int, n: int, within: list[str]) -> list[Mutant]:
    """``n`` mutants: files in a random order, one place in each, and again from the start if there are too few."""
    rng = random.Random(f"{seed} {within}")
    files = sorted({file for part in within for file in (ROOT / PACKAGE).rglob(part)})
    places = {file: found for file in files if (found := list(mutants(file)))}
    drawn: list[Mutant] = []
    while len(drawn) < n:
        for file in rng.sample(list(places), min(n - len(drawn), len(places))):
            drawn.append(rng.choice(places[file]))
            last = drawn[-1]
            places[file] = [place for place in places[file] if place.end <= last.start or place.start >= last.end]
    return drawn


@contextmanager
def copy_of_tree() -> Iterator[Path]:
    """The working tree, without what git and the tools keep there."""
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "*_cache", "__pycache__", ".gpu", "outputs"))
        yield tree


def make_map(chosen: list[tuple[int, Mutant]], folder: Path) -> None:
    """Run the suite once; leaves which test evaluates which of the drawn expressions, and how long each test took."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "mutate_plugin.py").write_text(PLUGIN)
    with copy_of_tree() as tree:
        for i, mutant in sorted(chosen, key=lambda pair: -pair[1].start):  # from the end, so that places stay
            file = tree / mutant.file
            file.write_text(mutant.note(file.read_text(encoding="utf-8"), i), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{folder}", "MUTATE_FOLDER": str(folder)}
        subprocess.run([sys.executable, "-m", "pytest", "-p", "mutate_plugin"], cwd=tree, env=environment, check=False)


def files_of(i: int, mutant: Mutant, folder: Path) -> list[str]:
    """The files of the tests that evaluate the mutant's expression: its own room's first, then the quick ones.

    Whole files, since the tests of a module share its fixtures, and the examples of a page need one another.
    """
    cost: dict[str, float] = {}
    for test, seconds in json.loads((folder / "times.json").read_text()).items():
        cost[test.split("::")[0]] = cost.get(test.split("::")[0], 0.0) + seconds
    notes = [note.split(" ", 1) for file in folder.glob("hits-*") for note in file.read_text().splitlines()]
    found = {test.split("::")[0] for number, test in notes if int(number) == i} & set(cost)
    room = Path(mutant.file).parent.name
    if not found:  # evaluated at import only: every test of the room, of the laws, and of the command line
        found = {file for file in cost if file.startswith((f"tests/{room}/", "tests/laws/", "tests/cli/"))}
    own = (f"tests/{room}/", f"test_{Path(mutant.file).stem}")
    return sorted(found, key=lambda file: (not any(part in file for part in own), cost[file], file))


def judge(i: int, mutant: Mutant, folder: Path, limit: float) -> tuple[str, float]:
    """Caught by which test, or survived, in a copy of the tree; and the seconds it took."""
    files, start = files_of(i, mutant, folder), time.monotonic()
    with copy_of_tree() as tree:
        file = tree / mutant.file
        file.write_text(mutant.apply(file.read_text(encoding="utf-8")), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        for first in range(0, len(files), 3):
            options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", "-rf"]
            command = [sys.executable, "-m", "pytest", *options, *files[first : first + 3]]
            try:
                done = subprocess.run(
                    command, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit, check=False
                )
            except subprocess.TimeoutExpired:
                return "caught: hangs", time.monotonic() - start
            if done.returncode not in (0, 5):
                told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                said = told[0].split(" - ")[0][:140] if told else f"status {done.returncode}"
                if told and not passes(told[0].split(" ")[1]):
                    said = f"{said}, which fails without the change, too"
                return f"caught: {said}", time.monotonic() - start
            if time.monotonic() - start > limit and first + 3 < len(files):
                return f"survived the first {first + 3} of {len(files)} files of tests", time.monotonic() - start
    return f"survived all {len(files)} files of tests", time.monotonic() - start


def passes(test: str) -> bool:
    """Whether a test passes on the tree as it is."""
    file = test if ".py::" in test else test.split("::")[0]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 0


def main() -> None:
    words = parser(__doc__)
    words.add_argument("what", choices=["map", "draw", "run"])
    words.add_argument("--seed", type=int, default=12)
    words.add_argument("--n", type=int, default=50)
    words.add_argument("--also", type=int, default=0, help="so many more, drawn from the files of --within")
    words.add_argument("--within", nargs="*", default=[], help="patterns of file names below the package")
    words.add_argument("--only", type=int, nargs="*", help="positions in the draw, to run again")
    words.add_argument("--processes", type=int, default=2)
    words.add_argument(
        "--limit",
        type=float,
        default=300.0,
        help="seconds until three files count as hanging, and after which no more are tried",
    )
    words.add_argument("--folder", type=Path, default=Path("outputs/mutants"), help="the map's folder; made anew")
    arguments = words.parse_args()
    folder = arguments.folder.resolve()
    drawn = draw(arguments.seed, arguments.n, ["*.py"]) + draw(arguments.seed, arguments.also, arguments.within)
    chosen = list(enumerate(drawn))
    if arguments.what == "map":
        make_map(chosen, folder)
        return
    chosen = [pair for pair in chosen if arguments.only is None or pair[0] in arguments.only]
    if arguments.what == "draw":
        for i, mutant in chosen:
            print(i, mutant)
        return
    report = Report(arguments.results, "mutations", "Seeded mutations: which the tests notice")
    report.table("", "mutant", "verdict", "s")
    with concurrent.futures.ThreadPoolExecutor(arguments.processes) as pool:
        jobs = {pool.submit(judge, i, mutant, folder, arguments.limit): (i, mutant) for i, mutant in chosen}
        caught = 0
        for job in concurrent.futures.as_completed(jobs):
            (i, mutant), (verdict, seconds) = jobs[job], job.result()
            caught += verdict.startswith("caught")
            report.row(i, mutant, verdict, f"{seconds:.0f}")
    report.line(f"{caught} of {len(chosen)} caught (seed {arguments.seed}).")
    report.save()


if __name__ == "__main__":
    main()
