"""Our U-Nets against those of diffusers and azula: the same outputs, time, memory.

    python benchmarks/networks_against_peers.py agree     # outputs and gradients with diffusers' weights: a minute
    python benchmarks/networks_against_peers.py time      # ours over theirs, in turn in one process: three minutes
    python benchmarks/networks_against_peers.py memory    # ours over theirs, each in a process of its own: four minutes
    python benchmarks/networks_against_peers.py time --device cuda --batch 256 --modes float32 bfloat16 compiled

DDPM's network on CIFAR-10 is compared with diffusers' UNet2DModel of google/ddpm-cifar10-32 (35 746 307 parameters),
with random weights. azula has no such network: its U-Net has one skip a level and no attention. It gets DDPM's widths
and the numbers of blocks that come closest in size (36.4 M), and is compared with our ``UNet``, built alike. All
networks are in the channels-last layout. Peers that are not installed are left out of "time". With one thread
(OMP_NUM_THREADS=1) the time on a CPU is the process's own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import Report, parser
from torch import Tensor, nn

from sde_toolkit.networks import PublishedUNet, UNet, ddpm_cifar10

__all__ = ["azula_unet", "copy_weights", "diffusers_unet", "installed_peers"]

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
    "DDPM": ours,
    "UNet": unet,
    "diffusers": diffusers_unet,
    "azula": azula_unet,
}
PAIRS = (("DDPM", "diffusers"), ("UNet", "azula"))


def installed_peers() -> list[str]:
    """The packages of the peers that are installed."""
    return [peer for _, peer in PAIRS if importlib.util.find_spec(peer)]


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


def agree(report: Report) -> None:
    """Largest differences, of outputs and of gradients by x, relative to the largest value."""
    torch.manual_seed(0)
    theirs, mine = diffusers_unet().eval(), ddpm_cifar10().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # torch's own initialisation leaves the output small
            parameter += 0.02 * torch.randn_like(parameter)
    copy_weights(theirs, mine)
    x, t = torch.randn(4, 3, 32, 32, requires_grad=True), torch.tensor([0.0, 1.0, 500.0, 999.0])
    report.line("DDPM's network with the weights of diffusers': largest difference over largest value.")
    report.table("dtype", "outputs", "gradients by x")
    for dtype in (torch.float32, torch.float64):
        theirs, mine = theirs.to(dtype), mine.to(dtype)
        a, b = theirs(x.to(dtype), t.to(dtype)).sample, mine(x.to(dtype), t.to(dtype))
        da, db = (torch.autograd.grad(y.square().mean(), x)[0] for y in (a, b))
        report.row(str(dtype).removeprefix("torch."), f"{relative(b, a):.1e}", f"{relative(db, da):.1e}")


def relative(b: Tensor, a: Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


def prepare(name: str, mode: str, batch: int, backward: bool, device: str = "cpu") -> Callable[[], None]:
    """One evaluation, or one with its backward pass, of one network."""
    torch.manual_seed(0)
    network: Any = NETWORKS[name]().to(device, memory_format=torch.channels_last)
    network.train(backward)
    x = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    t = torch.linspace(0, 999, batch, device=device).round()
    if mode.endswith("bfloat16"):
        network, x = network.bfloat16(), x.bfloat16()
    called: Any = torch.compile(network, fullgraph=False) if mode.startswith("compiled") else network

    def answer() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=mode == "autocast"):
            y = called(x, t)
        return y if isinstance(y, Tensor) else y.sample

    def forward() -> None:
        with torch.no_grad():
            answer()

    def both() -> None:
        network.zero_grad()
        answer().float().square().mean().backward()

    return both if backward else forward


def timed(call: Callable[[], None], device: str) -> float:
    """Seconds; on a CPU of the process alone where it has one thread, so that others on the machine disturb less."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait(device)
    start = clock()
    call()
    wait(device)
    return clock() - start


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def times(report: Report, modes: list[str], rounds: int, batch: int, device: str) -> None:
    """Medians over the rounds of ours over theirs, with quartiles."""
    pairs = [(own, peer if peer in installed_peers() else own) for own, peer in PAIRS]
    names = dict.fromkeys(name for pair in pairs for name in pair)
    report.line(f"Batch {batch} of 3×32×32 on {device}, median of {rounds} interleaved ratios, quartiles in brackets.")
    report.table("mode", "pass", *(f"{own} / {peer}" for own, peer in pairs), *(f"s, {own}" for own, _ in pairs))
    for mode in modes:
        for backward in (False, True):
            calls = {name: prepare(name, mode, batch, backward, device) for name in names}
            for call in 2 * list(calls.values()):
                timed(call, device)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for index in range(rounds):
                for name in list(calls) if index % 2 else reversed(calls):
                    seconds[name].append(timed(calls[name], device))
            cells = []
            for own, peer in pairs:
                ratios = [a / b for a, b in zip(seconds[own], seconds[peer], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else 3 * ratios
                cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            cells += [f"{statistics.median(seconds[own]):.3f}" for own, _ in PAIRS]
            report.row(mode, "forward, backward" if backward else "forward", *cells)


def memory(report: Report, modes: list[str], batch: int) -> None:
    """Growth of the highest resident memory over that of network and data alone."""
    report.line(
        f"Batch {batch} of 3×32×32; what a pass adds to the highest resident memory, median of three processes."
    )
    report.table("mode", "pass", *(f"{own} / {peer}" for own, peer in PAIRS), *(f"MiB, {own}" for own, _ in PAIRS))
    for mode in modes:
        for backward in (False, True):
            found = {}
            for name in NETWORKS:
                command = [sys.executable, __file__, "one", name, mode, str(batch), str(int(backward))]
                runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
                found[name] = statistics.median(float(run.split()[-1]) for run in runs)
            ratios = [f"{found[own] / found[peer]:.2f}" for own, peer in PAIRS]
            own_memory = [f"{found[own]:.0f}" for own, _ in PAIRS]
            report.row(mode, "forward, backward" if backward else "forward", *ratios, *own_memory)


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
    words = parser(__doc__)
    words.add_argument("what", choices=("agree", "time", "memory", "one"))
    words.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    words.add_argument("--modes", nargs="+", choices=MODES, default=["float32"])
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--batch", type=int, default=4)
    words.add_argument("--device", default="cpu", help="for time; memory is measured on the CPU")
    given = words.parse_args()
    if given.what == "one":
        name, mode, batch, backward = given.arguments
        one(name, mode, int(batch), bool(int(backward)))
        return
    title = f"U-Nets against those of diffusers and azula: {given.what}"
    report = Report(given.results, f"networks-{given.what}", title, installed_peers())
    if given.what == "agree":
        agree(report)
    elif given.what == "time":
        times(report, given.modes, given.rounds, given.batch, given.device)
    else:
        memory(report, given.modes, given.batch)
    report.save()


if __name__ == "__main__":
    main()
