"""Pickles of networks read as data: no name in them is looked up, and nothing in them is called.

NVIDIA's networks (EDM, EDM2) are pickled together with their source code, which unpickling would run. Here each name of
the pickle becomes a :class:`Name`, and each call of it a :class:`Built` record of the name and its arguments. Only
names that such files need are accepted, and opcodes that build in other ways are refused. :func:`state_dict` reads
tensors from the records. The memory used is a small multiple of the file's size.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.errors import CheckpointError
from sde_toolkit.files.tensors import check_regular

__all__ = ["Built", "Name", "class_of", "read_pickle", "state_dict", "state_of"]

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_NAMES = {
    PERSISTENT,
    "_codecs.encode",
    "builtins.set",
    "__builtin__.set",
    "collections.OrderedDict",
    "dnnlib.util.EasyDict",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.storage._load_from_bytes",
    *(f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in
      ("_reconstruct", "scalar")),
    *(f"torch.{dtype}" for dtype in ("float16", "float32", "float64", "bfloat16", "int64", "int32", "uint8", "bool")),
}  # fmt: skip
_LAYER = re.compile(r"torch\.nn\.modules\.[a-z_]+\.([A-Z]\w*)")
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MOST_MODULES, _LARGEST_DEPTH = 20_000, 32


class Name(NamedTuple):
    """A name in a pickle, ``module.attribute``. It stands for nothing."""

    text: str


class Built:
    """What a pickle would have built: the name that it calls, the arguments, the state, and the items set on it."""

    __slots__ = ("arguments", "items", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __repr__(self) -> str:
        return f"a {self.name}"


class _RefusedError(Exception):
    """The pickle holds what no network's pickle needs."""


def _without(dispatch: dict[int, Any], *opcodes: bytes) -> dict[int, Any]:
    return {code: method for code, method in dispatch.items() if code not in {opcode[0] for opcode in opcodes}}


class _Reader(pickle._Unpickler):  # the one in Python: its memory follows the file, whatever sizes that declares
    stack: list[Any]
    append: Any
    dispatch: ClassVar[dict[int, Any]] = _without(
        pickle._Unpickler.dispatch,
        *(pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID),
        *(pickle.NEWOBJ_EX, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    )

    def find_class(self, module: str, name: str) -> Any:
        text = f"{module}.{name}"
        if text not in _NAMES and not _LAYER.fullmatch(text):
            raise _RefusedError(f"it names {text[:100]!r}, which no network needs")
        return Name(text)

    def _build(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise _RefusedError("it calls what is not a name")
        self.append(Built(name.text, arguments))

    def _set_state(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Built):
            raise _RefusedError("it changes what is no object")
        self.stack[-1].state = state

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _build
    dispatch[pickle.BUILD[0]] = _set_state


class _StorageReader(_Reader):
    """Of the bytes in which torch keeps one storage: its type, and the record that says how long it is."""

    dispatch: ClassVar[dict[int, Any]] = {
        **_Reader.dispatch,
        pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        if module != "torch" or name not in _STORAGES:
            raise _RefusedError(f"a tensor's memory is {module[:50]}.{name[:50]}")
        return Name(name)

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_pickle(file: Path) -> Any:
    """What a pickle holds: plain data, and records in place of all objects.

    Raises:
        CheckpointError: if it is damaged, or holds a name or an opcode that no network's pickle needs.
    """
    check_regular(file)
    try:
        with file.open("rb") as opened:
            return _Reader(opened).load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle raises nearly every kind
        raise refused(file, error) from None


def refused(file: Path, error: Exception) -> CheckpointError:
    """The error for a pickle that cannot be read, or whose content is not what it should be."""
    if isinstance(error, _RefusedError):
        return CheckpointError(file, f"{error}; nothing of it was run", "Take the file from where it was published.")
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return CheckpointError(file, f"it is damaged or no pickle of a network ({said})", "Copy the file again.")


def class_of(module: Any) -> str:
    """The class of a persistent object, as its own code calls it; of torch's layers their name; else empty."""
    if not isinstance(module, Built):
        return ""
    if module.name == PERSISTENT:
        return str(_meta(module).get("class_name", ""))
    layer = _LAYER.fullmatch(module.name)
    return layer[1] if layer else ""


def state_of(module: Any) -> dict[str, Any]:
    """The attributes of a persistent object or a layer of torch; empty for anything else."""
    if not isinstance(module, Built):
        return {}
    state = _meta(module).get("state") if module.name == PERSISTENT else module.state
    return state if isinstance(state, dict) else {}


def _meta(module: Built) -> dict[str, Any]:
    found = module.arguments[0] if module.arguments else None
    return found if isinstance(found, dict) else {}


def _entries(value: Any) -> dict[str, Any]:
    """The items of a dictionary of any class."""
    return value if isinstance(value, dict) else value.items if isinstance(value, Built) else {}


def modules(root: Any) -> Iterator[tuple[str, Any]]:
    """The modules in a module by their dotted names, itself first under the empty name.

    Raises:
        ValueError: if they are nested too deep, or too many.
    """
    pending, count = [("", root, 0)], 0
    while pending:
        name, module, depth = pending.pop()
        count += 1
        if depth > _LARGEST_DEPTH or count > _MOST_MODULES:
            raise ValueError("its modules are nested too deep, or too many")
        yield name, module
        below = _entries(state_of(module).get("_modules"))
        pending += [(f"{name}.{k}".lstrip("."), v, depth + 1) for k, v in reversed(below.items()) if v is not None]


def state_dict(root: Any) -> dict[str, Tensor]:
    """The parameters and buffers of a module and of all modules in it, by their dotted names, on the CPU.

    Raises:
        ValueError: for tensors whose size is not that of their memory; modules nested too deep, or too many.
    """
    found = {}
    for name, module in modules(root):
        for kind in ("_parameters", "_buffers"):
            for key, value in _entries(state_of(module).get(kind)).items():
                if value is not None:
                    found[f"{name}.{key}".lstrip(".")] = _tensor(value)
    return found


def _tensor(record: Any) -> Tensor:
    if isinstance(record, Built) and record.name == "torch._utils._rebuild_parameter":
        record = record.arguments[0]
    if not isinstance(record, Built) or record.name != "torch._utils._rebuild_tensor_v2":
        raise ValueError("a parameter is no tensor")
    storage, offset, size, stride = record.arguments[:4]
    memory = _storage(storage)
    whole = all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) and len(size) == len(stride)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if whole else 0
    if not whole or math.prod(size) > len(memory) or (math.prod(size) and last >= len(memory)):
        raise ValueError(f"a tensor of shape {tuple(size)} in a memory of {len(memory)} numbers")
    return memory.as_strided(size, stride, offset).clone()


def _storage(record: Any) -> Tensor:
    """The numbers of one storage: four pickles (the third says its length), a list of keys, the length, the bytes."""
    if not isinstance(record, Built) or record.name != "torch.storage._load_from_bytes":
        raise ValueError("a tensor has no memory")
    data = record.arguments[0]
    stream = io.BytesIO(data)
    _, _, _, said, _ = (_StorageReader(stream).load() for _ in range(5))
    mark, kind, _, _, numel, view = said
    (length,) = struct.unpack("<q", stream.read(8))
    dtype, start = _STORAGES[kind.text], stream.tell()
    if mark != "storage" or view is not None or length != numel or start + length * dtype.itemsize != len(data):
        raise ValueError(f"a tensor's memory says that it has {str(numel)[:30]} numbers")
    if not length:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data[start:]), dtype=dtype)
