"""Integrators: the right factor of every sampler, each a frozen dataclass with its declared order."""

from sde_toolkit.integrators.adaptive import Scipy, TorchDiffEq
from sde_toolkit.integrators.base import AffineStep, Integrator, Row
from sde_toolkit.integrators.explicit import Euler, Heun
from sde_toolkit.integrators.exponential import Exponential, ddim_noise, eta_family, forward_variance

__all__ = [
    "AffineStep",
    "Euler",
    "Exponential",
    "Heun",
    "Integrator",
    "Row",
    "Scipy",
    "TorchDiffEq",
    "ddim_noise",
    "eta_family",
    "forward_variance",
]
