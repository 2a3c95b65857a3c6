"""The face of score_sde's ``sde_lib.py``, backed by the SDEs of this package.

Song et al. 2021, "Score-Based Generative Modeling through SDEs", published their classes in one file, of which many
repositories carry a copy. Code that was written against it runs with one changed import:

    from sde_toolkit.interop import sde_lib

What differs from the original:

    std of VP and sub-VP   is computed by ``expm1`` in float64. In float32 the original's 1 − e^(−B) is 2 % wrong at
                           t = 1e-5, and 23 % at 1e-6
    shapes                 samples may have any number of axes; the original needs three
    reverse(...).sde       with ``probability_flow`` returns zeros (B,) as the diffusion; the original, the number 0
    t                      outside [0, 1] is refused
    subVPSDE               has ``alphas`` too, which the original's annealed Langevin corrector asks for

``sde.path`` is the SDE of this package, for ``ScoreModel``, ``sample`` and ``log_likelihood``.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import sde_toolkit.sde as paths
from sde_toolkit.batching import expand_to
from sde_toolkit.checks import is_count
from sde_toolkit.errors import ArgumentError

__all__ = ["SDE", "VESDE", "VPSDE", "subVPSDE"]

ScoreFunction = Callable[[Tensor, Tensor], Tensor]


class SDE(abc.ABC):
    """A forward SDE with ``N`` steps of time in (0, ``T``]. Shapes: x (B, *event), t (B,)."""

    def __init__(self, N: int) -> None:
        super().__init__()
        if not is_count(N):
            raise ArgumentError("N", N, "not a number of steps", "The original takes 1000.")
        self.N = N

    @property
    @abc.abstractmethod
    def T(self) -> float:  # noqa: N802 - the original's letter
        """The last time."""

    @abc.abstractmethod
    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(drift (B, *event), diffusion (B,)) of the SDE."""

    @abc.abstractmethod
    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(mean (B, *event), standard deviation (B,)) of x_t given x_0 = ``x``."""

    @abc.abstractmethod
    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        """A sample of the prior p_T, by torch's global random numbers."""

    @abc.abstractmethod
    def prior_logp(self, z: Tensor) -> Tensor:
        """The log density of the prior at ``z``, in nats, (B,)."""

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, G) of one step x ← x + f + G z: by default Euler-Maruyama with the step 1/N."""
        drift, diffusion = self.sde(x, t)
        return drift / self.N, diffusion * math.sqrt(1 / self.N)

    def reverse(self, score_fn: ScoreFunction, probability_flow: bool = False) -> SDE:
        """The SDE backwards in time, or its probability flow; an instance of the same class.

        Args:
            score_fn: the score ∇ log p_t(x) as a function of (x, t).
            probability_flow: half of the score, and no noise.
        """
        return _reversed(self, score_fn, probability_flow)


def _reversed(forward: SDE, score_fn: ScoreFunction, probability_flow: bool) -> SDE:
    share = 0.5 if probability_flow else 1.0

    def turned(step: tuple[Tensor, Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        mean, noise = step
        mean = mean - expand_to(noise**2, x) * score_fn(x, t) * share
        return mean, torch.zeros_like(noise) if probability_flow else noise

    class RSDE(type(forward)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__.update(vars(forward))
            self.probability_flow = probability_flow

        def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return turned(forward.sde(x, t), x, t)

        def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return turned(forward.discretize(x, t), x, t)

    reverse: SDE = RSDE()
    return reverse


class _OnPath(SDE):
    """An SDE of this package, with the N and the prior N(0, prior_std² I) of the original."""

    path: paths.SDE
    prior_std: float = 1.0

    @property
    def T(self) -> int:  # noqa: N802
        return 1

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.drift(x, t), self.path.diffusion(t)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return expand_to(self.path.alpha(t), x) * x, self.path.sigma(t)

    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape) * self.prior_std

    def prior_logp(self, z: Tensor) -> Tensor:
        squares = (z / self.prior_std).square().flatten(1).sum(1)
        dimension = math.prod(z.shape[1:])
        return -0.5 * squares - dimension * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    def _step(self, t: Tensor) -> Tensor:
        """The index of a discrete step, 0 .. N − 1, truncated as the original does."""
        return (t * (self.N - 1) / self.T).long()


class VPSDE(_OnPath):
    """dx = −½ β(t) x dt + √β(t) dw with β(t) = β_min + t (β_max − β_min); ``discretize`` is DDPM's step."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000) -> None:
        super().__init__(N)
        self.path = paths.VPSDE(beta_min, beta_max)
        self.beta_0, self.beta_1 = beta_min, beta_max
        betas = torch.linspace(beta_min / N, beta_max / N, N, dtype=torch.float64)
        log_alphas_cumprod = torch.log1p(-betas).cumsum(0)
        dtype = torch.get_default_dtype()
        self.discrete_betas = betas.to(dtype)
        self.alphas = (1 - betas).to(dtype)
        self.alphas_cumprod = log_alphas_cumprod.exp().to(dtype)
        self.sqrt_alphas_cumprod = (0.5 * log_alphas_cumprod).exp().to(dtype)
        self.sqrt_1m_alphas_cumprod = torch.sqrt(-torch.expm1(log_alphas_cumprod)).to(dtype)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """f = √(1 − β_i) x − x and G = √β_i."""
        beta = self.discrete_betas.to(x.device)[self._step(t)]
        return expand_to(torch.sqrt(1 - beta), x) * x - x, torch.sqrt(beta)


class subVPSDE(_OnPath):  # noqa: N801 - the original's name
    """VP's drift with g² = β (1 − e^(−2B)), so that σ = 1 − e^(−B)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000) -> None:
        super().__init__(N)
        self.path = paths.SubVPSDE(beta_min, beta_max)
        self.beta_0, self.beta_1 = beta_min, beta_max
        self.discrete_betas = torch.linspace(beta_min / N, beta_max / N, N)
        self.alphas = 1 - self.discrete_betas


class VESDE(_OnPath):
    """dx = g dw with σ(t) = σ_min (σ_max/σ_min)^t; ``discretize`` is SMLD's step, the prior N(0, σ_max² I)."""

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50, N: int = 1000) -> None:
        super().__init__(N)
        self.path = paths.VESDE(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std = sigma_max
        sigmas = torch.linspace(math.log(sigma_min), math.log(sigma_max), N, dtype=torch.float64).exp()
        self.discrete_sigmas = sigmas.to(torch.get_default_dtype())

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """f = 0 and G = √(σ_i² − σ_{i−1}²), with σ_{−1} = 0."""
        i = self._step(t)
        sigmas = self.discrete_sigmas.to(t.device)
        below = torch.where(i == 0, torch.zeros_like(t), sigmas[i - 1])
        return torch.zeros_like(x), torch.sqrt(sigmas[i] ** 2 - below**2)


def __getattr__(name: str) -> Any:
    known = ", ".join(__all__)
    raise AttributeError(f"sde_lib has no {name!r}; it has {known}, as the original does")
