"""A network of diffusers with its weights, from a folder or one file, without running anything that is in them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from torch import Tensor, nn

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.tensors import TensorSpec, check_dense, load_torch_file, specs_in_file, specs_of
from sde_toolkit.interop.diffusers_configs import class_of_diffusers, in_short, read_config
from sde_toolkit.models.rebuilding import TooLargeError, check_fit, sketch_of

__all__ = ["check_links", "network_from_file", "network_in_folder", "root_of"]

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"
_OTHER_CONFIG = f"Is {CONFIG} the one that it was saved with?"
_SPARE = 2**24  # numbers that a network may hold beside its weights: tables that are computed
_MOST_ENTRIES = 10_000  # of a folder


def root_of(path: Path) -> Path:
    """The folder that links may lead to: the checkpoint's own, or that of its repository in the hub's cache."""
    place = path.absolute()
    for above in (place, *place.parents[:3]):
        if above.parent.name == "snapshots" and (above.parent.parent / "blobs").is_dir():
            return above.parent.parent.resolve()
    return place.resolve()


def check_links(folder: Path, root: Path) -> None:
    """Refuse a folder with a link that leads out of ``root``.

    Raises:
        CheckpointError: naming the link.
    """
    inside = itertools.islice(folder.iterdir() if folder.is_dir() else (), _MOST_ENTRIES)
    for entry in (folder, *inside):
        place = entry.resolve()
        if place != root and root not in place.parents:
            problem = f"{entry.name} is a link that leads out of the folder"
            raise CheckpointError(folder, problem, "Copy the file itself to this place.")


def network_in_folder(folder: Path, root: Path, kind: str | None, variant: str | None) -> nn.Module:
    """The network in a folder with ``config.json`` and weights, in evaluation mode.

    Args:
        folder: the folder.
        root: where links may lead.
        kind: the name of its class; None for the one that the config names.
        variant: which of several sets of weights is read.

    Raises:
        CheckpointError: for a folder that is damaged, or whose weights do not fit its config.
        ArgumentError: naming the variants, where there is no set of weights of this name.
    """
    check_links(folder, root)
    config = read_config(folder / CONFIG)
    cls = class_of_diffusers(kind or config.get("_class_name"), "ModelMixin", "network")
    if "quantization_config" in config:
        raise CheckpointError(folder, "its weights are quantised", "Load it with diffusers, and pass the network.")
    stem, specs = _weights(folder, variant)
    _check_size(lambda: cls.from_config(config), specs, folder, stem)
    try:
        network, loaded = cls.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=not stem.endswith(".bin"),
            variant=variant,
            output_loading_info=True,
        )
    except (TypeError, ValueError, RuntimeError, OSError, KeyError, NotImplementedError) as error:
        raise CheckpointError(
            folder, f"{cls.__name__} does not load it ({in_short(error)})", "Copy it again."
        ) from None
    problems = [f"{name!r} is missing" for name in loaded["missing_keys"]]
    problems += [f"{name!r} belongs to nothing" for name in loaded["unexpected_keys"]]
    problems += [f"{name[0]!r} has another shape" for name in loaded["mismatched_keys"]]
    check_fit(folder, stem, problems, CONFIG)
    return network.eval()


def _weights(folder: Path, variant: str | None) -> tuple[str, Mapping[str, TensorSpec]]:
    """(file name, specs of all tensors) of the weights in a folder; of shards, the name of their list."""
    middle = "" if variant is None else f".{variant}"
    one, pickled = folder / f"{WEIGHTS}{middle}.safetensors", folder / f"{WEIGHTS}{middle}.bin"
    listing = folder / f"{WEIGHTS}.safetensors.index{middle}.json"
    if one.is_file():
        return one.name, specs_in_file(one)
    if listing.is_file():
        found = read_config(listing).get("weight_map")
        names = list(found.values()) if isinstance(found, dict) else []
        if not names or not all(isinstance(name, str) and PurePosixPath(name).name == name for name in names):
            raise CheckpointError(folder, f"{listing.name} names files elsewhere", "Copy the folder again.")
        return listing.name, {k: v for name in sorted(set(names)) for k, v in specs_in_file(folder / name).items()}
    if pickled.is_file():
        state = load_torch_file(pickled)  # tensors and plain data alone
        tensors = state if isinstance(state, dict) else {}
        check_dense(pickled, (t for t in tensors.values() if isinstance(t, Tensor)))
        return pickled.name, specs_of(tensors)
    variants = sorted(
        {m[1] for p in folder.iterdir() if (m := re.fullmatch(rf"{WEIGHTS}\.(\w+)\.safetensors", p.name))}
    )
    if variants:
        problem = f"{folder.name} has no weights of this name"
        raise ArgumentError("variant", variant, problem, f"Pass one of those that it has: {', '.join(variants)}.")
    raise CheckpointError(folder, f"it has no {one.name}", "Copy the whole folder.")


def _check_size(
    construct: Callable[[], nn.Module], specs: Mapping[str, TensorSpec], folder: Path, file: str
) -> nn.Module | None:
    """Refuse a network that needs far more memory than its weights have. None where it cannot be told beforehand."""
    try:
        drawn = sketch_of(construct, 2 * len(specs))  # some are registered twice
    except TooLargeError:
        raise CheckpointError(
            folder, f"{CONFIG} asks for more parameters than the {len(specs)} tensors in {file}", _OTHER_CONFIG
        ) from None
    except NotImplementedError:  # it computes with its tensors as it is built
        return None
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(folder, f"{CONFIG} builds no network ({in_short(error)})", "Copy it again.") from None
    held = sum(spec.numel for spec in specs.values()) + _SPARE
    wanted = [sum(tensor.numel() for tensor in tensors) for tensors in (drawn.parameters(), drawn.buffers())]
    if max(wanted) > held:
        problem = f"{CONFIG} asks for {wanted[0]:,} parameters, and {file} holds {held - _SPARE:,} numbers"
        raise CheckpointError(folder, problem, _OTHER_CONFIG)
    return drawn


def network_from_file(path: Path, folder: Path) -> nn.Module:
    """The network that ``config.json`` in ``folder`` describes, with the weights of a safetensors file.

    Raises:
        CheckpointError: for a file that is damaged or does not fit, and a class that is read from folders alone.
    """
    config = read_config(folder / CONFIG)
    cls = class_of_diffusers(config.get("_class_name"), "ModelMixin", "network")
    specs = specs_in_file(path)
    _check_size(lambda: cls.from_config(config), specs, folder, path.name)
    if not hasattr(cls, "from_single_file"):
        problem = f"diffusers reads a {cls.__name__} from folders alone"
        raise CheckpointError(path, problem, f"Put it into a folder as {WEIGHTS}.safetensors, beside its {CONFIG}.")
    try:
        network = cls.from_single_file(
            str(path),
            config=str(folder),
            local_files_only=True,
            low_cpu_mem_usage=True,  # a weight that lacks is seen
        )
    except NotImplementedError:  # a tensor without memory is left
        raise CheckpointError(path, f"it lacks weights of the {cls.__name__}", _OTHER_CONFIG) from None
    except (TypeError, ValueError, RuntimeError, OSError, KeyError, AttributeError) as error:
        problem = f"{cls.__name__} does not load it ({in_short(error)})"
        raise CheckpointError(path, problem, "Is the config that of this network?") from None
    return network.eval()
