"""Score models: a network, how its output is read, how time is fed to it; and what is put around one, such as a
limit on x̂_0 or guidance of your own (``Wrapper``)."""

from sde_toolkit.models import time_inputs
from sde_toolkit.models.class_mixture import ClassMixture
from sde_toolkit.models.mixture import GaussianMixture, gaussian
from sde_toolkit.models.prediction import Prediction
from sde_toolkit.models.rescheduled import Rescheduled, reschedule
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.thresholding import Thresholded, clip_x0, dynamic_threshold
from sde_toolkit.models.wrapper import Inside, Wrapper

__all__ = [
    "ClassMixture",
    "GaussianMixture",
    "Inside",
    "Prediction",
    "Rescheduled",
    "ScoreModel",
    "Thresholded",
    "Wrapper",
    "clip_x0",
    "dynamic_threshold",
    "gaussian",
    "reschedule",
    "time_inputs",
]
