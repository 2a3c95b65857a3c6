"""Likelihood: exact through the probability flow, in bits per dimension, and its variational bounds."""

from sde_toolkit.likelihood.bits import BitsPerDim, bits_per_dim, dequantise
from sde_toolkit.likelihood.divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from sde_toolkit.likelihood.jacobian import finite_differences, forward, reverse
from sde_toolkit.likelihood.levels import Levels
from sde_toolkit.likelihood.log_likelihood import log_likelihood
from sde_toolkit.likelihood.prior import GaussianPrior
from sde_toolkit.likelihood.quadrature import Quadrature
from sde_toolkit.likelihood.result import LogLikelihood

__all__ = [
    "BitsPerDim",
    "Divergence",
    "Exact",
    "GaussianPrior",
    "HutchPlusPlus",
    "Hutchinson",
    "Levels",
    "LogLikelihood",
    "Quadrature",
    "bits_per_dim",
    "dequantise",
    "finite_differences",
    "forward",
    "log_likelihood",
    "reverse",
]
