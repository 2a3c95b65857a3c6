"""Training objectives: regression errors, weightings, distributions of training times, and the variational bound."""

from sde_toolkit.losses.histogram import lambda_histogram
from sde_toolkit.losses.matching import DenoisingScoreMatching
from sde_toolkit.losses.times import (
    Cosine,
    Discrete,
    LikelihoodTimes,
    LogitNormal,
    LogNormal,
    TimeDistribution,
    Uniform,
    low_discrepancy,
    stratified_times,
)
from sde_toolkit.losses.variational import Hybrid, VariationalBound
from sde_toolkit.losses.weightings import (
    P2,
    Anchored,
    Converted,
    EDMWeighting,
    MinSNR,
    SigmoidWeighting,
    Weighting,
    constant,
    error_ratio,
    g_squared,
    sigma_squared,
)

__all__ = [
    "P2",
    "Anchored",
    "Converted",
    "Cosine",
    "DenoisingScoreMatching",
    "Discrete",
    "EDMWeighting",
    "Hybrid",
    "LikelihoodTimes",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "SigmoidWeighting",
    "TimeDistribution",
    "Uniform",
    "VariationalBound",
    "Weighting",
    "constant",
    "error_ratio",
    "g_squared",
    "lambda_histogram",
    "low_discrepancy",
    "sigma_squared",
    "stratified_times",
]
