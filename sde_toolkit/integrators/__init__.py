"""Integrators: the right factor of every sampler, each a frozen dataclass with its declared order."""

from sde_toolkit.integrators.adaptive import Scipy, TorchDiffEq
from sde_toolkit.integrators.adaptive_sde import AdaptiveSDE
from sde_toolkit.integrators.base import AffineStep, Integrator, Row
from sde_toolkit.integrators.explicit import Euler, Heun
from sde_toolkit.integrators.exponential import Exponential, ddim_noise, eta_family, forward_variance
from sde_toolkit.integrators.frozen import FrozenEDM, FrozenNoise, FrozenX0
from sde_toolkit.integrators.interpolation import bh1, bh2, in_lambda, in_phi, in_tau, in_time
from sde_toolkit.integrators.multistep import Corrected, Multistep
from sde_toolkit.integrators.per_sample import PerSample
from sde_toolkit.integrators.stepping import Statistics

__all__ = [
    "AdaptiveSDE",
    "AffineStep",
    "Corrected",
    "Euler",
    "Exponential",
    "FrozenEDM",
    "FrozenNoise",
    "FrozenX0",
    "Heun",
    "Integrator",
    "Multistep",
    "PerSample",
    "Row",
    "Scipy",
    "Statistics",
    "TorchDiffEq",
    "bh1",
    "bh2",
    "ddim_noise",
    "eta_family",
    "forward_variance",
    "in_lambda",
    "in_phi",
    "in_tau",
    "in_time",
]
