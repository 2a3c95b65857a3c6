"""Named tensors in safetensors files: written whole, and compared with what a network expects before they are read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.whole import atomic_path
from sde_toolkit.networks.inside import without_wrappers

__all__ = [
    "TensorSpec",
    "check_dense",
    "check_regular",
    "check_tensors",
    "load_tensors",
    "load_torch_file",
    "match_names",
    "save_tensors",
    "specs_in_file",
    "specs_of",
    "tensors_metadata",
]

_COPY_AGAIN = "Copy the file again."


class TensorSpec(NamedTuple):
    """The shape of a tensor, and the kind of its numbers: ``float``, ``complex``, ``bool``, or an integer type."""

    shape: tuple[int, ...]
    kind: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def specs_of(tensors: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """The specs of the tensors in a state dict, by name."""
    return {k: TensorSpec(tuple(v.shape), _number_kind(v.dtype)) for k, v in tensors.items() if isinstance(v, Tensor)}


def _number_kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else str(dtype).removeprefix("torch.")


def specs_in_file(file: Path) -> dict[str, TensorSpec]:
    """The specs of the tensors in a file, by name. Only the header is read.

    Raises:
        CheckpointError: if it is truncated, or not a safetensors file.

    """
    from safetensors import safe_open

    check_regular(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return {k: TensorSpec(tuple(v.get_shape()), _number_kind_in_file(v.get_dtype())) for k, v in slices.items()}
    except Exception as error:  # SafetensorError, OSError, and others for a damaged header
        raise _unreadable(file, error) from None


def _number_kind_in_file(name: str) -> str:
    """The kind for a dtype's name in the file: F32 and BF16 are float, I64 is int64, U8 is uint8."""
    if name == "BOOL":
        return "bool"
    for letters, kind in (("F", "float"), ("BF", "float"), ("C", "complex"), ("I", "int"), ("U", "uint")):
        if name.startswith(letters) and name.removeprefix(letters)[:1].isdigit():
            return kind if kind in ("float", "complex") else f"{kind}{name.removeprefix(letters)}"
    return name


def load_torch_file(
    file: Path, remedy: str = _COPY_AGAIN, *, mapped: bool = False, allowed: Sequence[type] = ()
) -> Any:
    """What ``torch.save`` wrote, under ``weights_only``: tensors and plain data, no code. On the CPU.

    Args:
        file: the file.
        remedy: of the error.
        mapped: whether tensors are read when they are looked at, and not before. The file must stay as it is.
        allowed: classes of plain records, such as ``argparse.Namespace``, that it may hold besides.

    Raises:
        CheckpointError: if it is not such a file, or its content is larger than the file.
    """
    check_regular(file)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("it is compressed, which torch.save does not do")
        if sum(m.file_size for m in members) > file.stat().st_size:
            raise ValueError("its content is larger than the file")
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch, pickle and zipfile raise many kinds
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise CheckpointError(file.parent, f"{file.name} is damaged or foreign ({said})", remedy) from None


def check_dense(file: Path, tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that are larger than the file that they come from: views can repeat a number any number of times.

    Raises:
        CheckpointError: naming the file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > file.stat().st_size:
        problem = f"{file.name} declares tensors of {size:,} bytes, and has {file.stat().st_size:,}"
        raise CheckpointError(file.parent, problem, _COPY_AGAIN)


def tensors_metadata(file: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file.

    Raises:
        CheckpointError: if it is truncated, or not a safetensors file.

    """
    from safetensors import safe_open

    check_regular(file)
    try:
        with safe_open(file, framework="pt") as found:
            return dict(found.metadata() or {})
    except Exception as error:
        raise _unreadable(file, error) from None


def check_regular(file: Path) -> None:
    """Refuse a pipe or a device, which could keep the reader waiting for ever.

    Raises:
        CheckpointError: naming the file.
    """
    if file.exists() and not file.is_file():
        raise CheckpointError(file.parent, f"{file.name} is not a regular file", _COPY_AGAIN)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: if it is truncated, or not a safetensors file.

    """
    from safetensors.torch import load_file

    check_regular(file)
    try:
        return load_file(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # SafetensorError, OSError, MemoryError, an unknown dtype
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return CheckpointError(file.parent, f"{file.name} is truncated or not a safetensors file ({said})", _COPY_AGAIN)


def match_names(
    expected: Mapping[str, TensorSpec], found: Mapping[str, TensorSpec]
) -> tuple[dict[str, str], list[str]]:
    """The name in the file of each expected tensor, and a text for each one missing, superfluous or of another shape.

    Two names match if they are equal, or equal without the parts that compiled and parallel networks add. Another
    floating precision fits; another kind of numbers does not.
    """
    bare: dict[str, list[str]] = {}
    for name in found:
        bare.setdefault(without_wrappers(name), []).append(name)
    chosen, problems = {}, []
    for name, spec in expected.items():
        candidates = [name] if name in found else bare.get(without_wrappers(name), [])
        if len(candidates) != 1:
            problems.append(f"{name!r} is missing")
            continue
        chosen[name] = candidates[0]
        there = found[candidates[0]]
        if there != spec:
            here, wanted = (f"{kind} {list(shape)}" for shape, kind in (there, spec))
            problems.append(f"{name!r} is {here} in the file, not {wanted}")
    used = set(chosen.values())
    problems += [f"{name!r} belongs to nothing" for name in found if name not in used]
    return chosen, problems


def check_tensors(tensors: Mapping[str, Any]) -> None:
    """Refuse a state dict that a safetensors file cannot hold.

    Raises:
        ArgumentError: naming the tensor.
    """
    from safetensors.torch import save

    remedy = "Keep numbers in parameters and buffers, and call the network once before it is saved."
    writable: set[torch.dtype] = set()
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ArgumentError(name, value, "the network's state has something that is not a tensor", remedy)
        if torch.nn.parameter.is_lazy(value) or value.is_meta:
            raise ArgumentError(name, type(value).__name__, "this tensor of the network has no values yet", remedy)
        if value.layout != torch.strided:
            raise ArgumentError(name, str(value.layout), "sparse tensors cannot be written", remedy)
        if value.dtype not in writable:
            try:
                save({"x": torch.zeros(1, dtype=torch.uint8).expand(16).contiguous().view(value.dtype)})
            except Exception:
                raise ArgumentError(name, value.dtype, "numbers of this kind cannot be written", remedy) from None
            writable.add(value.dtype)


def save_tensors(target: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file beside its place and move it there. ``metadata`` goes into its header.

    Of tensors that share memory, each is written in full.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_path(target) as place:
            save_file(_unshared(tensors), place, metadata)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{target.name}: {error}") from None


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, no two of them in the same memory."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        if math.prod(value.shape) and place in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        found[name] = value
    return found
