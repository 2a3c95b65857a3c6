"""The suite: solvers on problems whose answer is known, at equal budgets, ranked with intervals."""

from sde_toolkit.suite.exact_flow import ExactFlow
from sde_toolkit.suite.listing import truth_names, truths
from sde_toolkit.suite.measuring import SUITE_BUDGETS, SUITE_SOLVERS, SuiteRequest, measure_suite
from sde_toolkit.suite.rankings import Measure, Ranking, rank
from sde_toolkit.suite.running import run_suite
from sde_toolkit.suite.suite_report import ranking_table, write_suite
from sde_toolkit.suite.suite_results import Cell, Joined, SolverResults, join_results, read_results
from sde_toolkit.suite.truth import FlowErrors, Truth

__all__ = [
    "SUITE_BUDGETS",
    "SUITE_SOLVERS",
    "Cell",
    "ExactFlow",
    "FlowErrors",
    "Joined",
    "Measure",
    "Ranking",
    "SolverResults",
    "SuiteRequest",
    "Truth",
    "join_results",
    "measure_suite",
    "rank",
    "ranking_table",
    "read_results",
    "run_suite",
    "truth_names",
    "truths",
    "write_suite",
]
