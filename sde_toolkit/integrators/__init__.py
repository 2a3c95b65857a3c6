"""Integrators: how an equation is discretised, each a frozen dataclass with its declared order. Grids are elsewhere."""

from sde_toolkit.integrators.adams_bashforth import AdamsBashforth
from sde_toolkit.integrators.adaptive import Scipy, TorchDiffEq
from sde_toolkit.integrators.adaptive_sde import AdaptiveSDE
from sde_toolkit.integrators.ancestral import Ancestral
from sde_toolkit.integrators.churn import ChurnedHeun
from sde_toolkit.integrators.coordinates import Angle, Coordinate, HalfLogSNR, NoiseToSignal, Time
from sde_toolkit.integrators.euler import Euler
from sde_toolkit.integrators.exponential import Exponential, ddim_noise, eta_family, forward_variance
from sde_toolkit.integrators.frozen import FrozenEDM, FrozenNoise, FrozenX0
from sde_toolkit.integrators.integrator import AffineStep, DenseIntegrator, Integrator
from sde_toolkit.integrators.interpolation import bh1, bh2
from sde_toolkit.integrators.landing import Landing
from sde_toolkit.integrators.langevin import Corrector, Langevin, expected_norms, mean_norms, own_norms
from sde_toolkit.integrators.learned import LearnedVariance
from sde_toolkit.integrators.linear_step import LinearStep, RecordedStep
from sde_toolkit.integrators.multistep import Corrected, Multistep
from sde_toolkit.integrators.per_sample import PerSample
from sde_toolkit.integrators.predictor_corrector import PredictorCorrector
from sde_toolkit.integrators.reverse_diffusion import ReverseDiffusion
from sde_toolkit.integrators.runge_kutta import Heun, RungeKutta, RungeKutta4
from sde_toolkit.integrators.singlestep import (
    DPMSolver1,
    DPMSolver2,
    DPMSolver2S,
    DPMSolver3,
    DPMSolver3S,
    SingleStep,
)
from sde_toolkit.integrators.stepping import Statistics
from sde_toolkit.integrators.tables import StepRow, Table

__all__ = [
    "AdamsBashforth",
    "AdaptiveSDE",
    "AffineStep",
    "Ancestral",
    "Angle",
    "ChurnedHeun",
    "Coordinate",
    "Corrected",
    "Corrector",
    "DPMSolver1",
    "DPMSolver2",
    "DPMSolver2S",
    "DPMSolver3",
    "DPMSolver3S",
    "DenseIntegrator",
    "Euler",
    "Exponential",
    "FrozenEDM",
    "FrozenNoise",
    "FrozenX0",
    "HalfLogSNR",
    "Heun",
    "Integrator",
    "Landing",
    "Langevin",
    "LearnedVariance",
    "LinearStep",
    "Multistep",
    "NoiseToSignal",
    "PerSample",
    "PredictorCorrector",
    "RecordedStep",
    "ReverseDiffusion",
    "RungeKutta",
    "RungeKutta4",
    "Scipy",
    "SingleStep",
    "Statistics",
    "StepRow",
    "Table",
    "Time",
    "TorchDiffEq",
    "bh1",
    "bh2",
    "ddim_noise",
    "eta_family",
    "expected_norms",
    "forward_variance",
    "mean_norms",
    "own_norms",
]
