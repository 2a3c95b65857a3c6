"""How score_sde_reference.npz was made: by the published code, which is not here, and which the tests do not need.

    git clone https://github.com/yang-song/score_sde_pytorch         (commit cb1f359)
    python tests/interop/make_score_sde_fixtures.py score_sde_pytorch

Its classes ``DDPM`` and ``NCSNpp`` are built small, for images of 8 × 8, with options as in its configurations, and
filled with :func:`weights`. For each case the file holds

    layout        names and shapes of the state dict, the number of parameters that require gradients, σ_max
    <case>/x_0    (x + std² score)/mean of ``get_score_fn`` at :func:`states`
    <case>/end    the last state of ``get_pc_sampler`` with N steps and no corrector, from :func:`start`, with the noise
                  of sample i from :func:`fixed_noise`. VE: the reverse diffusion predictor to eps = 0, with denoising.
                  VP at steps: the ancestral predictor, likewise. The others: Euler-Maruyama to eps = 1/N, without
                  denoising (its steps are 1/N long, whatever eps is)

The table ``sigmas`` is cast to float32 for these runs. In float64, as the code makes it, networks for VE at N steps
answer in float64, and their next call fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

REFERENCE = Path(__file__).parent / "score_sde_reference.npz"
N = 33
TIMES = np.linspace(1, N - 1, 20).round() / (N - 1)
_SMALL = {"nf": 8, "ch_mult": (1, 2), "channels": 1, "blocks": 1, "attention": (4,), "sigma_max": 50.0}
_USUAL = {
    **dict.fromkeys(("resamp_with_conv", "conditional", "skip_rescale"), True),
    **dict.fromkeys(("progressive", "progressive_input"), "none"),
    "dropout": 0.1,
    "nonlinearity": "swish",
    "init_scale": 0.0,
    "sigma_min": 0.01,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "embedding_type": "positional",
    "fourier_scale": 16,
    "fir": False,
    "fir_kernel": [1, 3, 3, 1],
    "resblock_type": "biggan",
    "progressive_combine": "sum",
}
_RESIDUAL = {"fir": True, "progressive_input": "residual"}
_SKIP = {"fir": True, "progressive_input": "input_skip", "progressive": "output_skip"}
_FOURIER = {"embedding_type": "fourier"}
CASES: dict[str, tuple[str, str, bool, dict[str, Any]]] = {  # class, SDE, continuous, options
    "vp_ddpm": ("ddpm", "vpsde", False, {"nf": 32}),
    "vp_ddpmpp_continuous": ("ncsnpp", "vpsde", True, {"nf": 12, "channels": 3}),
    "vp_ddpmpp": ("ncsnpp", "vpsde", False, {"nf": 12, "ch_mult": (1, 1), "blocks": 2}),
    "subvp_ncsnpp_continuous": ("ncsnpp", "subvpsde", True, _RESIDUAL),
    "ve_ncsnpp_continuous": ("ncsnpp", "vesde", True, {"nf": 4, "channels": 3, **_FOURIER, **_RESIDUAL}),
    "ve_large_ncsnpp_continuous": (
        "ncsnpp",
        "vesde",
        True,
        {"ch_mult": (1, 1, 2), "attention": (2,), "sigma_max": 90.0, **_FOURIER, **_SKIP},
    ),
    "ve_ncsnpp": ("ncsnpp", "vesde", False, _RESIDUAL),
    "ve_ddpm": ("ddpm", "vesde", False, {"nf": 32, "ch_mult": (1, 1)}),
}


def weights(layout, seed):
    """The tensors of a case by name: uniform, of variance 1/fan-in; vectors are a fifth as large, around 1 or 0."""
    draws, found = np.random.RandomState(seed), {}
    for name, shape in layout["tensors"].items():
        last = name.rsplit(".", 1)[-1]
        if last == "sigmas":
            value = np.exp(np.linspace(np.log(layout["sigma_max"]), np.log(0.01), shape[0]))
        elif name.endswith("all_modules.0.W"):
            value = 16 * np.random.RandomState(3).standard_normal(shape)
        else:
            value = draws.uniform(-1.7, 1.7, size=shape)
            if len(shape) == 1:
                value = 0.2 * value + (last == "weight")
            else:
                value = value / np.sqrt(shape[0] if last == "W" else np.prod(shape[1:]))
        found[name] = torch.tensor(value, dtype=torch.float64 if last == "sigmas" else torch.float32)
    return found


def states(case, channels, sigma_max):
    """(t of theirs, x) at twenty levels in three shapes: data in their range, with noise."""
    draws, ve = np.random.RandomState(4), case.startswith("ve")
    for t in TIMES:
        for shape in ((1, 8, 8), (2, 4, 8), (1, 16 if channels == 1 else 12, 8)):
            shape = (shape[0], channels, *shape[1:])
            x_0, z = draws.uniform(0 if ve else -1, 1, shape), draws.standard_normal(shape)
            x = x_0 + 0.01 * (sigma_max / 0.01) ** t * z if ve else np.sqrt(0.5) * (x_0 + z)
            yield t, torch.tensor(x, dtype=torch.float32)


def start(shape):
    """Standard normal numbers."""
    return torch.tensor(np.random.RandomState(5).standard_normal(shape), dtype=torch.float32)


class Options(dict):
    """What ``ml_collections.ConfigDict`` is to the published code."""

    __getattr__ = dict.__getitem__


def configuration(case):
    """The configuration of a case, as score_sde reads it."""
    name, sde, continuous, options = CASES[case]
    given = {**_SMALL, **options}
    model = {
        "name": name,
        "num_res_blocks": given.pop("blocks"),
        "attn_resolutions": given.pop("attention"),
        "num_scales": 1000 if continuous and sde != "vesde" else N,  # NCSNpp looks sigmas[999 t] up, without using it
        "scale_by_sigma": sde == "vesde",
    }
    data = Options(image_size=8, centered=sde != "vesde", num_channels=given.pop("channels"))
    training = Options(continuous=continuous, sde=sde)
    return Options(model=Options(_USUAL | model | given), data=data, training=training, device=torch.device("cpu"))


def reference_of(case):
    """(layout, x_0, end) of a case, by the published code."""
    import sampling
    import sde_lib
    from models import ddpm, ncsnpp, utils  # noqa: F401 - these register their classes

    config = configuration(case)
    model, options = utils.create_model(config), config.model
    layout = {
        "tensors": {name: list(value.shape) for name, value in model.state_dict().items()},
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "sigma_max": options.sigma_max,
    }
    model.load_state_dict(weights(layout, 1))
    model.module.sigmas = model.module.sigmas.float()
    ve, continuous = config.training.sde == "vesde", config.training.continuous
    if ve:
        sde = sde_lib.VESDE(options.sigma_min, options.sigma_max, N)
    else:
        kind = {"vpsde": sde_lib.VPSDE, "subvpsde": sde_lib.subVPSDE}[config.training.sde]
        sde = kind(options.beta_min, options.beta_max, N)
    channels = config.data.num_channels
    with torch.no_grad():
        score, found = utils.get_score_fn(sde, model, continuous=continuous), []
        for t, x in states(case, channels, options.sigma_max):
            value = score(x, torch.full((len(x),), t, dtype=torch.float32)).double()
            found.append(((x.double() + std_of(sde, t, continuous) ** 2 * value) / mean_of(sde, t, continuous)).ravel())
    shape, scale = (2, channels, 8, 8), options.sigma_max if ve else 1.0
    sde.prior_sampling = lambda shape: start(shape) * scale
    usual = "reverse_diffusion" if ve else "euler_maruyama" if continuous else "ancestral_sampling"
    euler = usual == "euler_maruyama"
    run = sampling.get_pc_sampler(
        sde,
        shape,
        sampling.get_predictor(usual),
        sampling.NoneCorrector,
        inverse_scaler=lambda x: x,
        snr=0.0,
        n_steps=0,
        continuous=continuous,
        denoise=not euler,
        eps=1 / N if euler else 0.0,
        device="cpu",
    )
    with our_noise(shape):
        end = run(model)[0]
    return layout, torch.cat(found).float().numpy(), end.float().numpy()


def mean_of(sde, t, continuous):
    """The factor of x_0 in x_t."""
    if hasattr(sde, "sqrt_alphas_cumprod") and not continuous:
        return sde.sqrt_alphas_cumprod[int(t * (N - 1))].double()
    return sde.marginal_prob(torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([t]))[0].item()


def std_of(sde, t, continuous):
    """The standard deviation of x_t given x_0."""
    if hasattr(sde, "sqrt_1m_alphas_cumprod") and not continuous:
        return sde.sqrt_1m_alphas_cumprod[int(t * (N - 1))].double()
    return sde.marginal_prob(torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([t]))[1].item()


def fixed_noise(shape):
    """A function that returns the next draws of fixed generators, one for each sample; they never change.

    The file of fixtures holds their trajectories with these draws, whatever streams the package has."""
    keys = [np.random.SeedSequence(6, spawn_key=(i,)) for i in range(shape[0])]
    generators = [np.random.default_rng(key) for key in keys]
    return lambda: torch.from_numpy(np.stack([g.standard_normal(shape[1:], np.float32) for g in generators]))


class our_noise:  # noqa: N801 - a context, like torch.no_grad
    """Inside, ``torch.randn_like`` returns fixed draws; the first one, the start of ``sample``, is left out."""

    def __init__(self, shape):
        self.draw, self.usual = fixed_noise(shape), torch.randn_like
        self.draw()

    def __enter__(self):
        torch.randn_like = lambda x: self.draw()

    def __exit__(self, *_):
        torch.randn_like = self.usual


def main(checkout):
    """Write the file."""
    import torch.utils.cpp_extension

    torch.utils.cpp_extension.load = lambda *_, **__: None  # kernels for CUDA
    sys.modules["ml_collections"] = ModuleType("ml_collections")
    sys.path.insert(0, checkout)
    arrays, layouts = {}, {}
    for case in CASES:
        layouts[case], arrays[f"{case}/x_0"], arrays[f"{case}/end"] = reference_of(case)
    np.savez_compressed(REFERENCE, layout=np.array(json.dumps(layouts)), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
