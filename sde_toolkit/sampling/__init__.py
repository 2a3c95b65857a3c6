"""From noise to data and back: the one loop, compiled steps, what is measured meanwhile, and the automatic choice."""

from sde_toolkit.sampling.automatic import Plan, auto, usual_plan
from sde_toolkit.sampling.encoding import Encoding, encode
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.sampling.loop import Step
from sde_toolkit.sampling.samples import Sample, sample

__all__ = ["Encoding", "ForeignSolver", "Plan", "Sample", "Step", "auto", "encode", "sample", "usual_plan"]
