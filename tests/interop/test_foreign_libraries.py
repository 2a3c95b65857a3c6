"""Samplers of diffusers, k-diffusion and azula as rows: the method that their name says, on our noise."""

from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from sde_toolkit import (
    VESDE,
    VPSDE,
    DiscreteVPSDE,
    FlowMatching,
    GaussianMixture,
    ddim,
    ddpm,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    euler_ancestral,
    grids,
    heun,
    interop,
    sample,
    unipc,
)
from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.interop import azula_solver, diffusers_grid, diffusers_solver, k_diffusion_solver
from sde_toolkit.interop.foreign_k_diffusion import BrownianNoise
from sde_toolkit.sampling.foreign_solver import plan_foreign, run_foreign

SDES = [VPSDE(), FlowMatching(), VESDE()]
N = 6


def mixture(sde):
    return GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), sde, std=0.3)


def drawn(model, solver, nfe=7, first=0, last=N):
    plan = plan_foreign(model, solver, nfe)
    return plan, run_foreign(model, plan, first, last, seed=3, dtype=torch.float64)


def is_ours(solver, ours, sde, tolerance):
    """The same samples from the same noise, at the same cost, in one batch and one by one."""
    model = mixture(sde)
    plan, found = drawn(model, solver)
    wanted = sample(model, ours, plan.times, shape=(N, 2), seed=3, tweedie=True, dtype=torch.float64)
    torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=tolerance)
    assert found.nfe == plan.nfe == wanted.nfe
    assert plan.stochastic == (ours.eta > 0)
    if plan.stochastic:
        parts = [run_foreign(model, plan, i, i + 2, seed=3, dtype=torch.float64).x for i in range(0, N, 2)]
        assert torch.equal(torch.cat(parts), found.x)


EXACT, SINGLE = 1e-10, 1e-5  # diffusers steps many of its schedulers in float32

DIFFUSERS = [
    ("DDIMScheduler", {}, ddim(), EXACT),
    ("DDIM", {"step": {"eta": 1.0}}, ddpm(), EXACT),
    ("DDIM", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, ddim(), EXACT),
    ("DDPM", {"grid": grids.karras}, ddpm(), EXACT),
    ("EulerDiscrete", {}, ddim(), SINGLE),
    ("EulerAncestralDiscrete", {}, euler_ancestral(), SINGLE),
    ("HeunDiscrete", {}, heun(), SINGLE),
    ("DPMSolverMultistep", {}, dpmpp_2m(), SINGLE),
    ("DPMSolverMultistep", {"use_karras_sigmas": True}, dpmpp_2m(), SINGLE),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "grid": grids.karras}, dpmpp_2m_sde(), SINGLE),
    ("DPMSolverMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, dpmpp_2m(), SINGLE),
    ("UniPCMultistep", {}, unipc(), EXACT),
    ("EDMEuler", {}, ddim(), SINGLE),
    ("EDMDPMSolverMultistep", {"prediction_type": "v_prediction"}, dpmpp_2m(), EXACT),
    ("FlowMatchEulerDiscrete", {}, ddim(), SINGLE),
    ("KDPM2AncestralDiscrete", {"use_karras_sigmas": True, "grid": grids.uniform}, dpm2_ancestral(), 1e-4),
]


@pytest.mark.parametrize(("k", "row"), list(enumerate(DIFFUSERS)))
def test_schedulers_of_diffusers_are_our_solvers_of_the_same_method(k, row):
    pytest.importorskip("diffusers")
    scheduler, options, ours, tolerance = row
    is_ours(diffusers_solver(scheduler, **options), ours, SDES[k % 3], tolerance)


