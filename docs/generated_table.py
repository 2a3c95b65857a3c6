"""A table of a page that a program writes: it stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["renew", "with_table"]


def with_table(page: str, name: str, table: str) -> str:
    """The text of a page with this table in the place of its present one."""
    place = rf"(<!-- generated: {name} -->\n).*?(\n<!-- end -->)"
    return re.sub(place, lambda found: found[1] + table + found[2], page, flags=re.S)


def renew(documentation: str | None, file: Path, written: Callable[[str], str]) -> None:
    """Write the page again, or with ``--check`` end with what is out of date. ``written``: its text to its new text."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    check = parser.parse_args().check
    page = file.read_text(encoding="utf-8")
    renewed = written(page)
    if not check:
        file.write_text(renewed, encoding="utf-8")
        return
    wrong = _differences(page, renewed)
    if wrong:
        raise SystemExit(f"docs/{file.name} is out of date: run python docs/{parser.prog}\n" + "\n".join(wrong))


def _differences(page: str, renewed: str) -> list[str]:
    old, new = page.splitlines(), renewed.splitlines()
    if len(old) != len(new):
        return [f"{len(old)} lines, not {len(new)}"]
    return [f"- {a}\n+ {b}" for a, b in zip(old, new, strict=True) if a != b]
