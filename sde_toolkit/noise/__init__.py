"""Random numbers: one stream for each sample and purpose, Brownian paths, and mixtures of two noises."""

from sde_toolkit.noise.brownian import BrownianPath, ExponentialClock
from sde_toolkit.noise.slerp import slerp

__all__ = ["BrownianPath", "ExponentialClock", "slerp"]
