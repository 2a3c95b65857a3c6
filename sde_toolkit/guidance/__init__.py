"""Guidance: what a score model says of x_0 is moved towards a class, a measurement or away from a weaker model.

One method is one file, and a public name is one line here, its import ``as`` itself.
"""

from sde_toolkit.guidance.step_operator import Level as Level
from sde_toolkit.guidance.step_operator import OneStep as OneStep
from sde_toolkit.guidance.step_operator import StepOperator as StepOperator
