"""What a benchmark found, printed and written to benchmarks/results/NAME.md with how it was found.

Not in here: any measurement.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import torch

__all__ = ["Report", "parser"]

ROOT = Path(__file__).resolve().parent.parent


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the program's docstring; it knows ``--results``, the folder of the results files."""
    made = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results file"
    )
    return made


class Report:
    """Lines and tables, printed as they come. :meth:`save` writes them to ``folder/name.md``.

    Args:
        title: what was measured, in one line.
        packages: other libraries whose versions belong to the result.
    """

    def __init__(self, folder: Path, name: str, title: str, packages: Iterable[str] = ()) -> None:
        self.file, self.title, self.packages = folder / f"{name}.md", title, list(packages)
        self.blocks: list[str | list[list[str]]] = []
        self.began, self.load = time.monotonic(), os.getloadavg()[0]
        print(title)

    def line(self, text: str) -> None:
        """A paragraph."""
        self.blocks.append(text)
        print(text, flush=True)

    def table(self, *headings: str) -> None:
        """A new table; :meth:`row` fills it."""
        self.blocks.append([list(headings)])
        print(" | ".join(headings), flush=True)

    def row(self, *cells: object) -> None:
        """A row of the table that was begun last."""
        texts = [str(cell) for cell in cells]
        rows = self.blocks[-1]
        if isinstance(rows, str) or len(texts) != len(rows[0]):
            raise ValueError(f"no table of {len(texts)} columns was begun")
        rows.append(texts)
        print(" | ".join(texts), flush=True)

    def save(self) -> None:
        """Write the file."""
        parts = [f"# {self.title}", f"`{command()}`", ", ".join(self._circumstances())]
        parts += [block if isinstance(block, str) else markdown(block) for block in self.blocks]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def _circumstances(self) -> list[str]:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in self.packages]
        seconds = time.monotonic() - self.began
        return [
            f"{datetime.now(timezone.utc):%Y-%m-%d}",
            f"commit {commit()}",
            f"torch {torch.__version__}",
            *versions,
            f"{torch.get_num_threads()} of {len(os.sched_getaffinity(0))} cores",
            f"load {self.load:.1f} at the start",
            f"{seconds:.0f} s",
        ]


def markdown(rows: list[list[str]]) -> str:
    """An aligned table; the first row holds the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruler = ["-" * width for width in widths]
    lines = [
        [cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (rows[0], ruler, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def command() -> str:
    """How this program was called, from the root of the repository and without paths of this machine."""
    words, given = ["python", Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix()], iter(sys.argv[1:])
    for word in given:
        if word == "--results":
            next(given)
        elif not word.startswith("--results="):
            words.append(Path(word).name if Path(word).is_absolute() else word)
    return shlex.join(words)


def commit() -> str:
    """The commit of this tree, and whether files outside the results differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + " with changes" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
