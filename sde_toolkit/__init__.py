"""Continuous-time score SDEs: a sampler is an equation times an integrator."""

from sde_toolkit import grids, time_inputs
from sde_toolkit.broadcasting import expand_to
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.exact import GaussianMixture, gaussian
from sde_toolkit.integrators import (
    Euler,
    Exponential,
    Heun,
    Integrator,
    Scipy,
    TorchDiffEq,
    ddim_noise,
    eta_family,
    forward_variance,
)
from sde_toolkit.losses import DenoisingScoreMatching
from sde_toolkit.networks import MLP, UNet
from sde_toolkit.prediction import Prediction
from sde_toolkit.sampling import Sample, sample
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.sde import SDE, VESDE, VPSDE, DiscreteVPSDE, SubVPSDE
from sde_toolkit.solvers import Solver, ddim, ddpm, euler_maruyama, probability_flow
from sde_toolkit.transforms import Affine, Identity

__all__ = [
    "MLP",
    "SDE",
    "VESDE",
    "VPSDE",
    "Affine",
    "DenoisingScoreMatching",
    "DiscreteVPSDE",
    "Euler",
    "Exponential",
    "GaussianMixture",
    "Heun",
    "Identity",
    "Integrator",
    "Prediction",
    "ReverseEquation",
    "Sample",
    "Scipy",
    "ScoreModel",
    "Solver",
    "SubVPSDE",
    "TorchDiffEq",
    "UNet",
    "ddim",
    "ddim_noise",
    "ddpm",
    "eta_family",
    "euler_maruyama",
    "expand_to",
    "forward_variance",
    "gaussian",
    "grids",
    "probability_flow",
    "sample",
    "time_inputs",
]

__version__ = "0.1.0"
