"""Products with the Jacobian J = ∂y/∂x of a batch of samples, behind one interface.

A :data:`Mode` takes a field (x (R, *event) to y, row by row) and x, and returns y and a function from directions
v (P, R, *event) to J v or Jᵀ v of the same shape:

    reverse             Jᵀ v    a vector-Jacobian product; y is evaluated once, whatever the number of directions
    forward             J v     a Jacobian-vector product by dual numbers; keeps no graph: for little memory
    finite_differences  J v     [y(x + h v) − y(x − h v)]/(2h): for networks that autograd cannot see through

For a trace, vᵀ J v and vᵀ Jᵀ v are the same number. Forward mode runs attention on its plain implementation, the
only one with a forward rule.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import repeat_rows
from sde_toolkit.models.evaluation_mode import refuse_random_numbers
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.sampling.loop import rows_of

__all__ = [
    "Field",
    "Mode",
    "Products",
    "choose_mode",
    "finite_differences",
    "forward",
    "mode_name",
    "reverse",
    "sized",
]

Field: TypeAlias = Callable[[Tensor], Tensor]
"""x (R, *event) to y of the same shape, every row by itself; any number R of rows that fits its times."""


class Products(Protocol):
    """v (P, R, *event) to J v or Jᵀ v. ``last``: no product is taken afterwards, and memory may be freed."""

    def __call__(self, v: Tensor, *, last: bool = False) -> Tensor: ...


Mode: TypeAlias = Callable[[Field, Tensor, bool], tuple[Tensor, Products]]
"""(field, x, differentiable) to y and the products at x; ``differentiable``: the products can be differentiated."""

_ELEMENTS_AT_ONCE = 2**21  # of directions that go through a vectorised product together
_ROUNDING = 0.02  # of the largest output: a network in half precision may answer two rows so differently


def reverse(field: Field, x: Tensor, differentiable: bool = False) -> tuple[Tensor, Products]:
    """Jᵀ v by one forward pass and one backward pass per direction."""
    with torch.enable_grad():
        x = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        y = field(x)

    def products(v: Tensor, *, last: bool = False) -> Tensor:
        at_once = max(1, _ELEMENTS_AT_ONCE // x.numel())
        if at_once > 1 and len(v) > 1:
            how = {"retain_graph": True, "create_graph": differentiable, "is_grads_batched": True}
            try:
                return torch.cat([torch.autograd.grad(y, x, part, **how)[0] for part in v.split(at_once)])
            except RuntimeError:  # an operation that cannot be vectorised, such as a U-Net's group norm: one by one
                pass
        kept = [differentiable or not last or i < len(v) - 1 for i in range(len(v))]  # of the graph, for what follows
        rows = [
            torch.autograd.grad(y, x, p, retain_graph=keep, create_graph=differentiable)[0]
            for p, keep in zip(v, kept, strict=True)
        ]
        return torch.stack(rows)

    return (y if differentiable else y.detach()), products


def forward(field: Field, x: Tensor, differentiable: bool = False) -> tuple[Tensor, Products]:
    """J v by dual numbers, one pass through the network per direction."""

    def product(v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(field, (x,), (v,))[1]

    with torch.set_grad_enabled(differentiable):
        return field(x), _one_by_one(product, differentiable)


def finite_differences(
    field: Field, x: Tensor, differentiable: bool = False, *, size: float = 1.0
) -> tuple[Tensor, Products]:
    """J v by central differences, two passes per direction; error of order h² plus rounding/h.

    h is eps^(1/3) max(``size``, rms(x)) / rms(v), for every row by itself. Likelihoods pass the size of the data.
    """

    def product(v: Tensor) -> Tensor:
        inner = tuple(range(1, x.ndim))
        own = x.detach().square().mean(inner, keepdim=True).sqrt() if inner else x.detach().abs()
        length = v.square().mean(inner, keepdim=True).sqrt() if inner else v.abs()
        h = torch.finfo(x.dtype).eps ** (1 / 3) * own.clamp(min=size) / length.clamp(min=1e-30)
        return (field(x + h * v) - field(x - h * v)) / (2 * h)

    with torch.set_grad_enabled(differentiable):
        return field(x), _one_by_one(product, differentiable)


def sized(mode: Mode, size: float) -> Mode:
    """The mode for data of the size ``size``, which sets the length of finite differences."""
    return functools.partial(finite_differences, size=size) if mode is finite_differences else mode


def _one_by_one(product: Callable[[Tensor], Tensor], differentiable: bool) -> Products:
    def products(v: Tensor, *, last: bool = False) -> Tensor:
        with torch.set_grad_enabled(differentiable):
            return torch.stack([product(p) for p in v])

    return products


def choose_mode(
    mode: Mode | None, equation: ReverseEquation, inputs: Inputs, x: Tensor, differentiable: bool
) -> tuple[Mode, dict[str, float]]:
    """``mode`` if it is given, reverse for gradients, else the fastest; and the seconds that were measured.

    First the network answers half of the rows x (R, *event) twice, at the times of ``inputs``.

    Raises:
        ArgumentError: for a network that is not differentiable, or does not answer the same twice.
    """

    def asked(condition: Any) -> Field:
        return lambda rows: equation.model.output(rows, inputs, condition)

    name, few = type(equation.model.network).__name__, (len(x) + 1) // 2
    condition = rows_of(equation.condition, 0, few)
    twice = repeat_rows(condition, 2)
    with refuse_random_numbers(x.device, equation.model.network):
        answers = _check_differentiable(asked(twice), torch.cat([x[:few]] * 2), mode, name)
    _check_repeatable(answers, name)
    if mode is not None:
        return mode, {}
    return (reverse, {}) if differentiable else _fastest(asked(rows_of(equation.condition, 0, len(x))), x)


def _check_differentiable(field: Field, x: Tensor, mode: Mode | None, network: object) -> Tensor:
    """The network's output at x, refused if ``mode`` needs autograd and autograd cannot trace the output to x.

    Raises:
        ArgumentError: naming what to do. One evaluation of ``x``.
    """
    if mode is finite_differences:
        with torch.no_grad():
            return field(x)
    remedy = "Remove detach(), no_grad() or numpy from the network, or pass mode=finite_differences."
    if torch.is_inference_mode_enabled():
        problem = "derivatives are needed, and inference mode records none"
        raise ArgumentError("torch.inference_mode", True, problem, "Leave it; torch.no_grad() around the call is fine.")
    try:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = field(leaf)
            traced = y.requires_grad and torch.autograd.grad(y.sum(), leaf, allow_unused=True)[0] is not None
    except (RuntimeError, NotImplementedError) as error:
        with torch.no_grad():
            field(x)  # a network that fails without derivatives, too, says itself what is wrong
        raise ArgumentError("model.network", network, f"not differentiable: {error}", remedy) from error
    if not traced:
        problem = "not differentiable: autograd finds no way from its output back to its input"
        raise ArgumentError("model.network", network, problem, remedy)
    return y.detach()


def _check_repeatable(y: Tensor, network: object) -> None:
    """Refuse a network whose answers y to the same rows twice differ from one half to the other.

    This finds random numbers from any source, torch's own or not.

    Raises:
        ArgumentError: naming what to do.
    """
    one, other = y.chunk(2)
    if bool((one - other).abs().amax() > _ROUNDING * y.abs().amax()):
        problem = "it answers the same question twice with different numbers, and a random field has no likelihood"
        raise ArgumentError("model.network", network, problem, "Take the random numbers out of its forward.")


def _fastest(field: Field, x: Tensor) -> tuple[Mode, dict[str, float]]:
    """Reverse or forward mode, whichever takes less time here for one product, and the seconds of what was tried.

    Everything runs three times and the fastest run counts: other work on the machine can only slow it down. Forward
    mode does twice the network's work and takes memory, so that it is not tried where a product in reverse takes less
    than 3 plain passes. A mode is excluded if it runs out of memory or meets an operation for which it has no rule.

    Raises:
        ArgumentError: if neither works.
    """
    v = torch.ones_like(x).unsqueeze(0)

    def plain() -> None:
        with torch.no_grad():
            field(x)

    seconds = {"network": _seconds(plain, x), "reverse": _seconds(lambda: reverse(field, x)[1](v, last=True), x)}
    if seconds["reverse"] < 3 * seconds["network"]:
        return reverse, seconds
    seconds["forward"] = _seconds(lambda: forward(field, x)[1](v, last=True), x)
    best = min((reverse, forward), key=lambda mode: seconds[mode_name(mode)])
    if seconds[mode_name(best)] == float("inf"):
        raise ArgumentError("mode", None, "neither reverse nor forward works here", "Pass mode=finite_differences.")
    return best, seconds


def _seconds(work: Callable[[], object], x: Tensor) -> float:
    """Of the fastest of three runs; infinite where it fails."""
    best = float("inf")
    try:
        for _ in range(3):
            began = time.perf_counter()
            work()
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            best = min(best, time.perf_counter() - began)
    except (RuntimeError, NotImplementedError):
        return float("inf")
    return best


def mode_name(mode: Mode) -> str:
    """Its name in records: that of the function."""
    return getattr(mode, "__name__", type(mode).__name__)
