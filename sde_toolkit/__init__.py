"""Continuous-time score SDEs: a sampler is an equation times an integrator.

The names of everyday use are here. Each room has the rest, such as ``sde_toolkit.integrators``. It is loaded when it is
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "sde": (
        "SDE",
        "VPSDE",
        "SubVPSDE",
        "VESDE",
        "CosineVPSDE",
        "EDMSDE",
        "FlowMatching",
        "LogSNRSDE",
        "DiscreteVPSDE",
    ),
    "models": (
        "ScoreModel",
        "Wrapper",
        "GaussianMixture",
        "gaussian",
        "clip_x0",
        "dynamic_threshold",
        "reschedule",
    ),
    "networks": (
        "UNet",
        "MLP",
    ),
    "transforms": (
        "Affine",
        "Identity",
    ),
    "losses": ("DenoisingScoreMatching",),
    "solvers": (
        "Solver",
        "adaptive_sde",
        "ddim",
        "ddpm",
        "ddpm_learned",
        "deis",
        "dpm2_ancestral",
        "dpm_solver_2",
        "dpm_solver_3",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "dpmpp_2s",
        "dpmpp_2s_ancestral",
        "dpmpp_3m",
        "dpmpp_3m_sde",
        "dpmpp_3s",
        "dpmpp_sde",
        "edm_stochastic",
        "euler_ancestral",
        "euler_maruyama",
        "heun",
        "ipndm",
        "pc",
        "probability_flow",
        "reverse_diffusion",
        "rk4",
        "sa_solver",
        "unipc",
    ),
    "equation": ("ReverseEquation",),
    "integrators": (
        "Integrator",
        "PerSample",
    ),
    "noise": (
        "BrownianPath",
        "slerp",
    ),
    "sampling": (
        "sample",
        "encode",
        "auto",
    ),
    "likelihood": (
        "log_likelihood",
        "bits_per_dim",
        "variational_bound",
        "Levels",
    ),
    "guidance": (
        "classifier_free",
        "inpaint",
        "posterior",
    ),
    "calibration": (
        "calibrate",
        "load_calibration",
    ),
    "training": (
        "train",
        "TrainingOptions",
    ),
    "evaluation": ("compare_solvers",),
}
_HOMES = {name: room for room, names in _NAMES.items() for name in names}
_ROOMS = {*_NAMES, "batching", "checks", "data", "errors", "files", "grids", "jobs", "metrics", "progress", "suite"}

__all__ = [*sorted(_HOMES), "grids"]

if TYPE_CHECKING:
    from sde_toolkit import grids as grids
    from sde_toolkit.calibration import calibrate as calibrate
    from sde_toolkit.calibration import load_calibration as load_calibration
    from sde_toolkit.equation import ReverseEquation as ReverseEquation
    from sde_toolkit.evaluation import compare_solvers as compare_solvers
    from sde_toolkit.guidance import classifier_free as classifier_free
    from sde_toolkit.guidance import inpaint as inpaint
    from sde_toolkit.guidance import posterior as posterior
    from sde_toolkit.integrators import Integrator as Integrator
    from sde_toolkit.integrators import PerSample as PerSample
    from sde_toolkit.likelihood import Levels as Levels
    from sde_toolkit.likelihood import bits_per_dim as bits_per_dim
    from sde_toolkit.likelihood import log_likelihood as log_likelihood
    from sde_toolkit.likelihood import variational_bound as variational_bound
    from sde_toolkit.losses import DenoisingScoreMatching as DenoisingScoreMatching
    from sde_toolkit.models import GaussianMixture as GaussianMixture
    from sde_toolkit.models import ScoreModel as ScoreModel
    from sde_toolkit.models import Wrapper as Wrapper
    from sde_toolkit.models import clip_x0 as clip_x0
    from sde_toolkit.models import dynamic_threshold as dynamic_threshold
    from sde_toolkit.models import gaussian as gaussian
    from sde_toolkit.models import reschedule as reschedule
    from sde_toolkit.networks import MLP as MLP
    from sde_toolkit.networks import UNet as UNet
    from sde_toolkit.noise import BrownianPath as BrownianPath
    from sde_toolkit.noise import slerp as slerp
    from sde_toolkit.sampling import auto as auto
    from sde_toolkit.sampling import encode as encode
    from sde_toolkit.sampling import sample as sample
    from sde_toolkit.sde import EDMSDE as EDMSDE
    from sde_toolkit.sde import SDE as SDE
    from sde_toolkit.sde import VESDE as VESDE
    from sde_toolkit.sde import VPSDE as VPSDE
    from sde_toolkit.sde import CosineVPSDE as CosineVPSDE
    from sde_toolkit.sde import DiscreteVPSDE as DiscreteVPSDE
    from sde_toolkit.sde import FlowMatching as FlowMatching
    from sde_toolkit.sde import LogSNRSDE as LogSNRSDE
    from sde_toolkit.sde import SubVPSDE as SubVPSDE
    from sde_toolkit.solvers import Solver as Solver
    from sde_toolkit.solvers import adaptive_sde as adaptive_sde
    from sde_toolkit.solvers import ddim as ddim
    from sde_toolkit.solvers import ddpm as ddpm
    from sde_toolkit.solvers import ddpm_learned as ddpm_learned
    from sde_toolkit.solvers import deis as deis
    from sde_toolkit.solvers import dpm2_ancestral as dpm2_ancestral
    from sde_toolkit.solvers import dpm_solver_2 as dpm_solver_2
    from sde_toolkit.solvers import dpm_solver_3 as dpm_solver_3
    from sde_toolkit.solvers import dpmpp_2m as dpmpp_2m
    from sde_toolkit.solvers import dpmpp_2m_sde as dpmpp_2m_sde
    from sde_toolkit.solvers import dpmpp_2s as dpmpp_2s
    from sde_toolkit.solvers import dpmpp_2s_ancestral as dpmpp_2s_ancestral
    from sde_toolkit.solvers import dpmpp_3m as dpmpp_3m
    from sde_toolkit.solvers import dpmpp_3m_sde as dpmpp_3m_sde
    from sde_toolkit.solvers import dpmpp_3s as dpmpp_3s
    from sde_toolkit.solvers import dpmpp_sde as dpmpp_sde
    from sde_toolkit.solvers import edm_stochastic as edm_stochastic
    from sde_toolkit.solvers import euler_ancestral as euler_ancestral
    from sde_toolkit.solvers import euler_maruyama as euler_maruyama
    from sde_toolkit.solvers import heun as heun
    from sde_toolkit.solvers import ipndm as ipndm
    from sde_toolkit.solvers import pc as pc
    from sde_toolkit.solvers import probability_flow as probability_flow
    from sde_toolkit.solvers import reverse_diffusion as reverse_diffusion
    from sde_toolkit.solvers import rk4 as rk4
    from sde_toolkit.solvers import sa_solver as sa_solver
    from sde_toolkit.solvers import unipc as unipc
    from sde_toolkit.training import TrainingOptions as TrainingOptions
    from sde_toolkit.training import train as train
    from sde_toolkit.transforms import Affine as Affine
    from sde_toolkit.transforms import Identity as Identity


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"sde_toolkit.{_HOMES[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"sde_toolkit.{name}")
    else:
        raise AttributeError(f"module 'sde_toolkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
