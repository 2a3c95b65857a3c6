"""``sde-toolkit bench``: solvers on the truths of the suite, joined with results of others, and a page of rankings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sde_toolkit.cli.folders import CONFIG, save_config
from sde_toolkit.cli.parts import build_solvers
from sde_toolkit.cli.setup import Workplace, command_words, join, listed, switch
from sde_toolkit.cli.user_files import is_user_file, load_made
from sde_toolkit.evaluation.page import require_report_packages
from sde_toolkit.jobs.provenance import provenance_of_run
from sde_toolkit.progress import require_progress
from sde_toolkit.suite.listing import truth_names
from sde_toolkit.suite.measuring import SuiteRequest, measure_suite
from sde_toolkit.suite.rankings import Measure, rank
from sde_toolkit.suite.suite_report import ranking_table, suite_findings, to_write, write_suite
from sde_toolkit.suite.suite_results import Joined, SolverResults, join_results, read_results
from sde_toolkit.suite.truth import Truth

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Check everything, measure, join, write the page, print the rankings."""
    require_report_packages()
    place = join(config)
    progress = switch(config, "progress")
    require_progress(progress and place.main)
    shown = progress and place.main
    request = SuiteRequest(build_solvers(config), _truths(config.truth), listed(config.budgets), shown)
    others = _others(config, place.directory)
    with place.holding("bench", _files(request, others, place.directory)):
        joined = _measured(config, place, request, others)
    if joined is not None:
        _print(joined, place.directory / "report.html")
    place.team.leave()


def _truths(given: Any) -> list[Truth | str] | None:
    """``truth=all``, names of truths, and ``my_file.py:name``, one or a list."""
    if given == "all":
        return None
    found: list[Truth | str] = []
    for each in listed(given):
        name = str(each)
        if name == "all":
            found += truth_names()
        elif is_user_file(name):
            found.append(load_made("truth", name, Truth, "Return Truth(name, model), from sde_toolkit.suite."))
        else:
            found.append(name)
    return found


def _others(config: DictConfig, directory: Path) -> list[SolverResults]:
    """Results that are there already, in the folder itself and in those of ``join``."""
    folders = [Path(str(folder)) for folder in listed(config.join)]
    own = [directory] if any((directory / "solvers").glob("*.json")) else []
    return [results for folder in (*own, *folders) for results in read_results(folder)]


def _files(request: SuiteRequest, others: list[SolverResults], directory: Path) -> list[str]:
    """The names of the files that the command writes."""
    new = [SolverResults(name, (), {}) for name in request.candidates]
    own = [f"solvers/{r.file_name}" for r in to_write(Joined((*new, *others), {}), directory)]
    pictures = [f"suite_{measure.value}.png" for measure in (Measure.ERROR, Measure.DISTANCE)]
    return ["report.html", "report.md", "results.csv", CONFIG, *pictures, *own]


def _measured(
    config: DictConfig, place: Workplace, request: SuiteRequest, others: list[SolverResults]
) -> Joined | None:
    """The joined results, their page written; None in all processes but the main one."""
    if place.main:
        print(f"solvers: {', '.join(request.candidates)}\ntruths: {', '.join(request.problems)}")
    measured = measure_suite(request, place.team, place.directory)
    if measured is None:
        return None
    results, store = measured
    joined = join_results(results, others)
    record = provenance_of_run(command_words()) | {"config": OmegaConf.to_container(config, resolve=True)}
    write_suite(joined, place.directory, record)
    save_config(config, place.directory)
    if store is not None:
        store.clear()
    return joined


def _print(joined: Joined, page: Path) -> None:
    titles = {Measure.ERROR: "error against the exact flow", Measure.DISTANCE: "distance to real samples"}
    for measure, title in titles.items():
        ranking = rank(joined, measure)
        if ranking.standings:
            print(f"\n{title}: ratio to the best solver of each cell\n{ranking_table(joined, measure, ranking).text()}")
    print()
    for sentence in suite_findings(joined):
        print(sentence)
    print(f"\nreport: {page}")
