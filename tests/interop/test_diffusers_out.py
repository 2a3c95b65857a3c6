"""A pipeline of diffusers with one of our solvers for its scheduler gives what ``sample`` gives, number for number."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch

from sde_toolkit import EDMSDE, VPSDE, DiscreteVPSDE, ScoreModel, Solver, clip_x0, grids, sample, solvers
from sde_toolkit.errors import ArgumentError, CheckpointError, GridError
from sde_toolkit.integrators import ChurnedHeun, Exponential, Integrator, Multistep
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.interop import diffusers_grid, from_diffusers, to_diffusers
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, RemainingTime, ScaledTime

pytest.importorskip("diffusers")

PRESETS = sorted(set(solvers.__all__) - {"Solver", "adaptive_sde"})
SHAPE = (2, 4, 4, 4)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def noise(seed=1, shape=SHAPE):
    return torch.randn(shape, generator=generator(seed))


def loud(network):
    """Weights so large that what is computed is far from zero everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def the_same(found, wanted):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    return True


def last_state(scheduler):
    """What the pipeline gets from its last step, before it is clamped."""
    seen, step = [], scheduler.step

    def remembered(*arguments, **named):
        answer = step(*arguments, **named)
        seen[:] = [answer[0]]
        return answer

    scheduler.step = remembered
    return seen


def run(scheduler, network, x, n=None, seed=1, scaled=True, change=None):
    """The loop that every pipeline has. The generator has drawn a start, as that of ``sample`` has."""
    draws = generator(seed)
    torch.randn(x.shape, generator=draws, dtype=x.dtype)
    if n is not None:
        scheduler.set_timesteps(n)
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t) if scaled else x
        x = scheduler.step(network(seen, t.expand(len(x))), t, x, generator=draws).prev_sample
        x = x if change is None else change(i, x)
    return x


@pytest.fixture(scope="module")
def picture_network():
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 4, "in_channels": 4, "out_channels": 4, "layers_per_block": 1}
    return loud(UNet2DModel(**blocks, **sizes, block_out_channels=(4, 4), norm_num_groups=2, add_attention=False))


@pytest.fixture(scope="module")
def picture_model(picture_network):
    return ScoreModel(lambda x, t: picture_network(x, t).sample, DiscreteVPSDE(), time_input=DiscreteIndex())


def picture_pipeline(network, scheduler):
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", PRESETS)
def test_ddpm_pipeline(name, picture_network, picture_model):
    """It starts from z itself, and hands its generator to every step."""
    solver = getattr(solvers, name)()
    pipeline = picture_pipeline(picture_network, to_diffusers(solver))
    seen = last_state(pipeline.scheduler)
    pipeline(len(noise()), generator=generator(), num_inference_steps=3, output_type="np")
    with torch.no_grad():
        wanted = sample(picture_model, solver, steps=3, x_start=noise(), generator=generator())
    assert the_same(seen[0], wanted.x)
    assert len(pipeline.scheduler.timesteps) == wanted.nfe


@pytest.fixture(scope="module")
def latent_parts():
    pytest.importorskip("transformers", reason="StableDiffusionPipeline imports it")
    from diffusers import AutoencoderKL, UNet2DConditionModel

    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    sizes = {"sample_size": 4, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "attention_head_dim": 2}
    unet = UNet2DConditionModel(
        **blocks, **sizes, mid_block_type=None, block_out_channels=(4,), norm_num_groups=2, cross_attention_dim=4
    )
    four = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return loud(unet), AutoencoderKL(**four, block_out_channels=(2,) * 4, norm_num_groups=2)


