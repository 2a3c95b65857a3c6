"""Calibrations that are short for tests: fewer iterations and runs, whatever the time."""

from unittest.mock import patch

import sde_toolkit
from sde_toolkit.calibration import stages


def calibrate(model, *arguments, effort=1.0, **options):
    """``sde_toolkit.calibrate`` with ``effort`` times its iterations and runs."""
    fewer = {
        name: tuple(max(1, round(effort * count)) for count in getattr(stages, name))
        for name in ("_ITERATIONS", "_RUNS")
    }
    with patch.multiple(stages, **fewer):
        return sde_toolkit.calibrate(model, *arguments, **options)
