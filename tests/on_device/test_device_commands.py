"""Commands with ``device=`` of a device, and the interfaces to other people's frameworks."""

from itertools import pairwise

import pytest
import torch
from both_places import F64, SDE, assert_the_same, mixture, points

from sde_toolkit import (
    Affine,
    ScoreModel,
    UNet,
    ddim,
    dpmpp_2m,
    grids,
    sample,
)
from sde_toolkit.errors import MissingDependencyError
from sde_toolkit.interop import azula_solver, diffusers_solver, k_diffusion_solver, to_diffusers, to_k_diffusion
from sde_toolkit.sampling import ForeignSolver
from sde_toolkit.sampling.foreign_solver import plan_foreign, run_foreign

# Commands

TINY = ["progress=false", "output=run"]
MIXTURE = "model={path:mixture}"


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1)
    model = ScoreModel(network, SDE, "edm", event_shape=(1, 8, 8), transform=Affine(8.0, 0.125))
    model.save_pretrained(tmp_path / "tiny")


COMMANDS = {
    "sample": ["sample", "model={path:tiny}", "n=4", "nfe=3", *TINY],
    "compare": ["compare", MIXTURE, "n=8", "n_real=40", "budgets=[3,5]", "exact_flow.n=4", "exact_flow.steps=4",
                "references=false", *TINY],
    "likelihood": ["likelihood", "model={path:tiny}", "data=digits", "n=6", "chunk=3", "nfe=4", "quadrature.nodes=3",
                   "elbo.draws=2", "discrete.steps=5", "discrete.draws=2", "truncation.n=3", "truncation.ends=[1e-3]",
                   "divergence=hutchinson", *TINY],
    "calibrate": ["calibrate", MIXTURE, "solver=ddim", "n=4", "nfe=3", "strategy=search", "time_limit=0.2", *TINY],
    "train": ["train", "experiment=checkerboard", "threads=1", "watch=none", "options.batch_size=16",
              "options.held_out=8", "options.evaluate_every=2", "options.steps=4", *TINY],
    "restore": ["restore", MIXTURE, "n=3", "nfe=4", "measurements=1", *TINY],
    "evaluate": ["evaluate", "samples={path:tiny}", "data=digits", "n=12", "nfe=3", "reference.n=40", *TINY],
}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command(words, both, command, checkpoint):
    status, _, err = command(*words, f"device={both[1].type}")
    assert status == 0, err


# Other people's frameworks


def test_a_network_as_k_diffusion_calls_it(both):
    sigmas = [14.6, 8.0, 3.1, 1.2, 0.45, 0.2, 0.06]

    def denoiser(x, sigma):
        return torch.tanh(x / (1 + sigma[:, None] ** 2))

    def run(place):
        told = torch.tensor(sigmas, dtype=torch.float64, device=place)
        x = to_k_diffusion(dpmpp_2m())(denoiser, 14.6 * points(place), told, disable=True)
        model = ScoreModel.from_denoiser(denoiser)
        return [x, sample(model, ddim(), grids.from_sigmas(model.sde, told), x_start=points(place), **F64).x]

    assert_the_same(run, both)


def euler(denoise, sigmas, x, rng):
    for r, s in pairwise(sigmas):
        x = x + (s - r) * (x - denoise(x, r)) / r + 0.01 * rng()
    return x


FOREIGN = {
    "mine": lambda: ForeignSolver("mine", euler),
    "diffusers": lambda: diffusers_solver("UniPCMultistep"),
    "k-diffusion": lambda: k_diffusion_solver(euler_of_k_diffusion),
    "azula": lambda: azula_solver("DDIMSampler"),
}


def euler_of_k_diffusion(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for r, s in pairwise(sigmas):
        x = x + (s - r) * (x - model(x, r * x.new_ones([len(x)]), **(extra_args or {}))) / r
    return x


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_solvers_of_other_people(make, both):
    try:
        solver = make()
    except MissingDependencyError as error:
        pytest.skip(str(error))

    def run(place):
        model = mixture(place)
        return run_foreign(model, plan_foreign(model, solver, 6), 0, 3, seed=3, device=place, **F64).x

    assert_the_same(run, both)


def test_a_scheduler_of_diffusers(both):
    pytest.importorskip("diffusers")

    def run(place):
        scheduler = to_diffusers(dpmpp_2m())
        scheduler.set_timesteps(5, device=place)
        x = points(place, dtype=torch.float32) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * scheduler.scale_model_input(x, t), t, x).prev_sample
        return x

    assert_the_same(run, both)
