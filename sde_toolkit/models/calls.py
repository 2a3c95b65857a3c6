"""How a network is called: in its own precision. Its arguments must stay unchanged, and its answer is checked.

    network in float32 or float64              x and time come in its dtype
    network in half precision or bfloat16      x comes in its dtype; time in that of the state, since an embedding needs
                                               its digits; in the network's own where its layers take it no other way
    network without parameters                 x and time come in the dtype of the state

A network's dtype is that of its first floating-point parameter, looked up anew for every run, in functions too
(:mod:`.inspection`). Conditions are handed over as they are. Answers come back in the dtype of the state.

    network told whole numbers of time         time comes as integers, which an ``nn.Embedding`` needs
    answer in a tuple or list                  its first tensor counts
    answer in an object with ``.sample``       that tensor counts (diffusers' networks)
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import tensors_of
from sde_toolkit.models.inspection import dtype_of, name_of

__all__ = ["Asking", "Counts", "check_condition_name", "count_products", "counted"]

_PRECISE = (torch.float32, torch.float64)
_IN_PLACE = "Take inplace=True out of its first layer, or begin its forward with x = x.clone()."
_ROWS: ContextVar[list[int] | None] = ContextVar("rows", default=None)  # of evaluations, of products


class Counts(NamedTuple):
    """How often each sample went through networks: ``evaluations``, and ``products`` with their Jacobians."""

    evaluations: int
    products: int


def counted(call: Callable[..., Any], x_t: Tensor, *arguments: Any) -> tuple[Any, Counts]:
    """``call(x_t, *arguments)``, and how often each sample of ``x_t`` went through networks in it.

    Evaluations are counted where a network is called, whatever stands around it: two calls with all samples are two, as
    is one call with all of them twice. A model that answers without a network counts as one. Products are noted by
    whoever takes them (:func:`count_products`).
    """
    rows, around = [0, 0], _ROWS.get()
    token = _ROWS.set(rows)
    try:
        answer = call(x_t, *arguments)
    finally:
        _ROWS.reset(token)
        if around is not None:
            around[0] += rows[0]
            around[1] += rows[1]
    n = x_t.shape[0] or 1
    return answer, Counts(-(-rows[0] // n) or 1, -(-rows[1] // n))


def count_products(rows: int) -> None:
    """Note that so many rows went backwards through a network."""
    found = None if torch.compiler.is_compiling() else _ROWS.get()
    if found is not None:
        found[1] += rows


def check_condition_name(name: Any) -> None:
    """Refuse what is neither the name of an argument nor ``"**"``.

    Raises:
        ArgumentError: naming it.
    """
    if not (isinstance(name, str) and (name == "**" or name.isidentifier())):
        problem, remedy = "no name of an argument", 'Pass "y", for example, or "**" for a dictionary of arguments.'
        raise ArgumentError("condition_name", name, problem, remedy)


class Asking:
    """A network, and what is known of how to call it.

    ``condition_name``: the argument by which it is told a condition; "**" if a condition is a dictionary of arguments.
    ``whole_times``: whether it takes time as integers; None until its first evaluation shows it. ``dtype``: of its
    parameters, None without any. ``time_like_x``: its layers took time in no other dtype.
    """

    def __init__(
        self, network: Callable[..., Any], condition_name: str = "condition", whole_times: bool | None = False
    ) -> None:
        self.network, self.condition_name, self.whole_times = network, condition_name, whole_times
        self.dtype = dtype_of(network)
        self.time_like_x = False

    def renew(self, network: Callable[..., Any]) -> None:
        """Look at the network again: it may have been replaced, or moved to another dtype, since the last run."""
        dtype = dtype_of(network)
        if network is not self.network or dtype != self.dtype:
            self.network, self.dtype, self.time_like_x = network, dtype, False

    def __call__(self, x: Tensor, time: Tensor, condition: Any, state: Tensor) -> Tensor:
        """The network's answer for x and time (B,); neither these nor the condition nor ``state`` may be changed by it.

        Raises:
            ArgumentError: if one of them was, or if the answer is no tensor of real numbers.
        """
        if torch.compiler.is_compiling():
            y = _tensor_of(self._call(x, time, condition))
            return y if isinstance(y, Tensor) else self._refuse(y)
        rows = _ROWS.get()
        counted_before = 0 if rows is None else rows[0]
        if state.is_inference():  # torch keeps no versions there
            y = self._answer(x.clone() if x is state else x, time, condition)
        elif condition is None:
            version, version_of_time = state._version, time._version
            y = self._answer(x, time, condition)
            if state._version != version or time._version != version_of_time:
                self._blame((state, time), (version, version_of_time))
        else:
            handed = (state, time, *tensors_of(condition))
            before = tuple(map(_version_of, handed))
            y = self._answer(x, time, condition)
            if tuple(map(_version_of, handed)) != before:
                self._blame(handed, before)
        if not isinstance(y, Tensor):
            y = _tensor_of(y)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            self._refuse(y)
        if rows is not None and rows[0] == counted_before:  # a network that asks score models is counted by theirs
            rows[0] += x.shape[0]
        return y

    def _blame(self, handed: tuple[Tensor, ...], before: tuple[int, ...]) -> None:
        place = next(
            i for i, (tensor, version) in enumerate(zip(handed, before, strict=True)) if _version_of(tensor) != version
        )
        what = ("x, the state of the solver", "its times", "its condition")[min(place, 2)]
        raise ArgumentError("network", name_of(self.network), f"it works in place and has changed {what}", _IN_PLACE)

    def _answer(self, x: Tensor, time: Tensor, condition: Any) -> Any:
        try:
            return self._in_its_dtype(x, time, condition)
        except RuntimeError as error:
            if self.whole_times or "'indices' to have one of the following scalar types" not in str(error):
                raise
            if self.whole_times is False:
                problem = "it looks its time up in a table (nn.Embedding), and that takes whole numbers alone"
                remedy = "Pass time_input=DiscreteIndex(N, whole=True): it is then told the nearest index."
                raise ArgumentError("network", name_of(self.network), problem, remedy) from error
        self.whole_times = True
        return self._in_its_dtype(x, time, condition)

    def _in_its_dtype(self, x: Tensor, time: Tensor, condition: Any) -> Any:
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
        if self.whole_times:
            time = time.round().long()
        elif dtype is not None and time.dtype != dtype and (self.time_like_x or dtype in _PRECISE):
            time = time.to(dtype)
        if condition is None:
            return self.network(x, time)
        named = condition if self.condition_name == "**" else {self.condition_name: condition}
        return self.network(x, time, **named)

    def _refuse(self, y: Any) -> Tensor:
        if isinstance(y, Tensor):
            problem, remedy = f"it answered in {y.dtype}", "A score network answers in real floating point."
        else:
            problem = f"it answered with {_kind_of(y)}, not with a tensor"
            remedy = "Its forward must return a tensor, a tuple that begins with one, or an object with .sample."
        raise ArgumentError("network", name_of(self.network), problem, remedy)


def _tensor_of(y: Any) -> Any:
    """The tensor in a network's answer; the answer itself if it has none that is meant."""
    if isinstance(y, Tensor):
        return y
    found = y[0] if isinstance(y, (tuple, list)) and y else getattr(y, "sample", None)
    return found if isinstance(found, Tensor) else y


def _version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _kind_of(y: Any) -> str:
    if y is None:
        return "None"
    kind = type(y).__name__
    return f"a {kind} of {len(y)}" if isinstance(y, (tuple, list, dict)) else f"a {kind}"
