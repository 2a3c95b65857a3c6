"""A device that is not there: ``pytest --device mock`` runs the laws of devices on a machine that has none.

A tensor of the device ``mock`` holds its numbers in a tensor of the CPU, which nothing else can reach. Operations are
computed there. As on a GPU, an operation between the device and the CPU raises an error, but for copies, indices and
scalars; and a tensor must be brought to the CPU before the host sees its numbers.

What it cannot show: kernels, their rounding, asynchrony, CUDA graphs, memory.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "mock"
aten = torch.ops.aten

CROSSING = {aten.copy_, aten._to_copy, aten._copy_from, aten._copy_from_and_resize, aten._foreach_copy_}
INDEXED = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
}  # by indices of the CPU
SCALED = {aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_, aten.index_fill, aten.index_fill_}
READING = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.is_nonzero, aten._unique2, aten.masked_select}

counts = SimpleNamespace(reads=0, in_package=False)  # how often the host waited for the device


class MockTensor(Tensor):
    """A tensor of the device ``mock``; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> MockTensor:
        _note_the_package()
        held = held.resolve_conj().resolve_neg()  # a lazy conjugate is read wrongly below __torch_dispatch__
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), named=None):
        return computed(operation, arguments, named or {})

    def __repr__(self) -> str:
        return f"MockTensor({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made

    def __reduce_ex__(self, protocol: int) -> Any:
        return _put, (self.detach().cpu(), self.requires_grad)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        Tensor.data.__set__(self, other)
        self.held = other.held

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError("can't convert a mock tensor to numpy: copy it to the host with .cpu() first")
        return self.detach().cpu().numpy()

    def __array__(self, *_, **__):
        return self.numpy()


def _put(values: Tensor, requires_grad: bool) -> Tensor:
    return values.to(NAME).requires_grad_(requires_grad)


@dataclass(frozen=True)
class Habits:
    """How an operation treats devices."""

    crosses: bool  # copies between them
    takes_indices: bool  # of the CPU
    takes_scalars: bool  # of the CPU: tensors without axes
    reads: bool  # the host waits for its result

    @classmethod
    @functools.cache
    def of(cls, operation: Any) -> Habits:
        packet = operation.overloadpacket
        elementwise = torch.Tag.pointwise in operation.tags or packet in SCALED
        return cls(packet in CROSSING, packet in INDEXED, elementwise, packet in READING)


def computed(operation: Any, arguments: Any, named: dict[str, Any]) -> Any:
    """The operation on the held tensors. Its result is on the device that it names, or else where its tensors are."""
    tensors: list[Tensor] = []
    bare_arguments, bare_named = _bare(arguments, tensors), _bare(named, tensors)
    place, habits = named.get("device"), Habits.of(operation)
    there = not tensors or any(type(x) is MockTensor for x in tensors)
    counts.reads += habits.reads
    if not habits.crosses:
        _refuse_mixtures(operation, habits, tensors)
    elif tensors:
        here = type(tensors[0]) is not MockTensor if place is None else torch.device(place).type != NAME
        counts.reads += here and there
        there = there and not here
    if place is not None:
        there = torch.device(place).type == NAME
        bare_named["device"] = torch.device("cpu") if there else place
    bare_named.pop("pin_memory", None)
    result = operation(*bare_arguments, **bare_named)
    if operation is aten._efficientzerotensor.default:  # has no numbers to hold
        result = torch.zeros(result.shape, dtype=result.dtype)
    known = {id(x.held): x for x in tensors if type(x) is MockTensor}
    return _wrapped(result, known) if there else result


def _bare(x: Any, found: list[Tensor]) -> Any:
    """Arguments with the held tensors in place of those of the device; ``found`` gets all tensors."""
    if isinstance(x, Tensor):
        found.append(x)
        return x.held if isinstance(x, MockTensor) else x
    if isinstance(x, list | tuple):
        return [_bare(part, found) for part in x]
    return {key: _bare(part, found) for key, part in x.items()} if isinstance(x, dict) else x


