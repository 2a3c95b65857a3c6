"""Other people's models and frameworks: their checkpoints in, our solvers out. What a model is stands in ``models``."""

from sde_toolkit.interop.loading import Reader, load

__all__ = ["Reader", "load"]
