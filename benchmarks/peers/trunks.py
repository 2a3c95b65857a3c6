"""The DDPM network on CIFAR-10 against diffusers' and azula's U-Nets: same outputs, time, memory.

    python trunks.py agree                    outputs and gradients of diffusers' UNet2DModel with copied weights
    python trunks.py time [--rounds 15]       ratios of times, ours / theirs, taken in turn in one process
    python trunks.py memory                   highest resident memory of a step, each network in a process of its own

diffusers' network is that of google/ddpm-cifar10-32 (35 746 307 parameters) with random weights. azula has no such
network: its U-Net is given DDPM's widths and the numbers of blocks that come closest to as many parameters (36.4 M, no
attention, half as many norms). Its like among ours is not DDPM's but ``UNet``, one skip a level: ``--own unet``.
All are channels last. With one thread (OMP_NUM_THREADS=1) the time is the process's own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.networks import PublishedUNet, UNet, ddpm_cifar10

__all__ = ["azula_unet", "copy_weights", "diffusers_unet"]

MODES = ("float32", "bfloat16", "autocast", "compiled", "compiled bfloat16")


def diffusers_unet() -> nn.Module:
    """google/ddpm-cifar10-32, without its weights."""
    from diffusers import UNet2DModel

    plain, attending = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=(plain[0], attending[0], plain[0], plain[0]),
        up_block_types=(plain[1], plain[1], attending[1], plain[1]),
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )


class Azula(nn.Module):
    """azula's U-Net, told the time by the same sinusoids as ours."""

    def __init__(self) -> None:
        super().__init__()
        from azula.nn.unet import UNet

        self.conditioning = ddpm_cifar10().conditioning
        widths, blocks = (128, 256, 256, 256), (4, 3, 2, 2)
        self.unet = UNet(3, 3, hid_channels=widths, hid_blocks=blocks, mod_features=512, norm="group", groups=32)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.unet(x, self.conditioning(x, t, None))
        return out


def azula_unet() -> nn.Module:
    """azula's U-Net of DDPM's widths and size."""
    return Azula()


def ours() -> nn.Module:
    return ddpm_cifar10(dropout=0.0)


def unet() -> nn.Module:
    """Our trunk of one skip a level, of DDPM's widths and size; like azula's, without attention (but at 4×4)."""
    return UNet(3, (128, 256, 256, 256), 3, (), attention_head_width=256, time_width=512, groups=32)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ours": ours,
    "unet": unet,
    "diffusers": diffusers_unet,
    "azula": azula_unet,
}


def copy_weights(theirs: Any, mine: PublishedUNet) -> None:
    """Give ``mine`` the weights of a diffusers UNet2DModel of the same configuration."""
    pairs: list[tuple[Any, Any]] = [
        (mine.conditioning.enter, theirs.time_embedding.linear_1),
        (mine.conditioning.leave, theirs.time_embedding.linear_2),
        (mine.enter, theirs.conv_in),
        (mine.leave_norm, theirs.conv_norm_out),
        (mine.leave, theirs.conv_out),
    ]

    def block(own: Any, other: Any) -> None:
        pairs.extend(
            [
                (own.enter_norm, other.norm1),
                (own.enter, other.conv1),
                (own.shift, other.time_emb_proj),
                (own.leave_norm, other.norm2),
                (own.leave, other.conv2),
            ]
        )
        if other.conv_shortcut is not None:
            pairs.append((own.skip, other.conv_shortcut))

    def stage(parts: Any, other: Any, attention: Any) -> None:
        block(parts[0], other)
        if attention is not None:
            attend(parts[1], attention)

    def attend(own: Any, other: Any) -> None:
        pairs.extend([(own.norm, other.group_norm), (own.leave, other.to_out[0])])
        with torch.no_grad():
            own.enter.weight.copy_(torch.cat([part.weight for part in (other.to_q, other.to_k, other.to_v)]))
            own.enter.bias.copy_(torch.cat([part.bias for part in (other.to_q, other.to_k, other.to_v)]))

    def level(stages: Any, other: Any) -> None:
        attentions = getattr(other, "attentions", [None] * len(other.resnets))
        for parts, resnet, attention in zip(stages, other.resnets, attentions, strict=True):
            stage(parts, resnet, attention)

    for k, other in enumerate(theirs.down_blocks):
        level(mine.down[k], other)
        if other.downsamplers is not None:
            pairs.append((mine.shrink[k].part.conv, other.downsamplers[0].conv))
    block(mine.middle[0], theirs.mid_block.resnets[0])
    attend(mine.middle[1], theirs.mid_block.attentions[0])
    block(mine.middle[2], theirs.mid_block.resnets[1])
    for k, other in zip(reversed(range(len(mine.up))), theirs.up_blocks, strict=True):
        level(mine.up[k], other)
        if other.upsamplers is not None:
            pairs.append((mine.grow[k - 1].part.conv, other.upsamplers[0].conv))
    with torch.no_grad():
        for own, other in pairs:
            own.weight.copy_(other.weight.reshape(own.weight.shape))
            own.bias.copy_(other.bias)


