"""The likelihood of a data set under a model: exact values and bounds with their errors, and a report."""

from sde_toolkit.evaluation.density.density_report import write_likelihood_report
from sde_toolkit.evaluation.density.density_request import LikelihoodRequest
from sde_toolkit.evaluation.density.evaluating import DatasetLikelihood, EndTime, evaluate_likelihood
from sde_toolkit.jobs.team import Team

__all__ = [
    "DatasetLikelihood",
    "EndTime",
    "LikelihoodRequest",
    "Team",
    "evaluate_likelihood",
    "write_likelihood_report",
]
