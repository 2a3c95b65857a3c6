"""Notes the operations of a network, and finds copies of activations among them."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sde_toolkit.networks import ADMUNet, PublishedUNet, UNet

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
BATCH = 7  # divides no size of a weight

ADM = {"attention_head_width": 8, "groups": 4, "dropout": 0.0}
NETWORKS = {
    "UNet": lambda: UNet(3, (8, 16), 1, (1,), attention_head_width=8, groups=4, time_width=16),
    "DDPM": lambda: PublishedUNet(3, widths=(8, 16), blocks_per_level=1, groups=4, dropout=0.0),
    "ADM": lambda: ADMUNet(3, widths=(8, 16), blocks_per_level=1, attention_levels=(1,), **ADM),
}


class Noted(TorchDispatchMode):
    """Notes every operation and what it returns; convolutions return what cuDNN's do: channels last, if anything is."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if name.startswith("convolution"):
            tensors = out if isinstance(out, tuple) else (out,)
            if any(tensor.is_contiguous(memory_format=LAST[4]) for tensor in args[:2]):
                tensors = [t if t is None or t.ndim != 4 else t.contiguous(memory_format=LAST[4]) for t in tensors]
            out = tuple(tensors) if isinstance(out, tuple) else tensors[0]
        self.operations.append((name, args, out))
        return out

    def between(self, name):
        """Operations and their outputs from the first of this name to the last."""
        places = [place for place, (own, *_) in enumerate(self.operations) if own == name]
        return self.operations[places[0] : places[-1] + 1]


def activations(out):
    """The tensors that have numbers for every position of every sample."""
    tensors = out if isinstance(out, (tuple, list)) else (out,)
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.numel() % BATCH == 0 and t.numel() > BATCH * 96]


def copies(operations):
    return [
        (name, [tuple(t.shape) for t in activations(out)])
        for name, _, out in operations
        if name in ("clone", "copy", "copy_", "_to_copy", "contiguous") and activations(out)
    ]