@pytest.mark.parametrize("name", PRESETS)
def test_stable_diffusion_pipeline(name, latent_parts):
    """Text is told as embeddings; the start is drawn by the pipeline, and multiplied by ``init_noise_sigma``."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    (unet, vae), solver, text = latent_parts, getattr(solvers, name)(), noise(2, (2, 3, 4))
    theirs = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sde = DiscreteVPSDE(theirs.betas.double())
    model = ScoreModel(lambda x, t: unet(x, t, encoder_hidden_states=text).sample, sde, time_input=DiscreteIndex())
    scheduler = to_diffusers(solver, like=theirs)
    pipeline = StableDiffusionPipeline(vae, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    found = pipeline(prompt_embeds=text, generator=generator(), **how).images
    with torch.no_grad():
        wanted = sample(model, solver, steps=3, shape=SHAPE, generator=generator()).x
    assert the_same(found, wanted)


@pytest.fixture(scope="module")
def flow_parts():
    pytest.importorskip("transformers", reason="StableDiffusion3Pipeline imports it")
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4,
        num_attention_heads=1, joint_attention_dim=4, caption_projection_dim=4, pooled_projection_dim=4,
        pos_embed_max_size=4,
    )  # fmt: skip
    return loud(transformer), AutoencoderKL(block_out_channels=(2,), norm_num_groups=2)


@pytest.mark.parametrize("name", PRESETS)
def test_flow_matching_pipeline(name, flow_parts):
    """Stable Diffusion 3's pipeline hands its generator to no step, so that noise is torch's global one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    (network, vae), solver, text, pooled = flow_parts, getattr(solvers, name)(), noise(2, (2, 3, 4)), noise(3, (2, 4))

    def velocity(x, t):
        return network(x, timestep=t, encoder_hidden_states=text, pooled_projections=pooled).sample

    model = ScoreModel.from_velocity(velocity, noise_at=1, time_scale=1000.0)
    nothing = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    scheduler = to_diffusers(solver, like=FlowMatchEulerDiscreteScheduler(shift=3.0))  # which is of the grid alone
    parts = {"transformer": network, "vae": vae, "scheduler": scheduler}
    pipeline = StableDiffusion3Pipeline(**parts, **dict.fromkeys(nothing))
    pipeline.set_progress_bar_config(disable=True)
    told = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "height": 4, "width": 4}
    torch.manual_seed(1)
    start = torch.randn(SHAPE)
    how = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    found = pipeline(**told, latents=start, **how).images
    with torch.no_grad():
        wanted = sample(model, solver, steps=3, x_start=start, generator=generator(1)).x
    assert the_same(found, wanted)


