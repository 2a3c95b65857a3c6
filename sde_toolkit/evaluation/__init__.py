"""Solvers side by side, samples against data, and the reports on both. Distances are in ``metrics``."""

from sde_toolkit.evaluation.comparison import Comparison, Row, compare_in_team, compare_solvers
from sde_toolkit.evaluation.drawing import Drawn, draw_samples
from sde_toolkit.evaluation.endpoint import Endpoint, flow_endpoint
from sde_toolkit.evaluation.error_parts import ErrorParts
from sde_toolkit.evaluation.joined_comparisons import JoinedComparisons, join_comparisons
from sde_toolkit.evaluation.local_error import LocalErrors, local_errors
from sde_toolkit.evaluation.paired import Difference, PairedDifferences, PairedMatrix, paired_differences
from sde_toolkit.evaluation.report import write_report
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.classifier import MNISTClassifier
from sde_toolkit.metrics.distances import FlowError, rmse
from sde_toolkit.metrics.extractors import (
    Extractor,
    auto_extractor,
    classifier_extractor,
    data_extractor,
    inception_extractor,
    module_extractor,
)
from sde_toolkit.metrics.features import Reference
from sde_toolkit.metrics.fid import FID, KID
from sde_toolkit.metrics.judge import Judge, classifier_features, exact_features, flat_features
from sde_toolkit.metrics.kernels import KernelDistance, kernel_distance
from sde_toolkit.metrics.manifolds import Precision, Recall, precision_recall
from sde_toolkit.metrics.metric import Against, Axis, Estimate, Metric, SampleSet
from sde_toolkit.metrics.quality import evaluate_samples
from sde_toolkit.metrics.records import Quality, compare_records
from sde_toolkit.metrics.sliced import SlicedWasserstein, sliced_wasserstein

__all__ = [
    "FID",
    "KID",
    "Against",
    "Axis",
    "Comparison",
    "Difference",
    "Drawn",
    "Endpoint",
    "ErrorParts",
    "Estimate",
    "Extractor",
    "FlowError",
    "JoinedComparisons",
    "Judge",
    "KernelDistance",
    "LocalErrors",
    "MNISTClassifier",
    "Metric",
    "PairedDifferences",
    "PairedMatrix",
    "Precision",
    "Quality",
    "Recall",
    "Reference",
    "Row",
    "SampleSet",
    "SlicedWasserstein",
    "Team",
    "auto_extractor",
    "classifier_extractor",
    "classifier_features",
    "compare_in_team",
    "compare_records",
    "compare_solvers",
    "data_extractor",
    "draw_samples",
    "evaluate_samples",
    "exact_features",
    "flat_features",
    "flow_endpoint",
    "inception_extractor",
    "join_comparisons",
    "kernel_distance",
    "local_errors",
    "module_extractor",
    "paired_differences",
    "precision_recall",
    "rmse",
    "sliced_wasserstein",
    "write_report",
]