OTHERS = [
    ("IPNDM", {}),
    ("PNDM", {}),
    ("DEISMultistep", {}),
    ("DPMSolverMultistep", {"algorithm_type": "dpmsolver"}),
    ("UniPCMultistep", {"predict_x0": False}),
    ("SASolver", {"tau_func": lambda t: 0.0}),
    ("FlowMatchHeunDiscrete", {}),
]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize(("k", "row"), list(enumerate(OTHERS)))
def test_schedulers_without_a_preset_of_ours_follow_the_flow(k, row):
    """Some cannot step to the level 0, and end by an evaluation."""
    pytest.importorskip("diffusers")
    scheduler, options = row
    model = mixture(SDES[k % 3])
    plan, found = drawn(model, diffusers_solver(scheduler, grid=grids.sech, **options), nfe=24)
    wanted = sample(model, dpmpp_2m(), nfe=200, shape=(N, 2), seed=3, dtype=torch.float64)
    torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=0.03)
    assert not plan.stochastic


K_DIFFUSION = [
    ("euler", {}, ddim()),
    ("heun", {}, heun()),
    ("sample_dpmpp_2m", {}, dpmpp_2m()),
    ("dpmpp_2m_sde", {}, dpmpp_2m_sde()),
    ("dpmpp_2m_sde", {"eta": 0.0}, dpmpp_2m()),
    ("dpmpp_2s_ancestral", {}, dpmpp_2s_ancestral()),
    ("euler_ancestral", {}, euler_ancestral()),
]


@pytest.mark.parametrize(("k", "row"), list(enumerate(K_DIFFUSION)))
def test_functions_of_k_diffusion_are_our_solvers_of_the_same_method(k, row):
    pytest.importorskip("torchsde")
    sampler, options, ours = row
    is_ours(k_diffusion_solver(sampler, **options), ours, SDES[k % 3], EXACT)


AZULA = [
    ("DDIM", {}, ddim()),
    ("DDIMSampler", {"eta": 1.0}, ddpm()),
    ("DDPM", {}, ddpm()),
    ("Euler", {"last": "step"}, ddim()),
    ("Heun", {}, heun()),
]


@pytest.mark.parametrize(("k", "row"), list(enumerate(AZULA)))
def test_samplers_of_azula_are_our_solvers_of_the_same_method(k, row):
    pytest.importorskip("azula")
    sampler, options, ours = row
    is_ours(azula_solver(sampler, **options), ours, SDES[k % 3], EXACT)


BETAS = torch.linspace(1e-4, 0.05, 200, dtype=torch.float64)

PIPELINES = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("EulerDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverSinglestepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "timestep_spacing": "trailing"}),
]


@cache
def trained():
    return mixture(DiscreteVPSDE(tuple(BETAS.tolist())))


@pytest.mark.parametrize(("name", "config"), PIPELINES, ids=[name for name, _ in PIPELINES])
def test_a_row_is_what_a_pipeline_of_diffusers_draws(name, config):
    """The scheduler with betas of its own, in the loop of a pipeline, around the ε of the same model."""
    diffusers = pytest.importorskip("diffusers")
    model, betas = trained(), BETAS.numpy().astype("float32")
    scheduler = getattr(diffusers, name)(trained_betas=betas, num_train_timesteps=200, **config)
    row = diffusers_solver(scheduler)
    plan, found = drawn(model, row, nfe=9)
    scheduler.set_timesteps(len(plan.sigmas) - 1)
    z = sample(model, ddim(), plan.times[[0, -1]], shape=(N, 2), seed=3, trajectory=True, dtype=torch.float64)
    x = z.trajectory[0]
    if name.startswith(("Euler", "Heun", "KDPM2")):
        x = x / model.sde.alpha(plan.times[0])
    calls = 0
    for t in scheduler.timesteps:
        epsilon = model(scheduler.scale_model_input(x, t), (t.double() + 1) / 200).epsilon
        x, calls = scheduler.step(epsilon, t, x).prev_sample, calls + 1
    assert calls == found.nfe
    torch.testing.assert_close(
        found.x, x.double(), rtol=0, atol=2e-3 if name.startswith("KDPM2") else 1e-4
    )  # it rounds the times of its middles
    wanted = diffusers_grid(scheduler, len(plan.times))
    torch.testing.assert_close(plan.times, wanted[: len(plan.times)], rtol=0, atol=1e-6)


