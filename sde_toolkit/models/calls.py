"""How a network is asked: in its own precision, its arguments left alone, its answer looked at.

    network in float32 or float64              x and time come in its dtype
    network in half precision or bfloat16      x comes in its dtype; time in that of the state, since an embedding needs
                                               its digits; in the network's own where its layers take it no other way
    network without parameters                 x and time come in the dtype of the state

A network's dtype is that of its first floating-point parameter, looked up anew for every run, in functions too
(:mod:`.inspection`). Conditions are handed over as they are. Answers come back in the dtype of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import tensors_of
from sde_toolkit.models.inspection import dtype_of, name_of

__all__ = ["Asking", "counted"]

_PRECISE = (torch.float32, torch.float64)
_IN_PLACE = "Take inplace=True out of its first layer, or begin its forward with x = x.clone()."
_ROWS: ContextVar[list[int] | None] = ContextVar("rows", default=None)


def counted(call: Callable[..., Any], x_t: Tensor, *arguments: Any) -> tuple[Any, int]:
    """``call(x_t, *arguments)``, and how many evaluations of networks each sample of ``x_t`` went through in it.

    Evaluations are counted where a network is called, whatever stands around it: two calls with all samples are two, as
    is one call with all of them twice. A model that answers without a network counts as one.
    """
    rows, around = [0], _ROWS.get()
    token = _ROWS.set(rows)
    try:
        answer = call(x_t, *arguments)
    finally:
        _ROWS.reset(token)
        if around is not None:
            around[0] += rows[0]
    n = x_t.shape[0]
    return answer, 1 if rows[0] <= n else -(-rows[0] // n)


class Asking:
    """What is known of a network that is to be asked.

    ``dtype``: of its parameters, None without any. ``time_like_x``: its layers took time in no other dtype.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network = network
        self.dtype = dtype_of(network)
        self.time_like_x = False

    def renew(self, network: Callable[..., Any]) -> None:
        """Look again: it may have been replaced, or moved to another dtype, since the last run."""
        dtype = dtype_of(network)
        if network is not self.network or dtype != self.dtype:
            self.network, self.dtype, self.time_like_x = network, dtype, False

    def __call__(self, x: Tensor, time: Tensor, condition: Any, state: Tensor) -> Tensor:
        """The network's answer for x and time (B,); neither these nor the condition nor ``state`` may be changed by it.

        Raises:
            ArgumentError: if one of them was, or if the answer is no tensor of real numbers.
        """
        if torch.compiler.is_compiling():
            y = self._call(x, time, condition)
            return y if isinstance(y, Tensor) else self._refuse(y)
        rows = _ROWS.get()
        counted_before = 0 if rows is None else rows[0]
        if state.is_inference():  # torch keeps no versions there
            y = self._answer(x.clone() if x is state else x, time, condition)
        else:
            told = () if condition is None else tuple(tensors_of(condition))
            before = state._version, time._version, *map(_version, told)
            y = self._answer(x, time, condition)
            if (state._version, time._version, *map(_version, told)) != before:
                self._blame((state, time, *told), before)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            self._refuse(y)
        if rows is not None and rows[0] == counted_before:  # a network that asks score models is counted by theirs
            rows[0] += x.shape[0]
        return y

    def _blame(self, handed: tuple[Tensor, ...], before: tuple[int, ...]) -> None:
        place = next(
            i for i, (tensor, version) in enumerate(zip(handed, before, strict=True)) if _version(tensor) != version
        )
        what = ("x, the state of the solver", "its times", "its condition")[min(place, 2)]
        raise ArgumentError("network", name_of(self.network), f"it works in place and has changed {what}", _IN_PLACE)

    def _answer(self, x: Tensor, time: Tensor, condition: Any) -> Any:
        if self.dtype is None or self.time_like_x or self.dtype in _PRECISE:
            return self._call(x, time, condition)
        try:
            return self._call(x, time, condition)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
        # A layer right on the time takes it in its own dtype alone.
        self.time_like_x = True
        try:
            return self._call(x, time, condition)
        except BaseException:
            self.time_like_x = False
            raise

    def _call(self, x: Tensor, time: Tensor, condition: Any) -> Any:
        dtype = self.dtype  # .to() of the same dtype is as dear as a small operation
        if dtype is not None and x.dtype != dtype:
            x = x.to(dtype)
        if dtype is not None and time.dtype != dtype and (self.time_like_x or dtype in _PRECISE):
            time = time.to(dtype)
        return self.network(x, time) if condition is None else self.network(x, time, condition=condition)

    def _refuse(self, y: Any) -> Tensor:
        if isinstance(y, Tensor):
            problem, remedy = f"it answered in {y.dtype}", "A score network answers in real floating point."
        else:
            problem = f"it answered with {_described(y)}, not with a tensor"
            remedy = "Return one tensor: return .sample of an output object, or [0] of a tuple, in its forward."
        raise ArgumentError("network", name_of(self.network), problem, remedy)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _described(y: Any) -> str:
    if y is None:
        return "None"
    kind = type(y).__name__
    return f"a {kind} of {len(y)}" if isinstance(y, (tuple, list, dict)) else f"a {kind}"