def squashing(x, t):
    return torch.tanh(x) * (1 + 0.1 * torch.cos(t)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("make", [solvers.heun, solvers.dpmpp_2m_sde], ids=["two evaluations", "multistep"])
@pytest.mark.parametrize("sign", [1, -1])
def test_networks_that_are_told_a_scaled_x(make, sign):
    """EDM's raw output: the pipeline scales x by c_in, and starts with σ_max z."""
    model = ScoreModel(squashing, EDMSDE(), "edm", sigma_data=0.5, sign=sign)
    scheduler = to_diffusers(make(), like=model)
    scheduler.set_timesteps(4)
    assert scheduler.init_noise_sigma == pytest.approx(80.0)
    found = run(scheduler, squashing, noise() * scheduler.init_noise_sigma, 4)
    assert the_same(found, sample(model, make(), steps=4, x_start=80 * noise(), generator=generator()).x)


@pytest.mark.parametrize("kind", ["range", "fraction"])
@pytest.mark.parametrize("make", [solvers.ddpm_learned, solvers.ddim], ids=["used", "left"])
def test_networks_that_learned_variances(make, kind):
    def network(x, t):
        return torch.cat([squashing(x, t), torch.sin(3 * x)], dim=1)

    model = ScoreModel(network, DiscreteVPSDE(), time_input=DiscreteIndex(), learned_variance=kind)
    scheduler = to_diffusers(make(), like=model)
    found = run(scheduler, network, noise(), 4)
    assert the_same(found, sample(model, make(), steps=4, x_start=noise(), generator=generator()).x)
    assert scheduler.config.variance_type == "learned_range"  # pipelines then leave the channels as they are


def test_pipelines_that_cut_off_the_variance():
    """Then it is v = 0, the posterior's variance."""
    model = ScoreModel(squashing, DiscreteVPSDE(), time_input=DiscreteIndex())
    for kind in ("range", "fraction"):
        learned = ScoreModel(squashing, model.sde, time_input=model.time_input, learned_variance=kind)
        found = run(to_diffusers(solvers.ddpm_learned(), like=learned), squashing, noise(), 3)
        assert the_same(found, sample(model, solvers.ddpm(), steps=3, x_start=noise(), generator=generator()).x)


def test_double_precision_and_single_generators():
    """A state in float64 stays so; a list of generators draws for each sample by itself."""
    model = ScoreModel(squashing, VPSDE(), "v", time_input=ScaledTime(1000))
    scheduler = to_diffusers(solvers.ddpm(), like=model)
    x = noise().double()
    found = run(scheduler, squashing, x, 3)
    assert found.dtype == torch.float64
    assert run(scheduler, squashing, x.half(), 3).dtype == torch.float16
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    both = scheduler.step(x, t, x, generator=[generator(5), generator(6)]).prev_sample
    scheduler.set_timesteps(1)
    second = scheduler.step(x[1:], t, x[1:], generator=generator(6), return_dict=False)[0]
    assert torch.equal(both[1:], second)
    assert not torch.equal(both[:1], second)


def calibrated(solver, steps):
    width = solver.integrator.tunable_weights
    factors = tuple(tuple(1 + 0.02 * math.sin(7 * i + j) for j in range(width)) for i in range(steps))
    return replace(solver, name="calibrated", integrator=Tuned(solver.integrator, factors))


@pytest.mark.parametrize("make", [solvers.unipc, solvers.ddpm, solvers.dpmpp_3m])
def test_calibrated_solvers_on_their_grid(make, picture_network, picture_model, tmp_path):
    """Saved with its pipeline and read again, too: the file holds the solver, the grid and the path."""
    from diffusers import DDPMPipeline

    grid = torch.tensor([1.0, 0.71, 0.4, 0.03])
    solver = calibrated(make(), 3)
    pipeline = picture_pipeline(picture_network, to_diffusers(solver, grid, like=picture_model, tweedie=True))
    with torch.no_grad():
        wanted = sample(picture_model, solver, grid, x_start=noise(), generator=generator(), tweedie=True).x
    pipeline.save_pretrained(tmp_path)
    for one in (pipeline, DDPMPipeline.from_pretrained(tmp_path)):
        one.set_progress_bar_config(disable=True)
        seen = last_state(one.scheduler)
        one(len(noise()), generator=generator(), num_inference_steps=3, output_type="np")
        assert the_same(seen[0], wanted)


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trip(name, tmp_path):
    scheduler = to_diffusers(getattr(solvers, name)(), like=ScoreModel(squashing, VPSDE(), "v"))
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)
    for one in (scheduler, again):
        one.set_timesteps(5)
    assert torch.equal(scheduler.timesteps, again.timesteps)
    assert torch.equal(run(scheduler, squashing, noise()), run(again, squashing, noise()))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_what_both_have_on_their_grid(spacing, picture_network):
    """DDIM through the pipeline, once with their scheduler, once with ours."""
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    ours = to_diffusers(solvers.ddim(), diffusers_grid(theirs, 5), like=theirs)
    states = []
    for scheduler in (theirs, ours):
        seen = last_state(scheduler)
        picture_pipeline(picture_network, scheduler)(2, generator(), num_inference_steps=5, output_type="np")
        states += seen
    assert the_same(states[1], states[0])
    assert torch.equal(theirs.timesteps, ours.timesteps)