def agree() -> None:
    """Largest differences, of outputs and of gradients by x, relative to the largest value."""
    torch.manual_seed(0)
    theirs, mine = diffusers_unet().eval(), ddpm_cifar10().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # torch's own initialisation leaves the output small
            parameter += 0.02 * torch.randn_like(parameter)
    copy_weights(theirs, mine)
    x, t = torch.randn(4, 3, 32, 32, requires_grad=True), torch.tensor([0.0, 1.0, 500.0, 999.0])
    for dtype in (torch.float32, torch.float64):
        theirs, mine = theirs.to(dtype), mine.to(dtype)
        time_ = t.to(dtype)
        a, b = theirs(x.to(dtype), time_).sample, mine(x.to(dtype), time_)
        da, db = (torch.autograd.grad(y.square().mean(), x)[0] for y in (a, b))
        largest = a.abs().max().item()
        print(f"{dtype}: outputs {relative(b, a):.1e} (largest {largest:.2f}), gradients {relative(db, da):.1e}")
        if dtype == torch.float32 and not relative(b, a) < 1e-5:
            sys.exit("the outputs differ")


def relative(b: Tensor, a: Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


def prepare(name: str, mode: str, batch: int, backward: bool) -> Callable[[], None]:
    """One evaluation, or one with its backward pass, of one network."""
    torch.manual_seed(0)
    network: Any = NETWORKS[name]().to(memory_format=torch.channels_last)
    network.train(backward)
    x = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    t = torch.linspace(0, 999, batch).round()
    if mode.endswith("bfloat16"):
        network, x = network.bfloat16(), x.bfloat16()
    called: Any = torch.compile(network, fullgraph=False) if mode.startswith("compiled") else network

    def answer() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            y = called(x, t)
        return y if isinstance(y, Tensor) else y.sample

    def forward() -> None:
        with torch.no_grad():
            answer()

    def both() -> None:
        network.zero_grad()
        answer().float().square().mean().backward()

    return both if backward else forward


def timed(call: Callable[[], None]) -> float:
    """Seconds; of the process alone where it has one thread, so that others on the machine disturb less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def compare(own: str, modes: list[str], peers: list[str], rounds: int, batch: int) -> None:
    """Medians over the rounds of ours / theirs, with quartiles."""
    print(f"{torch.__version__}, {torch.get_num_threads()} thread(s), batch {batch}; s = median time of {own}")
    for mode in modes:
        for backward in (False, True):
            calls = {name: prepare(name, mode, batch, backward) for name in (own, *peers)}
            for call in calls.values():
                call()
                call()
            times: dict[str, list[float]] = {name: [] for name in calls}
            for index in range(rounds):
                order = list(calls) if index % 2 else list(reversed(calls))
                for name in order:
                    times[name].append(timed(calls[name]))
            pass_ = "forward + backward" if backward else "forward"
            row = [f"{mode:18s} {pass_:18s} {statistics.median(times[own]):7.3f} s"]
            for peer in peers:
                ratios = [a / b for a, b in zip(times[own], times[peer], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                row.append(f"/{peer} {middle:.3f} ({low:.3f}..{high:.3f})")
            print("  ".join(row), flush=True)


def memory(own: str, modes: list[str], peers: list[str], batch: int) -> None:
    """Growth of the highest resident memory over that of network and data alone."""
    for mode in modes:
        for backward in (False, True):
            found = {}
            for name in (own, *peers):
                command = [sys.executable, __file__, "one", name, mode, str(batch), str(int(backward))]
                runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
                found[name] = statistics.median(float(run.split()[-1]) for run in runs)  # they differ by a tenth
            pass_ = "forward + backward" if backward else "forward"
            ratios = "  ".join(f"/{k} {found[own] / found[k]:.3f}" for k in peers)
            print(f"{mode:18s} {pass_:18s} {found[own]:8.0f} MiB  {ratios}", flush=True)


def one(name: str, mode: str, batch: int, backward: bool) -> None:
    """MiB that one network takes for a step beyond what it takes to stand there (Linux)."""
    call = prepare(name, mode, batch, backward)
    call()  # kernels are made, and stay
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    before = resident("VmHWM")
    call()
    print(resident("VmHWM") - before)


def resident(kind: str) -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agree", "time", "memory", "one"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--own", choices=("ours", "unet"), default="ours")
    parser.add_argument("--modes", default="float32,bfloat16,autocast")
    parser.add_argument("--peers", default="diffusers,azula")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    modes = given.modes.split(",")
    if given.what == "agree":
        agree()
    elif given.what == "time":
        compare(given.own, modes, given.peers.split(","), given.rounds, given.batch)
    elif given.what == "memory":
        memory(given.own, modes, given.peers.split(","), given.batch)
    else:
        name, mode, batch, backward = given.arguments
        one(name, mode, int(batch), bool(int(backward)))


if __name__ == "__main__":
    main()
