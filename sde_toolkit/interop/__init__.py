"""Other people's models and frameworks: their checkpoints in, our solvers out. What a model is stands in ``models``."""

from typing import TYPE_CHECKING, Any

from sde_toolkit.interop.diffusers_models import from_diffusers
from sde_toolkit.interop.diffusers_training import diffusers_grid
from sde_toolkit.interop.k_diffusion_sampler import to_k_diffusion
from sde_toolkit.interop.loading import Reader, load

if TYPE_CHECKING:
    from sde_toolkit.interop.diffusers_scheduler import to_diffusers

__all__ = ["Reader", "diffusers_grid", "from_diffusers", "load", "to_diffusers", "to_k_diffusion"]


def __getattr__(name: str) -> Any:
    if name == "to_diffusers":  # its scheduler is a class of diffusers, which is loaded here and not before
        from sde_toolkit.interop.diffusers_scheduler import to_diffusers

        return to_diffusers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