GIVEN = {
    "DDPMScheduler": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    "EDMEulerScheduler": {"prediction_type": "v_prediction", "sigma_max": 60.0},
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_pipeline_with_our_scheduler_is_a_score_model(kind, picture_network, tmp_path):
    """What it says of its network is what the scheduler before said, also from its folder, and for the next solver."""
    import diffusers

    theirs = getattr(diffusers, kind)(**GIVEN[kind])
    pipeline = picture_pipeline(picture_network, to_diffusers(solvers.unipc(), like=theirs))
    first = from_diffusers(pipeline)
    pipeline.scheduler = to_diffusers(solvers.ddpm(), like=pipeline.scheduler)
    pipeline.save_pretrained(tmp_path)
    wanted = from_diffusers(picture_network, theirs)
    for model in (first, from_diffusers(pipeline), from_diffusers(tmp_path)):
        for name in ("sde", "prediction", "time_input", "sign", "sigma_data"):
            assert getattr(model, name) == getattr(wanted, name)
    for name, value in GIVEN[kind].items():
        assert pipeline.scheduler.config[name] == value


def test_the_config_says_enough_for_their_schedulers():
    """``DDIMPipeline`` makes its own scheduler of the config: then of the same path and parameterisation."""
    from diffusers import DDIMScheduler, DDPMScheduler

    given = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", num_train_timesteps=50)
    model = ScoreModel(squashing, DiscreteVPSDE(given.betas.double()), "v", time_input=DiscreteIndex(50))
    for like in (given, model):
        theirs = DDIMScheduler.from_config(to_diffusers(solvers.ddim(), like=like).config)
        assert torch.allclose(theirs.alphas_cumprod, given.alphas_cumprod)
        assert theirs.config.prediction_type == "v_prediction"


def test_timesteps_repeat_as_in_heun_of_diffusers():
    """Two evaluations a step, and one in the last: the pattern of repetitions is theirs."""
    from diffusers import HeunDiscreteScheduler

    theirs, ours = HeunDiscreteScheduler(), to_diffusers(Solver("heun", 0.0, solvers.heun().integrator))
    theirs.set_timesteps(6)
    ours.set_timesteps(5)  # and the last denoising
    assert ours.order == theirs.order
    assert torch.equal(ours.timesteps.diff() == 0, theirs.timesteps.diff() == 0)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc", "heun", "ddpm"])
def test_a_run_may_begin_on_the_way(name):
    """As image-to-image does: from noise added at a step of the grid, also with the index that a pipeline sets."""
    model = ScoreModel(squashing, DiscreteVPSDE(), time_input=DiscreteIndex())
    solver, grid = getattr(solvers, name)(), grids.uniform(model.sde, 6)
    scheduler = to_diffusers(solver, grid, like=model, tweedie=True)
    picture, z = 0.1 * noise(4), noise(5)
    for told in (False, True):
        scheduler.set_timesteps(6)
        kept = scheduler.timesteps[2 * scheduler.order :]
        if told:
            scheduler.set_begin_index(2 * scheduler.order)
        x = start = scheduler.add_noise(picture, z, kept[:1])
        assert torch.allclose(start, model.sde.alpha(grid[2]) * picture + model.sde.sigma(grid[2]) * z, atol=1e-6)
        draws = generator()
        torch.randn(SHAPE, generator=draws)
        for t in kept:
            x = scheduler.step(squashing(x, t.expand(2)), t, x, draws).prev_sample
        wanted = sample(model, solver, grid[2:], x_start=start, generator=generator(), tweedie=True).x
        assert the_same(x, wanted)


def test_a_run_may_be_repeated_without_new_timesteps():
    """By the same scheduler, and by copies of it that were made on the way."""
    scheduler = to_diffusers(solvers.sa_solver())
    scheduler.set_timesteps(4)
    first = run(scheduler, squashing, noise())
    assert scheduler.step_index is None
    scheduler.step(noise(9), scheduler.timesteps[0], noise(8))
    assert scheduler.step_index == 1
    copies = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    for one in (scheduler, *copies):
        one.set_timesteps(4)
        assert torch.equal(first, run(one, squashing, noise()))
        assert torch.equal(first, run(one, squashing, noise()))


@pytest.mark.parametrize("make", [solvers.ddim, solvers.heun, solvers.ddpm, solvers.edm_stochastic])
def test_what_a_pipeline_changes_between_steps_counts(make):
    """An edit after a step is that of a callback of ``sample``; churn has been added to x by then, and stays."""
    model = ScoreModel(squashing, EDMSDE(), "x0")
    scheduler = to_diffusers(make(), like=model)

    def change(i, x):
        return x + 0.3 * noise(8) if (i + 1) % scheduler.order == 0 and i < 5 * scheduler.order else x

    found = run(scheduler, squashing, 80 * noise(), 5, change=change)
    how = {"steps": 5, "x_start": 80 * noise(), "generator": generator()}
    unchanged = sample(model, make(), **how).x
    wanted = sample(model, make(), **how | {"generator": generator()}, callback=lambda s: s.x + 0.3 * noise(8)).x
    assert the_same(found, wanted)
    assert (unchanged - wanted).abs().max() > 0.01


@pytest.mark.parametrize("whole", [False, True])
def test_noise_of_training_is_that_of_ddpm(whole):
    """At every one of its timesteps, which are the indices 0 to 999."""
    from diffusers import DDPMScheduler

    model = ScoreModel(squashing, DiscreteVPSDE(), time_input=DiscreteIndex(whole=whole))
    timesteps = torch.arange(1000)
    x, z = noise(1, (1000, 3)), noise(2, (1000, 3))
    theirs = DDPMScheduler().add_noise(x, z, timesteps)
    assert torch.allclose(to_diffusers(solvers.ddim(), like=model).add_noise(x, z, timesteps), theirs, atol=3e-6)


@pytest.mark.parametrize("time_input", [ScaledTime(999), RemainingTime(), NoiseLevel()], ids=str)
def test_noise_at_any_time_that_the_network_can_be_told(time_input):
    sde = VPSDE()
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    scheduler = to_diffusers(solvers.ddim(), like=ScoreModel(squashing, sde, "v", time_input=time_input))
    x, z = noise(1, (20, 3)).double(), noise(2, (20, 3)).double()
    found = scheduler.scale_noise(x, time_input(sde, t), z)
    assert torch.allclose(found, sde.alpha(t)[:, None] * x + sde.sigma(t)[:, None] * z, atol=1e-10)


def test_sigmas_and_shifts_of_pipelines():
    """Euler's method on their sigmas, shifted and not, is FlowMatchEuler's; σ/α on other paths, as in Euler's."""
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    flow = ScoreModel.from_velocity(squashing, noise_at=1, time_scale=1000.0)
    euler = Solver("euler", 0.0, Exponential())
    for shift, mu in ((1.0, None), (3.0, math.log(3.0))):
        theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
        ours = to_diffusers(euler, like=flow)
        sigmas = [1.0, 0.8, 0.45, 0.2]
        theirs.set_timesteps(sigmas=sigmas)
        ours.set_timesteps(sigmas=sigmas, mu=mu)
        assert torch.allclose(ours.timesteps.float(), theirs.timesteps.float(), atol=1e-3)
        x = noise()
        for t in theirs.timesteps:
            x = theirs.step(squashing(x, t.expand(2)), t, x).prev_sample
        assert torch.allclose(run(ours, squashing, noise()), x, atol=1e-4)
    theirs, ours = EulerDiscreteScheduler(), to_diffusers(euler)
    theirs.set_timesteps(sigmas=[10.0, 3.0, 0.4, 0.0])
    ours.set_timesteps(sigmas=[10.0, 3.0, 0.4, 0.0])
    assert torch.allclose(ours.timesteps, theirs.timesteps, atol=0.02)  # theirs interpolates in log σ


def test_the_usual_grid_is_shifted_too():
    flow = ScoreModel.from_velocity(squashing, noise_at=1)
    scheduler = to_diffusers(solvers.ddim(), like=flow)
    scheduler.set_timesteps(6)
    t = scheduler.timesteps.double()
    scheduler.set_timesteps(6, mu=0.7)
    s = scheduler.timesteps.double()
    finite = t < 1
    ratio = (s / (1 - s))[finite] / (t / (1 - t))[finite]
    assert torch.allclose(ratio, torch.tensor(math.exp(0.7), dtype=torch.float64), rtol=1e-3)


class _Restless(Exponential, Integrator):
    """Evaluates the network twice where it declares once."""

    def step(self, equation, x, row, state, noise):
        equation.output(x, row.inputs)
        return super().step(equation, x, row, state, noise)


def test_refusals():
    model = ScoreModel(squashing, VPSDE(), "v")
    with pytest.raises(ArgumentError, match=r"adaptive_sde.*chooses its own steps"):
        to_diffusers(solvers.adaptive_sde())
    late = torch.tensor([0.9, 0.5, 0.1])
    with pytest.raises(ArgumentError, match="adds noise before its first evaluation"):
        to_diffusers(Solver("churned", 0.0, ChurnedHeun(S_churn=1.0)), late, like=model)
    to_diffusers(Solver("not churned", 0.0, ChurnedHeun()), late, like=model)
    with pytest.raises(ArgumentError, match=r"Thresholded.*network alone"):
        to_diffusers(solvers.ddim(), like=clip_x0(model))
    with pytest.raises(ArgumentError, match="not a Solver"):
        to_diffusers("ddim")
    with pytest.raises(ArgumentError, match="not a scheduler of diffusers"):
        to_diffusers(solvers.ddim(), like=3)
    with pytest.raises(ArgumentError, match="2 times, not 1"):
        to_diffusers(Solver("restless", 0.0, _Restless()), like=model).set_timesteps(3)
    with pytest.raises(ArgumentError, match=r"num_inference_steps=50.*a grid of 2 steps"):
        to_diffusers(solvers.ddim(), late, like=model).set_timesteps(50)
    with pytest.raises(GridError):
        to_diffusers(solvers.ddim(), late.flip(0), like=model)
    with pytest.raises(GridError, match="tuned for 4"):
        to_diffusers(calibrated(solvers.ddim(), 4), late, like=model)
    with pytest.raises(ArgumentError, match=r"mu=0.5.*flow matching"):
        to_diffusers(solvers.ddim(), like=model).set_timesteps(3, mu=0.5)


def test_refusals_of_a_run():
    scheduler = to_diffusers(solvers.heun())
    with pytest.raises(ArgumentError, match="no timesteps yet"):
        scheduler.step(noise(), 0, noise())
    for how in ({}, {"num_inference_steps": 3, "sigmas": [3.0, 1.0]}):
        with pytest.raises(ArgumentError, match="one of them"):
            scheduler.set_timesteps(**how)
    scheduler.set_timesteps(3)
    with pytest.raises(ArgumentError, match="no step of the scheduler begins"):
        scheduler.step(noise(), 17.3, noise())
    scheduler.set_begin_index(1)
    with pytest.raises(ArgumentError, match="multiple of 2"):
        scheduler.step(noise(), 0, noise())


class _OwnSDE(VPSDE):
    """A path that no file can name."""


class _OwnMethod(Exponential):
    """A method that no file can name."""


@pytest.mark.parametrize(
    ("solver", "sde", "what"),
    [
        (solvers.ddim(), _OwnSDE(), "sde is your own"),
        (Solver("mine", 0.0, _OwnMethod()), VPSDE(), "solver is your own"),
        (replace(solvers.ddim(), usual_grid=lambda sde, n: grids.uniform(sde, n)), VPSDE(), "usual grid is your own"),
    ],
)
def test_parts_of_your_own_work_and_are_refused_when_read(solver, sde, what, tmp_path):
    model = ScoreModel(squashing, sde, "v")
    scheduler = to_diffusers(solver, like=model)
    found = run(scheduler, squashing, noise(), 3)
    assert the_same(found, sample(model, solver, steps=3, x_start=noise(), generator=generator()).x)
    scheduler.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=what):
        type(scheduler).from_pretrained(tmp_path)


def test_multistep_of_high_order_keeps_its_memory():
    """Three values, noise in between, and a corrector: nothing is forgotten from one answer to the next."""
    solver = Solver("mine", 0.7, Multistep(4))
    model = ScoreModel(squashing, VPSDE(), "v")
    found = run(to_diffusers(solver, like=model), squashing, noise(), 9)
    assert the_same(found, sample(model, solver, steps=9, x_start=noise(), generator=generator()).x)
