"""Judging samples and solvers: what a trained model's draws are worth, measured against real data."""

from sde_toolkit.evaluation.classifier import MNISTClassifier
from sde_toolkit.evaluation.comparison import Comparison, Row, compare_solvers
from sde_toolkit.evaluation.endpoint import Endpoint, flow_endpoint
from sde_toolkit.evaluation.judging import Judge, classifier_features, exact_features, flat_features
from sde_toolkit.evaluation.local_error import LocalErrors, local_errors
from sde_toolkit.evaluation.metrics import Estimate, kernel_distance, rmse, sliced_wasserstein
from sde_toolkit.evaluation.report import write_report

__all__ = [
    "Comparison",
    "Endpoint",
    "Estimate",
    "Judge",
    "LocalErrors",
    "MNISTClassifier",
    "Row",
    "classifier_features",
    "compare_solvers",
    "exact_features",
    "flat_features",
    "flow_endpoint",
    "kernel_distance",
    "local_errors",
    "rmse",
    "sliced_wasserstein",
    "write_report",
]
