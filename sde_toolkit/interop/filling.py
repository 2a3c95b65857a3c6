"""A network of ours with the tensors of a file: built only once they are known to fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sde_toolkit.errors import CheckpointError, SDEToolkitError
from sde_toolkit.files.tensors import check_dense, match_names, specs_of
from sde_toolkit.models.rebuilding import TooLargeError, sketch_of

__all__ = ["filled"]

Network = TypeVar("Network", bound=nn.Module)


class _Watched(dict[str, Tensor]):
    """A dictionary that knows what was looked up in it."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return super().__getitem__(name)


def filled(
    file: Path,
    construct: Callable[[], Network],
    tensors: Mapping[str, Tensor],
    renamed: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    constants: str | None = None,
) -> Network:
    """The network that ``construct`` builds, with the tensors of a file as its state, in evaluation mode.

    It is sketched without memory first, so that sizes that a file declares cost nothing. Floating-point numbers are
    rounded to the precision of the network.

    Args:
        file: what is named in errors.
        construct: builds the network with any weights.
        tensors: those of the file.
        renamed: takes them, and returns them under our names. It has to look up all of them by ``tensors[name]``. It is
            called when a network of so many can be built. None: they have our names.
        constants: the end of the names of tensors that are not learned, which may be left alone.

    Raises:
        CheckpointError: if it cannot be built, a tensor is missing, superfluous, of another shape or kind of number, or
            not finite; if the tensors are larger than the file.
    """
    check_dense(file, tensors.values())
    remedy = "Is it a file of the code that this reader is for? Other code may use the same names for other networks."
    try:
        sketch = sketch_of(construct, 2 * len(tensors))
    except TooLargeError:
        problem = f"its options describe a network of more than its {len(tensors)} tensors"
        raise CheckpointError(file, problem, remedy) from None
    except (SDEToolkitError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(file, f"its network cannot be built: {str(error)[:300]}", remedy) from None
    watched = _Watched(tensors)
    ours = {name: watched[name] for name in watched} if renamed is None else renamed(watched)
    chosen, problems = match_names(specs_of(sketch.state_dict()), specs_of(ours))
    left = [name for name in watched if name not in watched.used and not (constants and name.endswith(constants))]
    problems += [f"{name!r} belongs to nothing" for name in left]
    problems += [f"{name!r} holds NaN or infinity" for name, t in ours.items() if not bool(t.isfinite().all())]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        problem = f"its tensors do not fit the network: {'; '.join(problems[:3])}{more}"
        raise CheckpointError(file, problem[:600], remedy)
    with torch.random.fork_rng(devices=()):
        network = construct()
    network.load_state_dict({name: ours[there] for name, there in chosen.items()})
    return network.eval()
