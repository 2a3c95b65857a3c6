"""Guidance: what a score model says of x_0 is moved towards a class, a measurement or away from a weaker model.

One method is one file, and a public name is one line here, its import ``as`` itself.
"""

from sde_toolkit.guidance.cfg_plus_plus_step import CFGPlusPlus as CFGPlusPlus
from sde_toolkit.guidance.cfg_plus_plus_step import cfg_plus_plus as cfg_plus_plus
from sde_toolkit.guidance.class_conditions import UNCONDITIONAL as UNCONDITIONAL
from sde_toolkit.guidance.class_guidance import ClassifierFree as ClassifierFree
from sde_toolkit.guidance.class_guidance import classifier_free as classifier_free
from sde_toolkit.guidance.classifier_guidance import ClassifierGuided as ClassifierGuided
from sde_toolkit.guidance.classifier_guidance import classifier as classifier
from sde_toolkit.guidance.conjugate_gradients import Solution as Solution
from sde_toolkit.guidance.conjugate_gradients import conjugate_gradients as conjugate_gradients
from sde_toolkit.guidance.ddnm import DDNM as DDNM
from sde_toolkit.guidance.diffpir import DiffPIR as DiffPIR
from sde_toolkit.guidance.ensembles import Ensemble as Ensemble
from sde_toolkit.guidance.foreign_operators import ScipyOperator as ScipyOperator
from sde_toolkit.guidance.foreign_operators import as_operator as as_operator
from sde_toolkit.guidance.fourier import Fourier as Fourier
from sde_toolkit.guidance.guided import Guided as Guided
from sde_toolkit.guidance.interval import WithinInterval as WithinInterval
from sde_toolkit.guidance.jfps import JFPS as JFPS
from sde_toolkit.guidance.matrix_operators import LinearFunction as LinearFunction
from sde_toolkit.guidance.matrix_operators import Matrix as Matrix
from sde_toolkit.guidance.measurement import Measurement as Measurement
from sde_toolkit.guidance.mmps import MMPS as MMPS
from sde_toolkit.guidance.operators import SVD as SVD
from sde_toolkit.guidance.operators import Composition as Composition
from sde_toolkit.guidance.operators import LinearOperator as LinearOperator
from sde_toolkit.guidance.particles import sample_particles as sample_particles
from sde_toolkit.guidance.pigdm import PiGDM as PiGDM
from sde_toolkit.guidance.pixel_operators import Blur as Blur
from sde_toolkit.guidance.pixel_operators import Downsample as Downsample
from sde_toolkit.guidance.pixel_operators import Grey as Grey
from sde_toolkit.guidance.pixel_operators import Mask as Mask
from sde_toolkit.guidance.posterior_method import PosteriorMethod as PosteriorMethod
from sde_toolkit.guidance.posterior_model import Posterior as Posterior
from sde_toolkit.guidance.posterior_model import posterior as posterior
from sde_toolkit.guidance.restoration import deblur as deblur
from sde_toolkit.guidance.restoration import inpaint as inpaint
from sde_toolkit.guidance.restoration import super_resolve as super_resolve
from sde_toolkit.guidance.sda import SDA as SDA
from sde_toolkit.guidance.sigma_dps import SigmaDPS as SigmaDPS
from sde_toolkit.guidance.step_operator import Level as Level
from sde_toolkit.guidance.step_operator import OneStep as OneStep
from sde_toolkit.guidance.step_operator import StepOperator as StepOperator
from sde_toolkit.guidance.tds import TDS as TDS
from sde_toolkit.guidance.tilt import Tilt as Tilt
from sde_toolkit.guidance.tilted_class import TiltedClass as TiltedClass
from sde_toolkit.guidance.tmpd import TMPD as TMPD
from sde_toolkit.guidance.weak_model_guidance import Autoguided as Autoguided
from sde_toolkit.guidance.weak_model_guidance import autoguidance as autoguidance
from sde_toolkit.guidance.weight_rules import Proposal as Proposal
from sde_toolkit.guidance.weight_rules import WeightRule as WeightRule
