"""A network of ours with the tensors of a file: built only once they are known to fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sde_toolkit.errors import CheckpointError, SDEToolkitError
from sde_toolkit.files.tensors import match_names, specs_of
from sde_toolkit.models.rebuilding import TooLargeError, sketch_of

__all__ = ["filled"]

Network = TypeVar("Network", bound=nn.Module)


def filled(
    file: Path, construct: Callable[[], Network], count: int, renamed: Callable[[], Mapping[str, Tensor]]
) -> Network:
    """The network that ``construct`` builds, with the tensors of a file as its state, in evaluation mode.

    It is sketched without memory first, so that sizes that a file declares cost nothing. Floating-point numbers are
    rounded to the precision of the network.

    Args:
        file: what is named in errors.
        construct: builds the network with any weights.
        count: the number of tensors in the file.
        renamed: these tensors under our names. It is called when a network of so many can be built.

    Raises:
        CheckpointError: if it cannot be built, a tensor is missing, superfluous, or of another shape or kind of number.
    """
    remedy = "Is it a file of the code that this reader is for? Other code may use the same names for other networks."
    try:
        sketch = sketch_of(construct, 2 * count)
    except TooLargeError:
        problem = f"its options describe a network of more than its {count} tensors"
        raise CheckpointError(file, problem, remedy) from None
    except (SDEToolkitError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(file, f"its network cannot be built: {str(error)[:300]}", remedy) from None
    tensors = renamed()
    chosen, problems = match_names(specs_of(sketch.state_dict()), specs_of(tensors))
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        problem = f"its tensors do not fit the network: {'; '.join(problems[:3])}{more}"
        raise CheckpointError(file, problem[:600], remedy)
    with torch.random.fork_rng(devices=()):
        network = construct()
    network.load_state_dict({name: tensors[there] for name, there in chosen.items()})
    return network.eval()
