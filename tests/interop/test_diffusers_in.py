"""Models of diffusers say here what they say there: x̂_0 as each scheduler converts it, and whole trajectories."""

import copy
import importlib
import json
import math
import os
import pickle
import re
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

diffusers = pytest.importorskip("diffusers")

from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402

from sde_toolkit import ScoreModel, clip_x0, ddim, ddpm, interop, reverse_diffusion, sample  # noqa: E402
from sde_toolkit.errors import ArgumentError, CheckpointError  # noqa: E402
from sde_toolkit.interop import diffusers_grid, from_diffusers  # noqa: E402
from sde_toolkit.interop.diffusers_networks import DiffusersNetwork  # noqa: E402
from sde_toolkit.interop.diffusers_training import training_of  # noqa: E402

SHAPES = [(2, 3, 8, 8), (1, 3, 16, 8), (3, 3, 12, 12)]


class Small(ModelMixin, ConfigMixin):
    """A network of diffusers' kind, a hundred times faster than a U-Net."""

    @register_to_config
    def __init__(self, in_channels=3, out_channels=3):
        super().__init__()
        self.inner = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, out_channels, 3, padding=1)

    def forward(self, sample, timestep, return_dict=True):
        wave = torch.sin(timestep.float() * 0.01 + torch.arange(8.0)[:, None])
        return (self.outer(torch.tanh(self.inner(sample) + wave.T.reshape(-1, 8, 1, 1))),)


def strong(network, seed=0):
    """Random weights with answers far from zero."""
    torch.manual_seed(seed)
    for p in network.parameters():
        with torch.no_grad():
            p.copy_(torch.randn_like(p) * (0.6 / math.sqrt(max(1, p[0].numel())) if p.ndim > 1 else 0.3))
    return network.eval()


def unet(**changes):
    given = {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 8), "norm_num_groups": 4,
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 4,
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return strong(diffusers.UNet2DModel(**{**given, **changes}))


def text_unet(**changes):
    given = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "norm_num_groups": 4,
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 6,
    }  # fmt: skip
    return strong(diffusers.UNet2DConditionModel(**{**given, **changes}))


def autoencoder(**changes):
    given = {
        "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.3,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    return strong(diffusers.AutoencoderKL(**{**given, **changes}))


# Schedulers.

VP = {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.03, "num_train_timesteps": 200}
OTHER = {"num_train_timesteps": 200}
V, X = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
END = {"rescale_betas_zero_snr": True}
LINEAR_50 = [0.01 + 0.002 * i for i in range(50)]
SCALED = ("Euler", "Heun", "KDPM2", "LMS")  # their state is x_0 + σ ε

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}

