"""What the documents point at exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_table_of_solvers_is_what_the_classes_say():
    """Regenerated from the classes, it is the page, letter for letter."""
    words = [sys.executable, str(ROOT / "docs" / "make_solver_table.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_names_every_solver_and_every_sde():
    """The hand-written table may not fall behind the code."""
    from sde_toolkit import sde, solvers
    from sde_toolkit.sde import SDE

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [n for n in solvers.__all__ if n != "Solver"]
    names += [n for n in sde.__all__ if isinstance(getattr(sde, n), type) and issubclass(getattr(sde, n), SDE)]
    shown_otherwise = {"SDE", "DiscreteVPSDE"}  # the base class; VPSDE.from_betas
    assert [n for n in names if n not in text and n not in shown_otherwise] == []
