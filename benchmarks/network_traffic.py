"""How many bytes our U-Nets and their peers read and write on an accelerator, and keep for the backward pass.

    python benchmarks/network_traffic.py          # half a minute on any machine, and without a GPU

Nothing is computed: tensors of the device "meta" have shapes and layouts alone. Every operation counts the tensors that
it is given and returns. A norm of ours counts as one kernel that reads its input twice, as Triton's does. Copies that
cuDNN makes of what is not channels last are counted. Outside of their products, networks of this size wait for memory,
so that a card's time follows these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from networks_against_peers import NETWORKS, PAIRS, installed_peers
from report import Report, parser
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from sde_toolkit.networks import attention, fused_norm

VIEWS = {
    "view", "_unsafe_view", "detach", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select",
    "split", "split_with_sizes", "unbind", "as_strided", "alias", "unfold", "_reshape_alias", "lift_fresh", "empty",
    "empty_like", "new_empty", "empty_strided", "new_empty_strided",
}  # fmt: skip
LAST = torch.channels_last


class Kernels:
    """Stands for Triton's kernels: operations without an inside."""

    library = torch.library.Library("counted", "DEF")
    library.define("norm(Tensor x, Tensor again, int groups) -> (Tensor, Tensor, Tensor)")
    library.define("backward(Tensor[] read) -> (Tensor, Tensor, Tensor, Tensor)")
    library.impl("norm", lambda x, again, g: (torch.empty_like(x), *torch.empty(2, len(x), g, device=x.device)), "Meta")
    library.impl(
        "backward", lambda t: (torch.empty_like(t[0]), *torch.empty(3, *t[0].shape[:2], device=t[0].device)), "Meta"
    )

    @staticmethod
    def norm_by_triton(x: Tensor, weight: Tensor, bias: Tensor, offset: Any, groups: int, *_: Any) -> Any:
        return torch.ops.counted.norm(x, x.detach(), groups)

    @staticmethod
    def norm_backward_by_triton(cotangent: Tensor, x: Tensor, *_: Any) -> Any:
        return torch.ops.counted.backward([x, cotangent, x.detach(), cotangent.detach()])


def flash(queries: Tensor, keys: Tensor, values: Tensor, **_: Any) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values)[0]


def tensors_in(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from tensors_in(part)


def size(x: Tensor) -> int:
    """Bytes; of an expanded tensor those that it has."""
    count = x.element_size()
    for length, step in zip(x.shape, x.stride(), strict=True):
        count *= length if step else 1
    return count


class Traffic(TorchDispatchMode):
    """Adds up bytes; convolutions return channels last, as cuDNN's do with such weights."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        if name.startswith("convolution"):
            images = [x for x in args[: 2 if name.endswith("backward") else 1] if x.ndim == 4]
            self.bytes += sum(2 * size(x) for x in images if not x.is_contiguous(memory_format=LAST))
            parts = [x.contiguous(memory_format=LAST) if x is not None and x.ndim == 4 else x for x in _list(out)]
            out = tuple(parts) if isinstance(out, tuple) else parts[0]
        if name not in VIEWS:
            self.bytes += sum(map(size, {id(x): x for x in tensors_in([*args, *(kwargs or {}).values()])}.values()))
            self.bytes += sum(map(size, tensors_in(out)))
        return out


def _list(out: Any) -> list[Any]:
    return list(out) if isinstance(out, tuple) else [out]


class Pass:
    """A forward and a backward pass of a network in bfloat16."""

    def __init__(self, network: nn.Module, batch: int) -> None:
        network = network.to("meta", torch.bfloat16, memory_format=LAST).train()
        x, time = torch.empty(batch, 3, 32, 32, device="meta", dtype=torch.bfloat16), torch.empty(batch, device="meta")
        own, kept = {p.untyped_storage()._cdata for p in network.parameters()}, {}
        self.alive = []  # a storage that is gone could lend its number to another

        def pack(tensor: Tensor) -> Tensor:
            self.alive.append(tensor)
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        with Traffic() as forward, saved_tensors_hooks(pack, lambda tensor: tensor):
            y = network(x.to(memory_format=LAST), time)
        y = y if isinstance(y, Tensor) else y.sample
        with Traffic() as backward:
            y.backward(torch.empty_like(y))
        self.forward, self.both, self.kept = forward.bytes, forward.bytes + backward.bytes, sum(kept.values())


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--batch", type=int, default=256)
    words.add_argument("--networks", nargs="+", choices=dict(PAIRS), default=list(dict(PAIRS)))
    given = words.parse_args()
    with (
        patch.object(attention, "scaled_dot_product_attention", flash),
        patch.object(nn.functional, "scaled_dot_product_attention", flash),
        patch.object(fused_norm, "_kernels_for", lambda x, groups: Kernels),
        torch.device("meta"),
    ):
        count(given)


def count(given: argparse.Namespace) -> None:
    report = Report(given.results, "network-traffic", "Bytes that U-Nets move", installed_peers())
    report.line(f"bfloat16, batch {given.batch} of 3×32×32; kept: for the backward pass, for each image.")
    report.table("network", "forward, GB", "with backward, GB", "kept, MiB", "with checkpointing: kept, MiB", "GB")
    for own in given.networks:
        peer = dict(PAIRS)[own]
        for name in (own, peer) if peer in installed_peers() else (own,):
            network: Any = NETWORKS[name]()
            plain, cells = Pass(network, given.batch), ["", ""]
            if name == own:
                network.checkpointing = True
                short = Pass(network, given.batch)
                cells = [f"{short.kept / given.batch / 2**20:.1f}", f"{short.both / 1e9:.1f}"]
            kept = f"{plain.kept / given.batch / 2**20:.1f}"
            report.row(name, f"{plain.forward / 1e9:.1f}", f"{plain.both / 1e9:.1f}", kept, *cells)
    report.save()


if __name__ == "__main__":
    main()