CASES = {
    "DDPM": ("DDPMScheduler", {}),
    "DDPM, sample": ("DDPMScheduler", {**VP, **X}),
    "DDPM, v, cosine": ("DDPMScheduler", {**OTHER, "beta_schedule": "squaredcos_cap_v2", **V}),
    "DDPM, sigmoid": ("DDPMScheduler", {**OTHER, "beta_schedule": "sigmoid"}),
    "DDPM, laplace": ("DDPMScheduler", {**OTHER, "beta_schedule": "laplace"}),
    "DDPM, trained betas": ("DDPMScheduler", {"trained_betas": LINEAR_50, "num_train_timesteps": 50}),
    "DDPM, no signal at the end": ("DDPMScheduler", {**VP, **END, **V}),
    "DDIM": ("DDIMScheduler", VP),
    "DDIM, no signal at the end": ("DDIMScheduler", {**VP, **END, **V}),
    "DDIM, sample": ("DDIMScheduler", {**VP, **X}),
    "DDIM of CogVideoX": ("CogVideoXDDIMScheduler", {**V, **END}),
    "UnCLIP": ("UnCLIPScheduler", OTHER),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler, v": ("EulerDiscreteScheduler", {**VP, **V}),
    "Euler, a little signal at the end": ("EulerDiscreteScheduler", {**VP, **END}),
    "Euler, EDM's scaling": (
        "EulerDiscreteScheduler",
        {"timestep_type": "continuous", **V, "sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True},
    ),
    "Euler, ancestral": ("EulerAncestralDiscreteScheduler", {**VP, **V}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", V),
    "KDPM2, ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DPM-Solver": ("DPMSolverMultistepScheduler", VP),
    "DPM-Solver, a little signal": ("DPMSolverMultistepScheduler", {**VP, **END, **V}),
    "DPM-Solver on a flow": ("DPMSolverMultistepScheduler", FLOW),
    "DPM-Solver, single": ("DPMSolverSinglestepScheduler", {**VP, **X, "lower_order_final": True}),
    "SA-Solver": ("SASolverScheduler", VP),
    "UniPC": ("UniPCMultistepScheduler", {**VP, **END, **V}),
    "EDM Euler": ("EDMEulerScheduler", {"sigma_data": 0.7}),
    "EDM Euler, v": ("EDMEulerScheduler", {**V, "sigma_schedule": "exponential"}),
    "EDM DPM-Solver": ("EDMDPMSolverMultistepScheduler", {}),
    "flow, Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow, LCM": ("FlowMatchLCMScheduler", {"shift": 2.0}),
}  # fmt: skip


def made(name):
    kind, options = CASES[name]
    off = (
        {"clip_sample": False}
        if kind in ("DDPMScheduler", "DDIMScheduler", "UnCLIPScheduler", "CogVideoXDDIMScheduler")
        else {}
    )
    if kind.startswith((*SCALED, "DPMSolverMulti", "UniPC")) and "use_flow_sigmas" not in options:
        off["timestep_spacing"] = (
            "trailing"  # whole timesteps: between them, these classes interpolate σ in their own ways
        )
    return getattr(diffusers, kind)(**off, **options)


def said_by(scheduler, y, t, x, place):
    """x̂_0 in the words of the class: of the answer y at its timestep t and state x, the ``place``-th of its own."""
    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._step_index = place
        return scheduler.convert_model_output(y, sample=x)
    if hasattr(scheduler, "precondition_outputs"):
        return scheduler.precondition_outputs(x, y, scheduler.sigmas[place])
    scheduler._step_index = None
    if "FlowMatch" in type(scheduler).__name__:  # a step to noise level 0
        scheduler._step_index = place
        scheduler.sigmas[place + 1] = 0.0
        return scheduler.step(y, t, x).prev_sample
    return scheduler.step(y, t, x).pred_original_sample


@pytest.mark.parametrize("name", CASES)
def test_x_0_is_what_the_scheduler_makes_of_the_answer(name):
    scheduler, network = made(name), strong(Small())
    model = from_diffusers(network, scheduler, time_scale=1000.0 if training_of(scheduler).is_flow else None)
    scheduler.set_timesteps(20)
    times, generator = diffusers_grid(scheduler, 20), torch.Generator().manual_seed(1)
    evaluations = 2 if CASES[name][0].startswith(("Heun", "KDPM2")) else 1  # per step; the first says x̂_0
    for place, time in zip(range(0, 20 * evaluations, evaluations), times, strict=False):
        t = scheduler.timesteps[place]
        alpha = model.sde.alpha(time).float()
        for shape in SHAPES:
            x = torch.randn(shape, generator=generator) * (1 + model.sde.sigma(time).float())
            state = x / alpha if type(scheduler).__name__.startswith(SCALED) else x
            scheduler._step_index = place
            seen_by_network = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else x
            told = 1000 * time if training_of(scheduler).is_flow else t  # DPM-Solver truncates 1000 σ
            y = network(seen_by_network, told.expand(len(x)), return_dict=False)[0]
            theirs = said_by(scheduler, y, t, state, place)
            ours = model(x, time).x_0
            assert theirs.std() > 0.05
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    assert len(times) >= 20


ALL = sorted(n for n in dir(diffusers) if n.endswith("Scheduler") and n[0].isupper())


@pytest.mark.parametrize("kind", ALL)
def test_every_class_is_read_with_its_own_defaults_or_refused_by_name(kind):
    try:
        scheduler = getattr(diffusers, kind)()
    except (TypeError, ImportError):  # of discrete data, or of a package that is not here
        pytest.skip("it is not built without arguments")
    try:
        sde = training_of(scheduler).sde
    except ArgumentError as error:
        shown = str(error)
        assert shown.startswith("scheduler=")
        return
    if isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        N = len(scheduler.alphas_cumprod)
        alpha = sde.alpha(torch.arange(1, N + 1, dtype=torch.float64) / N)
        torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)
    else:
        assert kind in ("ScoreSdeVeScheduler", "IPNDMScheduler") or "EDM" in kind or "Flow" in kind or "RF" in kind


def test_the_network_of_ve_is_told_sigma_and_answers_with_the_score():
    network = unet(time_embedding_type="fourier", center_input_sample=True)
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=50, sigma_max=20.0)
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    model, times = from_diffusers(network, scheduler), diffusers_grid(scheduler, 50)
    for place in range(0, 48, 2):
        sigma, after = scheduler.discrete_sigmas[49 - place], scheduler.discrete_sigmas[48 - place]
        x = torch.rand(2, 3, 8, 8) + sigma * torch.randn(2, 3, 8, 8)
        told = model.sde.sigma(1 - place / 49).float()
        torch.testing.assert_close(told, sigma, rtol=1e-6, atol=0.0)  # the embedding of log σ is steeper than that
        y = network(x, told.expand(2)).sample
        mean = scheduler.step_pred(y, torch.tensor(1 - place / 49 + 1e-4), x).prev_sample_mean
        theirs = x + (mean - x) / (1 - (after / sigma) ** 2)  # the step that would remove all noise
        torch.testing.assert_close(
            model(x, 1 - place / 49).x_0, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item()
        )
    assert len(times) == 50


