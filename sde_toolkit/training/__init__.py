"""Training score models by denoising score matching."""

from sde_toolkit.training.trainer import TrainingOptions, train

__all__ = ["TrainingOptions", "train"]
