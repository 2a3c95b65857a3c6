"""Stochastic differential equations: α, σ, λ, drift, diffusion, marginals and prior of each. No networks, no grids."""

from sde_toolkit.sde import beta_schedules
from sde_toolkit.sde.base import SDE, Time
from sde_toolkit.sde.checked import check_sde
from sde_toolkit.sde.cosine import CosineVPSDE
from sde_toolkit.sde.edm import EDMSDE
from sde_toolkit.sde.flow_matching import FlowMatching
from sde_toolkit.sde.from_betas import DiscreteVPSDE
from sde_toolkit.sde.from_log_snr import Knots, LogSNRSDE
from sde_toolkit.sde.variance_exploding import VESDE
from sde_toolkit.sde.variance_preserving import VPSDE, SubVPSDE

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "DiscreteVPSDE",
    "FlowMatching",
    "Knots",
    "LogSNRSDE",
    "SubVPSDE",
    "Time",
    "beta_schedules",
    "check_sde",
]
