"""Checkpoints of denoising-diffusion-pytorch for the tests, without that package.

The package itself made ``lucidrains/*.safetensors``. With it installed (denoising-diffusion-pytorch==2.3.4, 1.11.1 for
"groups", 1.6.4 for "standardised"):

    python tests/interop/lucidrains_reference.py images

A fixture holds what ``Trainer.save`` wrote: the names and shapes of all tensors, and the buffers of the schedule. The
weights are drawn by the rule below, from their names. It also holds what the package's networks answer: x̂_0 at 20 noise
levels in three shapes, and the end of ``ddim_sample`` in 10 steps.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).parent / "lucidrains"
STEPS, SAMPLING_STEPS = 100, 10
LEVELS = [round(i) for i in np.linspace(0, STEPS - 1, 20)]
SMALL: dict[str, Any] = {"dim": 8, "dim_mults": (1, 2), "channels": 2}
FEW_HEADS = {"attn_heads": 2, "attn_dim_head": 4}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of the network and of the diffusion
    "images": ({**SMALL, **FEW_HEADS, "full_attn": (True, False)}, {"objective": "pred_v"}),
    "groups": ({**SMALL, "self_condition": True}, {"objective": "pred_noise", "beta_schedule": "cosine"}),
    "standardised": (SMALL, {"objective": "pred_x0", "beta_schedule": "linear"}),
    "signals": (SMALL, {"objective": "pred_v", "beta_schedule": "cosine"}),
}


def shapes_of(kind: str) -> list[tuple[int, ...]]:
    return [(1, 2, 8), (2, 2, 6), (1, 2, 14)] if kind == "signals" else [(1, 2, 8, 8), (2, 2, 4, 6), (1, 2, 12, 4)]


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend on the name alone, on every machine."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(numbers)).float()


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weights of that name: large enough that every part of the network is seen in its output."""
    z = drawn(name, shape)
    if name.endswith((".g", "norm.weight")):
        return 1 + 0.2 * z
    if len(shape) == 1:
        return 0.1 * z
    return z if name.endswith("mem_kv") else 1.2 * z / float(np.prod(shape[1:])) ** 0.5


def checkpoint(kind: str) -> dict[str, Any]:
    """What ``Trainer.save`` wrote, with the weights of the rule."""
    with safe_open(FOLDER / f"{kind}.safetensors", "pt") as file:
        layout = json.loads(file.metadata()["layout"])
        buffers = {k: file.get_tensor(f"buffer.{k}") for k in layout["buffers"]}

    def filled(names: dict[str, list[int]]) -> dict[str, Tensor]:
        state = {}
        for name, shape in names.items():
            own = name.removeprefix("ema_model.")
            rule = f"ema/{own}" if name.startswith("ema_model.") else own
            state[name] = buffers[own] if own in buffers else weight(rule, tuple(shape))
        return state

    return {"step": 1, "model": filled(layout["model"]), "opt": {}, "ema": filled(layout["ema"]), "scaler": None,
            "version": layout["version"]}  # fmt: skip


def answers(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the package's network answered, and its objective and number of parameters."""
    with safe_open(FOLDER / f"{kind}.safetensors", "pt") as file:
        layout = json.loads(file.metadata()["layout"])
    return {k: v for k, v in load_file(FOLDER / f"{kind}.safetensors").items() if "." not in k}, layout


def inputs(kind: str) -> list[Tensor]:
    return [drawn(f"x of shape {shape}", shape) for shape in shapes_of(kind)]


def make(kind: str) -> None:
    """Write the fixture of that kind."""
    import denoising_diffusion_pytorch as package
    from denoising_diffusion_pytorch.version import __version__ as version

    arguments, options = KINDS[kind]
    if kind == "signals":
        diffusion = package.GaussianDiffusion1D(
            package.Unet1D(**arguments), seq_length=8, timesteps=STEPS, sampling_timesteps=SAMPLING_STEPS, **options
        )
    else:
        diffusion = package.GaussianDiffusion(
            package.Unet(**arguments), image_size=8, timesteps=STEPS, sampling_timesteps=SAMPLING_STEPS, **options
        )
    found, average = saved(package, diffusion, signals=kind == "signals")
    own = {k for k in found["model"] if "." not in k}
    layout = {
        "version": found["version"],
        "objective": options["objective"],
        "parameters": sum(p.numel() for p in diffusion.parameters()),
        "buffers": sorted(own),
        "model": {k: list(v.shape) for k, v in found["model"].items()},
        "ema": {k: list(v.shape) for k, v in found["ema"].items() if not k.startswith("online_model.")},
    }
    assert found["version"] == version
    for name, parameter in average.named_parameters():
        parameter.data.copy_(weight(f"ema/{name}", tuple(parameter.shape)))
    tensors = {f"buffer.{k}": found["model"][k] for k in own}
    for place, x in enumerate(inputs(kind)):
        with torch.no_grad():
            rows = [average.model_predictions(x, torch.full((len(x),), i)).pred_x_start for i in LEVELS]
        tensors[f"predicted_{place}"] = torch.stack(rows)
    start = inputs(kind)[0]
    original, torch.randn = torch.randn, lambda *a, **k: start.clone()
    try:
        tensors["sampled"] = average.ddim_sample(tuple(start.shape))
    finally:
        torch.randn = original
    FOLDER.mkdir(exist_ok=True)
    save_file(tensors, FOLDER / f"{kind}.safetensors", {"layout": json.dumps(layout, separators=(",", ":"))})


def saved(package: Any, diffusion: Any, signals: bool, keep: Path | None = None) -> tuple[dict[str, Any], Any]:
    """What the package's trainer saves of a diffusion, and its moving average. ``keep``: where the file is to go."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if signals:
            data = package.Dataset1D(torch.zeros(100, 2, 8))
            trainer = package.Trainer1D(diffusion, dataset=data, results_folder=str(folder / "results"))
        else:
            (folder / "images").mkdir()
            for i in range(100):
                (folder / "images" / f"{i}.png").touch()
            trainer = package.Trainer(
                diffusion, str(folder / "images"), results_folder=str(folder / "results"), calculate_fid=False,
                convert_image_to="RGB",
            )  # fmt: skip
        trainer.save(1)
        file = folder / "results" / "model-1.pt"
        if keep is not None:
            shutil.copy(file, keep)
        return torch.load(file, weights_only=True), trainer.ema.ema_model.eval()


if __name__ == "__main__":
    make(sys.argv[1])
