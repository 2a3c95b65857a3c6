"""Likelihood: exact through the probability flow, in bits per dimension, and its variational bounds."""

from sde_toolkit.likelihood.adams import Adams
from sde_toolkit.likelihood.bits import BitsPerDim, bits_per_dim, dequantise
from sde_toolkit.likelihood.bounds import Bound, discrete_bound, variational_bound
from sde_toolkit.likelihood.decoders import GaussianDensity, IntegratedBins, NormalisedLevels
from sde_toolkit.likelihood.divergence import Divergence, ExactTrace, Hutchinson, HutchPlusPlus
from sde_toolkit.likelihood.flow_density import log_likelihood
from sde_toolkit.likelihood.jacobian import finite_differences, forward, reverse
from sde_toolkit.likelihood.joint import Joint
from sde_toolkit.likelihood.levels import Levels
from sde_toolkit.likelihood.prior import GaussianPrior
from sde_toolkit.likelihood.proposals import Sigmoid, UniformLambda, UniformTime
from sde_toolkit.likelihood.quadrature import Quadrature, Refined
from sde_toolkit.likelihood.result import LogLikelihood

__all__ = [
    "Adams",
    "BitsPerDim",
    "Bound",
    "Divergence",
    "ExactTrace",
    "GaussianDensity",
    "GaussianPrior",
    "HutchPlusPlus",
    "Hutchinson",
    "IntegratedBins",
    "Joint",
    "Levels",
    "LogLikelihood",
    "NormalisedLevels",
    "Quadrature",
    "Refined",
    "Sigmoid",
    "UniformLambda",
    "UniformTime",
    "bits_per_dim",
    "dequantise",
    "discrete_bound",
    "finite_differences",
    "forward",
    "log_likelihood",
    "reverse",
    "variational_bound",
]
