"""The suite: solvers on problems whose answer is known, at equal budgets, ranked with intervals."""

from sde_toolkit.suite.exact_flow import ExactFlow
from sde_toolkit.suite.listing import truth_names, truths
from sde_toolkit.suite.truth import FlowErrors, Truth

__all__ = ["ExactFlow", "FlowErrors", "Truth", "truth_names", "truths"]
