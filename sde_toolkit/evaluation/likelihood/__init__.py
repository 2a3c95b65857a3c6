"""The likelihood of a whole data set under one model: exact, bounded, with every error beside it, and as a report."""

from sde_toolkit.evaluation.likelihood.evaluating import EndTime, Evaluation, evaluate_likelihood
from sde_toolkit.evaluation.likelihood.report import write_likelihood_report
from sde_toolkit.evaluation.likelihood.request import LikelihoodRequest
from sde_toolkit.evaluation.team import Team

__all__ = [
    "EndTime",
    "Evaluation",
    "LikelihoodRequest",
    "Team",
    "evaluate_likelihood",
    "write_likelihood_report",
]
