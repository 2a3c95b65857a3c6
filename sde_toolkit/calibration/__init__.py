"""Calibration: the time grid, the weights and the method that minimise the error of a model within a budget."""

from sde_toolkit.calibration.calibrated import Calibration, load_calibration
from sde_toolkit.calibration.calibrating import calibrate
from sde_toolkit.calibration.plan_errors import Measured

__all__ = ["Calibration", "Measured", "calibrate", "load_calibration"]
