"""The problems on which samplers are compared: fixed noise, and where the probability flow really leads.

In y = x/α and r = σ/α the probability flow of every affine SDE is one equation, dy/dr = (y − D(y, r))/r, with D the
denoiser. A problem is that denoiser, the noise at t=1 and the flow's endpoint at r = 0; the SDE decides only where r
starts and which times are natural. Peers are run on :meth:`Problem.denoise`, which counts its calls.

The error of a row is the plain RMSE, the root of the mean over samples *and* coordinates of the squared difference to
the reference. (The root of the mean squared euclidean norm is √D times as large.)
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sde_toolkit import SDE, VESDE, VPSDE, GaussianMixture, ScoreModel, SubVPSDE

__all__ = ["NAMES", "Problem", "load", "ring_means", "rmse"]

# σ(0) of VESDE is part of its samples; this one is far below the modes' 0.1 and 0.2.
SDES: dict[str, Callable[[], SDE]] = {
    "": lambda: VPSDE(0.1, 20.0),
    "-subvp": lambda: SubVPSDE(0.1, 20.0),
    "-ve": lambda: VESDE(0.002, 80.0),
}
NAMES = [f"{base}{suffix}" for base in ("ring", "mixture64") for suffix in SDES] + ["mnist"]


@dataclass
class Problem:
    """One problem. ``y_start`` is x/α at t=1 and ``reference`` the flow's endpoint at σ=0, both float64.

    Args:
        model: the score model, under its own SDE; for samplers that want one.
        denoiser: D(y, r) for r a float.
        noise: (n, *event), standard normal; x at t=1 is σ(1)·noise.
    """

    name: str
    model: ScoreModel
    denoiser: Callable[[Tensor, float], Tensor]
    noise: Tensor
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))
    calls: int = 0

    @property
    def sde(self) -> SDE:
        return self.model.sde

    @property
    def highest(self) -> float:
        """r = σ/α at t=1."""
        return math.exp(-float(self.sde.half_log_snr(torch.tensor(1.0, dtype=torch.float64))))

    @property
    def x_start(self) -> Tensor:
        return float(self.sde.sigma(torch.tensor(1.0, dtype=torch.float64))) * self.noise

    @property
    def y_start(self) -> Tensor:
        return self.highest * self.noise

    def ratio(self, t: Tensor) -> Tensor:
        """σ/α at the times ``t``, float64."""
        return torch.exp(-self.sde.half_log_snr(t.double()))

    def time(self, ratio: float) -> float:
        """The time at which σ/α has a value inside the SDE's range."""
        return float(self.sde.inverse_half_log_snr(torch.tensor(-math.log(ratio), dtype=torch.float64)))

    def denoise(self, y: Tensor, ratio: Tensor | float) -> Tensor:
        """D(y, r), counted; ``ratio`` is one number, or a batch of one number, as k-diffusion passes it."""
        self.calls += 1
        value = ratio.flatten()[0].item() if isinstance(ratio, Tensor) else ratio
        return self.denoiser(y, value)


def rmse(x: Tensor, reference: Tensor) -> float:
    """Root of the mean over samples and coordinates; nan where the sample is not finite."""
    return float((x.double() - reference).square().mean().sqrt())


