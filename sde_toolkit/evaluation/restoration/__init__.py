"""Held-out samples are measured and restored by several methods, with the truth beside them, and a report."""

from sde_toolkit.evaluation.restoration.restoration_report import write_restoration_report
from sde_toolkit.evaluation.restoration.restoration_request import RestorationRequest, Steps
from sde_toolkit.evaluation.restoration.restoration_results import Restoration, Restored
from sde_toolkit.evaluation.restoration.restoration_tasks import Deblur, Inpaint, InpaintRandom, SuperResolve, Task
from sde_toolkit.evaluation.restoration.restoring import restore, restore_in_team
from sde_toolkit.evaluation.restoration.step_methods import daps_steps, ddrm_steps, dps_steps, repaint_steps

__all__ = [
    "Deblur",
    "Inpaint",
    "InpaintRandom",
    "Restoration",
    "RestorationRequest",
    "Restored",
    "Steps",
    "SuperResolve",
    "Task",
    "daps_steps",
    "ddrm_steps",
    "dps_steps",
    "repaint_steps",
    "restore",
    "restore_in_team",
    "write_restoration_report",
]
