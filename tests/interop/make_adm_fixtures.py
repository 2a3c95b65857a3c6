"""How tests/interop/adm/ was made: by OpenAI's own code, which the tests do not need.

    git clone https://github.com/openai/guided-diffusion
    python tests/interop/make_adm_fixtures.py guided-diffusion    [name of one fixture]

A network of each kind is built small, filled with weights by the rule of make_edm_fixtures.py, saved as its training
loop saves it (``torch.save`` of the state dict), and evaluated. The inputs are those of :func:`inputs`.
"""

from __future__ import annotations

import io
import lzma
import sys
from pathlib import Path

import numpy as np
from make_edm_fixtures import CLASSES, LEVELS, SHAPES, fill

HERE = Path(__file__).parent / "adm"
_SMALL = {"image_size": 8, "in_channels": 3, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
_SMALL |= {"attention_resolutions": (2,)}
_NEW = {"resblock_updown": True, "use_scale_shift_norm": True, "use_new_attention_order": True}
CASES = {  # options of the network, options of the diffusion, respacing of the sampler, what our reader is told
    "cosine": (
        {**_SMALL, **_NEW, "out_channels": 6, "num_classes": CLASSES, "num_head_channels": 32},
        {"noise_schedule": "cosine", "learn_sigma": True, "steps": 1000},
        "ddim8",
        {"head_width": 32, "attention_order": "new", "noise_schedule": "cosine", "steps": 1000, "image_size": 8},
    ),
    "linear": (
        {
            **_SMALL,
            "num_res_blocks": 2,
            "resblock_updown": True,
            "use_scale_shift_norm": True,
            "out_channels": 6,
            "num_heads": 4,
        },
        {"noise_schedule": "linear", "learn_sigma": True, "steps": 1000},
        "6",
        {"heads": 4, "attention_order": "old", "noise_schedule": "linear", "steps": 1000},
    ),
    "improved": (  # as in improved-diffusion: convolutions between levels, 4000 steps that are told as 0 to 1000
        {**_SMALL, "out_channels": 3, "num_heads": 2, "model_channels": 64, "channel_mult": (1, 1)},
        {"noise_schedule": "linear", "steps": 4000, "rescale_timesteps": True},
        "3,4",
        {
            "heads": 2,
            "attention_order": "old",
            "noise_schedule": "linear",
            "steps": 4000,
            "rescale_timesteps": True,
        },
    ),
}


def inputs(shape):
    """x (20, 3, *shape) of size 1, and classes (20,)."""
    noise = np.random.RandomState(sum(shape)).standard_normal((LEVELS, 3, *shape))
    return noise.astype(np.float32), np.arange(LEVELS) % CLASSES


def indices(steps):
    """Twenty indices, from the last to the first."""
    return np.linspace(steps - 1, 0, LEVELS).round().astype(int)


def evaluate(network, diffusion, steps, sampler, classes):
    """x̂_0 of :func:`inputs`, the variances of steps, and where DDIM ends."""
    import torch

    index, found = torch.as_tensor(indices(steps)), {}

    def told(count):
        return {"y": torch.as_tensor(np.arange(count) % CLASSES)} if classes else {}

    with torch.no_grad():
        for shape in SHAPES:
            x = torch.as_tensor(inputs(shape)[0])
            said = diffusion.p_mean_variance(network, x, index, clip_denoised=False, model_kwargs=told(LEVELS))
            found["x{}x{}".format(*shape)] = said["pred_xstart"].float().numpy()
        found["log_variance"] = said["log_variance"].float().numpy()
        start = torch.as_tensor(inputs(SHAPES[0])[0][:2])
        end = sampler.ddim_sample_loop(
            network, start.shape, noise=start, clip_denoised=False, model_kwargs=told(2), device="cpu"
        )
    return {**found, "end": end.numpy()}


def main(guided, only=None):
    """Write all fixtures, or one."""
    sys.path.insert(0, guided)
    import torch
    from guided_diffusion.script_util import create_gaussian_diffusion
    from guided_diffusion.unet import UNetModel

    for name, (options, schedule, respacing, _) in CASES.items():
        if only not in (None, name):
            continue
        network = UNetModel(**options).eval().requires_grad_(False)
        fill(network)
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        packed = lzma.compress(file.getvalue(), preset=9 | lzma.PRESET_EXTREME)
        (HERE / f"{name}.pt.xz").write_bytes(packed)
        whole, sampler = (create_gaussian_diffusion(**schedule, timestep_respacing=r) for r in ("", respacing))
        found = evaluate(network, whole, schedule["steps"], sampler, "num_classes" in options)
        count = np.asarray(sum(p.numel() for p in network.parameters()))
        np.savez_compressed(HERE / f"{name}.npz", count=count, **found)
        print(name, len(packed), int(count), {k: float(np.std(v)) for k, v in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
