"""Called as k-diffusion calls its sampling functions, our solvers give what ``sample`` gives, and k-diffusion."""

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sde_toolkit import EDMSDE, FlowMatching, ScoreModel, Solver, grids, sample, solvers
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import FrozenNoise, Multistep, NoiseToSignal, PerSample
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.interop import to_k_diffusion

PRESETS = sorted(set(solvers.__all__) - {"Solver"})
SIGMAS = torch.tensor([14.6, 8.0, 3.1, 1.2, 0.45, 0.2, 0.06], dtype=torch.float64)
WITH_ZERO = torch.cat([SIGMAS, torch.zeros(1, dtype=torch.float64)])
SHAPE = (3, 2, 5)


def denoiser(x, sigma, shift=0.0):
    s = sigma.view(-1, 1, 1)
    return torch.tanh(x / (1 + s**2) + 0.3 * torch.sin(2 * x.roll(1, -1) / (1 + s))) / (1 + 0.1 * s) + shift


def start(dtype=torch.float64):
    return 14.6 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def generator(skip=False):
    """``skip``: without the draw that ``sample`` makes for the start."""
    made = torch.Generator().manual_seed(1)
    if skip:
        torch.randn(SHAPE, generator=made, dtype=torch.float64)
    return made


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sigmas", [SIGMAS, WITH_ZERO], ids=["to 0.06", "to 0"])
def test_every_preset_is_sample(name, sigmas):
    solver = getattr(solvers, name)()
    found = to_k_diffusion(solver)(
        denoiser, start(), sigmas, {"shift": 0.1}, disable=True, generator=generator(skip=True)
    )
    model = ScoreModel.from_denoiser(partial(denoiser, shift=0.1))
    grid = grids.from_sigmas(model.sde, SIGMAS)
    to_zero = len(sigmas) > len(SIGMAS)
    wanted = sample(model, solver, grid, x_start=start(), generator=generator(), tweedie=to_zero).x
    assert torch.allclose(found, wanted, atol=1e-10)
    assert found.abs().max() > 0.1


def test_other_solvers_are_sample():
    """Steps of their own length, and factors that were calibrated for as many steps."""
    factors = tuple((1.02, 0.99, 1.01) for _ in SIGMAS[1:])
    model = ScoreModel.from_denoiser(denoiser)
    for integrator in (PerSample(), Tuned(Multistep(2), factors)):
        solver = Solver("mine", 0.0, integrator)
        wanted = sample(model, solver, grids.from_sigmas(model.sde, SIGMAS), x_start=start()).x
        assert torch.allclose(to_k_diffusion(solver)(denoiser, start(), SIGMAS), wanted, atol=1e-10)


def churned():
    return solvers.edm_stochastic(S_churn=2.0, S_tmin=0.1, S_tmax=50.0, S_noise=1.003)


LMS = Solver("lms", 0.0, Multistep(4, FrozenNoise(), NoiseToSignal()))
CHURN = {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.003}
NORMAL = {"noise_sampler": lambda sigma, sigma_next: torch.randn(SHAPE, dtype=torch.float64)}
BOTH_HAVE = [
    ("euler", solvers.ddim(), {}, WITH_ZERO),
    ("heun", solvers.heun(), {}, WITH_ZERO),
    ("heun", churned(), CHURN, SIGMAS),  # their churn counts the step to 0 as a step
    ("dpm_2", solvers.dpm_solver_2(), {}, WITH_ZERO),
    ("lms", LMS, {}, SIGMAS),  # theirs extrapolates to 0, too
    ("dpmpp_2m", solvers.dpmpp_2m(), {}, WITH_ZERO),
    ("dpmpp_sde", solvers.dpmpp_2s(), {"eta": 0.0} | NORMAL, WITH_ZERO),
    ("dpmpp_2m_sde", solvers.dpmpp_2m_sde(), NORMAL, WITH_ZERO),
    ("dpmpp_2m_sde", solvers.dpmpp_2m_sde(0.6), {"eta": 0.6**2} | NORMAL, WITH_ZERO),
    ("euler_ancestral", solvers.euler_ancestral(), {}, WITH_ZERO),
    ("euler_ancestral", solvers.euler_ancestral(0.5), {"eta": 0.5}, SIGMAS),
    ("dpm_2_ancestral", solvers.dpm2_ancestral(), {}, WITH_ZERO),
    ("dpmpp_2s_ancestral", solvers.dpmpp_2s_ancestral(), {}, WITH_ZERO),
]


@pytest.fixture(scope="module")
def their():
    if find_spec("k_diffusion") is None:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion torchsde trampoline")
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from peers.with_kdiffusion import sampling

    return sampling


