"""Products of vectors with the Jacobian of a function, wherever the function is evaluated.

A model is evaluated with gradients switched off (``sample``), with a graph that is kept (``differentiable=True``,
likelihoods), inside transforms of torch.func, and inside a compiled step. :func:`pullback` works in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.normalisation import transforms_active

__all__ = ["of_inference", "ordinary", "pullback"]


def pullback(
    function: Callable[[Tensor], Tensor], x: Tensor, name: str, argument: str = "network"
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``function(x)`` and the map u ↦ uᵀ ∂function/∂x, of the shape of x. The map can be used as often as needed.

    The results can be differentiated again where gradients are recorded: with ``torch.enable_grad`` around the call.
    Attention then runs on its plain implementation, the only one with second derivatives.
    In ``torch.inference_mode`` the function must not use inference tensors other than its argument (:func:`ordinary`).
    ``name``, ``argument``: the function's name and the argument that it was passed as, for errors.

    Raises:
        ArgumentError: from the function or the first product, if autograd finds no way from the value back to x.
    """
    if torch.compiler.is_compiling():
        return _by_transform(function, x)
    if transforms_active():
        with sdpa_kernel(SDPBackend.MATH):
            return _by_transform(function, x)

    keep = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x if keep and x.requires_grad else ordinary(x).detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH) if keep else nullcontext():
            value = function(leaf)
    if not value.requires_grad:
        raise _not_differentiable(name, argument)

    def product(u: Tensor) -> Tensor:
        with torch.inference_mode(False):
            (found,) = torch.autograd.grad(
                value, leaf, ordinary(u), retain_graph=True, create_graph=keep, allow_unused=True
            )
        if found is None:
            raise _not_differentiable(name, argument)
        return found

    return (value if keep else value.detach()), product


def _by_transform(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    found: Any = torch.func.vjp(function, x)
    value, pull = found
    return value, lambda u: pull(u)[0]


def of_inference(x: Tensor) -> bool:
    """Whether x was made in ``torch.inference_mode``. A compiled step knows no such tensors."""
    return not torch.compiler.is_compiling() and x.is_inference()


def ordinary(x: Tensor) -> Tensor:
    """The same tensor; of an inference tensor a copy that autograd accepts."""
    if not of_inference(x):
        return x
    with torch.inference_mode(False):
        return x.clone()


def _not_differentiable(name: str, argument: str) -> ArgumentError:
    problem = "products with its Jacobian are needed, and autograd finds no way from its output back to its input"
    remedy = "Remove detach(), no_grad() and numpy from it, or take a method without derivatives."
    return ArgumentError(argument, name, problem, remedy)
