"""`runs.py` with parameters sharded over the processes by torch's `fully_shard`: FOLDER UNTIL, again and again.

accelerate shards on accelerators only; on the CPU this does for it what its FSDP plugin does: wrap the module and make
the optimizer anew, of the sharded parameters.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import runs
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sde_toolkit.training import trainer


def sharding(accelerator):
    """The same accelerator, whose `prepare` shards."""

    def prepare(objective, optimizer):
        fully_shard(objective, mesh=init_device_mesh("cpu", (accelerator.num_processes,)))
        given = {k: optimizer.param_groups[0][k] for k in ("lr", "betas", "eps", "weight_decay")}
        adam = torch.optim.AdamW(list(objective.parameters()), fused=True, **given)
        return objective, SimpleNamespace(optimizer=adam, step=adam.step, zero_grad=adam.zero_grad)

    accelerator.prepare, accelerator.unwrap_model = prepare, lambda module: module
    return accelerator


if __name__ == "__main__":
    torch.set_num_threads(1)
    plain = trainer.make_accelerator
    trainer.make_accelerator = lambda *arguments: sharding(plain(*arguments))
    for place, until in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        runs.half(Path(place), until=None if until == "end" else int(until))