def test_brownian_noise_is_one_path_however_it_is_asked_for():
    """Increments over neighbouring intervals add up, and their law is that of the interval."""
    generator = torch.Generator().manual_seed(0)
    noise = BrownianNoise(lambda: torch.randn(20000, generator=generator, dtype=torch.float64), 10.0)
    whole, early, late = noise(10.0, 1.0), noise(10.0, 4.0), noise(4.0, 1.0)
    torch.testing.assert_close(whole * 3, early * 6**0.5 + late * 3**0.5)
    torch.testing.assert_close(noise(4.0 * (1 + 1e-7), 1.0), late, rtol=1e-6, atol=0)  # a rounded level is the level
    beyond = noise(1.0, 0.5)
    for first in (whole, early, late, beyond):
        assert abs(first.var().item() - 1) < 0.05
    assert abs((early * late).mean().item()) < 0.03
    assert abs((whole * beyond).mean().item()) < 0.03


def sample_mine(model, x, sigmas, extra_args=None, callback=None, disable=None, weight=1.0):
    for sigma in sigmas[:-1]:
        x = weight * model(x, sigma * x.new_ones(len(x)))
    return x


def test_functions_of_the_form_of_k_diffusion_need_no_k_diffusion():
    solver = k_diffusion_solver(sample_mine, weight=0.5)
    assert (solver.name, solver.library) == ("k_diffusion:mine[weight=0.5]", "k-diffusion")
    assert drawn(mixture(VPSDE()), solver, nfe=4)[1].nfe == 4


def refusals():
    yield lambda: k_diffusion_solver(sample_mine, weigth=1.0), "weigth"
    yield lambda: k_diffusion_solver(lambda x, y: x), "sampler"
    yield lambda: k_diffusion_solver(lambda model, x, sigma_min, sigma_max: x), "budget"
    yield lambda: azula_solver(3), "sampler"
    yield lambda: azula_solver(lambda denoiser, eta=0.0, **kwargs: None, etta=1.0), "etta"
    yield lambda: azula_solver(lambda denoiser: None, last="nowhere"), "last"
    yield lambda: diffusers_solver(3), "scheduler"
    if pytest.importorskip("diffusers"):
        yield lambda: diffusers_solver("NoSuchScheduler"), "NoSuch"
        yield lambda: diffusers_solver("LCMScheduler"), "consistency"
        yield lambda: diffusers_solver("DDIMScheduler", etta=1.0), "etta"
        yield lambda: diffusers_solver("DDIMScheduler", step={"etta": 1.0}), "etta"
        yield lambda: diffusers_solver("DDIMScheduler", last="nowhere"), "last"
        yield lambda: diffusers_solver("PNDMScheduler", skip_prk_steps=False), "skip_prk_steps"


def test_what_cannot_be_a_row_is_refused_when_it_is_made():
    for make, word in refusals():
        with pytest.raises(ArgumentError, match=word):
            make()


@pytest.mark.parametrize(("make", "package"), [(azula_solver, "azula"), (k_diffusion_solver, "k-diffusion")])
def test_a_library_that_is_not_installed_is_named(make, package):
    if find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingDependencyError, match=package):
        make("euler")


def test_rows_are_named_after_their_library_and_options():
    pytest.importorskip("diffusers")
    named = diffusers_solver("UniPCMultistepScheduler", solver_order=3)
    assert named.name == "diffusers:UniPCMultistep[solver_order=3]"
    assert diffusers_solver("DDIM", name="theirs").name == "theirs"


def test_the_command_line_offers_the_three_libraries():
    folder = Path(__file__).parents[2] / "configs" / "solver"
    files = [file for file in folder.glob("*.yaml") if "sde_toolkit.interop" in file.read_text(encoding="utf-8")]
    assert {file.stem.split("_")[0] for file in files} == {"diffusers", "k", "azula"}
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith(f"# @package solvers.{file.stem}\n")
        part = yaml.safe_load(text)
        make = getattr(interop, part.pop("_target_").rpartition(".")[2])
        with suppress(MissingDependencyError):
            assert drawn(mixture(VPSDE()), make(**part), nfe=5)[1].nfe <= 5