@pytest.mark.parametrize(("name", "solver", "how", "sigmas"), BOTH_HAVE, ids=lambda part: getattr(part, "name", None))
def test_what_both_have_is_the_same(name, solver, how, sigmas, their):
    """States, and all that a callback is told, with torch's global generator as it stands."""
    heard, told = [], []
    torch.manual_seed(1)
    wanted = getattr(their, f"sample_{name}")(denoiser, start(), sigmas, {"shift": 0.1}, told.append, True, **how)
    torch.manual_seed(1)
    found = to_k_diffusion(solver)(denoiser, start(), sigmas, {"shift": 0.1}, heard.append, True)
    assert torch.allclose(found, wanted, atol=1e-5 if name == "lms" else 1e-9)  # theirs has weights to 1e-4
    assert len(heard) == len(told) == len(sigmas) - 1
    for ours, theirs in zip(heard, told, strict=True):
        assert ours["i"] == theirs["i"]
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            assert torch.allclose(ours[key], theirs[key].double(), atol=1e-5 if name == "lms" else 1e-9)


@pytest.mark.parametrize("make", [solvers.ddim, solvers.heun, solvers.rk4, solvers.pc, churned])
def test_the_callback_hears_of_each_step_once(make):
    heard = []
    quietly = to_k_diffusion(make())(denoiser, start(), WITH_ZERO, generator=generator())
    found = to_k_diffusion(make())(denoiser, start(), WITH_ZERO, callback=heard.append, generator=generator())
    assert torch.equal(found, quietly)
    assert [said["i"] for said in heard] == list(range(len(SIGMAS)))
    assert torch.equal(torch.stack([said["sigma"] for said in heard]), SIGMAS)
    for said in heard:
        sigma = said["sigma_hat"].expand(len(said["x"]))
        assert torch.allclose(said["denoised"], denoiser(said["x"], sigma))
        assert said["sigma_hat"] >= said["sigma"] * (1 - 1e-12)
    assert torch.equal(found, heard[-1]["denoised"])


def test_the_straight_path_of_flow_matching():
    """Sigmas are its times, and x is (1 − σ) x_0 + σ ε: ComfyUI's convention for Flux and Stable Diffusion 3."""

    def x_0_of(x, time):
        return x - time.view(-1, 1, 1) * torch.tanh(x)

    model = ScoreModel.from_velocity(lambda x, time: torch.tanh(x), noise_at=1)
    sigmas = torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0], dtype=torch.float64)
    for make in (solvers.ddim, solvers.dpmpp_2m):
        grid = sigmas[:-1] if make is solvers.ddim else sigmas[1:-1]
        wanted = sample(model, make(), grid, x_start=start(), tweedie=True).x
        given = torch.cat([grid, sigmas[-1:]])
        assert torch.allclose(to_k_diffusion(make(), FlowMatching())(x_0_of, start(), given), wanted, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_denoiser_is_called_in_the_precision_of_x(dtype):
    seen = set()

    def watched(x, sigma):
        seen.update((x.dtype, sigma.dtype))
        assert sigma.shape == x.shape[:1]
        return denoiser(x, sigma)

    found = to_k_diffusion(solvers.dpmpp_2m())(watched, start(dtype), WITH_ZERO.float())
    assert found.dtype == dtype
    assert seen == {dtype}


def test_karras_sigmas_are_karras_grid(their):
    sde = EDMSDE()
    theirs = their.get_sigmas_karras(9, sde.sigma_min, sde.sigma_max)
    ours = sde.sigma(grids.karras(sde, 8))
    assert torch.allclose(theirs[:-1].double(), ours, rtol=1e-5)
    assert theirs[-1] == 0


def test_short_lists():
    sampler = to_k_diffusion(solvers.dpmpp_2m())
    x = start()
    assert torch.equal(sampler(denoiser, x, SIGMAS[:1]), x)
    only = sampler(denoiser, x, torch.tensor([14.6, 0.0]))
    assert torch.allclose(only, denoiser(x, torch.full((3,), 14.6, dtype=torch.float64)), atol=1e-5)


def test_the_start_and_the_gradients_are_left_alone():
    """A callback that works in place is refused, and has not changed the start."""
    x = start().requires_grad_()
    found = to_k_diffusion(solvers.ddpm())(denoiser, x, SIGMAS)
    assert not found.requires_grad
    with pytest.raises(ArgumentError, match="in place"):
        to_k_diffusion(solvers.ddpm())(denoiser, x, SIGMAS, callback=lambda said: said["x"].zero_())
    assert torch.equal(x.detach(), start())


def test_refusals():
    with pytest.raises(ArgumentError, match="not a Solver"):
        to_k_diffusion("euler")
    sampler = to_k_diffusion(solvers.heun())
    with pytest.raises(GridError, match="do not strictly decrease"):
        sampler(denoiser, start(), SIGMAS.flip(0))
    with pytest.raises(GridError, match=r"sigmas\[0\]=700.*EDMSDE\(sigma_min, sigma_max\)"):
        sampler(denoiser, start(), torch.tensor([700.0, 1.0]))
    assert to_k_diffusion(solvers.heun(), EDMSDE(sigma_max=700.0))(denoiser, start(), [700.0, 1.0]).shape == SHAPE
    with pytest.raises(GridError, match="no noise level above 0"):
        sampler(denoiser, start(), torch.tensor([0.0, 0.0]))
