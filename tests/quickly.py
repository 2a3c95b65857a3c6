"""Calibrations that are short for tests: fewer iterations, runs and usual grids, whatever the time."""

from unittest.mock import patch

import sde_toolkit
from sde_toolkit.calibration import stages, starts

ENDS = (2.75, 4.25)  # of the usual grids


def calibrate(model, *arguments, effort=1.0, **options):
    """``sde_toolkit.calibrate`` with ``effort`` times its runs, and half of that of its iterations."""
    shares = {"_ITERATIONS": effort / 2, "_RUNS": effort}
    fewer = {k: tuple(max(1, round(share * n)) for n in getattr(stages, k)) for k, share in shares.items()}
    with patch.multiple(stages, **fewer), patch.object(starts, "_LAMBDA_ENDS", ENDS):
        return sde_toolkit.calibrate(model, *arguments, **options)
