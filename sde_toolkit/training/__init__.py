"""Training of score models, on one process or many, in a folder from which a killed run continues.

Data sets, losses and networks have rooms of their own.
"""

from sde_toolkit.training.averages import WeightAverage, exponential_update, power_function_update
from sde_toolkit.training.options import TrainingOptions
from sde_toolkit.training.posthoc import posthoc_average
from sde_toolkit.training.stopping import Interrupted
from sde_toolkit.training.trainer import train
from sde_toolkit.training.watchers import Likelihood, SampleSheet, Scene, Watcher

__all__ = [
    "Interrupted",
    "Likelihood",
    "SampleSheet",
    "Scene",
    "TrainingOptions",
    "Watcher",
    "WeightAverage",
    "exponential_update",
    "posthoc_average",
    "power_function_update",
    "train",
]
