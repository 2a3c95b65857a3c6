"""Stochastic differential equations: drift, diffusion, and everything that follows from them."""

from sde_toolkit.sde.base import SDE, Time, check_sde
from sde_toolkit.sde.from_betas import DiscreteVPSDE
from sde_toolkit.sde.variance_exploding import VESDE
from sde_toolkit.sde.variance_preserving import VPSDE, SubVPSDE

__all__ = ["SDE", "VESDE", "VPSDE", "DiscreteVPSDE", "SubVPSDE", "Time", "check_sde"]