def _wrapped(x: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(x, Tensor):
        if id(x) not in known:
            return MockTensor(x)
        made = known[id(x)]
        if made.shape != x.shape or made.stride() != x.stride():  # squeeze_, resize_ and their like
            made.data = MockTensor(x)
        return made
    return tuple(_wrapped(part, known) for part in x) if isinstance(x, list | tuple) else x


def _refuse_mixtures(operation: Any, habits: Habits, tensors: list[Tensor]) -> None:
    if habits.takes_indices:
        own = (isinstance(x, MockTensor) or (x.is_floating_point() and x.ndim > 0) for x in tensors[1:])
        tensors = [tensors[0], *itertools.compress(tensors[1:], own)]
    elif habits.takes_scalars:
        tensors = [x for x in tensors if isinstance(x, MockTensor) or x.ndim > 0]
    if len({isinstance(x, MockTensor) for x in tensors}) > 1:
        where = ", ".join(f"{x.device.type} {tuple(x.shape)}" for x in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {operation} was given {where}")


def _note_the_package() -> None:
    """``counts.in_package`` is true from the first tensor on that the package asks for."""
    frame = None if counts.in_package else sys._getframe(2)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("sde_toolkit"):
        frame = frame.f_back
    counts.in_package = counts.in_package or frame is not None


# Registration


class _Generators(type(torch.Generator)):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _CPUGenerator)


class MockGenerator(torch.Generator, metaclass=_Generators):
    """torch makes no generators of a device written in Python: this one is of the CPU, and says that it is not."""

    def __new__(cls, device: Any = "cpu"):
        if torch.device(device).type != NAME:
            return _CPUGenerator(device)
        return super().__new__(cls)

    @property
    def device(self):
        return torch.device(NAME, 0)


_CPUGenerator = torch.Generator

LOWER = {  # autocast computes these in its own type, as CUDA's does
    "_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "convolution", "linear", "matmul", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "addr", "baddbmm", "chain_matmul",
    "einsum", "linalg_multi_dot", "linalg_vecdot", "scaled_dot_product_attention", "prelu",
}  # fmt: skip
AS_GIVEN = {
    "addcdiv",
    "addcmul",
    "atan2",
    "bilinear",
    "cross",
    "dot",
    "grid_sampler",
    "index_put",
    "scatter_add",
    "vdot",
    "tensordot",
}


def _autocast_as_cuda(library) -> None:
    """The operations that CUDA's autocast knows; those that it computes in neither type are left as they are."""
    for full in torch._C._dispatch_get_all_op_names():
        name = full.removeprefix("aten::").partition(".")[0]
        if name in AS_GIVEN or not torch._C._dispatch_has_kernel_for_dispatch_key(full, "AutocastCUDA"):
            continue
        library.impl(full, _cast(_overload(full), name in LOWER), "AutocastPrivateUse1")


def _overload(full: str):
    name, _, overload = full.removeprefix("aten::").partition(".")
    return getattr(getattr(aten, name), overload or "default")


def _cast(operation, lower: bool):
    switched_off = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*arguments, **named):
        dtype = torch.get_autocast_dtype(NAME) if lower else torch.float32

        def cast(x):
            return (
                x.to(dtype) if isinstance(x, MockTensor) and x.is_floating_point() and x.dtype != torch.float64 else x
            )

        with torch._C._ExcludeDispatchKeyGuard(switched_off):
            return operation(*_pytree.tree_map(cast, arguments), **_pytree.tree_map(cast, named))

    return kernel


def _module() -> ModuleType:
    """``torch.mock``: what torch asks the module of a device."""
    made = ModuleType(f"torch.{NAME}")
    made.is_available = made.is_initialized = lambda: True
    made._is_in_bad_fork = lambda: False
    made.current_device, made.device_count = lambda: 0, lambda: 1
    made.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    made.manual_seed_all = made.synchronize = made.set_device = lambda *_: None
    return made


_libraries: list[Any] = []  # registrations live as long as they


def register() -> None:
    """From here on ``torch.device("mock")`` is a device."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_module())
    everything, single = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([everything, single])
    everything.fallback(lambda operation, *a, **named: computed(operation, a, named), "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    single.impl("_copy_from", _copy_from, "PrivateUse1")
    for name, operation in _factories():  # torch's own make an empty tensor, whose size they change
        single.impl(name, functools.partial(_made, operation), "PrivateUse1")
    _autocast_as_cuda(single)
    torch.Generator = MockGenerator
    with contextlib.suppress(ImportError):
        from accelerate.state import PartialState

        PartialState.default_device = property(lambda self: torch.device(NAME, 0))


def _factories() -> Iterator[tuple[str, Any]]:
    """What makes a tensor of numbers alone."""
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and "out" not in name.partition(".")[2]:
            parts = _overload(name)._schema.arguments if torch._C._dispatch_has_kernel(name) else ()
            if any(x.name == "device" for x in parts) and not any("Tensor" in str(x.type) for x in parts):
                yield name, _overload(name)


def _made(operation: Any, *arguments: Any, **named: Any) -> Any:
    return computed(operation, arguments, named)


def _copy_from(source, target, non_blocking=False):
    return computed(aten.copy_.default, (target, source), {})