def ring_means(modes: int = 8, radius: float = 4 / math.sqrt(8)) -> Tensor:
    """Modes evenly on a circle, (modes, 2) float64."""
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def mixture_means(dimension: int, modes: int = 10, seed: int = 1) -> Tensor:
    """Modes drawn from N(0, I) once, (modes, dimension) float64."""
    return torch.randn(modes, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture_denoiser(means: Tensor, std: float) -> Callable[[Tensor, float], Tensor]:
    """D(y, r) of a mixture, the same under every SDE; read from the variance exploding process, where y is x."""
    sde = VESDE(1e-9, 1e6)
    exact = GaussianMixture(means, sde, std=std)
    times: dict[float, float] = {}

    def denoise(y: Tensor, ratio: float) -> Tensor:
        if ratio not in times:
            times[ratio] = float(sde.inverse_half_log_snr(torch.tensor(-math.log(ratio), dtype=torch.float64)))
        return exact(y, times[ratio]).x_0

    return denoise


def network_denoiser(model: ScoreModel) -> Callable[[Tensor, float], Tensor]:
    """D(y, r) of a network in float32; r outside the SDE's range is brought to its nearest end."""
    sde = model.sde
    low, high = (float(sde.half_log_snr(torch.tensor(end, dtype=torch.float64))) for end in (1.0, 1e-5))

    @torch.no_grad()
    def denoise(y: Tensor, ratio: float) -> Tensor:
        lambda_t = min(max(-math.log(ratio), low), high)
        t = float(sde.inverse_half_log_snr(torch.tensor(lambda_t, dtype=torch.float64)))
        alpha = float(sde.alpha(torch.tensor(t, dtype=torch.float64)))
        return model((alpha * y).float(), t).x_0.to(y.dtype)

    return denoise


def flow_endpoint(problem: Problem, tolerance: float = 1e-11, lowest: float = 1e-6) -> Tensor:
    """The flow in log r by an adaptive method of order 8; below r = ``lowest`` it moves by less than 1e-10."""
    shape = problem.noise.shape

    def rhs(log_ratio: float, y: object) -> object:
        flat = torch.as_tensor(y).reshape(shape)
        return (flat - problem.denoiser(flat, math.exp(log_ratio))).reshape(-1).numpy()

    span = (math.log(problem.highest), math.log(lowest))
    start = problem.y_start.reshape(-1).numpy()
    solution = solve_ivp(rhs, span, start, "DOP853", t_eval=span[1:], rtol=tolerance, atol=tolerance)
    return torch.as_tensor(solution.y[:, -1]).reshape(shape).clone()


def fine_endpoint(problem: Problem, evaluations: int, lowest: float = 2e-3) -> Tensor:
    """Order-2 multistep in λ on a Karras grid down to ``lowest``, then the denoised estimate: for networks."""
    ramp = torch.linspace(0, 1, evaluations, dtype=torch.float64)
    grid = (problem.highest ** (1 / 7) + ramp * (lowest ** (1 / 7) - problem.highest ** (1 / 7))) ** 7
    y, before = problem.y_start, None
    for i, ratio in enumerate(grid.tolist()):
        x_0 = problem.denoiser(y, ratio)
        if i == evaluations - 1:
            return x_0
        h = math.log(ratio / float(grid[i + 1]))
        slope = 0.0 if before is None else 0.5 * h / math.log(float(grid[i - 1]) / ratio) * (x_0 - before)
        y, before = math.exp(-h) * y - math.expm1(-h) * (x_0 + slope), x_0
    raise ValueError("evaluations must be positive")


def load(name: str, cache: Path | None = None, n: int | None = None) -> Problem:
    """A problem with its reference, which is kept in ``cache`` (by default a folder in the temporary directory)."""
    cache = cache or Path(tempfile.gettempdir()) / "sde_toolkit_peers"
    base, _, suffix = name.partition("-")
    sde = SDES[f"-{suffix}" if suffix else ""]()
    generator = torch.Generator().manual_seed(0)
    if base == "mnist":
        model = ScoreModel.from_pretrained("mnist")
        denoiser, shape = network_denoiser(model), (n or 64, *(model.event_shape or ()))
    else:
        means, std = (ring_means(), 0.1) if base == "ring" else (mixture_means(int(base.removeprefix("mixture"))), 0.2)
        model = GaussianMixture(means, sde, std=std)
        denoiser, shape = mixture_denoiser(means, std), (n or (2048 if base == "ring" else 512), means.shape[1])
    problem = Problem(name, model, denoiser, torch.randn(shape, generator=generator, dtype=torch.float64))
    file = cache / f"{name}-{shape[0]}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        if base == "mnist":
            fine, coarse = fine_endpoint(problem, 400), fine_endpoint(problem, 200)
        else:
            fine, coarse = flow_endpoint(problem), flow_endpoint(problem, tolerance=1e-9)
        torch.save(
            {"reference": fine, "uncertainty": rmse(coarse, fine), "worst": float((coarse - fine).abs().max())}, file
        )
    stored = torch.load(file)
    problem.reference = stored["reference"]
    uncertainty, worst = stored["uncertainty"], stored["worst"]
    print(f"{name}: reference good to {uncertainty:.1e} (RMSE to a coarser solve), {worst:.1e} at worst")
    return problem
