"""The law p(x | c)^γ p(x)^(1 − γ), normalised, for Gaussians: what a guidance scale γ is often said to sample.

Its precision is γ Λ_c + (1 − γ) Λ, Λ_c of p(x | c) and Λ of p(x). In coordinates z with x = m + L z and p(z) = N(0, I),
where p(z | c) = N(P z_c, P diag(s²) Pᵀ), it has along the axes P

    variances 1/(γ/s² + 1 − γ)        mean (γ/s²) z_c/(γ/s² + 1 − γ)

Classifier-free guidance follows another law. For p(x | c) = N(0, 1) and p(x) = N(0, 2) the tilted variance is
2/(γ + 1). The guided flow ends with 2^(1 − γ), the guided SDE with (2 − 2^(2 − 2γ))/(2γ − 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.components import Components

__all__ = ["finite_scale", "tilted_components"]


def finite_scale(scale: Any) -> float:
    """``scale`` as a float.

    Raises:
        ArgumentError: unless it is a finite number.
    """
    if not is_number(scale):
        raise ArgumentError("scale", scale, "not a finite number", "Pass γ, 1 for the conditional law itself.")
    return float(scale)


def tilted_components(conditional: Components, unconditional: Components, scale: float) -> Components:
    """p(x | c)^γ p(x)^(1 − γ), normalised, for one Gaussian each; everything is on the CPU.

    Raises:
        ArgumentError: a mixture of several Gaussians, or one without a spread along some axis; a ``scale`` for which
            the product has no finite integral.
    """
    for name, law in (("class", conditional), ("no class", unconditional)):
        if len(law.means) > 1:
            problem = f"the law of {name} has {len(law.means)} components, and only a Gaussian's power is a Gaussian"
            raise ArgumentError("label", name, problem, "Use log_tilted, the density up to a constant.")
        if not bool((law.variances > 0).all()):
            problem = f"the law of {name} has no spread along some axis, and no density there"
            raise ArgumentError("label", name, problem, "Use components with a spread.")
    root, mean = unconditional.roots()[0], unconditional.means[0]
    P, s, _ = torch.linalg.svd(torch.linalg.solve(root, conditional.roots()[0]))
    z = P.mT @ torch.linalg.solve(root, conditional.means[0] - mean)
    pull = scale / s**2
    precision = pull + 1 - scale
    if not bool((precision > 0).all()):
        problem = f"the precision γ Λ_c + (1 − γ) Λ is not positive: {precision.amin().item():.3g} along one axis"
        raise ArgumentError("scale", scale, problem, f"There is no such law. {_allowed(s)}")
    axes, std, _ = torch.linalg.svd(root @ P * precision.rsqrt())
    tilted_mean = mean + root @ (P @ (pull * z / precision))
    return Components(torch.zeros_like(std[:1]), tilted_mean[None], std[None] ** 2, axes[None])


def _allowed(s: Tensor) -> str:
    """The scales for which γ (1/s² − 1) + 1 > 0 for every s, in words."""
    slopes = 1 / s**2 - 1
    bounds = [f"above {(-1 / slopes[slopes > 0]).amax():.4g}"] if bool((slopes > 0).any()) else []
    bounds += [f"below {(-1 / slopes[slopes < 0]).amin():.4g}"] if bool((slopes < 0).any()) else []
    return f"Pass a scale {' and '.join(bounds)}."