def test_the_predictor_of_ve_is_reverse_diffusion():
    """A whole trajectory with the same noise, its Langevin steps left out; its last step goes to no noise."""
    network = unet(time_embedding_type="fourier", center_input_sample=True)
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=50, sigma_max=20.0)
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    model, x = from_diffusers(network, scheduler), 20 * torch.randn(2, 3, 8, 8)
    run = {"x_start": x, "generator": torch.Generator().manual_seed(1), "tweedie": False}
    ours = sample(model, reverse_diffusion(), diffusers_grid(scheduler, 50), **run)
    generator = torch.Generator().manual_seed(1)
    torch.randn(x.shape, generator=generator)  # the draw of a start
    for sigma, t in list(zip(scheduler.sigmas, scheduler.timesteps, strict=True))[:49]:
        x = scheduler.step_pred(network(x, sigma.expand(2)).sample, t, x, generator=generator).prev_sample
    assert (ours.x - x).norm() < 1e-4 * x.norm()


def test_the_network_of_dance_diffusion_is_told_the_angle():
    network, scheduler = strong(Small()), diffusers.IPNDMScheduler()
    for steps in range(1, 21):
        scheduler.set_timesteps(20)
        times = diffusers_grid(scheduler, 20)
        place = steps - 1
        t, x = scheduler.timesteps[place], torch.randn(2, 3, 8, 8)
        scheduler.betas[place + 1], scheduler.alphas[place + 1] = 0.0, 1.0  # a step to noise level 0
        theirs = scheduler.step(network(x, t.expand(2))[0], t, x).prev_sample
        ours = from_diffusers(network, scheduler)(x, times[place]).x_0
        if place > 0:  # its α is 0 at first
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_the_network_of_cosine_edm_is_told_the_angle(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))  # of the noise of its steps, which is not used
    name = "diffusers.schedulers.scheduling_cosine_dpmsolver_multistep"
    kind = importlib.import_module(name).CosineDPMSolverMultistepScheduler
    network, scheduler = strong(Small()), kind(sigma_data=0.8)
    scheduler.set_timesteps(20)
    model, times = from_diffusers(network, scheduler), diffusers_grid(scheduler, 20)
    for place, (t, time) in enumerate(zip(scheduler.timesteps, times, strict=False)):
        sigma, x = scheduler.sigmas[place], rows(3, 8, 8, n=2)
        y = network(scheduler.precondition_inputs(x, sigma), t.expand(2))[0]
        theirs = scheduler.precondition_outputs(x, y, sigma)
        torch.testing.assert_close(model(x, time).x_0, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


# Whole trajectories.


def reference_run(network, scheduler, steps, x, generator=None, options=None, **told):
    scheduler.set_timesteps(steps, **(options or {}))
    for t in scheduler.timesteps:
        y = network(
            scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x,
            t.expand(len(x)),
            **told,
        )[0]
        x = scheduler.step(y, t, x, **({} if generator is None else {"generator": generator})).prev_sample
    return x


RUNS = {
    "DDPM": (lambda: diffusers.DDPMScheduler(clip_sample=False, **VP), ddpm(), {}),
    "DDIM": (lambda: diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"), ddim(), {}),
    "Euler": (lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", **VP), ddim(), {}),
    "EDM Euler": (lambda: diffusers.EDMEulerScheduler(), ddim(), {"tweedie": True}),
    "flow": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), ddim(), {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_trajectory_is_theirs(name):
    build, solver, more = RUNS[name]
    network, scheduler = unet(), build()
    model, grid = from_diffusers(network, scheduler), diffusers_grid(scheduler, 20)
    generator = torch.Generator().manual_seed(9)
    start = torch.randn(2, 3, 8, 8, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    theirs = reference_run(network, scheduler, 20, start, generator)
    if name == "Euler":  # its state is x_0 + σ ε
        start = start * model.sde.alpha(grid[0]).float()
    ours = sample(model, solver, grid, x_start=start, generator=torch.Generator().manual_seed(9), **more).x
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


# Networks.


def rows(*shape, n=1, seed=3):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def transformer(cls, **options):
    return strong(getattr(diffusers, cls)(**options))


DIT = {
    "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 8, "num_layers": 1,
    "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4,
}  # fmt: skip
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 1, "attention_head_dim": 8, "out_channels": 4,
    "num_attention_heads": 2, "joint_attention_dim": 6, "caption_projection_dim": 16, "pooled_projection_dim": 5,
    "pos_embed_max_size": 16,
}  # fmt: skip
FLUX = {
    "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 6, "pooled_projection_dim": 5, "axes_dims_rope": (2, 2, 4),
}  # fmt: skip
PIXART = {
    "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 8, "num_layers": 1,
    "sample_size": 8, "cross_attention_dim": 8, "caption_channels": 6, "use_additional_conditions": False,
    "norm_num_groups": 4,
}  # fmt: skip
NETWORKS = {  # network, its shapes, what all samples are told, further arguments, what it is told at time t of a flow
    "a U-Net": (unet, SHAPES, {}, {}, None),
    "a U-Net with classes": (lambda: unet(num_class_embeds=5), SHAPES, {"class_labels": torch.tensor([3])}, {}, None),
    "a U-Net with a table of times": (
        lambda: unet(time_embedding_type="learned", num_train_timesteps=200), SHAPES, {}, {}, None,
    ),
    "a U-Net with a learned variance": (lambda: unet(out_channels=6), SHAPES, {}, {}, None),
    "a U-Net with text": (
        text_unet, [(2, 4, 8, 8), (1, 4, 16, 8), (3, 4, 4, 8)], {"encoder_hidden_states": rows(3, 6)}, {}, None,
    ),
    "a U-Net with two texts": (
        lambda: text_unet(
            addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=29
        ),
        [(2, 4, 8, 8), (1, 4, 16, 8), (3, 4, 4, 8)],
        {"encoder_hidden_states": rows(3, 6), "added_cond_kwargs": {"text_embeds": rows(5), "time_ids": rows(6)}}, {},
        None,
    ),
    "DiT": (
        lambda: transformer("DiTTransformer2DModel", **DIT), [(2, 4, 8, 8), (1, 4, 8, 8), (3, 4, 8, 8)],
        {"class_labels": torch.tensor([7])}, {}, None,
    ),
    "PixArt": (
        lambda: transformer("PixArtTransformer2DModel", **PIXART), [(2, 4, 8, 8), (1, 4, 8, 8), (3, 4, 8, 8)],
        {"encoder_hidden_states": rows(3, 6), "added_cond_kwargs": {}}, {}, None,
    ),
    "SD3": (
        lambda: transformer("SD3Transformer2DModel", **SD3), [(2, 4, 8, 8), (1, 4, 16, 8), (3, 4, 4, 8)],
        {"encoder_hidden_states": rows(3, 6), "pooled_projections": rows(5)}, {}, 1000.0,
    ),
    "Flux": (
        lambda: transformer("FluxTransformer2DModel", **FLUX), [(2, 9, 4), (1, 9, 4), (3, 9, 4)],
        {"encoder_hidden_states": rows(3, 6), "pooled_projections": rows(5)},
        {"txt_ids": torch.zeros(3, 3), "img_ids": torch.arange(27.0).reshape(9, 3) % 3}, 1.0,
    ),
}  # fmt: skip


def grown(condition, n):
    return {k: grown(v, n) if isinstance(v, dict) else v.expand(n, *v.shape[1:]) for k, v in condition.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_says_what_it_says_in_diffusers(name):
    build, shapes, condition, arguments, flow = NETWORKS[name]
    network = build()
    if flow is None:
        scheduler = diffusers.DDIMScheduler(clip_sample=False, **VP)
        timesteps = torch.arange(9, 200, 10)
        times = (timesteps.double() + 1) / 200
    else:
        scheduler, times = diffusers.FlowMatchEulerDiscreteScheduler(), torch.arange(1, 21, dtype=torch.float64) / 20
        timesteps = flow * times.float()
    scheduler.set_timesteps(20)
    model = from_diffusers(network, scheduler, condition=condition, arguments=arguments)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in network.parameters())
    assert model.event_shape == (None if name == "Flux" else shapes[0][1:])
    for _, *event in shapes:
        x = rows(*event, n=20)
        with torch.no_grad():
            y = network(x, timestep=timesteps, **grown(condition, 20), **arguments, return_dict=False)[0]
            ours = model(x, times).x_0
        y = y[:, : x.shape[1]] if y.shape != x.shape else y
        if flow is None:
            theirs = torch.cat(
                [scheduler.step(y[i : i + 1], t, x[i : i + 1]).pred_original_sample for i, t in enumerate(timesteps)]
            )
        else:
            theirs = x - times.float().reshape(-1, *(1,) * len(event)) * y
        assert y.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


# Folders and files.


@pytest.fixture
def folder(tmp_path):
    """A pipeline as it saves itself."""
    scheduler = diffusers.DDPMScheduler(**VP, variance_type="learned_range")
    diffusers.DDPMPipeline(unet(in_channels=1, out_channels=2), scheduler).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def assert_same(ours, model):
    x, t = rows(*model.event_shape, n=3), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(ours(x, t).x_0, model(x, t).x_0, rtol=0, atol=0)
    assert (ours.sde, ours.prediction, ours.learned_variance) == (model.sde, model.prediction, model.learned_variance)


def test_a_folder_is_the_pipeline_that_wrote_it(folder):
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder, local_files_only=True)
    model = from_diffusers(pipeline)
    assert model.learned_variance == "range"
    assert not interop.load(folder).training
    for path in (folder, str(folder), folder / "unet"):
        assert_same(interop.load(path), model)
    assert_same(interop.load(folder / "unet" / "diffusion_pytorch_model.safetensors", scheduler=folder), model)
    x = torch.tensor([[0.0, 127.5, 255.0]])
    assert torch.equal(model.transform.forward(x), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_a_network_alone_needs_its_scheduler(folder, tmp_path):
    shutil.copytree(folder / "unet", tmp_path / "alone")
    model = interop.load(folder)
    with pytest.raises(ArgumentError, match=r"scheduler=None.*how it was trained"):
        interop.load(tmp_path / "alone")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    for scheduler in (folder, folder / "scheduler", config, diffusers.DDPMScheduler.from_config(config)):
        assert_same(interop.load(tmp_path / "alone", scheduler=scheduler), model)


def test_weights_in_parts_and_under_a_second_name_are_found(folder):
    network = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    model = interop.load(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / "unet", variant="fp16")
    with pytest.raises(ArgumentError, match=r"variant=None.*fp16"):
        interop.load(folder)
    assert_same(interop.load(folder, variant="fp16"), model)
    network.save_pretrained(folder / "unet", max_shard_size="20KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert_same(interop.load(folder), model)


def test_a_key_that_a_config_leaves_out_has_the_default_of_the_class_that_reads_it(folder):
    """The class is the one that the pipeline lists, as in diffusers. Heun's β end at 0.012, DDPM's at 0.02."""
    file = folder / "scheduler" / "scheduler_config.json"
    written = {"_class_name": "DDPMScheduler", "beta_start": 0.0005, "prediction_type": "v_prediction"}
    file.write_text(json.dumps(written))
    edit(folder / "model_index.json", scheduler=["diffusers", "HeunDiscreteScheduler"])
    theirs = diffusers.HeunDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    model = interop.load(folder)
    torch.testing.assert_close(torch.tensor(model.sde.betas), theirs.betas)
    assert model.sde.betas[-1] == pytest.approx(0.012)
    assert interop.load(folder, scheduler=written).sde.betas[-1] == pytest.approx(0.02)


@pytest.mark.parametrize(
    "options", [{}, {"shift_factor": 0.2}, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 0.7]}]
)
def test_the_autoencoder_decodes_pictures_as_it_was_told(tmp_path, options):
    vae, network = autoencoder(**options), transformer("DiTTransformer2DModel", **DIT)
    diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler(**VP)).save_pretrained(tmp_path)
    model = interop.load(tmp_path)
    z = rows(4, 8, 8, n=2)
    wide = lambda v: torch.tensor(v).reshape(-1, 1, 1)  # noqa: E731
    inner = z / 0.3 + options.get("shift_factor", 0.0)
    if "latents_std" in options:
        inner = z * wide(options["latents_std"]) / 0.3 + wide(options["latents_mean"])
    with torch.no_grad():
        theirs = (vae.decode(inner).sample / 2 + 0.5).clamp(0, 1) * 255
    torch.testing.assert_close(model.decoder(z), theirs, rtol=1e-5, atol=1e-3)
    pictures = 255 * torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        mode = vae.encode(pictures / 127.5 - 1).latent_dist.mode()
    back = model.decoder.encode(pictures)
    again = (
        back * wide(options["latents_std"]) / 0.3 + wide(options["latents_mean"])
        if "latents_std" in options
        else back / 0.3 + options.get("shift_factor", 0.0)
    )
    torch.testing.assert_close(again, mode, rtol=1e-4, atol=1e-5)
    assert clip_x0(model).decoder is model.decoder
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in network.parameters())


def test_it_is_saved_as_ours_and_read_back_with_its_network(folder, tmp_path):
    model = interop.load(folder)
    model.save_pretrained(tmp_path / "ours")
    network = DiffusersNetwork(unet(in_channels=1, out_channels=2), keeps_variance=True)
    assert_same(ScoreModel.from_pretrained(tmp_path / "ours", network=network), model)
    with pytest.raises(CheckpointError, match="DiffusersNetwork"):
        ScoreModel.from_pretrained(tmp_path / "ours")


# Hostile folders.


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran code of a file')",))


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def hostile_pickle(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.with_suffix(".bin").write_bytes(pickle.dumps(Trap()))
    weights.unlink()


def own_code(folder):
    (folder / "pipeline.py").write_text("raise SystemExit('ran code of a file')")
    edit(folder / "model_index.json", unet=["pipeline", "Mine"])


def link_outside(folder):
    outside = folder.parent / "elsewhere.safetensors"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(outside)
    os.symlink(outside, folder / "unet" / "diffusion_pytorch_model.safetensors")


def one_weight_lacks(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    save_file({k: v for k, v in load_file(file).items() if k != "conv_out.bias"}, file)


def shards_elsewhere(folder, weight_map):
    next((folder / "unet").glob("*.safetensors")).unlink()
    listing = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listing.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def configured(file, **changes):
    return lambda folder: edit(folder / file, **changes)


UNET, INDEX = "unet/config.json", "model_index.json"
HOSTILE = {
    "a pickle that runs code": (hostile_pickle, CheckpointError, "unet"),
    "code of its own": (own_code, CheckpointError, "Code of a file is not run"),
    "a link that leads outside": (link_outside, CheckpointError, "leads out of the folder"),
    "a class by name": (configured(INDEX, unet=["diffusers", "os.system"]), ArgumentError, "os.system"),
    "no network": (configured(INDEX, unet=["diffusers", "DDPMPipeline"]), ArgumentError, "DDPMPipeline"),
    "channels without end": (configured(UNET, block_out_channels=[4_000_000] * 2), CheckpointError, "asks for"),
    "layers without end": (configured(UNET, layers_per_block=10**9), CheckpointError, "more parameters"),
    "steps without end": (
        configured("scheduler/scheduler_config.json", num_train_timesteps=10**12), ArgumentError, "num_train",
    ),
    "another network": (configured(UNET, block_out_channels=[4, 8]), CheckpointError, "unet"),
    "quantised weights": (configured(UNET, quantization_config={"bits": 4}), CheckpointError, "quantised"),
    "a config that is none": (lambda f: (f / UNET).write_text("[" * 10**5), CheckpointError, "config"),
    "parts elsewhere": (
        lambda f: shards_elsewhere(f, {"conv_in.weight": "../../secret.safetensors"}), CheckpointError, "elsewhere",
    ),
    "parts without names": (lambda f: shards_elsewhere(f, {"conv_in.weight": [1]}), CheckpointError, "elsewhere"),
    "a weight that lacks": (one_weight_lacks, CheckpointError, r"conv_out\.bias.*missing"),
    "weights cut short": (
        lambda f: next((f / "unet").glob("*.safetensors")).write_bytes(b"\xff" * 64), CheckpointError, "unet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_folders_are_refused_and_nothing_in_them_runs(folder, what):
    spoil, error, words = HOSTILE[what]
    spoil(folder)
    with pytest.raises(error, match=words):
        interop.load(folder)


def test_links_inside_the_cache_of_the_hub_are_followed(folder, tmp_path):
    """snapshots/REVISION/... are links to blobs/... there."""
    cache = tmp_path / "models--lab--ddpm"
    (cache / "blobs").mkdir(parents=True)
    place = cache / "snapshots" / "main"
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        blob = cache / "blobs" / file.relative_to(folder).as_posix().replace("/", "_")
        shutil.copy(file, blob)
        target = place / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(blob, target.parent), target)
    assert_same(interop.load(place), interop.load(folder))


# What has to be told.


def test_what_is_not_said_is_asked_for_by_name():
    with pytest.raises(ArgumentError, match=r"time_scale=None.*PRX"):
        from_diffusers(type("PRX", (Small,), {})(), diffusers.FlowMatchEulerDiscreteScheduler())
    model = from_diffusers(text_unet(), diffusers.DDIMScheduler(**VP))
    with pytest.raises(ArgumentError, match=r"condition=None.*encoder_hidden_states"):
        model(rows(4, 8, 8), 0.5)
    named = model(rows(4, 8, 8, n=2), 0.5, {"encoder_hidden_states": rows(3, 6, n=2)})
    assert named.x_0.shape == (2, 4, 8, 8)
    with pytest.raises(ArgumentError, match=r"text=None.*It takes .*encoder_hidden_states"):
        from_diffusers(text_unet(), diffusers.DDIMScheduler(**VP), condition={"text": rows(3, 6)})


@pytest.mark.parametrize(
    ("network", "scheduler", "more", "words"),
    [
        (lambda: nn.Linear(2, 2), lambda: diffusers.DDPMScheduler(), {}, "source="),
        (unet, lambda: 3, {}, "scheduler=3"),
        (unet, lambda: {"beta_start": 0.1}, {}, "_class_name"),
        (unet, lambda: diffusers.CMStochasticIterativeScheduler(), {}, "consistency"),
        (unet, lambda: diffusers.DDPMScheduler(prediction_type="flow_prediction"), {}, "prediction_type="),
        (unet, lambda: diffusers.DDIMScheduler(rescale_betas_zero_snr=True), {}, "prediction='epsilon'"),
        (unet, lambda: diffusers.DDPMScheduler(), {"time_scale": 2.0}, "time_scale=2.0"),
        (unet, lambda: diffusers.EDMEulerScheduler(), {"sigma_data": 2.0}, "sigma_data=2.0"),
        (lambda: unet(time_embedding_type="fourier"), lambda: diffusers.DDPMScheduler(), {}, "logarithm"),
        (lambda: text_unet(in_channels=9), lambda: diffusers.DDPMScheduler(), {}, "9 channels"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(network, scheduler, more, words):
    with pytest.raises(ArgumentError, match=words):
        from_diffusers(network(), scheduler(), **more)


def test_a_label_or_none_as_our_own_networks_take_them():
    model = from_diffusers(transformer("DiTTransformer2DModel", **DIT), diffusers.DDIMScheduler(**VP))
    assert model.num_classes == 10
    x = rows(4, 8, 8, n=2)
    none, labelled = model(x, 0.5).x_0, model(x, 0.5, torch.tensor([10, 3])).x_0
    torch.testing.assert_close(none[0], labelled[0])
    assert (none[1] - labelled[1]).abs().max() > 1e-4
    assert from_diffusers(unet(num_class_embeds=5), diffusers.DDIMScheduler(**VP)).num_classes == 5


# One file in the names of the code that it was trained with.

LDM = [
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 * int(m[1]) + 2}.0.op"),
    (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.0"),
    (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.1"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^up_blocks\.0\.upsamplers\.0\.conv", "output_blocks.1.2.conv"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
    (r"\.norm1\.(weight|bias)$", r".in_layers.0.\1"),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.(weight|bias)$", r".out_layers.0.\1"),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]


def in_ldm_names(name):
    """A tensor of a U-Net of one layer per level under the name that latent diffusion gives it."""
    for pattern, new in LDM:
        if "transformer_blocks" not in name or pattern.startswith("^"):
            name = re.sub(pattern, new, name)
    return f"model.diffusion_model.{name}"


def test_a_single_file_of_latent_diffusion_is_read_by_the_config_beside_it(tmp_path):
    network, scheduler = text_unet(), diffusers.DDIMScheduler(clip_sample=False, **VP)
    condition = {"encoder_hidden_states": rows(3, 6)}
    network.save_config(tmp_path / "kind" / "unet")
    scheduler.save_pretrained(tmp_path / "kind" / "scheduler")
    (tmp_path / "kind" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    file = tmp_path / "sd.safetensors"
    save_file({in_ldm_names(k): v.contiguous() for k, v in network.state_dict().items()}, file)
    with pytest.raises(ArgumentError, match=r"config=None.*weights alone"):
        interop.load(file, scheduler=tmp_path / "kind")
    model = from_diffusers(network, scheduler, condition=condition)
    assert_same(interop.load(file, config=tmp_path / "kind", condition=condition), model)
    assert_same(interop.load(file, config=tmp_path / "kind" / "unet", scheduler=scheduler, condition=condition), model)
    network.save_config(tmp_path / "other")
    edit(tmp_path / "other" / "config.json", block_out_channels=[8, 8])
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        interop.load(file, config=tmp_path / "other", scheduler=scheduler)
    short = {in_ldm_names(k): v.contiguous() for k, v in network.state_dict().items() if "conv_norm_out" not in k}
    save_file(short, file)
    with pytest.raises(CheckpointError, match="lacks weights"):
        interop.load(file, config=tmp_path / "kind")


def test_older_weights_in_a_pickle_are_read_as_tensors_alone(folder):
    model = interop.load(folder)
    network = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    next((folder / "unet").glob("*.safetensors")).unlink()
    network.save_pretrained(folder / "unet", safe_serialization=False)
    assert_same(interop.load(folder), model)


def test_networks_in_half_precision_or_parallel_are_called_as_they_come():
    network, scheduler = unet(), diffusers.DDIMScheduler(**VP)
    x, plain = rows(3, 8, 8, n=2), from_diffusers(network, scheduler)(rows(3, 8, 8, n=2), 0.5).x_0
    assert from_diffusers(nn.DataParallel(network), scheduler).event_shape == (3, 8, 8)
    half = from_diffusers(copy.deepcopy(network).to(torch.bfloat16), scheduler)(x, 0.5).x_0
    assert half.dtype == torch.float32
    assert 0 < (half - plain).abs().mean() < 0.1 * plain.abs().mean()


# The command line.

SHORT = ["nfe=3", "n=4", "progress=false", "output=run"]


def test_sample_decodes_the_latents_of_a_folder(command, tmp_path):
    network, vae = transformer("DiTTransformer2DModel", **DIT), autoencoder()
    diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler(**VP)).save_pretrained(tmp_path / "dit")
    status, _, err = command("sample", "model=dit", "class=3", *SHORT)
    assert status == 0, err
    found = np.load(tmp_path / "run" / "samples.npz")
    with torch.no_grad():
        theirs = (vae.decode(torch.from_numpy(found["x"]) / 0.3).sample / 2 + 0.5).clamp(0, 1) * 255
    assert np.abs(found["pictures"] - theirs.numpy()).max() <= 0.51  # rounded to whole levels
    assert (tmp_path / "run" / "samples.png").is_file()


def test_compare_takes_a_folder_and_is_told_what_it_does_not_say(command, folder, tmp_path):
    shutil.copytree(folder / "unet", tmp_path / "alone")
    words = ["solver=[ddim]", "budgets=[3]", "n=8", "n_real=40", "exact_flow.n=4", "exact_flow.steps=4", *SHORT[2:]]
    status, _, err = command("compare", "model=alone", *words)
    assert status != 0
    assert "scheduler=null" in err
    assert "model={path: alone, scheduler: ...}" in err
    status, out, err = command("compare", "model={path: alone, scheduler: ddpm/scheduler}", *words)
    assert status == 0, err
    assert "real data (floor)" in out
