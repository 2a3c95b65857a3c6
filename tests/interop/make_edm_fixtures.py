"""How tests/interop/edm/ was made: by NVIDIA's own code, which is not here, and which the tests do not need.

    git clone https://github.com/NVlabs/edm          (its licence, CC BY-NC-SA 4.0, does not allow a copy in this place)
    python tests/interop/make_edm_fixtures.py edm    [name of one fixture]
    git clone https://github.com/NVlabs/edm2         (and the fixture of this one)
    python tests/interop/make_edm_fixtures.py edm2

A network of each kind is built small, filled with weights, saved as its training loop saves it, and evaluated. In the
pickles a text stands in place of the source code. Weights are drawn with numpy's ``RandomState(0)``: each row of a
matrix is one of sixteen, so that the file is small when it is compressed; vectors are normal numbers of size 1/5, plus
1 in norms. The inputs are those of :func:`inputs`, which the tests use too.
"""

from __future__ import annotations

import lzma
import pickle
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "edm"
LEVELS, CLASSES, STEPS = 20, 3, 6
SHAPES = ((8, 8), (4, 4), (4, 8))
_SMALL = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
_DDPMPP = {"model_type": "SongUNet", **_SMALL}
_NCSNPP = {**_DDPMPP, "embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
_ADM = {"model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 4], "num_blocks": 1}
CASES = {  # class, options
    "edm_ddpmpp": ("EDMPrecond", {**_DDPMPP, "channel_mult": [2, 2], "label_dim": CLASSES, "augment_dim": 9}),
    "vp_ddpmpp": ("VPPrecond", _DDPMPP),
    "ve_ncsnpp": ("VEPrecond", {**_NCSNPP, "encoder_type": "residual"}),
    "ve_pyramids": ("VEPrecond", {**_NCSNPP, "encoder_type": "skip", "decoder_type": "skip"}),
    "edm_adm": ("EDMPrecond", {**_ADM, "attn_resolutions": [4], "label_dim": CLASSES, "augment_dim": 9}),
    "edm2": (
        "Precond",
        {**_SMALL, "model_channels": 16, "label_dim": CLASSES, "channels_per_head": 16},
    ),
    "iddpm_adm": ("iDDPMPrecond", {**_ADM, "attn_resolutions": [4]}),
}


def inputs(shape, sigmas):
    """x (20, 3, *shape) of data of size 1/2 with noise of these levels, and classes (20,)."""
    noise = np.random.RandomState(sum(shape)).standard_normal((LEVELS, 3, *shape))
    x = noise * np.sqrt(0.25 + np.asarray(sigmas, dtype=np.float64) ** 2)[:, None, None, None]
    return x.astype(np.float32), np.arange(LEVELS) % CLASSES


def fill(network):
    """Weights by the rule above."""
    import torch

    draw = np.random.RandomState(0)
    for name, weight in network.named_parameters():
        if weight.ndim > 1:
            rows = draw.choice([-1.0, 1.0], (16, *weight.shape[1:])) / np.sqrt(weight[0].numel())
            values = rows[draw.randint(16, size=len(weight))]
        else:
            values = 0.2 * draw.standard_normal(weight.shape) + ("norm" in name and name.endswith("weight"))
            values += 0.8 * name.endswith("gain")
        weight.data.copy_(torch.as_tensor(values, dtype=torch.float32))


def levels(network, kind):
    """Twenty of its noise levels, falling."""
    if kind == "iDDPMPrecond":
        return network.u[:-1].numpy()[np.linspace(0, network.M - 1, LEVELS).round().astype(int)].astype(np.float64)
    low, high = max(getattr(network, "sigma_min", 0), 0.002), min(getattr(network, "sigma_max", 80.0), 80.0)
    return np.geomspace(high, low, LEVELS).astype(np.float32).astype(np.float64)


def evaluate(network, kind, options, sampler):
    """What the network says of :func:`inputs`, and where EDM's sampler ends."""
    import torch

    sigmas, arrays = levels(network, kind), {}
    for shape in SHAPES:
        x, label = inputs(shape, sigmas)
        told = torch.eye(CLASSES)[label] if "label_dim" in options else None
        with torch.no_grad():
            arrays["x{}x{}".format(*shape)] = network(torch.as_tensor(x), torch.as_tensor(sigmas), told).numpy()
            if told is not None and shape == SHAPES[0]:
                arrays["without_class"] = network(torch.as_tensor(x), torch.as_tensor(sigmas)).numpy()
    grid = []

    class Recorded(torch.nn.Module):
        sigma_min, sigma_max = getattr(network, "sigma_min", 0), getattr(network, "sigma_max", 80)
        round_sigma = staticmethod(getattr(network, "round_sigma", torch.as_tensor))

        def forward(self, x, sigma, label):
            grid.append(float(sigma))
            return network(x, sigma, label)

    start, label = inputs(SHAPES[0], np.zeros(LEVELS))
    told = torch.eye(CLASSES)[label[:2]] if "label_dim" in options else None
    with torch.no_grad():
        end = sampler(Recorded(), 2 * torch.as_tensor(start[:2]), told, num_steps=STEPS)
    return {"sigmas": sigmas, **arrays, "grid": np.asarray(sorted(set(grid), reverse=True)), "end": end.numpy()}


def main(edm, only=None):
    """Write all fixtures, or one."""
    sys.path.insert(0, edm)
    import torch

    try:
        from generate import edm_sampler
        from training import augment, loss, networks

        modules, more = (augment, loss, networks), {"augment_pipe": augment.AugmentPipe(p=0.12, xflip=1e8)}
        more["loss_fn"] = loss.EDMLoss()
    except ImportError:
        import dnnlib
        from generate_images import edm_sampler as sampler
        from training import encoders, networks_edm2

        networks, more = networks_edm2, dnnlib.EasyDict(encoder=encoders.StandardRGBEncoder())
        modules = (encoders, networks_edm2)

        def edm_sampler(*arguments, **options):
            return sampler(*arguments, **options, dtype=torch.float64)

    for module in modules:
        for thing in vars(module).values():
            if isinstance(thing, type) and hasattr(thing, "_orig_module_src"):
                thing._orig_module_src = "raise SystemExit('source code was run')"
    for name, (kind, options) in CASES.items():
        if only not in (None, name) or not hasattr(networks, kind):
            continue
        torch.manual_seed(0)
        network = getattr(networks, kind)(img_resolution=8, img_channels=3, **options).eval().requires_grad_(False)
        fill(network)
        data = more
        data["ema"] = network.to(torch.float16 if kind == "Precond" else torch.float32)  # as their training loops do
        data["dataset_kwargs"] = {"class_name": "training.dataset.ImageFolderDataset", "path": "data.zip"}
        packed = lzma.compress(pickle.dumps(data), preset=9 | lzma.PRESET_EXTREME)
        (HERE / f"{name}.pkl.xz").write_bytes(packed)
        found = evaluate(network.to(torch.float32), kind, options, edm_sampler)
        inside = network.unet if kind == "Precond" else network.model
        count = np.asarray(sum(p.numel() for p in inside.parameters()))
        np.savez_compressed(HERE / f"{name}.npz", count=count, **found)
        print(name, len(packed), int(count), {k: float(np.std(v)) for k, v in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
