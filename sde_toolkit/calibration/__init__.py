"""Calibration: the time grid, the weights and the method that minimise a model's error within a budget."""

from sde_toolkit.calibration.calibrating import calibrate
from sde_toolkit.calibration.problem import Measured
from sde_toolkit.calibration.result import Calibration, load_calibration

__all__ = ["Calibration", "Measured", "calibrate", "load_calibration"]
