"""Other people's models and frameworks: their checkpoints in, our solvers out. What a model is stands in ``models``."""

from sde_toolkit.interop.adm_files import adm_grid
from sde_toolkit.interop.diffusers_models import from_diffusers
from sde_toolkit.interop.diffusers_out import to_diffusers
from sde_toolkit.interop.diffusers_training import diffusers_grid
from sde_toolkit.interop.export import export_onnx, export_program
from sde_toolkit.interop.foreign_azula import azula_solver
from sde_toolkit.interop.foreign_diffusers import diffusers_solver
from sde_toolkit.interop.foreign_k_diffusion import k_diffusion_solver
from sde_toolkit.interop.k_diffusion_sampler import to_k_diffusion
from sde_toolkit.interop.loading import Reader, load
from sde_toolkit.interop.sbi_estimators import from_sbi, sbi_density

__all__ = [
    "Reader",
    "adm_grid",
    "azula_solver",
    "diffusers_grid",
    "diffusers_solver",
    "export_onnx",
    "export_program",
    "from_diffusers",
    "from_sbi",
    "k_diffusion_solver",
    "load",
    "sbi_density",
    "to_diffusers",
    "to_k_diffusion",
]
