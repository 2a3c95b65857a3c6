"""Small networks for the choice of ``auto``: 21 runs over images, patches, signals and points, half of them kept out.

    python benchmarks/train_small_networks.py --to FOLDER --mnist path/to/mnist.npz     # about an hour on one core

Every run is a row of ``RUNS``: data, SDE, prediction, times of training, network, and the half that it belongs to. The
halves were fixed before any kept-out network was measured. A run that was stopped continues, and one that is finished
is left alone. ``choose_auto.py`` and ``auto_on_networks.py`` take the networks that are finished.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit import EDMSDE, MLP, VESDE, VPSDE, CosineVPSDE, DenoisingScoreMatching, FlowMatching, ScoreModel, UNet
from sde_toolkit.data import Dataset, checkerboard, digits, mnist, rings, two_moons
from sde_toolkit.losses import LogNormal
from sde_toolkit.models.time_inputs import NoiseLevel
from sde_toolkit.sde import SDE
from sde_toolkit.training import TrainingOptions, train
from sde_toolkit.transforms import Affine

__all__ = ["RUNS", "Run", "finished"]


def patches(side: int = 16, n: int = 20_000, seed: int = 0) -> Dataset:
    """(n, 3, side, side): patches of the two photographs of scikit-learn, 8-bit colours."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(seed)
    found = []
    for image in load_sample_images().images:
        colours = torch.tensor(image).permute(2, 0, 1)
        tops, lefts = (torch.randint(0, size - side, (n // 2,), generator=generator) for size in colours.shape[1:])
        found += [colours[:, t : t + side, s : s + side] for t, s in zip(tops.tolist(), lefts.tolist(), strict=True)]
    images = torch.stack(found)[torch.randperm(len(found), generator=generator)]
    return Dataset("patches", images[500:], images[:500], transform=Affine(127.5, 1 / 127.5))


def signals(kind: str, n: int = 8000, length: int = 64, seed: int = 0) -> Dataset:
    """(n, 1, length): heartbeats, chirps or damped oscillations, in their own units."""
    generator = torch.Generator().manual_seed(seed)
    s = torch.linspace(0, 1, length)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=generator)

    if kind == "heartbeats":
        waves = ((0.12, 0.2, 0.05), (-0.2, 0.37, 0.02), (1.2, 0.42, 0.025), (-0.3, 0.47, 0.02), (0.3, 0.68, 0.07))
        place, rate = uniform(-0.15, 0.15), uniform(0.8, 1.2)
        x = sum(a * uniform(0.7, 1.3) * torch.exp(-(((s - place) * rate - m) ** 2) / (2 * w**2)) for a, m, w in waves)
        x = x + 0.02 * torch.randn(n, length, generator=generator)
    elif kind == "chirps":
        phase = 2 * math.pi * (uniform(0, 1) + uniform(1, 4) * s + uniform(-2, 4) * s**2)
        x = 5.0 * uniform(0.5, 1.5) * torch.sin(phase)
    else:
        x = (
            uniform(0.5, 2)
            * torch.exp(-uniform(1, 6) * s)
            * torch.sin(2 * math.pi * (uniform(0, 1) + uniform(2, 8) * s))
        )
    assert isinstance(x, Tensor)
    return Dataset(kind, x[500:, None], x[:500, None])


def spirals(n: int = 20_000, seed: int = 0) -> Dataset:
    """(n, 2): two arms of a spiral, of size 16."""
    generator = torch.Generator().manual_seed(seed)
    angle = 3 * math.pi * torch.rand(n, 1, generator=generator).sqrt()
    arm = 1 - 2 * torch.randint(0, 2, (n, 1), generator=generator)
    x = arm * angle * torch.cat([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(n, 2, generator=generator)
    return Dataset("spirals", 3 * x[500:], 3 * x[:500])


@dataclass(frozen=True)
class Run:
    """One network. ``kept_out``: not looked at when the table of ``auto`` is chosen."""

    kept_out: bool
    data: Callable[[Path | None], Dataset]
    sde: SDE
    prediction: Any
    network: Callable[[tuple[int, ...]], nn.Module]
    steps: int
    batch_size: int = 128
    told: Any = None
    edm_times: bool = False
    transform: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


def points(shape: tuple[int, ...]) -> nn.Module:
    return MLP(event_shape=shape, width=128, depth=3, embedding_scale=100.0)


def images(*widths: int, blocks: int = 1) -> Callable[[tuple[int, ...]], nn.Module]:
    def build(shape: tuple[int, ...]) -> nn.Module:
        last = len(widths) - 1
        dims = len(shape) - 1
        return UNet(shape[0], widths, blocks, (last,), embedding_scale=1000.0, dims=dims)

    return build


def of_mnist(path: Path | None) -> Dataset:
    if path is None:
        raise SystemExit("--mnist is needed")
    return mnist(path)


UNIT = Affine(0.0, 1 / 255)
RUNS: dict[str, Run] = {
    "checkerboard, VP, ε": Run(False, lambda _: checkerboard(), VPSDE(), "epsilon", points, 4000, 256),
    "rings, FM, velocity": Run(True, lambda _: rings(), FlowMatching(), "velocity", points, 4000, 256),
    "spirals × 16, EDM": Run(
        False, lambda _: spirals(), EDMSDE(0.03, 1000.0), "edm", points, 4000, 256, edm_times=True
    ),
    "moons, VE, x0": Run(True, lambda _: two_moons(), VESDE(0.005, 30.0), "x0", points, 4000, 256, told=NoiseLevel()),
    "digits, EDM": Run(False, lambda _: digits(), EDMSDE(), "edm", images(16, 32), 2500, 128, edm_times=True),
    "digits, VP, ε": Run(True, lambda _: digits(), VPSDE(), "epsilon", images(16, 32), 2500, 128),
    "patches, VE, F": Run(True, lambda _: patches(), VESDE(0.01, 50.0), "edm", images(32, 64), 800, 64, edm_times=True),
    "mnist, EDM, in [0, 1]": Run(
        False, of_mnist, EDMSDE(0.002, 80.0), "edm", images(16, 32, 64), 800, 64, edm_times=True, transform=UNIT
    ),
    "heartbeats, VP, v": Run(True, lambda _: signals("heartbeats"), VPSDE(), "v", images(16, 32, 64), 1200, 128),
    "chirps, EDM": Run(
        False, lambda _: signals("chirps"), EDMSDE(0.02, 500.0), "edm", images(16, 32, 64), 2000, 128, edm_times=True
    ),
    "patches, cosine, v": Run(False, lambda _: patches(), CosineVPSDE(), "v", images(32, 64), 800, 64),
    "mnist, FM, velocity": Run(True, of_mnist, FlowMatching(), "velocity", images(16, 32, 64), 800, 64),
    "damped, VP, x0": Run(False, lambda _: signals("damped"), VPSDE(), "x0", images(16, 32, 64), 1200, 128),
    "digits, FM, velocity": Run(False, lambda _: digits(), FlowMatching(), "velocity", images(16, 32), 1500, 128),
    "digits, VE, ε": Run(
        True, lambda _: digits(), VESDE(0.01, 50.0), "epsilon", images(16, 32), 2500, 128, told=NoiseLevel()
    ),
    "patches, VP, ε": Run(False, lambda _: patches(), VPSDE(), "epsilon", images(32, 64), 800, 64),
    "damped, EDM": Run(
        True, lambda _: signals("damped"), EDMSDE(0.002, 80.0), "edm", images(16, 32, 64), 1200, 128, edm_times=True
    ),
    "patches, VE, ε": Run(
        False, lambda _: patches(), VESDE(0.01, 50.0), "epsilon", images(32, 64), 800, 64, told=NoiseLevel()
    ),
    "chirps, VE, ε": Run(
        False,
        lambda _: signals("chirps"),
        VESDE(0.02, 200.0),
        "epsilon",
        images(16, 32, 64),
        2000,
        128,
        told=NoiseLevel(),
    ),
    "heartbeats, FM, velocity": Run(
        True, lambda _: signals("heartbeats"), FlowMatching(), "velocity", images(16, 32, 64), 1200, 128
    ),
    "mnist, VE, F, 1.0 M": Run(True, of_mnist, VESDE(0.01, 50.0), "edm", images(24, 48, 96), 1500, 64, edm_times=True),
}


def folder_of(to: Path, name: str) -> Path:
    """Of one run."""
    plain = name.replace("ε", "eps").replace("×", "x")
    return to / "".join(c if c.isalnum() else "-" for c in plain).replace("--", "-")


def finished(to: Path, name: str) -> ScoreModel | None:
    """The averaged model of a finished run, None if it is not finished."""
    folder = folder_of(to, name)
    return ScoreModel.from_pretrained(folder) if (folder / "finished").exists() else None


def build(run: Run, data: Dataset) -> ScoreModel:
    """The untrained model."""
    transform = run.transform or data.transform
    sample = data.sample()
    size = transform.forward(sample).double().square().mean().sqrt().item()
    torch.manual_seed(0)
    return ScoreModel(
        run.network(data.event_shape),
        run.sde,
        run.prediction,
        time_input=run.told,
        sigma_data=round(size, 4),
        transform=transform,
        event_shape=data.event_shape,
    )


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--to", type=Path, required=True, help="folder of the networks")
    words.add_argument("--mnist", type=Path, help="mnist.npz")
    words.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    given = words.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        folder, run, began = folder_of(given.to, name), RUNS[name], time.monotonic()
        if (folder / "finished").exists():
            continue
        data = run.data(given.mnist)
        model = build(run, data)
        options = TrainingOptions(
            steps=run.steps,
            batch_size=run.batch_size,
            learning_rate=2e-3,
            ema_decay=0.99,
            held_out=256,
            evaluate_every=400,
            keep=1,
            **run.options,
        )
        times = LogNormal(math.log(model.sigma_data / 0.5) - 1.2, 1.2) if run.edm_times else None
        train(model, data, folder, options, loss=DenoisingScoreMatching(run.prediction), times=times)
        (folder / "finished").touch()
        weights = sum(p.numel() for p in model.parameters())
        print(f"{name}: {weights} weights, σ_d {model.sigma_data}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
